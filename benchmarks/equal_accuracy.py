"""Errors and times of two models trained on the same labels in the same CPU-minutes: `medium` by the demo's chain, and MACE 96x0e by its own training.

    python benchmarks/equal_accuracy.py [--minutes 10] [--out runs/equal]

MACE (mace-torch, 4.5 Å) learns the levels of examples/data at once, a head each, in single precision, batches of 10, with its moving average and second
stage; it runs by Symmetrix-XL, after `make peers`. How many epochs fit is found by trials on an eighth of the frames; the demo's chain then gets the
CPU-time that MACE has taken, start to model file, its epochs in the demo's proportions. Errors are those at cctz on the test frames, by one code.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import ase.io
import numpy as np
import torch
from yardsticks import PEERS, ROOT, Peers, check, evaluation, median, system

import mfmd
from mfmd.engine import Engine
from mfmd.training import plan
from mfmd.training.run import train

LEVELS, TARGET = ("gfn2", "dft", "cctz"), "cctz"
DATA = ROOT / "examples" / "data"
ONE = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
SYSTEMS = "ethanol", "water-648"
FIRST = 1, 3  # epochs of the demo's first two stages in the shortest chain of its proportions


def spent(run):
    """CPU-minutes of a function, its children's included."""
    before, _, after = cpu(), run(), cpu()
    return after - before


def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used) / 60


def of_atoms(level):
    """{atomic number: eV}"""
    energies = json.loads((DATA / "atoms.json").read_text())["energies"]
    return {ase.data.atomic_numbers[symbol]: of_level[level] for symbol, of_level in energies.items()}


def write_frames(folder, every=1):
    """What has a label of a level, in files of its own for MACE; energies without the atoms', which single precision could not hold to 0.1 meV."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        frames = ase.io.read(DATA / f"{split}.xyz", ":")
        for level in LEVELS:
            atoms, out = of_atoms(level), []
            for frame in (f for f in frames if f"energy_{level}" in f.info):
                bare = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
                bare.info["REF_energy"] = frame.info[f"energy_{level}"] - sum(atoms[z] for z in frame.numbers)
                if f"forces_{level}" in frame.arrays:
                    bare.arrays["REF_forces"] = frame.arrays[f"forces_{level}"]
                out.append(bare)
            ase.io.write(folder / f"{split}-{level}.xyz", out[::every], format="extxyz")
    return folder


def peer_command(name, *arguments, log):
    with open(log, "w") as file:
        code = subprocess.run([PEERS.parent / name, *arguments], stdout=file, stderr=subprocess.STDOUT, env=ONE).returncode
    if code:
        sys.exit(f"error: {name} failed; what it said is in {log}")


def train_mace(frames, out, epochs):
    """Its model file, out/mace_stagetwo.model."""
    heads = {
        level: {"train_file": str(frames / f"train-{level}.xyz"), "valid_file": str(frames / f"val-{level}.xyz"), "E0s": "average"}
        for level in LEVELS
    }
    options = {
        "name": "mace", "work_dir": out, "heads": heads, "seed": 1, "model": "MACE", "hidden_irreps": "96x0e", "r_max": 4.5,
        "interaction_first": "RealAgnosticInteractionBlock", "default_dtype": "float32", "device": "cpu", "max_num_epochs": epochs,
        "start_swa": 3 * epochs // 4, "plot": False, "skip_evaluate_heads": ",".join(LEVELS),
    }  # fmt: skip
    out.mkdir(parents=True)
    peer_command("mace_run_train", "--ema", "--swa", *(f"--{key}={value}" for key, value in options.items()), log=out / "train.log")


def train_demo(out, times):
    """Its model file, out/model.pt: the demo's chain, its first two stages so many times as long as FIRST."""
    of_stages = [f"stages.{name}.train.epochs={times * first}" for name, first in zip(("gfn2", "dft"), FIRST, strict=True)]
    train(plan.load(ROOT / "examples" / "demo.yaml", [f"out={out}", *of_stages]))


def mae(frames, answers):
    """meV and meV/Å. answers : (energy, forces) of each frame."""
    pairs = list(zip(frames, answers, strict=True))
    energies = [energy - frame.info[f"energy_{TARGET}"] for frame, (energy, _) in pairs]
    forces = [(f - frame.arrays[f"forces_{TARGET}"]).ravel() for frame, (_, f) in pairs if f"forces_{TARGET}" in frame.arrays]
    return 1e3 * np.abs(energies).mean(), 1e3 * np.abs(np.concatenate(forces)).mean()


