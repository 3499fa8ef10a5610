"""Training from a file larger than the memory it may take: peak memory over the number of structures, and the share of loading.

    python benchmarks/streaming.py --structures 10000 1000000

Every count is a run of mfmd-train in a process of its own, on an HDF5 file of small molecules written for it (4.6 GB for a million).
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import ase.io
import h5py
import numpy as np

GROUP = 1000  # structures

RUN = """
import json, resource, statistics, sys, time
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]) * 2**20,) * 2)
import numpy as np, torch
torch.set_num_threads(1)
from mfmd.structures.packed import Packed
from mfmd.training import batches, loop, plan, stages
from mfmd.training.run import train
config = plan.load(sys.argv[1])
train(config)
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
structures, stage = Packed(config.out / "data" / "train.packed"), config.stages[0]
fed = batches.feed(structures, ["gfn2"], config)
training = loop.Training(stages.begin(config, stage, None, structures[:100]).train(), stage)
training.log = lambda *_, **__: None
load, learn = [], []
for indices in np.random.default_rng(0).integers(0, len(structures), (20, 16)):
    start = time.perf_counter()
    batch = fed.__getitems__(indices.tolist())
    middle = time.perf_counter()
    training.training_step(batch, 0).backward()
    load.append(middle - start)
    learn.append(time.perf_counter() - middle)
print(json.dumps({"peak": peak, "load": 1e3 * statistics.median(load), "learn": 1e3 * statistics.median(learn)}))
"""


def write(path, n):
    """n structures of 96 atoms with energies and forces, in groups as ANI-1x has them."""
    water = next(a for a in ase.io.iread("examples/data/train.xyz", ":") if a.info["molecule"] == "water")
    rng = np.random.default_rng(0)
    sites = 4.0 * np.stack(np.meshgrid(range(4), range(8), range(1), indexing="ij"), -1).reshape(-1, 3)
    numbers = np.tile(water.numbers, len(sites))
    start = (sites[:, None] + water.positions[None]).reshape(-1, 3)
    with h5py.File(path, "w") as file:
        for k in range(0, n, GROUP):
            size = min(GROUP, n - k)
            moved = start + rng.normal(size=(size, len(numbers), 3)) * 0.02
            group = file.create_group(f"{k:08d}")
            group["atomic_numbers"], group["coordinates"] = numbers, moved
            group["energy_gfn2"] = -138.0 * len(sites) + rng.normal(size=size)
            group["forces_gfn2"] = rng.normal(size=moved.shape)
    return path.stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--shown", type=int, default=6400, help="structures an epoch")
    parser.add_argument("--limit", type=int, default=1500, help="MB of memory, RLIMIT_DATA, that a run may not exceed")
    args = parser.parse_args()
    print(
        f"{date.today()}, {platform.machine()}\n\n| structures | file, GB | peak memory, MB | run, s | loading 16, ms | learning from 16, ms |\n|---|---|---|---|---|---|"
    )
    for n in args.structures:
        Path("runs").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir="runs") as folder:
            folder = Path(folder).resolve()
            size = write(folder / "set.h5", n)
            write(folder / "val.h5", 100)
            (folder / "config.yaml").write_text(
                f"""
out: {folder}/run
data: {{train: {folder}/set.h5, val: {folder}/val.h5, stream: true}}
levels: {{gfn2: {{sampling: {min(1.0, args.shown / n)}}}}}
backbone: {{channels: 16, layers: 1}}
train: {{epochs: 1, batch_size: 16}}
"""
            )
            start = time.time()
            out = subprocess.run([sys.executable, "-c", RUN, str(folder / "config.yaml"), str(args.limit)], capture_output=True, text=True)
            if out.returncode:
                sys.exit(out.stderr)
            row = json.loads(out.stdout.splitlines()[-1])
            print(
                f"| {n} | {size / 1e9:.2f} | {row['peak']:.0f} | {time.time() - start:.0f} | {row['load']:.1f} | {row['learn']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
