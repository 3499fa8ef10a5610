"""The plan of a training run: its config, in which a strategy has become stages, each checked against those before it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

import mfmd.config
from mfmd.config import HomePath, Section
from mfmd.structures.record import SPLITS
from mfmd.training.schema import LEARNED, Backbone, Data, Level, Stage, Train, header_of
from mfmd.training.strategies import STRATEGIES, stages_of


def _filled(stage, common):
    """A stage with what the section `train` says of all; its `monitor` holds for the stages that learn its level."""
    levels = stage.get("levels")
    if isinstance(levels, dict):
        stage = {**stage, "levels": {k: {} if v is None else v for k, v in levels.items()}}
        if str(common.get("monitor", "")).partition(".")[0] not in levels:
            common = {k: v for k, v in common.items() if k != "monitor"}
    own = stage.get("train") or {}
    return {**stage, "train": {**common, **own} if isinstance(own, dict) else own}


class Config(Section):
    out: HomePath  # folder of the run
    seed: int = 0  # of new weights and of the order of structures
    resume: bool = False  # go on from the last checkpoint in `out`
    data: Data  # the files of labels
    levels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Level]  # cheapest first
    backbone: Backbone = Backbone.model_validate({})  # the network; or one of the sizes small, medium and large
    train: Train = Train()  # of all stages that do not say otherwise
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
            stages = stages_of(strategy, levels, value)
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
            by_level = isinstance(self.data.train, dict)
            for kind in ("energy", "forces", "stress", "virial"):
                key = getattr(level, kind) or (kind if by_level else f"{kind}_{name}")
                other = next((n for n in seen if getattr(self.levels[n], kind) == key), None)
                if other and not by_level and key != "-":
                    raise ValueError(
                        f"levels.{name}.{kind}: {key!r} is the key of levels.{other} too, so that each would learn the labels of {other} and {name}; "
                        f"where each has files of its own, name them by level: data.train: {{{other}: [...], {name}: [...]}}"
                    )
                setattr(level, kind, key)
            seen.append(name)
        if self.data.split_key is None:
            self.data.val = 0.1 if self.data.val is None else self.data.val
        elif isinstance(self.data.val, float) or isinstance(self.data.test, float):
            raise ValueError("data.val and data.test: with a split_key they may name more files, but not fractions")
        for split in SPLITS:
            for _, level in self.data.files(split):
                if level is not None and level not in self.levels:
                    raise ValueError(f"data.{split}: there is no level {level!r}; there are {', '.join(self.levels)}")
        if self.data.stream and isinstance(self.data.train, dict):
            raise ValueError(
                "data.stream: structures on disk are not put together from files by level; write one file, or leave out stream"
            )
        _train_fits("train", self.train, self.levels)
        self._imported_fit()
        self._stages_fit()
        return self

    @property
    def imported(self):
        """{level: the head of the checkpoint that is its}"""
        return {name: level.from_ for name, level in self.levels.items() if level.from_ is not None}

    def _imported_fit(self):
        path = self.backbone.checkpoint
        if path is None:
            for name in self.imported:
                raise ValueError(f"levels.{name}.from: there is no backbone.checkpoint that it could come from")
            return
        heads, level_of = {head["name"]: head for head in header_of(path)["levels"]}, {}
        for name, source in self.imported.items():
            level, where = self.levels[name], f"levels.{name}"
            if source not in heads:
                raise ValueError(f"{where}.from: {path} has no head {source!r}; it has {', '.join(heads)}")
            if level.e0 is not None:
                raise ValueError(f"{where}.e0: its reference energies come with the head {source} of {path}; leave it out")
            below = heads[source]["delta_of"]
            if below is not None and below not in level_of:
                raise ValueError(
                    f"{where}.from: {source} of {path} is the difference to its head {below}; list a level with from: {below} before {name}"
                )
            if level.delta_of not in (None, level_of.get(below)):
                raise ValueError(
                    f"{where}.delta_of: {source} of {path} is {'no difference' if below is None else f'one to {below}'}; leave it out"
                )
            level.delta_of = level_of.get(below)
            level_of[source] = name

    def _stages_fit(self):
        first = "new" if self.backbone.checkpoint is None else "checkpoint"
        names, known = ([], {}) if first == "new" else ([first], {first: list(self.imported)})
        for stage in self.stages:
            where = f"stages.{stage.name}"
            if stage.name in names or stage.name in ("new", "checkpoint"):
                raise ValueError(f"{where}: each stage needs a name of its own other than new and checkpoint")
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
                declared = ", ".join(f"levels.{n}.delta_of" for n in stage.levels if self.levels[n].delta_of) or "no head"
                raise ValueError(
                    f"{where}.fit: gauss-newton moves what is trained; give it one level, a start, and a head to copy (there is {declared})"
                )
            if stage.differences and (stage.fit != "gauss-newton" or not stage.heads):
                raise ValueError(
                    f"{where}.differences: of gauss-newton, to the level whose head is copied; give it fit: gauss-newton and heads"
                )
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
            for key in ("device", "precision"):
                if getattr(stage.train, key) != getattr(self.train, key):
                    raise ValueError(f"{where}.train.{key}: it is the same for all stages; set train.{key}")
            names.append(stage.name)
            known[stage.name] = after
        begun = [how for stage in self.stages for how in stage.heads.values() if stage.fit == "gradient"]
        if self.heads_per_level > 1 and not any(how == "new" or how.startswith("delta ") for how in begun):
            raise ValueError(
                f"heads_per_level: {self.heads_per_level} is of new heads, and no stage of this plan begins one by gradient; leave it out, or give a "
                "stage heads: {<level>: new}"
            )
        names = [stage.name for stage in self.stages]
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


def load(path, overrides=()):
    """The Config of a YAML file with `key=value` overrides, such as "train.epochs=10". ConfigError as in `config.load`."""
    return mfmd.config.load(path, Config, overrides)


def parse(tree, origin):
    """The Config of nested dicts; `origin` names them in messages. ConfigError as in `config.load`."""
    return mfmd.config.parse(tree, origin, Config)


def describe(config):
    """The plan as lines of text: what `mfmd-train --show-plan` prints."""
    lines = [f"strategy {config.strategy}" if config.strategy else "stages of the config"]
    if config.backbone.checkpoint is not None:
        heads = "".join(f"; its head {source} is level {level}" for level, source in config.imported.items())
        lines.append(f"checkpoint: {config.backbone.checkpoint}{heads}")
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
            lines.append("   all weight matrices by Gauss-Newton steps, as near as can be to where they start, with error bars")
            if stage.differences:
                lines.append(f"   learned is the difference to {next(iter(stage.heads.values()))} where a structure has labels of both")
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


def learned(config, counts):
    """Lines of text: how many labels each stage learns, and which stages are skipped; counts: of the training structures, as reading.count_labels
    gives them."""
    words = {"energy": "energies", "forces": "forces", "stress": "stresses"}
    for stage in config.stages:
        parts, unlabelled = [], [level for level in stage.levels if not any(counts[level].values())]
        if unlabelled and not stage.teachers:
            rest = [level for level in stage.levels if level not in unlabelled] if stage.start != "new" else []
            skipped = "is left out" if stage.start == "new" else f"is skipped, and is what it starts from, {_either(stage.start)}"
            what = f"learns {', '.join(rest)} alone" if rest else skipped
            yield f"stage {stage.name} {what}: there are no training labels of {', '.join(unlabelled)}"
            if not rest:
                continue
        for level, own in stage.levels.items():
            if level in unlabelled:
                continue
            used = [
                f"{counts[level][kind]} {words[kind]}"
                for kind in LEARNED[stage.fit]
                if getattr(own, f"{kind}_weight") and counts[level][kind]
            ]
            parts.append(f"{level} ({', '.join(used)})")
        source = f"from {', '.join(stage.teachers)}" if stage.teachers else ", ".join(parts)
        yield f"stage {stage.name} learns {source}"


def _beginning(how):
    """How a head begins, in words."""
    if how is None:
        return "its head goes on"
    if how == "new":
        return "new head"
    return f"relative to {how.removeprefix('delta ')}, from zero" if how.startswith("delta ") else f"head copied from {how}"


def _either(stages):
    """Of several stages the first, unless the validation error of another is lower by a tenth (stages.best_of)."""
    stages = [stages] if isinstance(stages, str) else stages
    return stages[0] if len(stages) == 1 else f"the best of {', '.join(stages)}"
