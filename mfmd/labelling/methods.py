"""One label: a structure at a level of theory, by tblite (GFN1-xTB, GFN2-xTB) or PySCF (HF, DFT, MP2, CCSD, CCSD(T))."""

import contextlib
import functools
import importlib.metadata
import io
import os
import re
import time
import warnings

import ase
import numpy as np
from ase.data import atomic_numbers, ground_state_magnetic_moments

from mfmd import Note, units
from mfmd.labelling.checks import check_structure, contaminated
from mfmd.labelling.definition import definition, functional, potential
from mfmd.labelling.schema import CORRELATED, XTB, LabelError
from mfmd.labelling.states import state_of
from mfmd.structures.state import NEUTRAL, State

HARTREE, BOHR = units.ENERGY["Hartree"], units.LENGTH["Bohr"]  # eV, Å


def recorded(function, level, symbols, *arguments):
    """The result of a task at a level, with what it was made of: definition and versions of packages, cpu_seconds, threads, and warnings of the packages."""
    start = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = function(level, *arguments)
    return found | {
        "warnings": list(dict.fromkeys(str(w.message) for w in told if not issubclass(w.category, UNTOLD))),
        "definition": [definition(part, symbols) | {"coefficient": coefficient} for part, coefficient in level.parts],
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES if _is_used(package, level)},
        "cpu_seconds": round(time.process_time() - start, 6),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()),
    }


UNTOLD = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # of programmers to each other
PACKAGES = ("tblite", "pyscf", "pyscf-dispersion")


def _is_used(package, level):
    of_pyscf = [part.method for part, _ in level.parts if part.method not in XTB]
    if package == "pyscf-dispersion":
        return any(functional(m)[1]["dispersion"] for m in of_pyscf if m != "hf" and m not in CORRELATED)
    return bool(of_pyscf) if package == "pyscf" else len(of_pyscf) < len(level.parts)


def probe(level, name, symbols):
    """Try a level on the hydrogen molecule in a small basis, and its bases for elements of which nothing is computed. LabelError naming the key if it cannot be."""
    for k, (part, _) in enumerate(level.parts):
        if part.method in XTB:
            continue
        key = f"levels.{name}.{f'corrections.{k - 1}.' if k else ''}"
        try:
            if part.method != "hf" and part.method not in CORRELATED and (taken := functional(part.method)[0]) != part.method:
                warnings.warn(f"{key}method: {part.method} is taken as {taken}", Note, stacklevel=2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are not about the user's structures
                _pyscf(
                    part.model_copy(update={"basis": "sto-3g", "grid": 0}),
                    ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]),
                    level.forces != "none",
                )
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise LabelError(
                f"{key}method: {words if isinstance(error, LabelError) else f'{part.method} cannot be computed ({words})'}"
            ) from None
        try:
            definition(part, symbols)
        except LabelError as error:
            raise LabelError(f"{key}basis: {error}") from None
    return {}


def label(level, atoms, forces=True):
    """Energy of a structure at a level, in the state that it says (labelling.states), and its forces and stress.

    Parameters
    ----------
    level : Level; atoms : ase.Atoms; forces : False for the energy alone

    Returns
    -------
    {"energy": eV, "forces": (atoms, 3) eV/Å or absent, "stress": (6,) eV/Å³ Voigt, of periodic structures, "spin_contamination": ⟨S²⟩ - S (S + 1) of the
    unrestricted orbitals, the largest of the level's parts}

    Raises
    ------
    LabelError : not converged or not finite, no analytic forces, a periodicity that the method does not have, atoms that overlap, a charge or multiplicity
        that the electrons cannot have, orbitals of another multiplicity
    """
    check_structure(level, atoms)
    total, contamination, found = {}, [], state_of(atoms)
    for method, coefficient in level.parts:
        limit = level.max_spin_contamination
        part = _xtb(method, atoms, found) if method.method in XTB else _pyscf(method, atoms, forces, found, limit)
        if "spin_contamination" in part:
            contamination.append(part.pop("spin_contamination"))
        for kind, value in part.items():
            total[kind] = total.get(kind, 0.0) + coefficient * np.asarray(value)
    for kind, value in total.items():
        if not np.isfinite(value).all():
            raise LabelError(f"the {kind} of {atoms.get_chemical_formula()} is not finite")
    out = {kind: value for kind, value in total.items() if forces or kind == "energy"}
    return out | ({"spin_contamination": max(contamination, key=abs)} if contamination else {})


