"""Labels that are chosen against labels at random: campaigns replayed on examples/data, whose cctz labels are revealed as they are bought.

    MFMD_WEIGHTS=… python benchmarks/suggest.py start scratch own across-start across-scratch many sketch

start: from ANI-1x as matgl has it (TensorNet-ANI-1x-Subset-PES in the folder that MFMD_WEIGHTS names). scratch: from a model of the gfn2
labels alone. own: the same of a molecule that this command labels anew, a quarter of an hour of one core. across-…: from either, by CPU-seconds of benchmarks/labels.json instead of by number, with dft labels and their forces beside
cctz energies. many: time and memory of 100,000 structures. sketch: error bars by sketches against those by all gradients.

A draw is 300 of the structures with a cctz energy. Of cctz energies a model is Gauss-Newton's, of dft labels by gradient before. Errors are those
on the test frames, which choose nothing.
"""

import argparse
import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import torch
from foundation import BIN, DATA, NO_LABELS
from rich.console import Console

from mfmd import Note
from mfmd.config import parse
from mfmd.labelling import campaign as labelled
from mfmd.labelling import schema
from mfmd.structures import reading
from mfmd.structures.record import SPLITS
from mfmd.suggest import features
from mfmd.suggest.choice import FEWEST, PENALTY, aims, residuals
from mfmd.suggest.process import Pool, Process, Rows, fit_parts
from mfmd.training import fit, kernel, plan
from mfmd.training.batches import collation
from mfmd.training.errors import evaluate
from mfmd.training.run import train
from mfmd.training.stages import begin
from mfmd.training.start import header_of, read_checkpoint

COUNTS = (12, 25, 50, 100, 200)
DRAWN = 300  # structures of a draw
MANY = 100_000  # structures
BUDGETS = 60.0, 120.0, 200.0  # CPU-seconds
LABEL_ROWS = {"dft": 1 + kernel.DIRECTIONS}  # of the others there are energies
LOWER = {
    "name": "dft", "levels": {"dft": {}}, "heads": {"dft": "low"}, "train": {"epochs": 60, "batch_size": 8, "learning_rate": 2e-4, "monitor": "dft.forces"}
}  # fmt: skip
TRAINED = {"epochs": 30, "batch_size": 16, "monitor": "gfn2.forces"}  # of gfn2
STAGE = {"name": "cctz", "levels": {"cctz": {}}, "heads": {"cctz": "low"}, "fit": "gauss-newton"}


