#!/usr/bin/env bash
# Package:  ase 3.29.0 (ase.io: mol, sdf, proteindatabank), with numpy 2.4.6, scipy 1.17.1;
#           tblite 0.8.0 for the energies
#
# Behaviour: the formal charges of a molfile or SDF (M  CHG, and the charge column of an atom) and
#   those of a PDB file (columns 79 and 80) are read over: the atoms have no initial charges,
#   and nothing in info or arrays says any. The Gaussian input that ASE writes of acetate is
#   that of the neutral radical, and tblite's calculator, which takes the sum of the initial
#   charges, computes that. There is no error or warning.
#
# Why it matters: a library of ligands is an SDF, and many are ions. The energy of each is that of
#   another molecule, by several eV and with other forces; where the method takes an odd
#   number of electrons, as tight binding does, it looks like any other result.
#
# Expected: initial charges from the file, or a warning that there are charges which are not read.
#
# Seen on 2026-11-28 (acetate; -1.0 is what the file says):
#   ase 3.29.0, tblite 0.8.0, numpy 2.4.6
#   file         charge  Gaussian's line  GFN2-xTB, eV  with charge=-1
#   acetate.mol     0.0              0 1      -377.016        -385.371
#   acetate.sdf     0.0              0 1      -377.016        -385.371
#   acetate.pdb     0.0              0 1      -377.016        -385.371
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check \
    ase==3.29.0 tblite==0.8.0 numpy==2.4.6 scipy==1.17.1

cat > acetate.mol <<'MOL'
acetate
  3D

  7  6  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.5300    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    2.1500    1.0900    0.0000 O   0  0  0  0  0  0  0  0  0  0  0  0
    2.1500   -1.0900    0.0000 O   0  5  0  0  0  0  0  0  0  0  0  0
   -0.3700    1.0300    0.0000 H   0  0  0  0  0  0  0  0  0  0  0  0
   -0.3700   -0.5150    0.8920 H   0  0  0  0  0  0  0  0  0  0  0  0
   -0.3700   -0.5150   -0.8920 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  2  3  2  0
  2  4  1  0
  1  5  1  0
  1  6  1  0
  1  7  1  0
M  CHG  1   4  -1
M  END
MOL
(cat acetate.mol; echo '$$$$') > acetate.sdf
cat > acetate.pdb <<'PDB'
HETATM    1  C1  ACT A   1       0.000   0.000   0.000  1.00  0.00           C
HETATM    2  C2  ACT A   1       1.530   0.000   0.000  1.00  0.00           C
HETATM    3  O1  ACT A   1       2.150   1.090   0.000  1.00  0.00           O
HETATM    4  O2  ACT A   1       2.150  -1.090   0.000  1.00  0.00           O1-
HETATM    5  H1  ACT A   1      -0.370   1.030   0.000  1.00  0.00           H
HETATM    6  H2  ACT A   1      -0.370  -0.515   0.892  1.00  0.00           H
HETATM    7  H3  ACT A   1      -0.370  -0.515  -0.892  1.00  0.00           H
END
PDB
OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import ase
from ase.io import read
from tblite.ase import TBLite

warnings.simplefilter("error")  # a warning would count as "no longer silent"
print(f"ase {ase.__version__}, tblite {version('tblite')}, numpy {version('numpy')}")
print("file         charge  Gaussian's line  GFN2-xTB, eV  with charge=-1")
as_recorded = True
for name in ("acetate.mol", "acetate.sdf", "acetate.pdb"):
    atoms = read(name)
    charge = float(atoms.get_initial_charges().sum())
    said = {key for key in (*atoms.info, *atoms.arrays) if "charge" in key}
    atoms.write("input.com", format="gaussian-in")
    line = next(line.strip() for line in Path("input.com").read_text().splitlines() if line.split() in (["0", "1"], ["-1", "1"]))
    energies = []
    for options in ({}, {"charge": -1}):
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, **options)
        energies.append(atoms.get_potential_energy())
    print(f"{name}  {charge:6.1f}  {line:>15s}  {energies[0]:12.3f}  {energies[1]:14.3f}")
    as_recorded &= charge == 0 and not said and line == "0 1" and energies[0] - energies[1] > 3
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
