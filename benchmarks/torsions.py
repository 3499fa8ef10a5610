"""Charged molecules from a model that knows none: torsions of 59 drug fragments, 28 of them ions, at coupled cluster (torsions.xyz of MFMD_PUBLIC), from a
published model of crystals (a folder TensorNet-MatPES-* of MFMD_WEIGHTS).

    MFMD_PUBLIC=… MFMD_WEIGHTS=… python benchmarks/torsions.py

The cheap level is GFN2-xTB, labelled here on all fragments (a minute). Coupled cluster is learned from energies alone, in five folds over the fragments:
what is told is of fragments none of whose coupled-cluster energies were learned, the root mean square of energies along a torsion, less their mean; and
the same of the methods that the file has beside it. Forty minutes of a core and two for each fold.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from rich.console import Console

from mfmd.config import parse
from mfmd.engine import Engine
from mfmd.labelling import schema
from mfmd.labelling.methods import label
from mfmd.training import plan
from mfmd.training.run import train

FOLDS, HIGH = 5, "cc"
BIN = Path(sys.executable).parent


def along(energies, fragments):
    """Energies less the mean of their fragment."""
    out = np.array(energies)
    for name in set(fragments):
        out[fragments == name] -= out[fragments == name].mean()
    return out


def told(name, errors, fragments, charged):
    """Root mean squares of fragments, and their mean and its standard error: of all, of the neutral and of the charged."""
    rms = {f: 1e3 * np.sqrt(np.mean(errors[fragments == f] ** 2)) for f in sorted(set(fragments))}
    parts = [np.array([rms[f] for f in rms if keep(f)]) for keep in (lambda f: True, lambda f: f not in charged, lambda f: f in charged)]
    words = ", ".join(f"{p.mean():.1f} ± {p.std(ddof=1) / np.sqrt(len(p)):.1f}" for p in parts)
    (_, neutral, ions), (_, error_n, error_i) = [p.mean() for p in parts], [p.std(ddof=1) / np.sqrt(len(p)) for p in parts]
    ratio = ions / neutral
    error = ratio * np.hypot(error_n / neutral, error_i / ions)
    print(
        f"{name}: {1e3 * np.sqrt(np.mean(errors**2)):.1f} meV over all; mean of fragments, all, neutral, charged: {words}; charged over neutral {ratio:.2f} ± {error:.2f}",
        flush=True,
    )


def folds(fragments, seed):
    """Names of the fragments of each fold."""
    names = np.random.default_rng(seed).permutation(sorted(set(fragments)))
    return [set(names[k::FOLDS]) for k in range(FOLDS)]


def config(out, checkpoint, train, val, levels, stages):
    data = {"train": str(train), "val": val if isinstance(val, float) else str(val)}
    return plan.parse(
        {"out": str(out), "data": data, "levels": levels, "backbone": {"checkpoint": str(checkpoint)}, "stages": stages}, "benchmark"
    )


def stage(name, rate, epochs, forces, **more):
    """Of the cheap level: first its forces, which make the model one of molecules, then its energies, which are what is asked of it."""
    learned = {"gfn2": {"energy_weight": 30.0 if more.pop("energies", True) else 1.0, "forces_weight": forces}}
    return {
        "name": name,
        "levels": learned,
        "train": {"learning_rate": rate, "epochs": epochs, "batch_size": 8, "monitor": "gfn2.energy"},
        **more,
    }


CHEAP = [
    stage("forces", 4e-4, 14, 1.0, energies=False, heads={"gfn2": "base"}), stage("both", 3e-4, 14, 1.0),
    stage("energies", 3e-4, 50, 0.0), stage("more", 2e-4, 40, 0.0),
]  # fmt: skip
EXPENSIVE = [{"name": HIGH, "levels": {HIGH: {}}, "heads": {HIGH: "gfn2"}, "train": {"learning_rate": 1e-4, "epochs": 8, "batch_size": 8}}]


def labelled(frames):
    """The frames with GFN2-xTB's energies and forces beside the energies at HIGH alone."""
    level, out = parse({"method": "gfn2"}, "benchmark", schema.Level), []
    for atoms in frames:
        kept = Atoms(atoms.numbers, atoms.positions)
        kept.info = {key: atoms.info[key] for key in ("molecule", "charge", f"energy_{HIGH}") if key in atoms.info}
        found = label(level, kept)
        kept.info["energy_gfn2"], kept.arrays["forces_gfn2"] = found["energy"], found["forces"]
        out.append(kept)
    return out


