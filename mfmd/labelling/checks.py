"""What can be no label: structures that a level cannot be computed on, energies that no bonding gives, frames that are in two splits; and what tells structures apart."""

import hashlib

import numpy as np

from mfmd.engine import CLOSEST, neighbor_list
from mfmd.labelling.schema import XTB, LabelError
from mfmd.labelling.states import is_usual, state_of
from mfmd.structures.identity import same
from mfmd.structures.record import Structure

# eV an atom, against isolated atoms. The shipped data have -6.5 to -2.7; CO2 in GFN1-xTB, whose isolated atoms lie high, -10.0, and its rhenium crystal
# -12.0, the lowest found. Above are squeezed atoms: two of neon have 8 at 1.2 Å and 20 at 1.0 Å.
BINDING = -15.0, 20.0
# eV, times q (q + 1): more than it costs to take q electrons off an atom (helium 25 of 30, the first two of magnesium 23 of 90, three of aluminium 53 of 180).
IONISED = 15.0


def fingerprint(atoms):
    """Hash of what a label depends on: elements, positions and periodic vectors to 1e-6 Å, periodicity; charge and multiplicity where they are unusual."""
    lengths = np.concatenate([atoms.positions, atoms.cell.array[atoms.pbc]]).round(6) + 0.0  # no -0
    parts = [atoms.numbers.astype("<i8"), atoms.pbc.astype("u1"), lengths.astype("<f8")]
    if not is_usual(atoms):
        parts.append(np.array(state_of(atoms), "<i8"))
    return "sha256-" + hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:32]


def check_elements(atoms):
    """LabelError for an atom of no element."""
    if len(unknown := np.flatnonzero(atoms.numbers == 0)):
        raise LabelError(f"atom {unknown[0]} of {atoms.get_chemical_formula()} has no element (X, number 0)")


def check_structure(level, atoms):
    """LabelError for a structure that a level cannot be computed on."""
    check_elements(atoms)
    check_periodicity(level, atoms)
    if not np.isfinite(atoms.positions).all():
        raise LabelError(f"a position of {atoms.get_chemical_formula()} is not finite")
    i, j, _, vectors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CLOSEST)
    if len(i):
        raise LabelError(f"atoms {i[0]} and {j[0]} of {atoms.get_chemical_formula()} are {np.linalg.norm(vectors[0]):.2f} Å apart")


def check_periodicity(level, atoms):
    """LabelError for a periodicity that one of a level's methods does not have."""
    if not atoms.pbc.any():
        return
    directions = " ".join("FT"[int(p)] for p in atoms.pbc)
    for part, _ in level.parts:
        if part.method not in XTB:
            raise LabelError(f"{part.method}/{part.basis} is for molecules, and the structure is periodic (pbc {directions})")
        if not atoms.pbc.all():
            raise LabelError(
                f"{part.method} is periodic in three directions or in none, and the structure has pbc {directions}; "
                "give it a third vector with enough vacuum and pbc T T T, if that is meant"
            )
        if abs(np.linalg.det(atoms.cell.array)) < 1e-6:
            raise LabelError(f"the structure is periodic (pbc {directions}), and its cell has no volume")


def absurd(energy, atoms, isolated):
    """Why an energy (eV) can be none of these atoms; None where it can, or where an isolated atom has no energy. isolated : {symbol: eV}"""
    symbols = atoms.get_chemical_symbols()
    if not np.isfinite(energy):
        return f"the energy is {energy}"
    if not isolated.keys() >= set(symbols):
        return None
    binding = (energy - sum(isolated[symbol] for symbol in symbols)) / len(symbols)
    charge = abs(state_of(atoms).charge)
    if BINDING[0] <= binding <= BINDING[1] + IONISED * charge * (charge + 1) / len(symbols):
        return None
    return f"the energy of {energy:.6g} eV is {binding:+.4g} eV an atom from that of its isolated atoms, which no bonding is; was another state found?"


def contaminated(found, multiplicity, limit):
    """Why a state is none of its multiplicity; None where it is. found : ⟨S²⟩ less that of the multiplicity; limit : of it"""
    if abs(found) <= limit:
        return None
    return (
        f"⟨S²⟩ is {found:.2g} above that of multiplicity {multiplicity}, which is more than max_spin_contamination ({limit:g}): the orbitals are no good "
        "description of this state"
    )


def check_splits(structures):
    """LabelError for a structure in two splits; what is tested must not have been learned."""
    records = [Structure(a.numbers, a.positions, a.cell.array, a.pbc, {}, a.info["id"], states=(state_of(a),)) for a in structures]
    for k, first in enumerate(same(records)):
        a, b = structures[first], structures[k]
        if a.info["split"] != b.info["split"]:
            raise LabelError(
                f"structures: {b.info['id']} ({b.info['split']}) is the same structure as {a.info['id']} ({a.info['split']}); keep it in one of them"
            )
