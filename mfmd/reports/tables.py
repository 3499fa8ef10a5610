"""Tables on the console, and errors as CSV."""

import csv

from rich.table import Table

from mfmd import whole
from mfmd.structures.record import KINDS

UNITS = {"energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


def print_counts(console, splits, counts):
    """How many labels each level has in each split. counts : {split: what reading.count_labels gives}"""
    table = Table(title="Labels: energies / forces / stresses")
    table.add_column("level")
    for name, structures in splits.items():
        table.add_column(f"{name} ({len(structures)} structures)", justify="right")
    for level in next(iter(counts.values())):
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


def ordered(errors):
    """The rows of evaluation.errors that have a group: by level and kind, the groups ending with "all"."""
    rows = [row for row in errors.items() if row[0][1]]
    return sorted(rows, key=lambda item: (item[0][0], item[0][2], item[0][1] == "all", item[0][1]))


def print_evaluation(console, errors, calibrations):
    """MAE and RMSE per level, label and group; how far error bars can be trusted."""
    table = Table(title="Errors")
    for name in ("level", "label", "group", "count", "MAE", "RMSE", "unit"):
        table.add_column(name, justify="left" if name in ("level", "label", "group", "unit") else "right")
    for (level, group, kind), row in ordered(errors):
        table.add_row(level, kind, group, str(row["count"]), f"{1e3 * row['mae']:.2f}", f"{1e3 * row['rmse']:.2f}", UNITS[kind])
    console.print(table)
    for level, row in calibrations.items():
        console.print(f"error bars of {level}: {trust(row)}")


def trust(row):
    """What evaluation.calibration found, in words."""
    return (
        f"{100 * row['coverage']:.0f} % of {row['count']} energies within one standard deviation (68 % is right), "
        f"log likelihood {row['gain']:+.2f} against one constant"
    )


def foreseen(found):
    """What evaluation.foreseen found, in words."""
    return (
        f"{found['labels']} labels that mfmd suggest chose are {1e3 * found['rms_error']:.1f} meV (RMSE) from what the model of then predicted; its error bars "
        f"said {1e3 * found['rms_error_bar']:.1f} meV, and {100 * found['coverage']:.0f} % are within one (68 % is right)"
    )


def surety(found):
    """What evaluation.surety found of the error bars of a level by all gradients, in words."""
    said = []
    if found["energy"]:
        said.append(f"{trust(found['energy'])}, rank correlation with the errors {found['energy']['rank']:.2f}")
    if found["forces"]:
        rms, predicted = 1e3 * found["forces"]["rms"], 1e3 * found["forces"]["predicted"]
        said.append(
            f"forces of {found['forces']['count']} structures: rank correlation {found['forces']['rank']:.2f}, root mean square {rms:.1f} meV/Å, "
            f"and {predicted:.1f} were predicted"
        )
    return f"error bars of {found['level']} by the gradients of the {found['learned']} energies that it has learned: {'; '.join(said) or 'too few labels'}"


def write_error_bars(path, rows):
    """Of each structure what evaluation.surety is told, as CSV, in eV and Å."""
    with whole.writing(path, text=True) as file:
        writer = csv.writer(file)
        writer.writerow(["structure", "energy_error", "forces_error", "energy_bar", "forces_bar"])
        writer.writerows(rows)


def write_errors(path, tables):
    """The same as CSV, in eV and Å."""
    with whole.writing(path, text=True) as file:
        writer = csv.writer(file)
        writer.writerow(["split", "level", "label", "count", "mae", "rmse"])
        for split, table in tables.items():
            for (level, kind), row in table.items():
                writer.writerow([split, level, kind, row["count"], row["mae"], row["rmse"]])
