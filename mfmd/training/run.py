"""Stage by stage: the whole of `mfmd-train`."""

import contextlib
import copy
import datetime
import itertools
import json
import os
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from rich.console import Console

import mfmd
from mfmd import Note, lock, progress
from mfmd.config import ConfigError, write_json
from mfmd.engine import load_model
from mfmd.reports import page, tables
from mfmd.reports import training as report
from mfmd.structures import checks, reading
from mfmd.structures.record import SPLITS
from mfmd.training import domain, energies, error_bars, export, fit, plan
from mfmd.training.batches import DTYPE, collation
from mfmd.training.errors import distance, evaluate
from mfmd.training.loop import optimise, read_metrics
from mfmd.training.processes import BACKEND, device_of_process, first_process_first, processes, save, wait_for_all
from mfmd.training.stages import (
    begin,
    best_of,
    calibrate,
    check_beginning,
    check_frozen,
    check_levels,
    differences,
    in_common,
    load_stage,
    only,
    taught,
)
from mfmd.training.start import read_checkpoint

MOST_OFF = 0.5  # eV/atom, by which the labels of a level may differ from what the head that it is said to be predicts
MOST_COMPARED = 200  # structures by which is told how far a level of the checkpoint has moved


def train(config, console=None):
    """Train stage by stage, evaluate, export: the whole of `mfmd-train`.

    Under torchrun every process calls it: a batch is shared out among them, and the first of them writes the files and speaks.

    Writes into config.out: model.pt, errors.csv, report.html, and for every stage a folder with log/version_*/metrics.csv,
    last.ckpt, best.ckpt and, when it is done, stage.json and stage.ckpt.

    Returns
    -------
    {split: Errors.table()} of the best model of the last stage

    Raises
    ------
    ConfigError, DataError : see plan.load and reading.read; an unfinished run in config.out without resume.
    FolderInUse : another process trains in config.out.
    PlanError : a stage did not do what the plan says.
    """
    rank, _ = processes()
    with lock.claim(config.out, "mfmd-train") if rank == 0 else contextlib.nullcontext():
        return _train(config, console if rank == 0 and console else Console(quiet=rank > 0), Path(config.out))


