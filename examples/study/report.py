"""docs/study.md and its figures, and the picture of the front page, from examples/study/results.

python examples/study/report.py
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

RESULTS = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
DOCS = Path("docs")
ENERGIES = (25, 50, 100, 200, 370)


def load():
    """{name: [run of each seed]}"""
    runs = {}
    for path in sorted(RESULTS.glob("*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["name"], []).append(run)
    return runs


RUNS = load()
LINES = []


def say(*text):
    LINES.extend(text)


def values(name, level, kind, group="all"):
    """MAE of every seed, meV or meV/Å."""
    key = f"{level}/{group}/{kind}"
    return [1e3 * run["test"][key]["mae"] for run in RUNS.get(name, []) if key in run["test"]]


def over_seeds(found, digits=1):
    """Mean and standard deviation as text."""
    if not found:
        return "–"
    return f"{statistics.mean(found):.{digits}f}" + (f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else "")


def cell(name, level, kind, group="all"):
    return over_seeds(values(name, level, kind, group))


def mean(name, level, kind):
    found = values(name, level, kind)
    return statistics.mean(found) if found else float("nan")


def table(head, rows):
    say("| " + " | ".join(head) + " |", "|" + "---|" * len(head))
    for row in rows:
        say("| " + " | ".join(row) + " |")
    say("")


def curves(path, level, kind, lines, label):
    """Error against the number of energies, one line a strategy."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, title in lines:
        points = [(n, values(f"{name}-{n}", level, kind)) for n in ENERGIES]
        points = [(n, v) for n, v in points if v]
        if points:
            x, y = [n for n, _ in points], [statistics.mean(v) for _, v in points]
            error = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
            axes.errorbar(x, y, error, marker="o", capsize=3, label=title)
    axes.set(xscale="log", yscale="log", xlabel="cctz energies learned", ylabel=label)
    axes.set_xticks(ENERGIES, [str(n) for n in ENERGIES])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def front(path):
    """The picture of the front page: what cheaper levels are worth, in forces at the highest. Grey that reads on white and on black."""
    lines = [
        ("single", "#c1666b", "coupled cluster alone", (9, 0)),
        ("gradient", "#b58b2c", "xTB first, then by gradient", (9, 2)),
        ("chain-newton", "#2a9d8f", "xTB, DFT, then Gauss-Newton", (9, 0)),
    ]
    grey = {
        "text.color": "#808080",
        "axes.labelcolor": "#808080",
        "axes.edgecolor": "#808080",
        "xtick.color": "#808080",
        "ytick.color": "#808080",
    }
    with rc_context({**grey, "svg.fonttype": "none", "svg.hashsalt": "mfmd", "font.size": 11}):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, color, title, offset in lines:
            points = [(n, v) for n in ENERGIES if (v := values(f"{name}-{n}", "cctz", "forces"))]
            x, y = [n for n, _ in points], [statistics.mean(v) for _, v in points]
            axes.errorbar(x, y, [statistics.stdev(v) for _, v in points], color=color, marker="o", lw=2, capsize=3)
            axes.annotate(f"{title}: {y[-1]:.0f}", (x[-1], y[-1]), offset, textcoords="offset points", color=color, va="center")
        axes.set(xscale="log", yscale="log", xlim=(22, 1800), ylim=(14, 1400), xlabel="coupled-cluster energies learned, and no forces")
        axes.set_ylabel("error of forces, meV/Å")
        axes.set_xticks(ENERGIES, [str(n) for n in ENERGIES])
        axes.set_yticks([20, 50, 100, 200, 500, 1000], ["20", "50", "100", "200", "500", "1000"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, transparent=True, metadata={"Date": None})


STRATEGIES = [
    ("single", "cctz alone, from a new backbone"),
    ("readout", "gfn2 → cctz, read-out alone by gradient"),
    ("closed", "gfn2 → cctz, closed-form delta head"),
    ("gradient", "gfn2 → cctz, all weights by gradient"),
    ("newton", "gfn2 → cctz, all weights by Gauss-Newton"),
    ("chain-closed", "gfn2 → dft → cctz, closed-form delta head"),
    ("chain-gradient", "gfn2 → dft → cctz, by gradient"),
    ("chain-newton", "gfn2 → dft → cctz, by Gauss-Newton"),
]


def high_level():
    say("## (a) The high level from few energies", "")
    say("Force MAE on the cctz test frames, meV/Å, against the number of cctz energies learned (no cctz force is ever learned):", "")
    table(["strategy", *map(str, ENERGIES)], [[title, *(cell(f"{s}-{n}", "cctz", "forces") for n in ENERGIES)] for s, title in STRATEGIES])
    say("Energy MAE, meV:", "")
    table(["strategy", *map(str, ENERGIES)], [[title, *(cell(f"{s}-{n}", "cctz", "energy") for n in ENERGIES)] for s, title in STRATEGIES])
    say("![force errors](study_forces.png)", "")
    front(DOCS / "front.svg")
    curves(DOCS / "study_forces.png", "cctz", "forces", STRATEGIES, "cctz force MAE, meV/Å")
    a, b = mean("chain-newton-100", "cctz", "forces"), mean("chain-gradient-370", "cctz", "forces")
    say(
        f"A hundred energies by Gauss-Newton ({a:.0f} meV/Å) come near to all 370 by gradient ({b:.0f} meV/Å): among the weights that fit "
        "few energies, those nearest to where they start keep the forces best, and following a gradient does not find them.",
        "",
        "From a model that others have trained at the level dft, in the place of gfn2 and with the same labels or without any of dft: [what it is worth](foundation.md).",
        "",
    )


def low_forces():
    say("## (b) Low forces and high energies against high energies and forces", "")
    say("gfn2 → dft, 400 dft structures; errors on the dft test frames:", "")
    rows = [
        ("dft-single", "400 dft energies alone"),
        ("dft-closed", "gfn2 energies and forces, then 400 dft energies: closed-form delta head"),
        ("dft-gradient", "… all weights by gradient"),
        ("dft-newton", "… all weights by Gauss-Newton"),
        ("dft-auto", "… four such models, taught to one (strategy auto)"),
        ("dft-single-both", "400 dft energies and forces, from a new backbone"),
        ("dft-both", "gfn2, then 400 dft energies and forces by gradient"),
    ]
    table(["learned", "energy, meV", "forces, meV/Å"], [[t, cell(n, "dft", "energy"), cell(n, "dft", "forces")] for n, t in rows])
    names = ("dft-single", "dft-newton", "dft-auto", "dft-single-both", "dft-both")
    alone, low, auto, high, both = (mean(n, "dft", "forces") for n in names)
    say(
        f"Low forces with high energies are {alone / low:.0f} times better in force than the energies alone, as paper 2 claims. "
        f"“Almost as good as energies and forces” holds for energies, not for forces: {low:.0f} against {high:.0f} meV/Å ({low / high:.2f} times; {auto / high:.2f} times by auto), "
        f"and {low / both:.1f} times what the same forces give after the same pre-training.",
        "",
    )


def relation():
    say("## (c) Errors before and after fine-tuning", "")
    names = {"150": "-after-150", "600": "-after-600", "all": ""}
    rows, points = [], {"dft-newton": [], "dft-both": []}
    for n, suffix in names.items():
        before = "gfn2" if n == "all" else f"gfn2-{n}"
        rows.append(
            [n, cell(before, "gfn2", "forces"), cell(f"dft-newton{suffix}", "dft", "forces"), cell(f"dft-both{suffix}", "dft", "forces")]
        )
        for kind, found in points.items():
            found += [(x, y) for x, y in zip(values(before, "gfn2", "forces"), values(f"{kind}{suffix}", "dft", "forces"), strict=False)]
    say("Pre-training on so many gfn2 structures, then 400 of dft; force MAE, meV/Å:", "")
    table(["gfn2 structures", "gfn2, pre-trained", "dft, from energies", "dft, from energies and forces"], rows)
    for kind, found in points.items():
        if len({x for x, _ in found}) > 2:
            x, y = np.log(np.array(found)).T
            slope, _ = np.polyfit(x, y, 1)
            r = np.corrcoef(x, y)[0, 1]
            what = "energies" if kind == "dft-newton" else "energies and forces"
            say(f"Log-log, {what}: slope {slope:.2f}, correlation {r:.3f} over {len(found)} runs.", "")


def frozen():
    say("## (d) Frozen against trained backbone", "")
    say("370 cctz energies after gfn2; errors on the cctz test frames:", "")
    rows = [
        ("readout-370", "frozen, read-out by gradient"),
        ("closed-370", "frozen, delta head in closed form"),
        ("gradient-370", "trained by gradient"),
        ("newton-370", "trained by Gauss-Newton"),
    ]
    table(["backbone", "energy, meV", "forces, meV/Å"], [[t, cell(n, "cctz", "energy"), cell(n, "cctz", "forces")] for n, t in rows])
    say("The backbone must adapt, as paper 1 claims.", "")


def without_forces():
    say("## (e) Force labels in pre-training", "")
    say("gfn2 with and without its forces, then 400 dft structures; force MAE on the dft test frames, meV/Å:", "")
    table(
        ["pre-trained on", "gfn2 itself", "dft, from energies", "dft, from energies and forces"],
        [
            [
                "gfn2 energies and forces",
                cell("gfn2", "gfn2", "forces"),
                cell("dft-newton", "dft", "forces"),
                cell("dft-both", "dft", "forces"),
            ],
            [
                "gfn2 energies",
                cell("gfn2-energies", "gfn2", "forces"),
                cell("dft-newton-after-energies", "dft", "forces"),
                cell("dft-both-after-energies", "dft", "forces"),
            ],
        ],
    )
    ratio = mean("dft-newton-after-energies", "dft", "forces") / mean("dft-newton", "dft", "forces")
    say(
        f"Without force labels in pre-training forces are {ratio:.1f} times worse after it: their inclusion is critical, as paper 1 claims.",
        "",
    )


def replacement():
    say("## (f) Expensive labels partly replaced by cheap ones", "")
    say("dft energies and forces of so many structures, after gfn2 or alone; force MAE on the dft test frames, meV/Å:", "")
    columns = ["50", "100", "200", "400"]
    after = ["dft-both-50", "dft-both-100", "dft-both-200", "dft-both"]
    alone = [None, None, "dft-single-both-200", "dft-single-both"]
    table(
        ["dft structures", *columns],
        [
            ["after gfn2", *(cell(n, "dft", "forces") for n in after)],
            ["alone", *(cell(n, "dft", "forces") if n else "" for n in alone)],
        ],
    )
    half, whole = mean("dft-both-200", "dft", "forces"), mean("dft-single-both", "dft", "forces")
    say(
        f"Half of the expensive labels after gfn2 ({half:.0f} meV/Å) are worth more than all of them alone ({whole:.0f} meV/Å): cheap labels do replace expensive ones.",
        "",
    )


def levels():
    say("## (g) Three levels against two, and all at once", "")
    say("All cctz energies (370; simultaneous training and auto: 385); errors on the cctz test frames:", "")
    rows = [
        ("newton-370", "gfn2 → cctz, Gauss-Newton"),
        ("chain-newton-370", "gfn2 → dft → cctz, Gauss-Newton"),
        ("chain-gradient-370", "gfn2 → dft → cctz, gradient"),
        ("multihead", "three independent heads at once, equal weights"),
        ("multihead-relative", "heads relative to the level below, which learn label − label; dft shown three times"),
        ("multihead-finetune", "… and a closing stage on cctz by gradient"),
        ("multihead-newton", "… and a closing stage on cctz by Gauss-Newton"),
        ("auto", "strategy auto"),
    ]
    table(["training", "energy, meV", "forces, meV/Å"], [[t, cell(n, "cctz", "energy"), cell(n, "cctz", "forces")] for n, t in rows])
    together, chain = mean("multihead-relative", "cctz", "forces"), mean("chain-newton-370", "cctz", "forces")
    say(
        f"Simultaneous training comes within {together / chain:.2f} times of the chain's forces once a relative head learns label − label; "
        f"with independent heads it is {mean('multihead', 'cctz', 'forces') / chain:.1f} times off.",
        "",
    )


def error_bars():
    say("## Error bars of heads in closed form", "")
    say(
        "Of delta heads at cctz: how many of the test energies lie within one predicted standard deviation (68 % is right), what their likelihood gains on average over that of "
        "the best single sigma, and CPU-seconds of the whole run, reading and test included:",
        "",
    )
    rows = []
    for n in ENERGIES:
        row = [str(n)]
        for name in (f"closed-{n}", f"chain-closed-{n}"):
            bars = [run["calibration"]["cctz"] for run in RUNS.get(name, [])]
            row += [over_seeds([100 * b["coverage"] for b in bars], 0), over_seeds([b["gain"] for b in bars], 2)]
            row += [over_seeds([run["cpu_seconds"] for run in RUNS.get(name, [])], 0)]
        rows.append(row)
    two, three = "gfn2 → cctz", "gfn2 → dft → cctz"
    table(["cctz energies", f"{two}: within, %", "gain", "s", f"{three}: within, %", "gain", "s"], rows)


def own():
    if "own-auto" not in RUNS:
        return
    say("## (h) A molecule of one's own", "")
    say(
        "Acetone, GFN2-xTB and MP2/cc-pVDZ, labelled by `mfmd label examples/study/acetone.yaml` after `auto` was as it is, so that no choice in it was made on "
        "these labels; 100 MP2 energies, training and validation together, and no MP2 forces but to test. One seed, `python examples/study/study.py --own`:",
        "",
    )
    names = ("auto", "chain-newton", "multihead-newton", "finetune", "replay", "multihead", "delta", "finetune-readout", "single")
    rows = [[f"`{n}`", cell(f"own-{n}", "mp2", "energy"), cell(f"own-{n}", "mp2", "forces")] for n in names if f"own-{n}" in RUNS]
    table(["strategy", "energy, meV", "forces, meV/Å"], rows)


def molecules():
    say("## Per molecule", "")
    say("chain by Gauss-Newton, 370 cctz energies; force MAE where the test frames have cctz forces, meV/Å, and energy MAE, meV:", "")
    groups = sorted({k.split("/")[1] for run in RUNS["chain-newton-370"] for k in run["test"] if k.startswith("cctz/")} - {"all"})
    rows = []
    for g in groups:
        own = lambda name, kind, g=g: cell(name, "cctz", kind, g)  # noqa: E731
        rows.append(
            [
                g,
                own("chain-newton-370", "energy"),
                own("chain-newton-370", "forces"),
                own("newton-370", "forces"),
                own("single-370", "forces"),
            ]
        )
    table(["molecule", "energy", "forces", "forces, two levels", "forces, cctz alone"], rows)


def main():
    seeds = sorted({run["seed"] for runs in RUNS.values() for run in runs})
    spent = sum(run["cpu_seconds"] for runs in RUNS.values() for run in runs) / 3600
    dates = sorted({run["date"] for runs in RUNS.values() for run in runs})
    count = sum(len(runs) for runs in RUNS.values())
    resumed = sum(run.get("resumed", False) for runs in RUNS.values() for run in runs)
    say("# Both papers' claims on real labels", "")
    say(
        f"Written by `python examples/study/report.py` from {count} runs of `python examples/study/study.py` (seeds {', '.join(map(str, seeds))}; "
        f"{spent:.1f} CPU-hours, of {resumed} runs that were resumed the last part alone; {RUNS['gfn2'][0]['machine']}, {dates[0]} to {dates[-1]}; every run's JSON is in examples/study/results). "
        "Mean ± standard deviation over the seeds, which also choose the labels kept; a dash is a run that the study does not have, or a label that the test frames do not have. Data: examples/data; backbone: medium. "
        "The test set chooses nothing: epochs are chosen on the validation set, everything else was fixed before.",
        "",
        "Paper 1: Understanding multi-fidelity training of machine-learned force-fields (arXiv 2506.14963). Paper 2: Low-level forces and "
        "high-level energies are all you need (arXiv 2505.01590).",
        "",
    )
    high_level()
    low_forces()
    relation()
    frozen()
    without_forces()
    replacement()
    levels()
    error_bars()
    own()
    molecules()
    (DOCS / "study.md").write_text("\n".join(LINES).rstrip() + "\n")
    print(f"{DOCS / 'study.md'}: {count} runs")


if __name__ == "__main__":
    main()
