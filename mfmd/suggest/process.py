"""Levels as one Gaussian process, and which label makes it the surest for what it costs.

    f_level = sum of independent parts up to it, of which part k has the covariance parts[k] · K

(Kennedy & O'Hagan, Biometrika 87, 1, 2000, with the factor 1 between levels), K of training.kernel: a row is a vector of features, and what is known is the mean
and covariance of a vector of weights for each level.
"""

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

AT_ONCE = 1024  # structures whose rows are in double at a time


class Rows:
    """Rows of structures, each (rows, features).

    network : (structures, rows, F) float, gradients or their sketch; e0 : (structures, rows, E) double, what E0 adds
    """

    def __init__(self, network, e0):
        self.network, self.e0 = network, e0

    def __len__(self):
        return len(self.network)

    def __getitem__(self, some):
        """(some, rows, F + E) double; some : a slice or indices"""
        return np.concatenate([np.asarray(self.network[some], float), self.e0[some]], axis=2)

    @property
    def width(self):
        return self.network.shape[2] + self.e0.shape[2]

    def times(self, matrix):
        """(structures, rows, n) of a matrix (F + E, n), in the precision of the network's part."""
        split = self.network.shape[2]
        flat = self.network.reshape(-1, split) @ matrix[:split].astype(self.network.dtype)
        return flat.reshape(*self.network.shape[:2], -1) + self.e0 @ matrix[split:]

    def blocks(self, rows=None):
        """(slice, (structures, rows, F + E) double) one by one; rows : the first so many of each structure."""
        for k in range(0, len(self), AT_ONCE):
            some = slice(k, min(k + AT_ONCE, len(self)))
            yield some, self[some][:, :rows]


def covariances(parts):
    """(levels, levels) factors of K between levels."""
    level = np.arange(len(parts))
    return np.cumsum(parts)[np.minimum(level[:, None], level)]


class Process:
    """What is known of the weights of the levels.

    Parameters
    ----------
    parts : (levels,) eV²; width : of a row
    noise : (levels,) eV², variance of a row of a label
    known : {level, an index: (n, width) rows of labels that have been learned, an iterable of blocks}
    """

    def __init__(self, parts, width, noise, known):
        self.width, self.noise = width, np.asarray(noise, float)
        prior = covariances(parts)
        if not known:
            self.covariance = np.kron(prior, np.eye(width))
            return
        precision = np.kron(np.linalg.inv(prior), np.eye(width))
        for level, blocks in known.items():
            own = precision[self._of(level), self._of(level)]
            for block in blocks:
                own += block.T @ block / self.noise[level]
        lower, _ = dpotri(dpotrf(precision, lower=True)[0], lower=True)
        self.covariance = np.tril(lower) + np.tril(lower, -1).T

    def _of(self, level):
        return slice(level * self.width, (level + 1) * self.width)

    def between(self, a, b):
        """(width, width) covariance of the weights of two levels."""
        return self.covariance[self._of(a), self._of(b)]

    def learn(self, rows, level):
        """Rows (n, width) of a level become known. (levels, width, n): by the products of which with its features a covariance falls."""
        along = self.covariance[:, self._of(level)] @ rows.T
        lower = np.linalg.cholesky(rows @ along[self._of(level)] + self.noise[level] * np.eye(len(rows)))
        along = np.linalg.solve(lower, along.T).T
        self.covariance -= along @ along.T
        return along.reshape(-1, self.width, len(rows))


