"""What every reader of foreign weights needs: strict tensors, TensorNet's weights under our names, the model put together, where it comes from."""

import contextlib
import copy
import functools
import hashlib
import math
import pickle
import re

import torch
from ase.data import atomic_numbers, chemical_symbols

from mfmd import Error, __version__
from mfmd.training.heads import TABLE
from mfmd.training.model import Model, TensorNet

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
SIZES = {  # what a backbone may have: whether it can, and in words
    "channels": (lambda n: isinstance(n, int) and n in range(16, 257, 16), "a multiple of 16 up to 256"),
    "layers": (lambda n: isinstance(n, int) and n in range(9), "0 to 8"),
    "radial_functions": (lambda n: isinstance(n, int) and n in range(3, 513), "3 to 512"),
    "cutoff": (lambda r: isinstance(r, (int, float)) and 1 < r < 20, "a number of Å between 1 and 20"),
}


class SourceError(Error):
    """Foreign weights cannot be imported; names the file, what was found and what can be imported."""


class Tensors:
    """The tensors of a file by name: each is taken once and checked, and none may be left.

    where : names the file in messages
    """

    def __init__(self, where, tensors):
        if not isinstance(tensors, dict) or not all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in tensors.items()):
            raise SourceError(f"{where}: holds no table of tensors by name")
        self.where, self.left = where, dict(tensors)

    def take(self, name, *shape):
        """The tensor of this name. SourceError where it is missing, has another shape, or is not of finite single or double numbers."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            raise SourceError(f"{self.where}: the tensor {name} is missing")
        if tuple(tensor.shape) != shape:
            raise SourceError(f"{self.where}: {name} has the shape {tuple(tensor.shape)}, and {shape} is needed")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.layout != torch.strided:
            raise SourceError(
                f"{self.where}: {name} is of {tensor.dtype}, {tensor.layout}; dense torch.float32 and torch.float64 can be imported"
            )
        if not torch.isfinite(tensor).all():
            raise SourceError(f"{self.where}: {name} holds a number that is not finite")
        return tensor.detach()

    def number(self, name):
        """What `take` gives of a single number, as a float."""
        given = self.left.get(name)
        return self.take(name, *(given.shape if given is not None and given.numel() == 1 else ())).double().item()

    def linear(self, name, out, inner):
        """{"weight": (out, inner), "bias": (out,)} of a linear map."""
        return {"weight": self.take(f"{name}.weight", out, inner), "bias": self.take(f"{name}.bias", out)}

    def rename(self, pattern, name):
        """As re.sub does."""
        self.left = {re.sub(pattern, name, key): tensor for key, tensor in self.left.items()}

    def drop(self, *patterns):
        """Leave out tensors that nothing is computed from."""
        self.left = {name: tensor for name, tensor in self.left.items() if not any(re.fullmatch(p, name) for p in patterns)}

    def finish(self):
        """SourceError where a tensor is left."""
        if self.left:
            more = f" (and {len(self.left) - 1} more)" if len(self.left) > 1 else ""
            raise SourceError(f"{self.where}: the tensor {min(self.left)}{more} has no place in a TensorNet as it is known here")


def load(path):
    """What a file of torch holds, read by its weights-only loader. SourceError where there is none, it is damaged, or holds more."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise SourceError(
                f"{path}: holds {found[1]}, for which code would have to be run; only files that torch reads with weights_only=True can be imported"
            ) from None
        raise SourceError(f"{path}: damaged, or no file of torch") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path}: damaged, or no file of torch ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def check(where, settings, wanted, idle, used):
    """SourceError where a setting is not as wanted, or is not known.

    wanted : {setting: the one value that can be imported}; idle : settings nothing is computed from; used : those the reader looks at
    """
    for key, value in wanted.items():
        if key not in settings:
            raise SourceError(f"{where}: {key} is missing; only {value!r} can be imported")
        found = settings[key]
        if isinstance(found, torch.Tensor) or isinstance(found, bool) != isinstance(value, bool) or found != value:
            raise SourceError(f"{where}: {key} is {found!r}; only {value!r} can be imported")
    for key in used:
        if key not in settings:
            raise SourceError(f"{where}: {key} is missing")
    if unknown := sorted(settings.keys() - wanted.keys() - set(idle) - set(used), key=str):
        raise SourceError(
            f"{where}: {unknown[0]} ({settings[unknown[0]]!r}) is not known here, so that its meaning would be lost; it cannot be imported"
        )


def check_sizes(where, names, sizes):
    """SourceError where our engine cannot have these sizes; names : what the file calls them."""
    for key, name in names.items():
        can, words = SIZES[key]
        if isinstance(sizes[key], bool) or not can(sizes[key]):
            raise SourceError(f"{where}: {name} is {sizes[key]!r}; {words} can be imported")


def chosen(where, known, elements):
    """Atomic numbers of a level, ascending: all that are known, or the elements (symbols) asked for."""
    if elements is None:
        return sorted(known)
    if not elements:
        raise SourceError("--elements: names none; give symbols, such as H,C,N,O, or leave it out")
    wanted = [atomic_numbers.get(symbol, 0) for symbol in elements]
    for symbol, z in zip(elements, wanted, strict=True):
        if z == 0:
            raise SourceError(f"--elements: {symbol!r} is no symbol of an element")
        if z not in known:
            raise SourceError(
                f"--elements: {where} has no weights for {symbol}; it has for {' '.join(chemical_symbols[k] for k in sorted(known))}"
            )
    return sorted(set(wanted))


