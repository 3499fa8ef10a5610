#!/usr/bin/env bash
# Package:  torchmd-net 3.1.0 (torchmdnet.calculators.TMDNETCalculator), with torch 2.13.0,
#           warp-lang 1.19.0, ase 3.29.0, numpy 2.4.6
#
# Behaviour: the ASE calculator takes every periodic cell and passes it on to a
#   neighbour search that sees one image of each neighbour, and finds it with
#   the diagonal of the cell alone. That search is for cells of two cutoffs or more
#   with lower triangular vectors. The documentation of its own class says so; the
#   calculator neither says nor checks it. A crystal in its unit cell, and one that
#   is turned as a whole, get other energies and forces, without error or warning.
#
# Why it matters: the unit cell is what one begins with (ase.build.bulk, files of
#   databases), and calculators of ASE are expected to take it. Lattice constants,
#   elastic constants and phonons from it are those of another potential. A cell
#   that is long enough is still wrong where it is not lower triangular.
#
# Expected: the same energy per atom for every description of a crystal, or an
#   error that names the cell.
#
# Seen on 2026-11-27 (argon, fcc, 5.3 Angstrom, in the last two with atoms displaced
#   at random; a model of random weights, cutoff 4.5 Angstrom):
#   torchmd-net 3.1.0, torch 2.13.0, ase 3.29.0
#                          atoms  neighbours  found  eV/atom  largest force, eV/A
#   3 x 3 x 3 unit cells     108       12.00  12.00   -5.529  0.000
#   2 x 2 x 2 unit cells      32       12.00  12.00   -5.529  0.000
#   unit cell                  4       12.00   3.00   -5.027  0.235
#   3 x 3 x 3, displaced     108       12.00  12.00   -5.553  0.905
#   the same, turned         108       12.00  18.76   -4.100  6.822
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check \
    torchmd-net==3.1.0 torch==2.13.0 warp-lang==1.19.0 ase==3.29.0 numpy==2.4.6

venv/bin/python - <<'PY'
import os
import sys
import warnings
from importlib.metadata import version

out, sys.stdout = sys.stdout, open(os.devnull, "w")  # warp tells of each kernel that it compiles
import numpy as np
import torch
from ase.build import bulk
from ase.neighborlist import neighbor_list
from torchmdnet.calculators import TMDNETCalculator
from torchmdnet.models.model import create_model

warnings.simplefilter("error")  # a warning would count as "no longer silent"
CUTOFF = 4.5
settings = {
    "model": "tensornet", "embedding_dimension": 16, "num_layers": 0, "num_rbf": 8, "rbf_type": "expnorm",
    "trainable_rbf": False, "activation": "silu", "cutoff_lower": 0.0, "cutoff_upper": CUTOFF, "max_z": 20,
    "max_num_neighbors": 64, "aggr": "add", "equivariance_invariance_group": "O(3)", "derivative": True,
    "output_model": "Scalar", "reduce_op": "add", "precision": 32, "prior_model": None, "prior_args": [],
    "atom_filter": -1, "box_vecs": None, "static_shapes": False, "vector_cutoff": False, "remove_ref_energy": False,
}
torch.manual_seed(0)
model = create_model(dict(settings), None, torch.tensor(0.0), torch.tensor(100.0))
state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
torch.save({"state_dict": state, "hyper_parameters": settings}, "model.ckpt")
calculator = TMDNETCalculator("model.ckpt")
search = calculator.model.representation_model.distance


def evaluate(atoms):
    """Neighbours an atom as ASE finds them and as the model gets them, energy an atom, largest force."""
    atoms = atoms.copy()
    atoms.info["charge"] = 0
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    single = {"dtype": torch.float32}
    found, _, _ = search(torch.tensor(atoms.positions, **single), torch.zeros(len(atoms), dtype=torch.long),
                         torch.tensor(atoms.cell.array, **single))
    return (len(neighbor_list("i", atoms, CUTOFF)) / len(atoms), int((found[0] != found[1]).sum()) / len(atoms),
            energy / len(atoms), np.abs(forces).max())


crystal = bulk("Ar", "fcc", a=5.3, cubic=True)
shaken = crystal.repeat(3)
shaken.rattle(0.1, seed=1)
turned = shaken.copy()
turned.rotate(40, "z", rotate_cell=True)
print(f"torchmd-net {version('torchmd-net')}, torch {version('torch').split('+')[0]}, ase {version('ase')}", file=out)
print("                       atoms  neighbours  found  eV/atom  largest force, eV/A", file=out)
rows = {}
for name, atoms in (("3 x 3 x 3 unit cells", crystal.repeat(3)), ("2 x 2 x 2 unit cells", crystal.repeat(2)),
                    ("unit cell", crystal), ("3 x 3 x 3, displaced", shaken), ("the same, turned", turned)):
    rows[name] = evaluate(atoms)
    print("{:21s}  {:5d}  {:10.2f}  {:5.2f}  {:7.3f}  {:.3f}".format(name, len(atoms), *rows[name]), file=out)

right, smaller, unit, displaced, turned = rows.values()
as_recorded = (right[0] == right[1] == smaller[1] and abs(smaller[2] - right[2]) < 1e-4
               and unit[1] < unit[0] and abs(unit[2] - right[2]) > 0.1
               and displaced[0] == displaced[1] == turned[0] != turned[1] and abs(turned[2] - displaced[2]) > 0.1)
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
