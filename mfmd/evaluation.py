"""What a model file is worth on labelled structures: errors per level, molecule and label, and whether its error bars hold."""

import json
from collections import Counter

import numpy as np

from mfmd import units
from mfmd.engine import Engine, load_model
from mfmd.structures.record import KINDS


def compare(model, structures, by="molecule", precision="single"):
    """Labels against the engine's predictions.

    Parameters
    ----------
    model : see mfmd.engine.load_model
    structures : structures.record.Structure with labels of the model's levels
    by : info key that groups the structures; those without it form the group ""

    Returns
    -------
    {(level, group, kind): (label, prediction)} with kind energy (structures,) eV, forces (components,) eV/Å, stress (components,) eV/Å³;
    {level: (errors, error bars)} of the energies of levels that have error bars, eV

    Structures with an element a level was not trained on have no prediction of it: see `left_out`.
    """
    engine, elements = Engine(model, precision), _elements(model)
    points, bars = {}, {}
    for s in structures:
        group = str(s.info.get(by, ""))
        for level, label in s.labels.items():
            if level not in elements or not np.isin(s.numbers, elements[level]).all():
                continue
            stress = label.stress is not None
            out = engine.compute(
                s.positions, s.numbers, s.cell, s.pbc, terms=[(level, 1.0)], forces=label.forces is not None, virial=stress, error_bars=True
            )
            if stress:
                out["stress"] = -units.voigt(out["virial"]) / abs(np.linalg.det(s.cell))
            for kind in KINDS:
                value = getattr(label, kind)
                if value is not None:
                    pair = points.setdefault((level, group, kind), ([], []))
                    pair[0].append(np.ravel(value))
                    pair[1].append(np.ravel(out[kind]))
            if label.energy is not None and np.isfinite(out["term_errors"][0]):
                pair = bars.setdefault(level, ([], []))
                pair[0].append(out["energy"] - label.energy)
                pair[1].append(out["term_errors"][0])
    joined = {k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in points.items()}
    return joined, {k: (np.array(a), np.array(b)) for k, (a, b) in bars.items()}


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