class Campaign:
    """What is bought of the labels of a level, from a model file whose level is the one below; drawn : structures of a draw."""

    def __init__(self, checkpoint, level, data=DATA, between=("dft",), top="cctz", drawn=DRAWN):
        self.checkpoint, self.level, self.top, self.drawn = checkpoint, level, top, drawn
        levels = {"low": {"from": level, **NO_LABELS}, **{name: {} for name in (*between, top)}}
        stage = {**STAGE, "name": top, "levels": {top: {}}, "heads": {top: "low"}}
        self.config = plan.parse(
            {"out": ".", "data": data, "levels": levels, "backbone": {"checkpoint": checkpoint}, "stages": [stage]}, "benchmark"
        )
        splits, self.isolated = reading.read_all(self.config.data, self.config.levels)
        self.pool, self.test = (reading.where(splits[name], lambda s: top in s.labels) for name in ("train", "test"))
        self.start = read_checkpoint(self.config)
        weights, self.elements = kernel.Weights(self.start.model, ["low"]), reading.subset_elements(self.pool, top)
        gram = kernel.gram(weights, [(self.pool, True)], "low", collation(self.config, []), self.elements).numpy()
        values, vectors = np.linalg.eigh(gram)
        real = values > 1e-12 * values[-1]
        rows = (vectors[:, real] * np.sqrt(values[real])).reshape(len(self.pool), -1, real.sum())
        self.rows = Rows(rows, np.zeros((*rows.shape[:2], 0)))
        self.diagonal = float(np.mean(np.diag(gram)[:: rows.shape[1]]))

    def draw(self, seed):
        return np.random.default_rng(seed).permutation(len(self.pool))[: self.drawn]

    def choose(self, draw, bought, penalty, count=np.inf, levels=None, cost=None, budget=np.inf, target=None):
        """(structure, level) of `bought` and of what is chosen besides.

        cost : {level: (pool,) CPU-seconds}; target : names of molecules whose structures in the draw are to be predicted, by default all
        """
        levels = levels or (self.top,)
        bought, of = list(bought), [[k for k, level in bought if level == own] for own in levels]
        rows = {level: LABEL_ROWS.get(name, 1) for level, name in enumerate(levels)}
        known = {n: [self.rows[own][:, : rows[n]].reshape(-1, self.rows.width)] for n, own in enumerate(of) if own}
        own, aimed = (Rows(self.rows.network[some], self.rows.e0[some]) for some in (draw, draw[self.of(target, draw)]))
        costs = np.ones((len(draw), len(levels))) if cost is None else np.stack([cost[level][draw] for level in levels], axis=1)
        free = np.stack([~np.isin(draw, had) for had in of], axis=1)
        parts = self.parts(bought, levels, penalty)
        pool = Pool(
            Process(parts, own.width, penalty * self.diagonal * np.cumsum(parts), known), own, rows, costs, free, aims(aimed, aimed)
        )
        while len(bought) < count and (best := pool.best(budget)) is not None:
            k, level, _ = best
            pool.take(k, level)
            budget -= costs[k, level]
            bought.append((int(draw[k]), levels[level]))
        return bought

    def of(self, molecules, draw):
        """(draw,) bool; molecules : names, None for all"""
        return np.array([molecules is None or self.pool[k].info["molecule"] in molecules for k in draw])

    def parts(self, bought, levels, penalty):
        """As `mfmd suggest` has them: the likeliest, or equal ones before there are enough labels."""
        level = np.array([levels.index(name) for _, name in bought], int)
        if len(levels) == 1 or min(np.bincount(level, minlength=len(levels))) < FEWEST:
            return np.ones(len(levels))
        own = self.rows[[k for k, _ in bought]][:, 0]
        labels = [(self.pool[k], name) for k, name in bought]
        return fit_parts(own @ own.T, level, residuals(self.start.model, "low", labels, self.elements), penalty)

    def learn(self, bought):
        """Errors of the model from these labels, meV and meV/Å, and Gauss-Newton's penalty; fewer than FEWEST dft labels are not learned."""
        if sum(level == "dft" for _, level in bought) >= FEWEST:
            return self._learn_both(bought)
        structures = [self.pool[k] for k, level in bought if level == self.top]
        stage, known = self.config.stages[0], {"low": self.start.elements["low"]}
        model = begin(self.config, stage, copy.deepcopy(self.start.model), structures, self.isolated, known)
        found = fit.gauss_newton(model, self.top, structures, collation(self.config, [self.top]))
        errors, _ = evaluate(model.requires_grad_(False), self.test, self.config)
        return *(1e3 * errors[self.top, kind]["mae"] for kind in ("energy", "forces")), found["penalty"]

    def _learn_both(self, bought):
        """dft by gradient, a tenth of whose labels says when to stop, then cctz from there by Gauss-Newton."""
        train_, val, of, seen_at_dft = [], [], {}, 0
        for k, level in bought:
            of.setdefault(k, []).append(level)
        for k, levels in of.items():
            s = self.pool[k]
            learned = ase.Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)
            seen = learned.copy()
            for level in levels:
                frame = seen if level == "dft" and seen_at_dft % 10 == 0 else learned
                seen_at_dft += level == "dft"
                frame.info[f"energy_{level}"] = s.labels[level].energy
                if level == "dft":
                    frame.arrays["forces_dft"] = s.labels[level].forces
            train_ += [learned] if learned.info else []
            val += [seen] if seen.info else []
        with tempfile.TemporaryDirectory() as out:
            for name, frames in (("train", train_), ("val", val)):
                ase.io.write(f"{out}/{name}.xyz", frames, format="extxyz")
            files = {name: f"{out}/{name}.xyz" for name in ("train", "val")}
            tree = {
                "out": f"{out}/run", "data": DATA | files, "levels": {"low": {"from": self.level, **NO_LABELS}, "dft": {}, "cctz": {}},
                "backbone": {"checkpoint": str(self.checkpoint)}, "stages": [LOWER, STAGE | {"heads": {"cctz": "dft"}}],
            }  # fmt: skip
            tables = train(plan.parse(tree, "benchmark"), Console(quiet=True))
            penalty = header_of(f"{out}/run/model.pt")["provenance"]["gauss_newton"]["penalty"]
        return *(1e3 * tables["test"]["cctz", kind]["mae"] for kind in ("energy", "forces")), penalty


