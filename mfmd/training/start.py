"""A mfmd model file as the start of training: the inverse of export."""

import copy
import json
import warnings
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch

from mfmd import Note
from mfmd.engine import load_model
from mfmd.structures.state import State
from mfmd.training.heads import TABLE, GatedHead, LinearHead, MLPHead
from mfmd.training.model import SIZES, VARIANTS, Model, TensorNet


def header_of(path):
    """What a model file says of itself: `backbone` whole, variants too; `levels`; `provenance`.

    Raises
    ------
    ModelFileError : there is no such file, or it is none of mfmd's
    """
    header = json.loads(load_model(path).metadata)
    header["backbone"] = {key: header["backbone"][key] for key in SIZES} | {
        key: header["backbone"].get(key, value) for key, value in VARIANTS.items()
    }
    return header


def architecture(config):
    """What a new backbone of a run is made with: its config's sizes, or all that the one of its checkpoint is."""
    if config.backbone.checkpoint is not None:
        return header_of(config.backbone.checkpoint)["backbone"]
    return config.backbone.model_dump(exclude={"size", "checkpoint"})


def read_model(path):
    """The training.model.Model of a model file, in torch's default type, and its header; a Note where that type is narrower than the file's.

    Raises
    ------
    ModelFileError : see `header_of`
    """
    header, state = header_of(path), safetensors.torch.load(load_model(path).bytes)
    sizes, heads = header["backbone"], {}
    for level in header["levels"]:
        name, channels = level["name"], sizes["channels"]
        e0 = np.zeros(TABLE)
        e0[[int(z) for z in level["e0"]]] = list(level["e0"].values())
        if level["kind"] == "mlp":
            head = MLPHead(channels, 1.0, e0, False, level.get("members", 1))
        elif level["kind"] == "gated":
            head = GatedHead(channels, level["hidden"], 1.0, e0)
        else:
            head = LinearHead(channels, e0)
        # In the file isolated atoms are folded into E0, and what is empty is not there.
        own = {key: state.get(f"heads.{name}.{key}", value) for key, value in head.state_dict().items()}
        head.load_state_dict(own | {"e0": head.e0})
        head.constant = level.get("constant", 0.0)
        head.of_states.copy_(torch.tensor(level.get("of_states", [0.0] * 3), dtype=torch.float64))
        heads[name] = head
    if torch.get_default_dtype() != torch.float64 and any(v.dtype == torch.float64 for k, v in state.items() if k.startswith("backbone.")):
        warnings.warn(
            f"backbone.checkpoint: {path} has weights in double precision, which are rounded to this run's single; train.precision: double keeps them",
            Note,
            stacklevel=4,
        )
    model = Model(TensorNet(**sizes), heads, {level["name"]: level["delta_of"] for level in header["levels"] if level["delta_of"]})
    model.backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")})
    return model.eval(), header


def read_in_double(path):
    """The Model of `read_model`, but in double, with what is computed from its sizes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return read_model(path)[0].double()
    finally:
        torch.set_default_dtype(before)


LOWEST = [State(0, 1), State(0, 2)]  # of a level of which the file does not say it: neutral structures of the lowest multiplicity


@dataclass
class Checkpoint:
    """The model file that a run starts from, as if it were a stage before the first."""

    model: Model  # its heads are those of the run's levels
    elements: dict[str, list[int]]  # of each of these levels, atomic numbers
    states: dict[str, list[State]]  # likewise, charges and multiplicities
    provenance: dict  # sha256 of the file's weights, from: {level: head of the file}, and the file's own provenance


def read_checkpoint(config):
    """The Checkpoint of a plan.Config, or None where its backbone has none. ModelFileError as in `header_of`."""
    path = config.backbone.checkpoint
    if path is None:
        return None
    model, header = read_model(path)
    elements = {level["name"]: level["elements"] for level in header["levels"]}
    states = {level["name"]: [State(*pair) for pair in level.get("states", LOWEST)] for level in header["levels"]}
    heads = {level: copy.deepcopy(model.heads[source]) for level, source in config.imported.items()}
    delta_of = {level: config.levels[level].delta_of for level in heads if config.levels[level].delta_of}
    return Checkpoint(
        Model(model.backbone, heads, delta_of).eval(),
        {level: elements[source] for level, source in config.imported.items()},
        {level: states[source] for level, source in config.imported.items()},
        {"sha256": load_model(path).sha256, "from": config.imported, "provenance": header["provenance"]},
    )
