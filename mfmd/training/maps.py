"""What training spends its time in is compiled (csrc/kernels/training.hpp): two nonlinear functions, whose gradients are written out twice, and
multilinear maps, each of whose adjoints is one of them again, so that they are differentiable as often as one likes."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mfmd.engine import training_maps as compiled


def _aligned(t):
    t = t.contiguous()
    return t if t.data_ptr() % 64 == 0 else t.clone()


def stream_of(t):
    """Where a map of such tensors is enqueued: the address of a CUDA stream, None on the CPU."""
    return torch.cuda.current_stream(t.device).cuda_stream if t.is_cuda else None


def multiplies(x):
    """Whether products of matrices are compiled here too; on a device torch has its library's."""
    return not x.is_cuda


def _run(name, shape, n, parts, channels, *tensors, results=1, more=()):
    """New tensors of a shape, filled by a compiled map: n rows, from tensors of one type (and int32) on one device, None where one is left out, and numbers more."""
    like = tensors[0]
    if like.device.type not in ("cpu", "cuda") or channels % 16:
        raise ValueError(f"{name}: tensors must be on the CPU or a CUDA device, and channels a multiple of 16")
    tensors = [None if t is None else _aligned(t) for t in tensors]
    if any(t is not None and (t.dtype not in (like.dtype, torch.int32) or t.device != like.device) for t in tensors):
        raise ValueError(f"{name}: tensors must be of one type, and on one device")
    out = [like.new_empty(shape) for _ in range(results)]
    addresses = [0 if t is None else t.data_ptr() for t in (*tensors, *out)]
    with torch.cuda.device_of(like):
        getattr(compiled, name)(
            like.dtype == torch.float32, torch.get_num_threads(), stream_of(like), n, parts, channels, [*addresses, *more]
        )
    return out[0] if results == 1 else out


def _parts(x):
    """Of features (atoms, C, F)."""
    return {1: 1, 4: 2, 9: 3}[x.shape[1]]


def split(x):
    """The parts of (atoms, C, F)."""
    return x.split([2 * k + 1 for k in range(_parts(x))], dim=1)


def gather(w, y, first, neighbor, pair):
    return _run("gather", y.shape, len(y), _parts(y), y.shape[2], w, y, first, neighbor, pair)


def dot(a, b, i, j):
    return _run("dot", (len(i), _parts(a), a.shape[2]), len(i), _parts(a), a.shape[2], a, b, i, j)


def anticommutator(a, b, a_turned, b_turned):
    return _run("anticommutator", a.shape, len(a), _parts(a), a.shape[2], a, b, more=(a_turned + 2 * b_turned,))


def scale(v, x):
    return _run("scale", x.shape, len(x), _parts(x), x.shape[2], v, x)


def dots(a, b):
    return _run("dots", (len(a), _parts(a), a.shape[2]), len(a), _parts(a), a.shape[2], a, b)


def mix(x, m):
    if not multiplies(x):
        return torch.cat([part @ w for part, w in zip(split(x), m, strict=True)], dim=1)
    return _run("mix", x.shape, len(x), _parts(x), x.shape[2], x, m)


def mix_weights(x, g):
    parts, channels = _parts(x), x.shape[2]
    if not multiplies(x):
        return torch.stack([a.reshape(-1, channels).T @ b.reshape(-1, channels) for a, b in zip(split(x), split(g), strict=True)])
    return _run("mix_weights", (parts, channels, channels), parts * channels, parts, channels, x, g, more=(len(x),))


def normalize(x, g=None, h=None):
    return _run("normalize", x.shape, len(x), _parts(x), x.shape[2], x, g, h)


def silu_second(x, g, h):
    return _run("silu_second", x.shape, x.numel(), 1, 16, x, g, h)


def interpolate(c, table, knot):
    return _run("interpolate", (len(c), table.shape[1]), len(c), 1, table.shape[1], c, table, knot)


def interpolate_coefficients(table, g, knot):
    return _run("interpolate_coefficients", (len(g), 4), len(g), 1, table.shape[1], table, g, knot)


