"""A strategy maps the levels of a config, cheapest first, each with its keys, and its section `train` to stages as a config would list them."""

import itertools

from mfmd.training.schema import LEARNED, Train

COMMITTEE = 4  # models whose mean prediction `auto` teaches to one
FINETUNE = 0.1  # of train.learning_rate, for a backbone that comes from a checkpoint


def _common(value):
    """Of the section `train` what strategies need: learning_rate and epochs."""
    section = value.get("train") if isinstance(value.get("train"), dict) else {}
    given = {key: section[key] for key in ("learning_rate", "epochs") if isinstance(section.get(key), (int, float))}
    return Train().model_copy(update=given)


def _labels(level, weights):
    return {level: {f"{kind}_weight": 0.0 for kind in weights}}


def _imported(levels):
    """The levels that are heads of the checkpoint."""
    return [name for name, level in levels.items() if level.get("from") is not None]


def _heads(levels, name, below=None):
    """How the head of a level begins that is new: a copy of that of a level below, or else of one of the checkpoint; of others nothing is said."""
    source = below if below is not None else next(iter(_imported(levels)), None)
    own = name in _imported(levels) or levels[name].get("delta_of") is not None
    return {} if own or source is None else {name: source}


def _chain(levels, train, *, frozen=False, low_forces=False, replay=False, newton=False):
    """Each level from the one before, its head a copy of that level's or (delta_of) the difference to it; the last by Gauss-Newton or not."""
    names, further = list(levels), FINETUNE if _imported(levels) else 0.5
    stages = [_first(levels, names[0], train)]
    for low, high in itertools.pairwise(names):
        learned = _labels(high, ["forces", "stress"] if low_forces else [])
        if replay:
            weights = {key: levels[names[0]].get(key, 1.0) for key in (f"{kind}_weight" for kind in LEARNED["gradient"])}
            learned = {names[0]: {key: 0.1 * w for key, w in weights.items() if isinstance(w, (int, float))}, **learned}
        stages.append(
            {
                "name": high,
                "levels": learned,
                "heads": _heads(levels, high, low),
                "backbone_rate": 0.0 if frozen else 1.0,
                "train": {"learning_rate": train.learning_rate * (1.0 if frozen else 0.1 if high == names[-1] else further)},
            }
        )
    if newton:
        stages[-1] |= {"fit": "gauss-newton"}
    return stages


def _first(levels, name, train):
    """The stage of the first level; from a checkpoint as any that goes on."""
    stage = {"name": name, "levels": {name: {}}}
    if _imported(levels):
        stage |= {"heads": _heads(levels, name), "train": {"learning_rate": FINETUNE * train.learning_rate}}
    return stage


def _together(levels, train):
    """All levels at once."""
    heads = {level: source for name in levels for level, source in _heads(levels, name).items()}
    slow = {"train": {"learning_rate": FINETUNE * train.learning_rate}} if _imported(levels) else {}
    return {"name": "multihead", "levels": {name: {} for name in levels}, "heads": heads, **slow}


def _ends(levels):
    names = list(levels)
    return {name: levels[name] for name in (names[0], names[-1])}


def _auto(levels, train):
    """All levels but the last together, then the last in several ways: what several such models, each with the last level by Gauss-Newton, give on
    average is taught to one; beside it a fine-tune by gradient and a head in closed form."""
    if _imported(levels):
        return _auto_from_checkpoint(levels, train)
    *lower, high = levels
    together = _lower(levels, lower)
    ways = _ways(levels, high, lower[-1], "lower-1", train)
    if levels[high].get("delta_of") is not None:  # a relative head starts at zero, from where Gauss-Newton leads nowhere
        return [{"name": "lower-1", **together}, *ways]
    stages, members = [], [f"{high}-{k}" for k in range(1, COMMITTEE + 1)]
    for k, member in enumerate(members, 1):
        stages.append({"name": f"lower-{k}", **together})
        stages.append({"name": member, "levels": {high: {}}, "heads": {high: lower[-1]}, "fit": "gauss-newton"})
    return [*stages, _taught(high, members, train), *ways]


