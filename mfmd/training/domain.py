"""What a model was trained on, element by element: from it the engine says when a structure is far outside (csrc/kernels/domain.hpp)."""

import numpy as np
import torch

from mfmd import progress
from mfmd.training.batches import device_of


def trained_on(model, structures, elements, collate, batch_size=32):
    """What the structures that a model has learned from have in them of some elements.

    elements : atomic numbers, ascending
    collate : from a list of structures to a batches.Batch

    Returns
    -------
    dict: elements; structures, how many; nearest (elements, elements) Å, how near two such atoms come, 0 where they
    never are within the cutoff; neighbors (elements, 2), the fewest and the most within the cutoff; features (elements, 2, F), the lowest and
    highest of the backbone's last features
    """
    cutoff, size = model.backbone.radial.cutoff, len(elements)
    nearest, neighbors = np.full((size, size), np.inf), np.tile([np.inf, -np.inf], (size, 1))
    features = None
    model.eval()
    for start in progress.over(range(0, len(structures), batch_size), "what the model was trained on", "batches"):
        batch = collate(structures[start : start + batch_size])
        there = batch.to(device_of(model))
        i, j = batch.i.numpy(), batch.j.numpy()
        numbers = batch.numbers.numpy()
        slot = np.where(np.isin(numbers, elements), np.searchsorted(elements, numbers), -1)
        distances = (batch.positions[batch.j] - batch.positions[batch.i] + batch.shifts).norm(dim=1).double().numpy()
        known = (slot[i] >= 0) & (slot[j] >= 0)
        np.minimum.at(nearest, (slot[i][known], slot[j][known]), distances[known])
        count = np.bincount(np.concatenate([i, j]), minlength=len(slot))
        with torch.no_grad():
            x = model.features(there, there.positions, there.shifts)[0].double().cpu().numpy()
        if features is None:
            features = np.stack([np.full((size, x.shape[1]), np.inf), np.full((size, x.shape[1]), -np.inf)], axis=1)
        for k in np.unique(slot[slot >= 0]):
            neighbors[k] = min(neighbors[k, 0], count[slot == k].min()), max(neighbors[k, 1], count[slot == k].max())
            features[k] = np.minimum(features[k, 0], x[slot == k].min(0)), np.maximum(features[k, 1], x[slot == k].max(0))
    nearest = np.minimum(nearest, nearest.T)
    nearest[nearest >= cutoff] = 0.0
    return {"elements": elements, "structures": len(structures), "nearest": nearest, "neighbors": neighbors, "features": features}
