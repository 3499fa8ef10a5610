"""Heads: what turns the features of an atom into its energy at one level."""

import itertools
import math

import torch
from torch import nn

from mfmd.training.maps import Silu

TABLE = 119  # rows of per-element tables, indexed by atomic number
ERROR_BARS = ("factor", "isolated", "noise")


class Head(nn.Module):
    """scale (eV), e0 (eV, by atomic number) and of_states (eV a fragment, times state.state_terms) are double, and no gradient trains them; `constant`
    is eV a structure, whatever its size, and zero but for levels that others have trained so.

    Error bars of what linear algebra has fitted are those of a linear model on the last features, one weight vector and E0 an element, whatever the head:
    factor (columns, columns) of Cholesky, of its covariance, eV; isolated (elements, F) features of isolated atoms; noise, eV² an atom. Empty where there are none.
    """

    constant = 0.0

    def __init__(self, scale, e0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("e0", torch.as_tensor(e0, dtype=torch.float64))
        self.register_buffer("of_states", torch.zeros(3, dtype=torch.float64))
        for name in ERROR_BARS:
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    @property
    def has_error_bars(self):
        return self.factor.numel() > 0

    def set_error_bars(self, **bars):
        """Those named in ERROR_BARS, or none of them, so that there are none."""
        for name in ERROR_BARS:
            setattr(self, name, torch.as_tensor(bars.get(name, ()), dtype=torch.float64, device=self.e0.device))

    def _load_from_state_dict(self, state_dict, prefix, *more):
        state_dict.setdefault(f"{prefix}of_states", torch.zeros(3, dtype=torch.float64))  # of runs before there were any
        self.set_error_bars(
            **{name: torch.empty_like(state_dict.setdefault(prefix + name, self.e0[:0])) for name in ERROR_BARS}
        )  # as large as they are there
        super()._load_from_state_dict(state_dict, prefix, *more)


class MLPHead(Head):
    """Features -> energy of an atom.

    With several members it is an ensemble whose mean is the head's energy and whose spread, times `calibration`, its standard
    deviation (a shallow ensemble: Kellner & Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006, 2024). They are slices of one hidden layer,
    so that to an engine the ensemble is a head like any other.
    """

    kind = "mlp"

    def __init__(self, channels, scale, e0, zero_start, members=1):
        super().__init__(scale, e0)
        self.members = members
        self.hidden = nn.Linear(channels, members * (channels // 2))
        self.out = nn.Linear(members * (channels // 2), 1)
        if members > 1:  # each member starts as large as a head alone
            self.out.weight.data /= math.sqrt(members)
            self.register_buffer("calibration", torch.ones((), dtype=torch.float64))
        if zero_start:  # a relative head starts as no difference at all
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, x, numbers):
        return self.out(Silu.apply(self.hidden(x)))[:, 0]

    def each(self, x):
        """Energies of the members, (atoms, members); their mean is `forward`."""
        parts = Silu.apply(self.hidden(x)) * self.out.weight[0]
        return self.members * parts.view(len(x), self.members, -1).sum(2) + self.out.bias


class GatedHead(Head):
    """Features -> energy of an atom as the product of a value and a sigmoid gate, each a perceptron of its own (the weighted read-out of M3GNet: Chen &
    Ong, Nat. Comput. Sci. 2, 718, 2022).

    hidden : widths of the hidden layers of both
    """

    kind = "gated"

    def __init__(self, channels, hidden, scale, e0):
        super().__init__(scale, e0)
        widths = [channels, *hidden, 1]
        self.value, self.gate = (nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)]) for _ in range(2))

    @property
    def hidden(self):
        return [layer.out_features for layer in self.value[:-1]]

    def forward(self, x, numbers):
        out = []
        for *layers, last in (self.value, self.gate):
            h = x
            for layer in layers:
                h = Silu.apply(layer(h))
            out.append(last(h)[:, 0])
        return out[0] * torch.sigmoid(out[1])


class LinearHead(Head):
    """Features times a weight vector per element: what fit.py solves in closed form.

    e0 : eV, by atomic number
    """

    kind = "linear"

    def __init__(self, channels, e0):
        super().__init__(1.0, e0)
        self.weight = nn.Parameter(torch.zeros(TABLE, channels))

    def forward(self, x, numbers):
        return (self.weight[numbers] * x).sum(1)
