"""How alike two energies of a model answer to its weights: the gradients that Gauss-Newton is made of, as features of a Gaussian process.

    K(s, t) = sum_w width_w² · dE_s/dθ_w · dE_t/dθ_w / sqrt(atoms_s atoms_t) + E0_WIDTH² · counts_s · counts_t / sqrt(atoms_s atoms_t)

the neural tangent kernel (Jacot, Gabriel, Hongler, NeurIPS 2018, arXiv 1806.07572) with a prior as wide as the weights of each matrix are large. A row of it
is an energy over the root of the number of atoms, or the force along a direction over the root of RATIO.
"""

import numpy as np
import torch

from mfmd import progress
from mfmd.structures.state import state_terms
from mfmd.training.batches import device_of
from mfmd.training.heads import TABLE

MOST_GRADIENTS = 8e9  # bytes; the gradients of all rows in as many weights are held at a time
COLUMNS = 4096  # of gradients that are in double at a time
E0_WIDTH = 1.0  # eV, how far E0 may go from where it began before it counts as unlikely
RATIO = 100.0  # variance of a force component over that of an energy an atom, Å⁻², where nothing better is known
DIRECTIONS = 8  # of the forces of a structure that stand for all


class Weights:
    """The weight matrices of a model's backbone and of some of its heads, as one vector; biases, norms and what is tabulated by element are not among them.

    width : (size,) double, the root mean square of the matrix that a weight belongs to; of what states add to the rows of elements, that of these rows
    """

    def __init__(self, model, heads):
        self.model = model
        every = (*model.backbone.parameters(), *(p for name in heads for p in model.heads[name].parameters()))
        self.matrices = [p for p in every if p.dim() > 1 and len(p) != TABLE]
        rows = model.backbone.embedding
        like = [rows.elements.weight if p is rows.states else p for p in self.matrices]
        self.sizes = [p.numel() for p in self.matrices]
        scales = [max(p.detach().double().square().mean().sqrt().item(), 1e-6) for p in like]
        self.width = torch.repeat_interleave(torch.tensor(scales, dtype=torch.float64), torch.tensor(self.sizes)).to(device_of(model))

    def __len__(self):
        return sum(self.sizes)

    def get(self):
        """As they are, (size,) double."""
        return torch.cat([p.detach().double().flatten() for p in self.matrices])

    def put(self, vector):
        with torch.no_grad():
            for p, part in zip(self.matrices, vector.split(self.sizes), strict=True):
                p.copy_(part.view_as(p))

    def gradient(self, of, more=False):
        """(size,) of a number that was computed with them; more : another is to come of the same computation."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(of, self.matrices, retain_graph=more)])

    def pieces(self, rows):
        """Slices of the vector, of each of which the gradients of so many rows take no more than MOST_GRADIENTS."""
        most = max(1, int(MOST_GRADIENTS / rows / self.matrices[0].element_size()))
        return [slice(k, min(k + most, len(self))) for k in range(0, len(self), most)]


def gradients(weights, structures, level, collate, piece, what):
    """The gradients of the structures' energies in a piece of the weights, (structures, size); what : in words."""
    out = weights.matrices[0].new_empty(len(structures), piece.stop - piece.start)
    for row, s in zip(out, progress.over(structures, what, "structures"), strict=True):
        energy = weights.model(collate([s]).to(out.device))[level].network_energy.sum()
        row.copy_(weights.gradient(energy)[piece])
    return out


def columns(found):
    """Some columns at a time of the gradients in pieces of the weights, in double, and which they are; found : (piece, gradients) one by one."""
    for piece, part in found:
        for k in range(0, part.shape[1], COLUMNS):
            some = part[:, k : k + COLUMNS].double()
            yield some, slice(piece.start + k, piece.start + k + some.shape[1])


def counts(structures, elements, fit_e0=True):
    """(structures, elements + 3): what E0 and the terms of states are multiplied by; without `fit_e0` zero of the first."""
    atoms = np.array([[np.count_nonzero(s.numbers == z) for z in elements] for s in structures], float).reshape(-1, len(elements))
    return np.hstack([atoms * fit_e0, np.array([state_terms(s.states).sum(0) for s in structures]).reshape(-1, 3)])


