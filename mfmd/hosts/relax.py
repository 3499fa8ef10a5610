"""Relaxing what an OpenMM Context holds, gently enough for a learned potential.

OpenMM's own minimiser may begin with steps of a nm, from where a learned potential does not come back. Here ASE's LBFGS moves each atom by at most
0.1 Å a step, and what the System holds is asked of the Context: constraints are applied to positions, and to forces as they are to velocities.
"""

import contextlib

import numpy as np
import openmm
import openmm.unit as unit
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import LBFGS

from mfmd import Error, progress, units

LONGEST = 0.1  # Å, of an atom in a step
STIFF = 70.0  # eV/Å², as ASE's LBFGS takes it to be before it knows
HALVINGS = 8  # of a step that does not lead down, at most
UPHILL = 1e-2  # eV that are down all the same: the noise of single precision


def minimize(context, fmax=0.05, steps=500):
    """Relax the positions of a Context; constraints hold, particles without mass stay, virtual sites follow, velocities are as before.

    fmax : eV/Å, of the largest force that constraints leave; steps : at most so many

    Raises
    ------
    Error : energy or forces are not finite; the positions are the lowest before
    """
    velocities = context.getState(velocities=True).getVelocities(asNumpy=True)
    held, calculator = _Held(context), _ContextCalculator(context)
    start = _positions(context)
    held.adjust_positions(None, start)
    try:
        atoms = Atoms(["X"] * len(start), start, calculator=calculator, constraint=held)
        for _ in progress.over(_Downhill(atoms, maxstep=LONGEST, logfile=None).irun(fmax, steps), "minimising", "steps"):
            pass
    finally:
        lowest = (start if calculator.best is None else calculator.best) / units.ANGSTROM_PER_NM
        lowest[~held.free] = held.still  # to the last bit
        context.setPositions(lowest)
        context.computeVirtualSites()
        context.setVelocities(velocities)


class _Downhill(LBFGS):
    """A step that the potential refuses, or that leads up, is made shorter."""

    def __init__(self, atoms, **options):
        super().__init__(atoms, **options)
        self.now, self.trial = atoms, atoms.copy()
        self.trial.calc = atoms.calc

    def determine_step(self, dr):
        before, forces = self.now.get_potential_energy(), self.now.get_forces()
        if np.vdot(forces, dr) <= 0:  # where the surface is curved downward LBFGS may point up
            dr = np.reshape(forces / STIFF, np.shape(dr))
        dr = super().determine_step(dr)
        for _ in range(HALVINGS):
            self.trial.positions = self.now.positions
            self.trial.set_positions(self.now.positions + np.reshape(dr, (-1, 3)))
            with contextlib.suppress(Error, openmm.OpenMMException):
                if self.trial.get_potential_energy() <= before + UPHILL:
                    break
            dr = dr / 2
        return dr


def _positions(context):
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)


class _Held:
    """What a System keeps as it is, as a constraint of ASE."""

    def __init__(self, context):
        system = context.getSystem()
        self.context, self.constrained = context, system.getNumConstraints() > 0
        self.masses = np.array([[system.getParticleMass(k)._value] for k in range(system.getNumParticles())])
        self.free = self.masses[:, 0] > 0
        self.still = context.getState(positions=True).getPositions(asNumpy=True)._value[~self.free]  # nm

    def __deepcopy__(self, memo):
        return self  # a calculator keeps a copy of the atoms, and a Context cannot be copied

    def adjust_positions(self, atoms, positions):
        positions[~self.free] = self.still * units.ANGSTROM_PER_NM
        self.context.setPositions(positions * unit.angstrom)
        self.context.applyConstraints(self.context.getIntegrator().getConstraintTolerance())
        positions[self.free] = _positions(self.context)[self.free]

    def adjust_forces(self, atoms, forces):
        """Along what constraints allow: as accelerations they are velocities that a Context constrains."""
        forces[~self.free] = 0
        if self.constrained:
            self.context.setVelocities(np.divide(forces, self.masses, out=np.zeros_like(forces), where=self.masses > 0))
            self.context.applyVelocityConstraints(self.context.getIntegrator().getConstraintTolerance())
            forces[:] = self.masses * self.context.getState(velocities=True).getVelocities(asNumpy=True)._value

    def get_removed_dof(self, atoms):
        return 3 * np.sum(~self.free)


class _ContextCalculator(Calculator):
    implemented_properties = ["energy", "forces"]

    def __init__(self, context):
        super().__init__()
        self.context, self.lowest, self.best = context, np.inf, None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.context.setPositions(self.atoms.positions * unit.angstrom)
        self.context.computeVirtualSites()
        state = self.context.getState(energy=True, forces=True)
        energy, forces = state.getPotentialEnergy()._value / units.KJ_PER_MOL, state.getForces(asNumpy=True)._value / units.KJ_PER_MOL_NM
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise Error("energy or forces are not finite, so nothing can be relaxed; look for atoms that overlap")
        if energy < self.lowest:
            self.lowest, self.best = energy, self.atoms.get_positions()
        self.results = {"energy": energy, "forces": forces}
