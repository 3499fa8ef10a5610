"""Stage by stage: what a stage begins with, masked losses, the (thin) loop, and guards that the plan is kept."""

import contextlib
import copy
import csv
import dataclasses
import datetime
import itertools
import json
import logging
import math
import os
import pickle
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from ase.data import chemical_symbols
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch.utils.data import DataLoader

import mfmd
from mfmd import Error, data, export, fit, report
from mfmd.model import TABLE, LinearHead, MLPHead, Model, TensorNet
from mfmd.plan import ConfigError, write_json
from mfmd.readers import torchmdnet

DTYPE = {"single": torch.float32, "double": torch.float64}


class PlanError(Error):
    """A stage did not do what the plan says of it; a defect, found before it could spoil a run."""


def begin(config, stage, before, structures):
    """The Model a stage begins with.

    Parameters
    ----------
    stage : plan.Stage
    before : Model of the stage it starts from, or None for a new one (weights from torch's current random state)
    structures : training structures; E0 of a new head is fitted to them, and its scale is taken from their forces

    A new head has E0 fitted to its level's energies; a copied one to what its network leaves of them; a relative one to
    label − label where a structure has both, else to label − parent's prediction.
    """
    atoms = data.read_atoms(config.data.atoms, config.levels) if config.data.atoms else {level: {} for level in config.levels}
    if before is None:
        backbone = TensorNet(**config.backbone.model_dump(exclude={"size", "checkpoint"}))
        if config.backbone.checkpoint is not None:
            torchmdnet.load_backbone(config.backbone.checkpoint, backbone, config.backbone)
    else:
        backbone = before.backbone
    # What is trained on by gradient has left the error bars of its closed form.
    trained = stage.levels if stage.backbone_rate == 0 else config.levels
    heads = {} if before is None else {n: _without_error_bars(h) if n in trained else h for n, h in before.heads.items()}
    delta_of = {} if before is None else dict(before.delta_of)
    for level in config.levels:  # parents before those relative to them
        if level not in stage.levels or level in heads:
            continue
        if hasattr(torch.nn.ModuleDict, level):
            raise ConfigError(f"levels.{level}: torch keeps this name for itself; choose another")
        how, source = stage.heads[level], None
        if how.startswith("delta "):
            delta_of[level] = how.removeprefix("delta ")
        elif how != "new":
            source = how
            delta_of |= {level: delta_of[how]} if how in delta_of else {}
        if source is not None:
            heads[level] = _without_error_bars(copy.deepcopy(heads[source]))
        elif stage.fit == "closed form":
            heads[level] = LinearHead(config.backbone.channels, np.zeros(TABLE), data.subset_elements(structures, level))
        else:
            others = [float(head.scale) for head in heads.values()]
            scale = _scale(structures, level) or (others[-1] if others else 1.0)
            heads[level] = MLPHead(config.backbone.channels, scale, np.zeros(TABLE), level in delta_of, config.heads_per_level)
        partial = Model(backbone, heads, delta_of)
        heads[level].e0.copy_(torch.as_tensor(_reference_energies(config, level, source, partial, before, structures, atoms)))
    return Model(backbone, {level: heads[level] for level in config.levels if level in heads}, delta_of)


def _without_error_bars(head):
    if head.kind == "linear" and head.factor.numel():
        plain = LinearHead(head.weight.shape[1], head.e0)
        plain.weight.data.copy_(head.weight.data)
        return plain
    return head


