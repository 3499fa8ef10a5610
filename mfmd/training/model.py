"""The reference model in plain torch: a TensorNet backbone, a head per level, reference energies.

    E_level = sum_i scale_level * (head_level(x_i) - head_level(x of an isolated neutral atom)) + E0_level[Z_i]
              + sum_fragments of_states_level · terms of its state (+ repulsion) (+ constant)

An atom has the charge and multiplicity of its fragment, which is the whole structure unless it says otherwise: they are added to its element's row of the
embedding, linear in positive charge, negative charge and unpaired electrons (state.state_terms).

TensorNet: G. Simeon, G. De Fabritiis, NeurIPS 2023 (arXiv 2306.06482), the O(3) variant. Per atom and channel a 3x3
tensor, kept as components of its irreducible parts I (1), A (3), S (5) in an orthonormal basis, so that the squared
Frobenius norm is the sum of squares; features have the shape (atoms, components, channels).
"""

import math

import torch
from torch import nn

from mfmd.training.heads import TABLE
from mfmd.training.maps import Anticommutator, Embed, Gather, Mix, Normalize, Norms, Scale, Silu, Square
from mfmd.training.radial import RADIAL, Exact, Knots, Repulsion, Tabulated


def symmetric_basis():
    """(5, 3, 3): the matrices the components of S multiply, orthonormal under the Frobenius product."""
    b = torch.zeros(5, 3, 3, dtype=torch.float64)
    for m, (p, q) in enumerate(((0, 1), (0, 2), (1, 2))):
        b[m, p, q] = b[m, q, p] = 1 / math.sqrt(2)
    b[3] = torch.diag(torch.tensor([1.0, -1.0, 0.0])) / math.sqrt(2)
    b[4] = torch.diag(torch.tensor([-1.0, -1.0, 2.0])) / math.sqrt(6)
    return b


def spread(v):
    """A number for each component from one for each part, (R, F) -> (C, F)."""
    return torch.cat([row.expand(2 * k + 1, -1) for k, row in enumerate(v)])


def mix(x, weight):
    """Channel mixing with one matrix a part; (atoms, C, F) and weight (R, F, F)."""
    return Mix.apply(x, weight.transpose(1, 2))


# What makes a backbone, as the header of the model file names it: its sizes, and variants, which are absent there where they are these.
SIZES = ("channels", "layers", "cutoff", "rank", "radial_functions")
VARIANTS = {
    "radial_basis": "expnorm", "self_pair": True, "message": "neighbours", "readout_activation": True, "charge_factor": 0.0, "zbl": None,
    "state_embedding": False,
}  # fmt: skip


class Embedding(nn.Module):
    """Elements, distances and directions of the neighbours -> first tensors (eqs. 5-8)."""

    def __init__(self, channels, rank, radial_functions, self_pair, states):
        super().__init__()
        parts = rank + 1
        self.self_pair = self_pair
        self.states = None
        self.elements = nn.Embedding(TABLE, channels)
        self.pair = nn.Linear(2 * channels, channels)
        self.radial = nn.Linear(radial_functions, parts * channels)
        self.norm = nn.LayerNorm(channels)
        self.gate = nn.ModuleList([nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, parts * channels)])
        self.mixing = mixing_parameter(parts, channels)
        self.register_buffer("symmetric", symmetric_basis().to(torch.get_default_dtype()), persistent=False)
        if states:
            self.add_states()

    def add_states(self):
        """What the terms of a state add to an element's row, which is nothing so far."""
        self.states = nn.Parameter(torch.zeros(3, *self.elements.weight.shape, dtype=self.elements.weight.dtype))

    def forward(self, numbers, graph, states):
        parts = len(self.mixing)
        z = self.elements(numbers)
        channels = z.shape[1]
        # Of the matrix of a direction u: I = 1, A = the cross-product matrix of u, S = u u^T - 1/3.
        u = graph.direction
        symmetric = (u[:, :, None] * u[:, None, :]).view(-1, 9) @ self.symmetric.view(5, 9).T
        direction = torch.cat([math.sqrt(3) * torch.ones_like(u[:, :1]), math.sqrt(2) * u, symmetric], dim=1)[:, : parts**2]
        # Cutoff times radial functions times element pair, whose weight is a sum of one part for each of the two elements.
        w, at_zero = graph.radial([self.radial], False)
        own, other = self.pair.weight.split(channels, dim=1)
        more = None
        if self.states is not None and states is not None:
            more = torch.einsum("at,atf->af", states, self.states[:, numbers].transpose(0, 1))
            z = z + more
        a, b = torch.addmm(self.pair.bias, z, own.T), z @ other.T
        x = Embed.apply(w.view(-1, parts, channels), direction, a, b, graph)
        # Distance zero, no direction; a state has it in every backbone, so that ions by themselves differ.
        if self.self_pair or more is not None:
            self_pair = math.sqrt(3) * at_zero[:channels] * (a + b if self.self_pair else more @ (own + other).T)
            x = x + nn.functional.pad(self_pair[:, None], (0, 0, 0, parts**2 - 1))

        gate = self.norm(Norms.apply(x).sum(1))
        for linear in self.gate:
            gate = Silu.apply(linear(gate))
        return Scale.apply(gate.view(-1, parts, channels), mix(x, self.mixing))


