"""Ions and radicals: what a model of two levels makes of sixteen species, by what it is told of their states; an ion beside a far molecule; bonds that break.

    python benchmarks/ions.py [--out runs/ions-benchmark] [accuracy fragments dissociation]

Labels are made first (GFN2-xTB with forces; CCSD/cc-pVDZ energies of 370 structures, forces of test frames; half an hour of a core), and kept in the folder.
Test frames choose nothing.
"""

import argparse
import contextlib
import warnings
from pathlib import Path
from unittest import mock

import ase.build
import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.optimize import BFGS
from rich.console import Console
from tblite.ase import TBLite

from mfmd import Note, evaluation
from mfmd.config import parse
from mfmd.engine import Engine
from mfmd.labelling import campaign, schema
from mfmd.labelling.methods import label
from mfmd.labelling.schema import LabelError
from mfmd.structures import reading
from mfmd.training import plan, stages
from mfmd.training.model import TensorNet
from mfmd.training.run import train

AMMONIUM = Atoms("NH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [-0.6, 0.6, -0.6], [0.6, -0.6, -0.6]])
HYDRONIUM = Atoms("OH3", [[0, 0, 0.2], [0.95, 0, 0], [-0.48, 0.82, 0], [-0.48, -0.82, 0]])
FORMATE = Atoms("COOH", [[0, 0, 0], [1.1, 0.55, 0], [-1.1, 0.55, 0], [0, -1.1, 0]])
SPECIES = {  # a start, charge, multiplicity
    "methane": ("CH4", 0, 1), "methyl": ("CH3", 0, 2), "methyl_cation": ("CH3", 1, 1), "methyl_anion": ("CH3", -1, 1), "methylene": ("CH2_s3B1d", 0, 3),
    "ammonia": ("NH3", 0, 1), "ammonium": (AMMONIUM, 1, 1), "amidogen": ("NH2", 0, 2), "amide": ("NH2", -1, 1),
    "water": ("H2O", 0, 1), "hydronium": (HYDRONIUM, 1, 1), "hydroxyl": ("OH", 0, 2), "hydroxide": ("OH", -1, 1),
    "methoxy": ("CH3O", 0, 2), "methoxide": ("CH3O", -1, 1), "formate": (FORMATE, -1, 1),
}  # fmt: skip
TWICE = (
    "methyl",
    "methyl_cation",
    "methyl_anion",
    "amidogen",
    "amide",
    "hydroxyl",
    "hydroxide",
    "methoxy",
    "methoxide",
)  # of the same nuclei
LEVELS = {"gfn2": {"method": "gfn2"}, "ccsd": {"method": "ccsd", "basis": "cc-pvdz", "forces": "test", "keep": 370}}
SAMPLING = {"temperatures": [300.0, 600.0, 1000.0], "train": 14, "val": 2, "test": 4}  # sixty frames a species
TRAIN = {"epochs": 150, "batch_size": 16, "monitor": "gfn2.forces"}


def relaxed(name):
    """One of SPECIES at the minimum of GFN2-xTB."""
    start, charge, multiplicity = SPECIES[name]
    bare = ase.build.molecule(start) if isinstance(start, str) else start
    shaken = bare.positions + np.random.default_rng(0).normal(0, 0.02, bare.positions.shape)
    atoms = Atoms(bare.numbers, shaken, calculator=TBLite(method="GFN2-xTB", charge=charge, multiplicity=multiplicity, verbosity=0))
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    return Atoms(atoms.numbers, atoms.positions, info={"id": name, "molecule": name, "charge": charge, "multiplicity": multiplicity})


def labels(out):
    """The folder with labels of all species."""
    starts = out / "species.xyz"
    if not starts.exists():
        out.mkdir(parents=True, exist_ok=True)
        ase.io.write(starts, [relaxed(name) for name in SPECIES], format="extxyz")
    config = {"out": str(out / "labels"), "seed": 1, "structures": [str(starts)], "sampling": SAMPLING, "levels": LEVELS}
    campaign.run(parse(config, "benchmark", schema.Config))
    return out / "labels"


def config(out, files, levels, **more):
    return plan.parse({"out": str(out), "data": files, "levels": levels, "train": TRAIN} | more, "benchmark")


def files_of(folder):
    return {split: str(folder / f"{split}.xyz") for split in ("train", "val", "test")} | {"atoms": str(folder / "atoms.json")}


def factor(value, embedding):
    """A context in which new backbones have the factor of a charge, with the embedding of states or without."""
    context, usual = contextlib.ExitStack(), stages.architecture
    context.enter_context(mock.patch.object(stages, "architecture", lambda c: usual(c) | {"charge_factor": value}))
    if not embedding:
        context.enter_context(mock.patch.object(TensorNet, "add_states", lambda self: None))
    return context


WAYS = {
    "states in the embedding": contextlib.nullcontext,
    "the factor 1 + 0.1 Q": lambda: factor(0.1, False),
    "both": lambda: factor(0.1, True),
    "neither": lambda: factor(0.0, False),
}


def accuracy(folder, out, seeds):
    """Test errors at ccsd, whose energies alone are learned: of all species, and of those whose nuclei are in the set in two states."""
    for name, way in WAYS.items():
        found = []
        for seed in seeds:
            run = out / f"{name.replace(' ', '-')}-{seed}"
            with way():
                c = config(
                    run, files_of(folder), {"gfn2": {}, "ccsd": {"forces_weight": 0.0}}, seed=seed, strategy="chain-newton", resume=True
                )
                train(c, Console(quiet=True))
            structures = list(reading.read_file(folder / "test.xyz", c.data, c.levels))
            points, _ = evaluation.compare(run / "model.pt", structures, by="molecule")
            rows = evaluation.errors(points)
            energies = {species: 1e3 * rows["ccsd", species, "energy"]["mae"] for species in SPECIES}
            found.append(
                [
                    1e3 * rows["ccsd", "all", "energy"]["mae"], np.mean([energies[s] for s in TWICE]), max(energies.values()),
                    1e3 * rows["ccsd", "all", "forces"]["mae"],
                ]
            )  # fmt: skip
        energy, twice, worst, forces = (f"{np.mean(v):.1f} ± {np.std(v):.1f}" for v in zip(*found, strict=True))
        print(
            f"{name}: energy MAE {energy} meV, of species with the same nuclei in two states {twice}, of the worst {worst}; forces {forces} meV/Å",
            flush=True,
        )


def fragments(folder, out, seeds):
    """Hydronium and water 12 Å apart: as two fragments, and as one structure."""
    engine = Engine(out / f"states-in-the-embedding-{seeds[0]}" / "model.pt", "double")
    ion, water = relaxed("hydronium"), relaxed("water")
    water.positions += [12.0, 0.0, 0.0]
    both, terms = ion + water, [("ccsd", 1.0)]
    alone = [engine.compute(a.positions, a.numbers, terms=terms, charge=a.info["charge"])["energy"] for a in (ion, water)]
    apart = engine.compute(both.positions, both.numbers, terms=terms, fragments=[(range(4), 1, 1), (range(4, 7), 0, 1)])["energy"]
    one = engine.compute(both.positions, both.numbers, terms=terms, charge=1)["energy"]
    print(
        f"H3O+ and H2O, 12 Å apart: two fragments less the sum {apart - sum(alone):.1e} eV; one structure less the sum {1e3 * (one - sum(alone)):.1f} meV"
    )


BROKEN = {"hydronium": {"method": "hf", "basis": "6-31g*"}, "methane": {"method": "gfn2"}}  # levels that find these broken bonds
FAR = 60.0  # Å


def scan(name, rng, frames, apart=None):
    """Frames of one of SPECIES, shaken, whose last hydrogen is taken away to 0.8 to 4.9 Å, a third of them to 30 Å and more; or one, at `apart`."""
    start = relaxed(name)
    out = []
    for k in range(frames):
        atoms = start.copy()
        atoms.positions += rng.normal(0, 0.04 if apart is None else 0.0, atoms.positions.shape)
        ray = atoms.positions[-1] - atoms.positions[0]
        length = apart if apart is not None else rng.uniform(30, FAR) if k % 3 == 0 else rng.uniform(0.8, 4.9)
        atoms.positions[-1] = atoms.positions[0] + length * ray / np.linalg.norm(ray)
        atoms.info["id"] = f"{name}-{k}"
        out.append(atoms)
    return out


def dissociation(folder, out, seeds):
    """Broken bonds among the structures that a model learns, energies and forces: where the bond of a hydrogen ends, by the model and by the level itself."""
    for name, method in BROKEN.items():
        rng, level, made = np.random.default_rng(1), parse(method, "benchmark", schema.Level), out / f"{name}-broken.xyz"
        if not made.exists():
            frames = []
            for atoms in scan(name, rng, 300):
                with contextlib.suppress(LabelError):  # no convergence
                    found = label(level, atoms)
                    atoms.info["energy_low"], atoms.arrays["forces_low"] = found["energy"], found["forces"]
                    frames.append(atoms)
            ase.io.write(made, frames, format="extxyz")
        charge, multiplicity = SPECIES[name][1:]
        near, far = (scan(name, rng, 1, apart)[0] for apart in (1.0, FAR))
        own = [label(level, atoms)["energy"] for atoms in (near, far)]
        for seed in seeds:
            run = out / f"{name}-{seed}"
            c = config(
                run,
                {"train": str(made), "val": 0.1},
                {"low": {"unchecked": True}},
                seed=seed,
                resume=True,
                train=TRAIN | {"monitor": "low.forces"},
            )
            train(c, Console(quiet=True))
            engine, terms = Engine(run / "model.pt", "double"), [("low", 1.0)]
            end = engine.compute(far.positions, far.numbers, terms=terms, charge=charge, multiplicity=multiplicity)["energy"]
            print(
                f"seed {seed}, {name} ({len(ase.io.read(made, ':'))} structures of {method}): the bond of {own[1] - own[0]:.2f} eV ends "
                f"{1e3 * (end - own[1]):+.1f} meV from the level's own",
                flush=True,
            )


PARTS = {"accuracy": accuracy, "fragments": fragments, "dissociation": dissociation}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/ions-benchmark"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    warnings.simplefilter("ignore", Note)
    torch.set_num_threads(1)
    folder = labels(arguments.out)
    for name in arguments.parts:
        PARTS[name](folder, arguments.out, arguments.seeds)


if __name__ == "__main__":  # processes that label import this file
    main()
