"""Charged molecules from a model that knows none: torsions of 59 drug fragments, 26 of them ions, at coupled cluster (torsions.xyz of MFMD_PUBLIC), learned
from energies alone, from a published model of crystals (TensorNet-MatPES-* of MFMD_WEIGHTS).

    MFMD_PUBLIC=… MFMD_WEIGHTS=… python benchmarks/torsions.py

Five folds over the fragments: what is told is of fragments that no fold's training has seen, the root mean square of energies along a torsion, less
their mean, against coupled cluster; and the same of the methods that the file has beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.data import chemical_symbols
from rich.console import Console

from mfmd.engine import Engine
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


def config(out, checkpoint, stages):
    return plan.parse(
        {
            "out": out,
            "data": {"train": out / "train.xyz", "val": out / "val.xyz"},
            "levels": {"base": {"from": "base", "energy": "-", "forces": "-"}, HIGH: {"energy": f"energy_{HIGH}", "forces": "-"}},
            "backbone": {"checkpoint": checkpoint},
            "stages": stages,
        },
        "benchmark",
    )


STAGES = {
    "newton": [{"name": HIGH, "levels": {HIGH: {}}, "heads": {HIGH: "base"}, "fit": "gauss-newton"}],
    "closed": [{"name": HIGH, "levels": {HIGH: {}}, "heads": {HIGH: "delta base"}, "fit": "closed form"}],
    "gradient": [
        {"name": HIGH, "levels": {HIGH: {}}, "heads": {HIGH: "base"}, "train": {"learning_rate": 2e-4, "epochs": 40, "batch_size": 16}}
    ],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="TensorNet-MatPES-PBE-v2025.1-PES", help="folder of MFMD_WEIGHTS")
    parser.add_argument("--fit", choices=list(STAGES), default="newton")
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
        base = Engine(checkpoint, allow_unseen_state=True)
        told("before", along(predicted(base, "base", frames), fragments) - high, fragments, charged)
        for k, test in enumerate(folds(fragments, args.seed)):
            if k not in args.folds:
                continue
            out = Path(folder) / f"fold-{k}"
            out.mkdir()
            rest = [a for a in frames if a.info["molecule"] not in test]
            tenth = set(sorted({a.info["molecule"] for a in rest})[::10])
            for split in ("train", "val"):
                ase.io.write(out / f"{split}.xyz", [a for a in rest if (a.info["molecule"] in tenth) == (split == "val")])
            seen = Counter(int(z) for a in rest if a.info["molecule"] not in tenth for z in set(a.numbers))
            unseen = [chemical_symbols[z] for z in elements if z not in seen]
            train(config(out, checkpoint, STAGES[args.fit]), Console(quiet=True))
            mine = np.isin(fragments, list(test))
            own = [a for a, yes in zip(frames, mine, strict=True) if yes]
            errors[mine] = (
                along(predicted(Engine(out / "model.pt", allow_unseen_state=args.fit == "closed"), HIGH, own), fragments[mine]) - high[mine]
            )
            told(
                f"fold {k} (elements not seen in training: {', '.join(unseen) or 'none'})",
                errors[mine], fragments[mine], charged,
            )  # fmt: skip
    done = np.isfinite(errors)
    told(f"{args.model}, {args.fit}, {len(args.folds)} folds", errors[done], fragments[done], charged)


def predicted(engine, head, frames):
    """eV, in the charges of the file."""
    return [
        engine.compute(a.positions, a.numbers, terms=[(head, 1.0)], forces=False, charge=int(a.info.get("charge", 0)))["energy"]
        for a in frames
    ]


if __name__ == "__main__":
    main()