def _train(config, console, out):
    _, world = processes()
    device = device_of_process(config.train)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not torch.distributed.is_initialized():
        patience = datetime.timedelta(days=1)  # the first process may pack or fit for long
        torch.distributed.init_process_group(BACKEND[device.type], timeout=patience)
    if begun := (out / "plan.json").exists():
        if not config.resume:
            raise ConfigError(f"out: {out} holds a run already; go on with resume=true, or name another folder with out=…")
        check_same(config, out / "plan.json")
    before, rounded = torch.get_default_dtype(), torch.backends.cuda.matmul.allow_tf32
    torch.set_default_dtype(DTYPE[config.train.precision])
    torch.backends.cuda.matmul.allow_tf32 = config.train.precision == "tf32"
    filled = torch.utils.deterministic.fill_uninitialized_memory
    repeatable = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":  # what cannot repeat itself bit for bit warns; without room of this size cuBLAS does not
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # the maps write all that they are given
    try:
        with page.overheard() as told:
            with first_process_first():
                splits, isolated = _read(config, out, begun)
            return _run(config, console, out, device, splits, isolated, told)
    finally:
        torch.set_default_dtype(before)
        torch.backends.cuda.matmul.allow_tf32 = rounded
        torch.use_deterministic_algorithms(repeatable[0], warn_only=repeatable[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _began(path):
    """What stands in a run's plan.json. ConfigError where that is damaged."""
    try:
        then = json.loads(path.read_text())
        sections = [then[key] for key in ("data", "levels", "backbone")]
        named = [*then["levels"].values(), *then["stages"], *(then.get("files") or ())]
        whole = (
            all(isinstance(one, dict) for one in (*sections, *named))
            and "seed" in then
            and all("name" in stage for stage in then["stages"])
        )
        if not whole or any({"split", "level", "path", "sha256"} - set(file) for file in then.get("files") or ()):
            raise ValueError("a section is not what it was")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: what the run began with is damaged ({error!r}); put the file back, or begin a new run with out=…"
        ) from None
    return then


def check_same(config, path):
    """A run is resumed on the model, the data and the plan it began with, wherever the files lie now; only epochs not yet done may change.

    path : of its plan.json. ConfigError where something is other, or the file is damaged.
    """
    now, then = config.model_dump(mode="json"), _began(path)
    files, checkpoint = then.pop("files", None), then.pop("checkpoint", None)
    if checkpoint != _sha256(config):
        raise ConfigError(
            f"backbone.checkpoint: {config.backbone.checkpoint} is not what the run in {config.out} began from; begin a new run with out=…"
        )
    if checkpoint is not None:
        then["backbone"]["checkpoint"] = now["backbone"]["checkpoint"]
    for old, new in (
        (then["backbone"], now["backbone"]),
        (then["data"], now["data"]),
        *((then["levels"].get(name, {}), level) for name, level in now["levels"].items()),
    ):
        old |= {key: None for key in ("zbl", "spin", "from") if key in new and key not in old}  # a run that began before there was this key
    if files is None:
        warnings.warn(
            f"the run in {config.out} began with an mfmd that kept no fingerprints of its files; that they are the same is taken on trust",
            Note,
            stacklevel=4,
        )
        then = _upgraded(then, now)
    else:
        _check_files(config, files)
        for key in (*SPLITS, "atoms"):
            if not isinstance(now["data"][key], float):
                now["data"][key] = then["data"][key] = None
    for section in ("data", "levels", "backbone", "seed"):
        if then[section] != now[section]:
            raise ConfigError(
                f"{section}: the run in {config.out} began with {then[section]}, and now it is {now[section]}; to change it, begin a new run with out=…"
            )
    for old, stage in zip(then["stages"], config.stages, strict=False):
        new = stage.model_dump(mode="json")
        for key in old:
            if key != "train" and old[key] != new.get(key):
                raise ConfigError(
                    f"stages.{old['name']}.{key}: the run in {config.out} began with {old[key]}, and now it is {new.get(key)}; begin a new run with out=…"
                )
        last = Path(config.out) / stage.name / "last.ckpt"
        if last.exists() and (done := torch.load(last, weights_only=True, map_location="cpu")["epoch"] + 1) > stage.train.epochs:
            raise ConfigError(
                f"stages.{stage.name}.train.epochs: {stage.train.epochs}, but the run in {config.out} has done {done} already"
            )


def _sha256(config):
    """Of the weights of the checkpoint, or None."""
    return None if config.backbone.checkpoint is None else load_model(config.backbone.checkpoint).sha256


def _upgraded(then, now):
    """A plan that was written before fingerprints, with the keys that there are now: what they mean by default is what was done then."""
    defaults = {"energy_unit": "eV", "length_unit": "Å", "e0": "fit"}
    for old, new in (
        (then["data"], now["data"]),
        *((then["levels"][k], now["levels"][k]) for k in then["levels"].keys() & now["levels"].keys()),
    ):
        for key in new:
            if key not in old or (new[key] is None and old[key] == defaults.get(key)):
                old[key] = new[key]
    return then


def _check_files(config, then):
    """The files hold what they held when the run began."""
    now = reading.fingerprints(config.data)
    for old, new in itertools.zip_longest(then, now):
        if old is None or new is None or any(old[key] != new[key] for key in ("split", "level", "sha256")):
            one = new or old
            what = "is not what it was" if old and new else "is new" if new else "is not named any more"
            raise ConfigError(
                f"data.{one['split']}: {one['path']} {what} when the run in {config.out} began, so that structures it has learned from could become validation "
                "or test structures; begin a new run with out=…"
            )


def _read(config, out, begun):
    if not begun and processes()[0] == 0:  # what a run that never began has packed may be of another config
        for name in SPLITS:
            for ending in ("packed", "pairs.npz"):
                (out / "data" / f"{name}.{ending}").unlink(missing_ok=True)
    splits, isolated = reading.read_all(config.data, config.levels, out / "data")
    given = energies.given_atoms(config, isolated)
    with progress.task("checking the units"):
        checks.check_units(splits["train"], config.levels, given, config.data)
    for name in ("val", "test"):
        if not isinstance(getattr(config.data, name), float):  # a fraction is asked with the rest of its file
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Note)  # what cannot be told has been said
                checks.check_units(splits[name], config.levels, given, config.data)
    reading.keep_labels(splits["train"], config.levels, config.data.split_seed)
    return splits, isolated


