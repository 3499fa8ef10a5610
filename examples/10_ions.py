"""Methyl as radical, cation and anion: the same nuclei in three states. Labelled, trained, relaxed, run.

python examples/10_ions.py [--short]

Labels: GFN2-xTB with forces, and energies alone at CCSD(T), of unrestricted orbitals where electrons are unpaired. One model learns the three; which
of them a structure is, it is told by charge and multiplicity, and refuses a state that it has not seen.
"""

import argparse
from pathlib import Path

import ase.build
import numpy as np
import openmm
from ase import Atoms
from ase.optimize import LBFGS
from openmm import app, unit

import mfmd
from mfmd import md
from mfmd.config import parse
from mfmd.engine import InputError
from mfmd.labelling import campaign, schema
from mfmd.labelling.methods import label
from mfmd.training import plan
from mfmd.training.run import train

STATES = {"radical": (0, 2), "cation": (1, 1), "anion": (-1, 1)}  # charge and multiplicity, 2S + 1
LEVELS = {"gfn2": {"method": "gfn2"}, "cc": {"method": "ccsd(t)", "basis": "6-31+g*", "forces": "none"}}


def make_labels(out, short):
    """Frames of dynamics at GFN2-xTB from each of the three, and their labels."""
    few = {"train": 6, "val": 2, "test": 2} if short else {"train": 30, "val": 5, "test": 5}
    structures = [{"structure": "CH3", "charge": q, "multiplicity": m} for q, m in STATES.values()]
    config = {"out": str(out), "structures": structures, "levels": LEVELS, "sampling": {"temperatures": [300.0], **few}, "workers": 2}
    campaign.run(parse(config, "the example", schema.Config))
    return out


def fit(labels, out, short):
    """The path of a model that has learned them, the energies of CCSD(T) by Gauss-Newton."""
    config = {
        "out": str(out), "strategy": "chain-newton", "levels": {level: {} for level in LEVELS}, "resume": True,
        "data": {split: str(labels / f"{split}.xyz") for split in ("train", "val", "test")}, "backbone": "small",
        "train": {"epochs": 5 if short else 150, "batch_size": 8},
    }  # fmt: skip
    train(plan.parse(config, "the example"))
    return out / "model.pt"


def relaxed(model, charge, multiplicity):
    """The molecule at its lowest energy, by ASE: charge and multiplicity are in its info."""
    bare = ase.build.molecule("CH3")
    atoms = Atoms(bare.numbers, bare.positions, info={"charge": charge, "multiplicity": multiplicity})
    atoms.positions[0] += [0.0, 0.0, 0.1]  # out of the plane of its hydrogens, where the anion has its carbon
    atoms.calc = mfmd.Calculator(model, threads=1)
    LBFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    return atoms


def out_of_plane(positions):
    """Å, of carbon from its three hydrogens."""
    normal = np.cross(positions[2] - positions[1], positions[3] - positions[1])
    return abs((positions[0] - positions[1]) @ normal) / np.linalg.norm(normal)


def heights(model, atoms, steps):
    """That of frames of dynamics at 300 K, by OpenMM: charge and multiplicity are arguments."""
    topology, positions = md.topology_of(Atoms(atoms.numbers, atoms.positions))
    system = mfmd.openmm.create_system(model, topology, threads=1, **{key: atoms.info[key] for key in ("charge", "multiplicity")})
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions * unit.angstrom)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    found = []
    for _ in range(steps // 20):
        simulation.step(20)
        found.append(out_of_plane(simulation.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)))
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", default="runs/ions")
    arguments = parser.parse_args()
    out = Path(arguments.out)

    model = fit(make_labels(out / "labels", arguments.short), out / "model", arguments.short)
    high = parse(LEVELS["cc"], "the example", schema.Level)
    molecules = {name: relaxed(model, *state) for name, state in STATES.items()}
    exact = {name: label(high, atoms, forces=False)["energy"] for name, atoms in molecules.items()}
    own = {name: atoms.get_potential_energy() for name, atoms in molecules.items()}
    for name, words in (("cation", "ionisation energy"), ("anion", "energy of the anion")):
        print(
            f"{words}: {own[name] - own['radical']:.3f} eV by the model, {exact[name] - exact['radical']:.3f} eV by CCSD(T) at its structures"
        )
    for name, atoms in molecules.items():
        run = heights(model, atoms, 200 if arguments.short else 20_000)
        print(
            f"{name}: carbon is {out_of_plane(atoms.positions):.2f} Å out of the plane of hydrogens, and {run.mean():.2f} Å on average at 300 K"
        )
    try:
        relaxed(model, 2, 2)
    except InputError as error:
        print(f"a dication is refused: {error}")


if __name__ == "__main__":  # processes that label import this file
    main()
