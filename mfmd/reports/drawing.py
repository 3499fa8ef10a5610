"""Structures as SVG: balls and sticks, seen along the shortest of their principal axes, or of a periodic one against its cell."""

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.geometry import complete_cell, wrap_positions
from markupsafe import Markup

from mfmd.engine import neighbor_list

MOST_ATOMS = 150  # that are drawn, those nearest to the marked atom or to the middle
REACH = 15.0  # Å from there; what has flown farther would leave nothing to be seen
BOND = 1.25  # times the sum of the covalent radii
WIDTH, HEIGHT = 300.0, 220.0


def draw(numbers, positions, cell=None, pbc=(False, False, False), marked=None):
    """Markup of a structure, and how many of its atoms are drawn.

    Parameters
    ----------
    numbers : (atoms,); positions : (atoms, 3) Å; cell : (3, 3) Å; pbc : of a periodic structure the edges of its cell are drawn
    marked : index of an atom that gets a ring, or None
    """
    numbers, positions = np.asarray(numbers), np.asarray(positions, float)
    if np.any(pbc):
        around = marked if len(numbers) > MOST_ATOMS else None
        positions = _in_cell(numbers, positions, np.asarray(cell, float), pbc, around)
    middle = np.median(positions, axis=0) if marked is None else positions[marked]
    away = np.linalg.norm(positions - middle, axis=1)
    near = np.argsort(away, kind="stable")[:MOST_ATOMS]
    chosen = np.sort(near[away[near] < max(REACH, 2 * away[near[0]])])
    edges = _edges(np.asarray(cell, float)) if np.any(pbc) and len(chosen) == len(numbers) else np.zeros((0, 2, 3))
    axes = _tilted() if np.any(pbc) else _principal(positions[chosen])
    points, edges = positions[chosen] @ axes.T, edges @ axes.T
    every = np.concatenate([points, edges.reshape(-1, 3)])
    low, high = every.min(0), every.max(0)
    scale = min((WIDTH - 40) / max(high[0] - low[0], 1e-9), (HEIGHT - 40) / max(high[1] - low[1], 1e-9), 40.0)
    centre = (low + high) / 2

    def place(p):
        return WIDTH / 2 + scale * (p[0] - centre[0]), HEIGHT / 2 - scale * (p[1] - centre[1])

    parts = ['<line class="cell" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*place(a), *place(b)) for a, b in edges]
    shapes = []  # (depth, markup)
    radii = covalent_radii[numbers[chosen]]
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    for i, j in np.argwhere(np.triu(distances < BOND * (radii[:, None] + radii), 1)):
        (x1, y1), (x2, y2) = place(points[i]), place(points[j])
        line = f'<line class="bond" stroke-width="{0.16 * scale:.1f}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        shapes.append((min(points[i, 2], points[j, 2]), line))
    for k, point in enumerate(points):
        x, y = place(point)
        z, radius = int(numbers[chosen[k]]), scale * (0.14 + 0.32 * radii[k])
        color = "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[z])
        ring = (
            f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{radius + 5:.1f}"/>' if marked is not None and chosen[k] == marked else ""
        )
        atom = f'<circle class="atom" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}"><title>{chemical_symbols[z]} {chosen[k]}</title></circle>'
        shapes.append((point[2] + 1e-3, ring + atom))
    parts += [markup for _, markup in sorted(shapes, key=lambda shape: shape[0])]
    return Markup(f'<svg role="img" viewBox="0 0 {WIDTH:g} {HEIGHT:g}">{"".join(parts)}</svg>'), len(chosen)


def _in_cell(numbers, positions, cell, pbc, around):
    """Positions in the cell, or in one around an atom, of molecules as a whole; of bonds without end atom by atom."""
    centre = 0.5 if around is None else np.linalg.solve(complete_cell(cell).T, positions[around])
    radii = covalent_radii[numbers]
    i, j, shift, vectors = neighbor_list(positions, cell, pbc, 2 * BOND * radii.max())
    bonded = np.linalg.norm(vectors, axis=1) < BOND * (radii[i] + radii[j])
    partners = [[] for _ in numbers]
    for a, b, s in zip(i[bonded], j[bonded], shift[bonded], strict=True):
        partners[a].append((b, s))
    image, placed = {}, positions.copy()
    for first in range(len(numbers)):
        if first in image:
            continue
        image[first], molecule, endless = np.zeros(3, int), [first], False
        for a in molecule:  # which grows
            for b, s in partners[a]:
                if b not in image:
                    image[b] = image[a] + s
                    molecule.append(b)
                endless |= bool(np.any(image[b] != image[a] + s))
        if endless:
            placed[molecule] = wrap_positions(positions[molecule], cell, pbc, centre)
            continue
        whole = positions[molecule] + np.array([image[a] for a in molecule]) @ cell
        placed[molecule] = whole + wrap_positions(whole.mean(0)[None], cell, pbc, centre) - whole.mean(0)
    return placed


def _principal(positions):
    """Rows are the axes to draw along x, y and towards the eye."""
    if len(positions) < 2:
        return np.eye(3)
    _, _, axes = np.linalg.svd(positions - positions.mean(0))
    axes[2] = np.cross(axes[0], axes[1])
    turn = np.radians(12.0)  # so that atoms behind one another are seen
    about_x = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    return about_x @ axes


def _tilted():
    a, b = np.radians(14.0), np.radians(-18.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return about_x @ about_y


def _edges(cell):
    """(12, 2, 3) of a cell."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    pairs = [(a, b) for a in corners for b in corners if np.sum(b - a) == 1 and np.sum(np.abs(b - a)) == 1]
    return np.array(pairs) @ cell


def formula(numbers):
    """C2H6O, in Hill's order."""
    return Atoms(numbers).get_chemical_formula("hill")
