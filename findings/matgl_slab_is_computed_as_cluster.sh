#!/usr/bin/env bash
# Package:  matgl 4.1.2 (matgl.ext.ase: PESCalculator, Atoms2Graph), with torch 2.13.0, ase 3.29.0, numpy 2.4.6
#
# Behaviour: a structure that is periodic in one or two directions is computed as if
#   it were periodic in none: pbc = T T F gives the edges, energy and forces of
#   F F F. Its stress is divided by the volume of a unit cube, 1 Angstrom^3, whatever
#   the cell. There is no error or warning.
#
# Why it matters: T T F is how ASE builds surfaces (ase.build.fcc111 and the like).
#   A slab loses its neighbours across the cell's sides, so that each surface is one of
#   a small island. With pbc = T T T, and vacuum wider than the cutoff, the same
#   slab is right: a change that should change nothing.
#
# Expected: the edges in the directions that are periodic, or an error that says only
#   full periodicity or none can be computed.
#
# Seen on 2026-11-27 (Cu(111), three layers, 10 Angstrom of vacuum above and below; a model
#   of random weights, cutoff 5 Angstrom; stress is the first of six components):
#   matgl 4.1.2, torch 2.13.0, ase 3.29.0
#   cells  pbc    edges/atom  eV/atom   largest force, eV/A  stress, eV/A^3  volume, A^3
#   1 x 1  TTT        30.00  -6.46273               0.0119        -0.00078          546
#   1 x 1  TTF         9.33  -6.56656               0.0954        -0.82128          546
#   1 x 1  FFF         9.33  -6.56656               0.0954        -0.82128          546
#   2 x 2  TTT        30.00  -6.46273               0.0119        -0.00078         2182
#   2 x 2  TTF        18.00  -6.50843               0.0839        -1.61089         2182
#   2 x 2  FFF        18.00  -6.50843               0.0839        -1.61089         2182
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check \
    matgl==4.1.2 torch==2.13.0 torch-geometric==2.8.1 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6

venv/bin/python - <<'PY'
import logging
import sys
import warnings
from importlib.metadata import version

import numpy as np
import torch
from ase.build import fcc111
from matgl.apps.pes import Potential
from matgl.ext.ase import Atoms2Graph, PESCalculator
from matgl.models import TensorNet

warnings.simplefilter("error")  # a warning would count as "no longer silent"
logging.basicConfig(level=logging.WARNING, format="logged: %(message)s", stream=sys.stdout)
torch.manual_seed(0)
model = TensorNet(element_types=("Cu",), units=16, nblocks=1, is_intensive=False, use_warp=False)
calculator = PESCalculator(Potential(model, data_std=100.0, element_refs=[0.0]), stress_unit="eV/A3", use_voigt=True)
graphs = Atoms2Graph(model.element_types, model.cutoff)

print(f"matgl {version('matgl')}, torch {version('torch').split('+')[0]}, ase {version('ase')}")
print("cells  pbc    edges/atom  eV/atom   largest force, eV/A  stress, eV/A^3  volume, A^3")
rows = {}
for cells in (1, 2):
    for pbc in ("TTT", "TTF", "FFF"):
        slab = fcc111("Cu", (2 * cells, 2 * cells, 3), vacuum=10.0)
        slab.pbc = [letter == "T" for letter in pbc]
        slab.calc = calculator
        rows[cells, pbc] = (graphs.get_graph(slab)[0].num_edges / len(slab), slab.get_potential_energy() / len(slab),
                            np.abs(slab.get_forces()).max(), slab.get_stress()[0])
        print("{:d} x {:d}  {}  {:11.2f}  {:8.5f}  {:19.4f}  {:14.5f}  {:11.0f}".format(
            cells, cells, pbc, *rows[cells, pbc], slab.get_volume()))

full, part, none = (rows[1, pbc] for pbc in ("TTT", "TTF", "FFF"))
larger = {pbc: rows[2, pbc] for pbc in ("TTT", "TTF")}
as_recorded = (part == none and full[0] > part[0] and abs(full[1] - larger["TTT"][1]) < 1e-3
               and abs(part[1] - larger["TTF"][1]) > 0.02 and abs(part[3]) > 100 * abs(full[3]))
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