def without_high(atoms):
    atoms = atoms.copy()
    del atoms.info[f"energy_{HIGH}"]
    return atoms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="TensorNet-MatPES-PBE-v2025.1-PES", help="folder of MFMD_WEIGHTS")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, file = Path(os.environ.get("MFMD_WEIGHTS", "")) / args.model, Path(os.environ.get("MFMD_PUBLIC", "")) / "torsions.xyz"
    if not source.is_dir() or not file.is_file():
        sys.exit("error: MFMD_WEIGHTS is to name the folder of the published weights, and MFMD_PUBLIC that of torsions.xyz")
    frames = ase.io.read(file, ":")
    fragments = np.array([a.info["molecule"] for a in frames])
    charged = {a.info["molecule"] for a in frames if a.info.get("charge", 0)}
    high = along([a.info[f"energy_{HIGH}"] for a in frames], fragments)
    for method in ("hf3c", "b3lyp", "wb97m", "mp2"):
        told(method, along([a.info[f"energy_{method}"] for a in frames], fragments) - high, fragments, charged)

    elements = sorted({int(z) for a in frames for z in a.numbers})
    errors = np.full(len(frames), np.nan)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "base.pt"
        command = [
            "mfmd",
            "import",
            source,
            "-o",
            checkpoint,
            "--level",
            "base",
            "--elements",
            ",".join(chemical_symbols[z] for z in elements),
        ]
        subprocess.run([BIN / command[0], *command[1:]], check=True, stdout=subprocess.DEVNULL)
        told("before", along(predicted(Engine(checkpoint, allow_unseen_state=True), "base", frames), fragments) - high, fragments, charged)
        frames, cheap = labelled(frames), Path(folder) / "cheap"
        told("gfn2", along([a.info["energy_gfn2"] for a in frames], fragments) - high, fragments, charged)
        ase.io.write(f"{cheap}.xyz", [without_high(a) for a in frames])
        levels = {"base": {"from": "base", "energy": "-", "forces": "-"}, "gfn2": {}}
        train(config(cheap, checkpoint, f"{cheap}.xyz", 0.05, levels, CHEAP), Console(quiet=True))
        told("the model of gfn2", along(predicted(Engine(cheap / "model.pt"), "gfn2", frames), fragments) - high, fragments, charged)
        for k, test in enumerate(folds(fragments, args.seed)):
            if k not in args.folds:
                continue
            out = Path(folder) / f"fold-{k}"
            out.mkdir()
            rest = [a for a in frames if a.info["molecule"] not in test]
            tenth = set(sorted({a.info["molecule"] for a in rest})[::10])
            for split in ("train", "val"):
                ase.io.write(out / f"{split}.xyz", [a for a in rest if (a.info["molecule"] in tenth) == (split == "val")])
            seen = {int(z) for a in rest if a.info["molecule"] not in tenth for z in a.numbers}
            unseen = [chemical_symbols[z] for z in elements if z not in seen]
            levels = {"gfn2": {"from": "gfn2", "energy": "-", "forces": "-"}, HIGH: {"forces": "-"}}
            train(config(out / "run", cheap / "model.pt", out / "train.xyz", out / "val.xyz", levels, EXPENSIVE), Console(quiet=True))
            mine = np.isin(fragments, list(test))
            own = [a for a, yes in zip(frames, mine, strict=True) if yes]
            errors[mine] = along(predicted(Engine(out / "run" / "model.pt"), HIGH, own), fragments[mine]) - high[mine]
            told(f"fold {k} (elements not seen at {HIGH}: {', '.join(unseen) or 'none'})", errors[mine], fragments[mine], charged)
    done = np.isfinite(errors)
    told(f"{HIGH} by the model, {len(args.folds)} folds", errors[done], fragments[done], charged)


def predicted(engine, head, frames):
    """eV, in the charges of the file."""
    return [
        engine.compute(a.positions, a.numbers, terms=[(head, 1.0)], forces=False, charge=int(a.info.get("charge", 0)))["energy"]
        for a in frames
    ]


if __name__ == "__main__":
    main()
