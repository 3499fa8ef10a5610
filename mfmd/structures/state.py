"""Charge and multiplicity (2S + 1) of structures and of fragments of them: in the words of every file and host, held against the electrons.

What is not said is taken as neutral, and in the lowest multiplicity that the electrons can have (of a periodic structure 1, since how many electrons a
cell has is a matter of its size). What contradicts itself, or may mean two things, is refused.
"""

import re
from functools import cache
from typing import NamedTuple

import numpy as np

from mfmd import Error
from mfmd.engine import InputError, states_of


class State(NamedTuple):
    """Of a structure or a fragment: all its atoms belong to it."""

    charge: int = 0  # elementary charges
    multiplicity: int = 1  # 2S + 1


NEUTRAL = State()


class StateError(Error):
    """What is said of charge and spin cannot be, or may mean two things; the sentence does not say of which structure."""


# Keys in lower case with _ between words.
CHARGE = {
    "charge", "charges", "total_charge", "totalcharge", "charge_total", "tot_charge", "net_charge", "netcharge", "molecular_charge", "molecularcharge",
    "mol_charge", "molcharge", "formal_charge", "formal_charges", "formalcharge", "system_charge", "charge_state", "q",
}  # fmt: skip
MULTIPLICITY = {"multiplicity", "mult", "spin_multiplicity", "spinmultiplicity", "spin_mult", "spinmult", "molecular_multiplicity", "2s+1"}
UNPAIRED = {
    "uhf", "unpaired", "unpaired_electrons", "n_unpaired", "nunpaired", "num_unpaired", "magmom", "total_magmom", "magmom_total", "total_magnetization",
    "tot_magnetization", "2s",
}  # fmt: skip
SPIN = {"spin", "total_spin"}  # of some programs 2S, of others 2S + 1
SMILES = {
    "smiles", "canonical_smiles", "isomeric_smiles", "mapped_smiles", "canonical_isomeric_smiles", "canonical_explicit_hydrogen_smiles",
    "canonical_isomeric_explicit_hydrogen_smiles", "canonical_isomeric_explicit_hydrogen_mapped_smiles",
}  # fmt: skip
FRAGMENTS = {"fragments"}
KEYS = CHARGE | MULTIPLICITY | UNPAIRED | SPIN
SAID = KEYS | SMILES | FRAGMENTS  # all that read_states looks for
ROUNDED = 1e-2  # by how much a number may be off from a whole one
MOST = 10_000  # of what can be meant
SUM = 0.1  # by how much the charges of atoms, which may be rounded or of a population analysis, may be off from a whole one
SPINS = ("2S", "2S+1")  # what a config says that the keys of SPIN are


@cache
def name(key):
    return str(key).lower().replace(" ", "_").replace("-", "_")


def read_states(numbers, info=None, charges=(), moments=(), fragment=(), pbc=False, spin=None):
    """What is said of a structure's charge and spin.

    Parameters
    ----------
    numbers : (atoms,) atomic numbers
    info : what a file or host says, under the keys of KEYS and SMILES in any case, and `fragments`, pairs of charge and multiplicity
    charges, moments : of the atoms; formal or partial charges, (atoms,) or several such rows, whose sum is the structure's charge, and magnetic moments in
        Bohr magnetons
    fragment : (atoms,) which of the fragments an atom belongs to, from 0; () where they are one
    pbc : whether the structure is periodic in any direction
    spin : one of SPINS, what keys of SPIN mean; None where nobody has said it

    Returns
    -------
    (State, …) of the fragments; (atoms,) the fragment of each atom, or () where there is one; a set of what is not said and was taken, of "charge"
    and "multiplicity"

    Raises
    ------
    StateError : a word where a number should be, a charge that is not whole, keys that contradict each other or the electrons, a spin that may be 2S or
        2S + 1, magnetic moments that add up to nothing
    """
    info = {key: value for key, value in (info or {}).items() if name(key) in SAID}
    charge = _charge(info, [*np.atleast_2d(charges), *_of_atoms(numbers, info)])
    if charge is not None and -charge > np.sum(numbers):
        raise StateError(f"charge is {charge}, and the nuclei have {np.sum(numbers)} together")
    multiplicity = _multiplicity(numbers, info, moments, charge or 0, spin)
    said = next((value for key, value in info.items() if name(key) in FRAGMENTS and value is not None), None)
    if np.size(fragment) and said is None:
        raise StateError(
            "atoms have a fragment, and nothing says the states of the fragments; give fragments, pairs of charge and multiplicity, or another name"
        )
    try:
        if said is not None:
            states, fragment = _fragments(numbers, said, fragment, charge, multiplicity)
            states = _checked(numbers, states, fragment, pbc)
            return states, fragment if len(states) > 1 else (), frozenset()
        missing = frozenset(key for key, value in (("charge", charge), ("multiplicity", multiplicity)) if value is None)
        return _checked(numbers, [(charge or 0, multiplicity or 0)], (), pbc), (), missing
    except InputError as error:
        raise StateError(str(error)) from None


