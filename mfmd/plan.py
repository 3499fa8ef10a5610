"""The config of a training run: its schema, and how a YAML file and key=value overrides become one.

Every key is listed here, with its unit and its default; a key that is not is an error.
"""

import difflib
import itertools
import json
import os
import typing
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from mfmd import Error, units


class ConfigError(Error):
    """The config cannot be used; names the file, the key, what was found and what is allowed."""


class Section(BaseModel):
    """A part of a config: a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Paths = list[Path]


class Level(Section):
    """One level of theory: the keys of its labels, how much they count, how its head begins."""

    energy: str = ""  # key in the file; by default energy_<level>, forces_<level>, stress_<level>
    forces: str = ""
    stress: str = ""
    energy_weight: NotNegative = 1.0  # of the energy term of the loss; 0 leaves the label out
    forces_weight: NotNegative = 1.0
    stress_weight: NotNegative = 1.0
    sampling: Positive = 1.0  # how often an epoch shows a structure with a label of this level (the largest of its levels)
    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] | None = None  # training labels used: a share, or how many
    e0: Literal["fit", "atoms"] = "fit"  # atomic reference energies: least squares over compositions, or those of data.atoms
    delta_of: str | None = None  # an earlier level; the head is a difference to it and starts at zero


class Data(Section):
    train: Paths
    val: Paths | Annotated[float, Field(gt=0, lt=1)] | None = None  # files, or a fraction of train; by default 0.1, or what split_key says
    test: Paths | Annotated[float, Field(gt=0, lt=1)] = []
    split_key: str | None = None  # an info key that says train, val or test for the structures of `train`
    split_seed: int = 0  # of the fractions
    atoms: Path | None = None  # isolated-atom energies, JSON
    energy_unit: Literal[tuple(units.ENERGY)] = "eV"
    length_unit: Literal[tuple(units.LENGTH)] = "Å"
    stream: bool = False  # for sets larger than memory: structures are packed into out/data once and read from there

    @field_validator("train", "val", "test", mode="before")
    @classmethod
    def _one_file(cls, value):
        return [value] if isinstance(value, (str, Path)) else value


SIZES = {  # docs/speed.md has the speed and the accuracy of each
    "small": {"channels": 32, "layers": 1},
    "medium": {"channels": 64, "layers": 1},
    "large": {"channels": 128, "layers": 2},
}


class Backbone(Section):
    """What the levels share. `backbone: large` is short for `backbone: {size: large}`; a size sets what is not set beside it."""

    size: Literal[tuple(SIZES)] = "medium"
    channels: Annotated[int, Field(ge=16, le=256, multiple_of=16)]
    layers: Annotated[int, Field(ge=0, le=8)]
    cutoff: Annotated[float, Field(gt=1, lt=20)] = 5.0  # Å
    rank: Annotated[int, Field(ge=0, le=2)] = 2  # highest tensor rank kept
    radial_functions: Annotated[int, Field(ge=4, le=512)] = 32
    checkpoint: Path | None = None  # of torchmd-net's TensorNet, whose weights a new backbone starts with

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, value):
        value = {"size": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        size = value.get("size", "medium")
        return {**SIZES[size if isinstance(size, str) and size in SIZES else "medium"], **value}  # an unknown one is refused by its type


class Train(Section):
    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 32  # structures
    learning_rate: Positive = 2e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the run in which the learning rate rises; it then falls as a cosine
    weight_decay: NotNegative = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99  # decay of the averaged weights, which are validated and exported
    clip: Positive = 10.0  # norm of the gradient
    patience: Annotated[int, Field(ge=1)] = 100  # validations without an improvement of `monitor`
    validate_every: Annotated[int, Field(ge=1)] = 1  # epochs
    monitor: str = ""  # "<level>.<energy|forces|stress>" whose validation MAE decides; by default the last level's energy
    precision: Literal["single", "double"] = "single"


# ------------------------------------------------------------------------------------------------ strategies
#
# A strategy maps the levels of a config, cheapest first, each with its keys, and its section `train` to stages as a config would list them.

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


class StageLevel(Section):
    """What a stage learns of a level; what is not set is as under `levels`."""

    energy_weight: NotNegative | None = None
    forces_weight: NotNegative | None = None
    stress_weight: NotNegative | None = None
    sampling: Positive | None = None


LEARNED = {"gradient": ("energy", "forces", "stress"), "closed form": ("energy", "forces"), "gauss-newton": ("energy",)}  # labels of a fit


class Stage(Section):
    """One step of training: which labels, from what, what may move."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]  # its folder in `out`
    levels: dict[str, StageLevel]  # levels learned
    start: str | list[str] = ""  # a stage before it, the best of several, or "new"; by default the stage before, and the first starts new
    heads: dict[str, str] = {}  # how the head of a level begins that has none yet: "new", a level whose head is copied, or "delta <level>"
    # fit.py has the other two: a level's new head on a frozen backbone, and all weight matrices to a level's energies
    fit: Literal["gradient", "closed form", "gauss-newton"] = "gradient"
    teachers: list[
        str
    ] = []  # stages before; their mean energies and forces on all training structures are learned instead of the level's labels
    backbone_rate: NotNegative = 1.0  # times learning_rate; 0 freezes it
    heads_rate: NotNegative = 1.0  # likewise, of the heads of the stage's levels; all other heads are frozen
    train: Train = Train()  # what is not set is as in the section `train`


