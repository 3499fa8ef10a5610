"""Learning a level by linear algebra, in seconds: heads in closed form, and all weights by Gauss-Newton steps.

Closed form: on a trained backbone, the head of a new level is a regularised linear regression.

    E_level = E_parent + sum_i w[Z_i] · (x_i − x of an isolated atom of Z_i) + E0[Z_i]  (+ what the states of fragments add, as it is)

with the last features x of the backbone, a weight vector per element, and E_parent the level it is relative to, or else the repulsion of nuclei of a
backbone that has one. Bayesian
linear regression (Bishop 2006, ch. 3.3): the noise's variance is proportional to the number of atoms, the prior's width is chosen by
leave-one-out errors, and the noise is scaled so that these errors have the size that is predicted for them. Forces, where there are
labels, are further rows, −dphi/dR; a structure is left out with all of its rows.

Gauss-Newton: the same regression with the gradients of the energy in the weights as features, solved where the last step has led.
The prior of a weight is the one it starts from, as wide as the weights of its matrix are large, so that among all weights that fit the
energies the nearest are taken. For few energies that is far better than following a gradient (docs/study.md).
"""

import itertools

import numpy as np
import torch

from mfmd import Error, progress
from mfmd.structures import reading
from mfmd.structures.state import state_terms
from mfmd.training import kernel
from mfmd.training.batches import device_of
from mfmd.training.kernel import E0_WIDTH

# Of weights that multiply features scaled to unit size, relative to the noise; of Gauss-Newton, relative to the kernel.
PENALTIES = np.logspace(-8, 4, 25)
STEPS = 10  # of Gauss-Newton, at most


class FitError(Error):
    """A head cannot be fitted; names the level and what is missing."""


def design(model, structures, elements, collate, forces=False, batch_size=64):
    """phi (structures, elements (F + 1)): for each element the sum of its atoms' features less those of isolated ones, and their number.

    Returns
    -------
    phi, double; features of the isolated atoms, (elements, F); with `forces` also −dphi/dR, a list of (3 atoms, elements (F + 1)), which
    takes a backward pass for every element and feature
    """
    like = next(model.backbone.parameters())
    kinds = torch.tensor(elements, device=like.device)
    none = kinds[:0]
    rows, slopes = [], []
    with torch.no_grad():
        alone = model.backbone(kinds, like.new_zeros(len(kinds), 3), none, none, like.new_zeros(0, 3))
    for start in progress.over(range(0, len(structures), batch_size), "features of the structures", "batches"):
        batch = collate(structures[start : start + batch_size]).to(like.device)
        with torch.set_grad_enabled(forces):
            positions = batch.positions.requires_grad_(forces)
            x, _ = model.features(batch, positions, batch.shifts)
            kind = torch.searchsorted(kinds, batch.numbers)
            x = torch.cat([x - alone[kind], torch.ones_like(x[:, :1])], dim=1)
            phi = x.new_zeros(len(batch.sizes) * len(kinds), x.shape[1], dtype=torch.float64)
            phi = phi.index_add(0, batch.structure * len(kinds) + kind, x.double()).view(len(batch.sizes), -1)
        rows.append(phi.detach().cpu())
        if forces:
            total, width = phi.sum(0), x.shape[1]
            slope = torch.zeros(len(positions), 3, phi.shape[1], dtype=torch.float64)
            for column in (c for c in range(phi.shape[1]) if c % width < width - 1):
                slope[:, :, column] = -torch.autograd.grad(total[column], positions, retain_graph=True)[0].double().cpu()
            slopes += [part.reshape(-1, phi.shape[1]).numpy() for part in torch.split(slope, batch.sizes.tolist())]
    phi = torch.cat(rows).numpy()
    alone = alone.double().cpu().numpy()
    return (phi, alone, slopes) if forces else (phi, alone)


def spread_of(a, penalised):
    """(p,) what the columns of (n, p) are divided by: root mean squares of those of features, 1 where one is empty."""
    spread = np.where(penalised, np.sqrt(np.mean(a**2, axis=0)), 1.0)
    return np.where(spread > 1e-12 * spread.max(), spread, 1.0)