class Layer(nn.Module):
    """One message-passing layer (eqs. 9-11); a message is the sum of the neighbours' tensors, each times its pair's weight, or the atom's own tensor
    times the sum of the weights."""

    def __init__(self, channels, rank, radial_functions, self_pair, message):
        super().__init__()
        parts = rank + 1
        self.self_pair, self.message = self_pair, message
        self.radial = nn.ModuleList(
            [nn.Linear(radial_functions, channels), nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, parts * channels)]
        )
        self.mixing_in = mixing_parameter(parts, channels)
        self.mixing_out = mixing_parameter(parts, channels)

    def forward(self, x, graph, factor):
        x = Normalize.apply(x)
        y = mix(x, self.mixing_in)
        w, at_zero = graph.radial(self.radial, True)
        w = w.view(-1, *self.mixing_in.shape[:2])
        if self.message == "own":
            total = w.new_zeros(len(x), *w.shape[1:])
            message = Scale.apply(total.index_add(0, graph.i, w).index_add(0, graph.j, w), y)
        else:
            message = Gather.apply(w, y, graph)
        if self.self_pair:
            message = torch.addcmul(message, y, spread(at_zero.view(w.shape[1:])))
        product = Anticommutator.apply(y, message)
        product = product if factor is None else factor * product
        dx = mix(Normalize.apply(product), self.mixing_out)
        square = Square.apply(dx)
        return x + dx + (square if factor is None else factor * square)


class Readout(nn.Module):
    """Invariants of the last tensors, (atoms, C, F) -> (atoms, F) (eq. 12)."""

    def __init__(self, channels, rank, activation):
        super().__init__()
        self.activation = activation
        self.norm = nn.LayerNorm((rank + 1) * channels)
        self.linear = nn.Linear((rank + 1) * channels, channels)

    def forward(self, x):
        x = self.linear(self.norm(Norms.apply(x).flatten(1)))
        return Silu.apply(x) if self.activation else x


def mixing_parameter(parts, channels):
    """(parts, out, in), as torch's Linear without bias starts."""
    bound = 1 / math.sqrt(channels)
    return nn.Parameter(torch.empty(parts, channels, channels).uniform_(-bound, bound))


class Graph:
    """One of each pair and its reverse: atoms, direction from i to j, functions of distance, from the knots where these are given."""

    def __init__(self, radial, positions, i, j, shifts, knots=None, rows=None):
        vector = positions[j] - positions[i] + shifts
        distance = torch.linalg.vector_norm(vector, dim=1)
        unit = vector / distance[:, None]
        self.i, self.j, self.direction = i, j, unit
        self.first, self.neighbor, self.pair = rows_of(i, j, len(positions)) if rows is None else rows
        self.i32, self.j32 = i.int(), j.int()
        self.radial = Exact(radial, distance) if knots is None else Tabulated(knots, distance)