def by_count(campaign, seeds, counts, target=None):
    """Random and chosen at each count, the latter for a target; the noise is Gauss-Newton's penalty of the round before."""
    found = {}
    for seed in seeds:
        draw, bought, penalty = campaign.draw(seed), [], PENALTY
        for count in counts:
            *errors, _ = campaign.learn([(k, campaign.top) for k in draw[:count]])
            found.setdefault(("random", count), []).append(errors)
            bought = campaign.choose(draw, bought, penalty, count, target=target)
            *errors, penalty = campaign.learn(bought)
            found.setdefault(("chosen", count), []).append(errors)
            words = ", ".join(f"{what} {e:.1f} / {f:.1f}" for what in ("random", "chosen") for e, f in found[what, count][-1:])
            print(f"  draw {seed}, {count} labels: {words}", flush=True)
    for count in counts:
        row = [f"{np.mean([each[k] for each in found[what, count]]):.1f}" for what in ("random", "chosen") for k in (0, 1)]
        print(f"| {count} | {' | '.join(row)} |", flush=True)


def start(starts, seeds):
    print("from ANI-1x, means: labels, random energy meV and forces meV/Å, chosen likewise")
    campaign = starts("ani1x")
    by_count(campaign, seeds, COUNTS[:-1])
    every = [campaign.learn([(k, "cctz") for k in campaign.draw(seed)])[:2] for seed in seeds]
    print(f"all {DRAWN}: {' / '.join(f'{x:.1f}' for x in np.mean(every, axis=0))}", flush=True)


def scratch(starts, seeds):
    print("from gfn2, means: labels, random energy meV and forces meV/Å, chosen likewise")
    campaign = starts("gfn2")
    by_count(campaign, seeds, COUNTS)
    small = {s.info["molecule"] for s in campaign.test if s.labels["cctz"].forces is not None}
    campaign = copy.copy(campaign)
    campaign.test = [s for s in campaign.test if s.info["molecule"] in small]
    print(f"the same on test frames of {', '.join(sorted(small))}, those of these molecules in the draw as targets")
    by_count(campaign, seeds, COUNTS, small)


OWN = {  # a molecule that examples/data does not have
    "out": "runs/methylamine",
    "structures": "H3CNH2",
    "sampling": {"temperatures": [300, 600], "train": 150, "val": 10, "test": 10},
    "levels": {"gfn2": {"method": "GFN2-xTB"}, "cc": {"method": "ccsd(t)", "basis": "cc-pvdz", "forces": "test"}},
}


