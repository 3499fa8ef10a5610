#!/usr/bin/env bash
# Package:  ase 3.29.0 (ase.io, format lammps-data), with numpy 2.4.6 and scipy 1.17.1
#
# Behaviour: of a structure whose cell vectors are left-handed (their determinant is
#   negative, which ASE allows and POSCAR files have) the written LAMMPS data file
#   holds the mirror image: the matrix that brings the cell into LAMMPS' form is
#   taken for a rotation and is a reflection. Distances, and so energies of most
#   potentials, are the same; a molecule is its enantiomer. No error or warning is
#   raised. Reading the file back gives the mirror image in a right-handed cell.
#
# Why it matters: chiral molecules and crystals change hands between building and
#   dynamics, and velocities and forces that are carried back by a rotation have
#   components of the wrong sign.
#
# Expected: two vectors exchanged, or the cell inverted (either spans the same
#   lattice) before the rotation; or a refusal, as LAMMPS' manual asks for
#   right-handed vectors.
#
# Seen on 2026-11-28:
#   ase 3.29.0, numpy 2.4.6
#   cell right-handed:  S before, S after
#   two vectors exchanged:  S before, R after
#   one vector inverted:    S before, R after
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check \
    ase==3.29.0 numpy==2.4.6 scipy==1.17.1

venv/bin/python - <<'PY'
import sys
import warnings

import ase
import numpy as np
from ase import Atoms
from ase.io import read, write

warnings.simplefilter("error")  # a warning would count as "no longer silent"

ORDER = ["H", "C", "F", "Cl", "Br"]
NUMBERS = {1: 1, 2: 6, 3: 9, 4: 17, 5: 35}


def handedness(atoms):
    """Of bromochlorofluoromethane, C H F Cl Br: with hydrogen behind, Br, Cl, F clockwise is R."""
    place = {symbol: position for symbol, position in zip(atoms.symbols, atoms.positions)}
    br, cl, f = (place[symbol] - place["C"] for symbol in ("Br", "Cl", "F"))
    view = place["H"] - place["C"]  # the viewer looks along it
    return "R" if np.dot(np.cross(br - f, cl - br), view) > 0 else "S"


def there_and_back(cell):
    around = [[0, 0, 0], [1.09, 0, 0], [-0.4, 1.3, 0], [-0.5, -0.7, 1.5], [-0.6, -0.8, -1.6]]
    atoms = Atoms("CHFClBr", np.array(around) + 5.0, cell=cell, pbc=True)
    write("data", atoms, format="lammps-data", specorder=ORDER)
    back = read("data", format="lammps-data", Z_of_type=NUMBERS, atom_style="atomic", sort_by_id=True)
    return handedness(atoms), handedness(back)


print(f"ase {ase.__version__}, numpy {np.__version__}")
box = np.diag([20.0, 21.0, 22.0])
right = there_and_back(box)
exchanged = there_and_back(box[[1, 0, 2]])
inverted = there_and_back(box * [[1], [1], [-1]])
print(f"cell right-handed:  {right[0]} before, {right[1]} after")
print(f"two vectors exchanged:  {exchanged[0]} before, {exchanged[1]} after")
print(f"one vector inverted:    {inverted[0]} before, {inverted[1]} after")
kept = right[0] == right[1]
mirrored = exchanged[0] != exchanged[1] and inverted[0] != inverted[1]
sys.exit(0 if kept and mirrored else "the behaviour has changed")
PY
