"""Tables and plots of training and of molecular dynamics."""

import csv

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from mfmd import units
from mfmd.structures.reading import count_labels
from mfmd.structures.record import KINDS

UNITS = {"energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


def print_counts(console, splits, levels):
    """How many labels each level has in each split."""
    table = Table(title="Labels: energies / forces / stresses")
    table.add_column("level")
    for name, structures in splits.items():
        table.add_column(f"{name} ({len(structures)} structures)", justify="right")
    counts = {name: count_labels(structures, levels) for name, structures in splits.items()}
    for level in levels:
        table.add_row(level, *(" / ".join(str(counts[name][level][kind]) for kind in KINDS) for name in splits))
    console.print(table)


def print_errors(console, split, errors):
    """MAE and RMSE per level and kind of label."""
    table = Table(title=f"Errors on the {split}")
    for name in ("level", "label", "count", "MAE", "RMSE", "unit"):
        table.add_column(name, justify="left" if name in ("level", "label", "unit") else "right")
    for (level, kind), row in errors.items():
        table.add_row(level, kind.replace("_", " "), str(row["count"]), f"{1e3 * row['mae']:.2f}", f"{1e3 * row['rmse']:.2f}", UNITS[kind])
    console.print(table)


def print_evaluation(console, errors, calibrations):
    """MAE and RMSE per level, label and group, the groups ending with "all"; how far error bars can be trusted."""
    table = Table(title="Errors")
    for name in ("level", "label", "group", "count", "MAE", "RMSE", "unit"):
        table.add_column(name, justify="left" if name in ("level", "label", "group", "unit") else "right")
    for (level, group, kind), row in sorted(errors.items(), key=lambda item: (item[0][0], item[0][2], item[0][1] == "all", item[0][1])):
        if group:
            table.add_row(level, kind, group, str(row["count"]), f"{1e3 * row['mae']:.2f}", f"{1e3 * row['rmse']:.2f}", UNITS[kind])
    console.print(table)
    for level, row in calibrations.items():
        console.print(
            f"error bars of {level}: {100 * row['coverage']:.0f} % of {row['count']} energies within one standard deviation (68 % is right), "
            f"log likelihood {row['gain']:+.2f} against one constant"
        )


def write_errors(path, tables):
    """The same as CSV, in eV and Å."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "level", "label", "count", "mae", "rmse"])
        for split, table in tables.items():
            for (level, kind), row in table.items():
                writer.writerow([split, level, kind, row["count"], row["mae"], row["rmse"]])


def learning_curve(path, columns, levels):
    """Validation MAE against epoch, energies and forces of every level; columns: loop.read_metrics."""
    fig = Figure(figsize=(9, 3.5), layout="constrained")
    axes = fig.subplots(1, 2)
    for ax, kind in zip(axes, ("energy_per_atom", "forces"), strict=True):
        for level in levels:
            if f"val/{level}.{kind}" in columns:
                epochs, values = columns[f"val/{level}.{kind}"]
                ax.plot(np.array(epochs) + 1, 1e3 * np.array(values), label=level)
        ax.set(xlabel="epoch", ylabel=f"validation MAE, {UNITS[kind]}", yscale="log", title=kind.replace("_", " "))
        if ax.lines:
            ax.legend()
    fig.savefig(path, dpi=130)


def parity(path, points, split):
    """Prediction against label, a panel per level and kind (energies per atom, without E0)."""
    kinds = [k for k in ("energy", "forces", "stress") if any(kind == k for _, kind in points)]
    levels = list(dict.fromkeys(level for level, _ in points))
    fig = Figure(figsize=(3.2 * len(levels), 3.0 * len(kinds)), layout="constrained")
    axes = fig.subplots(len(kinds), len(levels), squeeze=False)
    unit = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
    for row, kind in zip(axes, kinds, strict=True):
        for ax, level in zip(row, levels, strict=True):
            if (level, kind) not in points:
                ax.axis("off")
                continue
            label, prediction = points[level, kind]
            ends = [min(label.min(), prediction.min()), max(label.max(), prediction.max())]
            ax.plot(ends, ends, color="0.7", lw=1)
            ax.plot(label, prediction, ".", ms=3)
            mae = np.abs(label - prediction).mean()
            ax.set(title=f"{level} {kind}, MAE {1e3 * mae:.1f} m{unit[kind]}", xlabel=f"label, {unit[kind]}", ylabel=f"model, {unit[kind]}")
            ax.title.set_fontsize(9)
    fig.suptitle(f"{split} set")
    fig.savefig(path, dpi=130)


def summarize_md(log, atoms, plot):
    """Draw potential energy, temperature and total energy over time from a log of `mfmd md`.

    Returns
    -------
    dict: temperature (K, mean), drift (meV/atom/ps, slope of the total energy; None for fewer than three lines)
    """
    with open(log) as file:
        names = next(file).lstrip("#").replace('"', "").strip().split(",")
        rows = np.array([[float(value) for value in line.split(",")] for line in file]).reshape(-1, len(names))
    column = {name.split(" (")[0]: rows[:, k] for k, name in enumerate(names)}
    if not len(rows):
        return {}
    time, scale = column["Time"], 1e3 / units.KJ_PER_MOL / atoms  # kJ/mol -> meV/atom
    panels = {
        "potential energy, meV/atom": (column["Potential Energy"] - column["Potential Energy"][0]) * scale,
        "temperature, K": column["Temperature"],
        "drift of the total energy, meV/atom": (column["Total Energy"] - column["Total Energy"][0]) * scale,
    }
    figure = Figure(figsize=(7, 7), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(len(panels), 1, sharex=True), panels.items(), strict=True):
        axes.plot(time, values, linewidth=0.8)
        axes.set_ylabel(label)
    axes.set_xlabel("time, ps")
    figure.savefig(plot, dpi=150)
    drift = float(np.polyfit(time, panels["drift of the total energy, meV/atom"], 1)[0]) if len(rows) > 2 else None
    return {"temperature": float(column["Temperature"].mean()), "drift": drift}
