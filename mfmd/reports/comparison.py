"""Predictions against labels, in figures and tables: what the pages of training and of evaluation share; and the page of `mfmd eval`."""

import numpy as np

from mfmd import evaluation
from mfmd.reports import drawing, figures, page, tables

WORST = 6  # structures that are drawn
OF = {"energy": "energy per atom beyond that of isolated atoms", "forces": "force components", "stress": "stress components"}
UNIT = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}


def write(path, asked, model, found, left, told, trust=()):
    """The page of `mfmd eval`.

    Parameters
    ----------
    path : of the page
    asked : {what was asked for: value}, in words
    model : engine.load_model's
    found : evaluation.Comparison of each structure and level
    left, told : sentences on what was left out, and of notes and warnings; trust : more of them on error bars
    """
    errors = evaluation.errors(evaluation.collect(found)[0])
    files = {}
    for structure in {id(c.structure): c.structure for c in found}.values():
        name = structure.source.partition(": ")[0]
        files[name] = files.get(name, 0) + 1
    page.write(
        path,
        "evaluation.html",
        title="Errors of a model",
        asked=list(asked.items()),
        told=told,
        sha256=model.sha256,
        head=["level", "label", "count", "MAE", "RMSE", "unit"],
        errors=[(level, kind, *_row(row, kind)) for (level, group, kind), row in tables.ordered(errors) if group == "all"],
        files=list(files.items()),
        left=left,
        found=content(found, model, "of the files named below", asked["grouped by"], trust),
    )


def content(found, model, what, by, trust=()):
    """What the part of a page on predictions and labels is made of.

    Parameters
    ----------
    found : evaluation.Comparison of each structure and level
    model : engine.load_model's
    what : which structures these are, in words
    by : the info key that they are grouped by
    trust : more sentences on error bars
    """
    points, bars = evaluation.collect(found)
    groups = tables.ordered(evaluation.errors(points))
    highest = [level for level in model.levels if any(c.level == level for c in found)][-1]
    references = evaluation.reference_energies(model)
    return {
        "what": what,
        "by": by,
        "highest": highest,
        "parity": _parity(found, points, references, model.levels),
        "groups": [
            table for level in model.levels for kind in tables.UNITS if len((table := _by_group(groups, level, kind, by))["rows"]) > 1
        ],
        "worst": {words: drawn for kind, words in WORST_OF.items() if (drawn := _worst([c for c in found if c.level == highest], kind))},
        "calibration": [figures.coverage(bars)] if bars else [],
        "trust": [f"{level}: {tables.trust(evaluation.calibration(*pair))}." for level, pair in bars.items()]
        + [f"{sentence}." for sentence in trust],
    }


def _by_group(errors, level, kind, by):
    """The table of a level and a kind of label; its only row is "all" where there are no groups."""
    rows = [(group, row["count"], 1e3 * row["mae"], 1e3 * row["rmse"]) for (of, group, what), row in errors if (of, what) == (level, kind)]
    return {"caption": f"{level}, {kind}, {tables.UNITS[kind]}", "head": [by, "count", "MAE", "RMSE"], "rows": rows}


def _row(row, kind):
    return row["count"], 1e3 * row["mae"], 1e3 * row["rmse"], tables.UNITS[kind]


def _parity(found, points, references, levels):
    drawn = []
    for level in levels:
        for kind, words in OF.items():
            if kind == "energy":
                pairs = [_per_atom(c, references) for c in found if c.level == level and kind in c.pairs]
            else:
                pairs = [pair for (of, _, what), pair in points.items() if (of, what) == (level, kind)]
            if pairs:
                label, prediction = (np.concatenate([np.atleast_1d(pair[k]) for pair in pairs]) for k in (0, 1))
                drawn.append(figures.parity(f"{level}, {words}", label, prediction, UNIT[kind]))
    return drawn


def _per_atom(c, references):
    """Label and prediction of a Comparison's energy, eV/atom beyond isolated atoms."""
    isolated = sum(references[c.level][int(z)] for z in c.structure.numbers)
    return tuple((energy - isolated) / len(c.structure.numbers) for energy in c.pairs["energy"])


WORST_OF = {
    "energy": "By the energy per atom",
    "forces": "By the force on an atom, which has a ring",
}


def _worst(found, kind):
    """Figures of the structures with the largest errors."""
    with_it = [(c, *_error(c, kind)) for c in found if kind in c.pairs]
    drawn = []
    for c, error, atom in sorted(with_it, key=lambda one: -abs(one[1]))[:WORST]:
        s = c.structure
        svg, atoms = drawing.draw(s.numbers, s.positions, s.cell, s.pbc, atom)
        name = f"{c.group}, " if c.group else ""
        words = f"{1e3 * error:+.1f} meV/atom" if kind == "energy" else f"{1e3 * error:.0f} meV/Å on atom {atom}"
        part = f"; drawn are {atoms} of {len(s.numbers)} atoms" if atoms < len(s.numbers) else ""
        drawn.append(figures.Figure(svg, f"{words}: {name}{drawing.formula(s.numbers)} ({s.source}){part}"))
    return drawn


def _error(c, kind):
    """The error of a Comparison and the atom that has it: of the energy per atom with its sign, None; of the forces the largest difference of a vector."""
    label, prediction = c.pairs[kind]
    if kind == "energy":
        return float(prediction - label) / len(c.structure.numbers), None
    each = np.linalg.norm(prediction - label, axis=1)
    return float(each.max()), int(each.argmax())
