"""64 waters, and a model of them."""

import shutil

import ase
import ase.build
import ase.neighborlist
import conftest
import numpy as np

from mfmd import units

DENSITIES = 0.75, 0.85, 0.95, 1.05, 1.15, 1.25, 1.4  # g/cm³, of which the model learns


def waters():
    """64 in random orientations on a lattice, at 0.95 g/cm³."""
    side, rng = (64 * 18.015 / 0.602214 / 0.95) ** (1 / 3), np.random.default_rng(1)
    box = ase.Atoms(cell=[side] * 3, pbc=True)
    for site in np.ndindex(4, 4, 4):
        molecule = ase.build.molecule("H2O")
        molecule.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        molecule.positions += (np.array(site) + 0.5) * side / 4
        box += molecule
    return box


def of_water(path):
    """Taught by flexible TIP3P, and by one of larger charges: by its dynamics at many densities and temperatures, and by atoms somewhat off."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    conftest.train_once(
        folder, list(taught()), levels={"tip3p": {"energy_weight": 0.1}, "polar": {"delta_of": "tip3p", "energy_weight": 0.1}}, strategy="multihead",
        backbone={"channels": 16, "layers": 1, "cutoff": 5.0, "radial_functions": 12, "zbl": 2.0},
        train={"epochs": 40, "batch_size": 2, "monitor": "tip3p.forces", "learning_rate": 3e-3},
    )  # fmt: skip
    shutil.copy(folder / "run" / "model.pt", path)


def taught():
    import openmm
    from openmm import app, unit

    rng, atoms, topology = np.random.default_rng(0), waters(), app.Topology()
    chain, field = topology.addChain(), app.ForceField("amber14/tip3p.xml")
    for _ in range(64):
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = (topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("O", "H1", "H2"))
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    molecules = atoms.positions.reshape(64, 3, 3)
    centers = molecules.mean(1, keepdims=True)
    for density in DENSITIES:
        wider = (0.95 / density) ** (1 / 3)
        cell = atoms.cell.array * wider
        topology.setPeriodicBoxVectors([openmm.Vec3(*vector) for vector in cell / units.ANGSTROM_PER_NM] * unit.nanometer)
        contexts = {}
        for level, charged in (("tip3p", 1.0), ("polar", 1.03)):
            system = field.createSystem(topology, nonbondedMethod=app.PME, nonbondedCutoff=0.55 * unit.nanometer, rigidWater=False)
            (force,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
            for k in range(force.getNumParticles()):
                charge, *other = force.getParticleParameters(k)
                force.setParticleParameters(k, charged * charge, *other)
            integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.0005)
            integrator.setRandomNumberSeed(1)
            contexts[level] = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
        context = contexts["tip3p"]
        context.setPositions((molecules + (wider - 1) * centers).reshape(-1, 3) * unit.angstrom)
        openmm.LocalEnergyMinimizer.minimize(context, 1.0, 200)
        for kelvin in (300, 450, 650):
            context.getIntegrator().setTemperature(kelvin)
            context.setVelocitiesToTemperature(kelvin, 1)
            context.getIntegrator().step(2000)
            for k in range(28):
                if k % 2 == 0:
                    context.getIntegrator().step(500)
                    found = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
                frame = ase.Atoms(
                    atoms.numbers, found + k % 2 * rng.normal(size=found.shape) * rng.uniform(0.02, 0.08), cell=cell, pbc=True
                )
                if len(ase.neighborlist.neighbor_list("i", frame, 0.6)):
                    continue
                for level, labelling in contexts.items():
                    before = labelling.getState(positions=True, velocities=True)
                    labelling.setPositions(frame.positions * unit.angstrom)
                    state = labelling.getState(energy=True, forces=True)
                    frame.info[f"energy_{level}"] = state.getPotentialEnergy()._value / units.KJ_PER_MOL
                    frame.arrays[f"forces_{level}"] = state.getForces(asNumpy=True)._value / units.KJ_PER_MOL_NM
                    labelling.setState(before)
                yield frame
