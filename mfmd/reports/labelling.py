"""The page of `mfmd label`."""

import itertools
import re
from collections import Counter

import numpy as np
import yaml

from mfmd.reports import drawing, figures, page
from mfmd.structures.record import SPLITS

DRAWN = 6  # structures of each kind


def write(config, structures, chosen, journal, told):
    """Write out/report.html of the labels that a campaign's config asks for.

    Parameters
    ----------
    config : labelling.schema.Config
    structures : ase.Atoms with info id and split
    chosen : {level: ids of the structures that it labels}
    journal : labelling.journal.Journal
    told : sentences of notes and warnings
    """
    rows = {
        level: {a.info["id"]: row for a in structures if a.info["id"] in ids and (row := journal.labels.get((a.info["id"], level)))}
        for level, ids in chosen.items()
    }
    made = {level: {key: row for key, row in of.items() if "error" not in row} for level, of in rows.items()}
    failed = {level: {key: row for key, row in of.items() if "error" in row} for level, of in rows.items()}
    by_id = {a.info["id"]: a for a in structures}
    page.write(
        config.out / "report.html",
        "labelling.html",
        title=f"Labels of {', '.join(config.levels)}",
        facts={
            "levels, cheapest first": " → ".join(config.levels),
            "structures": len(structures),
            **_states(structures),
            "labels": sum(map(len, made.values())),
            "failed": sum(map(len, failed.values())),
            "CPU time": page.duration(sum(row.get("cpu_seconds", 0.0) for of in made.values() for row in of.values())),
        },
        labels_head=["level", "method", "asked for", *SPLITS, "with forces", "failed"],
        labels=[_labels(level, config, chosen[level], by_id, made[level], failed[level]) for level in config.levels],
        failures=_failures(failed),
        cost_head=["level", "labels", "median, CPU s", "largest, CPU s", "in all"],
        cost=[row for level in config.levels if (row := _cost(level, made[level]))],
        cost_figure=_cost_figure(made),
        unknown=sum("cpu_seconds" not in row for of in made.values() for row in of.values()),
        differences=_differences(made, by_id),
        forces_head=["levels", "structures with both", "mean absolute difference of a component, meV/Å"],
        forces=_force_differences(made),
        strained=_strained(made, by_id),
        failing=_failing(failed, by_id),
        isolated_head=["level", "isolated atoms, eV"],
        isolated=[
            (level, ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in of.items())) for level, of in journal.isolated().items()
        ],
        versions_head=["level", "made with"],
        versions=[(level, "; ".join(_versions(of))) for level, of in made.items()],
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        seed=config.seed,
        told=told,
    )


def _states(structures):
    """How many structures are no neutral closed shells, where there are such."""
    counts = {
        "of them charged": sum(charge != 0 for _, charge, _ in map(_kind, structures)),
        "of them open shells": sum(multiplicity > 1 for *_, multiplicity in map(_kind, structures)),
    }
    return {key: count for key, count in counts.items() if count}


def _kind(atoms):
    """Formula, charge and multiplicity; a lone neutral atom counts as a closed shell."""
    return atoms.get_chemical_formula(), int(atoms.info.get("charge", 0)), int(atoms.info.get("multiplicity", 1))


def _labels(level, config, asked, by_id, made, failed):
    method = " ".join(filter(None, (config.levels[level].method, config.levels[level].basis)))
    method += "".join(f" {c.coefficient:+g} × {c.method} {c.basis or ''}" for c in config.levels[level].corrections)
    splits = Counter(by_id[key].info["split"] for key in made)
    return level, method, len(asked), *(splits[name] for name in SPLITS), sum("forces" in row for row in made.values()), len(failed)


def _failures(failed):
    """Failures of one reason, but for its numbers, are one row: level, reason, how often, an example."""
    grouped = {}
    for level, rows in failed.items():
        for key, row in rows.items():
            grouped.setdefault((level, re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "…", row["error"])), []).append((key, row["error"]))
    return [(level, len(cases), *cases[0][::-1]) for (level, _), cases in sorted(grouped.items(), key=lambda item: -len(item[1]))]


