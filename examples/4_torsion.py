"""Free energy of ethanol's hydroxyl torsion by well-tempered metadynamics.

python examples/4_torsion.py runs/demo/model.pt [--short]
"""

import argparse
from pathlib import Path

import ase.build
import numpy as np
import openmm
from matplotlib.figure import Figure
from openmm import app, unit

import mfmd
from mfmd import md

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--short", action="store_true")
parser.add_argument("--out", default="runs/torsion")
arguments = parser.parse_args()

out = Path(arguments.out)
out.mkdir(parents=True, exist_ok=True)
topology, positions = md.topology_of(ase.build.molecule("CH3CH2OH"))
system = mfmd.openmm.create_system(arguments.model, topology, threads=1)
torsion = openmm.CustomTorsionForce("theta")
torsion.addTorsion(0, 1, 2, 3)  # C–C–O–H
bias = app.BiasVariable(torsion, -np.pi, np.pi, 0.35, periodic=True, gridWidth=90)
metadynamics = app.Metadynamics(system, [bias], 300 * unit.kelvin, 10.0, 1.0 * unit.kilojoules_per_mole, 100)
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions * unit.angstrom)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
metadynamics.step(simulation, 500 if arguments.short else 400_000)

free = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
free -= free.min()
angle = np.linspace(-180, 180, len(free))
np.savetxt(out / "torsion.csv", np.c_[angle, free], delimiter=",", header="degrees,kJ/mol")
figure = Figure(figsize=(5, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(angle, free)
axes.set_xlabel("C–C–O–H, degrees")
axes.set_ylabel("free energy, kJ/mol")
figure.savefig(out / "torsion.png", dpi=150)
gauche, anti = free[(abs(angle) > 30) & (abs(angle) < 90)].min(), free[abs(angle) > 150].min()
print(f"gauche − anti {gauche - anti:+.2f} kJ/mol; highest barrier {free.max():.1f} kJ/mol; {out / 'torsion.png'}")
