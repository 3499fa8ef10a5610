"""A device that is not the host, without one: its tensors are computed on the host, and what mixes the two is an error, as with CUDA."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("meta")  # a device that autograd knows and that needs no driver
MOVES = ("copy_", "_to_copy")  # what may have tensors of both
INDEXED = ("index", "index_put", "index_put_")  # whose second argument may be of either


class Card(torch.Tensor):
    """A tensor on the device; host: what it holds."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host):
        sizes = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, host.shape, device=CARD, **sizes)

    def __init__(self, host):
        self.host = host

    def __getitem__(self, index):
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def __setitem__(self, index, value):
        super().__setitem__(torch.tensor(index) if isinstance(index, list) else index, value)

    def tolist(self):
        return self.host.tolist()

    def __format__(self, spec):
        return format(self.host, spec)

    def __reduce_ex__(self, protocol):
        return self.host.__reduce_ex__(protocol)  # what is loaded to the host

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


def held(t):
    return t.host if isinstance(t, Card) else t


def _wrapped(t):
    return Card(t) if isinstance(t, torch.Tensor) else t


def _call(func, args, kwargs):
    name = func.overloadpacket.__name__
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    on_card = any(isinstance(t, Card) for t in tensors)
    together = tree_leaves((args[0], args[2:]) if name in INDEXED else (args, kwargs))
    if on_card and name not in MOVES and any(isinstance(t, torch.Tensor) and t.dim() and not isinstance(t, Card) for t in together):
        raise RuntimeError(f"{name}: tensors of the host and of the device")
    asked = kwargs.get("device")
    there = isinstance(args[0], Card) if name == "copy_" else on_card if asked is None else torch.device(asked) == CARD
    given = {**kwargs, **({} if asked is None else {"device": torch.device("cpu")})}
    out = func(*tree_map(held, args), **tree_map(held, given))
    if not there:
        return out
    out = tree_map(_wrapped, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if on_card else out


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Values(TorchFunctionMode):
    """Of "meta" these have none."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == CARD:
            return func(*args, **{**kwargs, "device": "cpu"}).to(CARD)
        return func(*args, **kwargs)


def compiled(run):
    """What runs a compiled map, of tensors on the device."""

    def run_there(*args, **more):
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        there = {isinstance(t, Card) for t in tensors}
        if len(there) > 1:
            raise RuntimeError("a compiled map: tensors of the host and of the device")
        out = run(*map(held, args), **more)
        return tree_map(_wrapped, out) if there == {True} else out

    return run_there


def on_host(function):
    """Of the host's tensors alone, by forward-mode differentiation, which no mode may watch."""

    def run_here(*args, **more):
        with _disable_current_modes():
            return function(*args, **more)

    return run_here


@contextlib.contextmanager
def standing_in():
    """Within, CARD is a device."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Factories(), _Values():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
