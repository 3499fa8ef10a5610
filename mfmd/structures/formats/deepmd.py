"""Systems of DeePMD-kit: a folder with type.raw, type_map.raw and set.*/coord.npy, or one that holds several such, in any depth.

The label of a key stands in set.*/<key>.npy; forces are called force there, either key names them. eV and Å, as the format fixes them. It has no charge:
one is read from a file of such a name, with a number a frame or one an atom.
"""

from pathlib import Path

import numpy as np

from mfmd.structures.formats.fields import atomic_numbers, label_keys, labels_of, plain, unpadded
from mfmd.structures.record import DataError
from mfmd.structures.state import KEYS, name

UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "virial": "eV"}


def read(path, levels):
    systems = sorted(file.parent for file in Path(path).rglob("type.raw"))
    if not systems:
        raise DataError(f"{path}: is no system of DeePMD and holds none; wanted are type.raw, type_map.raw and set.*/coord.npy")
    for system in systems:
        types, elements = _types(system)
        sets = sorted(file.parent for file in system.glob("set.*/coord.npy"))
        if not sets:
            raise DataError(f"{system}: there is no set.*/coord.npy (files .raw are made sets by DeePMD's raw_to_set.sh)")
        for folder in sets:
            yield from _frames(folder, types, elements, levels, periodic=not (system / "nopbc").exists())


def _types(system):
    """Types of the atoms, and atomic numbers of the types."""
    names = system / "type_map.raw"
    if not names.exists():
        raise DataError(
            f"{system}: there is no type_map.raw; write one, with the symbols of the elements in the order of the types (such as O H)"
        )
    try:
        types = np.loadtxt(system / "type.raw", int, ndmin=1)
    except ValueError as error:
        raise DataError(f"{system / 'type.raw'}: wanted is a type an atom, as integers ({error})") from None
    return types, atomic_numbers(names.read_text(errors="replace").split(), names)


def _frames(folder, types, elements, levels, periodic):
    n, positions = len(types), _array(folder, "coord")
    if positions.ndim != 2 or positions.shape[1] != 3 * n:
        raise DataError(f"{folder}: coord.npy has the shape {positions.shape}, and type.raw has {n} atoms; wanted is (frames, {3 * n})")
    frames = len(positions)
    states = sorted(file.stem for file in folder.glob("*.npy") if name(file.stem) in KEYS)
    content = {key: _array(folder, key) for key in ("box", "real_atom_types", *states)}
    content |= {key: _array(folder, "force" if key == "forces" else key) for key in label_keys(levels)}
    content = {key: value for key, value in content.items() if value is not None}
    if periodic and "box" not in content:
        raise DataError(f"{folder}: there is no box.npy; an empty file nopbc beside type.raw says that the system is not periodic")
    for key, value in content.items():
        if np.shape(value)[:1] != (frames,):
            raise DataError(f"{folder}: {key} has the shape {np.shape(value)} for {frames} frames")
    per_atom = ("spin", *(own.forces for own in levels.values()))
    for k in range(frames):
        source = f"{folder}: frame {k}"
        row = {key: value[k] for key, value in content.items()}
        own = np.asarray(row.get("real_atom_types", types))
        if own.shape != (n,) or not (own == np.round(own)).all() or own.min(initial=0) < -1 or own.max(initial=0) >= len(elements):
            raise DataError(
                f"{source}: the types {own.min(initial=0)} to {own.max(initial=0)} of {own.size} atoms are not types of {n} atoms of {len(elements)} elements"
            )
        own = own.astype(int)
        if periodic and np.size(row["box"]) != 9:
            raise DataError(f"{source}: box.npy has {np.size(row['box'])} numbers for it; wanted are 9")
        numbers = np.where(own < 0, -1, elements[own])
        place = positions[k].reshape(n, 3)
        real = unpadded(numbers, place, source)
        row |= {key: row[key].reshape(n, 3)[:real] for key in per_atom if np.size(row.get(key)) == 3 * n}
        row |= {key: row[key][:real] for key in states if np.shape(row[key]) == (n,)}
        yield {
            "numbers": numbers[:real],
            "positions": place[:real],
            "cell": row["box"].reshape(3, 3) if periodic else np.zeros((3, 3)),
            "pbc": np.full(3, periodic),
            "labels": labels_of((row,), levels, source),
            "source": source,
            "info": {key: plain(row[key]) for key in states},
            "moments": row["spin"] if np.size(row.get("spin", ())) > 1 else (),
            "units": UNITS,
        }


def _array(folder, name):
    """None where there is no such file."""
    path = folder / f"{name}.npy"
    try:
        return np.asarray(np.load(path, allow_pickle=False), float) if path.exists() else None
    except Exception as error:  # NumPy's and zipfile's are of many kinds
        raise DataError(f"{path}: cannot be read ({error})") from None
