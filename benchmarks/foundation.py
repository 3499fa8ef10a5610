"""A published model as the start of training: ANI-1x as matgl has it (TensorNet-ANI-1x-Subset-PES), whose folder of weights MFMD_WEIGHTS names.

    MFMD_WEIGHTS=… python benchmarks/foundation.py published newton auto study

published: its own errors at the level dft. newton: cctz energies alone, on one core, from the command to the model file. auto: gfn2, dft and cctz
labels. study: question (a) of docs/study.md, with the dft labels and without any. Errors are those on the test frames, which choose nothing.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from mfmd import evaluation
from mfmd.structures import reading
from mfmd.training import plan
from mfmd.training.run import train

DATA = {split: f"examples/data/{split}.xyz" for split in ("train", "val", "test")} | {"atoms": "examples/data/atoms.json"}
NO_LABELS = {"energy": "-", "forces": "-"}
BIN = Path(sys.executable).parent
ENERGIES = (25, 50, 100, 200)


def config(out, checkpoint, levels, seed=0, **more):
    tree = {"out": out, "seed": seed, "data": DATA | {"split_seed": seed}, "levels": levels, "backbone": {"checkpoint": checkpoint}}
    return plan.parse(tree | more, "benchmark")


def spent(run):
    """CPU-seconds of a function, its children's included."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    out = run()
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return out, sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))


def errors(tables):
    """meV and meV/Å at cctz."""
    return [1e3 * tables["test"]["cctz", kind]["mae"] for kind in ("energy", "forces")]


def told(values):
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def published(checkpoint, out, seeds):
    c = config(out / "published", checkpoint, {"ani1x": {"energy": "energy_dft", "forces": "forces_dft"}})
    points, _ = evaluation.compare(checkpoint, reading.read_file(Path(DATA["test"]), c.data, c.levels))
    rows = evaluation.errors(points)
    energy, forces = (1e3 * rows["ani1x", "all", kind]["mae"] for kind in ("energy", "forces"))
    print(f"as published, dft test frames: {energy:.2f} meV, {forces:.2f} meV/Å")


def newton(checkpoint, out, seeds):
    path = out / "newton.yaml"
    files = ", ".join(f"{key}: {value}" for key, value in DATA.items())
    path.write_text(
        f"out: {out}/newton\ndata: {{{files}}}\nlevels: {{dft: {{from: ani1x, energy: '-', forces: '-'}}, cctz: }}\n"
        f"strategy: chain-newton\nbackbone: {{checkpoint: {checkpoint}}}\n"
    )
    command = ["taskset", "-c", "0", BIN / "mfmd-train", str(path)]
    done, cpu = spent(
        lambda: subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    )
    print(done.stdout[done.stdout.index("Errors on the test set") :])
    print(f"385 cctz energies alone, one core, from the command to the model file: {cpu:.0f} CPU-seconds")


def auto(checkpoint, out, seeds):
    found = []
    for seed in seeds:
        c = config(
            out / f"auto-{seed}",
            checkpoint,
            {"gfn2": {}, "dft": {"from": "ani1x"}, "cctz": {}},
            seed,
            strategy="auto",
            train={"epochs": 50, "batch_size": 16},
        )
        tables, cpu = spent(lambda c=c: train(c, Console(quiet=True)))
        found.append([*errors(tables), cpu / 60])
        print(f"auto, seed {seed}: {found[-1][0]:.2f} meV, {found[-1][1]:.2f} meV/Å, {found[-1][2]:.1f} CPU-minutes", flush=True)
    energy, forces, minutes = zip(*found, strict=True)
    print(f"auto: {told(energy)} meV, {told(forces)} meV/Å, {np.mean(minutes):.0f} CPU-minutes")


# dft labels where there are any, then energies of cctz, as differences to those where structures have both.
STAGES = [
    {"name": "dft", "levels": {"dft": {}}, "train": {"learning_rate": 2e-4, "epochs": 60, "batch_size": 16}},
    {"name": "cctz", "levels": {"cctz": {}}, "heads": {"cctz": "dft"}, "fit": "gauss-newton", "differences": True},
]


def study(checkpoint, out, seeds):
    for name, labels in (("ANI-1x → dft → differences of cctz", {}), ("ANI-1x → cctz, no dft label", NO_LABELS)):
        found = {n: [] for n in ENERGIES}
        for seed in seeds:
            for n in ENERGIES:
                folder = out / f"study-{'without' if labels else 'with'}-{seed}-{n}"
                trained = folder.with_name(f"study-with-{seed}-{ENERGIES[0]}") / "dft"
                if not labels and n != ENERGIES[0]:  # the first stage is the same for all
                    shutil.copytree(trained, folder / "dft")
                levels = {"dft": {"from": "ani1x", **labels}, "cctz": {"keep": n}}
                found[n].append(errors(train(config(folder, checkpoint, levels, seed, stages=STAGES), Console(quiet=True))))
                print(f"  {name}, seed {seed}, {n}: {found[n][-1][0]:.1f} meV, {found[n][-1][1]:.1f} meV/Å", flush=True)
        for k, unit in ((1, "forces, meV/Å"), (0, "energy, meV")):
            print(f"| {name} | {unit} | {' | '.join(told([row[k] for row in found[n]]) for n in ENERGIES)} |", flush=True)


PARTS = {"published": published, "newton": newton, "auto": auto, "study": study}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = Path(os.environ.get("MFMD_WEIGHTS", "")) / "TensorNet-ANI-1x-Subset-PES"
    if not source.is_dir():
        sys.exit(f"error: {source}: no such folder; MFMD_WEIGHTS is to name that of the published weights (matgl's pretrained_models)")
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as out:
        checkpoint = Path(out) / "ani1x.pt"
        subprocess.run([BIN / "mfmd", "import", source, "-o", checkpoint, "--level", "ani1x"], check=True, stdout=subprocess.DEVNULL)
        for name in args.parts:
            PARTS[name](checkpoint, Path(out), args.seeds)


if __name__ == "__main__":
    main()
