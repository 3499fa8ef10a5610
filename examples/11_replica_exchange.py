"""Replica exchange between levels of theory: one replica per λ, which trade places, so that each level samples what the others have found.

python examples/11_replica_exchange.py [model.pt] [--heads gfn2 cctz] [--short]

E(λ) = (1 − λ) E_first + λ E_second; the ReplicaExchangeSampler of openmm (8.6 and newer) does the rest. The energies of all replicas in all states
give the free energy between the levels by MBAR, as in 5_lambda.py.
"""

import argparse
import random

import ase.build
import numpy as np
import openmm
import pymbar.timeseries
from openmm import app, unit

import mfmd
from mfmd import md

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", nargs="?", default="mfmd:chno")
parser.add_argument("--heads", nargs=2, default=["gfn2", "cctz"])
parser.add_argument("--short", action="store_true")
arguments = parser.parse_args()
if not hasattr(app, "ReplicaExchangeSampler"):
    parser.exit(1, f"error: openmm {openmm.__version__} has no ReplicaExchangeSampler; 8.6 and newer have\n")

states = [{"temperature": 300 * unit.kelvin, "mfmd_lambda": value} for value in np.linspace(0, 1, 3 if arguments.short else 4)]
iterations, steps = (20, 5) if arguments.short else (600, 100)

topology, positions = md.topology_of(ase.build.molecule("CH3CH2OH"))
system = mfmd.openmm.create_system(arguments.model, topology, heads=arguments.heads, threads=1)
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions * unit.angstrom)
md.minimize(simulation.context)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)

random.seed(1)  # of the exchanges
sampler = app.ReplicaExchangeSampler(states, simulation, steps)
places, energies = [], []  # of the replicas: their states, and their energies in all states


def report(sampler):
    places.append(list(sampler.replicaStateIndex))
    energies.append([[e.value_in_unit(unit.kilojoules_per_mole) for e in row] for row in sampler.replicaStateEnergy])


sampler.reporters.append(report)
sampler.simulate(iterations)

places, energies = (
    np.array(places)[iterations // 10 :],
    np.array(energies)[iterations // 10 :],
)  # (iterations, replicas), (iterations, replicas, states)
moved = (np.diff(places, axis=0) != 0).mean()
trips = sum(np.count_nonzero(np.diff(ends[ends % (len(states) - 1) == 0])) for ends in places.T)
print(
    f"{len(states)} replicas, {iterations} iterations of {steps} steps: a replica's state changes in {100 * moved:.0f} % of them; {trips} ways from end to end"
)

kt = (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoules_per_mole)
apart = int(np.ceil(pymbar.timeseries.statistical_inefficiency_multiple(list((energies[:, :, -1] - energies[:, :, 0]).T))))
places, energies = places[::apart], energies[::apart]  # iterations that know nothing of each other
order = np.argsort(places.ravel(), kind="stable")  # samples by the state they were drawn in
reduced = energies.reshape(-1, len(states))[order].T / kt
gap = (reduced[-1] - reduced[0]).mean()  # the constant between two levels of theory, which no simulation is needed for
share = np.linspace(0, 1, len(states))[:, None]
result = pymbar.MBAR(
    reduced - reduced[:1] - share * gap, np.bincount(places.ravel(), minlength=len(states))
).compute_free_energy_differences()
first, second = arguments.heads
print(
    f"{first} → {second}: MBAR {result['Delta_f'][0, -1] + gap:.3f} ± {result['dDelta_f'][0, -1]:.3f} kT, of which {result['Delta_f'][0, -1]:+.3f} beside the mean gap"
)