def said_of(atoms, computed=None):
    """What ase.Atoms say, as read_states takes it; computed : results of a calculator, which say as much of charge and spin as what was set."""
    computed = computed or {}
    columns = [value for key, value in atoms.arrays.items() if name(key) in CHARGE | {"initial_charges"}]
    return {
        "info": {key: computed[key] for key in ("magmom",) if key in computed} | atoms.info,
        "charges": [row for row in [*columns, computed.get("charges", ())] if np.ndim(row) == 1 and np.any(row)],
        "moments": computed.get("magmoms", atoms.arrays.get("magmoms", atoms.get_initial_magnetic_moments())),
        "fragment": atoms.arrays.get("fragment", atoms.info.get("fragment", ())),
    }


def spelled(states, fragment=()):
    """States as an Engine takes them: a charge and a multiplicity, or of each fragment its atoms too."""
    return (
        tuple(states[0]) if not np.size(fragment) else [(np.flatnonzero(np.equal(fragment, k)), *state) for k, state in enumerate(states)]
    )


def state_terms(states):
    """(states, 3) positive charge, negative charge, unpaired electrons: what is learned of a State is linear in these."""
    return np.array([[max(charge, 0), max(-charge, 0), multiplicity - 1] for charge, multiplicity in states], float)


def _checked(numbers, states, fragment, pbc):
    return tuple(State(*pair) for pair in states_of(numbers, states, fragment, bool(np.any(pbc))))


def _charge(info, charges):
    """The one charge that is said, or None."""
    found = None
    for key, value in _said(info, CHARGE):
        found = _same(found, key, _whole(key, value), "charge")
    for key, value in _said(info, SMILES):
        if str(value).strip():
            found = _same(found, key, smiles_charge(str(value)), "charge")
    rows = [(_sum("charges", row), np.size(row)) for row in charges if np.any(row)]
    for k, (total, atoms) in enumerate(
        sorted(rows, key=lambda row: abs(row[0] - round(row[0])))
    ):  # of a force field they may be partial and rounded
        whole = abs(total - round(total)) <= SUM + 1e-3 * atoms
        if not whole and found is None:
            raise StateError(f"the charges of the atoms add up to {total:+g}, which is no whole number; say the charge")
        if whole or abs(total - found[1]) > 0.5:  # beside a charge that is said, those of a population analysis may be further off
            found = _same(found, f"{'another' if k else 'the'} sum of the charges of the atoms", round(total), "charge")
    return found if found is None else found[1]


def smiles_charge(smiles):
    """The sum of a SMILES' formal charges, as in [NH3+:1], [O-2] and [Mg++]."""
    found = re.findall(r"\[[^\]]*?([+-])([+-]*)(\d*)(?::\d+)?\]", smiles)
    return sum((1 if sign == "+" else -1) * int(digits or 1 + len(more)) for sign, more, digits in found)


def _sum(what, values):
    try:
        total = float(np.sum(np.asarray(values, float)))
    except (TypeError, ValueError):
        raise StateError(f"the {what} of the atoms are not numbers") from None
    if not np.isfinite(total):
        raise StateError(f"the {what} of the atoms are not finite")
    if abs(total) > MOST:
        raise StateError(f"the {what} of the atoms add up to {total:g}, which no molecule has")
    return total


def _multiplicity(numbers, info, moments, charge, spin):
    """The one multiplicity that is said, or None."""
    found = None
    for key, value in _said(info, MULTIPLICITY):
        found = _same(found, key, _whole(key, value), "multiplicity")
    for key, value in _said(info, UNPAIRED):
        found = _same(found, key, abs(_whole(key, value)) + 1, "multiplicity")
    for key, value in _said(info, SPIN):
        found = _same(found, key, _of_spin(key, _whole(key, value), int(np.sum(numbers)) - charge, spin), "multiplicity")
    total, moments = abs(_sum("magnetic moments", moments)), np.asarray(moments, float)
    if moments.ndim > 1 and moments.size:
        raise StateError("the magnetic moments of the atoms are vectors; what is modelled is a multiplicity")
    if np.any(np.abs(moments) > ROUNDED):
        if total <= ROUNDED and (found is None or found[1] == 1):
            raise StateError("atoms have magnetic moments that add up to nothing; open-shell singlets are not told from closed shells")
        if abs(total - round(total)) > ROUNDED * max(1.0, len(moments)):
            raise StateError(f"the magnetic moments of the atoms add up to {total:g}, which is no number of electrons")
        found = _same(found, "the sum of the magnetic moments of the atoms", round(total) + 1, "multiplicity")
    if found is not None and found[1] < 1:
        raise StateError(f"{found[0]} is {found[1]}; a multiplicity is 2S + 1, 1 or more")
    return found if found is None else found[1]


