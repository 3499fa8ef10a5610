"""Functions of the distance of two atoms: the cutoff, the radial bases, and a repulsion of nuclei."""

import math

import torch
from torch import nn

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
