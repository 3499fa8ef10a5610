#!/usr/bin/env bash
# Package:  openmm 8.6.1 (MonteCarloBarostat, Context.createCheckpoint), with numpy 2.4.6
#
# Behaviour: the barostat adapts the size of its moves of the volume, from 1 % at first,
#   until a fair part of them is accepted. This size, and the counts it is adapted by,
#   are not in a checkpoint: in a new Context that loads one, moves are of 1 % again, and
#   in the same Context they stay what they have become since. Either way the trajectory
#   is not the one that goes on from there without a break, though without a barostat it
#   is, bit for bit. The size is first adapted after ten moves, so that a run in pieces
#   shorter than that never adapts it.
#
# Why it matters: a run at constant pressure that is restarted often (short queues,
#   replica exchange by restarts, workflows in many small steps) has its volume nearly held
#   where the natural fluctuations are well below 1 %: crystals, and liquids of tens of
#   thousands of molecules. Nothing is said, and the temperature is right. A test that
#   compares a restarted run with one in one piece fails at constant pressure alone.
#
# Expected: the size and the counts are internal data like the states of the random
#   number generators, the barostat's own among them, which a checkpoint does contain.
#
# Seen on 2026-11-29 (864 atoms of solid argon at 2 K and 1 bar, a move at each step):
#   openmm 8.6.1, numpy 2.4.6
#   without a barostat, a new Context goes on as the old one: True
#   with a barostat, the same Context goes on as before: False
#   with a barostat, a new Context goes on as the old one: False
#   accepted of 200 moves: 72 in one piece, 22 in pieces of 8, each in a new Context
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check openmm==8.6.1 numpy==2.4.6

OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import openmm as mm
from openmm import unit

KELVIN, CELLS, SIDE = 2.0, 6, 0.527  # face-centred cubic, nm
BASIS = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


def argon(barostat=True):
    system, force = mm.System(), mm.NonbondedForce()
    force.setNonbondedMethod(mm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.9)
    positions = SIDE * np.concatenate([np.array(list(np.ndindex(CELLS, CELLS, CELLS))) + at for at in BASIS])
    for _ in positions:
        system.addParticle(39.95)
        force.addParticle(0.0, 0.34, 1.0)
    system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*(mm.Vec3(*row) for row in CELLS * SIDE * np.eye(3)))
    if barostat:
        moves = mm.MonteCarloBarostat(1.0 * unit.bar, KELVIN, 1)
        moves.setRandomNumberSeed(1)
        system.addForce(moves)
    integrator = mm.LangevinMiddleIntegrator(KELVIN, 1.0, 0.004)
    integrator.setRandomNumberSeed(2)
    context = mm.Context(system, integrator, mm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(KELVIN, 3)
    return context


def moves(context, steps):
    """Changes of the volume, of which those that were refused are zero."""
    volumes = [context.getState().getPeriodicBoxVolume()._value]
    for _ in range(steps):
        context.getIntegrator().step(1)
        volumes.append(context.getState().getPeriodicBoxVolume()._value)
    return np.diff(volumes)


def positions(context):
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def loaded(checkpoint, barostat=True):
    context = argon(barostat)
    context.loadCheckpoint(checkpoint)
    return context


print(f"openmm {version('openmm')}, numpy {np.__version__}")
plain = argon(barostat=False)
moves(plain, 20)
checkpoint = plain.createCheckpoint()
moves(plain, 20)
other = loaded(checkpoint, barostat=False)
moves(other, 20)
without = np.array_equal(positions(plain), positions(other))
print("without a barostat, a new Context goes on as the old one:", without)

whole = argon()
moves(whole, 200)
checkpoint = whole.createCheckpoint()
after = moves(whole, 200)
whole.loadCheckpoint(checkpoint)
same = np.array_equal(moves(whole, 200), after)
print("with a barostat, the same Context goes on as before:", same)
pieces = []
for _ in range(25):
    context = loaded(checkpoint)
    pieces.append(moves(context, 8))
    checkpoint = context.createCheckpoint()
new = np.array_equal(pieces[0], after[:8])
print("with a barostat, a new Context goes on as the old one:", new)
accepted = np.count_nonzero(after), np.count_nonzero(np.concatenate(pieces))
print(f"accepted of 200 moves: {accepted[0]} in one piece, {accepted[1]} in pieces of 8, each in a new Context")
as_recorded = without and not same and not new and accepted[0] > 2 * accepted[1]
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
