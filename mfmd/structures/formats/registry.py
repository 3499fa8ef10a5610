"""Which module reads a file."""

import importlib
from pathlib import Path

from mfmd.structures.record import DataError

FORMATS = {
    ".xyz": "extxyz", ".extxyz": "extxyz", ".db": "asedb", ".json": "asedb", ".npz": "arrays", ".h5": "arrays", ".hdf5": "arrays",
    ".parquet": "multifidelity",
}  # fmt: skip


def format_of(path):
    """The module that reads a file; DataError where there is none."""
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
    found = False
    for structure in importlib.import_module(f"mfmd.structures.formats.{format_of(path)}").read(path, levels):
        found = True
        yield structure
    if not found:
        raise DataError(f"{path}: the file holds no structure")
