"""Symmetrix-XL's MACE beside the engine on one card, in one run: energies and forces of water through ASE, the atoms moving a little at every call.

    .venv-peers/bin/python benchmarks/peers.py symmetrix-xl build/gpu/mace.json
    python benchmarks/symmetrix_xl.py build/gpu/mace.json [--systems water-5184 water-20736]

The first command writes the model, 96x0e, 4.5 Å, with random weights: it needs `make peers`; the second needs symmetrix-xl and
the package of its kernels for the card. Ours are the sizes small, medium and large of docs/speed.md, 5 Å, random weights.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter

import numpy as np
from yardsticks import ROOT, system

sys.path.insert(0, str(ROOT / "tests"))
import conftest

import mfmd
from mfmd.training.schema import SIZES


def main():
    from symmetrix import Symmetrix

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--systems", nargs="+", default=["water-5184", "water-20736"])
    parser.add_argument("--device", default="cuda", help="of ours; Symmetrix-XL takes the best package that is installed")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each figure")
    parser.add_argument("--json", type=Path, help="file for what was found")
    args = parser.parse_args()
    peer, found = "symmetrix-xl, MACE 96x0e, 4.5 Å", {}
    with tempfile.TemporaryDirectory() as folder:
        calculators = {peer: Symmetrix(str(args.model), execution_profile="speed")}
        for name, size in SIZES.items():
            path = conftest.write(conftest.random_model(0, size["channels"], size["layers"], 5.0, 2, 32), Path(folder) / f"{name}.pt")
            calculators[f"mfmd, {name}"] = mfmd.Calculator(path, "low", device=args.device)
        print(f"| system | {' | '.join(f'{name}, ms' for name in calculators)} | large, times faster |\n|{'---|' * (len(calculators) + 2)}")
        for name in args.systems:
            ms = measure(system(name), calculators, args.seconds)
            found[name] = {f"{key}, ms": value for key, value in ms.items()} | {"large, times faster": ms[peer] / ms["mfmd, large"]}
            print(f"| {name} | {' | '.join(f'{value:.4g}' for value in found[name].values())} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found))


def measure(atoms, calculators, seconds, rounds=3):
    """{name: median milliseconds}, interleaved."""
    rng, times = np.random.default_rng(0), {name: [] for name in calculators}
    for _ in range(rounds):
        for name, calculator in calculators.items():
            atoms.calc, until = calculator, monotonic() + seconds / rounds
            atoms.get_forces()  # which makes the list
            while len(times[name]) < 3 or monotonic() < until:
                atoms.positions += rng.normal(scale=1e-4, size=atoms.positions.shape)
                start = perf_counter()
                atoms.get_forces()
                times[name].append(1e3 * (perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
