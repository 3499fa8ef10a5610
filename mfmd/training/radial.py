"""Functions of the distance of two atoms: the cutoff, the radial bases, what networks make of them, and a repulsion of nuclei."""

import copy
import math

import torch
from torch import nn

from mfmd.training.maps import Interpolate, Silu, Slope
from mfmd.units import BOHR, COULOMB


def envelope(d, cutoff):
    """Cosine cutoff (Unke & Meuwly 2019, eq. 8)."""
    return 0.5 * (torch.cos(d * (math.pi / cutoff)) + 1)


class ExpNormal(nn.Module):
    """Exponential normal functions under a cosine cutoff (Unke & Meuwly 2019, eqs. 7-9); (pairs,) -> (pairs, K)."""

    def __init__(self, cutoff, size):
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.register_buffer("means", torch.linspace(start, 1, size))
        self.register_buffer("betas", torch.full((size,), (2 / size * (1 - start)) ** -2))

    def forward(self, d):
        x = torch.exp(d * (-5 / self.cutoff))
        return envelope(d, self.cutoff)[:, None] * torch.exp(-self.betas * (x[:, None] - self.means) ** 2)


class SmoothBessel(nn.Module):
    """Orthogonalised spherical Bessel functions that vanish with two derivatives at the cutoff (Kocer, Mason & Erturk, AIP Adv. 10, 015021, 2020;
    the order zero of M3GNet); (pairs,) -> (pairs, K)."""

    def __init__(self, cutoff, size):
        super().__init__()
        self.cutoff, self.size = cutoff, size

    def forward(self, d):
        out, before = [], 1.0  # d_(n-1)
        for n in range(self.size):
            a, b = n + 1, n + 2
            factor = (-1) ** n * math.sqrt(2) * math.pi * self.cutoff**-1.5 * a * b / math.hypot(a, b)
            f = factor * (torch.sinc(d * (a / self.cutoff)) + torch.sinc(d * (b / self.cutoff)))
            e = n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1)
            if n == 0:
                out.append(f)
                continue
            now = 1.0 - e / before
            out.append((f + math.sqrt(e / before) * out[-1]) / math.sqrt(now))
            before = now
        return torch.stack(out, dim=1)


RADIAL = {"expnorm": ExpNormal, "smooth_bessel": SmoothBessel}


class Exact:
    """Networks of a radial basis, times the cutoff, at distances (pairs,)."""

    def __init__(self, radial, distance):
        self.basis, self.envelope = radial(distance), envelope(distance, radial.cutoff)
        self.at_zero = radial(distance.new_zeros(1))

    def __call__(self, linears, activated):
        """What linear layers, each with a SiLU behind it where `activated`, give for each pair, (pairs, outputs), and at distance zero, (outputs,)."""
        w, zero = self.basis, self.at_zero
        for linear in linears:
            w, zero = linear(w), linear(zero)
            if activated:
                w, zero = Silu.apply(w), Silu.apply(zero)
        return w * self.envelope[:, None], zero[0]


class Knots(nn.Module):
    """A radial basis and the cutoff, and their slopes, at even distances."""

    SPACING = 0.01  # Å, about: slopes are then off by less than 1e-4 of the largest

    def __init__(self, radial):
        super().__init__()
        exact, count = copy.deepcopy(radial).cpu().double(), math.ceil(radial.cutoff / self.SPACING) + 1
        d = torch.linspace(0, radial.cutoff, count, dtype=torch.float64)
        self.spacing = radial.cutoff / (count - 1)
        for name, function in {"basis": exact, "envelope": lambda d: envelope(d, radial.cutoff)[:, None]}.items():
            with torch.enable_grad():
                value = function(d.requires_grad_())
                slopes = [torch.autograd.grad(column.sum(), d, retain_graph=True)[0] for column in value.T]
            self.register_buffer(name, value.detach().float(), persistent=False)
            self.register_buffer(f"{name}_slope", torch.stack(slopes, dim=1).float(), persistent=False)


class Tabulated:
    """The same as Exact in less time where there are many more pairs than knots: networks are evaluated at the knots, with their slopes, and Hermite's cubics lie
    between. They have a slope everywhere, but no more; in single precision."""

    def __init__(self, knots, distance):
        self.knots, count, h = knots, len(knots.basis), knots.spacing
        x = distance / h
        knot = x.detach().floor().clamp(max=count - 2)
        t = x - knot
        s = 1 - t
        self.hermite = torch.stack([(1 + 2 * t) * s * s, h * t * s * s, t * t * (3 - 2 * t), -h * t * t * s], dim=1)
        knot = knot.long()
        self.knot, self.pair = knot.int(), torch.argsort(knot, stable=True).int()
        self.first = nn.functional.pad(torch.bincount(knot, minlength=count).cumsum(0), (1, 0)).int()

    def __call__(self, linears, activated):
        k = self.knots
        w, slope = k.basis, k.basis_slope
        for linear in linears:
            w, slope = linear(w), slope @ linear.weight.T
            if activated:
                w, slope = Silu.apply(w), Slope.apply(w, slope, Silu)
        table = torch.stack([w * k.envelope, slope * k.envelope + w * k.envelope_slope], dim=1).view(-1, w.shape[1])
        return Interpolate.apply(self.hermite, table, self), w[0]


class Repulsion(nn.Module):
    """Screened repulsion of nuclei under a cosine cutoff (Ziegler, Biersack & Littmark 1985, eqs. 9, 10 of p. 147), as torchmd-net has it.

    V(d) = k Z_i Z_j / d · phi(d / a) · cutoff(d), a = 0.8854 a_0 / (Z_i^0.23 + Z_j^0.23)
    """

    TERMS = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))

    def __init__(self, cutoff):
        super().__init__()
        self.cutoff = cutoff  # Å

    def forward(self, numbers, positions, i, j, shifts):
        """Energies of atoms (atoms,), eV; a pair's is shared by its two."""
        d = torch.linalg.vector_norm(positions[j] - positions[i] + shifts, dim=1)
        near = d < self.cutoff
        i, j, d = i[near], j[near], d[near]
        z = numbers.to(d.dtype)
        x = d / (0.8854 * BOHR) * (z[i] ** 0.23 + z[j] ** 0.23)
        phi = sum(factor * torch.exp(-rate * x) for factor, rate in self.TERMS)
        half = 0.5 * COULOMB * z[i] * z[j] / d * phi * envelope(d, self.cutoff)
        return torch.zeros_like(z).index_add(0, i, half).index_add(0, j, half)
