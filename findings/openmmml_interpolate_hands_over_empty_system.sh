#!/usr/bin/env bash
# Package:  openmmml 1.8 (MLPotential.createMixedSystem), with openmm 8.6.1, numpy 2.4.6
#
# Behaviour: a potential's addForces(topology, system, ...) is described as getting
#   "the System that is being created". With interpolate=True it gets an empty
#   stand-in instead: no particles, no forces, the default box of 2 nm, and
#   usesPeriodicBoundaryConditions() is False. With interpolate=False it gets the
#   real one. There is no error or warning.
#
# Why it matters: six of the package's own models (ANI, MACE, NequIP, Orb, FeNNix,
#   TorchMD-Net) ask topology or system whether the model is periodic. If only the
#   System carries the box (a Topology without box vectors), the same model is
#   periodic without interpolation and not periodic with it: a molecule across the
#   cell boundary is torn, even at lambda_interpolate=1, which should be the same
#   as without interpolation. Masses, particle numbers and box read from that System
#   are wrong too.
#
# Expected: the same model energy from both calls at lambda_interpolate=1.
#
# Seen on 2026-11-27 (two atoms 0.1 nm apart across the boundary of a 3 nm box;
#   the toy model is 1000 (r - 0.1)^2 kJ/mol, periodic if topology or system is):
#   openmmml 1.8, openmm 8.6.1, numpy 2.4.6
#   box in           interpolate  particles  box nm  periodic  energy kJ/mol
#   topology+system  False                4     3.0  True              0.000
#   topology+system  True                 0     2.0  False             0.000
#   system only      False                4     3.0  True              0.000
#   system only      True                 0     2.0  False          7840.000
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check \
    openmmml==1.8 openmm==8.6.1 numpy==2.4.6

venv/bin/python - <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np
import openmm as mm
from openmm import app, unit
from openmmml import MLPotential
from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

warnings.simplefilter("error")  # a warning would count as "no longer silent"
seen = {}


class Toy(MLPotentialImpl):
    """A spring between the two atoms of the subset."""

    def getMLLongRange(self):
        return False

    def addForces(self, topology, system, atoms, forceGroup, **args):
        a, _, _ = system.getDefaultPeriodicBoxVectors()
        seen.update(particles=system.getNumParticles(), box=a.x,
                    periodic=system.usesPeriodicBoundaryConditions())
        spring = mm.CustomBondForce("1000*(r-0.1)^2")
        spring.addBond(*atoms)
        spring.setUsesPeriodicBoundaryConditions(
            topology.getPeriodicBoxVectors() is not None
            or system.usesPeriodicBoundaryConditions())
        spring.setForceGroup(forceGroup)
        system.addForce(spring)


class ToyFactory(MLPotentialImplFactory):
    def createImpl(self, name, **args):
        return Toy()


MLPotential.registerImplFactory("toy", ToyFactory())
box = [mm.Vec3(3, 0, 0), mm.Vec3(0, 3, 0), mm.Vec3(0, 0, 3)]
positions = [mm.Vec3(0.05, 1, 1), mm.Vec3(2.95, 1, 1), mm.Vec3(1, 2, 2), mm.Vec3(2, 2, 2)]


def energy(box_in_topology, interpolate):
    topology, system = app.Topology(), mm.System()
    chain = topology.addChain()
    # Uncharged and without Lennard-Jones: the model is all there is.
    nonbonded = mm.NonbondedForce()
    nonbonded.setNonbondedMethod(mm.NonbondedForce.CutoffPeriodic)
    for _ in positions:
        topology.addAtom("Ar", app.element.argon, topology.addResidue("AR", chain))
        system.addParticle(40.0)
        nonbonded.addParticle(0.0, 0.3, 0.0)
    system.addForce(nonbonded)
    system.setDefaultPeriodicBoxVectors(*box)
    if box_in_topology:
        topology.setPeriodicBoxVectors(box * unit.nanometer)
    mixed = MLPotential("toy").createMixedSystem(topology, system, [0, 1],
                                                 interpolate=interpolate)
    context = mm.Context(mixed, mm.VerletIntegrator(0.001),
                         mm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    if interpolate:
        context.setParameter("lambda_interpolate", 1.0)
    state = context.getState(energy=True)
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


print(f"openmmml {version('openmmml')}, openmm {version('openmm')}, numpy {np.__version__}")
print("box in           interpolate  particles  box nm  periodic  energy kJ/mol")
rows = []
for box_in_topology in (True, False):
    for interpolate in (False, True):
        value = energy(box_in_topology, interpolate)
        rows.append((seen["particles"], seen["box"], seen["periodic"], round(value, 3)))
        where = "topology+system" if box_in_topology else "system only"
        print(f"{where:15s}  {interpolate!s:11s}  {seen['particles']:9d}  {seen['box']:6.1f}"
              f"  {seen['periodic']!s:8s}  {value:13.3f}")
as_recorded = rows == [(4, 3.0, True, 0.0), (0, 2.0, False, 0.0),
                       (4, 3.0, True, 0.0), (0, 2.0, False, 7840.0)]
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
