"""mfmd eval: errors of a model file on labelled structures."""

import json
import re
import warnings
from pathlib import Path

from mfmd import Error
from mfmd.commands import results


def run(arguments):
    from mfmd.reports import page

    out = Path(arguments.output)
    if out.exists() and not out.is_dir():
        raise Error(f"--output: {out} is a file; name a folder, into which report.html goes")
    with page.overheard() as told:
        return _run(arguments, out, told)


def _run(arguments, out, told):
    from ase.data import chemical_symbols
    from rich.console import Console

    from mfmd import evaluation
    from mfmd.engine import load_model
    from mfmd.reports import comparison, tables
    from mfmd.structures import checks
    from mfmd.structures.reading import Isolated, read_file
    from mfmd.structures.record import DataError
    from mfmd.training import plan

    model = load_model(arguments.model)
    trained = {"levels": {}, "data": {}} | json.loads(model.metadata).get("provenance", {}).get("config", {})
    names = [arguments.level] if arguments.level else model.levels
    keys = _keys(arguments, names if arguments.level in (None, *model.levels) else model.levels)
    if isinstance(trained["data"].get("train"), dict) and arguments.level is None:
        if not keys:
            raise Error(
                "--level: each level was trained on files of its own; say whose labels these have, one of "
                f"{', '.join(model.levels)}, or name their keys, such as --energy-key {model.levels[-1]}=energy"
            )
        names = [name for name in names if name in keys]
    files = {arguments.level: arguments.files} if arguments.level else arguments.files
    given = {key: getattr(arguments, key) for key in ("energy_unit", "length_unit", "spin", "format") if getattr(arguments, key)}
    config = plan.parse(
        {
            "out": ".",
            "data": {"train": files} | _units_of(trained["data"], arguments.files) | given,
            "levels": {
                name: {key: value for key, value in trained["levels"].get(name, {}).items() if key in SAID and value} | keys.get(name, {})
                for name in (model.levels if arguments.level else names)
            },
        },
        "the command line",
    )
    levels = {name: config.levels[name] for name in names}
    atoms = Isolated(levels)
    try:
        structures = list(atoms.set_aside(s for path in arguments.files for s in read_file(path, config.data, levels)))
    except DataError as error:
        raise DataError(_as_options(str(error))) from None
    atoms.tell()
    for name, own in keys.items():
        for kind, key in own.items():
            if not any(name in s.labels and s.labels[name].count(kind) for s in structures):
                raise DataError(f"--{kind}-key {name}={key}: no structure in {', '.join(arguments.files)} has this key")
    left = evaluation.left_out(model, structures, levels, arguments.allow_unseen_state)
    lacking = {name: sorted(own.items()) for name, own in left.items() if own}
    left_out = [f"left out of {name}: {', '.join(_why(*what, number) for what, number in own)}" for name, own in lacking.items()]
    for sentence in left_out:
        print(sentence)
    found = list(evaluation.comparisons(model, structures, arguments.by, arguments.precision, arguments.allow_unseen_state))
    points, bars = evaluation.collect(found)
    if not points:
        looked = ", ".join(level.energy for level in levels.values())
        raise DataError(
            f"{', '.join(arguments.files)}: no label of the model's levels for elements and states that these were trained on (looked for {looked} and the like; "
            "--energy-key names another key)"
        )
    for name, level in levels.items():
        for sentence in checks.questions(structures, name, level, {}, config.data):
            warnings.warn(_as_options(sentence), stacklevel=1)
    for (level, kind), ratio in evaluation.ratios(points).items():
        if not 1 / 3 < ratio < 3:
            what, unit = {"energy": "energies"}.get(kind, kind), config.data.energy_unit or "eV, or as the files say"
            warnings.warn(f"{what} of level {level} are {ratio:.3g} times the model's; --energy-unit is {unit}", stacklevel=1)
    out.mkdir(parents=True, exist_ok=True)
    errors, bars = evaluation.errors(points), {level: evaluation.calibration(*pair) for level, pair in bars.items()}
    tables.print_evaluation(Console(), errors, bars)
    by_gradients = _by_gradients(arguments, model, found, out) if arguments.error_bars else None
    if by_gradients:
        print(tables.surety(by_gradients))
    asked = {
        "model": str(arguments.model),
        "files": ", ".join(map(str, arguments.files)),
        "grouped by": arguments.by,
        "precision": arguments.precision,
    }
    asked |= {
        f"{unit} unit": getattr(config.data, f"{unit}_unit") or f"as the files say, else {usual}"
        for unit, usual in (("energy", "eV"), ("length", "Å"))
    }
    comparison.write(out / "report.html", asked, model, found, left_out, told, [tables.surety(by_gradients)] if by_gradients else [])
    print(f"report: {out / 'report.html'}")
    return {
        "model": str(arguments.model),
        "files": [str(path) for path in arguments.files],
        "errors": results.rows(dict(tables.ordered(errors)), "level", "group", "label"),
        "error_bars": bars,
        "by_gradients": by_gradients,
        "left_out": [
            {"level": name, "elements": [chemical_symbols[z] for z in elements], "states": states, "structures": number}
            for name, own in lacking.items()
            for (elements, states), number in own
        ],
        "report": str(out / "report.html"),
    }


