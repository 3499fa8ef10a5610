"""How much free energy lies between two levels of theory: one simulation per λ, thermodynamic integration and MBAR.

python examples/5_lambda.py [model.pt] [--short] [--heads gfn2 cctz]

E(λ) = (1 − λ) E_first + λ E_second. dE/dλ = E_second − E_first comes with every step, so that each window knows its energy at all others.
"""

import argparse

import ase.build
import numpy as np
import openmm
import pymbar
from openmm import app, unit

import mfmd
from mfmd import md

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="mfmd:chno")
parser.add_argument("--heads", nargs=2, default=["gfn2", "cctz"])
parser.add_argument("--short", action="store_true")
arguments = parser.parse_args()

windows = np.linspace(0, 1, 3 if arguments.short else 6)
samples, every = (5, 4) if arguments.short else (400, 100)
topology, positions = md.topology_of(ase.build.molecule("CH3CH2OH"))
system = mfmd.openmm.create_system(arguments.model, topology, heads=arguments.heads, threads=1)
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(positions * unit.angstrom)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)

kt = (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoules_per_mole)
slopes = np.empty((len(windows), samples))  # (E_second − E_first) / kT
for k, value in enumerate(windows):
    simulation.context.setParameter("mfmd_lambda", value)
    simulation.step(every * samples // 10)
    for n in range(samples):
        simulation.step(every)
        state = simulation.context.getState(energy=True, parameterDerivatives=True)
        slopes[k, n] = state.getEnergyParameterDerivatives()["mfmd_lambda"] / kt

middle = slopes.mean()  # the constant between two levels of theory, which no simulation is needed for
integral = np.trapezoid(slopes.mean(1) - middle, windows)
reduced = windows[:, None] * (slopes.ravel() - middle)[None]  # energy of every sample in every window, up to what all share
mbar = pymbar.MBAR(reduced, np.full(len(windows), samples))
result = mbar.compute_free_energy_differences()
print(
    f"{arguments.heads[0]} → {arguments.heads[1]}: thermodynamic integration {integral + middle:.3f} kT, of which {integral:+.3f} beside the mean gap"
)
print(f"MBAR {result['Delta_f'][0, -1] + middle:.3f} ± {result['dDelta_f'][0, -1]:.3f} kT")
