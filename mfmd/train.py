"""One backbone, a head per level: reference energies, masked losses, the (thin) loop."""

import csv
import datetime
import logging
import math
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from ase.data import chemical_symbols
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from torch.utils.data import DataLoader

import mfmd
from mfmd import data, export, report
from mfmd.model import TABLE, MLPHead, Model, TensorNet
from mfmd.plan import ConfigError

DTYPE = {"single": torch.float32, "double": torch.float64}


def build_model(config, structures):
    """A new Model: E0 and scale of each level from the training structures, weights from torch's current random state."""
    atoms = data.read_atoms(config.data.atoms, config.levels) if config.data.atoms else {level: {} for level in config.levels}
    data.check_units(structures, config.levels, atoms, config.data)
    reference, scales, heads = {}, {}, {}
    for level, settings in config.levels.items():
        elements = data.subset_elements(structures, level)
        if hasattr(torch.nn.ModuleDict, level):
            raise ConfigError(f"levels.{level}: torch keeps this name for itself; choose another")
        if settings.e0 == "atoms":
            missing = [chemical_symbols[z] for z in elements if z not in atoms[level]]
            if missing:
                raise ConfigError(f"levels.{level}.e0 is atoms, but data.atoms has no energy of this level for {', '.join(missing)}")
            reference[level] = {z: atoms[level][z] for z in elements}
        else:
            reference[level], determined = data.fit_reference_energies(structures, level, atoms[level])
            if not determined:
                base = "the isolated atoms of data.atoms" if atoms[level] else "zero; give data.atoms"
                warnings.warn(f"levels.{level}: its compositions do not determine E0; taken is the fit closest to {base}", stacklevel=1)
        scales[level] = _scale(structures, level) or next((s for s in reversed(list(scales.values())) if s), 1.0)
        e0 = np.zeros(TABLE)
        parent = reference.get(settings.delta_of, {})
        for z, value in reference[level].items():
            if settings.delta_of is not None and z not in parent:
                raise ConfigError(
                    f"levels.{level}.delta_of: {settings.delta_of} was never trained on {chemical_symbols[z]}, which {level} has"
                )
            e0[z] = value - parent.get(z, 0.0)
        heads[level] = MLPHead(config.backbone.channels, scales[level], e0, zero_start=settings.delta_of is not None)
    backbone = TensorNet(**config.backbone.model_dump(exclude={"size"}))
    delta_of = {level: s.delta_of for level, s in config.levels.items() if s.delta_of is not None}
    return Model(backbone, heads, delta_of)


def _scale(structures, level):
    """Root mean square of the level's force components, the size its energies vary by over an Å; None without forces."""
    forces = [s.labels[level].forces.ravel() for s in structures if level in s.labels and s.labels[level].forces is not None]
    return float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else None


def losses(prediction, batch, level, scale):
    """Mean losses of one level over the labels there are: {"energy": …, "forces": …, "stress": …}; a missing label has no share.

    Mean absolute errors of energy per atom and of force components (the component-wise L1 of many recent force
    fields, less sensitive to the few strained structures than squares), in units of the level's scale.
    """
    out = {}
    if level in batch.energy:
        target = batch.energy[level]
        known = ~torch.isnan(target)
        # The difference in double: totals of thousands of eV lose a meV in single precision.
        offset = (prediction.energy - prediction.network_energy.double()).detach()
        error = prediction.network_energy - (target - offset).to(prediction.network_energy.dtype)
        out["energy"] = (error / batch.sizes)[known].abs().mean() / scale
    for kind in ("forces", "stress"):
        value = getattr(prediction, kind)
        if level in getattr(batch, kind) and value is not None:
            target = getattr(batch, kind)[level]
            known = ~torch.isnan(target)
            out[kind] = (value[known] - target[known]).abs().mean() / scale
    return out


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

    def table(self):
        """{(level, kind): {"count", "mae", "rmse"}} in eV, eV/Å, eV/Å³."""
        return {k: {"count": n, "mae": a / n, "rmse": math.sqrt(s / n)} for k, (n, a, s) in self.sums.items() if n}


