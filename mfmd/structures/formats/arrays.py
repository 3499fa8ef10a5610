"""Arrays over structures of as many atoms: .npz files, and HDF5 files with a group a composition (ANI-1x: Smith et al. 2020), a number of
atoms (ANI-2x), a molecule (ANI-1, SPICE) or a structure (QM7-X), in any depth.

Rows may be filled up with atoms of number 0 or -1 at their end. Units are those of sGDML's e_unit and r_unit, or the attribute `units`
of an HDF5 dataset; charge and spin what any array or attribute of such a name says, or a SMILES.
"""

import numpy as np

from mfmd.structures.formats.fields import atomic_numbers, label_keys, labels_of, plain, reals, unpadded
from mfmd.structures.record import DataError
from mfmd.structures.state import KEYS, SAID, SMILES, name

NUMBERS = ("Z", "z", "numbers", "atomic_numbers", "nuclear_charges", "species", "atNUM")  # (atoms,) or (structures, atoms)
POSITIONS = ("R", "positions", "coordinates", "coords", "coord", "conformations", "atXYZ")  # (structures, atoms, 3), or (atoms, 3) of one
OTHERS = ("cell", "pbc", "lattice", "N", "e_unit", "r_unit", "fragment", "fragments")  # N: how many atoms, of rows that are filled up
OF_ATOMS = ("charges", "formal_charges")  # (structures, atoms), or (atoms,) of all structures; or one a structure
WANTED = (
    f"positions (structures, atoms, 3) under one of {', '.join(POSITIONS)} and atomic numbers, or symbols of elements, under one of "
    f"{', '.join(NUMBERS)}"
)


def read(path, levels):
    yield from (_npz if str(path).lower().endswith(".npz") else _hdf5)(str(path), levels)


def _npz(path, levels):
    try:
        with np.load(path, allow_pickle=False) as content:
            names, arrays = content.files, _arrays(content, levels)
    except Exception as error:  # NumPy's and zipfile's are of many kinds
        raise DataError(f"{path}: cannot be read as .npz ({error})") from None
    yield from _structures(arrays, names, levels, path, units=_tags(arrays))


def _hdf5(path, levels):
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read as HDF5 ({error})") from None
    with file:
        groups, names = ["/"] if _has_structures(file) else [], {}

        def visit(name, item):
            if _has_structures(item):
                groups.append(name)
            elif isinstance(item, h5py.Dataset):
                names.setdefault(name.rpartition("/")[2])

        file.visititems(visit)
        if not groups:
            raise DataError(
                f"{path}: wanted is a group with {WANTED}; found are datasets called {', '.join(list(names)[:20]) or 'nothing'}"
            )
        for name in groups:
            group = file[name]
            _check_own(group, path if name == "/" else f"{path}: {name}")
            try:
                arrays, info = _arrays(group, levels), _attributes(group)
            except OSError as error:
                raise DataError(f"{path}: {name} cannot be read ({error})") from None
            where, own = (path, None) if name == "/" else (f"{path}: {name}", name)
            yield from _structures(arrays, list(group), levels, where, own, info, _units(group, levels) | _tags(arrays), missing=np.isnan)


def _check_own(group, where):
    """All of a group is in this file. DataError : it names another, of which the user has said nothing"""
    import h5py

    for key in group:
        outside = isinstance(group.get(key, getlink=True), h5py.ExternalLink)
        data = None if outside else group.get(key)
        if outside or (isinstance(data, h5py.Dataset) and (data.external or data.is_virtual)):
            raise DataError(f"{where}: {key} lies in another file, which is not read; write one file that has all of it")


def _has_structures(item):
    return hasattr(item, "keys") and any(k in item for k in NUMBERS) and any(k in item for k in POSITIONS)


def _arrays(content, levels):
    """What is of use in a group or an .npz; the rest, which may be much, is not read."""
    wanted = [*NUMBERS, *POSITIONS, *OTHERS, *label_keys(levels), *(key for key in content if name(key) in SAID)]
    found = {key: content[key] for key in dict.fromkeys(wanted) if key in content}
    return {key: _one_smiles(item[()]) if name(key) in SMILES else item[()] for key, item in found.items() if hasattr(item, "shape")}


def _one_smiles(value):
    """ANI-1 has a SMILES as an array of its letters."""
    pieces = [str(plain(piece)) for piece in np.ravel(value)]
    return np.array("".join(pieces)) if len(pieces) == 1 or max(map(len, pieces), default=0) <= 1 else np.array(pieces)


def _attributes(group):
    """What the attributes of a group and of those it lies in say of charge and spin; the nearest counts."""
    outer = {} if group.name == "/" else _attributes(group.parent)
    return outer | {key: plain(value) for key, value in group.attrs.items() if name(key) in SAID}


def _units(group, levels):
    """Attributes `units` of the positions and labels."""
    names = {next(k for k in POSITIONS if k in group): "length"} | {key: key for key in label_keys(levels) if key in group}
    said = {kind: plain(group[key].attrs.get("units", "")) for key, kind in names.items()}
    return {kind: unit.strip() for kind, unit in said.items() if isinstance(unit, str) and unit.strip()}


def _tags(arrays):
    """Units as sGDML writes them."""
    energy, length = (str(plain(arrays[key])).strip() if key in arrays else "" for key in ("e_unit", "r_unit"))
    said = {"energy": energy, "length": length, "forces": f"{energy}/{length}" if energy and length else ""}
    return {kind: unit for kind, unit in said.items() if unit}