def interpolate_table(c, g, first, pair):
    knots = len(first) - 1
    return _run("interpolate_table", (2 * knots, g.shape[1]), knots, 1, g.shape[1], c, g, first, pair)


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
    """{a, b} with either of the two transposed or not: <g, {a, b}> = <{g, b^T}, a> = <{g, a^T}, b>, and <g, {a^T, b}> = <{g^T, b}, a>; (atoms, C, F)."""

    @staticmethod
    def forward(ctx, a, b, a_turned=False, b_turned=False):
        ctx.save_for_backward(a, b)
        ctx.turned = a_turned, b_turned
        return anticommutator(a, b, a_turned, b_turned)

    @staticmethod
    def backward(ctx, g):
        (a, b), (a_turned, b_turned) = ctx.saved_tensors, ctx.turned
        return (
            Anticommutator.apply(g, b, a_turned, b_turned == a_turned), Anticommutator.apply(g, a, b_turned, a_turned == b_turned), None, None,
        )  # fmt: skip


class Square(torch.autograd.Function):
    """a a = {a, a} / 2; (atoms, C, F)."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return 0.5 * anticommutator(a, a, False, False)

    @staticmethod
    def backward(ctx, g):
        return Anticommutator.apply(g, *ctx.saved_tensors, False, True)


class Mix(torch.autograd.Function):
    """x_k m of the part of k; x (atoms, C, F), m (R, F, F)."""

    @staticmethod
    def forward(ctx, x, m):
        ctx.save_for_backward(x, m)
        return mix(x, m)

    @staticmethod
    def backward(ctx, g):
        x, m = ctx.saved_tensors
        return Mix.apply(g, m.transpose(1, 2)), MixWeights.apply(x, g)


class MixWeights(torch.autograd.Function):
    """Gradient of <g, Mix> in m; (R, F, F)."""

    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return mix_weights(x, g)

    @staticmethod
    def backward(ctx, m):
        x, g = ctx.saved_tensors
        return Mix.apply(g, m.transpose(1, 2)), Mix.apply(x, m)


class Scale(torch.autograd.Function):
    """Each part of x times a number; v (atoms, R, F), x (atoms, C, F)."""

    @staticmethod
    def forward(ctx, v, x):
        ctx.save_for_backward(v, x)
        return scale(v, x)

    @staticmethod
    def backward(ctx, g):
        v, x = ctx.saved_tensors
        return Dots.apply(g, x), Scale.apply(v, g)


class Dots(torch.autograd.Function):
    """Of each part the sum of a_k b_k over its components; (atoms, R, F)."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return dots(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return Scale.apply(g, b), Scale.apply(g, a)


class Norms(torch.autograd.Function):
    """Of each part the sum of squares of its components; (atoms, R, F)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return dots(x, x)

    @staticmethod
    def backward(ctx, g):
        return Scale.apply(2 * g, *ctx.saved_tensors)


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


class Interpolate(torch.autograd.Function):
    """Sum over m of c_m t_(2 knot + m) for every pair; c (pairs, 4), t (2 knots, N) -> (pairs, N)."""

    @staticmethod
    def forward(ctx, c, t, knots):
        ctx.save_for_backward(c, t)
        ctx.knots = knots
        return interpolate(c, t, knots.knot)

    @staticmethod
    def backward(ctx, g):
        c, t = ctx.saved_tensors
        return InterpolateCoefficients.apply(t, g, ctx.knots), InterpolateTable.apply(c, g, ctx.knots), None


class InterpolateCoefficients(torch.autograd.Function):
    """Gradient of <g, Interpolate> in c; (pairs, 4)."""

    @staticmethod
    def forward(ctx, t, g, knots):
        ctx.save_for_backward(t, g)
        ctx.knots = knots
        return interpolate_coefficients(t, g, knots.knot)

    @staticmethod
    def backward(ctx, c):
        t, g = ctx.saved_tensors
        return InterpolateTable.apply(c, g, ctx.knots), Interpolate.apply(c, t, ctx.knots), None


class InterpolateTable(torch.autograd.Function):
    """Gradient of <g, Interpolate> in t; (2 knots, N)."""

    @staticmethod
    def forward(ctx, c, g, knots):
        ctx.save_for_backward(c, g)
        ctx.knots = knots
        return interpolate_table(c, g, knots.first, knots.pair)

    @staticmethod
    def backward(ctx, t):
        c, g = ctx.saved_tensors
        return InterpolateCoefficients.apply(t, g, ctx.knots), Interpolate.apply(c, t, ctx.knots), None


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
