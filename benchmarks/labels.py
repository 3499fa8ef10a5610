"""A random tenth of the shipped labels computed again by `mfmd label`'s own code: the largest differences per level.

python benchmarks/labels.py --workers 2
"""

import argparse
import platform
import sys
from datetime import date
from pathlib import Path

import ase.io
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_label import LEVELS

from mfmd.labelling import methods, workers
from mfmd.structures.record import SPLITS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    frames = {a.info["id"]: a for split in SPLITS for a in ase.io.read(f"examples/data/{split}.xyz", ":")}
    tasks = []
    for name, level in LEVELS.items():
        labelled = sorted(key for key, a in frames.items() if f"energy_{name}" in a.info)
        for key in np.random.default_rng(args.seed).choice(labelled, round(len(labelled) / 10), replace=False):
            tasks.append(((key, name), methods.label, (level, frames[key], name == "gfn2")))
    worst = {}
    for (key, name), found, error in workers.in_parallel(tasks, args.workers):
        if error is not None:
            sys.exit(f"error: {key}, {name}: {error}")
        difference = [abs(found["energy"] - frames[key].info[f"energy_{name}"])]
        if "forces" in found:
            difference.append(np.abs(found["forces"] - frames[key].arrays[f"forces_{name}"]).max())
        worst.setdefault(name, []).append(difference)
    print(f"{date.today()}, {platform.machine()}\n\n| level | labels | energy, meV | forces, meV/Å |\n|---|---|---|---|")
    for name, rows in worst.items():
        forces = f"{1e3 * max(r[1] for r in rows):.3f}" if len(rows[0]) > 1 else ""
        print(f"| {name} | {len(rows)} | {1e3 * max(r[0] for r in rows):.3f} | {forces} |")


if __name__ == "__main__":
    main()