def take_backbone(tensors, prefix, sizes, kinds, rows, part_first, own_first):
    """The state of a training.model.TensorNet, less what its radial basis keeps, from tensors named as torchmd-net and matgl name them.

    sizes : channels (F), layers, radial_functions (K)
    kinds : rows of the file's table of elements; rows : {atomic number: its row}
    part_first : whether linear maps to weights of the parts I, A, S list them as (3, F), else (F, 3)
    own_first : whether weights of a pair take the atom's own element first, else its neighbour's
    """
    channels, functions = sizes["channels"], sizes["radial_functions"]
    state = {}

    def put(name, pair):
        state.update({f"{name}.{kind}": tensor for kind, tensor in pair.items()})

    def by_part(pair):
        return pair if part_first else {k: v.unflatten(0, (channels, 3)).transpose(0, 1).flatten(0, 1) for k, v in pair.items()}

    def norm(name, size):
        return {kind: tensors.take(f"{prefix}{name}.{kind}", size) for kind in ("weight", "bias")}

    def matrices(name, numbers):
        return torch.stack([tensors.take(f"{prefix}{name}.{k}.weight", channels, channels) for k in numbers])

    embedding = f"{prefix}tensor_embedding"
    table = tensors.take(f"{embedding}.emb.weight", kinds, channels)
    elements = table.new_zeros(TABLE, channels)
    elements[list(rows)] = table[list(rows.values())]
    state["embedding.elements.weight"] = elements
    pair = tensors.linear(f"{embedding}.emb2", channels, 2 * channels)
    put("embedding.pair", pair if own_first else pair | {"weight": pair["weight"].roll(channels, 1)})
    if f"{embedding}.distance_proj.weight" in tensors.left:  # as matgl's GPU kernels keep the three
        put("embedding.radial", tensors.linear(f"{embedding}.distance_proj", 3 * channels, functions))
    else:
        three = [tensors.linear(f"{embedding}.distance_proj{k}", channels, functions) for k in (1, 2, 3)]
        put("embedding.radial", {kind: torch.cat([one[kind] for one in three]) for kind in ("weight", "bias")})
    put("embedding.norm", norm("tensor_embedding.init_norm", channels))
    put("embedding.gate.0", tensors.linear(f"{embedding}.linears_scalar.0", 2 * channels, channels))
    put("embedding.gate.1", by_part(tensors.linear(f"{embedding}.linears_scalar.1", 3 * channels, 2 * channels)))
    state["embedding.mixing"] = matrices("tensor_embedding.linears_tensor", range(3))
    for n in range(sizes["layers"]):
        scalar = f"{prefix}layers.{n}.linears_scalar"
        put(f"layers.{n}.radial.0", tensors.linear(f"{scalar}.0", channels, functions))
        put(f"layers.{n}.radial.1", tensors.linear(f"{scalar}.1", 2 * channels, channels))
        put(f"layers.{n}.radial.2", by_part(tensors.linear(f"{scalar}.2", 3 * channels, 2 * channels)))
        state[f"layers.{n}.mixing_in"] = matrices(f"layers.{n}.linears_tensor", range(3))
        state[f"layers.{n}.mixing_out"] = matrices(f"layers.{n}.linears_tensor", range(3, 6))
    put("readout.norm", norm("out_norm", 3 * channels))
    put("readout.linear", tensors.linear(f"{prefix}linear", channels, 3 * channels))
    return state


def assemble(architecture, state, kind, options, weights, energies, level, dtype):
    """The training.model.Model of one level.

    architecture, state : of its TensorNet
    kind, options, weights : of its head, the class and what it is made with beside channels, scale and e0; its state
    energies : (scale, constant, offsets), eV: of the head, of a structure, and {atomic number: what an atom has beside scale times the head}.
        E0 is the offset and scale · head(isolated atom)
    dtype : of the weights, or None for the file's
    """
    scale, constant, offsets = energies
    if not re.fullmatch(r"[A-Za-z0-9_-]+", level):
        raise SourceError(f"--level: {level!r} is no name of a level; letters, digits, _ and - may stand in it")
    if hasattr(torch.nn.ModuleDict, level):
        raise SourceError(f"--level: torch keeps the name {level} for itself; choose another")
    dtype = dtype or functools.reduce(torch.promote_types, (tensor.dtype for tensor in state.values()))
    with _default(dtype):
        backbone = TensorNet(**architecture)
        head = kind(architecture["channels"], scale=scale, e0=torch.zeros(TABLE, dtype=torch.float64), **options)
    backbone.load_state_dict(state)
    head.load_state_dict(head.state_dict() | weights)
    head.constant = constant
    numbers, none = torch.tensor(list(offsets)), torch.zeros(0, dtype=torch.long)
    exact = copy.deepcopy(backbone).double(), copy.deepcopy(head).double()
    with torch.no_grad():
        x = exact[0](numbers, torch.zeros(len(numbers), 3, dtype=torch.float64), none, none, torch.zeros(0, 3, dtype=torch.float64))
        head.e0[numbers] = torch.tensor(list(offsets.values()), dtype=torch.float64) + exact[1](x, numbers) * scale
    return Model(backbone, {level: head}).eval()


@contextlib.contextmanager
def _default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def provenance(package, source, files, **said):
    """Where a model comes from, as far as the files themselves say it.

    source : folder or file; files : those the weights were read from; said : more that stands in them
    """
    folders = (source, source.resolve().parent) if source.is_dir() else (source.parent,)
    licence = next((path for folder in folders for name in LICENCES if (path := folder / name).is_file()), None)
    if licence is not None:
        lines = licence.read_text(errors="replace").splitlines()
        said["licence"] = next((line.strip() for line in lines if line.strip()), licence.name)
    return {
        "mfmd": __version__,
        "imported": {
            "from": package,
            "source": source.resolve().name,
            "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
            **said,
        },
    }


def is_number(value):
    """Whether a value of a file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