def predictions(model, structures, level, collate, batch_size=64):
    """(structures,) total energies of a level, eV."""
    parts = []
    with torch.no_grad():
        for k in range(0, len(structures), batch_size):
            parts.append(model(collate(structures[k : k + batch_size]).to(device_of(model)))[level].energy.cpu())
    return torch.cat(parts).numpy()


# ------------------------------------------------------------------------------------------------ rows of energies and forces


def rows_of(weights, structure, level, collate, forces=False):
    """The rows of a structure without its E0, (1 or 1 + DIRECTIONS, size), in the type of the weights: gradient times width over the root of atoms or RATIO.

    The forces are those along unit vectors over all atoms, which only the structure's positions decide.
    """
    batch = collate([structure]).to(device_of(weights.model))
    positions = batch.positions.requires_grad_(forces)
    energy = weights.model(batch)[level].network_energy.sum()
    rows = [weights.gradient(energy, more=forces) / np.sqrt(len(structure.numbers))]
    if forces:
        slope = torch.autograd.grad(energy, positions, create_graph=True)[0]
        for k, direction in enumerate(_directions(structure)):
            along = -(slope * torch.as_tensor(direction).to(slope)).sum()
            rows.append(weights.gradient(along, more=k < DIRECTIONS - 1) / np.sqrt(RATIO))
    return torch.stack(rows) * weights.width.to(rows[0])


def _directions(structure):
    """(DIRECTIONS, atoms, 3) unit vectors."""
    seed = np.frombuffer(np.ascontiguousarray(structure.positions, float).tobytes(), np.uint32)
    d = np.random.default_rng(seed).normal(size=(DIRECTIONS, *np.shape(structure.positions)))
    return d / np.linalg.norm(d.reshape(DIRECTIONS, -1), axis=1)[:, None, None]


def e0_rows(structures, elements, forces=False, fit_e0=True):
    """What E0 and states have to do with the rows of structures, (structures, rows, elements + 3); nothing with forces; fit_e0 : as for `counts`."""
    sizes = np.array([len(s.numbers) for s in structures], float)
    out = np.zeros((len(structures), 1 + DIRECTIONS * forces, len(elements) + 3))
    out[:, 0] = E0_WIDTH * counts(structures, elements, fit_e0) / np.sqrt(sizes)[:, None]
    return out


class Sketch:
    """A random projection of gradients (Charikar, Chen, Farach-Colton, ICALP 2002): each weight, with a sign of its own, is added to one of `width` sums.

    The product of two sketches is that of the vectors, give or take |a| |b| sqrt(2 / width), one standard deviation at most.
    """

    def __init__(self, size, width):
        rng = np.random.default_rng(0)
        self.width = width
        self.bucket = torch.from_numpy(rng.integers(width, size=size))
        self.sign = torch.from_numpy(2.0 * rng.integers(2, size=size) - 1.0).float()

    def __call__(self, rows):
        """(rows, size) float -> (rows, width) float"""
        return rows.new_zeros(len(rows), self.width).index_add_(1, self.bucket, rows * self.sign)


def gram(weights, sets, level, collate, elements):
    """K of all rows of (structures, forces) one behind the other, (rows, rows) double; their gradients are found once for every piece of the weights."""
    every = [(s, forces) for structures, forces in sets for s in structures]
    e0 = torch.from_numpy(
        np.concatenate([e0_rows(structures, elements, forces).reshape(-1, len(elements) + 3) for structures, forces in sets])
    )
    ends = np.cumsum([1 + DIRECTIONS * forces for _, forces in every])
    out = e0 @ e0.T
    for piece in weights.pieces(len(e0)):
        part = weights.matrices[0].new_empty(len(e0), piece.stop - piece.start)
        for end, (s, forces) in zip(ends, progress.over(every, "gradients of the energies", "structures"), strict=True):
            part[end - 1 - DIRECTIONS * forces : end] = rows_of(weights, s, level, collate, forces)[:, piece]
        for some, _ in columns([(piece, part)]):
            out.addmm_(some.cpu(), some.cpu().T)
    return out
