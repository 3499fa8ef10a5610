"""The record of a labelled structure that every format fills, in Å and eV once it is read."""

from dataclasses import dataclass, field

import numpy as np

from mfmd import Error
from mfmd.structures.state import NEUTRAL, State, spelled

MAX_Z = 118


class DataError(Error):
    """A data file cannot be used; names the file, the structure, the key and what to do."""


@dataclass
class Label:
    """What one level says of one structure; anything may be missing."""

    energy: float | None = None  # eV, total
    forces: np.ndarray | None = None  # (atoms, 3) eV/Å
    stress: np.ndarray | None = None  # (6,) eV/Å³, Voigt
    virial: np.ndarray | None = None  # of a file, −stress · volume; once it is read, it is the stress

    def count(self, kind):
        return int(getattr(self, kind) is not None)


KINDS = ("energy", "forces", "stress")
SPLITS = ("train", "val", "test")


@dataclass
class Structure:
    numbers: np.ndarray  # (atoms,)
    positions: np.ndarray  # (atoms, 3) Å
    cell: np.ndarray  # (3, 3) Å
    pbc: np.ndarray  # (3,) bool
    labels: dict[str, Label]
    source: str  # file and frame, for messages
    info: dict = field(default_factory=dict)
    charges: np.ndarray | tuple = ()  # initial charges and magnetic moments of the atoms, where the file has them
    moments: np.ndarray | tuple = ()
    states: tuple[State, ...] = (NEUTRAL,)  # of its fragments
    fragment: np.ndarray | tuple = ()  # (atoms,) which of them an atom belongs to; () where there is one
    unsaid: frozenset = frozenset()  # what of "charge" and "multiplicity" was taken, since nothing says it

    @property
    def charge(self):
        """Elementary charges, of all fragments together."""
        return sum(state.charge for state in self.states)

    def has_energy(self, level):
        return level in self.labels and self.labels[level].energy is not None

    @property
    def for_engine(self):
        """As Engine.compute_batch takes it: the structure, and its states."""
        return (self.positions, self.numbers, self.cell, self.pbc), spelled(self.states, self.fragment)

    @property
    def state_key(self):
        """Of structures of the same atoms, which are in the same states; closed shells are whatever their fragments."""
        return (self.states, np.asarray(self.fragment, np.int32).tobytes()) if any(state != NEUTRAL for state in self.states) else ()


WRITTEN = ("numbers", "positions", "cell", "pbc", "states", "fragment")


def to_json(s):
    """What a Structure is, without labels, as JSON has it."""
    return {key: np.asarray(getattr(s, key)).tolist() for key in WRITTEN}


def from_json(found, labels, source):
    """The Structure of `to_json`. DataError : it is none, as its source may be damaged"""
    try:
        numbers, fragment = (np.array(found[key], np.int32) if found[key] else np.zeros(0, np.int32) for key in ("numbers", "fragment"))
        positions, cell, pbc = np.array(found["positions"], float), np.array(found["cell"], float), np.array(found["pbc"])
        states, n = tuple(State(int(charge), int(multiplicity)) for charge, multiplicity in found["states"]), len(numbers)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{source}: it is damaged ({type(error).__name__}: {error})") from None
    shapes = numbers.shape, positions.shape, cell.shape, pbc.shape, pbc.dtype, fragment.shape
    if shapes != ((n,), (n, 3), (3, 3), (3,), np.dtype(bool), (n,) if len(states) != 1 else (0,)) or not n or not states:
        raise DataError(f"{source}: it is damaged (arrays of the shapes {', '.join(map(str, shapes))}, {len(states)} states)")
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise DataError(f"{source}: it is damaged (a position or cell is not finite)")
    return Structure(numbers, positions, cell, pbc, labels, source, states=states, fragment=fragment)
