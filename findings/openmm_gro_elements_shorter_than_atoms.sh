#!/usr/bin/env bash
# Package:  openmm 8.6.1 (openmm.app.GromacsGroFile), with numpy 2.4.6
#
# Behaviour: `elements`, described as holding the element of each atom of the file,
#   leaves out every atom whose name has a single letter. The list is then shorter
#   than `positions` and `atomNames`, and everything after such an atom moves up.
#   In a peptide the backbone atoms N, H, C and O are missing. No error or warning
#   is raised.
#
# Why it matters: the list is there to be used together with the positions (in the
#   source: "most useful for quantum chemistry calculations"). zip(elements,
#   positions) does not complain; it pairs atoms with the wrong elements and drops
#   the last ones. A file without one-letter names (C1, H1, OW, HW1) works.
#
# Expected: one entry for each atom: the element, or None if it is not known.
#
# Seen on 2026-11-27:
#   openmm 8.6.1, numpy 2.4.6
#   water    names OW HW1 HW2                  elements O H H
#   formyl   names C1 O1 H1                    elements C O H
#   same     names C O H                       elements (none)
#   glycine  names N H CA HA1 HA2 C O          elements C H H
#   glycine: 7 positions; zip(elements, positions) puts C, H, H where N, H, CA are
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check openmm==8.6.1 numpy==2.4.6

venv/bin/python - <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np
from openmm.app import GromacsGroFile

warnings.simplefilter("error")  # a warning would count as "no longer silent"


def read(residue, names):
    """Write a .gro file in its fixed columns, read it back."""
    with open("one.gro", "w") as out:
        out.write(f"one residue\n{len(names):5d}\n")
        for i, name in enumerate(names, 1):
            out.write(f"{1:5d}{residue:<5s}{name:>5s}{i:5d}{0.1 * i:8.3f}{0.2:8.3f}{0.3:8.3f}\n")
        out.write(f"{2:10.5f}{2:10.5f}{2:10.5f}\n")
    gro = GromacsGroFile("one.gro")
    assert gro.atomNames == names and len(gro.positions) == len(names)
    return [None if e is None else e.symbol for e in gro.elements]


print(f"openmm {version('openmm')}, numpy {np.__version__}")
as_recorded = True
for what, residue, names, recorded in (
        ("water", "SOL", "OW HW1 HW2", ["O", "H", "H"]),
        ("formyl", "FOR", "C1 O1 H1", ["C", "O", "H"]),
        ("same", "FOR", "C O H", []),
        ("glycine", "GLY", "N H CA HA1 HA2 C O", ["C", "H", "H"])):
    elements = read(residue, names.split())
    print(f"{what:8s} names {names:26s}  elements {' '.join(map(str, elements)) or '(none)'}")
    as_recorded &= elements == recorded
first = names.split()[:len(elements)]
print(f"glycine: {len(names.split())} positions; zip(elements, positions) puts "
      f"{', '.join(elements)} where {', '.join(first)} are")
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