def _reference_energies(config, level, source, model, before, structures, atoms):
    """(119,) E0 of a head that begins, a copy of that of `source` or none's, eV; of a relative head the difference to its parent's."""
    elements, parent = data.subset_elements(structures, level), model.delta_of.get(level)
    chain = model.chain(level)[1:]
    inherited = {z: sum(float(model.heads[h].e0[z]) for h in chain) for z in elements}
    if parent is not None:
        known = data.subset_elements(structures, parent)
        if missing := [chemical_symbols[z] for z in elements if z not in known]:
            raise ConfigError(f"levels.{level}.delta_of: {parent} was never trained on {', '.join(missing)}, which {level} has")
    if config.levels[level].e0 == "atoms":
        if missing := [chemical_symbols[z] for z in elements if z not in atoms[level]]:
            raise ConfigError(f"levels.{level}.e0 is atoms, but data.atoms has no energy of this level for {', '.join(missing)}")
        fitted = {z: atoms[level][z] - inherited[z] for z in elements}
    else:
        labelled = data.where(structures, lambda s: level in s.labels and s.labels[level].energy is not None)
        both = data.where(labelled, lambda s: parent in s.labels and s.labels[parent].energy is not None)
        given = atoms[level]
        if source is None and len(both) and {int(z) for s in both for z in s.numbers} == set(elements):
            labelled, rest = both, [s.labels[parent].energy for s in both]
            given = {z: e - atoms[parent][z] for z, e in given.items() if z in atoms[parent]}
        else:
            rest = [sum(inherited[int(z)] for z in s.numbers) for s in labelled]
            if source is not None or (parent is not None and before is not None):
                rest = np.add(rest, _network_energies(model, labelled, level, config))
            if source is not None:
                given = {z: float(model.heads[source].e0[z]) + given.get(z, 0.0) - atoms[source].get(z, 0.0) for z in elements}
            else:
                given = {z: e - inherited[z] for z, e in given.items() if z in inherited}
        energies = [s.labels[level].energy - r for s, r in zip(labelled, rest, strict=True)]
        fitted, determined = data.fit_reference_energies(labelled, energies, elements, level, given)
        if not determined:
            base = (
                f"that of {source}"
                if source is not None
                else "the isolated atoms of data.atoms"
                if atoms[level]
                else "zero; give data.atoms"
            )
            warnings.warn(f"levels.{level}: its compositions do not determine E0; taken is the fit closest to {base}", stacklevel=1)
    e0 = np.zeros(TABLE)
    e0[list(fitted)] = list(fitted.values())
    return e0


def _network_energies(model, structures, level, config, batch_size=32):
    """What the networks of a level's chain of heads give, without E0; eV."""
    out = []
    with torch.no_grad():
        for start in range(0, len(structures), batch_size):
            out += model.eval()(_collate(config, [])(structures[start : start + batch_size]))[level].network_energy.double().tolist()
    return out


def _scale(structures, level):
    """Root mean square of the level's force components, the size its energies vary by over an Å; None without forces."""
    total, count = 0.0, 0
    for s in structures:
        if level in s.labels and s.labels[level].forces is not None:
            total, count = total + float(np.sum(s.labels[level].forces ** 2)), count + s.labels[level].forces.size
    return float(np.sqrt(total / count)) if count else None


def losses(predictions, batch, level, scale, parent=None):
    """Losses of one level, {"energy": (sum, number), "forces": …, "stress": …}, over the labels there are; a missing label has no share.

    Absolute errors of energy per atom and of force components (the component-wise L1 of many recent force
    fields, less sensitive to the few strained structures than squares), in units of the level's scale. Of a level relative to a
    `parent` the difference of the two is compared where a structure has both labels, so that what the parent's head does not
    fit is not learned as a difference of the levels.
    """
    out = {}
    for kind in data.KINDS:
        error = _error(predictions[level], batch, level, kind)
        if error is None:
            continue
        known = ~torch.isnan(error)
        if parent is not None and (less := _error(predictions[parent], batch, parent, kind)) is not None:
            error = error - torch.nan_to_num(less)
        if kind == "energy":
            error = error[:, None]
            if predictions[level].deviations is not None:  # each member of an ensemble learns the energies by itself
                error = error + predictions[level].deviations
            error = error / batch.sizes[:, None]
        error = error[known].abs()
        out[kind] = error.sum() / scale, error.numel()
    return out


