"""What is evaluated: the structures that travel in a model file with their numbers, or the user's."""

import json
from pathlib import Path

import numpy as np
from ase import Atoms

from mfmd import Error
from mfmd.engine import load_model
from mfmd.evaluation import Trained
from mfmd.structures.formats.registry import FORMATS
from mfmd.structures.record import DataError, Label, Structure, from_json

MOST = 5  # structures of a file that are looked at, evenly spread over it


class CheckError(Error):
    """There is nothing to check; names the file and what to do."""


def of_model(path):
    """[(Structure, level)] of a model file, each labelled at the level with what torch had for it when the file was written.

    Raises
    ------
    CheckError : the file has none, or one that is damaged
    """
    out = []
    trained, found = Trained(path), json.loads(load_model(path).metadata).get("check", [])
    remedy = f"name a file with one: mfmd check {path} structure.xyz"
    for k, own in enumerate(found if isinstance(found, list) else [found]):
        source = f"structure {k} of {path}"
        try:
            s, level = from_json(own, {}, source), own["level"]
            label = Label(float(own["energy"]), np.array(own["forces"], float))
            whole = level in trained.levels and label.forces.shape == s.positions.shape
            whole = whole and np.isfinite([label.energy, *label.forces.ravel()]).all() and trained.lacks(level, s) == ((), ())
        except (DataError, KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise CheckError(f"{source}: it is damaged; {remedy}")
        s.labels[level] = label
        out.append((s, level))
    if not out:
        raise CheckError(
            f"{path} has no structures in it: it was imported, is of an older mfmd, or was trained on large ones alone; {remedy}"
        )
    return out


def of_file(model, path):
    """[(Structure, level)] of a file in any format that mfmd-train or mfmd md reads, each at the highest level that knows it.

    Raises
    ------
    CheckError : a structure that no level was trained on
    """
    trained = Trained(model)
    every = _labelled(path, trained.levels) if Path(path).is_dir() or Path(path).suffix.lower() in FORMATS else [_start(model, path)]
    chosen = [every[k] for k in np.unique(np.linspace(0, len(every) - 1, min(MOST, len(every))).astype(int))]
    for s in chosen:
        if trained.highest(s) is None:
            raise CheckError(
                f"{s.source}: no level of {model} was trained on all its elements and on its charge and multiplicity; give another"
            )
    return [(s, trained.highest(s)) for s in chosen]


def _labelled(path, levels):
    from mfmd.structures.reading import read_file
    from mfmd.training import plan

    config = plan.parse({"out": ".", "data": {"train": [str(path)]}, "levels": {name: {} for name in levels}}, "the command line")
    return list(read_file(path, config.data, {}))


def _start(model, path):
    """What a run would start from, as it would be evaluated."""
    from openmm.unit import angstrom

    from mfmd.hosts.openmm import Evaluated
    from mfmd.hosts.topology import read_start

    start = read_start(path)
    state = {"charge": None, "multiplicity": None, "fragments": None} | start.state
    found, box = (
        Evaluated(load_model(model), start.topology, None, [], {}, "double", None, None, state),
        start.topology.getPeriodicBoxVectors(),
    )
    cell = np.zeros((3, 3)) if box is None else np.array(box.value_in_unit(angstrom))
    said = found.said
    return Structure(
        found.numbers, start.positions, cell, np.repeat(found.periodic, 3), {}, str(path), states=said.states, fragment=said.fragment
    )


def atoms_of(s):
    """ase.Atoms that say the states as users do."""
    atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)
    if len(s.states) == 1:
        atoms.info |= s.states[0]._asdict()
    else:
        atoms.info["fragments"] = [tuple(state) for state in s.states]
        atoms.arrays["fragment"] = np.asarray(s.fragment)
    return atoms
