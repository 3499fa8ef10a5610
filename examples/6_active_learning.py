"""Active learning over levels: which structures to label next, and at which level, until the error bar is as small as wanted.

python examples/6_active_learning.py [--molecule H3CNH2] [--wanted 4] [--rounds 3] [--budget 20s] [--short]

Four commands, as one would give them by hand: mfmd label samples a pool and labels a few of it, mfmd-train makes a model, mfmd suggest says which labels teach
most for their CPU time, and mfmd label makes these; then mfmd-train goes on from the model before. The config of each is written beside what it makes. The loop
ends by the error bar that mfmd suggest predicts, without which one would not know; here it is compared with the error on structures that are labelled for that and never learned.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent
LEVELS = {  # cheapest first
    "gfn2": {"method": "GFN2-xTB"},
    "hf": {"method": "hf", "basis": "6-31g*"},
    "cc": {"method": "ccsd(t)", "basis": "cc-pvdz", "forces": "test"},
}
SHORT = {"gfn1": {"method": "GFN1-xTB"}, "hf": {"method": "hf", "basis": "sto-3g"}, "mp2": {"method": "mp2", "basis": "sto-3g"}}
HEAD = "| labels learned | CPU-hours of labels | of models | error bar, meV | as foretold | error, meV | within one error bar, % | error of forces, meV/Å |"
SPENT = {}  # CPU-hours by command


def command(*words):
    """What a command says with --json."""
    print("$", *words, flush=True)
    before = cpu_hours()
    done = subprocess.run([BIN / words[0], *map(str, words[1:]), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    name = words[1] if words[0] == "mfmd" else words[0]
    SPENT[name] = SPENT.get(name, 0.0) + cpu_hours() - before
    return json.loads(done.stdout)


def cpu_hours():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 3600


def config(path, tree):
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def hours_of_labels(folders):
    """CPU-hours of the labels that have been made to learn from."""
    rows = [json.loads(line) for folder in folders for line in (folder / "labels.jsonl").read_text().splitlines()]
    return sum(row.get("cpu_seconds", 0.0) for row in rows if not row["id"].startswith("isolated ") and "-test-" not in row["id"]) / 3600


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecule", default="H3CNH2", help="a name that ase.build.molecule knows, or a file")
    parser.add_argument("--wanted", type=float, default=4.0, help="error bar at which to stop, meV")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", default="20s", help="CPU time of the labels of a round")
    parser.add_argument("--out", type=Path, default=Path("runs/active_learning"))
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()

    out, short = arguments.out, arguments.short
    rounds, budget = (1, "1s") if short else (arguments.rounds, arguments.budget)
    levels = SHORT if short else LEVELS
    low, *higher = levels
    top, few = higher[-1], 14 if short else 24
    out.mkdir(parents=True, exist_ok=True)

    # A pool, whole at the cheapest level, of which a few structures are labelled at the others; and structures to test on.
    sampled = {"train": 10, "val": 4, "test": 2} if short else {"train": 120, "val": 10, "test": 10}
    first = {
        "out": str(out / "labels-0"), "structures": arguments.molecule, "sampling": {"temperatures": [300, 600], **sampled},
        "levels": {low: levels[low], **{level: {**levels[level], "keep": few} for level in higher}},
    }  # fmt: skip
    command("mfmd", "label", config(out / "label-0.yaml", first))
    labels, table, before, foretold = [out / "labels-0"], [], None, None

    for k in range(rounds + 1):
        # The first model learns level by level, the others go on from the one before.
        run = {
            "out": str(out / f"model-{k}"), "resume": True, "strategy": "chain-newton", "backbone": "small", "train": {"epochs": 3 if short else 80, "batch_size": 8},
            "data": {"train": [str(folder / "train.xyz") for folder in labels], "val": str(out / "labels-0/val.xyz"), "atoms": str(out / "labels-0/atoms.json")},
            "levels": {level: {} for level in levels},
        }  # fmt: skip
        if before:
            run |= {"backbone": {"checkpoint": str(before)}, "levels": {"before": {"from": top}, **{level: {} for level in higher}}}
            run["train"] |= {"learning_rate": 0.01}  # a tenth of it where a level begins from a checkpoint
        data = config(out / f"model-{k}.yaml", run)
        command("mfmd-train", data, "-q")
        before = out / f"model-{k}" / "model.pt"

        test = command("mfmd", "eval", before, out / "labels-0/test.xyz", "-o", out / f"eval-{k}")
        chosen = out / f"chosen-{k}.xyz"
        asked = ["--data", data, "--levels", ",".join(higher), "--budget", budget, "-o", chosen]
        found = command("mfmd", "suggest", before, out / "labels-0", *asked)
        errors = {row["label"]: 1e3 * row["rmse"] for row in test["errors"] if row["level"] == top and row["group"] == "all"}
        bar = {when: 1e3 * value for when, value in found["error_bar"].items()}
        learned = ", ".join(f"{found['learned'][level]} {level}" for level in higher)
        table.append(
            f"| {learned} | {hours_of_labels(labels):.3f} | {SPENT['mfmd-train'] + SPENT['suggest']:.3f} | {bar['before']:.1f} | {foretold or '–'} | "
            f"{errors['energy']:.1f} | {100 * test['error_bars'][top]['coverage']:.0f} | {errors['forces']:.0f} |"
        )
        print(HEAD, "|" + "---|" * (HEAD.count("|") - 1), *table, sep="\n", flush=True)
        if bar["before"] <= arguments.wanted or k == rounds:
            break
        foretold = f"{bar['after']:.1f}"
        labels.append(out / f"labels-{k + 1}")
        command("mfmd", "label", config(out / f"label-{k + 1}.yaml", {"out": str(labels[-1]), "structures": str(chosen), "levels": levels}))


if __name__ == "__main__":
    main()
