"""Checkpoints of torchmd-net's TensorNet, whole: backbone, head, mean and std, reference energies, repulsion of nuclei.

R. P. Pelaez et al., J. Chem. Theory Comput. 20, 4076 (2024). E = Σ (std · E_i + atomref_i) + mean + ZBL. Files before 3.0 list the rows of the
linear maps to the parts I, A, S as (F, 3), later ones as (3, F), under the same names and shapes.
"""

import warnings

from ase.data import chemical_symbols

from mfmd import Note, units
from mfmd.foreign.source import (
    SourceError,
    Tensors,
    assemble,
    check,
    check_sizes,
    chosen,
    is_number,
    load,
    provenance,
    take_backbone,
)
from mfmd.training.heads import TABLE, MLPHead

WANTED = {
    "model": "tensornet", "rbf_type": "expnorm", "activation": "silu", "cutoff_lower": 0.0, "equivariance_invariance_group": "O(3)",
    "output_model": "Scalar",
}  # fmt: skip
UNSET = {"atom_filter": -1, "box_vecs": None}  # which may be missing
USED = ("embedding_dimension", "num_layers", "cutoff_upper", "num_rbf", "max_z", "reduce_op")
IDLE = (  # of training and data, of other architectures, of how it is computed; priors are looked at by themselves
    "prior_model", "prior_args", "trainable_rbf", "charge", "spin", "derivative", "precision", "dtype", "static_shapes", "check_errors",
    "max_num_neighbors", "output_mlp_num_layers", "remove_ref_energy", "standardize",
    "aggr", "neighbor_embedding", "attn_activation", "num_heads", "distance_influence", "vector_cutoff",
    "load_model", "load_weights", "conf", "num_epochs", "batch_size", "inference_batch_size", "lr", "lr_patience", "lr_metric", "lr_min", "lr_factor",
    "lr_warmup_steps", "early_stopping_patience", "early_stopping_monitor", "checkpoint_monitor", "reset_trainer", "weight_decay", "ema_alpha_y",
    "ema_alpha_neg_dy", "ema_alpha_dy", "ngpus", "num_nodes", "log_dir", "splits", "train_size", "val_size", "test_size", "test_interval",
    "save_interval", "seed", "num_workers", "redirect", "gradient_clipping", "dataset", "dataset_root", "dataset_arg", "coord_files", "embed_files",
    "energy_files", "force_files", "energy_weight", "force_weight", "y_weight", "neg_dy_weight", "train_loss", "train_loss_arg",
    "dataset_preload_limit", "custom_read_as_hdf", "wandb_use", "wandb_name", "wandb_project", "wandb_resume_from_id", "tensorboard_use",
)  # fmt: skip
PRIORS = {  # and what they are made with
    "Atomref": {"max_z", "trainable", "enable"}, "LearnableAtomref": {"max_z", "trainable", "enable"},
    "ZBL": {"cutoff_distance", "max_num_neighbors", "atomic_number", "distance_scale", "energy_scale"},
}  # fmt: skip
SIZES = {"channels": "embedding_dimension", "layers": "num_layers", "radial_functions": "num_rbf"}
EV = 1.602176634e-19  # J, exact (SI 2019)
ROUNDED = 1e-5  # by how much, relative, a unit in a file may differ from ours: constants that were rounded, not another unit