def _filled(stage, common):
    """A stage with what the section `train` says of all; its `monitor` holds for the stages that learn its level."""
    levels = stage.get("levels")
    if isinstance(levels, dict):
        stage = {**stage, "levels": {k: {} if v is None else v for k, v in levels.items()}}
        if str(common.get("monitor", "")).partition(".")[0] not in levels:
            common = {k: v for k, v in common.items() if k != "monitor"}
    return {**stage, "train": {**common, **(stage.get("train") or {})}}


class Config(Section):
    out: Path  # folder of the run
    seed: int = 0
    resume: bool = False  # go on from the last checkpoint in `out`
    data: Data
    levels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Level]  # cheapest first
    backbone: Backbone = Backbone.model_validate({})
    train: Train = Train()
    heads_per_level: Annotated[int, Field(ge=1, le=8)] = 1  # of new heads; several are an ensemble, whose spread gives error bars
    strategy: Literal[tuple(STRATEGIES)] | None = None  # a name that stands for stages; by default multihead
    stages: list[Stage] = []  # or the stages themselves
    choose: list[str] = []  # the best of these stages makes the model file; by default the last stage

    @field_validator("levels", mode="before")
    @classmethod
    def _empty_level(cls, value):
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value):
        """A strategy becomes its stages; a stage's `train` is filled up from the section of that name."""
        if not isinstance(value, dict) or not isinstance(value.get("levels"), dict):
            return value
        strategy, stages = value.get("strategy"), value.get("stages")
        if strategy is not None and stages:
            raise ValueError("stages: a strategy stands for stages of its own; give one of the two")
        if not stages:
            strategy = strategy or "multihead"
            if strategy not in STRATEGIES:
                return value  # refused by its type
            levels = {name: level if isinstance(level, dict) else {} for name, level in value["levels"].items()}
            if len(levels) < 2 and (strategy not in ("single", "multihead") or not levels):
                raise ValueError(f"levels: {strategy} goes from level to level, and there is {', '.join(map(str, levels)) or 'none'}")
            stages = STRATEGIES[strategy](levels, _common(value))
            if strategy == "auto":
                # Not the teachers: by few validation energies the best of several alike is the luckiest.
                teachers = {name for s in stages for name in s.get("teachers", [])}
                value = {**value, "choose": [s["name"] for s in stages if list(levels)[-1] in s["levels"] and s["name"] not in teachers]}
        common = value.get("train") or {}
        if isinstance(common, dict) and isinstance(stages, list):
            stages = [_filled(stage, common) if isinstance(stage, dict) else stage for stage in stages]
        return {**value, "strategy": strategy, "stages": stages}

    @model_validator(mode="after")
    def _levels_fit(self):
        if not self.levels:
            raise ValueError("levels: at least one is needed")
        seen = []
        for name, level in self.levels.items():
            if level.delta_of is not None and level.delta_of not in seen:
                raise ValueError(f"levels.{name}.delta_of: {level.delta_of!r} is not a level listed before it; found before it: {seen}")
            for kind in ("energy", "forces", "stress"):
                setattr(level, kind, getattr(level, kind) or f"{kind}_{name}")
            seen.append(name)
        if self.data.split_key is None:
            self.data.val = 0.1 if self.data.val is None else self.data.val
        elif isinstance(self.data.val, float) or isinstance(self.data.test, float):
            raise ValueError("data.val and data.test: with a split_key they may name more files, but not fractions")
        _train_fits("train", self.train, self.levels)
        self._stages_fit()
        return self

    def _stages_fit(self):
        names, known = [], {}
        for stage in self.stages:
            where = f"stages.{stage.name}"
            if stage.name in names or stage.name == "new":
                raise ValueError(f"{where}: each stage needs a name of its own other than new")
            stage.start = stage.start or (names[-1] if names else "new")
            starts = [stage.start] if isinstance(stage.start, str) else stage.start
            for start in starts:
                if start not in names and starts != ["new"]:
                    raise ValueError(f"{where}.start: {start!r} is not a stage before it; found before it: {names}, and new")
            before = [n for n in self.levels if all(n in known.get(start, []) for start in starts)]
            if not stage.levels:
                raise ValueError(f"{where}.levels: a stage learns at least one level")
            for level in [*stage.levels, *stage.heads]:
                if level not in self.levels:
                    raise ValueError(f"{where}: there is no level {level!r}; there are {', '.join(self.levels)}")
            after = [n for n in self.levels if n in before or n in stage.levels]
            for level in stage.levels:
                if level in before and level in stage.heads:
                    raise ValueError(f"{where}.heads.{level}: the level has a head already, from a stage before")
                if level not in before:
                    declared = self.levels[level].delta_of
                    how = stage.heads.setdefault(level, f"delta {declared}" if declared else "new")
                    parent = how.removeprefix("delta ") if how.startswith("delta ") else None
                    if parent is not None and parent not in after[: after.index(level)]:
                        raise ValueError(f"{where}.heads.{level}: {level} is relative to {parent}, which no stage up to here has learned")
                    if parent is None and how != "new" and how not in before:
                        raise ValueError(
                            f"{where}.heads.{level}: {how!r} has no head to copy; there are {', '.join(before) or 'none'}, new, and delta <level>"
                        )
                    if parent is None and declared is not None:
                        raise ValueError(f"{where}.heads.{level}: levels.{level}.delta_of says {declared}; a relative head starts at zero")
            if missing := [level for level in stage.heads if level not in stage.levels]:
                raise ValueError(f"{where}.heads: {', '.join(missing)} is not learned in this stage")
            if stage.backbone_rate == 0 and stage.heads_rate == 0:
                raise ValueError(f"{where}: backbone_rate and heads_rate are both 0; nothing would be learned")
            if stage.fit == "closed form":
                how = list(stage.heads.values())
                if len(stage.levels) > 1 or len(how) != 1 or not (how[0] == "new" or how[0].startswith("delta ")) or starts == ["new"]:
                    raise ValueError(
                        f"{where}.fit: closed form solves one new head on a backbone that is trained; give it one level and a start"
                    )
                stage.backbone_rate = 0.0
            if stage.fit == "gauss-newton" and (
                len(stage.levels) > 1 or starts == ["new"] or any(how == "new" or how.startswith("delta ") for how in stage.heads.values())
            ):
                raise ValueError(f"{where}.fit: gauss-newton moves what is trained; give it one level, a start, and a head to copy")
            for teacher in stage.teachers:
                if stage.fit != "gradient" or len(stage.levels) > 1 or not set(stage.levels) <= set(known.get(teacher, [])):
                    raise ValueError(
                        f"{where}.teachers: they teach one level, by gradient, that each has a head of; {teacher!r} "
                        f"{'has ' + ', '.join(known[teacher]) if teacher in known else 'is not a stage before it'}"
                    )
            if stage.teachers and self.data.stream:
                raise ValueError(f"{where}.teachers: what they predict is held in memory; not with data.stream")
            if stage.backbone_rate == 0 and stage.start == "new":
                raise ValueError(f"{where}.backbone_rate: a new backbone cannot be frozen; start from a stage that has trained it")
            for level, own in stage.levels.items():
                for key in type(own).model_fields:
                    setattr(own, key, getattr(self.levels[level], key) if getattr(own, key) is None else getattr(own, key))
                if not any(getattr(own, f"{kind}_weight") for kind in ("energy", "forces", "stress")):
                    raise ValueError(
                        f"{where}.levels.{level}: all its weights are 0, so nothing of it would be learned; leave the level out"
                    )
            _train_fits(f"{where}.train", stage.train, stage.levels)
            names.append(stage.name)
            known[stage.name] = after
        for name in self.choose:
            if name not in names:
                raise ValueError(f"choose: {name!r} is not a stage; there are {', '.join(names)}")
        self.choose = self.choose or names[-1:]


