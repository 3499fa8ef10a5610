"""The sections of a training run's config.

Every key is listed here, with its unit and its default; a key that is not is an error.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from mfmd import units
from mfmd.config import HomePath, NotNegative, Positive, Section
from mfmd.engine import ModelFileError, load_model, model_path
from mfmd.structures.formats.registry import NAMES
from mfmd.structures.state import SPINS

Paths = list[HomePath]
ByLevel = dict[str, Paths]  # files by level: each has labels of that level alone


def _one(value):
    return [value] if isinstance(value, (str, Path)) else value


def _known(parse):
    """A unit's name that `parse` knows."""

    def check(name):
        parse(name)
        return name

    return AfterValidator(check)


class Level(Section):
    """One level of theory: the keys of its labels, how much they count, how its head begins."""

    model_config = ConfigDict(serialize_by_alias=True)

    energy: str = ""  # key of the total energies in the files; by default energy_<level>, and of files by level energy
    forces: str = ""  # key of the forces; by default forces_<level>, and of files by level forces
    stress: str = ""  # key of the stresses; by default stress_<level>, and of files by level stress
    virial: str = ""  # key of virials, instead of stress: −stress · volume, in units of energy; by default likewise
    energy_unit: Annotated[str, _known(units.energy)] | None = None  # by default as the file says, else data.energy_unit
    forces_unit: Annotated[str, _known(units.force)] | None = None  # such as eV/Å; by default as the file says, else of energy and length
    stress_unit: Annotated[str, _known(units.stress)] | None = None  # such as GPa; likewise
    forces_sign: Literal["force", "gradient"] | None = None  # by default a key that names a gradient holds one
    unchecked: bool = False  # "I mean it": labels that the checks question are learned as they are
    energy_weight: NotNegative = 1.0  # of the energy term of the loss; 0 leaves the label out
    forces_weight: NotNegative = 1.0  # of the forces term, likewise
    stress_weight: NotNegative = 1.0  # of the stress term, likewise
    sampling: Positive = 1.0  # how often an epoch shows a structure with a label of this level (the largest of its levels)
    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] | None = None  # training labels used: a share, or how many
    # Atomic reference energies: least squares over compositions, or those of isolated atoms, in data.atoms or among the structures; by default
    # the second where they stand among the structures for all elements of the level
    e0: Literal["fit", "atoms"] | None = None
    delta_of: str | None = None  # an earlier level; the head is a difference to it and starts at zero
    from_: Annotated[str | None, Field(alias="from")] = None  # a head of backbone.checkpoint that is this level's; it needs no labels then


class Data(Section):
    train: Paths | ByLevel  # files of labelled structures, or files by level
    val: Paths | ByLevel | Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # files, or a fraction of train; by default 0.1, or by split_key
    )
    test: Paths | ByLevel | Annotated[float, Field(gt=0, lt=1)] = []  # files, or a fraction of train; they choose nothing
    format: Literal[tuple(NAMES)] | None = None  # of the files; by default what their endings say
    split_key: str | None = None  # an info key that says train, val or test for the structures of `train`
    split_seed: int = 0  # of the fractions
    atoms: HomePath | None = None  # isolated-atom energies, JSON
    energy_unit: Literal[tuple(units.ENERGY)] | None = None  # by default as the files say, else eV
    length_unit: Literal[tuple(units.LENGTH)] | None = None  # by default as the files say, else Å
    spin: Literal[SPINS] | None = (
        None  # what the files' keys spin and total_spin hold; by default as the format has it, else none may say more than 0 or 1
    )
    stream: bool = False  # for sets larger than memory: structures are packed into out/data once and read from there

    @field_validator("train", "val", "test", mode="before")
    @classmethod
    def _one_file(cls, value):
        return {level: _one(paths) for level, paths in value.items()} if isinstance(value, dict) else _one(value)

    def files(self, split):
        """(path, the level whose labels the file has or None for every level) of a split."""
        source = getattr(self, split)
        if isinstance(source, dict):
            return [(path, level) for level, paths in source.items() for path in paths]
        return [(path, None) for path in source] if isinstance(source, list) else []


SIZES = {  # docs/speed.md has the speed and the accuracy of each
    "small": {"channels": 32, "layers": 1},
    "medium": {"channels": 64, "layers": 1},
    "large": {"channels": 128, "layers": 2},
}


def header_of(path):
    """What the model file of `backbone.checkpoint` says of itself. ValueError, in one sentence, where it is none."""
    try:
        if not model_path(path).exists():
            raise ValueError(f"checkpoint: {path}: no such file")
        return json.loads(load_model(path).metadata)
    except ModelFileError as error:
        raise ValueError(f"checkpoint: {error}; of a file of another package `mfmd import {path} -o model.pt` makes a model file") from None


