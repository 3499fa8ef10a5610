"""What a label costs: CPU-seconds at the levels of examples/data, three structures of each molecule, each checked against the shipped label before it counts.

    python benchmarks/labels.py            # measures, writes benchmarks/labels.json and prints its table
    python benchmarks/labels.py --print    # prints the table of the file there is

One thread. gfn2 and dft with forces, cctz (CCSD(T)/cc-pVDZ and MP2 in two bases) energies alone, as most of the shipped labels are.
"""

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

import ase.io
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_label import DATA, LEVELS

from mfmd.labelling import methods, workers
from mfmd.structures.record import SPLITS

FILE = Path(__file__).with_suffix(".json")
TIMED = ("gfn2", "dft", "cctz")
AGREE = 1e-3  # eV


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="the table of benchmarks/labels.json")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.print:
        measure(args.seed)
    found = json.loads(FILE.read_text())
    print(f"{found['date']}, {found['machine']}, {', '.join(f'{k} {v}' for k, v in found['versions'].items())}; CPU-seconds a label\n")
    print("| molecule | atoms | electrons | " + " | ".join(TIMED) + " |\n|---|---|---|" + "---|" * len(TIMED))
    for molecule, row in found["molecules"].items():
        cells = [f"{row['levels'][level]['cpu_seconds']:.3g}" if level in row["levels"] else "" for level in TIMED]
        print(f"| {molecule} | {row['atoms']} | {row['electrons']} | {' | '.join(cells)} |")
    for level in TIMED:
        worst = max(row["levels"][level]["difference"] for row in found["molecules"].values() if level in row["levels"])
        print(f"\n{level}: energies within {1e3 * worst:.2g} meV of the shipped ones", end="")
    print()


def measure(seed):
    frames = [a for split in SPLITS for a in ase.io.read(DATA / f"{split}.xyz", ":")]
    molecules = sorted({(int(a.numbers.sum()), a.info["molecule"]) for a in frames})
    rng, rows, versions = np.random.default_rng(seed), {}, {}
    for electrons, molecule in molecules:
        of_molecule = [a for a in frames if a.info["molecule"] == molecule]
        row = rows[molecule] = {"atoms": len(of_molecule[0]), "electrons": electrons, "levels": {}}
        for name in TIMED:
            labelled = [a for a in of_molecule if f"energy_{name}" in a.info]
            if not labelled:
                continue
            chosen = rng.choice(len(labelled), 3, replace=False)
            seconds, off = [], []
            for k, found in enumerate(made(name, [labelled[c] for c in chosen])):
                off.append(abs(found["energy"] - labelled[chosen[k]].info[f"energy_{name}"]))
                if off[-1] > AGREE:
                    sys.exit(f"error: {labelled[chosen[k]].info['id']}, {name}: {off[-1]:.4f} eV from the shipped label")
                seconds.append(found["cpu_seconds"])
                versions |= found["versions"]
            row["levels"][name] = {"cpu_seconds": float(np.median(seconds)), "structures": len(seconds), "difference": max(off)}
            print(molecule, name, row["levels"][name], flush=True)
    processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    FILE.write_text(
        json.dumps({"date": str(date.today()), "machine": f"one core of {processor}", "versions": versions, "molecules": rows}, indent=1)
        + "\n"
    )


def made(name, structures):
    """Labels of structures in a worker of their own, one after another."""
    level = LEVELS[name]
    first = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])  # loads the packages
    tasks = [
        (k, methods.recorded, (methods.label, level, set(a.get_chemical_symbols()), a, level.forces != "none"))
        for k, a in enumerate([first, *structures])
    ]
    for key, found, error in workers.in_parallel(tasks, 1):
        if error is not None:
            sys.exit(f"error: {name}: {error}")
        if key:
            yield found


if __name__ == "__main__":
    main()
