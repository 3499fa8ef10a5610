"""QCSchema: one AtomicResult, or a list of them, in JSON. The keys of its labels are `energy` and `forces`; it fixes Hartree and Bohr, and that a charge
which is not said is 0."""

import json

import numpy as np

from mfmd.structures.formats.fields import atomic_numbers, labels_of
from mfmd.structures.record import DataError
from mfmd.structures.state import SMILES, name

SCHEMAS = ("qcschema_output", "qc_schema_output")
UNITS = {"length": "Bohr", "energy": "Hartree", "forces": "Hartree/Bohr"}


def read(path, levels):
    yield from structures(load(path), path, levels)


def load(path):
    """The content of a JSON file; DataError where it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None


def structures(content, path, levels):
    """As `read`, of the content of the file."""
    entries = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(entry, dict) and (entry.get("schema_name") in SCHEMAS or "success" in entry) for entry in entries):
        raise DataError(
            f"{path}: this is {_described(content)}; wanted is an ASE database (ids, nextid and a row an id) or QCSchema "
            f"(one result or a list of them, schema_name {' or '.join(SCHEMAS)})"
        )
    method = None
    for k, entry in enumerate(entries):
        source = f"{path}: entry {k}"
        if entry.get("success") is False:
            reason = (entry.get("error") or {}).get("error_message", "no reason is given")
            raise DataError(f"{source}: the calculation has failed ({' '.join(str(reason).split())[:200]}); remove the entry")
        try:
            own = _method(entry)
            structure = _structure(entry, levels, source)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{source}: is not as QCSchema has it ({error!r})") from None
        if method is not None and own != method:
            raise DataError(f"{source}: is of {own}, and those before are of {method}; write each level into a file of its own")
        method = own
        yield structure


def _method(entry):
    model = entry.get("model") or {}
    return f"{model.get('method')}/{model.get('basis')}".lower()


def _structure(entry, levels, source):
    molecule, driver, properties = entry["molecule"], entry.get("driver"), entry.get("properties") or {}
    if not all(molecule.get("real") or [True]):
        raise DataError(f"{source}: has ghost atoms; remove the entry")
    numbers = atomic_numbers(molecule["symbols"], source)
    energy = properties.get("return_energy")
    if energy is None and driver == "energy":
        energy = entry["return_result"]
    gradient = entry["return_result"] if driver == "gradient" else properties.get("return_gradient")
    found = {} if energy is None else {"energy": energy}
    if gradient is not None:
        found["forces"] = -np.reshape(np.asarray(gradient, float), (-1, 3))
    info = {"charge": molecule.get("molecular_charge", 0), "multiplicity": molecule.get("molecular_multiplicity")}
    info |= {key: value for place in ("identifiers", "extras") for key, value in (molecule.get(place) or {}).items() if name(key) in SMILES}
    fragments, fragment = molecule.get("fragments") or [], ()
    if len(fragments) > 1 and "fragment_charges" in molecule:
        info["fragments"] = list(zip(molecule["fragment_charges"], molecule["fragment_multiplicities"], strict=True))
        fragment = np.full(len(numbers), -1)
        for k, atoms in enumerate(fragments):
            fragment[atoms] = k
    return {
        "numbers": numbers,
        "positions": np.asarray(molecule["geometry"], float).reshape(len(numbers), 3),
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, bool),
        "labels": labels_of((found,), levels, source),
        "source": source,
        "info": info,
        "fragment": fragment,
        "units": UNITS,
    }


def _described(content):
    if isinstance(content, list):
        return f"a JSON list of {len(content)} items"
    if isinstance(content, dict):
        return f"a JSON object with the keys {', '.join(list(content)[:10])}" if content else "an empty JSON object"
    return f"the JSON value {str(content)[:40]!r}"
