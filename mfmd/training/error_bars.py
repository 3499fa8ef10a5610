"""How sure a fit of all weights is: by a linear model on the last features, which stands in the model file, and by all gradients, of energies and forces.

What Gauss-Newton itself says of that (`of_gradients`) takes the gradients of all training energies in all weights, hundreds of megabytes. In the model file
stands the variance that Bayesian linear regression on the last features has,

    atoms · noise + scale · noise · phi' (sum_s phi_s phi_s' / atoms_s + penalty)^-1 phi

with phi as in fit.design. How likely the errors of left-out structures are under it (whose own terms are left out of the sum) decides on noise, scale and
penalty: the noise is the likeliest, over the others the variance is averaged by the likelihood. The energy stays as it is.
"""

import numpy as np
import torch
from scipy.linalg import solve_triangular

from mfmd import Error, progress
from mfmd.training import batches, kernel
from mfmd.training.fit import PENALTIES, design, spread_of
from mfmd.training.kernel import E0_WIDTH
from mfmd.training.start import read_model

SCALES = np.logspace(-1, 1, 9)
WIDE = 1e-4  # a penalty below it is none
TOGETHER = 16  # structures, whose rows are multiplied with those of what was learned at once
MOST_COLUMNS = 4096  # elements times features; their square is in the model file, and each energy with its error bar goes through it


def stand_in(phi, sizes, errors, penalised):
    """Factor (p, p), lower triangular, of the covariance of weights, eV, and noise, eV² an atom, as errors of energies left out have them.

    Parameters
    ----------
    phi : (n, p) as from fit.design; sizes : (n,) atoms; errors : (n,) eV; penalised : (p,) bool, weights of features; the others are E0
    """
    a, squares = phi / np.sqrt(sizes)[:, None], errors**2 / sizes
    spread = spread_of(a, penalised)
    a, found = a / spread, []
    for penalty in PENALTIES[PENALTIES >= WIDE]:
        inverse = np.linalg.inv(a.T @ a + np.diag(np.where(penalised, penalty, squares.mean() / E0_WIDTH**2)))
        own = np.einsum("np,np->n", a @ inverse, a)
        free = own / np.maximum(1.0 - own, 1e-9)  # by a sum without the structure's term
        for variance in 1.0 + SCALES[:, None] * free:
            noise = np.mean(squares / variance)
            found.append((-0.5 * np.log(noise * variance).sum(), noise, inverse))
    likelihood, noise, inverses = zip(*found, strict=True)
    weight = np.exp(np.array(likelihood) - max(likelihood))
    weight *= np.array(noise) / weight.sum()
    scaled = weight * np.tile(SCALES, len(weight) // len(SCALES))
    covariance = sum(w * inverse for w, inverse in zip(scaled, inverses, strict=True))
    return np.linalg.cholesky(covariance) / spread[:, None], weight.sum()


def give(model, level, structures, errors, elements, collate, fit_e0=True):
    """Give the head of a level error bars, in place, unless it is an ensemble, which has its own, or knows so many elements that these would be too large.

    Parameters
    ----------
    model : training.model.Model, as it is after the fit
    structures : those whose energies were learned; errors : (structures,) eV, of each when it is left out
    elements : atomic numbers of the level, ascending
    collate : structures -> batches.Batch; fit_e0 : whether E0 was fitted
    """
    head = model.heads[level]
    if getattr(head, "members", 1) > 1 or len(elements) * (model.backbone.architecture["channels"] + 1) > MOST_COLUMNS:
        return
    phi, alone = design(model, structures, elements, collate)
    width = alone.shape[1] + 1
    penalised = np.arange(phi.shape[1]) % width < width - 1
    fitted = np.flatnonzero(penalised | fit_e0)
    factor = np.zeros((phi.shape[1],) * 2)
    factor[np.ix_(fitted, fitted)], noise = stand_in(phi[:, fitted], phi[:, ~penalised].sum(axis=1), errors, penalised[fitted])
    head.set_error_bars(factor=factor, isolated=alone, noise=noise)


def of_model(path, learned, structures):
    """What `of_gradients` gives of a model file, at the level that Gauss-Newton has fitted; learned : all that it was fitted to."""
    model, header = read_model(path)
    record, dtype = header["provenance"]["gauss_newton"], next(model.parameters()).dtype
    elements = next(level["elements"] for level in header["levels"] if level["name"] == record["level"])
    return of_gradients(
        model, record["level"], record["penalty"], record["variance"], learned, structures, elements,
        lambda some: batches.collate(some, [], header["backbone"]["cutoff"], dtype), record["fit_e0"],
    )  # fmt: skip


def of_gradients(model, level, penalty, variance, learned, structures, elements, collate, fit_e0=True):
    """Standard deviations by the Gaussian process whose kernel is fit.gauss_newton's, of which the energies learned are known.

    Parameters
    ----------
    model : training.model.Model; level : that Gauss-Newton has fitted; penalty, variance : as fit.gauss_newton found them
    learned : structures whose energies were learned; structures : others; elements : atomic numbers of the level
    collate : structures -> batches.Batch; fit_e0 : whether E0 was fitted

    Returns
    -------
    (structures, 2): of the energy, eV; of a force component, eV/Å, root mean square over the structure

    Raises
    ------
    Error : the gradients of the energies learned take more than kernel.MOST_GRADIENTS
    """
    weights = kernel.Weights(model, [level])
    known = weights.matrices[0].new_empty(0)
    if (size := known.element_size() * len(learned) * len(weights)) > kernel.MOST_GRADIENTS:
        raise Error(
            f"level {level}: the gradients of {len(learned)} energies would take {size / 1e9:.1f} GB, and up to {kernel.MOST_GRADIENTS / 1e9:.1f} are held; "
            "the error bars in the model file, which need none, are there without"
        )
    known = known.new_empty(len(learned), len(weights))
    for row, s in zip(known, progress.over(learned, "gradients of what was learned", "structures"), strict=True):
        row.copy_(kernel.rows_of(weights, s, level, collate)[0])
    e0 = kernel.e0_rows(learned, elements, fit_e0=fit_e0)[:, 0]
    gram = _products(known, known) + e0 @ e0.T
    noise = penalty * np.mean(np.diag(gram))
    lower, out = np.linalg.cholesky(gram + noise * np.eye(len(gram))), []
    for start in progress.over(range(0, len(structures), TOGETHER), "gradients of energies and forces", "batches"):
        some = structures[start : start + TOGETHER]
        rows = torch.cat([kernel.rows_of(weights, s, level, collate, forces=True) for s in some])
        own = kernel.e0_rows(some, elements, forces=True, fit_e0=fit_e0).reshape(len(rows), -1)
        along = solve_triangular(lower, _products(known, rows) + e0 @ own.T, lower=True)
        left = rows.double().square().sum(1).cpu().numpy() + np.square(own).sum(1) - np.square(along).sum(0)
        left, sizes = left.reshape(len(some), -1), np.array([len(s.numbers) for s in some])
        out.append(np.stack([sizes * (left[:, 0] + noise), kernel.RATIO * left[:, 1:].mean(1)], axis=1))
    return np.sqrt(variance * np.concatenate(out))


def _products(a, b):
    """a b' in double, (rows of a, rows of b)."""
    whole, out = slice(0, a.shape[1]), 0.0
    for (left, _), (right, _) in zip(kernel.columns([(whole, a)]), kernel.columns([(whole, b)]), strict=True):
        out += (left @ right.T).cpu().numpy()
    return out
