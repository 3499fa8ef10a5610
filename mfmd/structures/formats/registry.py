"""Which module reads a file."""

import importlib
from pathlib import Path

from mfmd.structures.record import DataError

FORMATS = {
    ".xyz": "extxyz", ".extxyz": "extxyz", ".traj": "trajectory", ".db": "asedb", ".json": "asedb", ".aselmdb": "asedb", ".npz": "arrays",
    ".h5": "arrays", ".hdf5": "arrays", ".data": "n2p2", ".parquet": "multifidelity",
}  # fmt: skip
NAMES = tuple(
    sorted({*FORMATS.values(), "deepmd", "qcschema"})
)  # of the formats; a folder is deepmd, and qcschema a .json that is no database


def format_of(path, given=None):
    """The module that reads a file, which is `given` where the user names one; DataError where there is none."""
    if given is not None:
        if given not in NAMES:
            raise DataError(f"{path}: {given!r} is no format; there are {', '.join(NAMES)}")
        return given
    if Path(path).is_dir():
        return "deepmd"
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"{path}: the ending {suffix or 'is missing and'} stands for no format; there are {', '.join(FORMATS)}")
    beside = suffix == ".json" and (Path(path).parent / "metadata.parquet").exists()
    return "multifidelity" if beside else FORMATS[suffix]


def read(path, levels, given=None):
    """Yield one dict a structure: numbers, positions, cell, pbc, labels {level: Label}, source, info; charges, moments, fragment, units.

    Labels are as they stand in the file: a gradient that is called so is a gradient. What is after the semicolon may be missing. units are
    what the file says of its own, {"length", "energy", "forces", "stress", "virial" or the key of a label: name}; there may be
    default_units and a default_spin too, what is usual in the format. What is said of charge and spin is in info, under keys of state.py.

    Parameters
    ----------
    levels : {name: object with the attributes energy, forces, stress, and virial if there are such: the keys of the labels in the file}
    given : the name of the format, where the ending does not say it

    Raises
    ------
    DataError : an ending that stands for no format, a file that cannot be read or holds no structure
    """
    found = False
    for structure in importlib.import_module(f"mfmd.structures.formats.{format_of(path, given)}").read(path, levels):
        found = True
        yield structure
    if not found:
        raise DataError(f"{path}: the file holds no structure")
