"""How far a model is from labels, and from another model."""

import math

import numpy as np
import torch

from mfmd import progress
from mfmd.structures.record import KINDS
from mfmd.training.batches import collation, device_of
from mfmd.training.processes import processes


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


def evaluate(model, structures, config, batch_size=32):
    """Errors of a model's levels on structures, and its predictions: (Errors.table(), {(level, kind): (label, prediction)})."""
    errors, points = Errors(), {}
    model.eval()
    for start in progress.over(range(0, len(structures), batch_size), "predicting the labels", "batches"):
        batch = collation(config, model.levels)(structures[start : start + batch_size]).to(device_of(model))
        predictions = model(batch, forces=list(batch.forces), stress=list(batch.stress))
        errors.update(predictions, batch)
        for level, p in predictions.items():
            for kind in KINDS:
                value = getattr(p, kind)
                if level in getattr(batch, kind) and value is not None:
                    target = getattr(batch, kind)[level]
                    if kind == "energy":
                        offset = p.energy - p.network_energy.double()
                        target, value = (target - offset) / batch.sizes, p.network_energy / batch.sizes
                    known = ~torch.isnan(target)
                    pair = points.setdefault((level, kind), ([], []))
                    pair[0].append(target[known].detach().double().cpu().numpy())
                    pair[1].append(value[known].detach().double().cpu().numpy())
    return errors.table(), {k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in points.items()}


def distance(one, other, level, structures, config, batch_size=32):
    """Mean absolute difference of a level's predictions by two models, {"structures": how many, "energy": eV/atom, "forces": eV/Å}."""
    errors, collate = Errors(), collation(config, [])
    for start in range(0, len(structures), batch_size):
        batch = collate(structures[start : start + batch_size]).to(device_of(one))
        a, b = (model.eval()(batch, forces=[level])[level] for model in (one, other))
        errors.add("energy", (a.energy - b.energy) / batch.sizes)
        errors.add("forces", a.forces - b.forces)
    return {"structures": len(structures), **{kind: row["mae"] for kind, row in errors.table().items()}}
