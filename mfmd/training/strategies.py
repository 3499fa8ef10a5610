"""A strategy maps the levels of a config, cheapest first, each with its keys, and its section `train` to stages as a config would list them."""

import itertools

from mfmd.training.schema import LEARNED, Train

COMMITTEE = 4  # models whose mean prediction `auto` teaches to one


def _common(value):
    """Of the section `train` what strategies need: learning_rate and epochs."""
    section = value.get("train") if isinstance(value.get("train"), dict) else {}
    given = {key: section[key] for key in ("learning_rate", "epochs") if isinstance(section.get(key), (int, float))}
    return Train().model_copy(update=given)


def _labels(level, weights):
    return {level: {f"{kind}_weight": 0.0 for kind in weights}}


def _chain(levels, train, *, frozen=False, low_forces=False, replay=False, newton=False):
    """Each level from the one before, its head a copy of that level's or (delta_of) the difference to it; the last by Gauss-Newton or not."""
    names = list(levels)
    stages = [{"name": names[0], "levels": {names[0]: {}}}]
    for low, high in itertools.pairwise(names):
        relative = levels[high].get("delta_of") is not None
        learned = _labels(high, ["forces", "stress"] if low_forces else [])
        if replay:
            weights = {key: levels[names[0]].get(key, 1.0) for key in (f"{kind}_weight" for kind in LEARNED["gradient"])}
            learned = {names[0]: {key: 0.1 * w for key, w in weights.items() if isinstance(w, (int, float))}, **learned}
        stages.append(
            {
                "name": high,
                "levels": learned,
                "heads": {} if relative else {high: low},
                "backbone_rate": 0.0 if frozen else 1.0,
                "train": {"learning_rate": train.learning_rate * (1.0 if frozen else 0.1 if high == names[-1] else 0.5)},
            }
        )
    if newton:
        stages[-1] |= {"fit": "gauss-newton"}
    return stages


def _ends(levels):
    names = list(levels)
    return {name: levels[name] for name in (names[0], names[-1])}


def _auto(levels, train):
    """All levels but the last together, then the last in several ways: what several such models, each with the last level by Gauss-Newton, give on
    average is taught to one; beside it a fine-tune by gradient and a head in closed form."""
    *lower, high = levels
    declared = {name: level.get("delta_of") for name, level in levels.items()}
    together = {
        "start": "new",
        "levels": {name: {} if name == lower[0] or "sampling" in levels[name] else {"sampling": 3.0} for name in lower},
        "heads": {name: f"delta {below}" for below, name in itertools.pairwise(lower) if not declared[name]},
    }
    slow = {"learning_rate": 0.1 * train.learning_rate}
    ways = [
        {
            "name": f"{high}-gradient",
            "start": "lower-1",
            "levels": {high: {}},
            "heads": {} if declared[high] else {high: lower[-1]},
            "train": slow,
        },
        {"name": f"{high}-delta", "start": "lower-1", "levels": {high: {}}, "heads": {high: f"delta {lower[-1]}"}, "fit": "closed form"},
    ]
    if declared[high]:  # a relative head starts at zero, from where Gauss-Newton leads nowhere
        return [{"name": "lower-1", **together}, *ways]
    stages, members = [], [f"{high}-{k}" for k in range(1, COMMITTEE + 1)]
    for k, member in enumerate(members, 1):
        stages.append({"name": f"lower-{k}", **together})
        stages.append({"name": member, "levels": {high: {}}, "heads": {high: lower[-1]}, "fit": "gauss-newton"})
    taught = {"start": members[0], "levels": {high: {"forces_weight": 1.0}}, "teachers": members}  # whether there are such labels or not
    taught["train"] = {"epochs": max(1, train.epochs // 2), "learning_rate": 0.15 * train.learning_rate}
    return [*stages, {"name": high, **taught}, *ways]


def _deltas(levels, train):
    """The first level, then each further one in closed form, relative to the one before."""
    stages = [{"name": next(iter(levels)), "levels": {next(iter(levels)): {}}}]
    for low, high in itertools.pairwise(levels):
        stages.append({"name": high, "levels": {high: {}}, "heads": {high: f"delta {low}"}, "fit": "closed form"})
    return stages


STRATEGIES = {
    "single": lambda levels, train: [{"name": list(levels)[-1], "levels": {list(levels)[-1]: {}}}],
    "multihead": lambda levels, train: [{"name": "multihead", "levels": {n: {} for n in levels}}],
    "finetune": lambda levels, train: _chain(_ends(levels), train),
    "finetune-readout": lambda levels, train: _chain(_ends(levels), train, frozen=True),
    "replay": lambda levels, train: _chain(_ends(levels), train, replay=True),
    "chain": _chain,
    "chain-newton": lambda levels, train: _chain(levels, train, newton=True),
    "low-forces-high-energies": lambda levels, train: _chain(levels, train, low_forces=True),
    "delta": _deltas,
    "auto": _auto,
    "multihead-finetune": lambda levels, train: [
        {"name": "multihead", "levels": {n: {} for n in levels}},
        {"name": "finetune", "levels": {list(levels)[-1]: {}}, "train": {"learning_rate": 0.1 * train.learning_rate}},
    ],
    "multihead-newton": lambda levels, train: [
        {"name": "multihead", "levels": {n: {} for n in levels}},
        {"name": "newton", "levels": {list(levels)[-1]: {}}, "fit": "gauss-newton"},
    ],
}


def stages_of(strategy, levels, value):
    """The stages a strategy stands for; value: the config as it was written."""
    return STRATEGIES[strategy](levels, _common(value))