def regress(a, y, variance, block, penalised):
    """Weights, covariance, noise and leave-one-out errors of y = a θ + noise.

    Parameters
    ----------
    a : (n, p); y : (n,); variance : (n,) of the noise, up to a common factor
    block : (n,) which structure a row belongs to, ascending; a structure is left out as a whole
    penalised : (p,) bool, weights of features; the others are E0, with a prior of their own

    Returns
    -------
    θ (p,), covariance (p, p), noise (the common factor), leave-one-out errors (n,), their predicted standard deviations (n,)
    """
    root = 1.0 / np.sqrt(variance)
    a, y = a * root[:, None], y * root
    spread = spread_of(a, penalised)
    a = a / spread
    gram, right = a.T @ a, a.T @ y
    level = max(np.mean((y - y.mean()) ** 2), 1e-12)  # a first guess of the noise, for the prior of E0
    bounds = np.flatnonzero(np.diff(block, prepend=block[0] - 1, append=block[-1] + 1))

    def solve(penalty):
        lower = np.linalg.cholesky(gram + np.diag(np.where(penalised, penalty, level / E0_WIDTH**2)))
        half = np.linalg.solve(lower, a.T).T
        theta = np.linalg.solve(lower.T, np.linalg.solve(lower, right))
        residual = y - a @ theta
        errors, factors = np.empty_like(y), np.empty_like(y)
        for start, stop in itertools.pairwise(bounds):
            left = np.linalg.inv(np.eye(stop - start) - half[start:stop] @ half[start:stop].T)
            errors[start:stop] = left @ residual[start:stop]
            factors[start:stop] = np.diag(left)
        return theta, lower, errors, factors

    scores = [np.mean(solve(penalty)[2] ** 2) for penalty in progress.over(PENALTIES, "leaving structures out", "priors")]
    theta, lower, errors, factors = solve(PENALTIES[int(np.argmin(scores))])
    # A left-out error has the variance noise * factor; the noise is such that these fit on average.
    noise = float(np.mean(errors**2 / factors))
    back = np.linalg.solve(lower, np.diag(1.0 / spread))
    return theta / spread, noise * back.T @ back, noise, errors / root, np.sqrt(noise * factors) / root