def _run(config, console, out, device, splits, isolated, told):
    writing = processes()[0] == 0
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    labels = {name: reading.count_labels(structures, config.levels) for name, structures in splits.items()}
    tables.print_counts(console, splits, labels)
    checkpoint = read_checkpoint(config)
    imported = checkpoint.elements if checkpoint else {}
    if checkpoint and reading.has_states(splits["train"]):
        checkpoint.model.backbone.add_states()
    if checkpoint:
        checkpoint.model.to(device)
    check_levels(config, splits, imported, checkpoint.states if checkpoint else {})
    for level in checkpoint.model.levels if checkpoint else ():  # parents before those relative to them
        energies.fit_new_states(checkpoint.model, level, checkpoint.states[level], splits["train"], config)
    counts = labels["train"]
    for line in plan.learned(config, counts):
        console.print(line)
    labelled = {level for level in config.levels if any(counts[level].values())}  # all but some of the checkpoint
    # A new backbone beside a checkpoint, whose levels need no labels, could not be compared with it without any.
    stages = [s for s in config.stages if s.start != "new" or s.levels.keys() <= labelled]
    for stage in (s for s in stages if s.fit == "gradient" and (s.teachers or labelled & s.levels.keys())):
        level, _, kind = stage.train.monitor.partition(".")
        found = reading.count_labels(splits["val"], stage.levels)[level]
        if not found[kind] and (not stage.teachers or any(found.values())):  # without any label the teachers say what is right
            raise ConfigError(f"stages.{stage.name}.train.monitor: {stage.train.monitor} has no label in the validation set")
    out.mkdir(parents=True, exist_ok=True)
    if writing:
        files = reading.fingerprints(config.data)  # once: they are read whole
        write_json(out / "plan.json", config.model_dump(mode="json") | {"files": files, "checkpoint": _sha256(config)})
    records = []  # report.Stage of each
    models, validation, fresh = {}, {}, {}  # fresh: levels whose head fits the backbone as it is after the stage
    seen = {}  # levels whose labels a stage, or one before that it goes on from, has learned
    fitted = {}  # see _same
    moved = {}  # by how much levels of the checkpoint are something else after a stage
    newton = {}  # see _newton
    if checkpoint:
        models["checkpoint"], fresh["checkpoint"], seen["checkpoint"] = checkpoint.model, set(imported), set()
        validation["checkpoint"], _ = evaluate(checkpoint.model, splits["val"], config)
        if validation["checkpoint"]:
            tables.print_errors(console, "validation set before the first stage", validation["checkpoint"])
        _question_heads(config, validation["checkpoint"])
    for number, stage in enumerate(stages):
        folder = out / stage.name
        name = best_of(_different(stage.start, models), validation, config, console)
        if not stage.teachers:
            stage = stage.model_copy(update={"levels": {level: own for level, own in stage.levels.items() if level in labelled}})
        if stage.differences and stage.levels and not in_common(stage, splits["train"]):
            stage = stage.model_copy(update={"differences": False})
        start = models.get(name)
        same = _same(stage, name, start, models, fitted)
        if same is not None:
            if stage.levels:
                console.print(f"stage {stage.name} is skipped: it would be {same} again")
            for of_stage in (models, validation, fresh, seen, newton):
                of_stage[stage.name] = of_stage.get(same)
            records.append(report.Stage(stage.name, "nothing", name or "new", f"skipped: it would be {same} again"))
            continue
        learned = reading.where(splits["train"], lambda s, levels=stage.levels: any(level in s.labels for level in levels))
        lightning.seed_everything(config.seed + number, verbose=False)
        given = differences(stage, start, splits["train"], config) if stage.differences else splits["train"]
        model = begin(config, stage, copy.deepcopy(start), given, isolated, imported).to(device)
        done, resumed, began = (folder / "stage.ckpt").exists(), (folder / "last.ckpt").exists(), time.perf_counter()
        outcome, found = "", {}
        wait_for_all()  # until each has looked
        if not done:
            console.print(f"stage {stage.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {where}")
            check_beginning(model, start, stage, splits["val"], config)
            val = splits["val"]
            frozen = {k: v.clone() for k, v in model.state_dict().items()}
            if stage.fit == "gradient":
                if stage.teachers:
                    level, teachers = next(iter(stage.levels)), [models[name] for name in stage.teachers]
                    learned = taught(teachers, level, splits["train"], config, imported)
                    if not any(level in s.labels for s in val):
                        val = taught(teachers, level, val, config, imported)
                    console.print(
                        f"stage {stage.name} learns what {', '.join(stage.teachers)} predict for {len(learned)} structures, on average"
                    )
                optimise(model, stage, learned, val, config, folder, config.seed + number)
            elif writing:
                outcome, found = _solve(model, stage, given, splits["train"], config, isolated)
                console.print(outcome)
            if writing:
                _give_error_bars(model, stage, _fits(out, stage, found), splits["train"], config, isolated, imported)
                check_frozen(model, frozen, stage)
                calibrate(model, stage, splits["val"], config)
                lock.check(out)
                folder.mkdir(exist_ok=True)
                seconds = time.perf_counter() - began
                write_json(folder / "stage.json", {"seconds": seconds, "resumed": resumed, "outcome": outcome, "found": found})
                save({name: value.cpu() for name, value in model.state_dict().items()}, folder / "stage.ckpt")
            wait_for_all()
        if done or not writing:
            load_stage(model, folder / "stage.ckpt")
        models[stage.name] = model
        seen[stage.name] = (labelled & stage.levels.keys()).union(*(seen[other] for other in (name, *stage.teachers) if other))
        kept = {h for level in stage.levels for h in model.chain(level)}
        fresh[stage.name] = kept | (fresh[name] if name and _stayed(model.backbone, start.backbone) else set())
        validation[stage.name], _ = evaluate(only(model, fresh[stage.name]), splits["val"], config)
        tables.print_errors(console, f"validation set after stage {stage.name}", validation[stage.name])
        if writing:
            newton[stage.name] = _newton(stage, _fits(out, stage, _found(out, stage.name)), newton.get(name))
            records.append(_record(stage, name or "new", folder, validation[stage.name]))
        if stage.backbone_rate > 0:
            moved[stage.name] = _moved(model, checkpoint, splits["train"], config, console, stage.name)
    chosen = best_of(_different(config.choose, models), validation, config, console)
    model = only(models[chosen], fresh[chosen])
    if left_out := [level for level in config.levels if level not in model.heads]:
        console.print(
            f"left out of the model file: {', '.join(left_out)} (the backbone has moved on since this head was trained, or none was)"
        )

    errors, sizes = {}, {}
    for split in ("val", "test"):
        if len(splits[split]):
            errors[split], points = evaluate(model, splits[split], config)
            sizes[split] = {
                (level, _PER_ATOM.get(kind, kind)): float(np.abs(label).mean())
                for (level, kind), (label, _) in points.items()
                if len(label)
            }
    if "test" in errors:
        tables.print_errors(console, "test set", errors["test"])
    if not writing:
        return errors
    tables.write_errors(out / "errors.csv", errors)
    provenance = {
        "mfmd": mfmd.__version__,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "files": files,
        "labels": counts,
        "errors": {split: {f"{lv}.{kd}": row for (lv, kd), row in table.items()} for split, table in errors.items()},
    }
    if newton.get(chosen):
        provenance["gauss_newton"] = newton[chosen]
    if checkpoint:
        provenance["checkpoint"] = checkpoint.provenance | {"moved": moved}
    elements = {name: energies.known_elements(splits["train"], name, imported) for name in model.levels}
    if unlearned := [level for level in model.levels if level not in seen[chosen]]:
        console.print(f"the model file does not say what it was trained on: this run has not learned {', '.join(unlearned)}")
        trained_on = None
    else:
        learned = reading.where(splits["train"], lambda s: any(level in s.labels for level in seen[chosen]))
        known = sorted({z for of_level in elements.values() for z in of_level})
        trained_on = domain.trained_on(model, learned, known, collation(config, []))
    states = {level: checkpoint.states.get(level, ()) if checkpoint else () for level in model.levels}
    states |= {level: sorted({*states[level], *reading.subset_states(splits["train"], level)}) for level in states.keys() & seen[chosen]}
    export.write_model(out / "model.pt", model, elements, provenance, splits["val"], trained_on, states)
    console.print(f"model file: {out / 'model.pt'}")
    report.write(out, config, plan.describe(config), splits, labels, records, errors, sizes, files, told)
    console.print(f"report: {out / 'report.html'}")
    return errors


