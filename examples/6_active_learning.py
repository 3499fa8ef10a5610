"""Active learning: run until the model leaves what it knows, label the structures where it did, train again with them.

python examples/6_active_learning.py --rounds 3 [--short]

The model's error bars say where it is: its last level is a head in closed form (strategy: delta). Labels are GFN1-xTB and GFN2-xTB ones,
made on the spot by tblite; with a level of PySCF the loop is the same.
"""

import argparse
import json
from pathlib import Path

import ase.build
import ase.io
import openmm
from openmm import app, unit

import mfmd
from mfmd import md
from mfmd.config import parse
from mfmd.labelling import campaign, schema
from mfmd.training import plan
from mfmd.training.run import train

LEVELS = {"gfn1": {"method": "GFN1-xTB"}, "gfn2": {"method": "GFN2-xTB"}}


def make_labels(structures, folder, **more):
    """train.xyz and so on in a folder; returns it."""
    config = {"out": str(folder), "structures": structures, "levels": LEVELS, "workers": 2, **more}
    campaign.run(parse(config, "the example", schema.Config))
    return folder


def fit(folders, out, short):
    """A model from all labels so far; returns the path of its model file and the largest error bar on the structures that have labels."""
    files = {split: [str(f / f"{split}.xyz") for f in folders if (f / f"{split}.xyz").exists()] for split in ("train", "val")}
    config = {
        "out": str(out), "strategy": "delta", "levels": {"gfn1": {}, "gfn2": {"forces_weight": 0.0}}, "resume": True,
        "data": {**files, "atoms": str(folders[0] / "atoms.json")}, "backbone": "small",
        "train": {"epochs": 3 if short else 60, "batch_size": 8, "monitor": "gfn1.forces"},
    }  # fmt: skip
    train(plan.parse(config, "the example"))
    calculator, bars = mfmd.Calculator(out / "model.pt"), []
    for file in files["train"] + files["val"]:
        for atoms in ase.io.iread(file):
            atoms.calc = calculator
            atoms.get_potential_energy()
            bars.append(calculator.energy_error)
    return out / "model.pt", max(bars)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", default="runs/active_learning")
    arguments = parser.parse_args()

    out = Path(arguments.out)

    # Cool structures to begin with; the run is hot.
    few = {"train": 12, "val": 3, "test": 0} if arguments.short else {"train": 60, "val": 10, "test": 10}
    folders = [make_labels(["CH3CH2OH"], out / "labels-0", sampling={"temperatures": [150.0], **few})]
    topology, positions = md.topology_of(ase.build.molecule("CH3CH2OH"))
    history = []
    for k in range(1 if arguments.short else arguments.rounds):
        model, usual = fit(folders, out / f"model-{k}", arguments.short)
        found = out / f"far-{k}.xyz"
        found.unlink(missing_ok=True)
        system = mfmd.openmm.create_system(model, topology, "gfn1", threads=1)
        integrator = openmm.LangevinMiddleIntegrator(600 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
        integrator.setRandomNumberSeed(k + 1)
        simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
        simulation.context.setPositions(positions * unit.angstrom)
        every = 5 if arguments.short else 50
        simulation.reporters = [mfmd.openmm.HeadReporter(out / f"heads-{k}.csv", every, model, topology, limit=usual, frames=found)]
        try:
            simulation.step(4 * every if arguments.short else 20_000)
        except openmm.OpenMMException as error:  # far from what it knows a model may drive atoms into each other
            print(f"round {k}: the run ended at step {simulation.currentStep} ({error})")
        far = ase.io.read(found, ":") if found.exists() else []
        history.append({"round": k, "limit": usual, "structures": 4 if arguments.short else 400, "beyond": len(far)})
        print(f"round {k}: {len(far)} structures with an error bar above {1e3 * usual:.1f} meV")
        if not far:
            break
        step = max(1, len(far) // 40)
        ase.io.write(out / f"chosen-{k}.xyz", far[::step], format="extxyz")
        folders.append(make_labels([str(out / f"chosen-{k}.xyz")], out / f"labels-{k + 1}"))
    (out / "history.json").write_text(json.dumps(history, indent=1))


if __name__ == "__main__":  # processes that label import this file
    main()
