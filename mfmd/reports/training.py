"""The page of `mfmd-train`."""

import dataclasses
import json
from pathlib import Path

import yaml
from ase.data import chemical_symbols

from mfmd import evaluation
from mfmd.engine import load_model
from mfmd.reports import comparison, figures, page, tables
from mfmd.structures.record import KINDS


@dataclasses.dataclass
class Stage:
    """What has become of a stage."""

    name: str
    learns: str  # in words
    start: str  # the stage it went on from, or new
    how: str  # in words
    epochs: int | None = None  # done; of a stage that is no gradient's None
    seconds: float | None = None  # None where it is not known, or the stage was skipped
    outcome: str = ""  # in words
    metrics: dict = dataclasses.field(default_factory=dict)  # {name: (epochs, values)} of its log
    monitor: str = ""  # <level>.<kind>
    errors: dict = dataclasses.field(default_factory=dict)  # {(level, kind): {"count", "mae", "rmse"}} on the validation set afterwards


def write(out, config, plan, splits, counts, stages, errors, sizes, files, told):
    """Write out/report.html beside out/model.pt, from which its predictions are.

    Parameters
    ----------
    config : training.plan.Config; plan : its lines of text
    splits : {name: structures}; counts : {name: what reading.count_labels gives}
    stages : Stage of each
    errors : {split: {(level, kind): {"count", "mae", "rmse"}}}, those of errors.csv
    sizes : {split: {(level, kind): mean size of the labels}}, likewise in eV and Å; energies per atom beyond the atomic reference energies
    files : reading.fingerprints of the data
    told : sentences of notes and warnings
    """
    out, split = Path(out), "test" if errors.get("test") else "val"
    model = load_model(out / "model.pt")
    found = list(evaluation.comparisons(model, splits[split]))
    elements = sorted({z for level in json.loads(model.metadata)["levels"] for z in level["elements"]})
    page.write(
        out / "report.html",
        "training.html",
        title=f"Training of {', '.join(config.levels)}",
        facts={
            "levels, cheapest first": " → ".join(config.levels),
            "structures": sum(map(len, splits.values())),
            "elements": " ".join(chemical_symbols[z] for z in elements),
            "strategy": config.strategy or "own stages",
            "in the model file": ", ".join(model.levels),
        },
        labels_head=["level", "label", *splits],
        labels=[("any", "structures", *map(len, splits.values()))]
        + [(level, kind, *(counts[name][level][kind] for name in splits)) for level in config.levels for kind in KINDS],
        stages_head=["stage", "learns", "begins with", "how", "epochs", "time"],
        stages=[
            (
                s.name,
                s.learns,
                s.start,
                s.how,
                "" if s.epochs is None else str(s.epochs),
                "" if s.seconds is None else page.duration(s.seconds),
            )
            for s in stages
        ],
        outcomes=[f"{s.name}: {s.outcome}" for s in stages if s.outcome],
        curves=[_curve(s) for s in stages if any(name.startswith("val/") for name in s.metrics)],
        errors_head=["split", "level", "label", "count", "MAE", "RMSE", "labels' own size", "unit"],
        errors=list(_errors(errors, sizes)),
        stage_errors=[
            (s.name, level, kind.replace("_", " "), row["count"], 1e3 * row["mae"], 1e3 * row["rmse"], tables.UNITS[kind])
            for s in stages
            for (level, kind), row in s.errors.items()
        ],
        found=comparison.content(found, model, "of the test set" if split == "test" else "of the validation set", "molecule")
        if found
        else None,
        plan="\n".join(plan),
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        seeds={"seed": config.seed, "data.split_seed": config.data.split_seed},
        sha256=model.sha256,
        files_head=["split", "level", "file", "structures of the split", "sha256"],
        files=[
            (f["split"], f["level"] or "all", f["path"], len(splits[f["split"]]) if f["split"] in splits else "", f"{f['sha256'][:16]}…")
            for f in files
        ],
        warned=[sentence for sentence in told if sentence.startswith("warning: ")],
        told=[sentence for sentence in told if not sentence.startswith("warning: ")],
    )


def _errors(errors, sizes):
    for split, table in errors.items():
        for (level, kind), row in table.items():
            size = sizes[split].get((level, kind))
            own = "" if size is None else 1e3 * size
            yield split, level, kind.replace("_", " "), row["count"], 1e3 * row["mae"], 1e3 * row["rmse"], own, tables.UNITS[kind]


def _curve(stage):
    """Validation errors of a stage against the epoch, each kind in its unit on one logarithmic axis; the monitored one among them."""
    series = {}
    for name, (epochs, values) in stage.metrics.items():
        split, _, what = name.partition("/")
        level, _, kind = what.partition(".")
        if split == "val" and (what == stage.monitor or kind != "energy"):
            mark = " (monitored)" if what == stage.monitor else ""
            series[f"{level} {kind.replace('_', ' ')}, {tables.UNITS[kind]}{mark}"] = [k + 1 for k in epochs], [1e3 * v for v in values]
    what = f"Stage {stage.name}: mean absolute errors on the validation set, of the averaged weights; the weights with the lowest {stage.monitor} are kept."
    return figures.lines(what, series, "epoch", "validation MAE", log=True, whole=True)