def read(path, level, elements, dtype, energy_unit, length_unit):
    """See mfmd.foreign.read."""
    content = load(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("hyper_parameters", "state_dict")):
        raise SourceError(
            f"{path}: not a checkpoint of torchmd-net, which holds hyper_parameters and a state_dict; of matgl name the folder"
        )
    settings = content["hyper_parameters"]
    check(path, settings, WANTED | {key: value for key, value in UNSET.items() if key in settings}, IDLE, USED)
    if settings["reduce_op"] not in ("add", "sum"):
        raise SourceError(f"{path}: reduce_op is {settings['reduce_op']!r}; only sums over atoms ('add' or 'sum') can be imported")
    priors = _priors(path, settings)
    zbl = next((arguments for name, arguments in priors if name == "ZBL"), None)
    energy, length = _units(path, zbl, energy_unit, length_unit)
    if not is_number(settings["cutoff_upper"]):
        raise SourceError(f"{path}: cutoff_upper is {settings['cutoff_upper']!r}; a number is needed")
    sizes = {ours: settings[theirs] for ours, theirs in SIZES.items()} | {"cutoff": settings["cutoff_upper"] * length, "rank": 2}
    check_sizes(path, SIZES | {"cutoff": "cutoff_upper, in Å,"}, sizes)

    tensors = Tensors(path, content["state_dict"])
    tensors.rename(r"^model\.", "")
    tensors.rename(r"(output_network)\.([02]\.)", r"\1.layers.\2")  # which had no name of their own in older files
    newer = "check_errors" not in settings and "representation_model.distance.box" in tensors.left
    for name in [name for name in tensors.left if name.endswith("distance.box")]:
        if tensors.take(name, 3, 3).any():
            raise SourceError(f"{path}: {name} holds a box; only checkpoints without one can be imported")
    if newer:
        warnings.warn(
            f"{path} is taken as written by torchmd-net 3.x; one that 2.6.2 wrote looks alike and has its rows in another order: compare an energy with "
            "torchmd-net's own",
            Note,
            stacklevel=3,
        )
    kinds = settings["max_z"]
    references = _references(path, tensors, priors)
    numbers = _elements(path, kinds, references, elements)
    if zbl is not None:
        _check_zbl(path, tensors, priors, zbl, settings, numbers)
    weights = take_backbone(tensors, "representation_model.", sizes, kinds, {z: z for z in numbers}, newer, True)
    for part in ("means", "betas"):
        weights[f"radial.{part}"] = tensors.take(f"representation_model.distance_expansion.{part}", sizes["radial_functions"])
    channels, head = sizes["channels"], {}
    for ours, theirs, out, inner in (("hidden", "0", channels // 2, channels), ("out", "2", 1, channels // 2)):
        linear = tensors.linear(f"output_model.output_network.layers.{theirs}", out, inner)
        head |= {f"{ours}.{part}": tensor for part, tensor in linear.items()}
    scale, constant = tensors.number("std") * energy, tensors.number("mean") * energy
    tensors.finish()

    architecture = sizes | {"charge_factor": 0.1, "zbl": None if zbl is None else zbl["cutoff_distance"] * length}
    offsets = {z: sum(float(table[z]) for table, added in references if added) * energy for z in numbers}
    energies = scale, constant, offsets
    model = assemble(architecture, weights, MLPHead, {"zero_start": False}, head, energies, level, dtype)
    said = {"code": f"tensors laid out as {'in 3.x' if newer else 'before 3.0'}", "units": {"energy": energy, "length": length}}
    return model, {level: numbers}, provenance("torchmd-net", path, [path], **said)


def _priors(path, settings):
    """[(name, arguments)] of what is added to the network, in the file's order."""
    given = settings.get("prior_model")
    named = []
    for prior in given if isinstance(given, list) else [] if given is None else [given]:
        named += [(name, arguments or {}) for name, arguments in prior.items()] if isinstance(prior, dict) else [(prior, {})]
    arguments = settings.get("prior_args")
    if arguments is not None:
        arguments = arguments if isinstance(arguments, list) else [arguments]
        if len(arguments) != len(named):
            raise SourceError(f"{path}: prior_args are of {len(arguments)} priors, and prior_model of {len(named)}")
        named = [(name, own or {}) for (name, _), own in zip(named, arguments, strict=True)]
    for name, own in named:
        if not isinstance(own, dict):
            raise SourceError(f"{path}: the arguments of the prior {name!r} are {own!r}; a mapping of names is needed")
        if name not in list(PRIORS):
            raise SourceError(f"{path}: prior_model has {name!r}; {', '.join(PRIORS)} can be imported")
        if unknown := sorted(own.keys() - PRIORS[name], key=str):
            raise SourceError(f"{path}: {unknown[0]} of the prior {name} is not known here, so that its meaning would be lost")
        if not isinstance(own.get("enable", True), bool):
            raise SourceError(f"{path}: enable of the prior {name} is {own['enable']!r}; true or false is needed")
        if name == "ZBL" and [n for n, _ in named].count("ZBL") > 1:
            raise SourceError(f"{path}: prior_model has ZBL twice; one can be imported")
        if name == "ZBL" and not all(is_number(own.get(key)) for key in ("cutoff_distance", "distance_scale", "energy_scale")):
            raise SourceError(f"{path}: prior_args of ZBL need the numbers cutoff_distance, distance_scale and energy_scale")
    return named


def _units(path, zbl, energy_unit, length_unit):
    """How many eV and Å the file's units are: as its ZBL prior says, else as the user, else eV and Å."""
    out, assumed = [], []
    for key, given, known, base, default, scale in (
        ("energy", energy_unit, units.ENERGY, EV, "eV", "energy_scale"), ("length", length_unit, units.LENGTH, 1e-10, "Å", "distance_scale"),
    ):  # fmt: skip
        try:
            value = getattr(units, key)(given or default)
        except ValueError as error:
            raise SourceError(f"--{key}-unit: {error}") from None
        if zbl is not None:
            said = zbl[scale] / base
            found = next((one for one in known.values() if abs(said / one - 1) < ROUNDED), None)
            if found is None:
                raise SourceError(f"{path}: ZBL's {scale} is {zbl[scale]!r} in SI units, which is none of {', '.join(known)}")
            if given and found != value:
                raise SourceError(f"{path}: ZBL's {scale} is {zbl[scale]!r} in SI units, which is not {given}; leave --{key}-unit out")
            value = found
        elif not given:
            assumed.append(f"{default} for --{key}-unit")
        out.append(value)
    if assumed:
        warnings.warn(f"{path} does not say its units; taken is {', and '.join(assumed)}", Note, stacklevel=4)
    return out


def _references(path, tensors, priors):
    """[(energies of atoms (max_z,), whether they are added)] of the priors that have such a table."""
    tables = []
    for k, (name, arguments) in enumerate(priors):
        if name == "ZBL":
            continue
        weight = f"prior_model.{k}.atomref.weight"
        rows = len(tensors.left[weight]) if weight in tensors.left else 0
        tables.append((tensors.take(weight, rows, 1)[:, 0].double(), arguments.get("enable", True)))
        tensors.drop(rf"prior_model\.{k}\.initial_atomref")
        if not tables[-1][1]:
            warnings.warn(
                f"{path}: its {name} is switched off (enable: false), so that its energies are relative to these atoms'", Note, stacklevel=4
            )
    return tables


def _elements(path, kinds, references, elements):
    """Atomic numbers of the level: those asked for, or those with a reference energy."""
    if not isinstance(kinds, int) or kinds < 2:
        raise SourceError(f"{path}: max_z is {kinds!r}; the number of rows of the table of elements is needed")
    known = set(range(1, min(kinds, TABLE, *(len(table) for table, _ in references))))
    used = {z for z in known if any(table[z] != 0 for table, _ in references)}
    if used:
        return chosen(path, used, elements)
    if elements is None:
        raise SourceError(f"{path}: does not say which elements it was trained on; name them, such as --elements H,C,N,O")
    return chosen(path, known, elements)


def _check_zbl(path, tensors, priors, zbl, settings, numbers):
    """SourceError where the repulsion is not of the atoms' own nuclei, or reaches further than the network."""
    k = next(k for k, (name, _) in enumerate(priors) if name == "ZBL")
    types = tensors.left.get(f"prior_model.{k}.atomic_number")
    if types is None:
        raise SourceError(f"{path}: the tensor prior_model.{k}.atomic_number is missing")
    tensors.drop(rf"prior_model\.{k}\.atomic_number")
    if wrong := [z for z in numbers if z >= len(types) or int(types[z]) != z]:
        raise SourceError(
            f"{path}: ZBL's atomic_number is not {wrong[0]} for {chemical_symbols[wrong[0]]}; types other than elements cannot be imported"
        )
    if not 0 < zbl["cutoff_distance"] <= settings["cutoff_upper"]:
        raise SourceError(
            f"{path}: ZBL's cutoff_distance is {zbl['cutoff_distance']!r}; it must not be larger than cutoff_upper, {settings['cutoff_upper']!r}"
        )