def rows_of(i, j, atoms):
    """The pairs again in rows of atoms, for sums that are gathered: first, neighbor and pair as a batches.Batch has them."""
    both = torch.cat([i, j])
    order = torch.argsort(both, stable=True)
    first = nn.functional.pad(torch.bincount(both, minlength=atoms).cumsum(0), (1, 0))
    pair = torch.where(order < len(i), order, len(i) - 1 - order)  # ~p where it is turned round
    return first.int(), torch.cat([j, i])[order].int(), pair.int()


def _knots_of_what_was_loaded(backbone, _):
    """A radial basis that others have trained is another than the one that a backbone begins with."""
    backbone.knots = Knots(backbone.radial).to(backbone.embedding.elements.weight.device)


class TensorNet(nn.Module):
    """The backbone.

    Parameters
    ----------
    channels : a multiple of 16; layers : 0 and up; cutoff : Å; rank : highest tensor rank kept, 0, 1 or 2;
    radial_functions : size of the radial basis
    radial_basis : "expnorm" or "smooth_bessel"
    self_pair : whether an atom is a neighbour of itself, at distance zero
    message : of the "neighbours", or of the atom's "own" tensor
    readout_activation : whether the features pass a SiLU at last
    charge_factor : per elementary charge of a structure, what products are multiplied by is 1 + charge_factor · charge
    zbl : cutoff (Å) of a repulsion of nuclei that every level's energy has in it, or None
    state_embedding : whether charge and multiplicity are part of an atom's embedding
    """

    def __init__(
        self,
        channels,
        layers,
        cutoff,
        rank,
        radial_functions,
        radial_basis="expnorm",
        self_pair=True,
        message="neighbours",
        readout_activation=True,
        charge_factor=0.0,
        zbl=None,
        state_embedding=False,
    ):
        super().__init__()
        given = locals()
        self.architecture = {key: given[key] for key in (*SIZES, *VARIANTS)}
        self.radial = RADIAL[radial_basis](cutoff, radial_functions)
        self.knots = Knots(self.radial)
        self.register_load_state_dict_post_hook(_knots_of_what_was_loaded)
        self.embedding = Embedding(channels, rank, radial_functions, self_pair, state_embedding)
        self.layers = nn.ModuleList([Layer(channels, rank, radial_functions, self_pair, message) for _ in range(layers)])
        self.readout = Readout(channels, rank, readout_activation)
        self.repulsion = None if zbl is None else Repulsion(zbl)

    def add_states(self):
        """Begin to tell charges and multiplicities apart; nothing is predicted otherwise yet."""
        if not self.architecture["state_embedding"]:
            self.architecture["state_embedding"] = True
            self.embedding.add_states()

    def forward(self, numbers, positions, i, j, shifts, states=None, rows=None):
        """Invariant features (atoms, channels). positions, shifts in Å; i, j, shifts: one of each pair and its reverse; states: (atoms, 3) terms of the
        states, None for neutral closed shells; rows: see rows_of."""
        tabulated = self.training and positions.dtype == torch.float32 and len(i) > 2 * len(self.knots.basis)
        graph = Graph(self.radial, positions, i, j, shifts, self.knots if tabulated else None, rows)
        charge_factor, factor = self.architecture["charge_factor"], None
        if charge_factor and states is not None:
            factor = (1 + charge_factor * (states[:, 0] - states[:, 1]))[:, None, None]
        x = self.embedding(numbers, graph, states)
        for layer in self.layers:
            x = layer(x, graph, factor)
        return self.readout(x)


class Prediction:
    """Of one level: network_energy (structures,) eV without E0 but with any repulsion, energy (structures,) eV double, forces, stress or None.

    deviations (structures, members): of an ensemble, by how much each member's energy differs from network_energy, their mean; or None
    """

    def __init__(self, network_energy, energy, deviations=None):
        self.network_energy, self.energy, self.deviations = network_energy, energy, deviations
        self.forces = self.stress = None


