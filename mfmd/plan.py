"""The config of a training run: its schema, and how a YAML file and key=value overrides become one.

Every key is listed here, with its unit and its default; a key that is not is an error.
"""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from mfmd import Error, units


class ConfigError(Error):
    """The config cannot be used; names the file, the key, what was found and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Paths = list[Path]


class Level(_Section):
    """One level of theory: the keys of its labels, how much they count, how its head begins."""

    energy: str = ""  # key in the file; by default energy_<level>, forces_<level>, stress_<level>
    forces: str = ""
    stress: str = ""
    energy_weight: NotNegative = 1.0  # of the energy term of the loss; 0 leaves the label out
    forces_weight: NotNegative = 1.0
    stress_weight: NotNegative = 1.0
    sampling: Positive = 1.0  # how often an epoch shows a structure with a label of this level (the largest of its levels)
    e0: Literal["fit", "atoms"] = "fit"  # atomic reference energies: least squares over compositions, or those of data.atoms
    delta_of: str | None = None  # an earlier level; the head is a difference to it and starts at zero


class Data(_Section):
    train: Paths
    val: Paths | Annotated[float, Field(gt=0, lt=1)] | None = None  # files, or a fraction of train; by default 0.1, or what split_key says
    test: Paths | Annotated[float, Field(gt=0, lt=1)] = []
    split_key: str | None = None  # an info key that says train, val or test for the structures of `train`
    split_seed: int = 0  # of the fractions
    atoms: Path | None = None  # isolated-atom energies, JSON
    energy_unit: Literal[tuple(units.ENERGY)] = "eV"
    length_unit: Literal[tuple(units.LENGTH)] = "Å"

    @field_validator("train", "val", "test", mode="before")
    @classmethod
    def _one_file(cls, value):
        return [value] if isinstance(value, (str, Path)) else value


SIZES = {  # docs/speed.md has the speed and the accuracy of each
    "small": {"channels": 32, "layers": 1},
    "medium": {"channels": 64, "layers": 1},
    "large": {"channels": 128, "layers": 2},
}


class Backbone(_Section):
    """What the levels share. `backbone: large` is short for `backbone: {size: large}`; a size sets what is not set beside it."""

    size: Literal[tuple(SIZES)] = "medium"
    channels: Annotated[int, Field(ge=16, le=256, multiple_of=16)]
    layers: Annotated[int, Field(ge=0, le=8)]
    cutoff: Annotated[float, Field(gt=1, lt=20)] = 5.0  # Å
    rank: Annotated[int, Field(ge=0, le=2)] = 2  # highest tensor rank kept
    radial_functions: Annotated[int, Field(ge=4, le=512)] = 32

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, value):
        value = {"size": value} if isinstance(value, str) else value
        return {**SIZES.get(value.get("size", "medium"), {}), **value} if isinstance(value, dict) else value


class Train(_Section):
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


class Config(_Section):
    out: Path  # folder of the run
    seed: int = 0
    resume: bool = False  # go on from the last checkpoint in `out`
    data: Data
    levels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Level]  # cheapest first
    backbone: Backbone = Backbone.model_validate({})
    train: Train = Train()

    @field_validator("levels", mode="before")
    @classmethod
    def _empty_level(cls, value):
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

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
        if self.train.validate_every > self.train.epochs:
            raise ValueError(
                f"train.validate_every: {self.train.validate_every} is more than train.epochs, {self.train.epochs}; no validation would be run"
            )
        self.train.monitor = self.train.monitor or f"{seen[-1]}.energy"
        level, _, kind = self.train.monitor.partition(".")
        if level not in self.levels or kind not in ("energy", "forces", "stress"):
            allowed = ", ".join(f"{n}.energy, {n}.forces" for n in seen)
            raise ValueError(f"train.monitor: {self.train.monitor!r} is not one of {allowed}")
        return self


def load(path, overrides=()):
    """The Config of a YAML file with `key=value` overrides, such as "train.epochs=10".

    Raises
    ------
    ConfigError : the file is missing or no YAML, a key is unknown or its value not allowed.
    """
    try:
        tree = OmegaConf.load(path)
        if not OmegaConf.is_dict(tree):
            raise ConfigError(f"{path}: a config is a mapping of keys ({', '.join(Config.model_fields)}), and this file holds none")
        for override in overrides:
            key, sign, _ = override.partition("=")
            if not sign or not key:
                raise ConfigError(f"{override!r} is not an override; write key=value, such as train.epochs=10")
            OmegaConf.update(tree, key, OmegaConf.select(OmegaConf.from_dotlist([override]), key))
        tree = OmegaConf.to_container(tree, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML config ({' '.join(str(error).split())})") from None
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{path}: {_sentence(e)}" for e in error.errors())) from None


def _sentence(error):
    """One pydantic error: the key, what was found, what is allowed."""
    where = [str(part) for part in error["loc"] if str(part) not in ("list[path]", "constrained-float", "float", "[key]")]
    key = ".".join(where)
    if error["type"] == "extra_forbidden":
        allowed = _keys(where[:-1])
        close = difflib.get_close_matches(where[-1], allowed, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{key}: unknown key{hint} (allowed here: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{key}: this key is required"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(where):
    """Keys allowed in the section at `where`."""
    section = Config
    for part in where:
        annotation = section.model_fields[part].annotation if section is not Level and part in section.model_fields else None
        section = Level if where[0] == "levels" else annotation
    return list(section.model_fields)
