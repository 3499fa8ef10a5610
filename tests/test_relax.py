"""md.minimize: what a System holds stays as it is, and no minimum is worse than OpenMM's own."""

import numpy as np
import pytest
from conftest import ROOT, ethanol

pytest.importorskip("openmm")

import openmm
from openmm import app, unit

import mfmd
from mfmd import md


def solvated(force_field, water, atoms=None, edge=1.4):
    """Modeller and System: rigid water, or ethanol in it."""
    field = app.ForceField(str(ROOT / "examples" / "ethanol.xml"), f"{force_field}.xml")
    modeller = app.Modeller(*(md.topology_of(atoms)[0], atoms.positions * unit.angstrom) if atoms else (app.Topology(), []))
    modeller.addSolvent(field, model=water, boxSize=openmm.Vec3(edge, edge, edge) * unit.nanometer)
    return modeller, field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.6 * unit.nanometer, constraints=None)


def rigid(trained):
    modeller, system = solvated("tip3p", "tip3p")
    return modeller.positions, system


def with_sites(trained):
    modeller, system = solvated("tip4pew", "tip4pew")
    return modeller.positions, system


def mixed(trained):
    pytest.importorskip("openmmml")
    from openmmml import MLPotential

    modeller, mm = solvated("tip3p", "tip3p", ethanol(), 1.5)
    return modeller.positions, MLPotential("mfmd", modelPath=str(trained[0])).createMixedSystem(
        modeller.topology, mm, list(range(9)), threads=1
    )


def bonded_hydrogens(trained):
    """Ethanol by the model, its bonds to hydrogen of fixed length."""
    topology, positions = md.topology_of(ethanol())
    system = mfmd.openmm.create_system(trained[0], topology, "gfn2", threads=1)
    for a, b in topology.bonds():
        if 1 in (a.element.atomic_number, b.element.atomic_number):
            system.addConstraint(a.index, b.index, 1e-1 * np.linalg.norm(positions[a.index] - positions[b.index]))
    positions = positions + np.random.default_rng(3).normal(scale=0.03, size=positions.shape)
    return positions * unit.angstrom, system


def plain(trained):
    topology, positions = md.topology_of(ethanol())
    positions = positions + np.random.default_rng(2).normal(scale=0.03, size=positions.shape)
    return positions * unit.angstrom, mfmd.openmm.create_system(trained[0], topology, "gfn2", threads=1)


def context_of(positions, system):
    c = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    c.setPositions(positions)
    c.computeVirtualSites()
    return c


def where(c):
    return c.getState(positions=True).getPositions(asNumpy=True)._value


def energy(c):
    return c.getState(energy=True).getPotentialEnergy()._value


@pytest.mark.parametrize("make", [rigid, with_sites, mixed, bonded_hydrogens, plain])
def test_what_a_system_holds_stays_and_the_minimum_is_as_low_as_openmm_finds_it(make, trained):
    positions, system = make(trained)
    c, other = context_of(positions, system), context_of(positions, system)
    c.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    velocities = c.getState(velocities=True).getVelocities(asNumpy=True)._value
    md.minimize(c)
    high = energy(other)
    try:
        openmm.LocalEnergyMinimizer.minimize(other)
        theirs = energy(other)
    except openmm.OpenMMException as error:  # of the engine, at one of the long steps
        assert "overlap" in str(error)
        theirs = high
    x = where(c)
    off = [
        abs(np.linalg.norm(x[a] - x[b]) - d._value) for a, b, d in map(system.getConstraintParameters, range(system.getNumConstraints()))
    ]
    assert max(off, default=0) < 1e-5
    c.computeVirtualSites()
    assert np.abs(where(c) - x).max() < 1e-9
    # OpenMM ends in one minimum or another of water, which differ by 1 % of the way down
    assert energy(c) <= theirs + 0.01 * (high - theirs) + 0.05
    assert np.array_equal(c.getState(velocities=True).getVelocities(asNumpy=True)._value, velocities)


@pytest.mark.parametrize("make", [rigid, with_sites, plain])
def test_what_has_no_mass_does_not_move(make, trained):
    """To the last bit; what is around it relaxes."""
    positions, system = make(trained)
    held = list(range(4 if make is with_sites else 3))
    for k in held:
        system.setParticleMass(k, 0.0)
    c = context_of(positions, system)
    before, high = where(c), energy(c)
    md.minimize(c, fmax=1.0, steps=30)
    assert np.array_equal(where(c)[held], before[held])
    assert energy(c) < high and np.abs(where(c) - before).max() > 1e-4


@pytest.mark.parametrize(("a", "b"), [(4, 6), (7, 8), (1, 3)])
def test_a_bad_start(a, b):
    """Two atoms 0.7 Å apart: the end is the molecule again that springs between all of its atoms make."""
    atoms, springs, system = ethanol(), openmm.HarmonicBondForce(), openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    for k, m in zip(*np.triu_indices(len(atoms), 1), strict=True):
        springs.addBond(k, m, 0.1 * atoms.get_distance(k, m), 2e4)
    system.addForce(springs)
    good = atoms.get_all_distances()
    atoms.positions[b] = atoms.positions[a] + 0.7 * (atoms.positions[b] - atoms.positions[a]) / atoms.get_distance(a, b)
    c = context_of(atoms.positions * unit.angstrom, system)
    md.minimize(c)
    atoms.positions = 10 * where(c)
    np.testing.assert_allclose(atoms.get_all_distances(), good, atol=0.02)


def test_what_is_not_finite_is_said_and_positions_stay():
    system, force = openmm.System(), openmm.CustomExternalForce("sqrt(x)")
    system.addParticle(1.0)
    force.addParticle(0, [])
    system.addForce(force)
    c = context_of(np.array([[-1.0, 0.0, 0.0]]), system)
    with pytest.raises(mfmd.Error, match="not finite"):
        md.minimize(c)
    assert np.array_equal(where(c), [[-1.0, 0.0, 0.0]])