def _structures(arrays, names, levels, source, group=None, info=None, units=None, missing=None):
    """One dict for each entry along the first axis of the positions; where `missing` holds for a label it is left out."""
    numbers, positions, rows, one = _checked(arrays, names, levels, source)
    n, atoms = positions.shape[:2]
    if not n:
        return
    common = dict(info or {})
    if group and numbers.ndim == 1:  # a group a molecule, or in it one a structure
        common["molecule"] = (one and group.rpartition("/")[0]) or group
    cells, pbc = _cells(arrays, n, source)
    fragment, fragments = _fragments(arrays, n, atoms, source)
    for k in range(n):
        where = source if one else f"{source}: structure {k}"
        row = {key: value[k] if value.shape[:1] == (n,) else value for key, value in rows.items()}
        own = np.array(numbers if numbers.ndim == 1 else numbers[k])
        said = reals(arrays["N"], "N, numbers of atoms,", source)[k] if np.shape(arrays.get("N")) == (n,) and numbers.ndim == 2 else None
        real = unpadded(own, positions[k], where, said)
        forces = [keys.forces for keys in levels.values()]
        row |= {key: value[:real] for key, value in row.items() if value.shape[:1] == (atoms,) and (key in forces or name(key) in SAID)}
        labels = {key: value for key, value in row.items() if missing is None or not _holds(missing, value)}
        yield {
            "numbers": own[:real],
            "positions": positions[k, :real],
            "cell": cells[k],
            "pbc": pbc[k],
            "labels": labels_of((labels,), levels, where),
            "source": where,
            "info": common
            | {key: plain(value) for key, value in row.items() if name(key) in SAID and value.shape in ((), (1,), (real,))}
            | ({} if fragments is None else {"fragments": fragments[k]}),
            "fragment": () if fragment is None else fragment[k, :real],
            "units": units or {},
        }


def _checked(arrays, names, levels, source):
    """Atomic numbers, positions (structures, atoms, 3), what else has an entry a structure, and if the file has one without that axis."""
    numbers, positions = (next((arrays[k] for k in keys if k in arrays), None) for keys in (NUMBERS, POSITIONS))
    if numbers is None or positions is None or np.ndim(positions) not in (2, 3) or np.shape(positions)[-1] != 3:
        raise DataError(f"{source}: wanted are {WANTED}; found {', '.join(names) or 'nothing'}")
    numbers, positions = atomic_numbers(numbers, source), reals(positions, "positions", source)
    rows = {key: np.asarray(value) for key, value in arrays.items() if key in label_keys(levels) or name(key) in KEYS | SMILES}
    one = positions.ndim == 2
    if one:
        positions, rows = positions[None], {key: value[None] for key, value in rows.items()}
    n, atoms = positions.shape[:2]
    if numbers.shape not in ((atoms,), (n, atoms)):
        raise DataError(f"{source}: {numbers.shape} atomic numbers for positions of shape {positions.shape}")
    rows |= {key: value[..., 0] for key, value in rows.items() if name(key) in KEYS and value.shape == (n, atoms, 1)}
    for key in [key for key in rows if name(key) in OF_ATOMS and rows[key].shape == (atoms,) and atoms > 1 and not one]:
        if n == atoms:
            raise DataError(
                f"{source}: {key} has {n} numbers, which may be one a structure or one an atom; write it as (structures, atoms)"
            )
        rows[key] = np.broadcast_to(rows[key], (n, atoms))
    for key, value in rows.items():
        if value.shape[:1] != (n,) and (value.size > 1 or name(key) not in SAID):  # one charge may be that of all structures
            raise DataError(f"{source}: {key} has {len(value) if value.ndim else 1} entries for {n} structures")
    return numbers, positions, rows, one


def _holds(missing, value):
    return value.dtype.kind == "f" and bool(np.any(missing(value)))


def _cells(arrays, n, source):
    """Cells (n, 3, 3) and pbc (n, 3); sGDML has a `lattice`, whose columns are the vectors."""
    cell, pbc = (
        reals(arrays.get("cell", np.zeros((3, 3))), "cells", source),
        reals(arrays.get("pbc", "cell" in arrays and np.any(arrays["cell"])), "pbc", source) != 0,
    )
    if "lattice" in arrays and "cell" not in arrays:
        cell, pbc = reals(arrays["lattice"], "lattice vectors", source).T, np.asarray(True)
    if cell.size not in (9, 9 * n) or pbc.size not in (1, 3, 3 * n):
        raise DataError(
            f"{source}: a cell of shape {cell.shape} and pbc of shape {pbc.shape}; wanted are (3, 3) and (3,), or one a structure"
        )
    pbc = pbc.reshape(-1, 3) if pbc.size > 1 else pbc
    return np.broadcast_to(cell.reshape(-1, 3, 3), (n, 3, 3)), np.broadcast_to(pbc, (n, 3))


def _fragments(arrays, n, atoms, source):
    """The fragment of each atom (n, atoms), and charge and multiplicity of each fragment (n, fragments, 2); None where there are no such."""
    found = []
    for key, own in (("fragment", (atoms,)), ("fragments", (-1, 2))):
        if (value := arrays.get(key)) is not None:
            try:
                value = np.reshape(value, (n if np.ndim(value) > len(own) else 1, *own))
            except ValueError:
                raise DataError(f"{source}: {key} has the shape {np.shape(value)} for {n} structures of {atoms} atoms") from None
            value = np.broadcast_to(value, (n, *value.shape[1:]))
        found.append(value)
    return found
