"""Whether the error bars of heads that linear algebra has fitted hold, and what they cost: the figures of docs/error_bars.md.

    python benchmarks/error_bars.py [--out runs/error_bars] [--seeds 1 2 3] [--energies 25 100 370] [--short]

Chains over the levels of examples/data, cctz from so many energies; errors are those on the test frames, which choose nothing. What is in the folder already
is not trained again.
"""

import argparse
import platform
import shutil
from datetime import date
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import torch
from rich.console import Console
from yardsticks import print_cost

from mfmd import evaluation
from mfmd.engine import Engine
from mfmd.structures import reading
from mfmd.training import error_bars, plan
from mfmd.training.run import train

DATA = Path(__file__).parent.parent / "examples" / "data"
GFN2 = {"name": "gfn2", "levels": {"gfn2": {}}, "train": {"epochs": 30, "batch_size": 16, "monitor": "gfn2.forces"}}
DFT = {
    "name": "dft", "levels": {"dft": {}}, "heads": {"dft": "gfn2"},
    "train": {"epochs": 60, "batch_size": 16, "learning_rate": 1e-3, "monitor": "dft.forces"},
}  # fmt: skip


def newton(level, low, **more):
    return {"name": level, "levels": {level: {}}, "heads": {level: low}, "fit": "gauss-newton"} | more


CHAINS = {
    "gfn2 → cctz": [GFN2, newton("cctz", "gfn2")],
    "gfn2 → dft → cctz": [GFN2, DFT, newton("cctz", "dft")],
    "what these two teach": [
        GFN2,
        DFT,
        newton("cctz", "dft", name="cctz-1"),
        newton("cctz", "gfn2", name="cctz-2", start="gfn2"),
        {
            "name": "cctz",
            "start": "cctz-1",
            "levels": {"cctz": {"forces_weight": 1.0}},
            "teachers": ["cctz-1", "cctz-2"],
            "train": {"epochs": 15, "batch_size": 16, "learning_rate": 3e-4},
        },
    ],
    "gfn2 → dft, and cctz − dft in closed form": [
        GFN2,
        newton("dft", "gfn2"),
        {"name": "cctz", "levels": {"cctz": {"forces_weight": 0.0}}, "heads": {"cctz": "delta dft"}, "fit": "closed form"},
    ],
}


def config(out, stages, energies, seed, short):
    """energies : of cctz that are learned"""
    if short:
        stages = [stage | ({"train": stage["train"] | {"epochs": 2}} if "train" in stage else {}) for stage in stages]
    levels = {level: {"keep": energies} if level == "cctz" else {} for stage in stages for level in stage["levels"]}
    files = {split: DATA / f"{split}.xyz" for split in ("train", "val", "test")} | {"atoms": DATA / "atoms.json", "split_seed": seed}
    backbone = "small" if short else "medium"
    return plan.parse(
        {"out": out, "seed": seed, "resume": True, "data": files, "backbone": backbone, "levels": levels, "stages": stages}, "benchmark"
    )


def trained(out, name, stages, energies, seed, short):
    """The config of a run that is done; stages that runs have in common are trained once."""
    folder = out / str(seed) / f"{name.replace(' ', '')}-{energies}"
    c = config(folder, stages, energies, seed, short)
    if (folder / "model.pt").exists():
        return c
    below = [stage for stage in stages if "cctz" not in stage["levels"]]
    common = out / str(seed) / "stages"
    kept = {
        folder / stage["name"]: common / "-".join(f"{s['name']}-{s.get('fit', 'gradient')}" for s in below[: k + 1])
        for k, stage in enumerate(below)
    }
    for own, of_all in kept.items():
        if of_all.exists() and not own.exists():
            shutil.copytree(of_all, own)
    train(c, Console(quiet=True))
    for own, of_all in kept.items():
        if not of_all.exists():
            shutil.copytree(own, of_all)
    return c


def told(values, digits):
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values):.{digits}f}" if len(values) > 1 else "")


def calibrations(out, seeds, energies, short):
    print(
        "| cctz energies | chain | errors, rms, meV | within one error bar, % | gain, nats | by all gradients: within, % | gain, nats | forces, rank |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for n in energies:
        for name, stages in CHAINS.items():
            rows = []
            for seed in seeds:
                c = trained(out, name, stages, n, seed, short)
                frames = [s for s in reading.read_file(DATA / "test.xyz", c.data, c.levels) if "cctz" in s.labels]
                error, bar = evaluation.compare(c.out / "model.pt", frames)[1]["cctz"]
                row = evaluation.calibration(error, bar)
                rows.append([1e3 * np.sqrt(np.mean(error**2)), 100 * row["coverage"], row["gain"]])
                if stages[-1].get("fit") != "closed form":
                    row = by_gradients(c, frames)
                    rows[-1] += [100 * row["energy"]["coverage"], row["energy"]["gain"], row["forces"]["rank"]]
            cells = [told(values, digits) for values, digits in zip(zip(*rows, strict=True), (1, 0, 2, 0, 2, 2), strict=False)]
            print(f"| {n} | {name} | {' | '.join(cells + [''] * (6 - len(cells)))} |", flush=True)
    return c.out / "model.pt"


def by_gradients(c, frames):
    """What evaluation.surety finds at cctz."""
    splits, _ = reading.read_all(c.data, c.levels, c.out / "data")
    reading.keep_labels(splits["train"], c.levels, c.data.split_seed)
    learned = [s for s in splits["train"] if "cctz" in s.labels and s.labels["cctz"].energy is not None]
    found = [own for own in evaluation.comparisons(c.out / "model.pt", frames) if own.level == "cctz"]
    bars = error_bars.of_model(c.out / "model.pt", learned, frames)
    return evaluation.surety([("", *evaluation.error_of(own), *bar) for own, bar in zip(found, bars, strict=True)])


def cost(model, seconds):
    box = next(a for a in ase.io.iread(DATA / "test.xyz") if a.info["molecule"] == "water_box_16")
    print_cost(Engine(model, threads=1), "error_bars", (ase.build.molecule("CH3CH2OH"), box, box.repeat(2)), seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/error_bars"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--energies", type=int, nargs="+", default=[25, 100, 370])
    parser.add_argument("--short", action="store_true", help="a small backbone and two epochs: whether it runs")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time for each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.machine()}\n")
    model = calibrations(arguments.out, arguments.seeds, arguments.energies, arguments.short)
    print()
    cost(model, arguments.seconds)


if __name__ == "__main__":
    main()
