#!/usr/bin/env bash
# Package:  tblite 0.8.0 (Python interface, GFN1-xTB and GFN2-xTB), with numpy 2.4.6
#
# Behaviour: `periodic` takes three flags, one for each lattice vector, but one
#   True is enough: a system periodic in one or two directions is computed as
#   periodic in all three, along the lattice vectors given for the
#   directions marked as not periodic. No error or warning is raised.
#
# Why it matters: for a chain or a slab the vector of an open direction is only
#   a box for drawing (ASE's atoms.pbc and atoms.cell are handed over like that),
#   often as tight as the atoms. The energy then includes images that
#   should not exist and changes with the length of that box.
#
# Expected: an energy that does not depend on the vectors of open directions, or
#   an error saying that only none or all three directions can be periodic.
#
# Seen on 2026-11-27:
#   tblite 0.8.0, numpy 2.4.6
#   GFN1-xTB, HF molecule, box in bohr, energy in eV
#     box 6 x 6 x 6    periodic TTT  -153.743751
#     box 6 x 6 x 6    periodic TTF  -153.743751
#     box 6 x 6 x 6    periodic TFF  -153.743751
#     box 6 x 6 x 6    periodic FFF  -154.013024
#     box 6 x 20 x 20  periodic TFF  -153.870998  (-127 meV, should be 0)
#   GFN2-xTB, HF molecule, box in bohr, energy in eV
#     box 6 x 6 x 6    periodic TTT  -141.760475
#     box 6 x 6 x 6    periodic TTF  -141.760475
#     box 6 x 6 x 6    periodic TFF  -141.760475
#     box 6 x 6 x 6    periodic FFF  -142.120612
#     box 6 x 20 x 20  periodic TFF  -141.927712  (-167 meV, should be 0)
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check tblite==0.8.0 numpy==2.4.6

OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from tblite.interface import Calculator

EV = 27.211386  # per hartree
numbers = np.array([9, 1])
positions = np.array([[1.0, 1.0, 1.0], [2.75, 1.0, 1.0]])  # HF along x, bohr


def energy(method, periodic, sides):
    calc = Calculator(method, numbers, positions, lattice=np.diag(sides).astype(float),
                      periodic=np.array(periodic))
    calc.set("verbosity", 0)
    calc.set("accuracy", 0.01)
    return float(calc.singlepoint().get("energy")) * EV


T, F = True, False
print(f"tblite {version('tblite')}, numpy {np.__version__}")
as_recorded = True
for method in ("GFN1-xTB", "GFN2-xTB"):
    print(f"{method}, HF molecule, box in bohr, energy in eV")
    box = [6, 6, 6]
    e = {p: energy(method, p, box) for p in ((T, T, T), (T, T, F), (T, F, F), (F, F, F))}
    for p, value in e.items():
        print(f"  box 6 x 6 x 6    periodic {''.join('FT'[x] for x in p)}  {value:.6f}")
    wide = energy(method, (T, F, F), [6, 20, 20])
    print(f"  box 6 x 20 x 20  periodic TFF  {wide:.6f}  "
          f"({1000 * (wide - e[T, F, F]):+.0f} meV, should be 0)")
    as_recorded &= (abs(e[T, T, F] - e[T, T, T]) < 1e-6 and abs(e[T, F, F] - e[T, T, T]) < 1e-6
                    and abs(e[F, F, F] - e[T, T, T]) > 0.1 and abs(wide - e[T, F, F]) > 0.1)
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
