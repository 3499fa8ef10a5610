"""What has been chosen, as files: structures that `mfmd label` takes as they are, and numbers."""

from pathlib import Path

import ase
import ase.io
import numpy as np

from mfmd import whole
from mfmd.config import write_json
from mfmd.evaluation import foreseen
from mfmd.structures.state import NEUTRAL, SAID, name

HOUR = 3600.0


def atoms_of(structure):
    """The ase.Atoms of a structure, with what its info says that is a word or a number, an id, and its state where that is no neutral closed shell."""
    path, _, frame = structure.source.rpartition(": frame ")
    out = ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    out.info = {"id": f"{Path(path).stem}-{frame}"} if path else {}
    out.info |= {
        key: value
        for key, value in structure.info.items()
        if isinstance(value, (str, int, float)) and name(key) not in SAID and key != "split"
    }
    if np.size(structure.fragment):
        out.arrays["fragment"] = np.asarray(structure.fragment)
        out.info |= {key: value for key, value in structure.info.items() if name(key) in SAID}
    elif structure.states[0] != NEUTRAL:
        out.info |= structure.states[0]._asdict()
    return out


def frames(choice):
    """ase.Atoms in the order in which they were chosen, with the info keys levels (where to label them), score, and of each level predicted_<level> and
    predicted_error_<level> (eV)."""
    out = {}
    for pick in choice.picks:
        if id(pick.structure) not in out:
            out[id(pick.structure)] = atoms_of(pick.structure), []
            out[id(pick.structure)][0].info["score"] = pick.score
        atoms, levels = out[id(pick.structure)]
        levels.append(pick.level)
        said = {f"predicted_{pick.level}": pick.predicted, f"predicted_error_{pick.level}": pick.error}
        atoms.info |= {key: value for key, value in said.items() if value is not None}
    for atoms, levels in out.values():
        atoms.info["levels"] = " ".join(sorted(levels, key=choice.levels.index))
    return [atoms for atoms, _ in out.values()]


def summary(choice, timed):
    """What the choice is expected to do, JSON-able; timed : costs are CPU-seconds."""
    levels = {}
    for pick in choice.picks:
        own = levels.setdefault(pick.level, {"labels": 0, "cpu_seconds": 0.0, "halvings": 0.0})
        own["labels"] += 1
        own["cpu_seconds"] += pick.seconds
        own["halvings"] += pick.halvings
    for own in levels.values():
        own["halvings_per_hour"] = own["halvings"] / own["cpu_seconds"] * HOUR
        for key in () if timed else ("cpu_seconds", "halvings_per_hour"):
            own[key] = None
    return {
        "levels": levels,
        "error_bar": None if choice.before is None else {"before": choice.before, "after": choice.after},
        "variance_left": choice.picks[-1].left,
        "targets": choice.targets,
        "learned": choice.learned,
        "penalty": choice.penalty,
        "parts": choice.parts and dict(zip(choice.levels, map(float, choice.parts), strict=True)),
        "sketch": None if choice.width is None else {"width": choice.width, "error": float(np.sqrt(2 / choice.width))},
        "before": foreseen(choice.judged),
    }


def write(path, choice, timed):
    """Write the structures of a choice to a file of extended XYZ, and a summary beside it, .json; returns it."""
    with whole.writing(path, text=True) as file:
        ase.io.write(file, frames(choice), format="extxyz")
    found = summary(choice, timed)
    picks = [
        {"source": p.structure.source, "level": p.level, "left": p.left, "cpu_seconds": p.seconds if timed else None} for p in choice.picks
    ]
    write_json(path.with_suffix(".json"), found | {"picks": picks})
    return found
