"""Whether labels are what they are taken for, by two laws of mechanics that need no model.

The pull of stretched bonds: the force on a hydrogen atom along its bond to a heavier atom falls with the length of the bond, by some 30 to 50 eV/Å²
in molecules, liquids and far from equilibrium. A gradient rises; another unit is another number.

Energy against work: between two near frames, in the same states, E_b − E_a = −½ (F_a + F_b) · (R_b − R_a) to third order, and with a strain ε of the cell, under the
stresses σ, + ½ (σ_a + σ_b) : ε V (the trapezoidal rule).
"""

from dataclasses import dataclass, replace

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from mfmd.engine import neighbor_list

# Whose bonds to hydrogen have 13 eV/Å² (Te) and more; those of metals may be as soft as 5.
NONMETALS = [atomic_numbers[symbol] for symbol in ("B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Te", "I")]
STRETCHED = 1.25  # times the sum of covalent radii, up to which atoms are bonded
MOST_STRUCTURES = 1_000  # whose bonds are looked at
FAR = 20.0  # times the median, from where a point is of a label that has gone wrong
NEAR = 0.3  # Å, root mean square of the displacements of near frames
MOST_STRAIN = 0.05
MOST_FRAMES, MOST_WORK = 60, 2_000_000  # of a group; pairs times atoms of it
MOST_GROUPS, RUN = 60, 6  # of a large group, runs of so many frames that follow each other, as those of a trajectory are near


@dataclass
class Slope:
    """y = value · x, how many points say so, and their correlation; of pairs of frames, how many frames."""

    value: float
    correlation: float
    points: int
    frames: int = 0