@functools.cache
def _valence(method, number):
    """Valence electrons of a neutral atom in a tight-binding method, and how many its orbitals have room for. LabelError : it has not the element"""
    from tblite.interface import Calculator

    try:
        atom = Calculator(method, np.array([number]), np.zeros((1, 3)))
        atom.set("verbosity", 0)
        occupied = atom.singlepoint()["orbital-occupations"]
    except RuntimeError as error:
        raise LabelError(f"{method}: {error}") from None
    return np.array([round(occupied.sum()), 2 * len(occupied)])


def check_valence(method, atoms, state):
    """LabelError : a state that a tight-binding method has no electrons or no orbitals for, where tblite 0.8.0 writes beyond its arrays."""
    if state.charge == 0 and state.multiplicity <= 2:
        return
    electrons, room = sum(_valence(method, number) for number in atoms.numbers) - [state.charge, 0]
    if state.multiplicity - 1 > min(electrons, room - electrons):
        raise LabelError(
            f"{method} has valence electrons alone, and not those for charge {state.charge:+d} and multiplicity {state.multiplicity}"
        )


def _xtb(method, atoms, state=NEUTRAL):
    from tblite.interface import Calculator

    periodic = {"lattice": atoms.cell.array / BOHR, "periodic": atoms.pbc} if atoms.pbc.any() else {}
    positions = atoms.positions / BOHR
    words = []
    try:
        check_valence(method.method, atoms, state)
        calculator = Calculator(
            method.method,
            atoms.numbers,
            positions,
            charge=state.charge or None,
            uhf=state.multiplicity - 1 or None,
            logger=words.append,
            **periodic,
        )
        calculator.set("verbosity", 0)
        result = calculator.singlepoint()
    except RuntimeError as error:
        raise LabelError(f"{method.method}: {error or 'tblite gives no reason'}") from None
    _tell(method, words)
    out = {"energy": float(result["energy"]) * HARTREE, "forces": -result["gradient"] * HARTREE / BOHR}
    if atoms.pbc.all():
        out["stress"] = units.voigt(result["virial"]) * HARTREE / atoms.cell.volume
    return out


def _tell(method, words):
    """What a package has printed, as warnings; not what PySCF says of orbitals while it iterates."""
    for line in words:
        if line.strip() and not re.search(r"HOMO .* >?= LUMO", line.replace("==", "=")):
            warnings.warn(f"{method.method}: {line.strip().removeprefix('WARN: ')}", stacklevel=3)


def check_orbitals(name, field):
    """Tell of a self-consistent field that is not that of the ground state by its own orbitals."""
    for energies, occupied in zip(np.atleast_2d(field.mo_energy), np.atleast_2d(field.mo_occ) > 0, strict=True):
        if energies[occupied].max(initial=-np.inf) > energies[~occupied].min(initial=np.inf):
            warnings.warn(f"{name}: an occupied orbital lies above an empty one; there may be a lower state", stacklevel=3)


def _lowest(field):
    """The state of an open shell, to second order where the first has found none, and followed down where orbitals of other symmetry have less energy."""
    orbitals = None if field.converged else field.mo_coeff
    for _ in range(FOLLOWED):
        if orbitals is not None:
            lower = field.newton()
            lower.kernel(orbitals, field.mo_occ)
            if field.converged and lower.e_tot > field.e_tot - FLAT:
                return field
            field = lower.remove_soscf()
            if not field.converged:
                return field
        probed = field.copy()
        if hasattr(field, "grids"):  # which direction is down shows on a coarse grid
            probed.grids = field.grids.copy().reset()
            probed.grids.level = 0
        orbitals, _, stable, _ = probed.stability(return_status=True)
        if stable:
            return field
    raise LabelError(f"each of {FOLLOWED} states of the self-consistent field was unstable, one below the other")


FOLLOWED = 5  # states in a row, each below the one before
FLAT = 1e-6  # Hartree; by less two states are one


def _pyscf(method, atoms, forces, state=NEUTRAL, limit=np.inf):
    """limit : of the spin contamination"""
    words = io.StringIO()
    with contextlib.redirect_stderr(words):  # where PySCF writes its warnings too, if its own output goes elsewhere
        out = _solved(method, atoms, forces, state, limit)
    _tell(method, words.getvalue().splitlines())
    return out