def _error(prediction, batch, level, kind):
    """Prediction less label, NaN where there is no label; None if there is none at all, or no prediction."""
    value, labels = getattr(prediction, kind), getattr(batch, kind)
    if level not in labels or value is None:
        return None
    if kind == "energy":
        # The difference in double: totals of thousands of eV lose a meV in single precision.
        offset = (value - prediction.network_energy.double()).detach()
        return prediction.network_energy - (labels[level] - offset).to(prediction.network_energy.dtype)
    return value - labels[level]


class Errors:
    """Running sums of absolute and squared errors per level and kind of label; energies per structure (eV), also per atom."""

    def __init__(self):
        self.sums = {}

    def add(self, key, error):
        n, total, square = self.sums.get(key, (0, 0.0, 0.0))
        error = error.detach().double().cpu()
        self.sums[key] = (n + error.numel(), total + error.abs().sum().item(), square + (error**2).sum().item())

    def update(self, predictions, batch):
        for level, p in predictions.items():
            if level in batch.energy:
                known = ~torch.isnan(batch.energy[level])
                error = (p.energy - batch.energy[level])[known]
                self.add((level, "energy"), error)
                self.add((level, "energy_per_atom"), error / batch.sizes[known])
            for kind in ("forces", "stress"):
                if level in getattr(batch, kind) and getattr(p, kind) is not None:
                    target = getattr(batch, kind)[level]
                    known = ~torch.isnan(target)
                    self.add((level, kind), (getattr(p, kind) - target)[known])

    def gather(self):
        """Add up what all processes have seen."""
        parts = [None] * processes()[1]
        if len(parts) == 1:
            return
        torch.distributed.all_gather_object(parts, self.sums)
        keys = dict.fromkeys(key for part in parts for key in part)
        self.sums = {key: tuple(map(sum, zip(*(part[key] for part in parts if key in part), strict=True))) for key in keys}

    def table(self):
        """{(level, kind): {"count", "mae", "rmse"}} in eV, eV/Å, eV/Å³."""
        return {k: {"count": n, "mae": a / n, "rmse": math.sqrt(s / n)} for k, (n, a, s) in self.sums.items() if n}


class Training(lightning.LightningModule):
    """One stage: its losses, its optimiser; what the plan freezes does not move."""

    def __init__(self, model, stage):
        super().__init__()
        self.model, self.stage = model, stage
        model.requires_grad_(False)
        for module, rate in self.parts():
            module.requires_grad_(rate > 0)

    def parts(self):
        """(module, factor of the learning rate) of all that the stage may train."""
        heads = torch.nn.ModuleList([self.model.heads[level] for level in self.stage.levels])
        return (self.model.backbone, self.stage.backbone_rate), (heads, self.stage.heads_rate)

    def predict(self, batch, weighted=True):
        """Predictions with forces and stress only for the levels that have such a label in this batch (and a weight)."""
        wanted = {}
        for kind in ("forces", "stress"):
            levels = self.stage.levels
            wanted[kind] = [v for v in getattr(batch, kind) if not weighted or getattr(levels[v], f"{kind}_weight") > 0]
        return self.model(batch, **wanted)

    def training_step(self, batch, _):
        predictions, levels = self.predict(batch), self.stage.levels
        found = {}
        for level in levels:
            scale, parent = self.model.heads[level].scale.to(self.dtype), self.model.delta_of.get(level)
            found[level] = losses(predictions, batch, level, scale, parent if parent in levels else None)
        # Means are over the batch of all processes, whose gradients are averaged afterwards.
        world = processes()[1]
        counts = torch.tensor([len(batch.sizes)] + [found[level].get(kind, (0, 0))[1] for level in levels for kind in data.KINDS])
        if world > 1:
            torch.distributed.all_reduce(counts)
        structures, *counts = counts.tolist()
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for (level, kind), count in zip(itertools.product(levels, data.KINDS), counts, strict=True):
            weight = getattr(levels[level], f"{kind}_weight")
            if weight > 0 and count:
                loss = world * found[level].get(kind, (0.0 * total, 0))[0] / count
                total = total + weight * loss
                self.log(f"train/{level}.{kind}", loss, on_epoch=True, on_step=False, batch_size=structures, sync_dist=True)
        self.log("train/loss", total, on_step=False, on_epoch=True, prog_bar=True, batch_size=structures, sync_dist=True)
        if world > 1 and not total.requires_grad:  # the others may have a label that counts
            total = total + 0.0 * next(p for p in self.parameters() if p.requires_grad).sum()
        return total if total.requires_grad else None  # a batch whose only labels have no weight

    def on_save_checkpoint(self, checkpoint):
        checkpoint["stage"] = self.stage.model_dump(mode="json")

    def on_validation_epoch_start(self):
        self.errors = Errors()

    def validation_step(self, batch, _):
        self.errors.update(self.predict(batch, weighted=False), batch)

    def on_validation_epoch_end(self):
        self.errors.gather()
        for (level, kind), row in self.errors.table().items():
            shown = self.stage.train.monitor == f"{level}.{kind}"
            self.log(f"val/{level}.{kind}", row["mae"], prog_bar=shown)

    def configure_optimizers(self):
        settings = self.stage.train
        groups = [{"params": list(module.parameters()), "lr": rate * settings.learning_rate} for module, rate in self.parts() if rate > 0]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        warm = settings.warmup * steps

        def rate(step):
            if step < warm:
                return (step + 1) / (warm + 1)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, steps - warm))))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"},
        }