def _slope(x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    kept = np.abs(y) <= FAR * np.median(np.abs(y)) if len(y) else slice(None)
    x, y = x[kept], y[kept]
    if len(x) < 3 or not x.any() or not y.any():
        return Slope(np.nan, 0.0, len(x))
    value = float(x @ y / (x @ x))
    return Slope(value, float(x @ y / np.sqrt((x @ x) * (y @ y))), len(x))


def pull(structures, level):
    """eV/Å² by which the force along a bond of hydrogen to a nonmetal changes with its length; lengths and forces less the median of the heavier element."""
    lengths, forces = {}, {}
    labelled = [s for s in structures if level in s.labels and s.labels[level].forces is not None and 1 in s.numbers]
    for s in labelled[:: 1 + len(labelled) // MOST_STRUCTURES]:
        i, j, _, vectors = neighbor_list(s.positions, s.cell, s.pbc, 1.25 * (0.31 + covalent_radii[s.numbers].max()))
        chosen = (s.numbers[i] == 1) & np.isin(s.numbers[j], NONMETALS)
        distance = np.linalg.norm(vectors[chosen], axis=1)
        i, j, vectors = i[chosen], j[chosen], vectors[chosen]
        bonded = distance < STRETCHED * (covalent_radii[1] + covalent_radii[s.numbers[j]])
        along = -np.einsum("pk,pk->p", s.labels[level].forces[i[bonded]], vectors[bonded]) / distance[bonded]  # away from the heavier atom
        for z, d, f in zip(s.numbers[j[bonded]], distance[bonded], along, strict=True):
            lengths.setdefault(int(z), []).append(d)
            forces.setdefault(int(z), []).append(f)
    centred = [[np.subtract(values[z], np.median(values[z])) for z in values] for values in (lengths, forces)]
    return _slope(*(np.concatenate(part) if part else [] for part in centred))


def work(structures, level):
    """Energy differences over the forces' work, between near frames of the same atoms in the same order and states (and cell)."""
    works, differences, frames = [], [], 0
    for group in _groups(structures, level, "forces", lambda s: (*_atoms(s), _cell(s).round(4).tobytes())):
        for a, b, moved, turn in _pairs(group):
            fa, fb = (np.stack([group[k].labels[level].forces for k in index]) for index in (a, b))
            works += list(-0.5 * np.einsum("pik,pik->p", fa + (fb @ turn if turn is not None else fb), moved))
            differences += [group[q].labels[level].energy - group[p].labels[level].energy for p, q in zip(a, b, strict=True)]
            frames += len(np.union1d(a, b))
    return replace(_slope(works, differences), frames=frames)


def stress_work(structures, level):
    """Energy differences, less the forces' work, over the stresses' work, between frames whose cells are near."""
    works, differences = [], []
    for group in _groups(structures, level, "stress", _atoms):
        for p, one in enumerate(group):
            for other in group[p + 1 :]:
                strain = np.linalg.solve(one.cell, other.cell) - np.eye(3)
                strain = 0.5 * (strain + strain.T)
                inside = (other.positions - other.positions.mean(0)) @ np.linalg.inv(other.cell)
                inside -= (one.positions - one.positions.mean(0)) @ np.linalg.inv(one.cell)
                moved = (inside - np.round(inside)) @ one.cell
                if not 1e-6 < np.abs(strain).max() < MOST_STRAIN or np.sqrt(np.mean(moved**2)) > NEAR:
                    continue
                a, b = one.labels[level], other.labels[level]
                volume = 0.5 * (abs(np.linalg.det(one.cell)) + abs(np.linalg.det(other.cell)))
                sigma = 0.5 * (a.stress + b.stress)
                done = 0.0 if a.forces is None or b.forces is None else -0.5 * np.sum((a.forces + b.forces) * moved)
                if done == 0.0 and np.abs(moved).max() > 1e-3:
                    continue
                works.append(volume * (sigma[:3] @ np.diag(strain) + 2.0 * sigma[3:] @ strain[[1, 0, 0], [2, 2, 1]]))
                differences.append(b.energy - a.energy - done)
    return _slope(works, differences)


def _atoms(s):
    return s.numbers.tobytes(), tuple(map(bool, s.pbc)), s.state_key


def _cell(s):
    return np.where(np.asarray(s.pbc)[:, None], s.cell, 0.0)


def _groups(structures, level, kind, key):
    """Lists of structures that have the level's energy and this label, and one key; of large ones some runs, spread evenly."""
    groups = {}
    for s in structures:
        label = s.labels.get(level)
        if label is not None and label.energy is not None and getattr(label, kind) is not None:
            groups.setdefault(key(s), []).append(s)
    for group in sorted(groups.values(), key=len, reverse=True)[:MOST_GROUPS]:
        most = max(2, min(MOST_FRAMES, int(np.sqrt(2 * MOST_WORK / len(group[0].numbers)))))
        if len(group) > 1:
            starts = range(0, len(group), -(-len(group) * RUN // most)) if len(group) > most else ()
            yield [s for start in starts for s in group[start : start + RUN]] or group


def _pairs(group):
    """(indices a, indices b, displacements (pairs, atoms, 3) of b from a, rotations (pairs, 3, 3) that turn b onto a or None) of the near frames."""
    positions = np.stack([s.positions for s in group])
    a, b = np.triu_indices(len(group), 1)
    if np.any(group[0].pbc):
        periodic, cell = np.asarray(group[0].pbc, bool), _cell(group[0]) + np.diag(~np.asarray(group[0].pbc, bool))
        inside = (positions[b] - positions[a]) @ np.linalg.inv(cell)
        moved = (inside - np.where(periodic, np.round(inside), 0.0)) @ cell
        moved, turn = moved - moved.mean(axis=1, keepdims=True), None
    else:
        positions = positions - positions.mean(axis=1, keepdims=True)
        u, _, vt = np.linalg.svd(np.swapaxes(positions[b], 1, 2) @ positions[a])
        sign = np.sign(np.linalg.det(u @ vt))
        u[:, :, 2] *= sign[:, None]
        turn = u @ vt
        moved = positions[b] @ turn - positions[a]
    near = np.flatnonzero(np.sqrt(np.mean(moved**2, axis=(1, 2)) * 3) < NEAR)
    if len(near):
        yield a[near], b[near], moved[near], None if turn is None else turn[near]
