"""Ethanol in the gas phase with a model's highest level: what `mfmd md` does, from Python.

python examples/1_gas_phase.py runs/demo/model.pt [--short]
"""

import argparse
from pathlib import Path

import ase.build

from mfmd import md

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--short", action="store_true")
parser.add_argument("--out", default="runs/gas_phase")
arguments = parser.parse_args()

out = Path(arguments.out)
out.mkdir(parents=True, exist_ok=True)
ase.build.molecule("CH3CH2OH").write(out / "ethanol.xyz")
summary = md.run(
    md.Settings(
        arguments.model, str(out / "ethanol.xyz"), str(out / "run"), ensemble="nve", precision="double",
        equilibrate=0.05 if arguments.short else 2.0, time=0.1 if arguments.short else 20.0, every=0.01, checkpoint=0.05 if arguments.short else 5.0,
    )
)  # fmt: skip
print(f"mean temperature {summary['temperature']:.0f} K, drift {summary['drift']:+.4f} meV/atom/ps")
print(f"trajectory, log and plots in {out / 'run'}")
