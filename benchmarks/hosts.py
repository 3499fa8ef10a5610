"""What a step of dynamics costs beyond the engine, host by host: ethanol on OpenMM's Reference platform, one thread.

python benchmarks/hosts.py runs/demo/model.pt
"""

import argparse
import os
import platform
import sys
import time
from datetime import date
from importlib.util import find_spec

os.environ["OMP_NUM_THREADS"] = "1"
import ase.build
import numpy as np

import mfmd
from mfmd.engine import Engine

sys.path.insert(0, "tests")
import backends

ROUNDS, STEPS = 40, 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    arguments = parser.parse_args()
    atoms = ase.build.molecule("CH3CH2OH")
    engine = Engine(arguments.model, threads=1)
    rng = np.random.default_rng(0)
    places = [atoms.positions + 0.01 * rng.normal(size=atoms.positions.shape) for _ in range(STEPS)]
    numbers, terms = np.asarray(atoms.numbers, np.int32), engine.terms([(engine.levels[-1], 1.0)])

    def engine_alone():  # the compiled engine itself, with its input at hand
        for p in places:
            engine._workspace.evaluate([(p, numbers, np.zeros((3, 3)), [False] * 3)], terms, True, False, False, False)

    runs, contexts = {"engine alone": engine_alone}, {}
    for kind in (kind for kind, package in backends.OPENMM.items() if find_spec(package)):
        contexts[kind] = backends.context(arguments.model, engine.levels[-1], atoms, kind, "single", threads=1, remove_cm_motion=False)
        contexts[kind].setVelocitiesToTemperature(100, 1)
        runs[kind] = lambda kind=kind: contexts[kind].getIntegrator().step(STEPS)
    energies = {kind: backends.energy_and_forces(c)[0] for kind, c in contexts.items()}
    assert np.ptp(list(energies.values())) < 1e-5, energies
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / STEPS)
    print(
        f"{date.today()}, {platform.machine()}, {mfmd.__version__}; ethanol, Reference, one thread; median of {ROUNDS} rounds of {STEPS} steps\n"
    )
    print("| | a step, µs | beyond the engine, µs |\n|---|---|---|")
    for name, found in times.items():
        beyond = np.median(np.array(found) - np.array(times["engine alone"]))
        print(f"| {name} | {1e6 * np.median(found):.1f} | {1e6 * beyond if name != 'engine alone' else 0:+.1f} |")


if __name__ == "__main__":
    main()
