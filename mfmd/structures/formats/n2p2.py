"""input.data of n2p2 and RuNNer. The keys of its labels are `energy` and `forces`; Hartree and Bohr by convention, no file says so."""

import numpy as np

from mfmd.structures.formats.fields import atomic_numbers, labels_of
from mfmd.structures.record import DataError
from mfmd.structures.state import KEYS, name

ATOM = "atom x y z symbol charge energy fx fy fz"
UNITS = {"energy": "Hartree", "length": "Bohr"}


def read(path, levels):
    k, frame = 0, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.split() or ["#"]
            if word.startswith("#"):
                continue
            if (word == "begin") != (frame is None):
                raise DataError(_misplaced(path, number, word, k, frame))
            if word == "begin":
                frame = {"lattice": [], "atom": [], "info": {}}
            elif word == "end":
                yield _structure(frame, levels, f"{path}: structure {k}")
                k, frame = k + 1, None
            elif word == "atom":
                if len(values) < 9:
                    raise DataError(f"{path}: line {number} has {len(values)} values after `atom`; wanted is {ATOM}")
                frame["atom"].append([values[3], *_numbers(values[:3] + values[4:9], path, number)])
            elif word == "lattice":
                frame["lattice"].append(_numbers(values[:3], path, number))
            elif word == "energy":
                frame[word] = _numbers(values[:1], path, number)
            elif name(word) in KEYS:
                frame["info"][word] = _numbers(values[:1] or [""], path, number)[0]
    if frame is not None:
        raise DataError(f"{path}: structure {k} has no `end`; is the file cut off?")


def _misplaced(path, number, word, k, frame):
    if frame is not None:
        return f"{path}: line {number}: structure {k} has no `end` before the next `begin`"
    if k:
        return f"{path}: line {number}: {word!r} stands between structures; each begins with `begin`"
    return (
        f"{path}: is no input.data of n2p2 or RuNNer, whose first word is `begin`; the first here is {word!r} "
        "(data files of LAMMPS hold no labels)"
    )


def _numbers(words, path, number):
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{path}: line {number}: {error}") from None


def _structure(frame, levels, source):
    lattice = frame["lattice"]
    if not frame["atom"]:
        raise DataError(f"{source}: the structure has no atoms")
    if len(lattice) not in (0, 3) or any(len(vector) != 3 for vector in lattice):
        raise DataError(f"{source}: {len(lattice)} lines `lattice`; wanted are three of three numbers, or none")
    atoms = np.array([values for _, *values in frame["atom"]])  # x y z charge energy fx fy fz
    found = {"forces": atoms[:, 5:8]} | ({"energy": frame["energy"]} if "energy" in frame else {})
    return {
        "numbers": atomic_numbers([symbol for symbol, *_ in frame["atom"]], source),
        "positions": atoms[:, :3],
        "cell": np.array(lattice) if lattice else np.zeros((3, 3)),
        "pbc": np.full(3, bool(lattice)),
        "labels": labels_of((found,), levels, source),
        "source": source,
        "info": frame["info"],
        "charges": atoms[:, 3],
        "default_units": UNITS,
    }
