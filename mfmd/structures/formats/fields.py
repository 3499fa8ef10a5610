"""The fields of a Structure out of what a file holds."""

import ase.data
import numpy as np

from mfmd.structures.record import DataError, Label
from mfmd.structures.state import said_of


def labels_of(places, levels, source):
    """{level: Label} of what stands under the levels' keys in any of the mappings `places`; the first that has a key counts."""

    def value(key):
        return next((np.asarray(place[key], float) for place in places if key in place), None)

    labels = {}
    for level, keys in levels.items():
        try:
            energy, forces, stress, virial = (value(key) for key in (keys.energy, keys.forces, keys.stress, getattr(keys, "virial", "")))
        except (TypeError, ValueError) as error:
            raise DataError(f"{source}: a label of level {level} is not a number ({error})") from None
        if energy is not None and energy.size == 1:  # many files have (1,) a structure
            energy = energy.reshape(())
        if stress is not None and stress.size == 9:
            stress = stress.reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if any(v is not None for v in (energy, forces, stress, virial)):
            labels[level] = Label(None if energy is None else energy[()], forces, stress, virial)
    return labels


def label_keys(levels):
    """The keys of the levels' labels, each once."""
    keys = [key for own in levels.values() for key in (own.energy, own.forces, own.stress, getattr(own, "virial", "")) if key]
    return list(dict.fromkeys(keys))


def from_atoms(atoms, places, levels, source):
    """The dict of an ase.Atoms."""
    return {
        "numbers": atoms.numbers.copy(),
        "positions": atoms.positions.copy(),
        "cell": np.asarray(atoms.cell).copy(),
        "pbc": atoms.pbc.copy(),
        "labels": labels_of(places, levels, source),
        "source": source,
        **said_of(atoms, atoms.calc and atoms.calc.results),
    }


def frames_of(frames, path, kind):
    """(k, frame) of an iterator of ASE; whatever it raises on a damaged file becomes a DataError that says which frame of which `kind`."""
    k = 0
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            return
        except Exception as error:  # ASE raises many kinds
            raise DataError(f"{path}: frame {k} cannot be read as {kind} ({error})") from error
        yield k, frame
        k += 1


def plain(value):
    """A number, or a string, out of an array of one or of bytes; arrays of more as they are."""
    value = np.asarray(value).item() if np.size(value) == 1 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def reals(values, what, source):
    """An array of floats. DataError where it has anything else"""
    try:
        values = np.asarray(values)
        if values.dtype.kind not in "biufSUO":
            raise TypeError(f"they are {values.dtype}")
        return values.astype(float, copy=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: {what} are not numbers ({error})") from None


def atomic_numbers(values, source):
    """Integers out of atomic numbers, or of symbols of elements, str or bytes; an empty symbol becomes the 0 of padding."""
    values = np.asarray(values)
    if values.dtype.kind not in "biufSUO":
        raise DataError(f"{source}: wanted are atomic numbers or symbols of elements, not {values.dtype}")
    if values.dtype.kind not in "SUO":
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            raise DataError(f"{source}: not all atomic numbers are whole numbers")
        return values.astype(int)
    try:
        symbols = {value: plain(value).strip() for value in values.flat}
        known = {value: ase.data.atomic_numbers[symbol] if symbol else 0 for value, symbol in symbols.items()}
    except KeyError as error:
        raise DataError(f"{source}: {error} is no symbol of an element") from None
    except AttributeError as error:  # objects that are no strings
        raise DataError(f"{source}: wanted are atomic numbers or symbols of elements ({error})") from None
    return np.array([known[value] for value in values.flat], int).reshape(values.shape)


def unpadded(numbers, positions, source, said=None):
    """How many atoms are left of a row that is filled up with atoms of number 0 or -1.

    Padding stands at the end, and what says that it is padding is -1, the number of atoms `said`, or positions of 0 or NaN: without these
    a 0 may be the index of an element, hydrogen's as a rule.
    """
    real = np.flatnonzero(numbers > 0)
    n = int(real[-1]) + 1 if len(real) else 0
    if (numbers[:n] <= 0).any():
        raise DataError(
            f"{source}: atom {np.argmax(numbers[:n] <= 0)} has the atomic number {numbers[:n].min()}; 0 and -1 may stand at the end only"
        )
    if said is not None and said != n:
        raise DataError(f"{source}: {n} atoms have an atomic number, and the number of atoms is given as {said:g}")
    if said is None and np.any(np.abs(positions[n:][numbers[n:] == 0]) > 0):
        raise DataError(f"{source}: atoms of number 0 have positions; atomic numbers are wanted, not indices of elements")
    return n