class Training(lightning.LightningModule):
    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config

    def predict(self, batch, weighted=True):
        """Predictions with forces and stress only for the levels that have such a label in this batch (and a weight)."""
        wanted = {}
        for kind in ("forces", "stress"):
            levels = self.config.levels
            wanted[kind] = [v for v in getattr(batch, kind) if not weighted or getattr(levels[v], f"{kind}_weight") > 0]
        return self.model(batch, **wanted)

    def training_step(self, batch, _):
        predictions = self.predict(batch)
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for level, settings in self.config.levels.items():
            for kind, loss in losses(predictions[level], batch, level, self.model.heads[level].scale.to(self.dtype)).items():
                weight = getattr(settings, f"{kind}_weight")
                if weight > 0:
                    total = total + weight * loss
                    self.log(f"train/{level}.{kind}", loss, on_step=False, on_epoch=True, batch_size=len(batch.sizes))
        self.log("train/loss", total, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.sizes))
        return total if total.requires_grad else None  # a batch whose only labels have no weight

    def on_save_checkpoint(self, checkpoint):
        checkpoint["config"] = self.config.model_dump(mode="json")

    def on_validation_epoch_start(self):
        self.errors = Errors()

    def validation_step(self, batch, _):
        self.errors.update(self.predict(batch, weighted=False), batch)

    def on_validation_epoch_end(self):
        for (level, kind), row in self.errors.table().items():
            shown = self.config.train.monitor == f"{level}.{kind}"
            self.log(f"val/{level}.{kind}", row["mae"], prog_bar=shown)

    def configure_optimizers(self):
        settings = self.config.train
        optimizer = torch.optim.AdamW(self.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
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
    """Errors of a model on structures, and its predictions: (Errors.table(), {(level, kind): (label, prediction)})."""
    training = Training(model.eval(), config)
    errors, points = Errors(), {}
    for start in range(0, len(structures), batch_size):
        batch = _collate(config)(structures[start : start + batch_size])
        predictions = training.predict(batch, weighted=False)
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


def _collate(config):
    dtype = DTYPE[config.train.precision]
    return lambda structures: data.collate(structures, config.levels, config.backbone.cutoff, dtype)


def _moving_average(decay):
    """Exponential, with a decay that rises from 0.1, so that a short run is not held back by its first weights."""
    return lambda mean, value, n: torch.lerp(mean, value, 1 - torch.minimum(torch.as_tensor(decay), (1 + n) / (10 + n)).to(value.dtype))


def sampling_weights(structures, levels):
    """How often an epoch shows each structure: the largest `sampling` of its levels."""
    return [max(levels[name].sampling for name in s.labels) for s in structures]


def run(config, console=None):
    """Train, evaluate, export: the whole of `mfmd-train`.

    Writes into config.out: log/version_*/metrics.csv, last.ckpt, best.ckpt, model.pt, errors.csv, learning_curve.png, parity_<split>.png.

    Returns
    -------
    {split: Errors.table()} of the best model

    Raises
    ------
    ConfigError, DataError : see plan.load and data.read; an unfinished run in config.out without resume.
    """
    console = console or Console()
    out = Path(config.out)
    last = out / "last.ckpt"
    if last.exists() and not config.resume:
        raise ConfigError(f"out: {out} holds a run already; go on with resume=true, or name another folder with out=…")
    if config.resume and last.exists():
        _check_same(config, last)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE[config.train.precision])
    try:
        return _run(config, console, out, last)
    finally:
        torch.set_default_dtype(before)


def _check_same(config, last):
    """A run is resumed on the model and the data it began with."""
    checkpoint = torch.load(last, weights_only=False)
    for section in ("data", "levels", "backbone", "seed"):
        then, now = checkpoint["config"][section], config.model_dump(mode="json")[section]
        if then != now:
            raise ConfigError(
                f"{section}: the run in {config.out} began with {then}, and now it is {now}; to change it, begin a new run with out=…"
            )
    if checkpoint["epoch"] + 1 > config.train.epochs:
        raise ConfigError(f"train.epochs: {config.train.epochs}, but the run in {config.out} has done {checkpoint['epoch'] + 1} already")


