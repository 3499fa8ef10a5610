"""ASE databases. A label is looked up in a row's key-value pairs, its data, and what its calculator had computed.

.aselmdb is what fairchem writes (ase-db-backends reads it); its spin is 2S + 1. Units are those of the metadata, where these are SchNetPack's.
"""

from pathlib import Path

import ase.db

from mfmd.structures.formats import qcschema
from mfmd.structures.formats.fields import from_atoms, label_keys
from mfmd.structures.record import DataError
from mfmd.structures.state import SAID, name


def read(path, levels):
    ending = Path(path).suffix.lower()
    if ending == ".json":
        content = qcschema.load(path)
        if not (isinstance(content, dict) and "ids" in content):
            yield from qcschema.structures(content, path, levels)
            return
    # readonly: the database is opened without a lock file beside it, and may lie where nothing can be written
    kind, more = {".json": ("json", {}), ".aselmdb": ("aselmdb", {"readonly": True})}.get(ending, ("db", {}))
    try:
        file = ase.db.connect(str(path), type=kind, **more)
        usual = {"units": _units(file.metadata, levels), "default_spin": "2S+1" if kind == "aselmdb" else None}
        yield from (_structure(row, path, levels) | usual for row in file.select(sort="id"))
    except (ModuleNotFoundError, DataError):
        raise
    except Exception as error:  # sqlite, LMDB, JSON and ASE each raise their own
        raise DataError(f"{path}: cannot be read as an ASE database ({error})") from error


def said_in(path, kind):
    """Of each row of a database (db, json) what it says of charge and spin beside the atoms, {key: value}, which ase.io.read leaves out."""
    rows = ase.db.connect(str(path), type=kind).select(sort="id")
    return [{key: value for key, value in (row.data | _pairs(row)).items() if name(key) in SAID | {"fragment"}} for row in rows]


def _pairs(row):
    """Key-value pairs as they were written; what a row gives as its charge is the sum of initial charges."""
    return {key: vars(row)[key] for key in row.key_value_pairs}


def _structure(row, path, levels):
    atoms, pairs = row.toatoms(), _pairs(row)
    atoms.info = {**row.data, **pairs}
    places = (pairs, row.data, atoms.calc.results if atoms.calc is not None else {})
    return from_atoms(atoms, places, levels, f"{path}: row {row.id}")


def _units(metadata, levels):
    """What SchNetPack writes: a unit a property, and one of length."""
    properties = metadata.get("_property_unit_dict") or {}
    said = {"length": metadata.get("_distance_unit"), **{key: properties.get(key) for key in label_keys(levels)}}
    return {key: unit for key, unit in said.items() if unit}
