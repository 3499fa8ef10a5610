"""A published model, coupled-cluster energies, a minute of training: ethanol at CCSD(T) in OpenMM.

MFMD_WEIGHTS=pretrained_models python examples/8_foundation.py [--short]

The weights are the folder TensorNet-ANI-1x-Subset-PES of github.com/materialsvirtuallab/matgl (at e9cde229, under pretrained_models): ωB97X/6-31G(d),
the level dft of the shipped labels. None of those is learned: the energies of level cctz are all that is, forces come from the model.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import ase.build

from mfmd import foreign, md
from mfmd.engine import load_model
from mfmd.training import export, plan
from mfmd.training.run import train

NAME = "TensorNet-ANI-1x-Subset-PES"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--short", action="store_true")
parser.add_argument("--out", default="runs/foundation")
arguments = parser.parse_args()

folder = Path(os.environ.get("MFMD_WEIGHTS", "")) / NAME
if not folder.is_dir():
    sys.exit(
        f"error: MFMD_WEIGHTS names no folder with {NAME} in it; it is to be had from pretrained_models of github.com/materialsvirtuallab/matgl at e9cde229"
    )
start, out = time.perf_counter(), Path(arguments.out)
out.mkdir(parents=True, exist_ok=True)
if not (out / "ani1x.pt").exists():
    export.write_model(out / "ani1x.pt", *foreign.read(folder, level="ani1x"))

model = out / "cctz" / "model.pt"
config = {
    "out": str(out / "cctz"),
    "resume": True,
    "data": {**{split: f"examples/data/{split}.xyz" for split in ("train", "val", "test")}, "atoms": "examples/data/atoms.json"},
    "backbone": {"checkpoint": str(out / "ani1x.pt")},
    "levels": {"dft": {"from": "ani1x"}, "cctz": {"keep": 40} if arguments.short else {}},
    "stages": [{"name": "cctz", "levels": {"cctz": {}}, "heads": {"cctz": "dft"}, "fit": "gauss-newton"}],
}
if not model.exists():
    train(plan.parse(config, "the example"))
trained = time.perf_counter()
errors = json.loads(load_model(model).metadata)["provenance"]["errors"]["test"]

ase.build.molecule("CH3CH2OH").write(out / "ethanol.xyz")
summary = md.run(
    md.Settings(
        str(model), str(out / "ethanol.xyz"), str(out / "md"), head="cctz", friction=5.0,
        equilibrate=0.05 if arguments.short else 5.0, time=0.1 if arguments.short else 20.0, checkpoint=0.05 if arguments.short else 5.0,
    )
)  # fmt: skip
energy, forces = (1e3 * errors[f"cctz.{kind}"]["mae"] for kind in ("energy", "forces"))
print(f"coupled cluster, on the test frames: {energy:.1f} meV, {forces:.1f} meV/Å")
print(f"ethanol: mean temperature {summary['temperature']:.0f} K")
print(f"import and training {trained - start:.0f} s, dynamics {time.perf_counter() - trained:.0f} s; {model}, {out / 'md'}")
