"""Structures as batches of tensors, and which structures a batch holds."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from mfmd import progress
from mfmd.structures.packed import Packed
from mfmd.structures.record import KINDS
from mfmd.training.processes import first_process_first
from mfmd.training.records import FIELDS, Filed, Held, spans

DTYPE = {"single": torch.float32, "tf32": torch.float32, "double": torch.float64}


def device_of(module):
    """Where its parameters are, and what it is given has to be."""
    return next(module.parameters()).device


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
    first: torch.Tensor  # (atoms + 1,) int32, where in the rows of neighbours those of an atom begin
    neighbor: torch.Tensor  # (2 pairs,) int32
    pair: torch.Tensor  # (2 pairs,) int32, which pair it is, ~p where it is turned round
    kinds: torch.Tensor  # (kinds,) atomic numbers that there are, ascending
    kind: torch.Tensor  # (atoms,) which of these an atom is of

    def to(self, device):
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self):
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change):
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Batch(**{k: {n: change(t) for n, t in v.items()} if isinstance(v, dict) else change(v) for k, v in values.items()})


class Feed(torch.utils.data.Dataset):
    """Structures whose pairs have been found, and the batches of them that a DataLoader asks for.

    records : records.Held or records.Filed; index : which of these the structures are; levels : whose labels a batch has
    left_out : {level: (structures,) bool, whose label of it does not count}
    """

    def __init__(self, records, index, levels, dtype, left_out):
        self.records, self.index, self.levels, self.dtype, self.left_out = records, index, list(levels), dtype, left_out

    def __len__(self):
        return len(self.index)

    def __getitems__(self, indices):
        """The Batch of some of the structures."""
        words, starts = self.records.take(self.index[indices])
        columns = {name: k for k, name in enumerate((*FIELDS, *itertools.product(self.records.levels, KINDS)))}
        lengths = words[starts[:, None] + np.arange(len(columns))]
        begins = starts[:, None] + len(columns) + np.cumsum(lengths, axis=1) - lengths

        def field(name, *shape, only=slice(None)):
            k = columns[name]
            return words[spans(begins[only, k], lengths[only, k])].view(np.float64).reshape(-1, *shape)

        sizes, pairs, images = (lengths[:, columns[name]] // width for name, width in (("numbers", 1), ("pairs", 2), ("images", 3)))
        numbers, atoms = field("numbers").view(np.int64), _before(sizes)
        columns_of_pairs = field("pairs").view(np.int32).reshape(-1, 4).T
        i, j, image, turned = (
            c + np.repeat(n, pairs) for c, n in zip(columns_of_pairs, (atoms, atoms, _before(images), _before(pairs)), strict=True)
        )
        kinds, kind = np.unique(numbers, return_inverse=True)

        def labels(of, rows, shape, dtype):
            out = {}
            for level in self.levels:
                has = lengths[:, columns[level, of]] > 0
                if level in self.left_out:
                    has &= ~self.left_out[level][indices]
                if has.any():
                    values = np.full((rows.sum(), *shape), np.nan)
                    values[np.repeat(has, rows)] = field((level, of), *shape, only=has)
                    out[level] = torch.from_numpy(values).to(dtype)
            return out

        one = np.ones_like(sizes)
        return Batch(
            numbers=torch.from_numpy(numbers),
            positions=torch.from_numpy(field("positions", 3)).to(self.dtype),
            structure=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
            i=torch.from_numpy(i),
            j=torch.from_numpy(j),
            shifts=torch.from_numpy(field("images", 3)).to(self.dtype)[torch.from_numpy(image)],
            states=torch.from_numpy(field("states", 3)).to(self.dtype),
            fragments=torch.from_numpy(field("fragments", 3)),
            volume=torch.from_numpy(field("volume")).to(self.dtype),
            sizes=torch.from_numpy(sizes),
            energy=labels("energy", one, (), torch.float64),
            forces=labels("forces", sizes, (3,), self.dtype),
            stress=labels("stress", one, (6,), self.dtype),
            **{name: torch.from_numpy(rows) for name, rows in neighbor_rows(i, j, turned, len(numbers)).items()},
            kinds=torch.from_numpy(kinds),
            kind=torch.from_numpy(kind),
        )


def _before(count):
    """How many stand before each."""
    return np.cumsum(count) - count


def neighbor_rows(i, j, turned, atoms):
    """The rows of a Batch of which an atom's are first its pairs as i, then those as j, each in their order.

    i, j : (pairs,), i ascending; turned : (pairs,) what sorts j
    """
    as_i, as_j = np.bincount(i, minlength=atoms), np.bincount(j, minlength=atoms)
    p = np.arange(len(i), dtype=np.int32)
    first = np.concatenate([[0], np.cumsum(as_i + as_j)])
    forward, back = p + _before(as_j)[i], p + np.cumsum(as_i)[j[turned]]
    neighbor, pair = np.empty((2, 2 * len(i)), np.int32)
    neighbor[forward], neighbor[back] = j, i[turned]
    pair[forward], pair[back] = p, ~turned
    return {"first": first.astype(np.int32), "neighbor": neighbor, "pair": pair}


def feed(structures, levels, config):
    """The Feed of a list of structures, whose records are held in memory, or of a Packed, whose are beside its file.

    levels : whose labels a batch has
    """
    cutoff, dtype = config.backbone.cutoff, DTYPE[config.train.precision]
    if not isinstance(structures, Packed):
        return Feed(
            Held(progress.over(structures, "finding the pairs", "structures"), levels, cutoff),
            np.arange(len(structures)),
            levels,
            dtype,
            {},
        )
    left_out = {level: np.isin(structures.index, list(records)) for level, records in structures.dropped.items()}
    with first_process_first():
        records = Filed(structures, config.levels, cutoff)
    return Feed(records, structures.index, levels, dtype, left_out)


def collate(structures, levels, cutoff, dtype):
    """A Batch of Structure records with the labels of `levels`; a level without a label of a kind has no entry there."""
    every = np.arange(len(structures))
    return Feed(Held(structures, levels, cutoff), every, levels, dtype, {}).__getitems__(every)


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