class Model(nn.Module):
    """Backbone and heads.

    Parameters
    ----------
    backbone : TensorNet
    heads : {level: MLPHead, GatedHead or LinearHead}, cheapest level first
    delta_of : {level: level before it}, for heads that are differences to another level
    """

    def __init__(self, backbone, heads, delta_of=None):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.delta_of = dict(delta_of or {})

    @property
    def levels(self):
        return list(self.heads)

    def chain(self, level):
        """The heads whose energies add up to this level's."""
        heads = []
        while level is not None:
            heads.append(level)
            level = self.delta_of.get(level)
        return heads

    def constant(self, level):
        """eV a structure of this level, whatever its size."""
        return sum(self.heads[head].constant for head in self.chain(level))

    def features(self, batch, positions, shifts):
        """Of a batches.Batch, with its atoms there: features of the atoms (atoms, F), and those of isolated neutral atoms (kinds, F)."""
        # Isolated atoms ride along, without a pair.
        numbers, kinds = batch.numbers, batch.kinds
        alone = positions.new_zeros(len(kinds), 3)
        first = torch.cat([batch.first, batch.first[-1:].expand(len(kinds))])
        x = self.backbone(
            torch.cat([numbers, kinds]),
            torch.cat([positions, alone]),
            batch.i,
            batch.j,
            shifts,
            torch.cat([batch.states, alone]),
            (first, batch.neighbor, batch.pair),
        )
        return x[: len(numbers)], x[len(numbers) :]

    def repulsion(self, batch, positions, shifts):
        """Of the nuclei of each structure, (structures,) eV; zero of a backbone without."""
        out = positions.new_zeros(len(batch.sizes))
        if self.backbone.repulsion is None:
            return out
        return out.index_add(0, batch.structure, self.backbone.repulsion(batch.numbers, positions, batch.i, batch.j, shifts))

    def forward(self, batch, forces=(), stress=()):
        """Predictions {level: Prediction} of all levels for a batches.Batch; forces and stress for the levels named.

        Energies without forces or stress keep their graph only where gradients are enabled.
        """
        positions, shifts = batch.positions, batch.shifts
        n = len(batch.sizes)
        create_graph = torch.is_grad_enabled() and self.training
        with torch.enable_grad() if forces or stress else torch.set_grad_enabled(torch.is_grad_enabled()):
            strain = None
            if forces or stress:
                positions = positions.detach().requires_grad_()
            moved, moved_shifts = positions, shifts
            if stress:
                strain = positions.new_zeros(n, 3, 3, requires_grad=True)
                symmetric = 0.5 * (strain + strain.transpose(1, 2))
                moved = positions + torch.einsum("ni,nij->nj", positions, symmetric[batch.structure])
                moved_shifts = shifts + torch.einsum("ni,nij->nj", shifts, symmetric[batch.structure[batch.i]])
            (x, isolated), kinds, kind = self.features(batch, moved, moved_shifts), batch.kinds, batch.kind
            own, e0, deviations = {}, {}, {}
            for level, head in self.heads.items():
                atoms = (head(x, batch.numbers) - head(isolated, kinds)[kind]) * head.scale.to(x.dtype)
                own[level] = atoms.new_zeros(n).index_add(0, batch.structure, atoms)
                if getattr(head, "members", 1) > 1:
                    each = (head.each(x) - head.each(isolated)[kind]) * head.scale.to(x.dtype) - atoms[:, None]
                    deviations[level] = each.new_zeros(n, head.members).index_add(0, batch.structure, each)
                e0[level] = torch.zeros(n, dtype=torch.float64, device=x.device).index_add(0, batch.structure, head.e0[batch.numbers])
                e0[level] = e0[level] + batch.fragments @ head.of_states
            repulsion = self.repulsion(batch, moved, moved_shifts)
            out = {}
            for level in self.heads:
                network = repulsion + sum(own[h] for h in self.chain(level))
                known = sum(e0[h] for h in self.chain(level)) + self.constant(level)
                out[level] = Prediction(network, network.double() + known, deviations.get(level))
            wanted = [level for level in self.heads if level in forces or level in stress]
            for level in wanted:
                inputs = [positions] + ([strain] if level in stress else [])
                gradients = torch.autograd.grad(
                    out[level].network_energy.sum(), inputs, create_graph=create_graph, retain_graph=create_graph or level != wanted[-1]
                )
                out[level].forces = -gradients[0]
                if level in stress:
                    g = gradients[1] / batch.volume[:, None, None]
                    out[level].stress = torch.stack([g[:, 0, 0], g[:, 1, 1], g[:, 2, 2], g[:, 1, 2], g[:, 0, 2], g[:, 0, 1]], dim=1)
        return out