def _lower(levels, lower):
    """A new backbone that learns some levels together."""
    return {
        "start": "new",
        "levels": {name: {} if name == lower[0] or "sampling" in levels[name] else {"sampling": 3.0} for name in lower},
        "heads": {name: f"delta {below}" for below, name in itertools.pairwise(lower) if levels[name].get("delta_of") is None},
    }


def _ways(levels, high, below, start, train):
    """The last level by gradient and, where it has no head yet, in closed form."""
    slow = {"learning_rate": 0.1 * train.learning_rate}
    ways = [{"name": f"{high}-gradient", "start": start, "levels": {high: {}}, "heads": _heads(levels, high, below), "train": slow}]
    if high not in _imported(levels):
        ways.append(
            {"name": f"{high}-delta", "start": start, "levels": {high: {}}, "heads": {high: f"delta {below}"}, "fit": "closed form"}
        )
    return ways


def _taught(high, members, train):
    """What the members predict on average is taught to the first, whether there are force labels or not."""
    slow = {"epochs": max(1, train.epochs // 2), "learning_rate": 0.15 * train.learning_rate}
    return {"name": high, "start": members[0], "levels": {high: {"forces_weight": 1.0}}, "teachers": members, "train": slow}


def _auto_from_checkpoint(levels, train):
    """The last level in several ways from a model of the file, which stands in the place of lower training where it validates better: after what it has
    learned from labels of its level and those above it, or as it is. It learns nothing of levels below its own."""
    *all_lower, high = levels
    lower = all_lower[min((all_lower.index(name) for name in _imported(levels) if name != high), default=len(all_lower)) :]
    below = lower[-1] if lower else None
    learned = {
        "name": "lower",
        "start": "checkpoint",
        "levels": {name: {} for name in lower},
        "heads": {level: source for low, name in itertools.pairwise(lower) for level, source in _heads(levels, name, low).items()},
        "train": {"learning_rate": FINETUNE * train.learning_rate},
    }
    stages = [learned, {"name": "lower-new", **_lower(levels, all_lower)}] if lower else []
    start = [*(stage["name"] for stage in stages), *(["checkpoint"] if below in (None, *_imported(levels)) else [])]
    newton = {"start": start, "levels": {high: {}}, "heads": _heads(levels, high, below), "fit": "gauss-newton"}
    ways = [{"name": f"{high}-newton", **newton}]
    if newton["heads"]:  # of levels with labels in common, the difference alone has no error of the lower one in it
        ways.insert(0, {"name": f"{high}-differences", **newton, "differences": True})
    ways = [] if levels[high].get("delta_of") is not None else ways
    return [*stages, *ways, *_ways(levels, high, below, start, train)]


def _deltas(levels, train):
    """The first level, then each further one in closed form, relative to the one before."""
    stages = [_first(levels, next(iter(levels)), train)]
    for low, high in itertools.pairwise(levels):
        if high in _imported(levels):
            stages.append(_first(levels, high, train))
        else:
            stages.append({"name": high, "levels": {high: {}}, "heads": {high: f"delta {low}"}, "fit": "closed form"})
    return stages


STRATEGIES = {
    "single": lambda levels, train: [_first(levels, list(levels)[-1], train)],
    "multihead": lambda levels, train: [_together(levels, train)],
    "finetune": lambda levels, train: _chain(_ends(levels), train),
    "finetune-readout": lambda levels, train: _chain(_ends(levels), train, frozen=True),
    "replay": lambda levels, train: _chain(_ends(levels), train, replay=True),
    "chain": _chain,
    "chain-newton": lambda levels, train: _chain(levels, train, newton=True),
    "low-forces-high-energies": lambda levels, train: _chain(levels, train, low_forces=True),
    "delta": _deltas,
    "auto": _auto,
    "multihead-finetune": lambda levels, train: [
        _together(levels, train),
        {"name": "finetune", "levels": {list(levels)[-1]: {}}, "train": {"learning_rate": 0.1 * train.learning_rate}},
    ],
    "multihead-newton": lambda levels, train: [
        _together(levels, train),
        {"name": "newton", "levels": {list(levels)[-1]: {}}, "fit": "gauss-newton"},
    ],
}


def stages_of(strategy, levels, value):
    """The stages a strategy stands for; value: the config as it was written."""
    return STRATEGIES[strategy](levels, _common(value))
