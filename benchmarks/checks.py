"""What the checks of labels and the search for duplicates cost beside reading: the figure of docs/labels.md.

python benchmarks/checks.py [--structures 100000]
"""

import argparse
import os
import platform
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import ase.io
import numpy as np

from mfmd.structures import checks, merging, reading
from mfmd.training import plan

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--structures", type=int, default=100_000)
wanted = parser.parse_args().structures
warnings.simplefilter("ignore")
frames = [a for a in ase.io.iread("examples/data/train.xyz") if len(a) < 30]
rng = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "set.xyz"
    with open(path, "w") as file:
        for k in range(wanted):
            atoms = frames[k % len(frames)].copy()
            atoms.positions += rng.normal(scale=0.01, size=atoms.positions.shape)
            ase.io.write(file, atoms, format="extxyz")
    config = plan.parse({"out": folder, "data": {"train": path}, "levels": {"gfn2": {}, "dft": {}}}, "the benchmark")
    times = [time.perf_counter()]
    structures = list(reading.read_file(path, config.data, config.levels))
    times.append(time.perf_counter())
    structures = merging.merge(structures, config.levels)
    cut = len(structures) * 9 // 10
    merging.tell_duplicates({"train": structures[:cut], "val": structures[cut:], "test": []})
    times.append(time.perf_counter())
    checks.check_units(structures, config.levels, {}, config.data)
    times.append(time.perf_counter())
read, same, checked = np.diff(times)
print(
    f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {wanted:,} structures of {np.mean([len(a) for a in frames]):.0f} atoms, two levels"
)
print(f"reading {read:.1f} s, duplicates {same:.2f} s, checks {checked:.2f} s: {100 * (same + checked) / read:.0f} % of reading")
