"""mfmd suggest: which structures to label next, and at which level."""

import re
import warnings
from pathlib import Path

from mfmd import Error, Note, progress

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def run(arguments):
    from mfmd.reports import page

    out = Path(arguments.output)
    if out.suffix not in (".xyz", ".extxyz"):
        raise Error(f"--output: {out} does not end in .xyz; name a file of extended XYZ, such as {out.with_suffix('.xyz')}")
    if not out.parent.is_dir():
        raise Error(f"--output: there is no folder {out.parent}")
    if arguments.count is not None and arguments.count < 1:
        raise Error(f"--count: {arguments.count} labels are none; give 1 or more")
    budget = _budget(arguments.budget)
    given = dict(_cost(text) for text in arguments.cost or ())
    with page.overheard() as told:
        return _run(arguments, out, budget, given, told)


def _run(arguments, out, budget, given, told):
    with progress.task("loading torch"):
        from mfmd.suggest import choice, costs, features, written
        from mfmd.suggest.features import SuggestError
    from mfmd.reports import suggest as report
    from mfmd.structures import reading
    from mfmd.training import plan
    from mfmd.training.start import header_of

    heads = [level["name"] for level in header_of(arguments.model)["levels"]]
    learned, held, folders, origin = [], [], [], {}
    if arguments.data:
        config = plan.load(arguments.data, [])
        splits = reading.of_run(config)
        learned, held, origin = splits["train"], [*splits["val"], *splits["test"]], config.imported
        folders = {Path(path).parent for path, _ in config.data.files("train") if (Path(path).parent / "labels.jsonl").exists()}
    else:
        config = plan.parse(
            {"out": ".", "data": {"train": [str(path) for path in arguments.candidates]}, "levels": {name: {} for name in heads}},
            "the command line",
        )
        warnings.warn(
            "without --data the labels that the model has learned are not known, and candidates like them may be chosen", Note, stacklevel=1
        )
    asked = arguments.levels.split(",") if arguments.levels else [list(config.levels)[-1]]
    every = list(dict.fromkeys([*config.levels, *asked]))
    labelled = {level for s in learned for level in s.labels}
    levels = [level for level in every if level in labelled or level in asked]
    sources, below = {}, None
    for level in every:
        below = next((name for name in (level, origin.get(level)) if name in heads), below)
        sources[level] = below
    if levels[-1] not in asked:
        warnings.warn(f"labels are chosen for what they teach of {levels[-1]}, the highest level with labels", Note, stacklevel=1)
    as_read = config.data.model_copy(update={"format": None})
    candidates, targets = (_read(paths, as_read) for paths in (arguments.candidates, arguments.target or ()))
    recorded = costs.recorded(sorted(folders), learned)
    cost = {level: given[level] for level in asked if level in given}
    cost |= {level: costs.seconds(level, recorded[level], candidates) for level in asked if level in recorded and level not in given}
    if unknown := sorted(given.keys() - set(asked)):
        raise SuggestError(f"--cost: {', '.join(unknown)} is not among the levels that are chosen from, {', '.join(asked)}")
    if (missing := [level for level in asked if level not in cost]) and (len(asked) > 1 or arguments.budget):
        where = ", ".join(str(folder / "labels.jsonl") for folder in sorted(folders)) or "no labels.jsonl beside the files of --data"
        raise SuggestError(f"--cost: what a label of level {missing[0]} costs is not recorded ({where}); give --cost {missing[0]}=SECONDS")
    kept = out.with_name(f"{out.stem}.features")
    found = choice.choose(
        arguments.model, candidates, levels, asked, learned, held, targets, sources, cost, arguments.count, budget, kept, arguments.workers
    )
    timed = not missing
    summary = written.write(out, found, timed)
    features.forget(kept)
    report.write(out.with_suffix(".html"), arguments.model, found, summary, timed, told)
    for line in report.sentences(summary):
        print(line)
    print(f"structures for mfmd label: {out}; numbers: {out.with_suffix('.json')}; report: {out.with_suffix('.html')}")
    return {"structures": str(out), "report": str(out.with_suffix(".html"))} | summary


def _read(paths, data):
    """The structures of files, or of the trajectories for training in folders of `mfmd label`; isolated atoms are left out."""
    from mfmd.structures.reading import Isolated, read_file

    out = []
    for path in map(Path, paths):
        sampled = sorted((path / "trajectories").glob("*.xyz"))
        found = [s for file in sampled or [path] for s in Isolated({}).set_aside(read_file(file, data, {}))]
        out += [s for s in found if not sampled or s.info.get("split", "train") == "train"]
    return out


def _budget(text):
    """CPU-seconds of such as 40h."""
    if text is None:
        return float("inf")
    found = re.fullmatch(r"(\d+\.?\d*)(s|min|h|d)", text.strip())
    if not found:
        raise Error(f"--budget: {text!r} is no time; give CPU time with a unit, such as 90s, 30min, 40h or 2d")
    return float(found[1]) * UNITS[found[2]]


def _cost(text):
    """(level, CPU-seconds) of such as cctz=120."""
    level, _, seconds = text.partition("=")
    try:
        value = float(seconds)
    except ValueError:
        value = 0.0
    if not level or not 0 < value < float("inf"):
        raise Error(f"--cost: {text!r} is no cost; give CPU-seconds of a label of a level, such as cctz=120")
    return level, value
