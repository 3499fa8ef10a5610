#!/usr/bin/env bash
# Package:  ase 3.29.0 (ase.io, format extxyz), with numpy 2.4.6 and scipy 1.17.1
#
# Behaviour: an empty string in atoms.info is written as `key=` with nothing after
#   it. On reading, the key takes the next `name=value` of the line as its value,
#   and that name is gone. What is lost depends on what comes next: the next
#   info key, the energy, or the periodicity. In the last case a slab written
#   with pbc T T F comes back as T T T. No error or warning is raised.
#
# Why it matters: empty labels, notes or tags are common. A training set loses
#   energies of some frames, a slab becomes a bulk crystal, only for frames whose
#   label is empty.
#
# Expected: write and read give back what was stored (`key=""` in the file), or
#   the writer refuses an empty string.
#
# Seen on 2026-11-27:
#   ase 3.29.0, numpy 2.4.6
#   without note:   info {}                       pbc [True, True, False]  energy -3.0
#   note='':        info {'note': 'energy=-3.0'}  pbc [True, True, False]  energy None
#   note='', no calculator: info {'note': 'pbc=T T F'}    pbc [True, True, True]
#   note='', charge=-1:     info {'note': 'charge=-1'}    pbc [True, True, False]
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
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

warnings.simplefilter("error")  # a warning would count as "no longer silent"


def there_and_back(info, energy=None):
    slab = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    slab.pbc = [True, True, False]
    slab.info = info
    if energy is not None:
        slab.calc = SinglePointCalculator(slab, energy=energy)
    write("slab.xyz", slab, format="extxyz")
    back = read("slab.xyz", format="extxyz")
    found = back.calc.results.get("energy") if back.calc else None
    return back.info, back.pbc.tolist(), None if found is None else float(found)


print(f"ase {ase.__version__}, numpy {np.__version__}")
plain = there_and_back({}, -3.0)
energy = there_and_back({"note": ""}, -3.0)
pbc = there_and_back({"note": ""})
key = there_and_back({"note": "", "charge": -1})
print(f"without note:   info {plain[0]!s:24s} pbc {plain[1]}  energy {plain[2]}")
print(f"note='':        info {energy[0]!s:24s} pbc {energy[1]}  energy {energy[2]}")
print(f"note='', no calculator: info {pbc[0]!s:24s} pbc {pbc[1]}")
print(f"note='', charge=-1:     info {key[0]!s:24s} pbc {key[1]}")

slab = [True, True, False]
as_recorded = (plain == ({}, slab, -3.0)
               and energy == ({"note": "energy=-3.0"}, slab, None)
               and pbc == ({"note": "pbc=T T F"}, [True, True, True], None)
               and key == ({"note": "charge=-1"}, slab, None))
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