class Backbone(Section):
    """What the levels share. `backbone: large` is short for `backbone: {size: large}`; a size sets what is not set beside it, a checkpoint all."""

    size: Literal[tuple(SIZES)] = "medium"  # stands for channels and layers: 32 and 1, 64 and 1, or 128 and 2
    channels: Annotated[int, Field(ge=16, le=256, multiple_of=16)]  # features of an atom; by default as size says
    layers: Annotated[int, Field(ge=0, le=8)]  # of messages, each of which sees a cutoff further; by default as size says
    cutoff: Annotated[float, Field(gt=1, lt=20)] = 5.0  # Å
    rank: Annotated[int, Field(ge=0, le=2)] = 2  # highest tensor rank kept
    radial_functions: Annotated[int, Field(ge=3, le=512)] = 32  # of the distance; at inference they are tables, whose number costs nothing
    zbl: Positive | None = None  # Å, at most `cutoff`: up to where nuclei repel each other (ZBL), beside what the network learns
    checkpoint: HomePath | None = None  # a model file that the first stage starts from; sizes are the file's

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, value):
        value = {"size": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        size = value.get("size", "medium")
        of_size = SIZES[size if isinstance(size, str) and size in SIZES else "medium"]  # an unknown one is refused by its type
        if not isinstance(path := value.get("checkpoint"), (str, Path)):
            return {**of_size, **value}
        own = header_of(path)["backbone"]
        said = {**(of_size if "size" in value else {}), **value}
        found = {key: own.get(key) for key in cls.model_fields if key not in ("size", "checkpoint")}
        for key in found:
            if key in said and said[key] != found[key]:
                raise ValueError(
                    f"{key}: {said[key]}, and it is {found[key]} in the checkpoint {path}, whose backbone this is; leave it out"
                )
        return {**value, **found}

    @model_validator(mode="after")
    def _zbl_fits(self):
        if self.zbl is not None and self.zbl > self.cutoff:
            raise ValueError(
                f"zbl: {self.zbl} Å is more than the cutoff, {self.cutoff} Å, beyond which no pair is known; set {self.cutoff} or less"
            )
        return self


class Train(Section):
    epochs: Annotated[int, Field(ge=1)] = 100  # passes through the training structures, at most
    batch_size: Annotated[int, Field(ge=1)] = 32  # structures
    learning_rate: Positive = 2e-3  # at its highest
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the run in which the learning rate rises; it then falls as a cosine
    weight_decay: NotNegative = 0.0  # of AdamW
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99  # decay of the averaged weights, which are validated and exported
    clip: Positive = 10.0  # norm of the gradient
    patience: Annotated[int, Field(ge=1)] = 100  # validations without an improvement of `monitor`
    validate_every: Annotated[int, Field(ge=1)] = 1  # epochs
    monitor: str = ""  # "<level>.<energy|forces|stress>" whose validation MAE decides; by default the last level's energy
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where all stages are trained; auto: on a GPU where there is one
    precision: Literal["single", "double", "tf32"] = (
        "single"  # of the network; total energies and E0 are double; tf32: products by tensor cores
    )


class StageLevel(Section):
    """What a stage learns of a level; what is not set is as under `levels`."""

    energy_weight: NotNegative | None = None  # of the energy term of the loss
    forces_weight: NotNegative | None = None  # of the forces term
    stress_weight: NotNegative | None = None  # of the stress term
    sampling: Positive | None = None  # how often an epoch shows a structure with a label of this level


LEARNED = {"gradient": ("energy", "forces", "stress"), "closed form": ("energy", "forces"), "gauss-newton": ("energy",)}  # labels of a fit


class Stage(Section):
    """One step of training: which labels, from what, what may move."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]  # its folder in `out`
    levels: dict[str, StageLevel]  # levels learned
    # A stage before it, the best of several, "checkpoint" where the backbone has one, or else "new"; by default the stage before
    start: str | list[str] = ""
    heads: dict[str, str] = {}  # how the head of a level begins that has none yet: "new", a level whose head is copied, or "delta <level>"
    # fit.py has the other two: a level's new head on a frozen backbone, and all weight matrices to a level's energies
    fit: Literal["gradient", "closed form", "gauss-newton"] = "gradient"
    # Of gauss-newton: a structure that has labels of the level and of the one whose head is copied teaches their difference, on top of what that head predicts
    differences: bool = False
    teachers: list[
        str
    ] = []  # stages before; their mean energies and forces on all training structures are learned instead of the level's labels
    backbone_rate: NotNegative = 1.0  # times learning_rate; 0 freezes it
    heads_rate: NotNegative = 1.0  # likewise, of the heads of the stage's levels; all other heads are frozen
    train: Train = Train()  # what is not set is as in the section `train`
