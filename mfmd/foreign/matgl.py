"""Folders that matgl writes of a Potential on its TensorNet: `model.json` and `state.pt`.

T. W. Ko et al., npj Comput. Mater. 11, 253 (2025). Energies in eV, lengths in Å; E = data_std · Σ E_i + data_mean + Σ element_refs.
"""

import json
import re

from ase.data import atomic_numbers

from mfmd.foreign.source import SourceError, Tensors, assemble, check, check_sizes, chosen, load, provenance, take_backbone
from mfmd.training.heads import GatedHead

POTENTIAL = 3  # version
CODES = {  # (module, version): what messages are of, whether weights of pairs take the atom's own element first
    ("matgl.models._tensornet", 1): ("own", False),  # matgl 1, on DGL
    ("matgl.models._tensornet_dgl", 1): ("own", False),  # the same, renamed in matgl 2
    ("matgl.models._tensornet_pyg", 1): ("neighbours", False),
    ("matgl.models._tensornet", 2): ("neighbours", True),  # matgl 4
}
WANTED = {
    "activation_type": "swish", "equivariance_invariance_group": "O(3)", "is_intensive": False, "include_state": False, "ntargets": 1,
    "task_type": "regression",
}  # fmt: skip
USED = ("element_types", "units", "nblocks", "cutoff", "rbf_type", "use_smooth", "max_n", "num_rbf")
IDLE = (  # of other bases, of intensive properties, of states, of how it is computed
    "width", "max_l", "readout_type", "field", "niters_set2set", "nlayers_set2set", "ntypes_state", "dim_state_embedding", "dim_state_feats",
    "dtype", "use_warp",
)  # fmt: skip
POTENTIAL_WANTED = {"calc_repuls": False}
POTENTIAL_USED = ("model",)
POTENTIAL_IDLE = (  # the first three are in state.pt, the others are asked for rather than computed with
    "data_mean", "data_std", "element_refs", "calc_forces", "calc_stresses", "calc_hessian", "calc_magmom", "zbl_trainable", "debug_mode",
    "compile_model", "compile_mode",
)  # fmt: skip
SIZES = {"channels": "units", "layers": "nblocks", "cutoff": "cutoff"}


def read(folder, level, elements, dtype):
    """See mfmd.foreign.read."""
    where, files = folder / "model.json", (folder / "model.json", folder / "state.pt")
    described, network = _description(where)
    message, own_first = CODES[network["@module"], network["@model_version"]]
    settings = network["init_args"]
    check(where, settings, WANTED, IDLE, USED)
    sizes = {ours: settings[theirs] for ours, theirs in SIZES.items()} | {"rank": 2}
    basis, name = _basis(where, settings)
    sizes["radial_functions"] = settings[name]
    check_sizes(where, SIZES | {"radial_functions": name}, sizes)
    rows = _rows(where, settings["element_types"])
    numbers = chosen(folder, rows, elements)

    tensors = Tensors(files[1], load(files[1]))
    # What the code makes again from its arguments, and what version 1 had for the features of edges, which it did not use.
    tensors.drop(r"element_refs\.onehot", r"model\.bond_expansion\.rbf\.cutoff", r"model\.tensor_embedding\.emb3\.(weight|bias)")
    state = take_backbone(tensors, "model.", sizes, len(rows), {z: rows[z] for z in numbers}, False, own_first)
    if basis == "expnorm":
        for part in ("means", "betas"):
            state[f"radial.{part}"] = tensors.take(f"model.bond_expansion.rbf.{part}", sizes["radial_functions"])
    channels, gated = sizes["channels"], {}
    for ours, theirs in (("value", "layers"), ("gate", "gates")):
        for k in range(4):
            linear = tensors.linear(f"model.final_layer.gated.{theirs}.{2 * k}", 1 if k == 3 else channels, channels)
            gated |= {f"{ours}.{k}.{part}": tensor for part, tensor in linear.items()}
    scale, mean = tensors.number("data_std"), tensors.number("data_mean")
    offsets = dict.fromkeys(numbers, 0.0)
    if described["kwargs"].get("element_refs") is not None:
        references = tensors.take("element_refs.property_offset", len(rows)).double().tolist()
        offsets = {z: references[rows[z]] for z in numbers}
    tensors.finish()

    architecture = sizes | {"radial_basis": basis, "self_pair": False, "message": message, "readout_activation": False}
    energies = scale, mean, offsets
    model = assemble(architecture, state, GatedHead, {"hidden": [channels] * 3}, gated, energies, level, dtype)
    said = {"code": f"{network['@module']}, version {network['@model_version']}"}
    if described.get("metadata"):
        said["metadata"] = described["metadata"]
    if errors := _errors(folder / "README.md"):
        said["authors_errors"] = errors
    return model, {level: numbers}, provenance("matgl", folder, files, **said)


