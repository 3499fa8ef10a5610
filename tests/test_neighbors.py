"""Pairs against ASE's neighbour list."""

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from conftest import random_cell, random_model, write

from mfmd.engine import Engine, InputError, neighbor_list

PERIODIC = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]


def as_set(i, j, s):
    return {(int(a), int(b), *map(int, c)) for a, b, c in zip(i, j, s, strict=True)}


def ase_pairs(atoms, cutoff):
    return as_set(*primitive_neighbor_list("ijS", atoms.pbc, atoms.cell.array, atoms.positions, cutoff))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("pbc", PERIODIC)
@pytest.mark.parametrize("seed", range(4))
def test_same_pairs_as_ase(seed, pbc, small):
    atoms = random_cell(seed, pbc, small, atoms=3 + 5 * seed)
    for cutoff in (1.5, 3.7, 6.0):
        i, j, s, d = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        assert as_set(i, j, s) == ase_pairs(atoms, cutoff)
        rows = np.column_stack([i, j, s])
        assert np.array_equal(rows, rows[np.lexsort(rows.T[::-1])])  # (i, j, S) order
        np.testing.assert_allclose(d, atoms.positions[j] - atoms.positions[i] + s @ atoms.cell.array, atol=1e-12)


def test_large_boxes_use_bins():
    rng = np.random.default_rng(0)
    for pbc in ((True, True, True), (False, True, False), (False, False, False)):
        cell = np.array([[30.0, 0, 0], [4, 25, 0], [-3, 5, 28]])
        positions = rng.uniform(-0.3, 1.3, (800, 3)) @ cell
        i, j, s, _ = neighbor_list(positions, cell, pbc, 4.0)
        assert as_set(i, j, s) == as_set(*primitive_neighbor_list("ijS", pbc, cell, positions, 4.0))


def test_missing_cell_vectors_along_free_directions():
    cell = np.array([[0.0, 0, 0], [0, 3.0, 0.5], [0, 0, 0]])
    positions = np.random.default_rng(3).uniform(0, 6, (7, 3))
    i, j, s, _ = neighbor_list(positions, cell, (False, True, False), 4.0)
    assert as_set(i, j, s) == as_set(*primitive_neighbor_list("ijS", (False, True, False), cell, positions, 4.0))


@pytest.mark.parametrize("pbc", [(True, True, True), (False, False, True), (False, False, False)])
def test_list_follows_moves_and_cells(tmp_path, pbc):
    """A workspace that lives through small moves, large ones and cell changes equals a fresh one bit for bit."""
    pytest.importorskip("torch")
    path = write(random_model(2, 16, 1), tmp_path / "m.pt")
    rng = np.random.default_rng(5)
    atoms = random_cell(8, pbc, atoms=15)
    old = Engine(path, "double", skin=1.0)
    rebuilt = []
    for step, size in enumerate((0, 0.02, 0.02, 0.02, 0.6, 0.02, 0.0, 0.02)):
        atoms.positions += rng.uniform(-size, size, atoms.positions.shape)
        if step == 6:
            atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
        args = (atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
        got, fresh = (e.compute(*args, terms=[("low", 1.0)]) for e in (old, Engine(path, "double")))
        assert got["energy"] == fresh["energy"] and np.array_equal(got["forces"], fresh["forces"])
        rebuilt.append(old._workspace.rebuilds)
    assert rebuilt[:4] == [1, 1, 1, 1] and rebuilt[4] == 2
    assert rebuilt[6] > rebuilt[5] or not any(pbc)


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), [[4, 0, 0], [8, 0, 0], [0, 0, 4]], [[4, 0, 0], [0, 4, 0], [4, 4, 0]]])
def test_flat_cells_are_refused(cell):
    with pytest.raises(InputError, match="flat"):
        neighbor_list(np.zeros((1, 3)), cell, (True, True, True), 4.0)


def test_non_finite_positions_are_refused():
    with pytest.raises(InputError, match="atom 1 is not finite"):
        neighbor_list([[0, 0, 0], [0, np.nan, 0]], np.zeros((3, 3)), (False, False, False), 4.0)