def _train_fits(where, train, levels):
    if train.validate_every > train.epochs:
        raise ValueError(
            f"{where}.validate_every: {train.validate_every} is more than {where}.epochs, {train.epochs}; no validation would be run"
        )
    train.monitor = train.monitor or f"{list(levels)[-1]}.energy"
    level, _, kind = train.monitor.partition(".")
    if level not in levels or kind not in ("energy", "forces", "stress"):
        allowed = ", ".join(f"{n}.energy, {n}.forces" for n in levels)
        raise ValueError(f"{where}.monitor: {train.monitor!r} is not one of {allowed}")


def describe(config):
    """The plan as lines of text: what `mfmd-train --show-plan` prints."""
    lines = [f"strategy {config.strategy}" if config.strategy else "stages of the config"]
    for k, stage in enumerate(config.stages, 1):
        lines.append(f"{k}. {stage.name}: {'a new backbone' if stage.start == 'new' else f'from {_either(stage.start)}'}")
        for level, own in stage.levels.items():
            kinds = LEARNED[stage.fit]
            learned = [k for k in kinds if getattr(own, f"{k}_weight")]
            labels = [f"{kind} × {getattr(own, f'{kind}_weight'):g}" for kind in learned]
            kept = "" if config.levels[level].keep is None else f", {config.levels[level].keep:g} of its labels kept"
            lines.append(
                f"   {level}: {', '.join(labels) or 'no labels'}; sampled {own.sampling:g} ×{kept}; {_beginning(stage.heads.get(level))}"
            )
        if stage.fit == "closed form":
            lines.append("   the head in closed form, on a frozen backbone, with error bars")
            continue
        if stage.fit == "gauss-newton":
            lines.append("   all weight matrices by Gauss-Newton steps, as near as can be to where they start")
            continue
        if stage.teachers:
            lines.append(f"   learned are the mean energies and forces of {', '.join(stage.teachers)} on all training structures")
        t = stage.train
        rates = [f"{factor * t.learning_rate:g}" if factor else "frozen" for factor in (stage.backbone_rate, stage.heads_rate)]
        lines.append(
            f"   {t.epochs} epochs of batches of {t.batch_size}; learning rate of the backbone {rates[0]}, "
            f"of the heads {rates[1]}; best by the validation MAE of {t.monitor}"
        )
    if len(config.choose) > 1:
        lines.append(f"the model file is that of {_either(config.choose)}")
    return lines