_PER_ATOM = {"energy": "energy_per_atom"}  # what the points of an energy are


def _question_heads(config, errors):
    """Warn of labels that are not those of the head of the checkpoint that their level is said to be."""
    for level, head in config.imported.items():
        off = errors.get((level, "energy_per_atom"), {"mae": 0.0})["mae"]
        if off > MOST_OFF:
            warnings.warn(
                f"levels.{level}.from: the labels of {level} are {off:.3g} eV an atom from what the head {head} of {config.backbone.checkpoint} predicts, so they are of "
                f"another level or count from other atoms; list the head as a level of its own, such as before: {{from: {head}}}, and let {level} begin from it",
                stacklevel=4,
            )


def _record(stage, start, folder, errors):
    """What has become of a stage that is done, from the files of its folder."""
    done = json.loads((folder / "stage.json").read_text()) if (folder / "stage.json").exists() else {}  # older runs have none
    metrics = read_metrics(folder)
    learns = f"the mean of {', '.join(stage.teachers)}" if stage.teachers else ", ".join(stage.levels)
    frozen = ", backbone frozen" if stage.fit == "gradient" and stage.backbone_rate == 0 else ""
    return report.Stage(
        stage.name,
        learns,
        start,
        stage.fit + frozen,
        max((max(epochs) + 1 for epochs, _ in metrics.values()), default=None),
        done.get("seconds"),
        done.get("outcome", "") + (" The time is that since it was resumed." if done.get("resumed") else ""),
        metrics,
        stage.train.monitor,
        errors,
    )


