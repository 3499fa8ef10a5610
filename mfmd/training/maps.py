"""What training spends its time in is compiled (csrc/kernels/training.cpp): two nonlinear functions, whose gradients are written out twice, and
multilinear maps, each of whose adjoints is one of them again, so that they are differentiable as often as one likes."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mfmd.engine import training_maps as compiled


def _aligned(t):
    t = t.contiguous()
    return t if t.data_ptr() % 64 == 0 else t.clone()


def _run(name, shape, n, parts, channels, *tensors, results=1):
    """New tensors of a shape, filled by a compiled map: n rows, from tensors of one type (and int32) on the CPU, None where one is left out."""
    like = tensors[0]
    if like.device.type != "cpu" or channels % 16:
        raise ValueError(f"{name}: tensors must be on the CPU, and channels a multiple of 16")
    tensors = [None if t is None else _aligned(t) for t in tensors]
    if any(t is not None and t.dtype not in (like.dtype, torch.int32) for t in tensors):
        raise ValueError(f"{name}: tensors must be of one type")
    out = [like.new_empty(shape) for _ in range(results)]
    addresses = [0 if t is None else t.data_ptr() for t in (*tensors, *out)]
    getattr(compiled, name)(like.dtype == torch.float32, torch.get_num_threads(), n, parts, channels, *addresses)
    return out[0] if results == 1 else out


def _parts(x):
    """Of features (atoms, C, F)."""
    return {1: 1, 4: 2, 9: 3}[x.shape[1]]


def gather(w, y, first, neighbor, pair):
    return _run("gather", y.shape, len(y), _parts(y), y.shape[2], w, y, first, neighbor, pair)


def dot(a, b, i, j):
    return _run("dot", (len(i), _parts(a), a.shape[2]), len(i), _parts(a), a.shape[2], a, b, i, j)


def anticommutator(a, b):
    return _run("anticommutator", a.shape, len(a), _parts(a), a.shape[2], a, b)


def normalize(x, g=None, h=None):
    return _run("normalize", x.shape, len(x), _parts(x), x.shape[2], x, g, h)


def silu_second(x, g, h):
    return _run("silu_second", x.shape, x.numel(), 1, 16, x, g, h)


def embed(w, d, a, b, first, neighbor, pair):
    return _run("embed", (len(a), w.shape[1] ** 2, w.shape[2]), len(a), w.shape[1], w.shape[2], w, d, a, b, first, neighbor, pair)


def embed_weights(d, a, b, g, i, j):
    return _run("embed_weights", (len(d), _parts(g), g.shape[2]), len(d), _parts(g), g.shape[2], d, a, b, g, i, j)


def embed_directions(w, a, b, g, i, j):
    return _run("embed_directions", (len(w), g.shape[1]), len(w), _parts(g), g.shape[2], w, a, b, g, i, j)


def embed_values(w, d, g, first, neighbor, pair):
    shape = (len(g), g.shape[2])
    return _run("embed_values", shape, len(g), _parts(g), g.shape[2], w, d, g, first, neighbor, pair, results=2)


class Nonlinear(torch.autograd.Function):
    """y = f(x), whose Jacobian is symmetric; a subclass gives the value, slope(x, g) = J g, and second(x, g, h), the gradient of <h, J g> in x."""

    @classmethod
    def forward(cls, ctx, x):
        ctx.save_for_backward(x)
        return cls.value(x)

    @classmethod
    def backward(cls, ctx, g):
        return Slope.apply(*ctx.saved_tensors, g, cls)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g, function):
        ctx.save_for_backward(x, g)
        ctx.function = function
        return function.slope(x, g)

    @staticmethod
    @once_differentiable
    def backward(ctx, h):
        x, g = ctx.saved_tensors
        return ctx.function.second(x, g, h), ctx.function.slope(x, h), None


class Silu(Nonlinear):
    """x / (1 + exp(-x))."""

    value = staticmethod(nn.functional.silu)
    slope = staticmethod(lambda x, g: torch.ops.aten.silu_backward(g, x))
    second = staticmethod(silu_second)


class Normalize(Nonlinear):
    """x / (|x|² + 1), |x| over the components; (atoms, C, F)."""

    value = slope = second = staticmethod(normalize)


class Anticommutator(torch.autograd.Function):
    """<g, {a, b}> = <{g, b^T}, a> = <{g, a^T}, b>; sign: of the components under transposition."""

    @staticmethod
    def forward(ctx, a, b, sign):
        ctx.save_for_backward(a, b, sign)
        return anticommutator(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b, sign = ctx.saved_tensors
        return Anticommutator.apply(g, b * sign[:, None], sign), Anticommutator.apply(g, a * sign[:, None], sign), None


class Gather(torch.autograd.Function):
    """Messages m_i = sum_j w_ij y_j; w (pairs, R, F), y (atoms, C, F). Symmetric pairs make it its own adjoint in y."""

    @staticmethod
    def forward(ctx, w, y, graph):
        ctx.save_for_backward(w, y)
        ctx.graph = graph
        return gather(w, y, graph.first, graph.neighbor, graph.pair)

    @staticmethod
    def backward(ctx, g):
        w, y = ctx.saved_tensors
        return Dot.apply(g, y, ctx.graph), Gather.apply(w, g, ctx.graph), None


class Dot(torch.autograd.Function):
    """Per pair and part, sum_k a_ik b_jk + a_jk b_ik; (pairs, R, F)."""

    @staticmethod
    def forward(ctx, a, b, graph):
        ctx.save_for_backward(a, b)
        ctx.graph = graph
        return dot(a, b, graph.i32, graph.j32)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return Gather.apply(g, b, ctx.graph), Gather.apply(g, a, ctx.graph), None


class Embed(torch.autograd.Function):
    """Sum over neighbours of w_ij d_ij (a_i + b_j); w (pairs, R, F), d (pairs, C), a, b (atoms, F) -> (atoms, C, F)."""

    @staticmethod
    def forward(ctx, w, d, a, b, graph):
        ctx.save_for_backward(w, d, a, b)
        ctx.graph = graph
        return embed(w, d, a, b, graph.first, graph.neighbor, graph.pair)

    @staticmethod
    def backward(ctx, g):
        w, d, a, b = ctx.saved_tensors
        return (
            EmbedWeights.apply(d, a, b, g, ctx.graph), EmbedDirections.apply(w, a, b, g, ctx.graph), *EmbedValues.apply(w, d, g, ctx.graph), None,
        )  # fmt: skip


class EmbedWeights(torch.autograd.Function):
    """Gradient of <g, Embed> in w; (pairs, R, F)."""

    @staticmethod
    def forward(ctx, d, a, b, g, graph):
        ctx.save_for_backward(d, a, b, g)
        ctx.graph = graph
        return embed_weights(d, a, b, g, graph.i32, graph.j32)

    @staticmethod
    def backward(ctx, w):
        d, a, b, g = ctx.saved_tensors
        return (
            EmbedDirections.apply(w, a, b, g, ctx.graph), *EmbedValues.apply(w, d, g, ctx.graph), Embed.apply(w, d, a, b, ctx.graph), None,
        )  # fmt: skip


class EmbedDirections(torch.autograd.Function):
    """Gradient of <g, Embed> in d; (pairs, C)."""

    @staticmethod
    def forward(ctx, w, a, b, g, graph):
        ctx.save_for_backward(w, a, b, g)
        ctx.graph = graph
        return embed_directions(w, a, b, g, graph.i32, graph.j32)

    @staticmethod
    def backward(ctx, d):
        w, a, b, g = ctx.saved_tensors
        return EmbedWeights.apply(d, a, b, g, ctx.graph), *EmbedValues.apply(w, d, g, ctx.graph), Embed.apply(w, d, a, b, ctx.graph), None


class EmbedValues(torch.autograd.Function):
    """Gradients of <g, Embed> in a and in b; (atoms, F) each."""

    @staticmethod
    def forward(ctx, w, d, g, graph):
        ctx.save_for_backward(w, d, g)
        ctx.graph = graph
        return embed_values(w, d, g, graph.first, graph.neighbor, graph.pair)

    @staticmethod
    def backward(ctx, a, b):
        w, d, g = ctx.saved_tensors
        return (
            EmbedWeights.apply(d, a, b, g, ctx.graph),
            EmbedDirections.apply(w, a, b, g, ctx.graph),
            Embed.apply(w, d, a, b, ctx.graph),
            None,
        )
