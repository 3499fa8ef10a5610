"""Both papers' claims examined on the shipped labels: every run of the study, one JSON each in examples/study/results.

python examples/study/study.py            all runs, three seeds (some hours); what is done is not done again
python examples/study/study.py --quick    the main runs of one seed with a small backbone, in ten minutes
python examples/study/study.py --own      every strategy on a molecule that `mfmd label examples/study/acetone.yaml` has labelled
python examples/study/report.py           docs/study.md and its figures from the JSON
"""

import argparse
import json
import platform
import shutil
import time
from datetime import date
from pathlib import Path

import torch
from rich.console import Console

from mfmd import evaluation
from mfmd.structures import reading
from mfmd.structures.record import SPLITS
from mfmd.training import plan
from mfmd.training.run import train

RESULTS = Path(__file__).parent / "results"
ENERGIES = (25, 50, 100, 200, 370)  # cctz energies learned
KINDS = ("forces", "stress")
ALONE = {f"{kind}_weight": 0.0 for kind in KINDS}  # energies alone
EPOCHS = {25: 300, 50: 200, 100: 120, 200: 80, 370: 60, 400: 60}  # of energies of a level, so that there are steps enough


class Study:
    """The runs of one seed. A run that goes on from stages of an earlier one takes these over."""

    def __init__(self, out, seed, backbone, epochs, keep_results, folder=Path("examples/data"), prefix=""):
        self.out, self.seed, self.backbone, self.epochs, self.keep_results = out / str(seed), seed, backbone, epochs, keep_results
        self.folder, self.prefix, self.known = folder, prefix, {}

    def run(self, name, levels, stages=(), after=None, **more):
        """Errors on the test set, written to results; name: of the run, after: of the run whose stages it goes on from."""
        self.known[name] = levels, stages, after, more
        if not self._result(name).exists():
            self._train(name)

    def _result(self, name):
        return self.keep_results / f"{self.seed}-{self.prefix}{name}.json"

    def _train(self, name):
        levels, stages, after, more = self.known[name]
        folder, result = self.out / name, self._result(name)
        resumed = folder.exists()
        if after is not None:
            if not (self.out / after / "model.pt").exists():  # its result came with the repository
                self._train(after)
            for stage in stages:
                done = self.out / after / stage["name"]
                if (done / "stage.ckpt").exists() and not (folder / stage["name"]).exists():
                    shutil.copytree(done, folder / stage["name"], ignore=shutil.ignore_patterns("last.ckpt", "best.ckpt"))
        files = {split: self.folder / f"{split}.xyz" for split in SPLITS}
        config = plan.parse(
            {
                "out": folder, "seed": self.seed, "resume": True, "backbone": self.backbone, "levels": levels, "stages": list(stages), **more,
                "data": {**files, "atoms": self.folder / "atoms.json", "split_seed": self.seed},
            },
            name,
        )  # fmt: skip
        start, cpu = time.time(), time.process_time()
        tables = train(config, Console(quiet=True))
        if result.exists():
            return
        spent = {"seconds": time.time() - start, "cpu_seconds": time.process_time() - cpu, "resumed": resumed}  # of its last part
        frames = [s for s in reading.read_file(files["test"], config.data, config.levels) if set(s.labels) & set(levels)]
        points, bars = evaluation.compare(folder / "model.pt", frames)
        rows = {"/".join(key): row for key, row in evaluation.errors(points).items()}
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(
            json.dumps(
                {
                    "name": self.prefix + name, "seed": self.seed, "stages": list(stages), **more, "levels": levels, "backbone": self.backbone, **spent,
                    "test": rows, "val": {"/".join(key): row for key, row in tables["val"].items()},
                    "calibration": {level: evaluation.calibration(*pair) for level, pair in bars.items()},
                    "threads": torch.get_num_threads(), "machine": platform.machine(), "date": str(date.today()),
                },
                indent=1,
            )
        )  # fmt: skip
        row = rows.get(f"{list(levels)[-1]}/all/forces", rows[f"{list(levels)[-1]}/all/energy"])
        print(f"seed {self.seed}, {name}: {1e3 * row['mae']:.1f} meV(/Å), {spent['seconds']:.0f} s", flush=True)

    # ---- stages

    def pretrain(self, labels=None, epochs=None):
        return {
            "name": "gfn2", "levels": {"gfn2": labels or {}},
            "train": {"epochs": epochs or self.epochs, "batch_size": 16, "monitor": "gfn2.energy" if labels else "gfn2.forces"},
        }  # fmt: skip

    def both(self, epochs=None):
        """dft energies and forces, from gfn2."""
        t = {"epochs": epochs or 2 * self.epochs, "batch_size": 16, "learning_rate": 1e-3, "monitor": "dft.forces"}
        return {"name": "dft", "levels": {"dft": {}}, "heads": {"dft": "gfn2"}, "train": t}

    def gradient(self, level, low, n, **more):
        t = {"epochs": EPOCHS[n], "batch_size": 8, "learning_rate": 2e-4}
        return {"name": level, "levels": {level: ALONE}, "heads": {level: low}, "train": t, **more}

    def readout(self, level, low, n):
        t = {"epochs": EPOCHS[n], "batch_size": 8, "learning_rate": 2e-3}
        return {"name": level, "levels": {level: ALONE}, "heads": {level: low}, "backbone_rate": 0.0, "train": t}

    def newton(self, level, low):
        return {"name": level, "levels": {level: ALONE}, "heads": {level: low}, "fit": "gauss-newton"}

    def closed(self, level, low):
        return {"name": level, "levels": {level: ALONE}, "heads": {level: f"delta {low}"}, "fit": "closed form"}

    def alone(self, level, n, forces=False):
        """One level from a new backbone."""
        t = {"epochs": 2 * EPOCHS[n], "batch_size": 8, "learning_rate": 2e-3 if forces else 1e-3}
        return {"name": level, "levels": {level: {} if forces else ALONE}, "train": t | ({"monitor": f"{level}.forces"} if forces else {})}

    # ---- the questions

    def main(self, energies=ENERGIES):
        """(a), (d), (g): the high level from few energies, two levels and three, for the main strategies."""
        low, middle = self.pretrain(), self.both()
        self.run("gfn2", {"gfn2": {}}, [low])
        self.run("gfn2-dft", {"gfn2": {}, "dft": {}}, [low, middle], after="gfn2")
        for n in energies:
            two, three = {"gfn2": {}, "cctz": {"keep": n}}, {"gfn2": {}, "dft": {}, "cctz": {"keep": n}}
            self.run(f"chain-newton-{n}", three, [low, middle, self.newton("cctz", "dft")], after="gfn2-dft")
            self.run(f"chain-closed-{n}", three, [low, middle, self.closed("cctz", "dft")], after="gfn2-dft")
            self.run(f"newton-{n}", two, [low, self.newton("cctz", "gfn2")], after="gfn2")
            self.run(f"closed-{n}", two, [low, self.closed("cctz", "gfn2")], after="gfn2")
        for n in energies[::2]:
            two, three = {"gfn2": {}, "cctz": {"keep": n}}, {"gfn2": {}, "dft": {}, "cctz": {"keep": n}}
            self.run(f"chain-gradient-{n}", three, [low, middle, self.gradient("cctz", "dft", n)], after="gfn2-dft")
            self.run(f"gradient-{n}", two, [low, self.gradient("cctz", "gfn2", n)], after="gfn2")
            self.run(f"readout-{n}", two, [low, self.readout("cctz", "gfn2", n)], after="gfn2")
            self.run(f"single-{n}", {"cctz": {"keep": n}}, [self.alone("cctz", n)])

    def low_forces(self):
        """(b): low forces and 400 high energies against 400 high energies and forces."""
        levels, low = {"gfn2": {}, "dft": {"keep": 400}}, self.pretrain()
        self.run("dft-newton", levels, [low, self.newton("dft", "gfn2")], after="gfn2")
        self.run("dft-both", levels, [low, self.both()], after="gfn2")
        self.run("dft-gradient", levels, [low, self.gradient("dft", "gfn2", 400)], after="gfn2")
        self.run("dft-closed", levels, [low, self.closed("dft", "gfn2")], after="gfn2")
        self.run("dft-single-both", {"dft": {"keep": 400}}, [self.alone("dft", 400, forces=True)])
        self.run("dft-single", {"dft": {"keep": 400}}, [self.alone("dft", 400)])

    def relation(self):
        """(c): errors before and after fine-tuning, over amounts of pre-training; (e): pre-training without force labels."""
        for n, epochs in ((150, 4 * self.epochs), (600, 2 * self.epochs)):
            levels, low = {"gfn2": {"keep": n}, "dft": {"keep": 400}}, self.pretrain(epochs=epochs)
            self.run(f"gfn2-{n}", {"gfn2": {"keep": n}}, [low])
            self.run(f"dft-newton-after-{n}", levels, [low, self.newton("dft", "gfn2")], after=f"gfn2-{n}")
            self.run(f"dft-both-after-{n}", levels, [low, self.both()], after=f"gfn2-{n}")
        low = self.pretrain(ALONE)
        self.run("gfn2-energies", {"gfn2": {}}, [low])
        self.run("dft-newton-after-energies", {"gfn2": {}, "dft": {"keep": 400}}, [low, self.newton("dft", "gfn2")], after="gfn2-energies")
        self.run("dft-both-after-energies", {"gfn2": {}, "dft": {"keep": 400}}, [low, self.both()], after="gfn2-energies")

    def replacement(self):
        """(f): dft labels partly replaced by gfn2 ones."""
        for n in (50, 100, 200):
            self.run(f"dft-both-{n}", {"gfn2": {}, "dft": {"keep": n}}, [self.pretrain(), self.both()], after="gfn2")
        self.run("dft-single-both-200", {"dft": {"keep": 200}}, [self.alone("dft", 200, forces=True)])

    def multihead(self):
        """Simultaneous training: independent heads; relative heads, and what a closing stage makes of these."""
        levels = {"gfn2": {}, "dft": {}, "cctz": {}}
        t = {"epochs": self.epochs, "batch_size": 16, "monitor": "cctz.energy"}
        self.run("multihead", levels, [{"name": "multihead", "levels": {k: {} for k in levels}, "train": t}])
        levels = {"gfn2": {}, "dft": {"delta_of": "gfn2", "sampling": 3.0}, "cctz": {"delta_of": "dft"}}
        first = {"name": "multihead", "levels": {k: {} for k in levels}, "train": t}
        self.run("multihead-relative", levels, [first])
        closing = {"levels": {"cctz": {}}, "train": {"epochs": EPOCHS[370], "batch_size": 8, "learning_rate": 2e-4}}
        self.run("multihead-finetune", levels, [first, {"name": "finetune", **closing}], after="multihead-relative")
        newton = {"name": "newton", "levels": {"cctz": {}}, "fit": "gauss-newton"}
        self.run("multihead-newton", levels, [first, newton], after="multihead-relative")

    def auto(self):
        """The default recipe: three levels; two with energies alone at the second; all labels."""
        t = {"epochs": self.epochs, "batch_size": 16}
        self.run("auto", {"gfn2": {}, "dft": {}, "cctz": {}}, strategy="auto", train=t)
        self.run("dft-auto", {"gfn2": {}, "dft": {"keep": 400, **ALONE}}, strategy="auto", train=t)

    def strategies(self):
        """Every strategy for two levels, energies alone at the second; by its plain name, nothing set but epochs."""
        for strategy in (
            "auto",
            "chain-newton",
            "finetune",
            "finetune-readout",
            "replay",
            "delta",
            "multihead",
            "multihead-newton",
            "single",
        ):
            t = {"epochs": self.epochs, "batch_size": 16}
            self.run(strategy, {"gfn2": {}, "mp2": ALONE}, strategy=strategy, train=t)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        study = Study(Path("runs/study-quick"), 1, "small", 6, Path("runs/study-quick/results"))
        study.main((25, 370))
        study.low_forces()
        return
    if args.own:
        Study(Path("runs/study-own"), 1, "medium", 60, RESULTS, Path("runs/acetone"), "own-").strategies()
        return
    studies = [Study(Path("runs/study"), seed, "medium", 30, RESULTS) for seed in args.seeds]
    for study in studies:  # the main claims for every seed first
        study.main((370,))
        study.low_forces()
        study.multihead()
        study.auto()
    for study in studies:
        study.main()
        study.relation()
        study.replacement()


if __name__ == "__main__":
    main()
