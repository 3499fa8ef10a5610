"""A file a format; each yields the fields of a data.Structure as a dict, in the units of the file.

| ending | format |
|---|---|
| .xyz, .extxyz | extended XYZ |
| .db, .json | ASE databases |
| .npz | arrays (Z, R and one a label), as MD17, rMD17 and sGDML have them |
| .h5, .hdf5 | groups of such arrays, as ANI-1x and ANI-1ccx have them; NaN is a missing label |
| .parquet | metadata.parquet beside data.lmdb, the set of arXiv 2506.14963; a .json beside these is a list of their idx |
"""

import importlib
from pathlib import Path

import numpy as np

FORMATS = {
    ".xyz": "extxyz", ".extxyz": "extxyz", ".db": "asedb", ".json": "asedb", ".npz": "arrays", ".h5": "arrays", ".hdf5": "arrays",
    ".parquet": "multifidelity",
}  # fmt: skip


def format_of(path):
    """The module that reads a file; DataError where there is none."""
    from mfmd.data import DataError

    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"{path}: the ending {suffix or 'is missing and'} stands for no format; there are {', '.join(FORMATS)}")
    beside = suffix == ".json" and (Path(path).parent / "metadata.parquet").exists()
    return "multifidelity" if beside else FORMATS[suffix]


def read(path, levels):
    """Yield one dict a structure: numbers, positions, cell, pbc, labels {level: Label}, source, info, charges, moments.

    Parameters
    ----------
    levels : {name: object with the attributes energy, forces, stress: the keys of the labels in the file}

    Raises
    ------
    DataError : an ending that stands for no format, a file that cannot be read or holds no structure
    """
    from mfmd.data import DataError

    found = False
    for structure in importlib.import_module(f"mfmd.readers.{format_of(path)}").read(path, levels):
        found = True
        yield structure
    if not found:
        raise DataError(f"{path}: the file holds no structure")


def labels_of(places, levels, source):
    """{level: Label} of what stands under the levels' keys in any of the mappings `places`; the first that has a key counts."""
    from mfmd.data import DataError, Label

    def value(key):
        return next((np.asarray(place[key], float) for place in places if key in place), None)

    labels = {}
    for name, keys in levels.items():
        try:
            energy, forces, stress = (value(key) for key in (keys.energy, keys.forces, keys.stress))
        except (TypeError, ValueError) as error:
            raise DataError(f"{source}: a label of level {name} is not a number ({error})") from None
        if stress is not None and stress.size == 9:
            stress = stress.reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if any(v is not None for v in (energy, forces, stress)):
            labels[name] = Label(None if energy is None else energy[()], forces, stress)
    return labels


def from_atoms(atoms, places, levels, source):
    """The dict of an ase.Atoms."""
    return {
        "numbers": atoms.numbers.copy(),
        "positions": atoms.positions.copy(),
        "cell": np.asarray(atoms.cell).copy(),
        "pbc": atoms.pbc.copy(),
        "labels": labels_of(places, levels, source),
        "source": source,
        "info": dict(atoms.info),
        "charges": atoms.get_initial_charges(),
        "moments": atoms.get_initial_magnetic_moments(),
    }
