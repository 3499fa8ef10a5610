"""What a model file is worth on labelled structures: errors per level, molecule and label, and whether its error bars hold."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from mfmd import progress, units
from mfmd.engine import Engine, load_model
from mfmd.structures.record import KINDS, Structure


@dataclass
class Comparison:
    """A structure at a level: its labels beside what the model predicts."""

    structure: Structure
    level: str
    group: str
    pairs: dict  # {kind: (label, prediction)}: energy () eV, forces (atoms, 3) eV/Å, stress (6,) eV/Å³
    bar: float  # eV, the error bar of the energy; NaN where the level has none


def compare(model, structures, by="molecule", precision="single"):
    """What `collect` gives of the `comparisons`."""
    return collect(comparisons(model, structures, by, precision))


def comparisons(model, structures, by="molecule", precision="single"):
    """Labels against the engine's predictions: yields a Comparison of each structure at each level that it has a label of.

    Parameters
    ----------
    model : see mfmd.engine.load_model
    structures : structures.record.Structure with labels of the model's levels
    by : info key that groups the structures; those without it form the group ""

    Structures with an element a level was not trained on have no prediction of it: see `left_out`.
    """
    engine, elements = Engine(model, precision), _elements(model)
    for s in progress.over(structures, "predicting the labels", "structures"):
        for level, label in s.labels.items():
            if level not in elements or not np.isin(s.numbers, elements[level]).all():
                continue
            stress = label.stress is not None
            out = engine.compute(
                s.positions, s.numbers, s.cell, s.pbc, terms=[(level, 1.0)], forces=label.forces is not None, virial=stress, error_bars=True
            )
            if stress:
                out["stress"] = -units.voigt(out["virial"]) / abs(np.linalg.det(s.cell))
            pairs = {kind: (np.asarray(value), out[kind]) for kind in KINDS if (value := getattr(label, kind)) is not None}
            yield Comparison(s, level, str(s.info.get(by, "")), pairs, float(out["term_errors"][0]))


def collect(found):
    """Comparisons as arrays.

    Returns
    -------
    {(level, group, kind): (label, prediction)} with kind energy (structures,) eV, forces (components,) eV/Å, stress (components,) eV/Å³;
    {level: (errors, error bars)} of the energies of levels that have error bars, eV
    """
    points, bars = {}, {}
    for c in found:
        for kind, (label, prediction) in c.pairs.items():
            pair = points.setdefault((c.level, c.group, kind), ([], []))
            pair[0].append(np.ravel(label))
            pair[1].append(np.ravel(prediction))
        if "energy" in c.pairs and np.isfinite(c.bar):
            pair = bars.setdefault(c.level, ([], []))
            pair[0].append(c.pairs["energy"][1] - c.pairs["energy"][0])
            pair[1].append(c.bar)
    joined = {k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in points.items()}
    return joined, {k: (np.array(a), np.array(b)) for k, (a, b) in bars.items()}


def reference_energies(model):
    """{level: {Z: eV}}: what an isolated atom has, of a relative level with that of the levels below it."""
    levels = {level["name"]: level for level in json.loads(load_model(model).metadata)["levels"]}

    def of(name):
        level = levels[name]
        own = {int(z): energy for z, energy in level["e0"].items()}
        below = of(level["delta_of"]) if level.get("delta_of") else {}
        return {z: energy + below.get(z, 0.0) for z, energy in own.items()}

    return {name: of(name) for name in levels}


def left_out(model, structures, levels):
    """{level: {atomic numbers: structures}} of those that `compare` has no point of: the elements that the level was not trained on; () has no label of it."""
    elements, left = _elements(model), {}
    for level in levels:
        left[level] = Counter()
        for s in structures:
            unknown = np.setdiff1d(s.numbers, elements[level])
            if level not in s.labels or len(unknown):
                left[level][tuple(map(int, unknown)) if level in s.labels else ()] += 1
    return left


def _elements(model):
    """{level: atomic numbers it was trained on}"""
    return {level["name"]: level["elements"] for level in json.loads(load_model(model).metadata)["levels"]}


def ratios(points):
    """{(level, kind): sum of the labels' sizes over that of the predictions'} of energies and forces, far from one where a unit is not what it is taken for."""
    sums = {}
    for (level, _, kind), (label, prediction) in points.items():
        if kind in ("energy", "forces"):
            sums[level, kind] = sums.get((level, kind), 0.0) + np.array([np.abs(label).sum(), np.abs(prediction).sum()])
    return {key: label / prediction for key, (label, prediction) in sums.items() if prediction > 0}


def errors(points):
    """{(level, group, kind): {"count", "mae", "rmse"}}; with a group "all" for each level and kind."""
    together = {}
    for (level, _, kind), (label, prediction) in points.items():
        pair = together.setdefault((level, "all", kind), ([], []))
        pair[0].append(label)
        pair[1].append(prediction)
    points = {**points, **{k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in together.items()}}
    return {
        key: {"count": len(a), "mae": float(np.abs(b - a).mean()), "rmse": float(np.sqrt(np.mean((b - a) ** 2)))}
        for key, (a, b) in points.items()
    }


def calibration(error, bar):
    """How far error bars can be trusted.

    Returns
    -------
    dict: count; coverage, the share of errors within one standard deviation (68 % is right); gain, the mean log likelihood of the errors
    over that of the one constant standard deviation that suits them best (positive is better, nats)
    """
    constant = np.sqrt(np.mean(error**2))
    likelihood = np.mean(-np.log(bar) - error**2 / (2 * bar**2))
    return {
        "count": len(error),
        "coverage": float(np.mean(np.abs(error) < bar)),
        "gain": float(likelihood - (-np.log(constant) - 0.5)),
    }