def _solved(method, atoms, forces, state, limit):
    from pyscf import cc, dft, gto, mp, scf
    from pyscf.data.elements import chemcore
    from pyscf.lib import logger

    symbols = atoms.get_chemical_symbols()
    cores = {symbol: potential(method.basis, symbol) for symbol in set(symbols)}
    molecule = gto.Mole(
        atom=list(zip(symbols, atoms.positions.tolist(), strict=True)), unit="Å", basis=method.basis, cart=method.cartesian,
        charge=state.charge, spin=state.multiplicity - 1, ecp={symbol: found for symbol, found in cores.items() if found},
    )  # fmt: skip
    molecule.stdout, molecule.verbose = io.StringIO(), logger.WARN
    molecule.build(dump_input=False, parse_arg=False)
    correlated, open_shell = method.method in CORRELATED, state.multiplicity > 1
    if correlated or method.method == "hf":
        field = scf.UHF(molecule) if open_shell else scf.RHF(molecule)
    else:
        xc = functional(method.method)[0]
        field = dft.UKS(molecule, xc=xc) if open_shell else dft.RKS(molecule, xc=xc)
        field.grids.level, field.nlcgrids.level = method.grid, min(method.grid, 3)
    if method.density_fitting:
        field = field.density_fit()
    field.kernel()
    if open_shell and len(atoms) > 1 and any(0 < np.count_nonzero(occupied) < len(occupied) for occupied in field.mo_occ):
        field = _lowest(field)
    if not field.converged:
        raise LabelError(f"{method.method}/{method.basis}: the self-consistent field has not converged")
    check_orbitals(method.method, field)
    contamination = field.spin_square()[0] - (state.multiplicity**2 - 1) / 4 if open_shell else 0.0
    if reason := contaminated(contamination, state.multiplicity, limit):
        raise LabelError(f"{method.method}/{method.basis}: {reason}")
    energy, solver = field.e_tot, field
    frozen = chemcore(molecule) if correlated and method.frozen_core else 0
    if correlated and molecule.nelectron - 2 * frozen > 1 and np.any(field.mo_occ == 0):  # else there is nothing to correlate
        if forces and open_shell and method.method == "ccsd(t)":
            raise LabelError("PySCF's gradients of ccsd(t) of open shells are not the slope of its energy; set forces: none")
        solver = mp.MP2(field, frozen=frozen) if method.method == "mp2" else cc.CCSD(field, frozen=frozen)
        solver.kernel()
        if method.method != "mp2" and not solver.converged:
            raise LabelError(f"{method.method}/{method.basis}: coupled cluster has not converged")
        energy = solver.e_tot
        if method.method == "ccsd(t)":
            energy += solver.ccsd_t()
    out = {"energy": float(energy) * HARTREE} | ({"spin_contamination": float(contamination)} if open_shell else {})
    if forces:
        if method.method == "ccsd(t)" and solver is not field:
            from pyscf.cc import ccsd_t_lambda
            from pyscf.grad.ccsd_t import Gradients

            integrals = solver.ao2mo()
            converged, l1, l2 = ccsd_t_lambda.kernel(solver, integrals, solver.t1, solver.t2, verbose=logger.WARN)
            if not converged:
                raise LabelError(f"{method.method}/{method.basis}: the lambda equations have not converged")
            gradient = Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
        else:
            try:
                gradients = solver.nuc_grad_method()
            except NotImplementedError:
                fitted = " with density_fitting" if method.density_fitting else ""
                raise LabelError(f"{method.method}{fitted} has no analytic forces in PySCF; set forces: none") from None
            if hasattr(gradients, "grid_response"):
                gradients.grid_response = True  # so that forces are the slope of the energy, whatever the grid
            gradient = gradients.kernel()
        out["forces"] = -gradient * HARTREE / BOHR
    return out


def isolated(level, symbol):
    """{"energy": eV} of an isolated atom in its ground state, spin-polarised."""
    ground = State(0, 1 + round(ground_state_magnetic_moments[atomic_numbers[symbol]]))
    atom, energy = ase.Atoms(symbol), 0.0
    for method, coefficient in level.parts:
        part = _xtb(method, atom, ground) if method.method in XTB else _pyscf(method, atom, False, ground)
        energy += coefficient * part["energy"]
    if not np.isfinite(energy):
        raise LabelError(f"the energy is {energy}")
    return {"energy": energy}
