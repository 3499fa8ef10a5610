"""Which structures to label at which level, from a model, the labels it has learned and what labels cost."""

import os
import warnings
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from scipy.stats import gmean

from mfmd import Note, progress
from mfmd.evaluation import foresight
from mfmd.structures import identity
from mfmd.structures.record import Structure
from mfmd.suggest.features import SuggestError, collation, rows_of, weights_of
from mfmd.suggest.process import Pool, Process, fit_parts
from mfmd.training import kernel
from mfmd.training.start import header_of

PENALTY = 1e-5  # noise over the mean diagonal, before a Gauss-Newton stage has chosen one
FEWEST = 10  # labels from which the size of a level's part is found
MOST_FELT = 200  # targets whose forces stand for those of all
MOST_LEFT_OUT = 500  # labels of a level that are left out in turn for it


@dataclass
class Pick:
    structure: Structure
    level: str
    left: float  # of the predicted variance of the targets once this label is known, a share of what it is before the first; geometric mean of energies and forces
    halvings: float  # of that variance by this label
    seconds: float  # CPU-seconds; 1 where nothing says what a label costs
    score: float  # share that falls of the variance of energies, plus that of forces, over seconds
    # What its energy is predicted to differ by from the model, one standard deviation, eV; None where no label says how large errors are.
    error: float | None
    predicted: float | None  # eV, by the model; None where it has no head of the level


@dataclass
class Choice:
    picks: list[Pick]  # in the order in which they were chosen
    levels: list[str]  # all there are, cheapest first; the last is what the targets are predicted at
    penalty: float
    parts: list[float] | None  # eV² of each level, None where no label says how large errors are
    learned: dict[str, int]  # level: labels that were known before
    before: float | None  # mean error bar of the targets' energies, eV
    after: float | None
    # Of labels that were chosen before: how far they are from the prediction of then, and its error bar, eV.
    judged: list[tuple[float, float]]
    width: int | None  # of the sketch, None where the kernel is exact
    targets: int


