#!/usr/bin/env bash
# Package:  openmm 8.6.1 (openmm.app.ReplicaExchangeSampler, new in 8.6)
#
# Behaviour: the acceptance of an exchange is min(1, exp(-delta)), and the
#   exponential is taken before the minimum. An exchange that lowers the reduced
#   energy by more than 709 therefore ends the run with Python's "OverflowError:
#   math range error", where it should simply be accepted. It happens to
#   Hamiltonian replica exchange that starts from a strained structure: here two
#   stiffnesses of one well.
#
# Why it matters: the exchange that ends the run is the most welcome one, and a
#   run that has equilibrated does not show it; nothing in the message speaks of
#   exchanges or energies. Between a cheap and an expensive potential a start
#   that is not relaxed in both is usual. Relax first, and the sampler runs.
#
# Expected: the exchange is accepted, as Metropolis and Hastings have it.
#
# Seen on 2026-11-27:
#   openmm 8.6.1, from the bottom of the well: 200 iterations
#   openmm 8.6.1, from a strained start: OverflowError: math range error
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check openmm==8.6.1 numpy==2.4.6

cat > exchange.py <<'PY'
import random
import sys
from importlib.metadata import version

import openmm as mm
from openmm import app


def run(start):
    """Two replicas of a carbon atom in a well of 50 scale x^2 kJ/mol, scale 1 and 1000, from x = start nm."""
    system = mm.System()
    system.addParticle(12.0)
    well = mm.CustomExternalForce("50*scale*x^2")
    well.addGlobalParameter("scale", 1.0)
    well.addParticle(0, [])
    system.addForce(well)
    topology = app.Topology()
    topology.addAtom("C", app.element.carbon, topology.addResidue("X", topology.addChain()))
    integrator = mm.LangevinMiddleIntegrator(300, 1.0, 0.001)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions([mm.Vec3(start, 0, 0)])
    random.seed(1)
    sampler = app.ReplicaExchangeSampler([{"scale": 1.0}, {"scale": 1000.0}], simulation, 1)
    try:
        sampler.simulate(200)
    except OverflowError as error:
        return f"OverflowError: {error}"
    return f"{sampler.currentIteration} iterations"


calm, strained = run(0.0), run(7.0)
print(f"openmm {version('openmm')}, from the bottom of the well: {calm}")
print(f"openmm {version('openmm')}, from a strained start: {strained}")
sys.exit(0 if (calm, strained) == ("200 iterations", "OverflowError: math range error") else "no longer as recorded")
PY
venv/bin/python exchange.py
echo "as recorded"