def closed_form(model, level, structures, collate, forces=True, fit_e0=True):
    """Solve the linear head of a level in place, with its E0 and error bars.

    Parameters
    ----------
    model : training.model.Model, whose head of `level` is a LinearHead
    structures : training structures; the level's energies are learned, and its forces where it has them. Of a relative head the target is
        label − label where a structure has both, else label − the parent's prediction
    collate : structures -> batches.Batch
    forces : False leaves force labels out; fit_e0 : False leaves E0 as it is

    Returns
    -------
    dict: structures, forces (how many of them had such labels), loo_mae (eV, of energies), loo_coverage (share of leave-one-out errors of
    energies within one predicted standard deviation)

    Raises
    ------
    FitError : there are fewer than ten energies
    """
    head, parent = model.heads[level], model.delta_of.get(level)
    labelled = reading.where(structures, lambda s: s.has_energy(level))
    if len(labelled) < 10:
        raise FitError(f"levels.{level}: a head in closed form needs ten energies or more, and there are {len(labelled)}")
    elements = reading.subset_elements(structures, level)
    model.eval()
    phi, alone = design(model, labelled, elements, collate)
    with_forces = [k for k, s in enumerate(labelled) if forces and s.labels[level].forces is not None]
    slopes = dict(
        zip(with_forces, design(model, [labelled[k] for k in with_forces], elements, collate, True)[2] if with_forces else [], strict=True)
    )
    e0, of_states = head.e0[elements].cpu().numpy(), head.of_states.cpu().numpy()
    counts = phi.reshape(len(phi), len(elements), -1)[:, :, -1]
    sizes = counts.sum(axis=1)
    a, y, block, is_force = [], [], [], []
    for k, s in enumerate(progress.over(labelled, "what the head accounts for", "structures")):
        energy, force = _rest(model, parent, s, collate, k in slopes)
        a.append(phi[k][None])
        y.append([s.labels[level].energy - energy - counts[k] @ e0 - state_terms(s.states).sum(0) @ of_states])
        if k in slopes:
            a.append(slopes[k])
            y.append((s.labels[level].forces - force).ravel())
        rows = 1 + (3 * len(s.numbers) if k in slopes else 0)
        block += [k] * rows
        is_force += [False] + [True] * (rows - 1)
    a, y, block, is_force = np.concatenate(a), np.concatenate(y), np.array(block), np.array(is_force)
    penalised = np.tile(np.arange(phi.shape[1] // len(elements)) < head.weight.shape[1], len(elements))
    fitted = np.flatnonzero(penalised | fit_e0)
    ratio = kernel.RATIO  # then as leave-one-out errors say
    for _ in range(3 if with_forces else 1):
        variance = np.where(is_force, ratio, sizes[block])
        theta, covariance, noise, errors, bars = regress(a[:, fitted], y, variance, block, penalised[fitted])
        if with_forces:
            ratio = float(np.mean(errors[is_force] ** 2) / np.mean(errors[~is_force] ** 2 / sizes))
    weights, factor = np.zeros(len(penalised)), np.zeros((len(penalised), len(penalised)))
    weights[fitted], factor[np.ix_(fitted, fitted)] = theta, np.linalg.cholesky(covariance)
    blocks = weights.reshape(len(elements), -1)
    with torch.no_grad():
        head.weight[elements] = torch.as_tensor(blocks[:, :-1]).to(head.weight)
        head.e0[elements] += torch.as_tensor(blocks[:, -1]).to(head.e0)
        head.set_error_bars(factor=factor, isolated=alone, noise=noise)
    errors, bars = errors[~is_force], bars[~is_force]
    return {
        "structures": len(labelled), "forces": len(with_forces), "loo_mae": float(np.abs(errors).mean()),
        "loo_coverage": float(np.mean(np.abs(errors) < bars)),
    }  # fmt: skip


def _rest(model, parent, s, collate, forces):
    """Energy (eV) and forces (eV/Å) of a structure that the head has not to account for: of its parent the labels, else the prediction; without a
    parent the repulsion of nuclei."""
    if parent is None:
        if model.backbone.repulsion is None:
            return 0.0, 0.0
        batch = collate([s]).to(device_of(model))
        with torch.enable_grad():
            energy = model.repulsion(batch, batch.positions.requires_grad_(), batch.shifts).sum()
        return energy.item(), -torch.autograd.grad(energy, batch.positions)[0].double().cpu().numpy()
    label = s.labels.get(parent)
    energy, force = (label.energy, label.forces) if label is not None else (None, None)
    if energy is None or (forces and force is None):
        prediction = model(collate([s]).to(device_of(model)), forces=[parent] if forces else [])[parent]
        energy = prediction.energy.item() if energy is None else energy
        force = prediction.forces.detach().double().cpu().numpy() if forces and force is None else force
    return energy, force


# ------------------------------------------------------------------------------------------------ Gauss-Newton


def gauss_newton(model, level, structures, collate, fit_e0=True):
    """Fit the weight matrices of the backbone and of a level's head, its E0 and what it adds by states, in place to the level's energies.

    Minimised is sum_s (E_s − E(θ)_s)² / atoms_s + penalty · sum_w (θ_w − start_w)² / width_w², with width_w the root mean square of the
    matrix that w belongs to (of what states add to the rows of elements, that of these rows: it starts at zero, and is to move); the penalty is chosen by leave-one-out errors of the linearised model. Biases, norms and what is
    tabulated by element stay.

    Parameters
    ----------
    model : training.model.Model with a trained head of `level`
    structures : training structures; only the level's energies are learned
    collate : structures -> batches.Batch; fit_e0 : False leaves E0 as it is, and what states add is fitted all the same

    Returns
    -------
    dict: structures, steps, loo_mae (eV), errors (structures,) of energies left out, by the last linearised model, eV, penalty (over the mean diagonal of
    the kernel of energies over the root of atoms), variance (eV², of the prior of a weight in units of its width, with which the leave-one-out errors have
    the size that is predicted for them)

    Raises
    ------
    FitError : there are fewer than ten energies, or so many that their kernel takes more than MOST_GRADIENTS
    """
    head = model.heads[level]
    labelled = reading.where(structures, lambda s: s.has_energy(level))
    if len(labelled) < 10:
        raise FitError(f"levels.{level}: Gauss-Newton needs ten energies or more, and there are {len(labelled)}")
    elements = reading.subset_elements(labelled, level)
    weights = kernel.Weights(model, [level])
    if (size := 8 * len(labelled) ** 2) > kernel.MOST_GRADIENTS:
        raise FitError(
            f"levels.{level}: the kernel of {len(labelled)} energies would take {size / 1e9:.1f} GB, and Gauss-Newton holds up to "
            f"{kernel.MOST_GRADIENTS / 1e9:.1f}; set levels.{level}.keep, or fit: gradient"
        )
    device, width, start, pieces = device_of(model), weights.width, weights.get(), weights.pieces(len(labelled))
    target = np.array([s.labels[level].energy for s in labelled])
    # What no structure has of E0 and the states of fragments stays.
    counts = kernel.counts(labelled, elements, fit_e0)
    root = 1.0 / np.sqrt([len(s.numbers) for s in labelled])
    met = counts.any(axis=0)
    counts = counts[:, met]
    model.requires_grad_(True).eval()

    def best(moved, penalty):
        """Put the weights there; then what E0 is best, the energies, and what is minimised."""
        weights.put(start + moved)
        left = root * (target - kernel.predictions(model, labelled, level, collate))
        a = root[:, None] * counts
        e0 = np.linalg.solve(a.T @ a + penalty / E0_WIDTH**2 * np.eye(counts.shape[1]), a.T @ left)
        left -= a @ e0
        distance = (moved / width).square().sum().item() + float(e0 @ e0) / E0_WIDTH**2
        return e0, left / root, left @ left + penalty * distance

    def found(step):
        what = f"Gauss-Newton step {step + 1}, gradients"
        return ((piece, kernel.gradients(weights, labelled, level, collate, piece, what)) for piece in pieces)

    moved, penalty, steps, held = torch.zeros_like(start), 0.0, 0, []
    e0, left, _ = best(moved, penalty=1e-12)
    weight = torch.as_tensor(root, device=device)
    while steps < STEPS:
        linear = torch.as_tensor(left + counts @ e0, device=device)
        gram = torch.as_tensor(E0_WIDTH**2 * counts @ counts.T, device=device)
        held.clear()
        if len(pieces) == 1:  # else they are found twice
            held.extend(found(steps))
        for gradient, columns in kernel.columns(held or found(steps)):
            linear += gradient @ moved[columns]
            scaled = gradient * width[columns]
            gram.addmm_(scaled, scaled.T)
        values, vectors = torch.linalg.eigh(weight[:, None] * gram * weight)
        values, squares, turned = values.clamp(min=0.0), vectors.square(), vectors.T @ (weight * linear)

        def dual(penalty, values=values, vectors=vectors, squares=squares, turned=turned):
            inverse = 1.0 / (values + penalty)
            return vectors @ (inverse * turned), squares @ inverse

        if steps < 3:  # then the penalty stays, so that what is minimised does
            choices = PENALTIES * values.mean().item()
            penalty = min(choices, key=lambda value: torch.div(*dual(value)).square().mean().item())
        solution, diagonal = dual(penalty)
        errors = (solution / diagonal / weight).cpu().numpy()
        relative, variance = penalty / values.mean().item(), (solution**2 / diagonal).mean().item()
        solution, to = weight * solution, torch.empty_like(start)
        for gradient, columns in kernel.columns(held or found(steps)):
            to[columns] = width[columns] ** 2 * (solution @ gradient)
        before = best(moved, penalty)[2]
        for share in 0.5 ** np.arange(7):
            tried = moved + share * (to - moved)
            e0, left, after = best(tried, penalty)
            if after < before:
                break
        else:
            e0, left, _ = best(moved, penalty)
            break
        moved, steps = tried, steps + 1
        if after > 0.99 * before:
            break
    change = np.zeros(len(met))
    change[met] = e0
    head.e0[elements] += torch.as_tensor(change[: len(elements)], device=device)
    head.of_states += torch.as_tensor(change[len(elements) :], device=device)
    loo = float(np.abs(errors).mean())
    return {"structures": len(labelled), "steps": steps, "loo_mae": loo, "errors": errors, "penalty": relative, "variance": variance}
