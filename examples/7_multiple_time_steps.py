"""Multiple time steps: a small model, taught by the large one, moves the atoms every 0.42 fs; large minus small corrects it every 1.25 fs.

python examples/7_multiple_time_steps.py runs/demo/model.pt [--short] [--head gfn2]

Prints ns/day and the drift of the total energy, of the large model alone at 0.5 fs and of both with OpenMM's MTSIntegrator.
"""

import argparse
import time
from pathlib import Path

import ase.io
import numpy as np
import openmm
from openmm import unit

import mfmd
from mfmd import md, units
from mfmd.engine import load_model
from mfmd.training import plan
from mfmd.training.run import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--short", action="store_true")
parser.add_argument("--head")
parser.add_argument("--structure", help="a box; by default the shipped one of 16 waters, twice along two of its axes")
parser.add_argument("--picoseconds", type=float, default=5.0)
parser.add_argument("--out", default="runs/mts")
arguments = parser.parse_args()

out = Path(arguments.out)
out.mkdir(parents=True, exist_ok=True)
head = arguments.head or load_model(arguments.model).levels[-1]
if arguments.structure:
    atoms = ase.io.read(arguments.structure)
else:
    box = next(a for a in ase.io.iread("examples/data/test.xyz") if a.info["molecule"] == "water_box_16")
    atoms = (box if arguments.short else box.repeat((2, 2, 1)))[:]
atoms = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
topology, positions = md.topology_of(atoms)


def simulation(forces, integrator):
    """A Context with forces [(model, weight, group)]."""
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for model, weight, group in forces:
        force = mfmd.openmm.create_force(model, topology, terms=[(head, weight)])
        force.setForceGroup(group)
        system.addForce(force)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))


# What the large model says of structures along its own dynamics; the small one learns it.
frames, c = [], simulation([(arguments.model, 1.0, 0)], openmm.LangevinMiddleIntegrator(330, 5, 0.0005))
c.getIntegrator().setRandomNumberSeed(1)
c.setPositions(positions * unit.angstrom)
md.minimize(c, fmax=0.5, steps=20)
c.setVelocitiesToTemperature(330 * unit.kelvin, 1)
for _ in range(4 if arguments.short else 300):
    c.getIntegrator().step(2 if arguments.short else 20)
    state = c.getState(positions=True, energy=True, forces=True)
    frame = ase.Atoms(atoms.numbers, state.getPositions(asNumpy=True).value_in_unit(unit.angstrom), cell=atoms.cell, pbc=True)
    frame.info[f"energy_{head}"] = state.getPotentialEnergy()._value / units.KJ_PER_MOL
    frame.arrays[f"forces_{head}"] = state.getForces(asNumpy=True)._value / units.KJ_PER_MOL_NM
    frames.append(frame)
start = c.getState(positions=True, velocities=True)
ase.io.write(out / "taught.xyz", frames, format="extxyz")
small = out / "small" / "model.pt"
if not small.exists():
    config = {
        "out": str(out / "small"), "strategy": "single", "levels": {head: {"energy_weight": 0.1}}, "data": {"train": str(out / "taught.xyz"), "val": 0.25 if arguments.short else 0.1},
        "backbone": {"channels": 16, "layers": 2, "cutoff": 3.5, "radial_functions": 24},
        "train": {"epochs": 2 if arguments.short else 50, "batch_size": 1, "monitor": f"{head}.forces", "learning_rate": 3e-3},
    }  # fmt: skip
    train(plan.parse(config, "the example"))

integrators = {  # name: forces, integrator, its step in ps
    "large alone, 0.5 fs": ([(arguments.model, 1.0, 0)], openmm.VerletIntegrator(0.0005), 0.0005),
    "small every 0.42 fs, large − small every 1.25 fs": (
        [(small, 1.0, 1), (arguments.model, 1.0, 0), (small, -1.0, 0)],
        openmm.MTSIntegrator(0.00125, [(0, 1), (1, 3)]),
        0.00125,
    ),
}
contexts, energies, seconds = {}, {name: [] for name in integrators}, {name: [] for name in integrators}
for name, (forces, integrator, _) in integrators.items():
    contexts[name] = simulation(forces, integrator)
    contexts[name].setPositions(start.getPositions())
    contexts[name].setVelocities(start.getVelocities())
block = 0.0125  # ps; the runs take turns, so that what else the machine does slows both
for _ in range(2 if arguments.short else round(arguments.picoseconds / block)):
    for name, (_, integrator, step) in integrators.items():
        begun = time.perf_counter()
        integrator.step(round(block / step))
        seconds[name].append(time.perf_counter() - begun)
        state = contexts[name].getState(energy=True)
        energies[name].append((state.getPotentialEnergy() + state.getKineticEnergy())._value / units.KJ_PER_MOL / len(atoms) * 1e3)
for name in integrators:
    drift = np.polyfit(block * np.arange(len(energies[name])), energies[name], 1)[0]
    speed = 86.4 * block / np.median(seconds[name])
    print(f"{name}: {speed:.2f} ns/day, drift {drift:+.4f} meV/atom/ps, spread {np.std(energies[name]):.3f} meV/atom")
np.savetxt(
    out / "energies.csv", np.transpose(list(energies.values())), delimiter=",", header="meV/atom every 12.5 fs: " + "; ".join(energies)
)
