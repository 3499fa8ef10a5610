"""Steps of LAMMPS on one process and two beside the engine through ASE on one thread: boxes of water, NVE, single precision.

python benchmarks/lammps.py runs/demo/model.pt [--copies 6 6 3] [--ranks 1 2]

Weak scaling (the box grows with the ranks) and the bytes a step sends are in docs/scaling.md.
"""

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

import mfmd
from mfmd.engine import load_model

sys.path.insert(0, "tests")
import backends

STEPS, ROUNDS = 10, 5


def box(copies):
    atoms = next(a for a in ase.io.iread("examples/data/test.xyz") if a.info["molecule"] == "water_box_16").repeat(copies)
    cell, rotation = atoms.cell.standard_form()
    atoms = Atoms(atoms.numbers, atoms.positions @ rotation.T, cell=cell, pbc=True)
    atoms.wrap()
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)) * np.sqrt(units.kB * 300 * atoms.get_masses())[:, None])
    return atoms


def lammps(folder, ranks, model, head):
    """Energy of the first step (eV), seconds a step, ghosts of all ranks."""
    (folder / "in").write_text(f"""units metal
atom_style atomic
read_data data
mass 1 1.008
mass 2 15.999
pair_style mfmd head {head}
pair_coeff * * {model} H O
neighbor 1.0 bin
timestep 0.0005
fix 1 all nve
thermo_style custom step pe
thermo_modify format float %.9g
run 0
run 2
run {STEPS}
""")
    done = backends.lmp(folder, ranks)
    done.check_returncode()
    out = done.stdout
    loops = re.findall(r"Loop time of (\S+) on \d+ procs for (\d+) steps", out)
    ghosts = re.findall(r"Nghost: +(\S+) ave", out)
    energy = float(re.search(r"Step +PotEng *\n +0 +(\S+)", out).group(1))
    return energy, float(loops[-1][0]) / STEPS, ranks * float(ghosts[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--copies", type=int, nargs=3, default=[6, 6, 3], help="of the shipped box of 16 waters")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--weak", action="store_true", help="the box twice as long on two ranks, and so on")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    head, results = model.levels[-1], {}
    print(f"{date.today()}, {platform.machine()}, {mfmd.__version__}; medians of {ROUNDS} rounds of {STEPS} steps, one thread a rank\n")
    with tempfile.TemporaryDirectory() as folder:
        boxes = {}
        for ranks in arguments.ranks:
            a, b, c = arguments.copies
            boxes[ranks] = box((a, b, c * ranks if arguments.weak else c))
            (Path(folder) / str(ranks)).mkdir()
            ase.io.write(
                Path(folder) / str(ranks) / "data", boxes[ranks], format="lammps-data", specorder=["H", "O"], masses=False, velocities=True
            )
        atoms = boxes[arguments.ranks[0]]
        atoms.calc = mfmd.Calculator(arguments.model, head, threads=1)
        expected = atoms.get_potential_energy()
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        dynamics.run(2)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            dynamics.run(STEPS)
            results.setdefault("ASE", []).append((time.perf_counter() - start) / STEPS)
            for ranks in arguments.ranks:
                energy, seconds, ghosts = lammps(Path(folder) / str(ranks), ranks, arguments.model.resolve(), head)
                if len(boxes[ranks]) == len(atoms):
                    assert abs(energy / expected - 1) < 1e-6, (energy, expected)
                results.setdefault(ranks, []).append(seconds)
                results[f"ghosts {ranks}"] = ghosts
    one = np.median(results[arguments.ranks[0]])
    print("| | atoms | ms a step | against one rank | ghosts an atom |\n|---|---|---|---|---|")
    print(f"| ASE | {len(atoms)} | {1e3 * np.median(results['ASE']):.1f} | {one / np.median(results['ASE']):.2f} × | |")
    for ranks in arguments.ranks:
        seconds, n = np.median(results[ranks]), len(boxes[ranks])
        print(
            f"| LAMMPS, {ranks} ranks | {n} | {1e3 * seconds:.1f} | {one / seconds * n / len(atoms):.2f} × | {results[f'ghosts {ranks}'] / n:.2f} |"
        )


if __name__ == "__main__":
    main()