def answers_of_mace(model, frames, out):
    ase.io.write(out / "test.xyz", [ase.Atoms(f.numbers, f.positions, cell=f.cell, pbc=f.pbc) for f in frames], format="extxyz")
    files = "--configs", out / "test.xyz", "--output", out / "answers.xyz", "--model", model
    peer_command("mace_eval_configs", *files, "--head", TARGET, "--default_dtype", "float32", log=out / "eval.log")
    atoms = of_atoms(TARGET)
    answered = ase.io.read(out / "answers.xyz", ":")
    return [(float(a.info["MACE_energy"]) + sum(atoms[z] for z in a.numbers), a.arrays["MACE_forces"]) for a in answered]


def answers_of_mfmd(model, frames):
    calculator = mfmd.Calculator(model, TARGET)
    return [(calculator.get_potential_energy(f), calculator.get_forces(f)) for f in frames]


def print_row(cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of one core, for each of the two")
    parser.add_argument("--out", type=Path, default=Path("runs/equal"), help="folder, written anew")
    args = parser.parse_args()
    if not PEERS.exists():
        sys.exit("error: the peers are not installed; run `make peers` first")
    torch.set_num_threads(1)
    shutil.rmtree(args.out, ignore_errors=True)
    out = args.out.resolve()
    few, all_ = write_frames(out / "few", every=8), write_frames(out / "all")

    least = 4  # epochs, of which the last is the second stage
    short, long = (spent(lambda e=e: train_mace(few, out / f"mace-{e}", e)) for e in (least, least + 4))
    epoch = 8 * (long - short) / 4
    start = short - least * epoch / 8
    epochs = max(least, round((args.minutes - start) / epoch))
    minutes = spent(lambda: train_mace(all_, out / "mace", epochs))
    model = out / "mace" / "mace_stagetwo.model"

    short, long = (spent(lambda n=n: train_demo(out / f"mfmd-{n}", n)) for n in (1, 2))
    times = 1 + max(0, int((minutes - short) / (long - short)))
    ours = spent(lambda: train_demo(out / "mfmd", times))

    frames = [f for f in ase.io.read(DATA / "test.xyz", ":") if f"energy_{TARGET}" in f.info]
    theirs = answers_of_mace(model, frames, out / "mace")
    rows = {
        "mfmd medium, 5 Å": (
            ours,
            "{} + {}".format(*(times * n for n in FIRST)),
            *mae(frames, answers_of_mfmd(out / "mfmd" / "model.pt", frames)),
        ),
        "MACE 96x0e, 4.5 Å": (minutes, epochs, *mae(frames, theirs)),
    }

    peer_command(
        "symmetrix_extract_mace", "--model", model, "--head", TARGET, "--output", out / "mace" / "mace.json", log=out / "extract.log"
    )
    peers, engine = Peers("symmetrix_cpu.py", out / "mace" / "mace.json", threads=1), Engine(out / "mfmd" / "model.pt", threads=1)
    check("MACE by Symmetrix-XL", theirs[0][1], peers.forces("mace", frames[0]))
    ms = {name: [] for name in rows}
    for name in SYSTEMS:
        ms["mfmd medium, 5 Å"].append(1e3 * median(evaluation(engine, system(name), TARGET), 3))
        ms["MACE 96x0e, 4.5 Å"].append(1e3 * peers.time("mace", system(name), 1, 3))

    print(f"\n{date.today()}, {platform.machine()}, {os.cpu_count()} cores; errors at {TARGET}, test frames; times on one core")
    print(f"Symmetrix-XL runs by its package for {peers.folder}\n")
    print_row(["", "CPU-minutes", "epochs", "energy, meV", "forces, meV/Å", *(f"{name}, ms" for name in SYSTEMS)])
    print(f"|{'---|' * (5 + len(SYSTEMS))}")
    for name, (used, trained, energy, forces) in rows.items():
        print_row([name, f"{used:.1f}", trained, f"{energy:.1f}", f"{forces:.1f}", *(f"{t:.3g}" for t in ms[name])])


if __name__ == "__main__":
    main()