def _cost(level, made):
    seconds = [row["cpu_seconds"] for row in made.values() if "cpu_seconds" in row]
    return (level, len(seconds), float(np.median(seconds)), max(seconds), page.duration(sum(seconds))) if seconds else None


def _cost_figure(made):
    seconds = {level: np.array([row["cpu_seconds"] for row in of.values() if "cpu_seconds" in row]) for level, of in made.items()}
    seconds = {level: np.log10(np.maximum(s, 1e-3)) for level, s in seconds.items() if len(s)}
    what = "What a label cost, in CPU seconds of one calculation with its gradient where there is one."
    return [figures.histogram(what, seconds, "CPU time of a label, s", "labels", powers=True)] if seconds else []


def _differences(made, by_id):
    """For each pair of levels the distribution of their energies' difference, less its mean for the formula and state, which is what atoms account for."""
    drawn = []
    for low, high in itertools.combinations(made, 2):
        of_kind = {}
        for key in made[low].keys() & made[high].keys():
            atoms = by_id[key]
            difference = (made[high][key]["energy"] - made[low][key]["energy"]) / len(atoms)
            of_kind.setdefault(_kind(atoms), []).append(1e3 * difference)
        parts = [np.array(values) - np.mean(values) for values in of_kind.values() if len(values) > 1]
        if parts:
            values = np.concatenate(parts)
            what = (
                f"Energy of {high} less that of {low}, per atom, against its mean over structures of one formula and state: {len(values):,} structures of "
                f"{'1 formula and state' if len(parts) == 1 else f'{len(parts)} formulas and states'}, standard deviation {values.std():.1f} meV/atom."
            )
            drawn.append(figures.histogram(what, {f"{high} − {low}": values}, "difference, meV/atom", "structures"))
    return drawn


def _force_differences(made):
    rows = []
    for low, high in itertools.combinations(made, 2):
        both = [key for key in made[low].keys() & made[high].keys() if "forces" in made[low][key] and "forces" in made[high][key]]
        if both:
            apart = np.concatenate([np.abs(np.subtract(made[high][key]["forces"], made[low][key]["forces"])).ravel() for key in both])
            rows.append((f"{high} − {low}", len(both), 1e3 * float(apart.mean())))
    return rows


def _strained(made, by_id):
    """The structures with the highest energy per atom against the lowest of their formula and state, at the level that has the most labels."""
    level = max(made, key=lambda name: len(made[name]))
    lowest, above = {}, {}
    for key, row in made[level].items():
        kind = _kind(by_id[key])
        lowest[kind] = min(lowest.get(kind, np.inf), row["energy"])
    for key, row in made[level].items():
        above[key] = 1e3 * (row["energy"] - lowest[_kind(by_id[key])]) / len(by_id[key])
    order = sorted((key for key in above if above[key] > 0), key=above.get, reverse=True)
    return [_drawn(by_id[key], f"{above[key]:.0f} meV/atom above the lowest of its formula and state at {level}") for key in order[:DRAWN]]


def _failing(failed, by_id):
    cases = [(key, level) for level, rows in failed.items() for key in rows]
    return [_drawn(by_id[key], f"failed at {level}") for key, level in cases[:DRAWN]]


def _drawn(atoms, words):
    svg, shown = drawing.draw(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    part = f" Drawn are {shown} of {len(atoms)} atoms." if shown < len(atoms) else ""
    return figures.Figure(svg, f"{atoms.info['id']}, {drawing.formula(atoms.numbers)}: {words}.{part}")


def _versions(made):
    """Each set of packages that made labels, and how many."""
    sets = Counter(
        ", ".join(f"{package} {version}" for package, version in row["versions"].items()) for row in made.values() if "versions" in row
    )
    return [f"{packages} ({number} labels)" for packages, number in sets.items()] or ["not recorded"]