def _by_gradients(arguments, model, found, out):
    """Error bars of energies and forces by all gradients of what Gauss-Newton has learned, whose config is given; of each structure in error_bars.csv."""
    record = json.loads(model.metadata).get("provenance", {}).get("gauss_newton")
    if record is None:
        raise Error(
            f"--error-bars: {arguments.model} is as no Gauss-Newton stage has left it, or of an older mfmd; leave it out, or train with strategy: chain-newton or auto"
        )
    from mfmd import evaluation
    from mfmd.reports import tables
    from mfmd.structures import reading
    from mfmd.training import error_bars, plan

    level, config = record["level"], plan.load(arguments.error_bars, [])
    own = [c for c in found if c.level == level]
    if not own:
        raise Error(f"--error-bars: Gauss-Newton has fitted level {level}, of which the structures have no label; leave it out")
    splits = reading.of_run(config)
    learned = reading.where(splits["train"], lambda s: s.has_energy(level))
    if len(learned) != record["structures"]:
        raise Error(
            f"--error-bars: {arguments.error_bars} has {len(learned)} energies of level {level}, and Gauss-Newton has fitted it to {record['structures']}; "
            "name the config of that run as it was"
        )
    bars = error_bars.of_model(arguments.model, learned, [c.structure for c in own])
    made = [(c.structure.source, *evaluation.error_of(c), *map(float, bar)) for c, bar in zip(own, bars, strict=True)]
    tables.write_error_bars(out / "error_bars.csv", made)
    return {"level": level, "learned": len(learned), **evaluation.surety(made), "file": str(out / "error_bars.csv")}


def _as_options(sentence):
    """A sentence on a config's keys, as one on eval's options."""
    return re.sub(r"\bdata\.(energy|length)_unit:?", r"--\1-unit", sentence).replace("data.spin of a config", "--spin")


def _keys(arguments, levels):
    """{level: {kind: key}} of --energy-key and the like, whose level is one of these."""
    keys = {}
    for kind in ("energy", "forces", "stress"):
        for text in getattr(arguments, f"{kind}_key") or ():
            level, sign, key = text.rpartition("=")
            option = f"--{kind}-key {text}"
            if not sign and len(levels) > 1:
                raise Error(
                    f"{option}: the model has the levels {', '.join(levels)}; say whose key it is, such as {levels[-1]}={text}, or give --level"
                )
            level = level if sign else levels[0]
            if level not in levels:
                raise Error(f"{option}: there is no level {level!r} here; there are {', '.join(levels)}")
            if not key:
                raise Error(f"{option}: the key is missing behind {level}=")
            if kind in keys.setdefault(level, {}):
                raise Error(
                    f"{option}: level {level} has the key {keys[level][kind]} already; write one file for each key, or name one key"
                )
            keys[level][kind] = key
    return keys


def _why(elements, states, number):
    """What was left out, and why: see evaluation.left_out."""
    from ase.data import chemical_symbols

    lacking = ", ".join(chemical_symbols[z] for z in elements), "; ".join(f"charge {q:+d}, multiplicity {m}" for q, m in states)
    hint = " (--allow-unseen-state evaluates it all the same)" if states and not elements else ""
    what = f"with {' and '.join(filter(None, lacking))}, which it was not trained on{hint}" if elements or states else "without a label"
    return f"{number:,} structure{'s' if number > 1 else ''} {what}"


SAID = ("energy", "forces", "stress", "virial", "energy_unit", "forces_unit", "stress_unit", "forces_sign")  # of a level's labels


def _units_of(data, files):
    """What the training run's config says of the numbers in files, but of files that may say it themselves."""
    from mfmd.structures.formats.registry import format_of

    if any(format_of(path) == "multifidelity" for path in files):
        return {}
    return {key: data[key] for key in ("energy_unit", "length_unit", "spin") if data.get(key)}
