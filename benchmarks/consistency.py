"""What the laws of mfmd/structures/consistency.py say of a labelled file: the row of docs/labels.md.

python benchmarks/consistency.py examples/data/train.xyz gfn2 dft
"""

import argparse
import warnings
from pathlib import Path

from mfmd import Note
from mfmd.structures import consistency
from mfmd.structures.reading import read_file
from mfmd.training import plan

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("file", type=Path)
parser.add_argument("levels", nargs="+", help="whose labels are called energy_<level> and forces_<level>")
arguments = parser.parse_args()
warnings.simplefilter("ignore", Note)
config = plan.parse({"out": ".", "data": {"train": arguments.file}, "levels": dict.fromkeys(arguments.levels)}, "the command line")
structures = list(read_file(arguments.file, config.data, config.levels))
print("| set | level | pull, eV/Å² | correlation | energy over work | correlation |\n|---|---|---|---|---|---|")
for level in config.levels:
    cells = []
    for slope in (consistency.pull(structures, level), consistency.work(structures, level)):
        cells += [f"{slope.value:.3g}", f"{slope.correlation:.2f}"] if slope.points >= 20 else ["", ""]
    print(f"| {arguments.file.parent} | {level} | {' | '.join(cells)} |")
