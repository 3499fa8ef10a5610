"""The set of "Understanding multi-fidelity training of machine-learned force-fields" (arXiv 2506.14963), as its card describes it.

metadata.parquet has a row a label: formula, conformation_idx, method (`dft`, `xtb`, `cc`), energy, energy_unit, forces_present, forces_unit, idx.
data.lmdb has under idx the record of that row: positions (Å), atomic_numbers, and forces where they are present. <method>_train_<letter>.json is
a list of idx. The rows of one formula and conformation_idx are levels of one structure: their labels are called <method>.energy and <method>.forces.
Neither columns of charge and spin nor such keys of records are part of the card; where there are some, they are read.

A record is read if it is data: JSON, MessagePack or .npz, compressed or not. A pickle is a program and is not run.
"""

import gzip
import io
import json
import zlib
from pathlib import Path

import numpy as np

from mfmd import units
from mfmd.structures.formats.fields import atomic_numbers, labels_of, plain
from mfmd.structures.record import DataError
from mfmd.structures.state import SAID, name

METADATA, RECORDS = "metadata.parquet", "data.lmdb"
COLUMNS = ("formula", "conformation_idx", "method", "energy", "energy_unit", "forces_present", "forces_unit", "idx")
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å"}  # whatever those of the rows are
SAME = 1e-3  # Å; structures of one conformation whose positions differ by more are not one


def read(path, levels):
    """As registry.read, in eV and Å whatever the units of the rows; path : metadata.parquet, or a list of idx beside it."""
    import lmdb
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    metadata, records = path.parent / METADATA, path.parent / RECORDS
    try:
        said = [column for column in pyarrow.parquet.read_schema(metadata).names if name(column) in SAID]
        table = pyarrow.parquet.read_table(metadata, columns=[*COLUMNS, *said]).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{metadata}: cannot be read ({str(error).splitlines()[0]}); wanted are the columns {', '.join(COLUMNS)}") from None
    wanted = range(len(table["idx"]))
    if path.name != METADATA:
        rows = {idx: row for row, idx in enumerate(table["idx"])}
        try:
            wanted = [rows[idx] for idx in json.loads(path.read_text())]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a list of idx of {metadata} ({error!r})") from None
    structures = {}
    for row in wanted:
        structures.setdefault((table["formula"][row], table["conformation_idx"][row]), []).append(row)
    try:
        environment = lmdb.open(str(records), subdir=records.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{records}: cannot be read as LMDB ({error})") from None
    with environment, environment.begin() as transaction:
        for (formula, conformation), rows in structures.items():
            yield from _structure(table, rows, transaction, levels, f"{records}: {formula}, conformation {conformation}")


def _structure(table, rows, transaction, levels, source):
    found, info = None, {"molecule": table["formula"][rows[0]]}
    labels = {}
    for row in rows:
        idx, method = table["idx"][row], table["method"][row]
        value = transaction.get(str(idx).encode())
        if value is None:
            raise DataError(f"{source}: there is no record of idx {idx}")
        record = decode(value, f"{source}, {method}")
        try:
            numbers, positions = (
                atomic_numbers(record["atomic_numbers"], f"{source}, {method}"),
                np.asarray(record["positions"], float).reshape(-1, 3),
            )
            if table["energy"][row] is not None:
                labels[f"{method}.energy"] = table["energy"][row] * units.energy(table["energy_unit"][row])
            if table["forces_present"][row]:
                labels[f"{method}.forces"] = np.asarray(record["forces"], float).reshape(-1, 3) * units.force(table["forces_unit"][row])
        except DataError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise DataError(f"{source}, {method}: the record of idx {idx} is not what its row says ({error!r})") from None
        own = {key: plain(value) for key, value in record.items() if name(key) in SAID}
        own |= {key: table[key][row] for key in table if name(key) in SAID}
        if found is None:
            found, said = (numbers, positions), own
        elif not np.array_equal(found[0], numbers) or np.abs(found[1] - positions).max() > SAME:
            raise DataError(f"{source}: {method} has another structure than {table['method'][rows[0]]}; remove one of them")
        elif own.keys() != said.keys() or any(not np.array_equal(own[key], said[key]) for key in own):
            raise DataError(f"{source}: {method} has another charge or spin than {table['method'][rows[0]]}; correct one of them")
    yield {
        "numbers": found[0],
        "positions": found[1],
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, bool),
        "labels": labels_of((labels,), levels, source),
        "source": source,
        "info": info | said,
        "units": UNITS,
    }


def decode(value, source):
    """The mapping in a record's bytes."""
    import msgpack

    try:
        if value[:2] == b"\x1f\x8b":
            value = gzip.decompress(value)
        elif value[:1] == b"\x78":
            value = zlib.decompress(value)
        if value[:2] == b"PK":
            with np.load(io.BytesIO(value), allow_pickle=False) as content:
                return dict(content)
        if value[:1] == b"{":
            return json.loads(value)
        if value[:1] == b"\x80":  # of MessagePack it would be an empty mapping
            raise DataError(
                f"{source}: the record is a pickle, which may run anything when it is read; write the records anew as JSON, MessagePack or .npz"
            )
        return msgpack.unpackb(value, object_hook=_array, strict_map_key=False)
    except DataError:
        raise
    except Exception as error:  # MessagePack's hook meets whatever the bytes say
        raise DataError(f"{source}: the record is neither JSON nor MessagePack nor .npz ({error})") from None


def _array(item):
    """An array as msgpack-numpy writes it."""
    item = {key.decode() if isinstance(key, bytes) else key: value for key, value in item.items()}
    return np.frombuffer(item["data"], np.dtype(item["type"])).reshape(item["shape"]) if item.get("nd") else item
