"""What is told to be far outside of training, and what that costs: the figures of docs/extrapolation.md.

python benchmarks/extrapolation.py runs/demo/model.pt [--seconds 2]

The model file is one that was trained on examples/data, as `make demo` trains it.
"""

import argparse
import platform
import sys
from datetime import date
from pathlib import Path

import ase.build
import ase.io
from ase import Atoms

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from conftest import DATA, ice, stretched  # noqa: E402
from yardsticks import print_cost  # noqa: E402

from mfmd.engine import Engine  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model")
parser.add_argument("--seconds", type=float, default=2.0, help="for each time")
arguments = parser.parse_args()
engine = Engine(arguments.model, threads=1)
terms = [(engine.levels[-1], 1.0)]


def outside(atoms):
    return engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=terms, domain=True)["outside"]


print(f"{date.today()}, {platform.processor() or platform.machine()}, {arguments.model}\n")
for split in ("train", "val", "test"):
    told = [outside(atoms) for atoms in ase.io.iread(DATA / f"{split}.xyz")]
    print(f"{split}.xyz: {sum(t is not None for t in told)} of {len(told)} structures are told to be far outside")
water, two = ase.build.molecule("H2O"), ase.build.molecule("H2O")
two.positions += [0, 0, 1.6]
print()
for name, atoms in {
    "ice, 32 Å³ a molecule": ice(32.0), "ice, 25 Å³ a molecule": ice(25.0), "ethanol": ase.build.molecule("CH3CH2OH"),
    "ethanol, C-O 2.2 Å": stretched(), "two waters, O-O 1.6 Å": water + two, "O2, 1.6 Å": Atoms("O2", [[0, 0, 0], [0, 0, 1.6]]), "N2": ase.build.molecule("N2"),
}.items():  # fmt: skip
    print(f"{name}: {outside(atoms) or 'within'}")
print("\none evaluation with forces, one thread, without and with it, in turns:")
box = next(a for a in ase.io.iread(DATA / "test.xyz") if a.info["molecule"] == "water_box_16")
print_cost(engine, "domain", (ase.build.molecule("CH3CH2OH"), box, box.repeat(3)), arguments.seconds)
