"""Arrays over structures of one composition: .npz files, and HDF5 files with a group a composition (ANI-1x: Smith et al. 2020)."""

import numpy as np

from mfmd.structures.formats.fields import labels_of
from mfmd.structures.record import DataError

NUMBERS = ("Z", "z", "numbers", "atomic_numbers", "nuclear_charges")  # (atoms,) or (structures, atoms)
POSITIONS = ("R", "positions", "coordinates", "coords")  # (structures, atoms, 3)


def read(path, levels):
    if str(path).lower().endswith(".npz"):
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = dict(content)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as .npz ({error})") from None
        yield from _structures(arrays, levels, str(path), {})
        return
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read as HDF5 ({error})") from None
    with file:
        groups = []
        file.visititems(lambda name, item: groups.append(name) if _has_structures(item) else None)
        for name in groups:
            arrays = {key: item[()] for key, item in file[name].items() if isinstance(item, h5py.Dataset)}
            yield from _structures(arrays, levels, f"{path}: {name}", {"molecule": name}, missing=np.isnan)


def _has_structures(item):
    return hasattr(item, "keys") and any(k in item for k in NUMBERS) and any(k in item for k in POSITIONS)


def _structures(arrays, levels, source, info, missing=None):
    """One dict for each entry along the first axis of the positions; where `missing` holds for a label it is left out."""
    numbers = next((np.asarray(arrays[k]) for k in NUMBERS if k in arrays), None)
    positions = next((np.asarray(arrays[k], float) for k in POSITIONS if k in arrays), None)
    if numbers is None or positions is None or positions.ndim != 3 or positions.shape[2] != 3:
        raise DataError(
            f"{source}: wanted are positions (structures, atoms, 3) under one of {', '.join(POSITIONS)} and atomic numbers under one of "
            f"{', '.join(NUMBERS)}; found {', '.join(arrays) or 'nothing'}"
        )
    n, atoms = positions.shape[:2]
    if numbers.shape not in ((atoms,), (n, atoms)):
        raise DataError(f"{source}: {numbers.shape} atomic numbers for positions of shape {positions.shape}")
    keys = {key for own in levels.values() for key in (own.energy, own.forces, own.stress) if key in arrays}
    for key in keys:
        if len(arrays[key]) != n:
            raise DataError(f"{source}: {key} has {len(arrays[key])} entries for {n} structures")
    cell, pbc = arrays.get("cell"), arrays.get("pbc")
    for k in range(n):
        own = {key: arrays[key][k] for key in keys if missing is None or not np.any(missing(arrays[key][k]))}
        own = {key: np.reshape(value, ()) if np.size(value) == 1 else value for key, value in own.items()}
        yield {
            "numbers": np.array(numbers if numbers.ndim == 1 else numbers[k], int),
            "positions": positions[k],
            "cell": np.zeros((3, 3)) if cell is None else np.asarray(cell, float).reshape(-1, 3, 3)[k if np.ndim(cell) == 3 else 0],
            "pbc": np.zeros(3, bool)
            if pbc is None
            else np.broadcast_to(np.asarray(pbc, bool).reshape(-1, 3)[k if np.ndim(pbc) == 2 else 0], 3),
            "labels": labels_of((own,), levels, f"{source}: structure {k}"),
            "source": f"{source}: structure {k}",
            "info": info,
        }