def evaluate(model, structures, config, batch_size=32):
    """Errors of a model's levels on structures, and its predictions: (Errors.table(), {(level, kind): (label, prediction)})."""
    errors, points = Errors(), {}
    model.eval()
    for start in range(0, len(structures), batch_size):
        batch = _collate(config, model.levels)(structures[start : start + batch_size])
        predictions = model(batch, forces=list(batch.forces), stress=list(batch.stress))
        errors.update(predictions, batch)
        for level, p in predictions.items():
            for kind in data.KINDS:
                value = getattr(p, kind)
                if level in getattr(batch, kind) and value is not None:
                    target = getattr(batch, kind)[level]
                    if kind == "energy":
                        offset = p.energy - p.network_energy.double()
                        target, value = (target - offset) / batch.sizes, p.network_energy / batch.sizes
                    known = ~torch.isnan(target)
                    pair = points.setdefault((level, kind), ([], []))
                    pair[0].append(target[known].detach().double().numpy())
                    pair[1].append(value[known].detach().double().numpy())
    return errors.table(), {k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in points.items()}


def _collate(config, levels):
    dtype = DTYPE[config.train.precision]
    return lambda structures: data.collate(structures, levels, config.backbone.cutoff, dtype)


def _moving_average(decay):
    """Exponential, with a decay that rises from 0.1, so that a short run is not held back by its first weights."""
    return lambda mean, value, n: torch.lerp(mean, value, 1 - torch.minimum(torch.as_tensor(decay), (1 + n) / (10 + n)).to(value.dtype))


def sampling_weights(structures, levels):
    """How often an epoch shows each structure: the largest `sampling` of the stage's levels it has a label of that counts; 0 without any."""

    def learned(label, own):
        return any(getattr(label, kind) is not None and getattr(own, f"{kind}_weight") > 0 for kind in data.KINDS)

    return [
        max((own.sampling for name, own in levels.items() if name in s.labels and learned(s.labels[name], own)), default=0.0)
        for s in structures
    ]


