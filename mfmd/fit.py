"""Heads in closed form: on a trained backbone, the head of a new level is a regularised linear regression, solved in seconds.

    E_level = E_parent + sum_i w[Z_i] · (x_i − x of an isolated atom of Z_i) + E0[Z_i]

with the last features x of the backbone, a weight vector per element, and E_parent the level it is relative to, if any. Bayesian
linear regression (Bishop 2006, ch. 3.3): the noise's variance is proportional to the number of atoms, the prior's width is chosen by
leave-one-out errors, and the noise is scaled so that these errors have the size that is predicted for them.
"""

import numpy as np
import torch

from mfmd import Error, data

PENALTIES = np.logspace(-8, 4, 49)  # of weights that multiply features scaled to unit spread, relative to the noise
E0_WIDTH = 1.0  # eV, how far E0 may go from where it began before it counts as unlikely


class FitError(Error):
    """A head cannot be fitted; names the level and what is missing."""


def design(model, structures, elements, collate, batch_size=64):
    """phi (structures, elements (F + 1)): for each element the sum of its atoms' features less those of isolated ones, and their number.

    Returns
    -------
    phi, double; features of the isolated atoms, (elements, F)
    """
    kinds = torch.tensor(elements)
    none = torch.zeros(0, dtype=torch.long)
    rows = []
    with torch.no_grad():
        like = next(model.backbone.parameters())
        alone = model.backbone(kinds, like.new_zeros(len(kinds), 3), none, none, like.new_zeros(0, 3)).double()
        for start in range(0, len(structures), batch_size):
            batch = collate(structures[start : start + batch_size])
            x, _, _, _ = model.features(batch.numbers, batch.positions, batch.i, batch.j, batch.shifts)
            kind = torch.searchsorted(kinds, batch.numbers)
            x = torch.cat([x.double() - alone[kind], torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
            phi = x.new_zeros(len(batch.sizes) * len(kinds), x.shape[1]).index_add(0, batch.structure * len(kinds) + kind, x)
            rows.append(phi.view(len(batch.sizes), -1))
    return torch.cat(rows).numpy(), alone.numpy()


def regress(phi, y, sizes, penalised):
    """Weights, covariance, noise and leave-one-out errors of y = phi θ + noise.

    Parameters
    ----------
    phi : (n, p); y : (n,) eV; sizes : (n,) atoms, to which the noise's variance is proportional
    penalised : (p,) bool, weights of features; the others are E0, with a prior of their own

    Returns
    -------
    θ (p,), covariance (p, p), noise (eV² an atom), leave-one-out errors (n,) eV, their predicted standard deviations (n,) eV
    """
    weight = 1.0 / sizes
    spread = np.where(penalised, phi.std(axis=0), 1.0)
    spread = np.where(spread > 1e-12 * spread.max(), spread, 1.0)
    gram = (phi * weight[:, None]).T @ phi
    right = phi.T @ (weight * y)
    level = np.mean(weight * (y - y.mean()) ** 2)  # a first guess of the noise, for the prior of E0

    def solve(penalty):
        prior = np.where(penalised, penalty * spread**2, max(level, 1e-12) / E0_WIDTH**2)
        inverse = np.linalg.inv(gram + np.diag(prior))
        theta = inverse @ right
        leverage = weight * np.einsum("np,pq,nq->n", phi, inverse, phi)
        errors = (y - phi @ theta) / np.maximum(1.0 - leverage, 1e-6)
        return theta, inverse, leverage, errors

    scores = [np.mean(weight * solve(penalty)[3] ** 2) for penalty in PENALTIES]
    theta, inverse, leverage, errors = solve(PENALTIES[int(np.argmin(scores))])
    # A left-out error has the variance noise * atoms / (1 − leverage); the noise is such that these fit on average.
    left = np.maximum(1.0 - leverage, 1e-6)
    noise = float(np.mean(weight * left * errors**2))
    return theta, noise * inverse, noise, errors, np.sqrt(noise * sizes / left)


def closed_form(model, level, structures, collate):
    """Solve the linear head of a level in place, with its E0 and error bars.

    Parameters
    ----------
    model : mfmd.model.Model, whose head of `level` is a LinearHead
    structures : training structures; the level's energies are learned. Of a relative head the target is label − label where a
        structure has both, else label − the parent's prediction
    collate : structures -> data.Batch

    Returns
    -------
    dict: structures, loo_mae (eV), loo_coverage (share of leave-one-out errors within one predicted standard deviation)

    Raises
    ------
    FitError : there are fewer than ten energies
    """
    head, parent = model.heads[level], model.delta_of.get(level)
    labelled = [s for s in structures if level in s.labels and s.labels[level].energy is not None]
    if len(labelled) < 10:
        raise FitError(f"levels.{level}: a head in closed form needs ten energies or more, and there are {len(labelled)}")
    elements = data.subset_elements(structures, level)
    model.eval()
    phi, alone = design(model, labelled, elements, collate)
    e0 = head.e0[elements].numpy()
    counts = phi.reshape(len(phi), len(elements), -1)[:, :, -1]
    rest = np.zeros(len(labelled))
    if parent is not None:
        with torch.no_grad():
            predicted = [model(collate([s]))[parent].energy.item() for s in labelled]
        both = [parent in s.labels and s.labels[parent].energy is not None for s in labelled]
        rest = np.array([s.labels[parent].energy if b else p for s, b, p in zip(labelled, both, predicted, strict=True)])
    y = np.array([s.labels[level].energy for s in labelled]) - rest - counts @ e0
    penalised = np.tile(np.arange(phi.shape[1] // len(elements)) < head.weight.shape[1], len(elements))
    theta, covariance, noise, errors, bars = regress(phi, y, counts.sum(axis=1), penalised)
    blocks = theta.reshape(len(elements), -1)
    with torch.no_grad():
        head.weight[elements] = torch.as_tensor(blocks[:, :-1], dtype=head.weight.dtype)
        head.e0[elements] += torch.as_tensor(blocks[:, -1])
        head.factor.copy_(torch.as_tensor(np.linalg.cholesky(covariance)))
        head.isolated.copy_(torch.as_tensor(alone))
        head.noise.fill_(noise)
    return {"structures": len(labelled), "loo_mae": float(np.abs(errors).mean()), "loo_coverage": float(np.mean(np.abs(errors) < bars))}
