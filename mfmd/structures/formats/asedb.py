"""ASE databases. A label is looked up in a row's key-value pairs, its data, and what its calculator had computed."""

import ase.db

from mfmd.structures.formats.fields import from_atoms
from mfmd.structures.record import DataError


def read(path, levels):
    try:
        rows = list(ase.db.connect(str(path)).select(sort="id"))
    except Exception as error:  # sqlite, JSON and ASE each raise their own
        raise DataError(f"{path}: cannot be read as an ASE database ({error})") from error
    for row in rows:
        atoms = row.toatoms()
        atoms.info = {**row.data, **row.key_value_pairs}
        places = (row.key_value_pairs, row.data, atoms.calc.results if atoms.calc is not None else {})
        yield from_atoms(atoms, places, levels, f"{path}: row {row.id}")