def _stayed(backbone, before):
    """Whether it was frozen, or is what it began with since training only harmed it."""
    then = before.state_dict()
    return all(torch.equal(value, then[key]) for key, value in backbone.state_dict().items())


def _different(names, models):
    """Of one stage or several those that end in models of their own."""
    names = [names] if isinstance(names, str) else [name for name in names if name in models]
    return list({id(models.get(name)): name for name in reversed(names)}.values())[::-1]


def _same(stage, name, start, models, fitted):
    """The stage whose end a stage would come to as well, or None: where it learns nothing the one it starts from, and of equal fits from one model the first.

    name, start : of the stage it starts from, and its model; fitted : {what such a fit depends on: the first stage}, to which it is added
    """
    if not stage.levels or (stage.teachers and all(models[teacher] is start for teacher in stage.teachers)):
        return name
    if stage.fit == "gradient":
        return None
    what = id(start), stage.model_dump_json(exclude={"name", "start", "train"})
    first = fitted.setdefault(what, stage.name)
    return None if first == stage.name else first


def _moved(model, checkpoint, structures, config, console, name):
    """Tell by how much the model of a stage predicts something else for levels of the checkpoint: {level: what errors.distance gives}."""
    out = {}
    for level, elements in checkpoint.elements.items() if checkpoint else ():
        chosen = [structures[int(k)] for k in np.unique(np.linspace(0, len(structures) - 1, MOST_COMPARED).round())]
        chosen = [s for s in chosen if set(s.numbers.tolist()) <= set(elements)]
        if not chosen:
            continue
        out[level] = distance(model, checkpoint.model, level, chosen, config)
        console.print(
            f"stage {name} has moved level {level} by {1e3 * out[level]['energy']:.2f} meV/atom and {1e3 * out[level]['forces']:.1f} meV/Å "
            f"from the checkpoint, on average over {len(chosen)} training structures"
        )
    return out


