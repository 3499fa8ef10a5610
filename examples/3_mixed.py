"""Ethanol by the model in TIP3P water by a force field (mechanical embedding), through openmm-ml.

python examples/3_mixed.py runs/demo/model.pt [--short]

The same with `interpolate=True` has a parameter `lambda_interpolate` that leads from the force field (0) to the model (1).
"""

import argparse
from pathlib import Path

import ase.build
import openmm
from openmm import app, unit
from openmmml import MLPotential

from mfmd import md

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--short", action="store_true")
parser.add_argument("--out", default="runs/mixed")
arguments = parser.parse_args()

out = Path(arguments.out)
out.mkdir(parents=True, exist_ok=True)
topology, positions = md.topology_of(ase.build.molecule("CH3CH2OH"))
force_field = app.ForceField("examples/ethanol.xml", "tip3p.xml")
modeller = app.Modeller(topology, positions * unit.angstrom)
modeller.addSolvent(force_field, boxSize=openmm.Vec3(2.2, 2.2, 2.2) * unit.nanometer)
mm = force_field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, constraints=None)

solute = list(range(len(positions)))
system = MLPotential("mfmd", modelPath=arguments.model).createMixedSystem(modeller.topology, mm, solute, threads=1)
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(modeller.topology, system, integrator, openmm.Platform.getPlatformByName("CPU"))
simulation.context.setPositions(modeller.positions)
md.minimize(simulation.context, fmax=0.5, steps=200)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
every = 10 if arguments.short else 500
simulation.reporters = [
    app.DCDReporter(str(out / "mixed.dcd"), every),
    app.StateDataReporter(str(out / "mixed.csv"), every, step=True, potentialEnergy=True, temperature=True, speed=True),
]
simulation.step(2 * every if arguments.short else 20000)
with open(out / "mixed.pdb", "w") as file:
    app.PDBFile.writeFile(modeller.topology, simulation.context.getState(positions=True).getPositions(), file)
print((out / "mixed.csv").read_text().splitlines()[-1])
