#!/usr/bin/env bash
# Package:  openmm 8.6.1 (openmm.app.PDBFile.writeFile)
#
# Behaviour: of an atom with more than four bonds three are written per CONECT record
#   and the next one is left out, until four or fewer remain. A bond stays where its other
#   end names it; one that both ends leave out is lost. A 13-atom cluster comes back with
#   40 of its 42 bonds, and two octahedral centres that are bonded to each other can
#   come back as two molecules. Nothing is said.
#
# Why it matters: metal clusters, intermetallic contacts and large boranes have such
#   atoms. Bonds decide what a barostat moves as one molecule, what imageMolecules of
#   mdtraj keeps together, and what force fields by templates match; a topology.pdb
#   beside a trajectory is read for exactly that.
#
# Expected: CONECT records for all bonds of an atom, four to a record.
#
# Seen on 2026-11-29:
#   openmm 8.6.1
#   icosahedron of 13 atoms: 42 bonds written, 40 read
#   two octahedral centres, bonded to each other: 11 bonds written, 10 read, 2 molecules
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check openmm==8.6.1 numpy==2.4.6

venv/bin/python - <<'PY'
import io
import sys
from importlib.metadata import version

import numpy as np
import openmm as mm
from openmm import app


def bonds_read(symbols, positions, bonds):
    """Bonds of a molecule of one residue, written as PDB and read again."""
    topology = app.Topology()
    residue = topology.addResidue("UNL", topology.addChain())
    atoms = [topology.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate(symbols)]
    for a, b in bonds:
        topology.addBond(atoms[a], atoms[b])
    file = io.StringIO()
    app.PDBFile.writeFile(topology, [mm.Vec3(*p) for p in positions] * mm.unit.angstrom, file)
    file.seek(0)
    return sorted({tuple(sorted((a.index, b.index))) for a, b in app.PDBFile(file).topology.bonds()})


def molecules(count, bonds):
    """How many there are."""
    of = list(range(count))
    for a, b in bonds:
        of = [min(of[a], of[b]) if m in (of[a], of[b]) else m for m in of]
    return len(set(of))


golden = (1 + 5**0.5) / 2
corners = [np.roll([0, y, z * golden], k) for k in range(3) for y in (-1, 1) for z in (-1, 1)]
cluster = 1.4 * np.array([np.zeros(3), *corners])
near = np.linalg.norm(cluster[:, None] - cluster, axis=-1)
contacts = [(a, b) for a in range(13) for b in range(a) if near[a, b] < 3.0]
read = bonds_read(["Au"] * 13, cluster, contacts)
print(f"openmm {version('openmm')}")
print(f"icosahedron of 13 atoms: {len(contacts)} bonds written, {len(read)} read")

sides = np.array([[0, 2, 0], [0, -2, 0], [0, 0, 2], [-2, 0, 0], [0, 0, -2]])
pair = np.concatenate([[[0, 0, 0]], [[2.6, 0, 0]], sides, sides * [-1, 1, 1] + [2.6, 0, 0]])
links = [*((0, k) for k in (2, 3, 4)), *((1, k) for k in (7, 8, 9)), (0, 1), *((0, k) for k in (5, 6)), *((1, k) for k in (10, 11))]
read_of_pair = bonds_read(["Mn", "Mn", *["F"] * 10], pair, links)
print(f"two octahedral centres, bonded to each other: {len(links)} bonds written, {len(read_of_pair)} read, "
      f"{molecules(12, read_of_pair)} molecules")
as_recorded = (len(contacts), len(read)) == (42, 40) and (len(links), len(read_of_pair)) == (11, 10) and molecules(12, read_of_pair) == 2
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
