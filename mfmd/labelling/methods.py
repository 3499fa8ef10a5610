"""One label: a structure at a level of theory, by tblite (GFN1-xTB, GFN2-xTB) or PySCF (HF, DFT, MP2, CCSD, CCSD(T))."""

import ase
import numpy as np
from ase.data import atomic_numbers, ground_state_magnetic_moments

from mfmd import units
from mfmd.labelling.schema import CORRELATED, XTB, LabelError
from mfmd.structures.charge import charge_or_spin

HARTREE, BOHR = units.ENERGY["Hartree"], units.LENGTH["Bohr"]  # eV, Å


def label(level, atoms, forces=True):
    """Energy of a structure at a level, and its forces and stress.

    Parameters
    ----------
    level : Level; atoms : ase.Atoms; forces : False for the energy alone

    Returns
    -------
    {"energy": eV, "forces": (atoms, 3) eV/Å or absent, "stress": (6,) eV/Å³ Voigt, of periodic structures}

    Raises
    ------
    LabelError : not converged, no analytic forces, a periodic structure with a method for molecules, a charge or an open shell
    """
    if reason := charge_or_spin(atoms.info, atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()):
        raise LabelError(reason)
    if atoms.numbers.sum() % 2:
        raise LabelError(f"{atoms.get_chemical_formula()} has an odd number of electrons, and only closed shells are labelled")
    total = {}
    for method, coefficient in ((level, 1.0), *((c, c.coefficient) for c in level.corrections)):
        part = _xtb(method, atoms) if method.method in XTB else _pyscf(method, atoms, forces)
        for kind, value in part.items():
            total[kind] = total.get(kind, 0.0) + coefficient * np.asarray(value)
    return {kind: value for kind, value in total.items() if forces or kind == "energy"}


def _xtb(method, atoms, unpaired=0):
    from tblite.interface import Calculator

    periodic = {"lattice": atoms.cell.array / BOHR, "periodic": atoms.pbc} if atoms.pbc.any() else {}
    positions = atoms.positions / BOHR
    calculator = Calculator(method.method, atoms.numbers, positions, uhf=unpaired if unpaired else None, **periodic)
    calculator.set("verbosity", 0)
    try:
        result = calculator.singlepoint()
    except RuntimeError as error:
        raise LabelError(f"{method.method}: {error}") from None
    out = {"energy": float(result["energy"]) * HARTREE, "forces": -result["gradient"] * HARTREE / BOHR}
    if atoms.pbc.all():
        out["stress"] = units.voigt(result["virial"]) * HARTREE / atoms.cell.volume
    return out


def _pyscf(method, atoms, forces, unpaired=0):
    import pyscf
    from pyscf.data.elements import chemcore

    if atoms.pbc.any():
        raise LabelError(f"{method.method}/{method.basis} is for molecules, and the structure is periodic")
    geometry = list(zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True))
    molecule = pyscf.M(atom=geometry, unit="Å", basis=method.basis, cart=method.cartesian, spin=unpaired, verbose=0)
    correlated = method.method in CORRELATED
    if correlated or method.method == "hf":
        field = pyscf.scf.UHF(molecule) if unpaired else pyscf.scf.RHF(molecule)
    else:
        field = pyscf.dft.UKS(molecule, xc=method.method) if unpaired else pyscf.dft.RKS(molecule, xc=method.method)
        field.grids.level = method.grid
    if method.density_fitting:
        field = field.density_fit()
    field.kernel()
    if not field.converged:
        raise LabelError(f"{method.method}/{method.basis}: the self-consistent field has not converged")
    energy, solver = field.e_tot, field
    if correlated:
        frozen = chemcore(molecule) if method.frozen_core else 0
        solver = pyscf.mp.MP2(field, frozen=frozen) if method.method == "mp2" else pyscf.cc.CCSD(field, frozen=frozen)
        solver.kernel()
        if method.method != "mp2" and not solver.converged:
            raise LabelError(f"{method.method}/{method.basis}: coupled cluster has not converged")
        energy = solver.e_tot
        if method.method == "ccsd(t)":
            energy += solver.ccsd_t()
    out = {"energy": float(energy) * HARTREE}
    if forces:
        if method.method == "ccsd(t)":
            from pyscf.cc import ccsd_t_lambda
            from pyscf.grad.ccsd_t import Gradients

            integrals = solver.ao2mo()
            converged, l1, l2 = ccsd_t_lambda.kernel(solver, integrals, solver.t1, solver.t2, verbose=0)
            if not converged:
                raise LabelError(f"{method.method}/{method.basis}: the lambda equations have not converged")
            gradient = Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
        else:
            try:
                gradients = solver.nuc_grad_method()
            except NotImplementedError:
                raise LabelError(f"{method.method}/{method.basis} with density fitting has no analytic forces; set forces: none") from None
            gradients.grid_response = True  # so that forces are the slope of the energy, whatever the grid
            gradient = gradients.kernel()
        out["forces"] = -gradient * HARTREE / BOHR
    return out


def isolated(level, symbol):
    """{"energy": eV} of an isolated atom in its ground state, spin-polarised."""
    unpaired = round(ground_state_magnetic_moments[atomic_numbers[symbol]])
    atom, energy = ase.Atoms(symbol), 0.0
    for method, coefficient in ((level, 1.0), *((c, c.coefficient) for c in level.corrections)):
        part = _xtb(method, atom, unpaired) if method.method in XTB else _pyscf(method, atom, False, unpaired)
        energy += coefficient * part["energy"]
    return {"energy": energy}