def _run(config, console, out, last):
    lightning.seed_everything(config.seed, verbose=False)
    splits = data.read(config.data, config.levels)
    report.print_counts(console, splits, config.levels)
    level, _, kind = config.train.monitor.partition(".")
    if not data.count_labels(splits["val"], config.levels)[level][kind]:
        raise ConfigError(f"train.monitor: {config.train.monitor} has no label in the validation set")
    # Structures without a label of any level teach nothing.
    train = [s for s in splits["train"] if s.labels]
    model = build_model(config, train)
    parameters = sum(p.numel() for p in model.parameters())
    console.print(f"{parameters:,} parameters, {torch.get_num_threads()} threads; best by the validation MAE of {config.train.monitor}")

    sampler = data.Sampler(sampling_weights(train, config.levels), config.seed)
    options = {"batch_size": config.train.batch_size, "collate_fn": _collate(config)}
    monitor = f"val/{config.train.monitor}"
    best = ModelCheckpoint(out, "best", monitor=monitor, enable_version_counter=False)
    recent = ModelCheckpoint(out, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False)
    patience = EarlyStopping(monitor, patience=config.train.patience, check_finite=True)
    average = WeightAveraging(use_buffers=False, avg_fn=_moving_average(config.train.ema)) if config.train.ema else None
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # what devices there are, tips
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|LeafSpec|litlogger|Checkpoint directory).*")
        trainer = lightning.Trainer(
            default_root_dir=out,
            max_epochs=config.train.epochs,
            gradient_clip_val=config.train.clip,
            check_val_every_n_epoch=config.train.validate_every,
            num_sanity_val_steps=0,
            inference_mode=False,
            accelerator="cpu",
            logger=CSVLogger(out, name="log", flush_logs_every_n_steps=1),  # a folder for each time the run is resumed
            log_every_n_steps=1,
            callbacks=[c for c in (best, recent, patience, average, LearningRateMonitor("epoch"), RichProgressBar(leave=False)) if c],
            enable_model_summary=False,
        )
        trainer.fit(
            Training(model, config),
            DataLoader(train, sampler=sampler, **options),
            DataLoader(splits["val"], **options),
            ckpt_path=last if config.resume and last.exists() else None,
            weights_only=False,  # our own checkpoint
        )
    if not math.isfinite(float(best.best_model_score)):
        raise ConfigError(f"train: the validation error of {config.train.monitor} is not finite; lower train.learning_rate")
    state = torch.load(out / "best.ckpt", weights_only=False)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})

    tables, parity = {}, {}
    for split in ("val", "test"):
        if splits[split]:
            tables[split], points = evaluate(model, splits[split], config)
            parity[split] = points
            report.print_errors(console, split, tables[split])
    report.write_errors(out / "errors.csv", tables)
    provenance = {
        "mfmd": mfmd.__version__,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "labels": data.count_labels(train, config.levels),
        "errors": {split: {f"{lv}.{kd}": row for (lv, kd), row in table.items()} for split, table in tables.items()},
    }
    elements = {name: data.subset_elements(train, name) for name in config.levels}
    export.write_model(out / "model.pt", model, elements, provenance, splits["val"])
    console.print(f"model file: {out / 'model.pt'}")
    report.learning_curve(out / "learning_curve.png", read_metrics(out), list(config.levels))
    for split, points in parity.items():
        if points:
            report.parity(out / f"parity_{split}.png", points, split)
    return tables


def read_metrics(out):
    """The log of a run, {name: (epochs, values)}; where a resumed run did an epoch again, the later values."""
    columns = {}
    for path in sorted(Path(out).glob("log/version_*/metrics.csv"), key=lambda p: int(p.parent.name.removeprefix("version_"))):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and row["epoch"] and name not in ("epoch", "step"):
                        columns.setdefault(name, {})[int(row["epoch"])] = float(value)
    return {name: (sorted(values), [values[k] for k in sorted(values)]) for name, values in columns.items()}
