"""Steps of training on the CUDA device beside the machine's cores: molecules of 20 atoms, feeding, optimiser and averaged weights included.

    python benchmarks/steps.py [--devices cpu cuda] [--batches 32 200] [--size medium] [--steps 20]

One run of mfmd-train for each device and batch size, of one epoch; the first steps are not counted. Labels are random numbers.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import ase.io
import numpy as np
import torch
from rich.console import Console
from yardsticks import peptide

from mfmd.training import loop, plan
from mfmd.training.run import train

WARM = 5  # steps that are not counted


def write_frames(path, count):
    rng, frames = np.random.default_rng(0), []
    for _ in range(count):
        atoms = peptide()[:20]
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.info["energy_low"], atoms.arrays["forces_low"] = rng.normal(), rng.normal(size=atoms.positions.shape)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def seconds_of_a_step(folder, device, batch, size):
    """Mean over the steps of an epoch but the first."""
    ends = []

    def look(module, _outputs, _batch, index):
        if index in (WARM - 1, module.trainer.num_training_batches - 1):
            if module.device.type == "cuda":
                torch.cuda.synchronize()
            ends.append((index, time.perf_counter()))

    loop.Training.on_train_batch_end = look
    config = {
        "out": str(folder / f"{device}-{batch}"),
        "data": {"train": str(folder / "train.xyz"), "val": str(folder / "val.xyz"), "split_seed": 0},
        "levels": {"low": {"unchecked": True}},
        "backbone": size,
        "train": {"epochs": 1, "batch_size": batch, "device": device},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML too
    train(plan.load(folder / "config.yaml"), Console(quiet=True))
    (first, start), (last, end) = ends
    return (end - start) / (last - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 200], help="structures a step")
    parser.add_argument("--size", default="medium", help="of the backbone")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file for what was found")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {"cores": len(os.sched_getaffinity(0)), "size": args.size, "steps": {}}
    print(
        f"| structures of 20 atoms | {' | '.join(f'{device}, ms' for device in args.devices)} | times |\n|{'---|' * (len(args.devices) + 2)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_frames(Path(folder) / "val.xyz", 4)
        for batch in args.batches:
            write_frames(Path(folder) / "train.xyz", batch * (WARM + args.steps))
            ms = {device: 1e3 * seconds_of_a_step(Path(folder), device, batch, args.size) for device in args.devices}
            found["steps"][batch] = {f"{device}, ms": time for device, time in ms.items()}
            times = ms[args.devices[0]] / ms[args.devices[-1]]
            print(f"| {batch} | {' | '.join(f'{time:.3g}' for time in ms.values())} | {times:.3g} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
