#!/usr/bin/env bash
# Package:  matgl 4.1.2 (matgl.load_model, TensorNet) reading what matgl 2.1.2 has written,
#           with torch 2.13.0, ase 3.29.0, numpy 2.4.6
#
# Behaviour: a TensorNet potential that matgl 2.1.2 has saved (version 1 of the
#   model) is loaded by 4.1.2 and computes other energies and forces wherever
#   there is more than one element, but for diatomic molecules. One UserWarning says
#   "Incompatible model version detected! The code will continue to load the model but it
#   is recommended that you provide a path to an updated model"; not that its numbers
#   are not those that it was trained to give. With one element they are.
#
# Why it matters: every tensor has its place and its shape, so nothing is missing,
#   and a check on silicon or nitrogen passes. The weight of a pair takes the two
#   elements in order; 2.1.2 sums it at the second atom of an edge, 4.1.2 at the first,
#   so that the elements of each pair are exchanged. It is no matter of rounding.
#
# Expected: the energies of the version that has saved it (exchanging the halves of
#   model.tensor_embedding.emb2.weight on loading is enough), or an error.
#
# Seen on 2026-11-27 (a model of random weights):
#   matgl 4.1.2, torch 2.13.0, ase 3.29.0
#   warnings: ['Incompatible model version detected']
#   molecule  eV by 2.1.2  by 4.1.2  largest force, eV/A, by 2.1.2  by 4.1.2
#   N2            12.9890   12.9890                         0.5803    0.5803
#   H2            13.3242   13.3242                         0.1813    0.1813
#   CO            13.2752   13.2752                         0.0711    0.0711
#   H2O           19.7356   18.8100                         0.1979    0.5202
#   CH3CH2OH      59.0188   58.3055                         0.1881    0.4913
#   with the halves exchanged: off by 2e-06 eV at most
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check \
    matgl==4.1.2 torch==2.13.0 torch-geometric==2.8.1 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6
venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --target matgl-2.1.2 matgl==2.1.2

cat > energies.py <<'PY'
import json
import warnings

import torch
from ase.build import molecule


def energies(calculator):
    """{molecule: (energy in eV, largest force in eV/A)}"""
    found = {}
    for name in ("N2", "H2", "CO", "H2O", "CH3CH2OH"):
        atoms = molecule(name)
        atoms.calc = calculator
        found[name] = (atoms.get_potential_energy(), float(abs(atoms.get_forces()).max()))
    return found
PY
cat > save.py <<'PY'
from energies import *
from matgl.apps.pes import Potential
from matgl.ext.ase import PESCalculator
from matgl.models import TensorNet

torch.manual_seed(0)
model = TensorNet(element_types=("H", "C", "N", "O"), units=16, nblocks=1, rbf_type="SphericalBessel", use_smooth=True, is_intensive=False)
potential = Potential(model, data_std=100.0, element_refs=[0.0] * 4)
potential.save("saved")
json.dump(energies(PESCalculator(potential, stress_unit="eV/A3")), open("saved.json", "w"))
PY
cat > load.py <<'PY'
import sys
from importlib.metadata import version

from energies import *
import matgl
from matgl.ext.ase import PESCalculator

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    potential = matgl.load_model("saved")
    now = energies(PESCalculator(potential, stress_unit="eV/A3"))
saved = json.load(open("saved.json"))
print(f"matgl {version('matgl')}, torch {version('torch').split('+')[0]}, ase {version('ase')}")
print(f"warnings: {[str(warning.message).split('!')[0] for warning in told]}")
print("molecule  eV by 2.1.2  by 4.1.2  largest force, eV/A, by 2.1.2  by 4.1.2")
for name in now:
    print(f"{name:8s}  {saved[name][0]:11.4f}  {now[name][0]:8.4f}  {saved[name][1]:29.4f}  {now[name][1]:8.4f}")
half = potential.model.tensor_embedding.emb2.weight
with torch.no_grad():
    half.copy_(half.roll(half.shape[1] // 2, 1))
mended = energies(PESCalculator(potential, stress_unit="eV/A3"))
print(f"with the halves exchanged: off by {max(abs(mended[name][0] - saved[name][0]) for name in now):.0e} eV at most")
same = {name: abs(now[name][0] - saved[name][0]) < 1e-4 for name in now}
as_recorded = (same == {"N2": True, "H2": True, "CO": True, "H2O": False, "CH3CH2OH": False}
               and [str(warning.message)[:31] for warning in told] == ["Incompatible model version dete"]
               and all(abs(mended[name][0] - saved[name][0]) < 1e-3 for name in now))
sys.exit(0 if as_recorded else "no longer as recorded")
PY
PYTHONPATH=matgl-2.1.2 venv/bin/python save.py
venv/bin/python load.py
echo "as recorded"
