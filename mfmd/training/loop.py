"""A stage by gradient: masked losses and the (thin) loop."""

import copy
import csv
import itertools
import logging
import math
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from mfmd import progress
from mfmd.config import ConfigError
from mfmd.reports.tables import UNITS
from mfmd.structures import reading
from mfmd.structures.record import KINDS
from mfmd.training.batches import Batches, Sampler, device_of, feed
from mfmd.training.errors import Errors, evaluate
from mfmd.training.processes import BACKEND, processes, processes_here, save, wait_for_all
from mfmd.training.stages import only


def losses(predictions, batch, level, scale, parent=None):
    """Losses of one level, {"energy": (sum, number), "forces": …, "stress": …}, over the labels there are; a missing label has no share.

    Absolute errors of energy per atom and of force components (the component-wise L1 of many recent force
    fields, less sensitive to the few strained structures than squares), in units of the level's scale. Of a level relative to a
    `parent` the difference of the two is compared where a structure has both labels, so that what the parent's head does not
    fit is not learned as a difference of the levels.
    """
    out = {}
    for kind in KINDS:
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

    def transfer_batch_to_device(self, batch, device, _):
        return batch.to(device)

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
        counts = torch.tensor([len(batch.sizes)] + [found[level].get(kind, (0, 0))[1] for level in levels for kind in KINDS])
        if world > 1:
            torch.distributed.all_reduce(counts)
        structures, *counts = counts.tolist()
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for (level, kind), count in zip(itertools.product(levels, KINDS), counts, strict=True):
            weight = getattr(levels[level], f"{kind}_weight")
            if weight > 0 and count:
                loss = world * found[level].get(kind, (0.0 * total, 0))[0] / count
                total = total + weight * loss
                self.log(f"train/{level}.{kind}", loss, on_epoch=True, on_step=False, batch_size=structures, sync_dist=True)
        self.log("train/loss", total, on_step=False, on_epoch=True, batch_size=structures, sync_dist=True)
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
            self.log(f"val/{level}.{kind}", row["mae"])

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


def optimise(model, stage, structures, val, config, folder, seed):
    """Train a model through a stage; afterwards it has the weights with the best validation error. Where it began better by a tenth, a warning says so, and a
    stage of one level keeps what it began with. Resumes where folder/last.ckpt is.

    seed : of the order of structures
    """
    settings = stage.train
    begun, key = copy.deepcopy(model.state_dict()), tuple(settings.monitor.split("."))
    rank, world = processes()
    sampler = Sampler(sampling_weights(structures, stage.levels), seed)
    shares = Batches(sampler, settings.batch_size, rank, world)
    val = reading.where(val, lambda s: any(level in s.labels for level in stage.levels))
    if min(settings.batch_size, len(sampler), len(val)) < world:
        raise ConfigError(
            f"stages.{stage.name}.train.batch_size: batches of {settings.batch_size} of {len(sampler)} structures, or a validation set of {len(val)}, "
            f"are too small for {world} processes"
        )
    before = evaluate(only(model, model.chain(key[0])), val, config)[0][key]["mae"]
    model.train()
    turns = itertools.cycle(range(world))
    share = reading.where(val, lambda _: next(turns) == rank)
    device = device_of(model)
    ahead = {"collate_fn": _as_it_is, "pin_memory": device.type == "cuda"}
    loaders = [DataLoader(feed(structures, stage.levels, config), batch_sampler=shares, **ahead)]
    loaders.append(DataLoader(feed(share, stage.levels, config), batch_size=settings.batch_size, **ahead))
    monitor = f"val/{settings.monitor}"
    best = ModelCheckpoint(folder, "best", monitor=monitor, enable_version_counter=False)
    recent = ModelCheckpoint(folder, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False)
    patience = EarlyStopping(monitor, patience=settings.patience, check_finite=True)
    average = WeightAveraging(use_buffers=False, avg_fn=_moving_average(settings.ema)) if settings.ema else None
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # what devices there are, tips
    last = folder / "last.ckpt"
    with warnings.catch_warnings(), progress.task(f"stage {stage.name}", "epochs", settings.epochs) as waited:
        warnings.filterwarnings("ignore", message=".*(num_workers|does not have many workers|LeafSpec|litlogger|Checkpoint directory).*")
        trainer = lightning.Trainer(
            default_root_dir=folder,
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip,
            check_val_every_n_epoch=settings.validate_every,
            num_sanity_val_steps=0,
            inference_mode=False,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=processes_here(),
            num_nodes=world // processes_here(),
            strategy=DDPStrategy(process_group_backend=BACKEND[device.type], find_unused_parameters=True) if world > 1 else "auto",
            use_distributed_sampler=False,
            plugins=[AtomicCheckpoints()],
            logger=CSVLogger(folder, name="log", flush_logs_every_n_steps=1),  # a folder for each time the run is resumed
            log_every_n_steps=1,
            callbacks=[c for c in (best, recent, patience, average, LearningRateMonitor("epoch"), Told(waited, monitor)) if c],
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(
            Training(model, stage).to(device),
            *loaders,
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
    model.to(device)
    if not math.isfinite(float(best.best_model_score)):
        raise ConfigError(f"stages.{stage.name}.train: the validation error of {settings.monitor} is not finite; lower train.learning_rate")
    after = float(best.best_model_score)
    if before < 0.9 * after and not stage.teachers:  # which teach other labels than are validated
        one = len(stage.levels) == 1
        warnings.warn(
            f"stage {stage.name} {'keeps what it began with' if one else 'ends worse than it began'}: the validation error of {settings.monitor} was {1e3 * before:.3g} meV (Å) before the first epoch "
            f"and no better than {1e3 * after:.3g} afterwards; lower train.learning_rate, or train for more steps: more epochs, or batches of fewer than {settings.batch_size} structures",
            stacklevel=4,
        )
        if one:
            model.load_state_dict(begun)
            return
    wait_for_all()  # until the first has written it
    state = torch.load(folder / "best.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})


def _as_it_is(batch):
    return batch


def _moving_average(decay):
    """Exponential, with a decay that rises from 0.1, so that a short run is not held back by its first weights."""
    return lambda mean, value, n: torch.lerp(mean, value, 1 - ((1 + n) / (10 + n)).clamp(max=decay).to(value.dtype))


def sampling_weights(structures, levels):
    """How often an epoch shows each structure: the largest `sampling` of the stage's levels it has a label of that counts; 0 without any."""

    def learned(label, own):
        return any(getattr(label, kind) is not None and getattr(own, f"{kind}_weight") > 0 for kind in KINDS)

    return [
        max((own.sampling for name, own in levels.items() if name in s.labels and learned(s.labels[name], own)), default=0.0)
        for s in structures
    ]


class Told(Callback):
    """Tells a progress.Task how far the epochs are, and of the validation error."""

    def __init__(self, task, monitor):
        self.task, self.monitor = task, monitor

    def on_train_start(self, trainer, module):
        self.task.first = trainer.current_epoch  # of a run that goes on

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        self.task.reach(trainer.current_epoch + (number + 1) / trainer.num_training_batches)

    def on_validation_end(self, trainer, module):
        label, error = self.monitor.removeprefix("val/"), 1e3 * float(trainer.callback_metrics[self.monitor])
        self.task.reach(self.task.done, f"validation MAE of {label} {error:.3g} {UNITS[label.rpartition('.')[2]]}")


class AtomicCheckpoints(TorchCheckpointIO):
    """A checkpoint appears whole or not at all, whenever the process is killed."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        save(checkpoint, path)


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