def own(starts, seeds):
    """The labels are made first, in runs/methylamine; they are made once."""
    out = Path(OWN["out"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        labelled.run(parse(OWN, "benchmark", schema.Config))
    data = {split: out / f"{split}.xyz" for split in SPLITS} | {"atoms": out / "atoms.json"}
    tree = {"out": out / "gfn2", "data": data, "levels": {"gfn2": {}}, "train": {"epochs": 50, "batch_size": 16}, "resume": True}
    train(plan.parse(tree, "benchmark"), Console(quiet=True))
    print("methylamine from gfn2, means: labels, random energy meV and forces meV/Å, chosen likewise")
    by_count(Campaign(out / "gfn2" / "model.pt", "gfn2", data, (), "cc", drawn=240), seeds[:3], COUNTS[1:-1])


def across(campaign, seeds):
    """Equal CPU-seconds: at random with one level and with both, chosen at the top level alone, chosen at both."""
    molecules = json.loads((Path(__file__).parent / "labels.json").read_text())["molecules"]
    cost = {
        level: np.array([molecules[s.info["molecule"]]["levels"][level]["cpu_seconds"] for s in campaign.pool]) for level in ("dft", "cctz")
    }
    frames = [s for s in campaign.test if s.labels["cctz"].forces is not None]
    off = np.concatenate([np.abs(s.labels["cctz"].forces - s.labels["dft"].forces).ravel() for s in frames])
    print(f"dft labels alone leave {1e3 * np.mean(off):.1f} meV/Å or more: so far are those of the test frames from their cctz labels")
    print("  at every budget energy meV / forces meV/Å (cctz labels, dft labels)", flush=True)
    ways, found = {"cctz": ("cctz",), "dft and cctz": ("dft", "cctz")}, {}
    for seed in seeds:
        draw = campaign.draw(seed)
        for how, (name, levels) in itertools.product(("random", "chosen"), ways.items()):
            bought, penalty = [], PENALTY
            for budget in BUDGETS:
                spent = sum(cost[level][k] for k, level in bought)
                if how == "chosen":
                    bought = campaign.choose(draw, bought, penalty, levels=levels, cost=cost, budget=budget - spent)
                else:
                    total = np.cumsum(sum(cost[level][draw] for level in levels))
                    bought = [(int(k), level) for k in draw[total <= budget] for level in levels]
                *errors, penalty = campaign.learn(bought)
                found.setdefault((how, name, budget), []).append(errors)
                numbers = [sum(of == level for _, of in bought) for level in ("cctz", "dft")]
                print(f"  draw {seed}, {budget:.0f} s, {how} {name}: {errors[0]:.1f} / {errors[1]:.1f} {tuple(numbers)}", flush=True)
    for (how, name, budget), errors in found.items():
        print(f"| {how} {name} | {budget:.0f} | {' | '.join(f'{x:.1f}' for x in np.mean(errors, axis=0))} |", flush=True)


def across_start(starts, seeds):
    print("from ANI-1x: way, CPU-seconds, energy meV, forces meV/Å")
    across(starts("ani1x"), seeds)


def across_scratch(starts, seeds):
    print("from gfn2: way, CPU-seconds, energy meV, forces meV/Å")
    across(starts("gfn2"), seeds)


def many(starts, seeds):
    """MANY structures of 20 atoms, of propane, water and methanol moved at random; of fewer, whether a choice that was killed ends as one that was not."""
    model = starts.ani1x()
    with tempfile.TemporaryDirectory() as out:
        chosen = [_suggest(model, Path(out) / name, MANY // 20, killed) for name, killed in (("whole", False), ("killed", True))]
        print(
            f"{MANY // 20:,} structures, killed half-way and repeated: {'the same' if chosen[0] == chosen[1] else 'another'} choice",
            flush=True,
        )
        _suggest(model, Path(out) / "all", MANY, False)


def _suggest(model, folder, number, killed):
    """The text of chosen.xyz; prints time and memory."""
    rng = np.random.default_rng(0)
    one = ase.build.molecule("C3H8") + ase.build.molecule("H2O") + ase.build.molecule("CH3OH")
    one.positions[11:14, 2] += 4.0
    one.positions[14:, 2] -= 4.0
    folder.mkdir()
    with open(folder / "pool.xyz", "w") as file:
        for _ in range(number):
            atoms = one.copy()
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
            ase.io.write(file, atoms, format="extxyz")
    command = [BIN / "mfmd", "suggest", model, folder / "pool.xyz", "--levels", "ani1x", "--count", "200", "-o", folder / "chosen.xyz"]
    began, most = time.perf_counter(), 0
    while not (folder / "chosen.xyz").exists():
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
            while run.poll() is None:
                sizes = subprocess.run(["ps", "-o", "rss=", "--sid", str(run.pid)], capture_output=True, text=True).stdout.split()
                most = max(most, sum(map(int, sizes)))
                if killed and len(list(folder.glob("chosen.features/*.npy"))) > number / features.BLOCK / 2:
                    os.killpg(run.pid, signal.SIGKILL)
                    killed = False
                time.sleep(0.5)
        if run.returncode not in (0, -signal.SIGKILL):
            sys.exit(f"error: {' '.join(map(str, command))} ended with {run.returncode}")
    print(
        f"{number:,} structures: {(time.perf_counter() - began) / 60:.1f} minutes, {most / 1e6:.1f} GB in all processes together",
        flush=True,
    )
    return (folder / "chosen.xyz").read_text()


def sketch(starts, seeds):
    """Error bars of energies by sketches over those by all gradients, where more rows are known than a sketch has numbers."""
    data = plan.parse({"out": ".", "data": DATA, "levels": {"gfn2": {}}}, "benchmark")
    structures, path = reading.read_all(data.data, data.levels)[0]["train"], str(starts.ani1x())
    weights, elements = features.weights_of(path, "ani1x"), reading.subset_elements(structures, "gfn2")
    project, like = kernel.Sketch(len(weights), features.WIDTH), features.collation(weights.model)
    for some, forces in ((structures, False), (structures[::10], True)):
        gram = kernel.gram(weights, [(some, forces)], "ani1x", like, elements).numpy()
        e0 = kernel.e0_rows(some, elements, forces).reshape(len(gram), -1)
        rows = np.hstack([np.concatenate([project(kernel.rows_of(weights, s, "ani1x", like, forces)) for s in some]), e0]).astype(float)
        every = len(gram) // len(some)
        learned = np.repeat(np.random.default_rng(0).permutation(len(some)) < 0.8 * len(some), every)
        asked = ~learned & (np.arange(len(gram)) % every == 0)
        for penalty in (1e-6, 1e-5, 1e-4):
            noise = penalty * np.mean(np.diag(gram)[::every])
            bars = [np.sqrt(_variance(found, learned, asked, noise) + noise) for found in (gram, rows @ rows.T)]
            ratio = bars[1] / bars[0]
            print(
                f"{learned.sum()} rows of {'energies and forces' if forces else 'energies'}, penalty {penalty:.0e}: "
                f"{np.mean(ratio):.2f} ± {np.std(ratio):.2f} of the error bar by all gradients",
                flush=True,
            )


def _variance(gram, learned, asked, noise):
    lower = np.linalg.cholesky(gram[np.ix_(learned, learned)] + noise * np.eye(learned.sum()))
    return np.diag(gram)[asked] - np.sum(np.linalg.solve(lower, gram[np.ix_(learned, asked)]) ** 2, axis=0)


PARTS = {
    "start": start,
    "scratch": scratch,
    "own": own,
    "across-start": across_start,
    "across-scratch": across_scratch,
    "many": many,
    "sketch": sketch,
}


class Starts:
    """Campaigns from ANI-1x and from a model of the gfn2 labels, each made once."""

    def __init__(self, folder):
        self.folder, self.made = Path(folder), {}

    def __call__(self, level):
        if level not in self.made:
            self.made[level] = Campaign(getattr(self, level)(), level)
        return self.made[level]

    def ani1x(self):
        path, source = self.folder / "ani1x.pt", Path(os.environ.get("MFMD_WEIGHTS", "")) / "TensorNet-ANI-1x-Subset-PES"
        if not source.is_dir():
            sys.exit(f"error: {source}: no such folder; MFMD_WEIGHTS is to name that of the published weights (matgl's pretrained_models)")
        if not path.exists():
            subprocess.run([BIN / "mfmd", "import", source, "-o", path, "--level", "ani1x"], check=True, stdout=subprocess.DEVNULL)
        return path

    def gfn2(self):
        tree = {"out": str(self.folder / "gfn2"), "seed": 1, "data": DATA | {"split_seed": 1}, "levels": {"gfn2": {}}, "train": TRAINED}
        train(plan.parse(tree, "benchmark"), Console(quiet=True))
        return self.folder / "gfn2" / "model.pt"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as out:
        starts = Starts(out)
        for name in args.parts:
            PARTS[name](starts, args.draws)


if __name__ == "__main__":
    main()