def choose(
    path,
    candidates,
    levels,
    allowed,
    learned=(),
    held=(),
    targets=None,
    sources=None,
    cost=None,
    count=None,
    budget=np.inf,
    folder=None,
    workers=None,
):
    """The Choice of labels.

    Parameters
    ----------
    path : of the model file
    candidates, learned, targets : Structures that may be labelled, whose labels the model has learned, that are to be predicted (by default the candidates)
    held : Structures of validation and test, none of which is chosen
    levels : all there are, cheapest first; allowed : those that may be chosen
    sources : {level: the head of the model that it began as}
    cost : {level: (candidates,) CPU-seconds of a label}; by default each costs the same
    count, budget : at most so many labels and CPU-seconds
    folder : for what is computed of many structures: the same call goes on with it; None where there are few (features.MOST_EXACT)

    Raises
    ------
    SuggestError : an element that the model does not know, no candidate that has not its labels already, a level that no head stands for
    """
    header = header_of(path)
    heads = _heads(header, levels, sources or {})
    head = heads[max(heads)]
    _check_elements(header, head, path, (*candidates, *(targets or ())))
    known = {k: [n for n, s in enumerate(learned) if s.has_energy(level)] for k, level in enumerate(levels)}
    with_forces = {k: any(learned[n].labels[levels[k]].forces is not None for n in known[k]) for k in known}
    forces = any(with_forces[levels.index(level)] for level in allowed)
    elements = sorted({int(z) for s in (*candidates, *learned, *(targets or ())) for z in s.numbers})
    aimed_at = targets or candidates
    felt = [aimed_at[k] for k in np.unique(np.linspace(0, len(aimed_at) - 1, MOST_FELT).round().astype(int))]
    sets = [(candidates, forces), (learned, any(with_forces.values())), (felt, True)] + ([(targets, False)] if targets else [])
    found, width, diagonal = rows_of(str(path), head, sets, tuple(elements), folder, workers or os.cpu_count())
    rows, labels, pushed, aimed = *found[:3], found[-1] if targets else found[0]

    record = header["provenance"].get("gauss_newton") or {}
    penalty = record.get("penalty", PENALTY)
    parts, sure = _parts(
        levels,
        learned,
        known,
        labels,
        penalty,
        record,
        lambda chosen: residuals(weights_of(str(path), head).model, heads[min(heads)], chosen, elements),
    )
    process = Process(parts, rows.width, penalty * diagonal * np.cumsum(parts), _known(labels, learned, levels, known))
    counts = {levels.index(level): 1 + kernel.DIRECTIONS * with_forces[levels.index(level)] for level in allowed}
    costs = np.ones((len(candidates), len(levels)))
    for level, seconds in (cost or {}).items():
        costs[:, levels.index(level)] = seconds
    free = _free(candidates, learned, held, levels, allowed)
    if not free.any():
        raise SuggestError(
            f"every candidate has its labels of {', '.join(allowed)} already or is one of validation or test; give others, or another level with --levels"
        )
    before = _error_bar(process, aimed, aimed_at)
    pool = Pool(process, rows, counts, costs, free, aims(aimed, pushed))
    picks, totals, first = [], pool.totals.copy(), {level: pool.own[level][:, 0, 0].copy() for level in counts}
    most = int(free.sum()) if count is None else min(count, int(free.sum()))
    with progress.task("choosing", "labels", most) as task:
        while len(picks) < most and (best := pool.best(budget)) is not None:
            k, level, score = best
            before_it = pool.totals.copy()
            pool.take(k, level)
            budget -= costs[k, level]
            error = float(np.sqrt((first[level][k] + process.noise[level]) * len(candidates[k].numbers))) if sure else None
            left, halvings = float(gmean(pool.totals / totals)), float(np.mean(np.log2(before_it / pool.totals)))
            picks.append(Pick(candidates[k], levels[level], left, halvings, float(costs[k, level]), score, error, None))
            task.advance()
    if not picks:
        raise SuggestError("--budget: no label of a candidate costs so little; give more")
    if count is not None and len(picks) < count:
        warnings.warn(f"{len(picks)} labels are chosen, and not {count}: the candidates have no more", Note, stacklevel=2)
    after = _error_bar(process, aimed, aimed_at)
    _predict(picks, weights_of(str(path), head).model, [name for k, name in heads.items() if levels[k] == name])
    return Choice(
        picks, levels, penalty, list(parts) if sure else None, {levels[k]: len(of) for k, of in known.items()}, before if sure else None,
        after if sure else None, _judged(learned, levels), width, len(aimed_at),
    )  # fmt: skip


def _heads(header, levels, sources):
    """{level, an index: its head of the model, or that which it began as}"""
    names = [level["name"] for level in header["levels"]]
    found = {k: next((n for n in (level, sources.get(level)) if n in names), None) for k, level in enumerate(levels)}
    if not any(found.values()):
        raise SuggestError(
            f"--levels: the model's levels are {', '.join(names)}, and none of them is {' or '.join(levels)}; name one of them first"
        )
    return {k: name for k, name in found.items() if name}


def _check_elements(header, head, path, structures):
    known = set(next(level["elements"] for level in header["levels"] if level["name"] == head))
    for s in structures:
        if unknown := sorted({int(z) for z in s.numbers} - known):
            raise SuggestError(
                f"{s.source}: {', '.join(chemical_symbols[z] for z in unknown)} is not among the elements of level {head} of {path}; leave this structure out"
            )


def _free(candidates, learned, held, levels, allowed):
    """(candidates, levels) bool: labels that may be chosen, which are not there yet; of structures that are the same only the first."""
    there = [*held, *learned]
    with progress.task("comparing the structures"):
        first = identity.same([*there, *candidates])
    has = [set() for _ in first]
    for k, s in enumerate(there):
        has[first[k]] |= set(levels) if k < len(held) else s.labels.keys()
    out = np.zeros((len(candidates), len(levels)), bool)
    for n, k in enumerate(first[len(there) :]):
        for level in allowed if k < len(there) or k == len(there) + n else ():
            out[n, levels.index(level)] = level not in has[k]
    return out