class Pool:
    """Structures that may be labelled, what a label of each would teach about the targets, and what it costs.

    A label is worth the share of the targets' variance that falls with it, of what is left then, added over the kinds of targets: each kind counts the same,
    whatever its units.

    Parameters
    ----------
    process : Process
    rows : Rows of the structures; counts : {level: how many of a structure's rows its label has}, of the levels that may be chosen
    cost : (structures, levels); free : (structures, levels) bool, which labels may be chosen
    targets : of each kind an iterable of blocks of (n, width) rows, whose variances at the highest level are to fall
    """

    def __init__(self, process, rows, counts, cost, free, targets):
        self.process, self.rows, self.counts, self.cost, self.free = process, rows, counts, cost, free.copy()
        top = len(process.noise) - 1
        self.targets = np.array([sum(block.T @ block for block in blocks) for blocks in targets])
        self.totals = np.sum(self.targets * process.between(top, top), axis=(1, 2))  # (kinds,) variances, added up
        # Of each level (structures, rows, rows) covariance, and (kinds, structures, rows, rows) covariances with the targets, squared and added up.
        self.own, self.taught = {}, {}
        for level, count in counts.items():
            toward = process.between(level, top)
            covariance, taught = process.between(level, level), toward @ self.targets @ toward.T
            self.own[level] = np.empty((len(rows), count, count))
            self.taught[level] = np.empty((len(taught), len(rows), count, count))
            for some, block in rows.blocks(count):
                across = block.transpose(0, 2, 1)
                self.own[level][some] = block @ covariance @ across
                for out, matrix in zip(self.taught[level], taught, strict=True):
                    out[some] = block @ matrix @ across

    def falls(self, level):
        """(kinds, structures) by how much the variance of all targets falls with a label of a level."""
        own, taught, noise = self.own[level], self.taught[level], self.process.noise[level]
        if own.shape[1] == 1:
            return taught[:, :, 0, 0] / (own[:, 0, 0] + noise)
        return np.trace(np.linalg.solve(own + noise * np.eye(own.shape[1]), taught), axis1=2, axis2=3)

    def best(self, budget=np.inf):
        """(structure, level, score) of the label that is worth most for its cost, the first of equals; None where none is free within the budget."""
        found = None
        for level in self.counts:
            worth = np.sum(self.falls(level) / self.totals[:, None], axis=0)
            score = np.where(self.free[:, level] & (self.cost[:, level] <= budget), worth / self.cost[:, level], -np.inf)
            k = int(np.argmax(score))
            if np.isfinite(score[k]) and (found is None or score[k] > found[2]):
                found = k, level, float(score[k])
        return found

    def take(self, structure, level):
        """The label of a structure at a level is going to be known."""
        top = len(self.process.noise) - 1
        along = self.process.learn(self.rows[[structure]][0, : self.counts[level]], level)
        n = along.shape[2]
        toward = self.targets @ along[top]
        grams = along[top].T @ toward
        found = self.rows.times(
            np.hstack([part for m in self.counts for part in (along[m], *(self.process.between(m, top) @ kind for kind in toward))])
        )
        parts = iter(np.split(found, found.shape[2] // n, axis=2))
        for m, count in self.counts.items():
            v = next(parts)[:, :count]
            across = v.transpose(0, 2, 1)
            self.own[m] -= v @ across
            for taught, gram in zip(self.taught[m], grams, strict=True):
                cross = next(parts)[:, :count] @ across
                taught -= v @ gram @ across + cross + cross.transpose(0, 2, 1)
        self.totals -= np.trace(grams, axis1=1, axis2=2)
        self.free[structure, level] = False


def fit_parts(kernel, level, left, penalty):
    """The sizes of the levels' parts for which labels, each left out in turn, are the likeliest (Rasmussen & Williams, Gaussian Processes for Machine Learning,
    2006, eqs. 5.10-5.12), eV².

    Parameters
    ----------
    kernel : (n, n) K of the labels; level : (n,) of which they are, an index; left : (n,) what is to be explained, eV over the root of atoms
    penalty : noise over the mean diagonal
    """
    diagonal = float(np.mean(np.diag(kernel)))
    shared = np.minimum(level[:, None], level)

    def surprise(logs):
        sums = np.cumsum(np.exp(logs))
        inverse = np.linalg.inv(sums[shared] * kernel + np.diag(penalty * diagonal * sums[level]))
        variance = 1 / np.diag(inverse)
        return float(np.sum(np.log(variance) + (inverse @ left) ** 2 * variance))

    start = np.full(level.max() + 1, np.log(np.mean(left**2) / diagonal))
    return np.exp(minimize(surprise, start, method="Nelder-Mead", options={"xatol": 0.05, "fatol": 1e-3}).x)