class AtomicCheckpoints(TorchCheckpointIO):
    """A checkpoint appears whole or not at all, whenever the process is killed."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        _save(checkpoint, path)


def _save(content, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def processes():
    """(number of this process, how many there are): torchrun says so."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def run(config, console=None):
    """Train stage by stage, evaluate, export: the whole of `mfmd-train`.

    Under torchrun every process calls it: a batch is shared out among them, and the first of them writes the files and speaks.

    Writes into config.out: model.pt, errors.csv, parity_<split>.png, and for every stage a folder with log/version_*/metrics.csv,
    last.ckpt, best.ckpt, learning_curve.png and, when it is done, stage.ckpt.

    Returns
    -------
    {split: Errors.table()} of the best model of the last stage

    Raises
    ------
    ConfigError, DataError : see plan.load and data.read; an unfinished run in config.out without resume.
    PlanError : a stage did not do what the plan says.
    """
    rank, world = processes()
    console = console if rank == 0 and console else Console(quiet=rank > 0)
    out = Path(config.out)
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=1))  # the first process may pack or fit for long
    if begun := (out / "plan.json").exists():
        if not config.resume:
            raise ConfigError(f"out: {out} holds a run already; go on with resume=true, or name another folder with out=…")
        _check_same(config, json.loads((out / "plan.json").read_text()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE[config.train.precision])
    try:
        with _first_process_first():
            splits = _read(config, out, begun)
        return _run(config, console, out, splits)
    finally:
        torch.set_default_dtype(before)


def _check_same(config, then):
    """A run is resumed on the model, the data and the plan it began with; only epochs not yet done may change."""
    now = config.model_dump(mode="json")
    for section in ("data", "levels", "backbone", "seed"):
        if then[section] != now[section]:
            raise ConfigError(
                f"{section}: the run in {config.out} began with {then[section]}, and now it is {now[section]}; to change it, begin a new run with out=…"
            )
    for old, stage in zip(then["stages"], config.stages, strict=False):
        new = stage.model_dump(mode="json")
        for key in old:
            if key != "train" and old[key] != new[key]:
                raise ConfigError(
                    f"stages.{old['name']}.{key}: the run in {config.out} began with {old[key]}, and now it is {new[key]}; begin a new run with out=…"
                )
        last = Path(config.out) / stage.name / "last.ckpt"
        if last.exists() and (done := torch.load(last, weights_only=False)["epoch"] + 1) > stage.train.epochs:
            raise ConfigError(
                f"stages.{stage.name}.train.epochs: {stage.train.epochs}, but the run in {config.out} has done {done} already"
            )


def _wait_for_all():
    if processes()[1] > 1:
        torch.distributed.barrier()


@contextlib.contextmanager
def _first_process_first():
    """What the first process does and writes here, the others find done."""
    if processes()[0] > 0:
        _wait_for_all()
    yield
    if processes()[0] == 0:
        _wait_for_all()


def _read(config, out, begun):
    if not begun and processes()[0] == 0:  # what a run that never began has packed may be of another config
        for name in data.SPLITS:
            (out / "data" / f"{name}.packed").unlink(missing_ok=True)
    splits = data.read(config.data, config.levels, out / "data")
    data.check_units(
        splits["train"], config.levels, data.read_atoms(config.data.atoms, config.levels) if config.data.atoms else {}, config.data
    )
    data.keep_labels(splits["train"], config.levels, config.data.split_seed)
    return splits


def _run(config, console, out, splits):
    writing = processes()[0] == 0
    report.print_counts(console, splits, config)
    for stage in (s for s in config.stages if s.fit == "gradient"):
        counts = data.count_labels(splits["val"], stage.levels)
        level, _, kind = stage.train.monitor.partition(".")
        if not counts[level][kind]:
            raise ConfigError(f"stages.{stage.name}.train.monitor: {stage.train.monitor} has no label in the validation set")
    out.mkdir(parents=True, exist_ok=True)
    if writing:
        write_json(out / "plan.json", config.model_dump(mode="json"))
    models, validation, fresh = {}, {}, {}  # fresh: levels whose head fits the backbone as it is after the stage
    for number, stage in enumerate(config.stages):
        folder = out / stage.name
        name = best_of(stage.start, validation, config, console)
        start = models.get(name)
        learned = data.where(splits["train"], lambda s, levels=stage.levels: any(level in s.labels for level in levels))
        lightning.seed_everything(config.seed + number, verbose=False)
        model = begin(config, stage, copy.deepcopy(start), splits["train"])
        done = (folder / "stage.ckpt").exists()
        _wait_for_all()  # until each has looked
        if not done:
            console.print(
                f"stage {stage.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads"
            )
            check_beginning(model, start, stage, splits["val"], config)
            frozen = {k: v.clone() for k, v in model.state_dict().items()}
            if stage.fit == "gradient":
                if stage.teachers:
                    learned = taught([models[name] for name in stage.teachers], next(iter(stage.levels)), splits["train"], config)
                    console.print(
                        f"stage {stage.name} learns what {', '.join(stage.teachers)} predict for {len(learned)} structures, on average"
                    )
                optimise(model, stage, learned, splits["val"], config, folder)
            elif writing:
                _solve(model, stage, splits["train"], config, console)
            if writing:
                check_frozen(model, frozen, stage)
                calibrate(model, stage, splits["val"], config)
                _save(model.state_dict(), folder / "stage.ckpt")
            _wait_for_all()
        if done or not writing:
            _load_stage(model, folder / "stage.ckpt")
        if stage.fit == "gradient" and writing:
            report.learning_curve(folder / "learning_curve.png", read_metrics(folder), list(stage.levels))
        models[stage.name] = model
        kept = {h for level in stage.levels for h in model.chain(level)}
        fresh[stage.name] = kept | (fresh[name] if stage.backbone_rate == 0 and name else set())
        validation[stage.name], _ = evaluate(only(model, fresh[stage.name]), splits["val"], config)
        report.print_errors(console, f"validation set after stage {stage.name}", validation[stage.name])
    chosen = best_of(config.choose, validation, config, console)
    model = only(models[chosen], fresh[chosen])
    if left_out := [level for level in config.levels if level not in model.heads]:
        console.print(
            f"left out of the model file: {', '.join(left_out)} (the backbone has moved on since this head was trained, or none was)"
        )

    tables, parity = {}, {}
    for split in ("val", "test"):
        if len(splits[split]):
            tables[split], parity[split] = evaluate(model, splits[split], config)
    if "test" in tables:
        report.print_errors(console, "test set", tables["test"])
    if not writing:
        return tables
    report.write_errors(out / "errors.csv", tables)
    provenance = {
        "mfmd": mfmd.__version__,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "labels": data.count_labels(splits["train"], config.levels),
        "errors": {split: {f"{lv}.{kd}": row for (lv, kd), row in table.items()} for split, table in tables.items()},
    }
    elements = {name: data.subset_elements(splits["train"], name) for name in model.levels}
    export.write_model(out / "model.pt", model, elements, provenance, splits["val"])
    console.print(f"model file: {out / 'model.pt'}")
    for split, points in parity.items():
        if points:
            report.parity(out / f"parity_{split}.png", points, split)
    return tables


def _solve(model, stage, structures, config, console):
    """A stage whose fit is no gradient's, by one process."""
    level = next(iter(stage.levels))
    fit_e0 = config.levels[level].e0 == "fit"
    if stage.fit == "closed form":
        found = fit.closed_form(model, level, structures, _collate(config, [level]), stage.levels[level].forces_weight > 0, fit_e0)
        console.print(
            f"closed form from {found['structures']} energies and the forces of {found['forces']} structures: leave-one-out MAE {1e3 * found['loo_mae']:.1f} meV, "
            f"{100 * found['loo_coverage']:.0f} % of these errors within their error bars"
        )
    else:
        found = fit.gauss_newton(model, level, structures, _collate(config, [level]), fit_e0)
        console.print(
            f"{found['steps']} Gauss-Newton steps on {found['structures']} energies: leave-one-out MAE {1e3 * found['loo_mae']:.1f} meV"
        )


def taught(teachers, level, structures, config, batch_size=32):
    """Structures whose only label is what several models predict for a level on average, energy and forces; those with its elements."""
    known = set(data.subset_elements(structures, level))
    structures = [s for s in structures if known.issuperset(s.numbers.tolist())]
    out, collate = [], _collate(config, [])
    for start in range(0, len(structures), batch_size):
        part = structures[start : start + batch_size]
        predictions = [model.eval()(collate(part), forces=[level])[level] for model in teachers]
        energies = torch.stack([p.energy.detach() for p in predictions]).mean(0).tolist()
        forces = torch.stack([p.forces.detach() for p in predictions]).double().mean(0)
        for s, energy, force in zip(part, energies, torch.split(forces, [len(s.numbers) for s in part]), strict=True):
            out.append(dataclasses.replace(s, labels={level: data.Label(energy, force.numpy(), None)}))
    return out


def best_of(stages, validation, config, console):
    """The name of one of the stages, by validation error: the first, unless another is lower by a tenth; None for "new".

    Compared is the highest level all of them have learned, by its forces where there are such labels, otherwise by its energies.
    """
    stages = [stages] if isinstance(stages, str) else stages
    if len(stages) == 1:
        return stages[0] if stages[0] in validation else None
    for level in reversed(config.levels):
        for kind, unit in (("forces", "meV/Å"), ("energy", "meV")):
            if all((level, kind) in validation[name] for name in stages):
                errors = {name: 1e3 * validation[name][level, kind]["mae"] for name in stages}
                best = min(errors, key=errors.get)
                best = best if errors[best] < 0.9 * errors[stages[0]] else stages[0]
                others = ", ".join(f"{name} {error:.1f}" for name, error in errors.items() if name != best)
                console.print(f"chosen for {level}: {best}, validation {kind} MAE {errors[best]:.1f} {unit} ({others})")
                return best
    raise ConfigError(f"choose: {', '.join(stages)} have no level with validation labels in common")


def _load_stage(model, path):
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ConfigError(
            f"{path}: not the end of this stage ({str(error).splitlines()[0]}); delete the stage's folder to train it again"
        ) from None


def only(model, levels):
    """The model with the heads of some levels alone."""
    return Model(model.backbone, {level: head for level, head in model.heads.items() if level in levels}, model.delta_of)


def check_beginning(model, start, stage, structures, config):
    """Before the first update the model predicts what the plan implies, or PlanError.

    Levels from before as before; a copied head what its source does, apart from E0; a relative head its parent's energy.
    """
    structures = structures[:64]
    batch = _collate(config, [])(structures)
    with torch.no_grad():
        now = {level: p.network_energy for level, p in model.eval()(batch).items()}
        then = {level: p.network_energy for level, p in start.eval()(batch).items()} if start else {}
    expected = dict(then)
    for level in stage.levels:
        if level not in then:
            how = stage.heads[level]
            if how.startswith("delta "):
                expected[level] = now[how.removeprefix("delta ")]
            elif how != "new":
                expected[level] = then[how]
    for level, value in expected.items():
        if level not in now or not torch.equal(now[level], value):
            raise PlanError(f"stages.{stage.name}: before its first update level {level} does not predict what the plan implies")
    if missing := [level for level in stage.levels if level not in now]:
        raise PlanError(f"stages.{stage.name}: it has no head for {', '.join(missing)}")


def calibrate(model, stage, structures, config):
    """Scale the spread of the stage's ensembles so that it holds 68.3 % of the validation errors of energies."""
    ratios = {level: [] for level in stage.levels if getattr(model.heads[level], "members", 1) > 1}
    with torch.no_grad():
        for start in range(0, len(structures) if ratios else 0, 32):
            batch = _collate(config, list(ratios))(structures[start : start + 32])
            for level, p in ((level, p) for level, p in model.eval()(batch).items() if level in batch.energy and level in ratios):
                ratio = (p.energy - batch.energy[level]).abs() / p.deviations.double().std(dim=1)
                ratios[level] += ratio[~torch.isnan(ratio)].tolist()
    for level, values in ratios.items():
        if values:
            model.heads[level].calibration.fill_(np.quantile(values, 0.683))


def check_frozen(model, before, stage):
    """What the stage froze is bitwise what it was, or PlanError."""
    trained = ["heads." + level + "." for level in stage.levels if stage.heads_rate > 0] + (
        ["backbone."] if stage.backbone_rate > 0 else []
    )
    for name, value in model.state_dict().items():
        if not name.startswith(tuple(trained)) and not torch.equal(value, before[name]):
            raise PlanError(f"stages.{stage.name}: {name} is frozen, and yet it has changed")


def optimise(model, stage, structures, val, config, folder):
    """Train a model through a stage; afterwards it has the weights with the best validation error. Resumes where folder/last.ckpt is."""
    settings = stage.train
    model.train()
    rank, world = processes()
    sampler = data.Sampler(sampling_weights(structures, stage.levels), config.seed)
    shares = data.Batches(sampler, settings.batch_size, rank, world)
    val = data.where(val, lambda s: any(level in s.labels for level in stage.levels))
    if min(settings.batch_size, len(sampler), len(val)) < world:
        raise ConfigError(
            f"stages.{stage.name}.train.batch_size: batches of {settings.batch_size} of {len(sampler)} structures, or a validation set of {len(val)}, "
            f"are too small for {world} processes"
        )
    turns = itertools.cycle(range(world))
    share = data.where(val, lambda _: next(turns) == rank)
    collate = _collate(config, stage.levels)
    monitor = f"val/{settings.monitor}"
    best = ModelCheckpoint(folder, "best", monitor=monitor, enable_version_counter=False)
    recent = ModelCheckpoint(folder, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False)
    patience = EarlyStopping(monitor, patience=settings.patience, check_finite=True)
    average = WeightAveraging(use_buffers=False, avg_fn=_moving_average(settings.ema)) if settings.ema else None
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # what devices there are, tips
    last = folder / "last.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|LeafSpec|litlogger|Checkpoint directory).*")
        trainer = lightning.Trainer(
            default_root_dir=folder,
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip,
            check_val_every_n_epoch=settings.validate_every,
            num_sanity_val_steps=0,
            inference_mode=False,
            accelerator="cpu",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            num_nodes=world // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=True) if world > 1 else "auto",
            use_distributed_sampler=False,
            plugins=[AtomicCheckpoints()],
            logger=CSVLogger(folder, name="log", flush_logs_every_n_steps=1),  # a folder for each time the run is resumed
            log_every_n_steps=1,
            callbacks=[c for c in (best, recent, patience, average, LearningRateMonitor("epoch"), RichProgressBar(leave=False)) if c],
            enable_model_summary=False,
        )
        trainer.fit(
            Training(model, stage),
            DataLoader(structures, batch_sampler=shares, collate_fn=collate),
            DataLoader(share, batch_size=settings.batch_size, collate_fn=collate),
            ckpt_path=last if last.exists() else None,
            weights_only=False,  # our own checkpoint
        )
    if not math.isfinite(float(best.best_model_score)):
        raise ConfigError(f"stages.{stage.name}.train: the validation error of {settings.monitor} is not finite; lower train.learning_rate")
    _wait_for_all()  # until the first has written it
    state = torch.load(folder / "best.ckpt", weights_only=False)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})


def read_metrics(out):
    """The log of a stage, {name: (epochs, values)}; where a resumed run did an epoch again, the later values."""
    columns = {}
    for path in sorted(Path(out).glob("log/version_*/metrics.csv"), key=lambda p: int(p.parent.name.removeprefix("version_"))):
        text = path.read_text()
        for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):  # a line that a killed process left half written is none
            for name, value in row.items():
                if value and row.get("epoch") and name not in ("epoch", "step"):
                    columns.setdefault(name, {})[int(row["epoch"])] = float(value)
    return {name: (sorted(values), [values[k] for k in sorted(values)]) for name, values in columns.items()}
