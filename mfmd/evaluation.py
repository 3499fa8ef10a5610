"""What a model file is worth on labelled structures: errors per level, molecule and label, and whether its error bars hold."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from mfmd import progress, units
from mfmd.engine import Engine, load_model
from mfmd.structures.record import KINDS, Structure
from mfmd.structures.state import NEUTRAL


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


def comparisons(model, structures, by="molecule", precision="single", allow_unseen_state=False):
    """Labels against the engine's predictions: yields a Comparison of each structure at each level that it has a label of.

    Parameters
    ----------
    model : see mfmd.engine.load_model
    structures : structures.record.Structure with labels of the model's levels
    by : info key that groups the structures, or charge or multiplicity; those without it form the group ""
    allow_unseen_state : see mfmd.engine.Engine

    Structures with an element or in a state a level was not trained on have no prediction of it: see `left_out`.
    """
    engine, trained = Engine(model, precision, allow_unseen_state=allow_unseen_state), Trained(model, allow_unseen_state)
    for s in progress.over(structures, "predicting the labels", "structures"):
        for level, label in s.labels.items():
            if level not in trained.levels or trained.lacks(level, s) != ((), ()):
                continue
            stress = label.stress is not None
            given, states = s.for_engine
            (out,) = engine.compute_batch(
                [given], states=[states],
                terms=[(level, 1.0)], forces=label.forces is not None, virial=stress, error_bars=True,
            )  # fmt: skip
            if stress:
                out["stress"] = -units.voigt(out["virial"]) / abs(np.linalg.det(s.cell))
            pairs = {kind: (np.asarray(value), out[kind]) for kind in KINDS if (value := getattr(label, kind)) is not None}
            yield Comparison(s, level, _group(s, by), pairs, float(out["term_errors"][0]))


def _group(s, by):
    said = {"charge": s.charge, "multiplicity": ", ".join(str(state.multiplicity) for state in s.states)}
    return str(said[by] if by in said else s.info.get(by, ""))


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


def left_out(model, structures, levels, allow_unseen_state=False):
    """{level: {(atomic numbers, states): structures}} of those that `comparisons` have no point of: what the level was not trained on; ((), ()) has no
    label of it."""
    trained, left = Trained(model, allow_unseen_state), {}
    for level in levels:
        left[level] = Counter()
        for s in structures:
            lacking = trained.lacks(level, s) if level in s.labels else ((), ())
            if level not in s.labels or lacking != ((), ()):
                left[level][lacking] += 1
    return left


class Trained:
    """What the levels of a model were trained on, as its file says."""

    def __init__(self, model, allow_unseen_state=False):
        self.levels = {level["name"]: level for level in json.loads(load_model(model).metadata)["levels"]}
        self.allow_unseen_state = allow_unseen_state

    def lacks(self, level, s):
        """(atomic numbers, states) of a structure that a level was not trained on; of states, nor one that it is relative to."""
        elements = np.setdiff1d(s.numbers, self.levels[level]["elements"])
        states = (
            () if self.allow_unseen_state else sorted({state for k, state in enumerate(s.states) if not self._seen(level, state, s, k)})
        )
        return tuple(map(int, elements)), tuple(states)

    def highest(self, s):
        """Name of the highest level that lacks nothing of a structure, or None."""
        return next((level for level in reversed(self.levels) if self.lacks(level, s) == ((), ())), None)

    def _seen(self, level, state, s, k):
        if state == NEUTRAL and (np.count_nonzero(np.equal(s.fragment, k)) if np.size(s.fragment) else len(s.numbers)) == 1:
            return True  # an atom by itself is what E0 is of
        while level:
            states = self.levels[level].get("states")  # missing: neutral ones of the lowest multiplicity
            if [*state] not in states if states else state.charge or state.multiplicity > 2:
                return False
            level = self.levels[level].get("delta_of")
        return True


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


def foresight(info, label):
    """(error, error bar) in eV of the energy of a label, by what `mfmd suggest` wrote of it into a structure's info; None where it did not.

    info : dict; label : (level, energy)
    """
    level, energy = label
    predicted, bar = info.get(f"predicted_{level}"), info.get(f"predicted_error_{level}")
    return None if predicted is None or bar is None else (float(energy - predicted), float(bar))


def foreseen(pairs):
    """What the pairs of `foresight` come to: labels, rms_error and rms_error_bar in eV, coverage; None where there are none."""
    error, bar = np.array(pairs, float).reshape(-1, 2).T
    if not len(error):
        return None
    rms_error, rms_bar = (float(np.sqrt(np.mean(of**2))) for of in (error, bar))
    return {"labels": len(error), "rms_error": rms_error, "rms_error_bar": rms_bar, "coverage": calibration(error, bar)["coverage"]}


def error_of(comparison):
    """Of a Comparison the error of the energy, eV, and the root mean square of those of the force components, eV/Å; NaN where there is no such label."""
    energy, forces = (np.subtract(*comparison.pairs[kind][::-1]) if kind in comparison.pairs else np.nan for kind in ("energy", "forces"))
    return float(energy), float(np.sqrt(np.mean(np.square(forces))))


def surety(rows):
    """How far error bars of energies and forces of structures can be trusted.

    rows : (structure, error of its energy, of its forces, error bar of its energy, of its forces), errors as `error_of` has them

    Returns
    -------
    dict: energy, what `calibration` gives; forces: count, rms (the mean of structures, eV/Å) and predicted; both with rank, Spearman's of sizes and error
    bars; None where fewer than two structures have such labels
    """
    from scipy.stats import spearmanr

    out = {}
    table = np.array([row[1:] for row in rows])
    for kind, (error, bar) in {"energy": table[:, ::2].T, "forces": table[:, 1::2].T}.items():
        there = ~np.isnan(error)
        error, bar = error[there], bar[there]
        if len(error) < 2:
            out[kind] = None
            continue
        size, predicted = (float(np.sqrt(np.mean(of**2))) for of in (error, bar))
        own = calibration(error, bar) if kind == "energy" else {"count": len(error), "rms": size, "predicted": predicted}
        out[kind] = own | {"rank": float(spearmanr(np.abs(error), bar)[0])}
    return out
