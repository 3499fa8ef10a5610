"""Batches gathered from records are what was put together structure by structure."""

import dataclasses

import numpy as np
import pytest
from conftest import ethanol, random_cell

pytest.importorskip("lightning")
import torch

from mfmd.structures.packed import pack
from mfmd.structures.record import Label, Structure
from mfmd.structures.state import State, state_terms
from mfmd.training import batches
from mfmd.training.records import Filed, Held, centred, half_pairs

CUTOFF, LEVELS = 4.0, ["low", "high"]


def put_together(structures, levels, cutoff, dtype):
    """The fields of a Batch, each concatenated over the structures, and the rows sorted as a whole."""
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

    i, j = (torch.as_tensor(np.concatenate([p[k] for p in pairs]), dtype=torch.long) for k in (0, 1))
    both = torch.cat([i, j])
    order = torch.argsort(both, stable=True)
    numbers = torch.as_tensor(np.concatenate([s.numbers for s in structures]), dtype=torch.long)
    kinds, kind = torch.unique(numbers, return_inverse=True)
    of_atoms = [of[s.fragment if np.size(s.fragment) else np.zeros(len(s.numbers), int)] for s, of in zip(structures, terms, strict=True)]
    return {
        "numbers": numbers,
        "positions": torch.as_tensor(np.concatenate([s.positions for s in structures]), dtype=dtype),
        "structure": torch.repeat_interleave(torch.arange(len(structures)), torch.tensor(sizes)),
        "i": i,
        "j": j,
        "shifts": torch.as_tensor(np.concatenate([p[2] for p in pairs]), dtype=dtype),
        "states": torch.as_tensor(np.concatenate(of_atoms), dtype=dtype),
        "fragments": torch.as_tensor(np.stack([of.sum(0) for of in terms]), dtype=torch.float64),
        "volume": torch.as_tensor([abs(np.linalg.det(s.cell)) if s.pbc.all() else 1.0 for s in structures], dtype=dtype),
        "sizes": torch.tensor(sizes),
        "energy": labels("energy", lambda n: np.full(1, np.nan), torch.float64),
        "forces": labels("forces", lambda n: np.full((n, 3), np.nan), dtype),
        "stress": labels("stress", lambda n: np.full((1, 6), np.nan), dtype),
        "first": torch.cat([torch.zeros(1), torch.bincount(both, minlength=len(numbers)).cumsum(0)]).int(),
        "neighbor": torch.cat([j, i])[order].int(),
        "pair": torch.where(order < len(i), order, len(i) - 1 - order).int(),
        "kinds": kinds,
        "kind": kind,
    }


def assert_equal(batch, wanted):
    assert set(batch.__dataclass_fields__) == set(wanted)
    for name, value in wanted.items():
        found = getattr(batch, name)
        assert not isinstance(value, dict) or list(found) == list(value), name
        for one, other in zip(found.values(), value.values(), strict=True) if isinstance(value, dict) else [(found, value)]:
            assert one.dtype == other.dtype and one.shape == other.shape, name
            assert torch.equal(torch.nan_to_num(one, 7.0), torch.nan_to_num(other, 7.0)), name


@pytest.fixture
def structures():
    """Molecules far from the origin, ions in two fragments, atoms alone, crystals and a slab whose cells are smaller than the cutoff; labels here and there."""
    rng, out = np.random.default_rng(0), []
    frames = [ethanol(), random_cell(1, atoms=20), random_cell(2, atoms=3), ethanol(), ethanol()[:1], random_cell(3, atoms=7)] * 4
    for k, atoms in enumerate(frames):
        n, labels = len(atoms), {}
        if k % 6 == 5:
            atoms.pbc = [True, False, True]
        if k % 3:
            labels["low"] = Label(rng.normal(), rng.normal(size=(n, 3)), None)
        if k % 4 == 0:
            labels["high"] = Label(None if k % 8 else rng.normal(), None if k % 3 else rng.normal(size=(n, 3)), rng.normal(size=6))
        positions = atoms.positions + rng.normal(size=(n, 3)) * 0.05 + 100 * rng.normal(size=3)
        s = Structure(atoms.numbers, positions, atoms.cell.array, atoms.pbc, labels, str(k))
        if k % 6 == 3:
            s.states, s.fragment = (State(1, 2), State(-1, 1)), np.arange(n) % 2
        out.append(s)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gathered_is_put_together(structures, dtype, tmp_path):
    """Bit for bit, from memory and from a file, whatever the order, with structures twice and labels left out."""
    rng = np.random.default_rng(1)
    assert_equal(batches.collate(structures, LEVELS, CUTOFF, dtype), put_together(structures, LEVELS, CUTOFF, dtype))
    packed = pack(structures, tmp_path / "set.packed").subset(rng.permutation(len(structures)))
    for k in range(0, len(packed), 3):
        packed.drop_label(k, "low")
    left_out = {"low": np.arange(len(packed)) % 3 == 0}
    from_file = batches.Feed(Filed(packed, LEVELS, CUTOFF), packed.index, LEVELS, dtype, left_out)
    in_memory = batches.Feed(Held(structures, LEVELS, CUTOFF), np.arange(len(structures)), LEVELS, dtype, {})
    for size in (1, 1, 1, 2, 5, 60):
        chosen = rng.integers(0, len(structures), size).tolist()
        assert_equal(in_memory.__getitems__(chosen), put_together([structures[k] for k in chosen], LEVELS, CUTOFF, dtype))
        assert_equal(from_file.__getitems__(chosen), put_together([packed[k] for k in chosen], LEVELS, CUTOFF, dtype))
        assert_equal(
            batches.collate([structures[k] for k in chosen], ["high"], CUTOFF, dtype),
            put_together([structures[k] for k in chosen], ["high"], CUTOFF, dtype),
        )


def test_a_file_of_records_is_written_once_and_again_where_it_does_not_fit(structures, tmp_path, monkeypatch):
    packed = pack(structures, tmp_path / "set.packed")
    for levels, cutoff in ((LEVELS, CUTOFF), (LEVELS, 5.0), (["low"], 5.0)):
        Filed(packed, levels, cutoff)
        batch = batches.Feed(Filed(packed, levels, cutoff), packed.index, ["low"], torch.float64, {}).__getitems__([1, 2])
        assert_equal(batch, put_together(structures[1:3], ["low"], cutoff, torch.float64))
    monkeypatch.setattr("mfmd.training.records.record", None)
    Filed(packed, ["low"], 5.0)


def test_a_batch_goes_whole(structures):
    """To another device: each of its tensors, those of the levels too."""
    batch = batches.collate(structures, LEVELS, CUTOFF, torch.float32)
    moved = batch.to("meta")
    for name in (f.name for f in dataclasses.fields(batch)):
        value, other = getattr(batch, name), getattr(moved, name)
        for one, there in zip(value.values(), other.values(), strict=True) if isinstance(value, dict) else [(value, other)]:
            assert there.device.type == "meta" and there.shape == one.shape