def _beginning(how):
    """How a head begins, in words."""
    if how is None:
        return "its head goes on"
    if how == "new":
        return "new head"
    return f"relative to {how.removeprefix('delta ')}, from zero" if how.startswith("delta ") else f"head copied from {how}"


def _either(stages):
    """Of several stages the first, unless the validation error of another is lower by a tenth (train.best_of)."""
    return stages if isinstance(stages, str) else f"the best of {', '.join(stages)}"


def load(path, overrides=(), schema=Config):
    """The Config (or another schema) of a YAML file with `key=value` overrides, such as "train.epochs=10".

    Raises
    ------
    ConfigError : the file is missing or no YAML, a key is unknown or its value not allowed.
    """
    try:
        tree = OmegaConf.load(path)
        if not OmegaConf.is_dict(tree):
            raise ConfigError(f"{path}: a config is a mapping of keys ({', '.join(schema.model_fields)}), and this file holds none")
        for override in overrides:
            key, sign, _ = override.partition("=")
            if not sign or not key:
                raise ConfigError(f"{override!r} is not an override; write key=value, such as train.epochs=10")
            OmegaConf.update(tree, _numbered(tree, key), OmegaConf.select(OmegaConf.from_dotlist([override]), key))
        tree = OmegaConf.to_container(tree, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML config ({' '.join(str(error).split())})") from None
    return parse(tree, path, schema)


def write_json(path, content):
    """Write what a run began with, all of it or nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    os.replace(partial, path)


def _numbered(tree, key):
    """The key of an override, in which a stage may be named."""
    section, _, rest = key.partition(".")
    name, _, rest = rest.partition(".")
    if section != "stages" or not name or name.isdigit() or not OmegaConf.is_list(tree.get("stages")):
        return key
    names = [stage.get("name") if OmegaConf.is_dict(stage) else stage for stage in tree.stages]
    if name not in names:
        raise ConfigError(f"{key}: there is no stage {name!r} in the config; there are {', '.join(map(str, names))}")
    return ".".join(part for part in (section, str(names.index(name)), rest) if part)


def parse(tree, origin, schema=Config):
    """The Config (or another schema) of nested dicts; `origin` names them in messages. ConfigError as in `load`."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        common = [(e["loc"], e["input"]) for e in found if e["loc"][:1] == ("train",)]  # what every stage has taken over
        found = [e for e in found if e["loc"][:1] != ("stages",) or (e["loc"][2:], e["input"]) not in common]
        raise ConfigError("; ".join(f"{origin}: {_sentence(e, schema)}" for e in found)) from None


def _sentence(error, schema):
    """One pydantic error: the key, what was found, what is allowed."""
    where = [
        str(part)
        for part in error["loc"]
        if "[" not in str(part) and str(part) not in ("constrained-float", "constrained-int", "float", "int")
    ]
    key = ".".join(where)
    if error["type"] == "extra_forbidden":
        allowed = _keys(where[:-1], schema)
        close = difflib.get_close_matches(where[-1], allowed, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{key}: unknown key{hint} (allowed here: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{key}: this key is required"
    if error["type"] == "value_error":
        return ".".join([*where, str(error["ctx"]["error"])])
    return f"{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(where, schema):
    """Keys allowed in the section at `where`; names and numbers on the way that are no key lead into a mapping or a list."""
    for part in where:
        if part in schema.model_fields:
            schema = next(t for t in _types(schema.model_fields[part].annotation) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(schema.model_fields)


def _types(annotation):
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _types(argument)