def _of_spin(key, value, electrons, spin):
    if spin is not None:
        return value + (spin == "2S")
    if value in (0, 1) and electrons % 2 == 0:  # a closed shell in both
        return 1
    raise StateError(f"{key} is {value}, which may be 2S or 2S + 1; say which (data.spin of a config), or the multiplicity by that name")


def _said(info, keys):
    """What stands under one of the keys, but for arrays: a quadrupole may be called Q as well."""
    return [
        (key, value)
        for key, value in info.items()
        if name(key) in keys and value is not None and (isinstance(value, str) or np.size(value) == 1) and not _is_nan(value)
    ]


def _of_atoms(numbers, info):
    """Rows of charges that stand with the structure."""
    return [v for key, v in info.items() if name(key) in CHARGE and len(numbers) > 1 and np.shape(v) == np.shape(numbers)]


def _is_nan(value):
    return not isinstance(value, str) and np.asarray(value).dtype.kind == "f" and bool(np.isnan(value).all())


def _whole(key, value):
    value = np.ravel(value)[0]
    try:
        number = None if isinstance(value, (bool, np.bool_)) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise StateError(f"{key} is {str(value)!r}, which is not a number")
    if not np.isfinite(number) or abs(number - round(number)) > ROUNDED:
        raise StateError(f"{key} is {number:g}, which is no whole number")
    if abs(number) > MOST:
        raise StateError(f"{key} is {number:g}, which no molecule has")
    return round(number)


def _same(found, key, value, what):
    """What is said once more."""
    if found is not None and found[1] != value:
        raise StateError(f"{found[0]} says the {what} {found[1]}, and {key} says {value}; correct one of them")
    return found or (key, value)


def _fragments(numbers, said, fragment, charge, multiplicity):
    try:
        states = np.asarray(said, float)
    except (TypeError, ValueError):
        states = np.zeros(0)
    if states.ndim != 2 or states.shape[1] != 2 or not np.all(np.abs(states) <= MOST) or np.any(np.abs(states - states.round()) > ROUNDED):
        words = " ".join(str(said).split())[:80]
        raise StateError(f"fragments are {words}; wanted are pairs of charge and multiplicity, such as [(1, 1), (0, 1)]")
    states = states.round().astype(int)
    if not np.size(fragment):
        if len(states) > 1:
            raise StateError("fragments are said, and not which of them an atom belongs to (arrays: fragment, from 0)")
        fragment = ()
    elif np.shape(fragment) != np.shape(numbers) or np.asarray(fragment).dtype.kind not in "iuf" or np.any(np.mod(fragment, 1)):
        raise StateError(f"the fragments of the atoms are not {len(numbers)} whole numbers")
    if np.any(states[:, 1] < 1):
        raise StateError(f"a fragment's multiplicity is {states[:, 1].min()}; it is 2S + 1, 1 or more")
    total, most = int(states[:, 0].sum()), 1 + int((states[:, 1] - 1).sum())
    if charge is not None and charge != total:
        raise StateError(f"the charges of the fragments add up to {total:+d}, and the charge is {charge:+d}; correct one of them")
    if multiplicity is not None and (multiplicity > most or (most - multiplicity) % 2):
        raise StateError(f"the multiplicity is {multiplicity}, which fragments of {', '.join(map(str, states[:, 1]))} cannot have together")
    return states.tolist(), np.asarray(fragment, np.int32) if np.size(fragment) else ()


class Assumed:
    """What structures of a file do not say of charge and spin, and what is taken for it."""

    def __init__(self):
        self.structures = self.charge = self.odd = 0

    def add(self, structure):
        """A Structure that was read; `unsaid`: of read_states."""
        self.structures += 1
        self.charge += "charge" in structure.unsaid
        self.odd += "multiplicity" in structure.unsaid and bool((np.sum(structure.numbers) - structure.charge) % 2)

    def sentences(self):
        if self.charge:
            yield f"{_structures(self.charge, 'name')} no charge, and {'is' if self.charge == 1 else 'are'} taken as neutral"
        if self.odd:
            yield f"{_structures(self.odd, 'have')} an odd number of electrons and no multiplicity; taken is the lowest, a doublet (of a crystal, none)"


def _structures(n, verb):
    return f"{n:,} structures {verb}" if n > 1 else f"1 structure {'has' if verb == 'have' else verb + 's'}"
