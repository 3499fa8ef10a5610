"""Accuracy of the sizes of the backbone: trains each on examples/data. (Speed: inference.py.)

    python benchmarks/sizes.py [--epochs 10] [--out runs/sizes]

All three levels at once, each head relative to the one below; errors on the test frames.
A size whose model file is in the folder already is not trained again.
"""

import argparse
import os
import platform
from datetime import date
from pathlib import Path

from yardsticks import ROOT

from mfmd.engine import Engine
from mfmd.training import plan
from mfmd.training.run import train
from mfmd.training.schema import SIZES

CONFIG = """
seed: 1
data: {{train: {data}/train.xyz, val: {data}/val.xyz, test: {data}/test.xyz, atoms: {data}/atoms.json}}
levels: {{gfn2: {{}}, dft: {{delta_of: gfn2, sampling: 2}}, cctz: {{delta_of: dft, sampling: 2, energy_weight: 2}}}}
backbone: {size}
train: {{epochs: {epochs}, batch_size: 16, monitor: cctz.energy}}
out: {out}
resume: true
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/sizes"))
    args = parser.parse_args()
    for size in SIZES:
        if not (args.out / size / "model.pt").exists():
            args.out.mkdir(parents=True, exist_ok=True)
            path = args.out / f"{size}.yaml"
            path.write_text(CONFIG.format(data=ROOT / "examples" / "data", size=size, epochs=args.epochs, out=args.out / size))
            train(plan.load(path))
    print(f"\n{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {args.epochs} epochs; test errors in meV and meV/Å\n")
    print("| size | channels, layers | gfn2 energy | gfn2 forces | dft energy | dft forces | cctz energy | cctz forces |")
    print("|---|---|---|---|---|---|---|---|")
    for size, shape in SIZES.items():
        errors = Engine(args.out / size / "model.pt").metadata["provenance"]["errors"]["test"]
        cells = [size, f"{shape['channels']}, {shape['layers']}"]
        cells += [f"{1e3 * errors[f'{level}.{kind}']['mae']:.1f}" for level in ("gfn2", "dft", "cctz") for kind in ("energy", "forces")]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