def _solve(model, stage, given, structures, config, isolated):
    """A stage whose fit is no gradient's, by one process; what came out, in words and as numbers.

    given : training structures with what is fitted, which are the structures with their labels unless differences are learned
    """
    level = next(iter(stage.levels))
    fit_e0, collate = not energies.by_atoms(config, level, given, isolated), collation(config, [level])
    if stage.fit == "closed form":
        found = fit.closed_form(model, level, given, collate, stage.levels[level].forces_weight > 0, fit_e0)
        words = (
            f"closed form from {found['structures']} energies and the forces of {found['forces']} structures: leave-one-out MAE {1e3 * found['loo_mae']:.1f} meV, "
            f"{100 * found['loo_coverage']:.0f} % of these errors within their error bars"
        )
        return words, found
    found = fit.gauss_newton(model, level, given, collate, fit_e0)
    learned, labelled = (reading.where(some, lambda s: s.has_energy(level)) for some in (given, structures))
    # Of a difference the level's error has in it too what the head that was copied errs by.
    more = [s.labels[level].energy - fitted.labels[level].energy for s, fitted in zip(labelled, learned, strict=True)]
    errors = found["errors"] + more
    found["variance"] *= np.mean(errors**2) / np.mean(found["errors"] ** 2)
    found |= {"level": level, "fit_e0": fit_e0, "errors": errors.tolist()}
    words = f"{found['steps']} Gauss-Newton steps on {found['structures']} energies: leave-one-out MAE {1e3 * found['loo_mae']:.1f} meV"
    return words, found


def _found(out, name):
    """What a stage has found by linear algebra, by its file; {} where it has not."""
    path = out / name / "stage.json"
    return json.loads(path.read_text()).get("found", {}) if path.exists() else {}


def _fits(out, stage, found):
    """What Gauss-Newton has found of a stage's level, or all of the stage's teachers have; [] where one of them was not by it.

    found : what `_solve` gave of this stage
    """
    each = [_found(out, name) for name in stage.teachers] or [found]
    return each if all(one.get("level") in stage.levels for one in each) else []


def _give_error_bars(model, stage, fits, structures, config, isolated, imported):
    """Those of a head that Gauss-Newton has fitted, from its errors of what it left out; of one that has been taught from the mean of its teachers'."""
    if not fits:
        return
    level = next(iter(stage.levels))
    labelled = reading.where(structures, lambda s: s.has_energy(level))
    error_bars.give(
        model, level, labelled, np.mean([one["errors"] for one in fits], axis=0), energies.known_elements(structures, level, imported),
        collation(config, [level]), not energies.by_atoms(config, level, structures, isolated),
    )  # fmt: skip


def _newton(stage, fits, before):
    """What error_bars.of_model has to know of the kernel by which Gauss-Newton has fitted a level of a stage's model; None where a gradient has moved it since.

    fits : of `_fits`; before : that of the stage it starts from
    """
    if fits:
        return {key: fits[-1][key] for key in ("level", "structures", "penalty", "variance", "fit_e0")}
    return before if before and stage.backbone_rate == 0 and before["level"] not in stage.levels else None