def _known(labels, learned, levels, known):
    """{level: blocks of (rows, width) of its labels}, as Process takes them."""

    def blocks(level, of):
        for n in of:
            energy_and_forces = learned[n].labels[levels[level]].forces is not None
            yield labels[[n]][0, : None if energy_and_forces else 1]

    return {level: blocks(level, of) for level, of in known.items() if of}


def _parts(levels, learned, known, rows, penalty, record, left_of):
    """(levels,) eV² of the parts, and whether labels say it: Gauss-Newton's where it has found one, else the likeliest; left_of : see `residuals`."""
    parts = np.full(len(levels), np.nan)
    if record.get("level") in levels:
        parts[levels.index(record["level"])] = record["variance"]
    enough = [k for k, of in known.items() if len(of) >= FEWEST and np.isnan(parts[k])]
    if enough:
        chosen = [(n, k) for k in enough for n in known[k][:: -(-len(known[k]) // MOST_LEFT_OUT)]]
        own = rows[[n for n, _ in chosen]][:, 0]
        left = left_of([(learned[n], levels[k]) for n, k in chosen])
        with progress.task("leaving labels out"):
            parts[enough] = fit_parts(own @ own.T, np.array([enough.index(k) for _, k in chosen]), left, penalty)
    sure = bool(np.isfinite(parts).any())
    for k in np.flatnonzero(np.isnan(parts)):
        parts[k] = parts[k - 1] if k else np.nanmax(parts) if sure else 1.0
        if len(levels) > 1:
            warnings.warn(
                f"level {levels[k]} has fewer than {FEWEST} labels, which do not say how far it is from the others; taken is that it is "
                f"{'as far from the level below as that is from the one before' if k else 'as uncertain as the one above'}",
                Note,
                stacklevel=3,
            )
    return parts, sure


def residuals(model, head, chosen, elements):
    """(labels,) what a head leaves of the energies of (structure, level), eV over the root of atoms, but for what E0 and states account for, level by level."""
    structures = [s for s, _ in chosen]
    left = np.array([s.labels[level].energy for s, level in chosen])
    left -= kernel.predictions(model, structures, head, collation(model))
    root = 1 / np.sqrt([len(s.numbers) for s in structures])
    counts, left = root[:, None] * kernel.counts(structures, elements), root * left
    for level in {level for _, level in chosen}:
        own = np.array([of == level for _, of in chosen])
        left[own] -= counts[own] @ np.linalg.lstsq(counts[own], left[own], rcond=None)[0]
    return left


def aims(energies, forces):
    """Of energies and of forces, Rows of all targets and of some of them that stand for all, blocks of (rows, width), as Pool takes them."""
    return (block[:, 0] for _, block in energies.blocks(1)), (block[:, 1:].reshape(-1, block.shape[2]) for _, block in forces.blocks())


def _predict(picks, model, levels):
    """Put into picks what the model predicts of them, at these levels."""
    for level in levels:
        if own := [pick for pick in picks if pick.level == level]:
            energies = kernel.predictions(model, [pick.structure for pick in own], level, collation(model))
            for pick, energy in zip(own, energies, strict=True):
                pick.predicted = float(energy)


def _judged(learned, levels):
    """[(error, error bar)] eV of labels whose structure says what was predicted of them when they were chosen."""
    labels = [(s.info, (level, s.labels[level].energy)) for s in learned for level in levels if level in s.labels]
    return [pair for info, label in labels if label[1] is not None and (pair := foresight(info, label))]


def _error_bar(process, aims, structures):
    """Mean over structures of the standard deviation of a label of the highest level, eV."""
    top = len(process.noise) - 1
    matrix, out = process.between(top, top), []
    for some, block in aims.blocks(1):
        sizes = np.array([len(s.numbers) for s in structures[some]])
        out.append(np.sqrt((np.sum(block[:, 0] @ matrix * block[:, 0], axis=1) + process.noise[top]) * sizes))
    return float(np.mean(np.concatenate(out)))
