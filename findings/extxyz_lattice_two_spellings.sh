#!/usr/bin/env bash
# Package:  extxyz 0.4.6 (libAtoms), with numpy 2.4.6
#
# Behaviour: the format allows the same lattice in two spellings, nine numbers
#   in quotes or a nested 3x3 list. Frame.cell has the lattice vectors as columns
#   for the first, but keeps the nested list as it stands, so its rows become
#   columns. The two cells are each other's transpose. The package's writer
#   then turns the second into another lattice: read + write changes the crystal.
#   Both of its readers (C and Python) do so, without error or warning.
#
# Why it matters: the specification in the package's own description calls the
#   nested spelling the preferred one ("3x3 matrix - rows are cell vectors
#   [preferred]"; "9-vector - 3 cell vectors concatenated"). The Frame docstring
#   does say that a nested list is kept as written, against that specification.
#   The volume and all boxes with right angles stay correct, so a test on those
#   passes; skewed cells (hexagonal, triclinic) get wrong distances between
#   periodic images.
#
# Expected: both spellings give the same Frame.cell, the vectors as rows of the
#   nested list, as the specification says.
#
# Seen on 2026-11-27 (vectors (1,2,3), (0,5,6), (0,0,9), lengths 3.742, 7.810, 9):
#   extxyz 0.4.6, numpy 2.4.6
#   C reader       "1 2 3 0 5 6 0 0 9"       cell [[1, 0, 0], [2, 5, 0], [3, 6, 9]]
#   C reader       [[1,2,3],[0,5,6],[0,0,9]] cell [[1, 2, 3], [0, 5, 6], [0, 0, 9]]
#   Python reader  "1 2 3 0 5 6 0 0 9"       cell [[1, 0, 0], [2, 5, 0], [3, 6, 9]]
#   Python reader  [[1,2,3],[0,5,6],[0,0,9]] cell [[1, 2, 3], [0, 5, 6], [0, 0, 9]]
#   vector lengths (columns): 3.742 7.810 9.000 from the first, 1.000 5.385 11.225 from the second
#   the second, written again: Lattice="1 0 0 2 5 0 3 6 9"
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check extxyz==0.4.6 numpy==2.4.6

venv/bin/python - <<'PY'
import re
import sys
from importlib.metadata import version

import extxyz
import numpy as np

rows = np.array([[1, 2, 3], [0, 5, 6], [0, 0, 9]])
nine, nested = '"1 2 3 0 5 6 0 0 9"', "[[1,2,3],[0,5,6],[0,0,9]]"

print(f"extxyz {version('extxyz')}, numpy {np.__version__}")
as_recorded = True
for reader, use_c in (("C reader", True), ("Python reader", False)):
    cells = {}
    for spelling in (nine, nested):
        with open("one.xyz", "w") as out:
            out.write(f"1\nLattice={spelling} Properties=species:S:1:pos:R:3\nHe 0.0 0.0 0.0\n")
        frame = extxyz.read_dicts("one.xyz", use_cextxyz=use_c)
        cells[spelling] = frame.cell
        print(f"{reader:14s} {spelling:25s} cell {frame.cell.astype(int).tolist()}")
    as_recorded &= np.array_equal(cells[nine], rows.T) and np.array_equal(cells[nested], rows)

lengths = [" ".join(f"{x:.3f}" for x in np.linalg.norm(cells[s], axis=0)) for s in (nine, nested)]
print(f"vector lengths (columns): {lengths[0]} from the first, {lengths[1]} from the second")

extxyz.write_dicts("again.xyz", frame)  # frame: read from the nested spelling
written = re.search(r'Lattice="([^"]*)"', open("again.xyz").read()).group(1)
numbers = [float(x) for x in written.split()]
print("the second, written again: Lattice=\"" + " ".join(f"{x:g}" for x in numbers) + '"')
as_recorded &= numbers == rows.T.ravel().tolist()
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
