"""Structures as batches of tensors, and which structures a batch holds."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from ase.geometry import wrap_positions

from mfmd.engine import neighbor_list
from mfmd.structures.state import state_terms

DTYPE = {"single": torch.float32, "double": torch.float64}


@dataclass
class Batch:
    """Structures one behind the other. Pairs are one of each (i, j, S), (j, i, -S); the model adds the reverse."""

    numbers: torch.Tensor  # (atoms,)
    positions: torch.Tensor  # (atoms, 3) Å
    structure: torch.Tensor  # (atoms,) which structure an atom belongs to
    i: torch.Tensor  # (pairs,)
    j: torch.Tensor  # (pairs,)
    shifts: torch.Tensor  # (pairs, 3) S @ cell, Å
    states: torch.Tensor  # (atoms, 3) state_terms of the fragment an atom belongs to
    fragments: torch.Tensor  # (structures, 3) their sum over the fragments, double
    volume: torch.Tensor  # (structures,) Å³
    sizes: torch.Tensor  # (structures,) atoms
    energy: dict[str, torch.Tensor]  # (structures,) eV, double; NaN where missing
    forces: dict[str, torch.Tensor]  # (atoms, 3) eV/Å; a level without any is absent
    stress: dict[str, torch.Tensor]  # (structures, 6) eV/Å³; likewise


def half_pairs(structure, cutoff):
    """One of each pair and its reverse: i, j, S @ cell."""
    i, j, shifts, _ = neighbor_list(structure.positions, structure.cell, structure.pbc, cutoff)
    forward = (i < j) | ((i == j) & _positive(shifts))
    cell = np.where(np.asarray(structure.pbc)[:, None], structure.cell, 0.0)
    return i[forward], j[forward], shifts[forward] @ cell


def _positive(shifts):
    return (shifts[:, 0] > 0) | ((shifts[:, 0] == 0) & ((shifts[:, 1] > 0) | ((shifts[:, 1] == 0) & (shifts[:, 2] > 0))))


def centred(s):
    """The structure about the origin, atoms of a crystal in its cell: distances are as good in single precision wherever it lies."""
    positions = wrap_positions(s.positions, s.cell, s.pbc, eps=0) if np.any(s.pbc) else s.positions
    return dataclasses.replace(s, positions=positions - positions.mean(0))


def collate(structures, levels, cutoff, dtype):
    """A Batch of Structure records with the labels of `levels`; a level without a label of a kind has no entry there."""
    structures = [centred(s) for s in structures]
    pairs, start = [], 0
    for s in structures:
        i, j, shift = half_pairs(s, cutoff)
        pairs.append((i + start, j + start, shift))
        start += len(s.numbers)
    sizes, terms = [len(s.numbers) for s in structures], [state_terms(s.states) for s in structures]

    def labels(kind, empty, kind_dtype):
        out = {}
        for level in levels:
            values = [getattr(s.labels[level], kind) if level in s.labels else None for s in structures]
            if any(v is not None for v in values):
                filled = [empty(n) if v is None else np.reshape(v, empty(n).shape) for v, n in zip(values, sizes, strict=True)]
                out[level] = torch.as_tensor(np.concatenate(filled), dtype=kind_dtype)
        return out

    return Batch(
        numbers=torch.as_tensor(np.concatenate([s.numbers for s in structures]), dtype=torch.long),
        positions=torch.as_tensor(np.concatenate([s.positions for s in structures]), dtype=dtype),
        structure=torch.repeat_interleave(torch.arange(len(structures)), torch.tensor(sizes)),
        i=torch.as_tensor(np.concatenate([p[0] for p in pairs]), dtype=torch.long),
        j=torch.as_tensor(np.concatenate([p[1] for p in pairs]), dtype=torch.long),
        shifts=torch.as_tensor(np.concatenate([p[2] for p in pairs]), dtype=dtype),
        states=torch.as_tensor(np.concatenate([of[_fragments(s)] for s, of in zip(structures, terms, strict=True)]), dtype=dtype),
        fragments=torch.as_tensor(np.stack([of.sum(0) for of in terms]), dtype=torch.float64),
        volume=torch.as_tensor([abs(np.linalg.det(s.cell)) if s.pbc.all() else 1.0 for s in structures], dtype=dtype),
        sizes=torch.tensor(sizes),
        energy=labels("energy", lambda n: np.full(1, np.nan), torch.float64),
        forces=labels("forces", lambda n: np.full((n, 3), np.nan), dtype),
        stress=labels("stress", lambda n: np.full((1, 6), np.nan), dtype),
    )


def _fragments(s):
    """Which of its fragments each atom of a structure belongs to."""
    return s.fragment if np.size(s.fragment) else np.zeros(len(s.numbers), int)


def collation(config, levels):
    dtype = DTYPE[config.train.precision]
    return lambda structures: collate(structures, levels, config.backbone.cutoff, dtype)


class Sampler(torch.utils.data.Sampler):
    """Every structure `weight` times an epoch (fractions by lot), in an order that only seed and epoch decide."""

    def __init__(self, weights, seed):
        self.weights, self.seed, self.epoch = np.asarray(weights, float), seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        times = np.floor(self.weights).astype(int)
        rest = self.weights - times
        if (extra := len(self) - times.sum()) > 0:
            times[rng.choice(len(times), extra, replace=False, p=rest / rest.sum())] += 1
        order = np.repeat(np.arange(len(self.weights)), times)
        rng.shuffle(order)
        return map(int, order)

    def __len__(self):
        return max(1, round(self.weights.sum()))


class Batches(torch.utils.data.Sampler):
    """Of each batch of `size` structures that a Sampler gives the share of one process; a last batch too small for all joins the one before."""

    def __init__(self, sampler, size, rank=0, world=1):
        self.sampler, self.size, self.rank, self.world = sampler, size, rank, world

    def __iter__(self):
        order = list(self.sampler)
        for k in range(len(self)):
            end = (k + 1) * self.size if k + 1 < len(self) else len(order)
            yield order[k * self.size : end][self.rank :: self.world]

    def __len__(self):
        whole, rest = divmod(len(self.sampler), self.size)
        return max(1, whole + (rest >= self.world))
