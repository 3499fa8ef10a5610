"""One structure, one record: labels from several files come together, and what stands twice is told."""

import warnings

import numpy as np

from mfmd import Note
from mfmd.structures import identity
from mfmd.structures.record import KINDS, DataError

# By how much two labels of one structure may differ and be one: eV, eV/Å, eV/Å³.
ROUNDING = {"energy": 1e-3, "forces": 1e-2, "stress": 1e-4}
EQUAL = 1e-6  # Å, up to which two structures cannot have two labels; those of a relaxation's last steps may be nearer than SAME


def merge(structures, levels):
    """Structures that are the same become one, with the labels of all of them; the first keeps its place and its info, to which that of the others is added.

    Raises
    ------
    DataError : two that are equal have different labels of one level, unless levels.<level>.unchecked; then both stay, as do those that are only near
    """
    first = identity.same(structures)
    kept, twice, near = [], 0, 0
    for k, s in enumerate(structures):
        if first[k] == k:
            kept.append(s)
        elif _merged(structures[first[k]], s, levels):
            twice += 1
        else:
            kept.append(s)
            near += 1
    if near:
        warnings.warn(
            f"{near:,} structures are within {identity.SAME:g} Å of others and have labels of their own; they stay", Note, stacklevel=3
        )
    if twice:
        warnings.warn(f"{twice:,} structures stand in the files again, and their labels are taken together", Note, stacklevel=3)
    _tell_silence(kept)
    return kept


def _tell_silence(structures):
    """Nuclei that are those of an ion, at other levels and without a word of their charge: a file may have forgotten it."""
    ions, silent = [s for s in structures if s.charge], [s for s in structures if "charge" in s.unsaid and not s.charge]
    if not (ions and silent):
        return
    first = identity.same(ions + silent, states=False)[len(ions) :]
    found = [(s, ions[k]) for s, k in zip(silent, first, strict=True) if k < len(ions) and not s.labels.keys() & ions[k].labels.keys()]
    if found:
        warnings.warn(
            f"{len(found):,} structures name no charge and are taken as neutral, and with the same nuclei others are charged ({found[0][0].source}, and "
            f"{found[0][1].source}); say their charge, 0 where it is meant",
            stacklevel=4,
        )


def _merged(one, other, levels):
    """Put the labels of the other to the first; False where they are to stay two."""
    apart = np.abs(one.positions - other.positions).max()
    if apart > identity.SAME:  # what is near to what is near
        return False
    for level, label in other.labels.items():
        if level not in one.labels:
            continue
        for kind in KINDS:
            a, b = getattr(one.labels[level], kind), getattr(label, kind)
            if a is None or b is None or np.abs(a - b).max() <= ROUNDING[kind]:
                continue
            if levels[level].unchecked or apart > EQUAL:
                return False
            raise DataError(
                f"{other.source}: it is the structure of {one.source}, and its {kind} of level {level} differs by {np.abs(a - b).max():.3g}; remove "
                f"one of them, or set levels.{level}.unchecked to learn both"
            )
    one.info = other.info | one.info
    for level, label in other.labels.items():
        mine = one.labels.setdefault(level, label)
        for kind in KINDS:
            if getattr(mine, kind) is None:
                setattr(mine, kind, getattr(label, kind))
    return True


def tell_duplicates(splits):
    """How many structures of one split are those of another, or are but for a rotation or the order of their atoms."""
    for other, name in (("train", "val"), ("train", "test"), ("val", "test")):
        if found := identity.alike(splits[name], splits[other]):
            exact = sum(identity.same([splits[name][k], splits[other][one]])[1] == 0 for k, one in found.items())
            warnings.warn(
                f"{len(found):,} structures of {name} are structures of {other}, {exact:,} of them exactly and the others but for a rotation or the order of "
                "atoms; errors there will look too small",
                Note,
                stacklevel=3,
            )
