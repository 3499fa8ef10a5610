"""What training spends its time in is compiled (csrc/kernels/training.cpp): two nonlinear functions, whose gradients are written out twice, and
multilinear maps, each of whose adjoints is one of them again, so that they are differentiable as often as one likes."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mfmd.engine import load_torch_host

load_torch_host()


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
    second = staticmethod(torch.ops.mfmd.silu_second)


class Normalize(Nonlinear):
    """x / (|x|² + 1), |x| over the components; (atoms, C, F)."""

    value = slope = second = staticmethod(torch.ops.mfmd.normalize)


class Anticommutator(torch.autograd.Function):
    """<g, {a, b}> = <{g, b^T}, a> = <{g, a^T}, b>; sign: of the components under transposition."""

    @staticmethod
    def forward(ctx, a, b, sign):
        ctx.save_for_backward(a, b, sign)
        return torch.ops.mfmd.anticommutator(a, b)

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
        return torch.ops.mfmd.gather(w, y, graph.first, graph.neighbor, graph.pair)

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
        return torch.ops.mfmd.dot(a, b, graph.i32, graph.j32)

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
        return torch.ops.mfmd.embed(w, d, a, b, graph.first, graph.neighbor, graph.pair)

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
        return torch.ops.mfmd.embed_weights(d, a, b, g, graph.i32, graph.j32)

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
        return torch.ops.mfmd.embed_directions(w, a, b, g, graph.i32, graph.j32)

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
        return torch.ops.mfmd.embed_values(w, d, g, graph.first, graph.neighbor, graph.pair)

    @staticmethod
    def backward(ctx, a, b):
        w, d, g = ctx.saved_tensors
        return (
            EmbedWeights.apply(d, a, b, g, ctx.graph),
            EmbedDirections.apply(w, a, b, g, ctx.graph),
            Embed.apply(w, d, a, b, ctx.graph),
            None,
        )
