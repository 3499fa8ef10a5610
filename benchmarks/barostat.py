"""What a Monte Carlo barostat costs in neighbour lists and in time: 64 waters at 300 K on OpenMM's Reference platform, one thread.

python benchmarks/barostat.py runs/demo/model.pt
"""

import argparse
import os
import platform
import time
from datetime import date

os.environ["OMP_NUM_THREADS"] = "1"
import ase
import ase.io
import openmm
from openmm import unit

import mfmd
from mfmd import md
from mfmd.engine import load_model
from mfmd.hosts.openmm import PythonEvaluation

STEPS, ROUNDS = 500, 4


def context(model, topology, positions, barostat):
    """A Context of 300 K and the engine that its PythonForce calls."""
    system, evaluation = (
        openmm.System(),
        PythonEvaluation(
            model.bytes, [a.element.atomic_number for a in topology.atoms()], None, [(model.levels[-1], 1.0, "")], "single", 1, True
        ),
    )
    force, bonds = openmm.PythonForce(evaluation, {}), openmm.HarmonicBondForce()
    force.setUsesPeriodicBoundaryConditions(True)
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    for a, b in topology.bonds():  # a PythonForce cannot say what a molecule is
        bonds.addBond(a.index, b.index, 0.1, 0.0)
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for f in (force, bonds, *([openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin)] if barostat else [])):
        system.addForce(f)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    integrator.setRandomNumberSeed(1)
    c = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    c.setPositions(positions)
    c.setVelocitiesToTemperature(300, 1)
    return c, evaluation


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    model = load_model(parser.parse_args().model)
    box = next(a for a in ase.io.iread("examples/data/test.xyz") if a.info["molecule"] == "water_box_16").repeat((2, 2, 1))
    topology, positions = md.topology_of(ase.Atoms(box.numbers, box.positions, cell=box.cell, pbc=True))
    c, _ = context(model, topology, positions * unit.angstrom, False)
    md.minimize(c, steps=20)
    c.getIntegrator().step(STEPS)
    start = c.getState(positions=True).getPositions()
    runs = {name: context(model, topology, start, barostat) for name, barostat in (("NVT", False), ("NPT, every 25 steps", True))}
    spent, built = {name: 0.0 for name in runs}, {}
    for name, (c, evaluation) in runs.items():
        c.getIntegrator().step(1)
        built[name] = evaluation.engine._workspace.rebuilds, evaluation.engine.stage_times()["neighbors"]
    for _ in range(ROUNDS):
        for name, (c, _) in runs.items():
            begun = time.perf_counter()
            c.getIntegrator().step(STEPS)
            spent[name] += time.perf_counter() - begun
    print(f"{date.today()}, {platform.machine()}, {mfmd.__version__}; {len(box)} atoms, 0.5 fs, one thread, {ROUNDS * STEPS} steps each\n")
    print("| | lists built in 1000 steps | a step, ms | of it neighbours, ms |\n|---|---|---|---|")
    for name, (_, evaluation) in runs.items():
        lists, steps = evaluation.engine._workspace.rebuilds - built[name][0], ROUNDS * STEPS
        neighbors = evaluation.engine.stage_times()["neighbors"] - built[name][1]
        print(f"| {name} | {1000 * lists / steps:.0f} | {1e3 * spent[name] / steps:.2f} | {1e3 * neighbors / steps:.2f} |")


if __name__ == "__main__":
    main()
