"""Checkpoints of torchmd-net's TensorNet as a backbone to start from."""

import pickle

import torch

from mfmd.config import ConfigError

PREFIX = "model.representation_model."
WANTED = {  # hyper-parameters with which torchmd-net computes what our backbone computes
    "model": "tensornet", "rbf_type": "expnorm", "activation": "silu", "cutoff_lower": 0.0, "equivariance_invariance_group": "O(3)",
}  # fmt: skip
SIZES = {"channels": "embedding_dimension", "layers": "num_layers", "cutoff": "cutoff_upper", "radial_functions": "num_rbf"}


def load_backbone(path, backbone, sizes):
    """Copy the weights of a checkpoint into a training.model.TensorNet.

    Parameters
    ----------
    path : a Lightning checkpoint of torchmd-net (3.x)
    backbone : TensorNet; sizes : training.schema.Backbone, its sizes

    Raises
    ------
    ConfigError : no such checkpoint, another architecture, or other sizes than the config's; the message gives those needed
    """
    where = f"backbone.checkpoint: {path}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        settings, state = content["hyper_parameters"], content["state_dict"]
        own = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file") from None
    except (KeyError, TypeError, AttributeError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{where}: not a checkpoint of torchmd-net ({str(error).splitlines()[0]})") from None
    for key, value in WANTED.items():
        if settings.get(key) != value:
            raise ConfigError(f"{where}: {key} is {settings.get(key)!r}; only {value!r} can be imported")
    needed = {ours: settings[theirs] for ours, theirs in SIZES.items()} | {"rank": 2}
    if any(getattr(sizes, key) != value for key, value in needed.items()):
        text = ", ".join(f"{key}: {value}" for key, value in needed.items())
        raise ConfigError(f"{where}: its sizes are {text}; set these under `backbone`")
    try:
        renamed = _renamed(own, needed["layers"], backbone.embedding.elements.num_embeddings)
        backbone.load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"{where}: its weights are not those of torchmd-net 3 ({str(error).splitlines()[0]})") from None


def _renamed(s, layers, rows):
    """torchmd-net's state under our names."""
    elements = torch.zeros(rows, s["tensor_embedding.emb.weight"].shape[1])
    known = s["tensor_embedding.emb.weight"][:rows]
    elements[: len(known)] = known
    out = {
        "radial.means": s["distance_expansion.means"],
        "radial.betas": s["distance_expansion.betas"],
        "embedding.elements.weight": elements,
        "embedding.mixing": torch.stack([s[f"tensor_embedding.linears_tensor.{k}.weight"] for k in range(3)]),
    }
    for kind in ("weight", "bias"):
        out[f"embedding.radial.{kind}"] = torch.cat([s[f"tensor_embedding.distance_proj{k}.{kind}"] for k in (1, 2, 3)])
        out[f"embedding.pair.{kind}"] = s[f"tensor_embedding.emb2.{kind}"]
        out[f"embedding.norm.{kind}"] = s[f"tensor_embedding.init_norm.{kind}"]
        out[f"readout.norm.{kind}"] = s[f"out_norm.{kind}"]
        out[f"readout.linear.{kind}"] = s[f"linear.{kind}"]
        for k in range(2):
            out[f"embedding.gate.{k}.{kind}"] = s[f"tensor_embedding.linears_scalar.{k}.{kind}"]
        for n in range(layers):
            for k in range(3):
                out[f"layers.{n}.radial.{k}.{kind}"] = s[f"layers.{n}.linears_scalar.{k}.{kind}"]
    for n in range(layers):
        out[f"layers.{n}.mixing_in"] = torch.stack([s[f"layers.{n}.linears_tensor.{k}.weight"] for k in range(3)])
        out[f"layers.{n}.mixing_out"] = torch.stack([s[f"layers.{n}.linears_tensor.{k}.weight"] for k in range(3, 6)])
    return out
