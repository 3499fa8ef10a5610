"""Which structures are one: the same atoms in the same order at the same places and in the same states; and which are but for a rotation or the order.
Near numbers are found by a tree over a few random projections, never by comparing all pairs."""

import numpy as np
from scipy.spatial import cKDTree

SAME = 1e-4  # Å
ALIKE = 1e-3  # Å, in every distance
PROJECTIONS = 8
AT_ONCE = 4_000_000  # numbers that are looked at a time


def same(structures, states=True):
    """For every structure the index of the first that is the same: numbers in order, states (or whatever they are in), positions to SAME, cell and
    periodicity."""
    first = np.arange(len(structures))
    for group in _groups(structures, states).values():
        if len(group) > 1:
            few, chosen, again = _few(structures, group, _along)
            pairs = [(group[chosen[a]], group[chosen[b]]) for a, b in cKDTree(few).query_pairs(SAME, p=np.inf)]
            for a, b in _equal(structures, structures, pairs + again, _places, SAME):
                _join(first, a, b)
    return np.array([_root(first, k) for k in range(len(first))], dtype=int)


def alike(some, others):
    """{index of one of some molecules: that of one of others} which is the same but for a rotation, a shift, a reflection or the order of the atoms: it has
    the same distances between the same elements."""
    found = {}
    here, there = _compositions(some), _compositions(others)
    for key in here.keys() & there.keys():
        mine, theirs = here[key], there[key]
        few, chosen, _ = _few(others, theirs, _radii)
        near = cKDTree(few).query_ball_point(_radii([some[k] for k in mine]), ALIKE, p=np.inf)
        pairs = [(k, theirs[chosen[n]]) for k, ones in zip(mine, near, strict=True) for n in ones]
        found |= dict(_equal(some, others, pairs, _distances, ALIKE))
    return found


def _compositions(structures):
    """{sorted numbers of each state: indices} of molecules."""
    out = {}
    for group in _groups(structures).values():
        s = structures[group[0]]
        if len(s.numbers) > 1 and not np.any(s.pbc):
            fragment, states = (s.fragment, s.states) if s.state_key and len(s.states) > 1 else (np.zeros(len(s.numbers)), s.states[:1])
            parts = sorted((state, np.sort(s.numbers[np.equal(fragment, k)]).tobytes()) for k, state in enumerate(states))
            out.setdefault(tuple(parts), []).extend(group)
    return out


def _places(structures):
    """(structures, numbers): positions, and the cell where it is periodic."""
    positions = np.stack([s.positions for s in structures]).reshape(len(structures), -1)
    periodic = np.asarray(structures[0].pbc, bool)
    if not periodic.any():
        return positions
    return np.concatenate([positions, np.stack([np.asarray(s.cell)[periodic].ravel() for s in structures])], axis=1)


def _distances(structures):
    """(structures, pairs) distances, ascending for each pair of elements; these stand apart by more than a distance is."""
    numbers, positions = (np.stack([np.asarray(getattr(s, key), float) for s in structures]) for key in ("numbers", "positions"))
    i, j = np.triu_indices(numbers.shape[1], 1)
    kinds = np.minimum(numbers[:, i], numbers[:, j]) * 128 + np.maximum(numbers[:, i], numbers[:, j])
    return np.sort(np.linalg.norm(positions[:, i] - positions[:, j], axis=2) + 1e4 * kinds, axis=1)


def _along(structures):
    """Positions along a few random directions: what is near is near here, by less than the tolerance."""
    places = _places(structures)
    directions = np.random.default_rng(places.shape[1]).normal(size=(places.shape[1], min(places.shape[1], PROJECTIONS)))
    return places @ (directions / np.abs(directions).sum(0))


def _radii(structures):
    """Radii of gyration, and such of the fourth power, with several weights of the elements: each differs by less than the distances do."""
    numbers, positions = (np.stack([np.asarray(getattr(s, key), float) for s in structures]) for key in ("numbers", "positions"))
    out = []
    for weights in (np.ones_like(numbers), numbers, (numbers == 1) + 1e-3):
        weights = weights / weights.sum(1, keepdims=True)
        square = np.sum((positions - np.einsum("na,nax->nx", weights, positions)[:, None]) ** 2, axis=2)
        out += [np.sqrt(np.sum(weights * square, axis=1)), 0.25 * np.sum(weights * square**2, axis=1) ** 0.25]
    return np.stack(out, axis=1)


def _groups(structures, states=True):
    """Lists of indices of structures with the same numbers in order, in the same states (or whatever they are in) and with the same periodicity."""
    groups = {}
    for k, s in enumerate(structures):
        groups.setdefault((s.numbers.tobytes(), bytes(s.pbc), states and s.state_key), []).append(k)
    return groups


def _few(structures, group, few_of):
    """Different rows of the few numbers of a group; which of the group has each first; and pairs of structures, that one and one that has the row again."""
    step = max(1, AT_ONCE // len(structures[group[0]].numbers))
    few = np.concatenate([few_of([structures[k] for k in group[n : n + step]]) for n in range(0, len(group), step)])
    few, chosen, which = np.unique(few, axis=0, return_index=True, return_inverse=True)
    firsts = chosen[which.ravel()]
    return few, chosen, [(group[firsts[k]], group[k]) for k in np.flatnonzero(firsts != np.arange(len(group)))]


def _equal(some, others, pairs, numbers_of, tolerance):
    """Of pairs of indices those whose numbers are all within the tolerance."""
    for n in range(0, len(pairs), 10_000):
        part = pairs[n : n + 10_000]
        x, y = numbers_of([some[a] for a, _ in part]), numbers_of([others[b] for _, b in part])
        yield from (part[k] for k in np.flatnonzero(np.abs(x - y).max(axis=1) < tolerance))


def _join(first, a, b):
    a, b = _root(first, a), _root(first, b)
    first[max(a, b)] = min(a, b)


def _root(first, k):
    while first[k] != k:
        k = first[k]
    return k
