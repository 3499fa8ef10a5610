#!/usr/bin/env bash
# Package:  mdtraj 1.11.1.post2 (compute_neighborlist), with numpy 2.4.6
#
# Behaviour: compute_neighborlist(..., periodic=True) leaves out pairs within the cutoff
#   wherever the cell is not a right-angled box. None is missing in a cubic cell; in a
#   monoclinic, hexagonal or triclinic one it is up to 5 %, in the two cells that water is
#   mostly simulated in, truncated octahedron and rhombic dodecahedron, 1 to 17 % here, though
#   the cutoff is a fifth to two fifths of the cell's length. compute_distances and
#   compute_neighbors find them all. There is no error or warning.
#
# Why it matters: coordination numbers, contacts and cluster sizes are too small by so
#   much, and it is the pairs across the cell's faces that go, so that a small cell, or a
#   solute at a face, loses more. Right-angled boxes, which one tries first, are right.
#
# Expected: the pairs whose distance by compute_distances is below the cutoff.
#
# Seen on 2026-11-29 (400 points at random, cells of 3 nm; pairs missing of all, cutoffs 0.6, 0.9, 1.2 nm):
#   mdtraj 1.11.1.post2, numpy 2.4.6
#   cubic             0 of   2790       0 of   9038       0 of  21473
#   monoclinic        7 of   2738       7 of   9254       1 of  21745
#   hexagonal        50 of   3105      66 of  10360      29 of  24630
#   triclinic       144 of   2850     168 of   9503      15 of  22472
#   octahedron      585 of   3429     789 of  11550     410 of  27577
#   dodecahedron    367 of   3733     430 of  12702     756 of  30158
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check mdtraj==1.11.1.post2 numpy==2.4.6

venv/bin/python -W error::UserWarning - <<'PY'
import itertools
import sys
from importlib.metadata import version

import mdtraj
import numpy as np
from mdtraj.utils import lengths_and_angles_to_box_vectors

CELLS = {
    "cubic": (90, 90, 90),
    "monoclinic": (90, 100, 90),
    "hexagonal": (90, 90, 120),
    "triclinic": (80, 85, 75),
    "octahedron": (70.528779, 109.471221, 70.528779),
    "dodecahedron": (60, 60, 90),
}
POINTS, LENGTH = 400, 3.0
topology = mdtraj.Topology()
residue = topology.add_residue("X", topology.add_chain())
for _ in range(POINTS):
    topology.add_atom("C", mdtraj.element.carbon, residue)
pairs = np.array(list(itertools.combinations(range(POINTS), 2)))
random = np.random.default_rng(0)

print(f"mdtraj {version('mdtraj')}, numpy {np.__version__}")
as_recorded = True
for name, angles in CELLS.items():
    cell = np.array(lengths_and_angles_to_box_vectors(*[LENGTH] * 3, *angles))
    frame = mdtraj.Trajectory(
        (random.random((1, POINTS, 3)) @ cell).astype("f4"), topology, unitcell_lengths=[[LENGTH] * 3], unitcell_angles=[angles]
    )
    distances = mdtraj.compute_distances(frame, pairs)[0]
    # The oracle of compute_distances itself: every image within three cells, in double precision.
    d = frame.xyz[0, pairs[:, 0]].astype(float) - frame.xyz[0, pairs[:, 1]]
    nearest = np.min([np.linalg.norm(d + np.array(n) @ cell, axis=1) for n in itertools.product(range(-3, 4), repeat=3)], axis=0)
    assert np.allclose(distances, nearest, atol=1e-5), "compute_distances is wrong, too"
    by_one = {(min(i, int(j)), max(i, int(j))) for i in range(POINTS) for j in mdtraj.compute_neighbors(frame, 0.9, [i])[0]}
    assert by_one >= {tuple(pair) for pair in pairs[distances < 0.9 - 1e-5].tolist()}, "compute_neighbors misses some, too"
    said = []
    for cutoff in (0.6, 0.9, 1.2):
        listed = mdtraj.compute_neighborlist(frame, cutoff)
        found = {(min(i, int(j)), max(i, int(j))) for i, others in enumerate(listed) for j in others}
        within = {tuple(pair) for pair in pairs[distances < cutoff - 1e-5].tolist()}
        assert found <= {tuple(pair) for pair in pairs[distances < cutoff + 1e-5].tolist()}
        missing = len(within - found)
        said.append(f"{missing:5d} of {len(within):6d}")
        as_recorded &= missing == 0 if name == "cubic" else missing > 0
    print(f"{name:13s} {'   '.join(said)}")
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
