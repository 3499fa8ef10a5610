"""The page of `mfmd md`, from the files of a run."""

import csv
import re
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from mfmd import units
from mfmd.reports import drawing, figures, page

MOST_DRAWN = 6  # of the structures far outside what the model was trained on

UNITS = dict.fromkeys(("time", "equilibrate", "every", "checkpoint"), "ps") | {
    "timestep": "fs",
    "temperature": "K",
    "pressure": "bar",
    "friction": "1/ps",
}


def read_log(path):
    """{column without its unit: values} of a CSV file of a run; NaN where a line has nothing."""
    with open(path) as file:
        names = [name.strip("#").split(" (")[0] for name in next(csv.reader(file))]
        rows = [[float(value) if value else np.nan for value in line] for line in csv.reader(file)]
    return dict(zip(names, np.array(rows).reshape(-1, len(names)).T, strict=True))


def looks(out):
    """How often a run was looked at, start aside, and at how many of these looks it was far outside what the model was trained on."""
    if not (Path(out) / "domain.csv").exists():
        return 0, 0
    grade = read_log(Path(out) / "domain.csv")["grade"]
    return len(grade), int((grade > 0).sum())


def summarize(log, atoms):
    """What a log of `mfmd md` comes to.

    Returns
    -------
    dict: temperature (K, mean), drift (meV/atom/ps, slope of the total energy; None for fewer than three lines); nothing without a line
    """
    column = read_log(log)
    time, total = column["Time"], 1e3 * column["Total Energy"] / units.KJ_PER_MOL / atoms
    if not len(time):
        return {}
    drift = float(np.polyfit(time, total - total[0], 1)[0]) if len(time) > 2 else None
    return {"temperature": float(column["Temperature"].mean()), "drift": drift}


def write(out, settings, numbers, summary, made):
    """Write out/report.html over the whole run, however often it was gone on with.

    Parameters
    ----------
    out : folder of the run, with log.csv, checkpoint.npz and what else there is of heads.csv, domain.csv and outside.xyz
    settings : {key: value} of settings.json
    numbers : (atoms,) elements
    summary : what md.run returns
    made : steps of this call
    """
    out = Path(out)
    log = read_log(out / "log.csv") if (out / "log.csv").exists() else {"Time": []}
    facts = {"ensemble": settings["ensemble"].upper(), "atoms": len(numbers), "steps": summary["steps"]}
    if summary["ns_per_day"]:
        whole = "" if made == summary["steps"] else f", last {made:,} steps"
        facts[f"ns/day{whole}"] = f"{summary['ns_per_day']:,.3g}"
    if summary.get("temperature"):
        facts["mean temperature"] = f"{summary['temperature']:.0f} ± {log['Temperature'].std():.0f} K"
    if summary.get("drift") is not None and settings["ensemble"] == "nve":
        facts["drift of total energy"] = f"{summary['drift']:+.2g} meV/atom/ps"
    with np.load(out / "checkpoint.npz") as state:
        last = state["positions"] * units.ANGSTROM_PER_NM, state["box"] * units.ANGSTROM_PER_NM
    periodic = "Box Volume" in log
    watched = read_log(out / "domain.csv") if (out / "domain.csv").exists() else None
    page.write(
        out / "report.html",
        "dynamics.html",
        title=f"Molecular dynamics of {drawing.formula(numbers)}",
        settings=settings,
        rows=[(key, f"{value} {UNITS.get(key, '')}".strip()) for key, value in settings.items() if value is not None],
        facts=facts,
        state=[_drawn(Atoms(numbers, last[0], cell=last[1], pbc=periodic), "The last structure")],
        course=_course(log, settings, len(numbers)) if len(log["Time"]) else [],
        looks=summary["looks"],
        far=summary["far"],
        watch=_watch(watched) if watched and len(watched["step"]) else [],
        outside=_outside(out / "outside.xyz"),
        heads=_heads(out / "heads.csv", len(numbers)),
    )


def _drawn(atoms, words, marked=None):
    svg, shown = drawing.draw(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, marked)
    part = f" Drawn are {shown} of {len(atoms)} atoms." if shown < len(atoms) else ""
    return figures.Figure(svg, f"{words}.{part}")


def _course(log, settings, atoms):
    """Energies, temperature and box along the run."""
    time, scale = log["Time"], 1e3 / units.KJ_PER_MOL / atoms  # kJ/mol -> meV/atom
    each = f"a point each {settings['every']:g} ps"

    def over(what, name, y, values, **more):
        return figures.lines(f"{what}, {each}.", {name: (time, values)}, "time, ps", y, **more)

    potential = log["Potential Energy"]
    thermostat = ("", None) if settings["ensemble"] == "nve" else ("; dashed is the thermostat's", settings["temperature"])
    drawn = [
        over("Potential energy, against its first value", "potential", "potential energy, meV/atom", (potential - potential[0]) * scale),
        over(f"Temperature{thermostat[0]}", "temperature", "temperature, K", log["Temperature"], level=thermostat[1]),
    ]  # fmt: skip
    if settings["ensemble"] == "nve":
        total = log["Total Energy"]
        drawn.append(
            over(
                "Total energy, which is to be conserved, against its first value",
                "total",
                "total energy, meV/atom",
                (total - total[0]) * scale,
            )
        )
    if settings["ensemble"] == "npt":
        drawn.append(over("Volume of the box", "volume", "volume, nm³", log["Box Volume"]))
        drawn.append(over("Density", "density", "density, g/cm³", log["Density"]))
    return drawn


def _watch(watched):
    """How far outside of training, and error bars, along the run."""
    time, grade, bar = watched["time_ps"], watched["grade"], watched["error"]
    drawn = []
    if grade.any():
        drawn.append(
            figures.outside(
                "What was outside, each kind worse than those below it; within a kind twice as far is one step up.", time, grade
            )
        )
    if np.isfinite(bar).all():
        drawn.append(
            figures.lines("Error bar of the energy, one standard deviation.", {"bar": (time, 1e3 * bar)}, "time, ps", "error bar, meV")
        )
    return drawn


def _outside(path):
    """The structures that were farther outside than all before them, the farthest last."""
    if not path.exists():
        return []
    frames = ase.io.read(path, ":", format="extxyz")[-MOST_DRAWN:]
    drawn = []
    for a in frames:
        what = a.info["outside"].partition(": ")[2]
        drawn.append(_drawn(a, f"Step {a.info['step']}: {what}", int(re.match(r"atom (\d+) ", what)[1])))
    return drawn


def _heads(path, atoms):
    """Energies of the heads against the highest, and their error bars."""
    if not path.exists():
        return []
    rows = read_log(path)
    time = rows.pop("time_ps")
    del rows["step"]
    bars = {
        name.removesuffix("_error"): rows.pop(name)
        for name in list(rows)
        if name.endswith("_error") and name.removesuffix("_error") in rows
    }
    if not len(time):
        return []
    highest = list(rows)[-1]
    apart = {
        name: (time, 1e3 * (values - rows[highest] - (values - rows[highest])[0]) / atoms)
        for name, values in rows.items()
        if name != highest
    }
    drawn = []
    if apart:
        what = f"Energy of the other heads less that of {highest}, against its first value."
        drawn.append(figures.lines(what, apart, "time, ps", "difference, meV/atom"))
    if bars:
        what = f"Error bars of the energies of {', '.join(bars)}, one standard deviation."
        drawn.append(figures.lines(what, {name: (time, 1e3 * bar) for name, bar in bars.items()}, "time, ps", "error bar, meV"))
    return drawn