def _description(path):
    """What model.json says of the Potential and of its TensorNet, the latter of a version known here."""
    try:
        described = json.loads(path.read_text(), parse_constant=_no_number)
        json.dumps(described, ensure_ascii=False).encode()  # what stands in it is kept, so it has to be text
        kind, settings = described["@class"], described["kwargs"]
        version = described["@model_version"]
        if kind == "Potential":
            network = settings["model"]
            kind, key = network["@class"], (network["@module"], network["@model_version"])
            network["init_args"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: damaged, or not written by matgl ({type(error).__name__}: {error})") from None
    if kind != "TensorNet":
        raise SourceError(f"{path}: holds a {kind} of matgl; only its TensorNet can be imported")
    if described["@class"] != "Potential":
        raise SourceError(f"{path}: holds a TensorNet without scale and reference energies; save the Potential around it")
    if version != POTENTIAL:
        raise SourceError(f"{path}: a Potential of version {version!r}; version {POTENTIAL} is known here")
    if key not in list(CODES):
        known = ", ".join(f"{module} {number}" for module, number in CODES)
        raise SourceError(f"{path}: a TensorNet of {key[0]}, version {key[1]!r}; known here are {known}")
    if settings.get("calc_charge"):
        raise SourceError(f"{path}: calc_charge is {settings['calc_charge']!r}; only models without charges can be imported")
    check(path, settings, POTENTIAL_WANTED, (*POTENTIAL_IDLE, "calc_charge"), POTENTIAL_USED)
    return described, network


def _no_number(text):
    raise ValueError(f"{text} is no number of JSON")


def _basis(where, settings):
    """Our name of the radial basis, and the setting with the number of its functions."""
    kind = settings["rbf_type"]
    if kind == "SphericalBessel" and settings["use_smooth"] is True:
        return "smooth_bessel", "max_n"
    if kind == "SphericalBessel":
        raise SourceError(
            f"{where}: use_smooth is {settings['use_smooth']!r}; of SphericalBessel only the smooth functions (True) can be imported"
        )
    if str(kind).lower() == "expnorm":
        return "expnorm", "num_rbf"
    raise SourceError(f"{where}: rbf_type is {kind!r}; 'SphericalBessel' with use_smooth and 'ExpNorm' can be imported")


def _rows(where, symbols):
    """{atomic number: row} of the file's elements."""
    if not isinstance(symbols, list) or not symbols:
        raise SourceError(f"{where}: element_types is {symbols!r}; a list of symbols is needed")
    rows = {atomic_numbers.get(symbol, 0): row for row, symbol in enumerate(symbols) if isinstance(symbol, str)}
    if 0 in rows or len(rows) < len(symbols):
        raise SourceError(f"{where}: element_types is {symbols!r}; symbols of elements are needed, each once")
    return rows


def _errors(readme):
    """What the authors say of errors: the lines below the heading `Performance metrics` of a README, without headings."""
    if not readme.is_file():
        return []
    found = re.search(r"^# Performance metrics\s*\n(.*?)(?=^# |\Z)", readme.read_text(errors="replace"), re.M | re.S)
    return [line.strip().lstrip("- ") for line in found[1].splitlines() if line.strip() and not line.startswith("#")] if found else []
