"""Rows of structures at a model: exact ones of few, sketches of many, whose blocks stay where a command is killed."""

import hashlib
import warnings
from functools import cache

import numpy as np

from mfmd import Error, Note, progress, whole
from mfmd.engine import load_model
from mfmd.labelling.workers import in_parallel
from mfmd.suggest.process import Rows
from mfmd.training import kernel
from mfmd.training.batches import collate
from mfmd.training.start import read_model

MOST_EXACT = 3000  # rows, of which the kernel is found as it is
WIDTH = 2048  # of a sketch
MOST_SKETCHES = 2e9  # bytes; a sketch is narrower where it would take more
BLOCK = 500  # structures
DIGITS = 32  # of a block's name


class SuggestError(Error):
    """Nothing can be suggested; names the file, key or option and what to do."""


@cache
def weights_of(path, level):
    """kernel.Weights of a level's whole chain in a model file, in torch's default type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # that weights in double are rounded
        model, _ = read_model(path)
    return kernel.Weights(model, model.chain(level))


def collation(model):
    dtype = next(model.parameters()).dtype
    return lambda structures: collate(structures, [], model.backbone.radial.cutoff, dtype)


@cache
def _sketch(size, width):
    return kernel.Sketch(size, width)


def _write_block(file, path, level, structures, forces, width):
    """The sketches of structures, (structures, rows, width) float, in a file that is there when it is whole."""
    weights = weights_of(path, level)
    sketch, like = _sketch(len(weights), width), collation(weights.model)
    found = np.stack([sketch(kernel.rows_of(weights, s, level, like, forces).float()).numpy() for s in structures])
    with whole.writing(file) as out:
        np.save(out, found)


def rows_of(path, level, sets, elements, folder, workers):
    """Rows of several sets of structures at a level of a model file.

    Parameters
    ----------
    sets : [(structures, forces)]; elements : atomic numbers that E0 may move of
    folder : for blocks of sketches; those that are there already are used
    workers : processes, of one thread each

    Returns
    -------
    [Rows] of the sets; width of the sketches, None where the rows are exact; mean of K of the energies

    Raises
    ------
    SuggestError : a structure whose gradients cannot be computed
    """
    e0 = [kernel.e0_rows(structures, elements, forces) for structures, forces in sets]
    number = sum(rows.shape[0] * rows.shape[1] for rows in e0)
    if number <= MOST_EXACT:
        weights = weights_of(path, level)
        values, vectors = np.linalg.eigh(kernel.gram(weights, sets, level, collation(weights.model), elements).numpy())
        real = values > 1e-12 * values[-1]
        flat, width, networks = vectors[:, real] * np.sqrt(values[real]), None, []
        for rows in e0:
            part, flat = np.split(flat, [rows.shape[0] * rows.shape[1]])
            networks.append(part.reshape(*rows.shape[:2], part.shape[1]))
        e0 = [rows[:, :, :0] for rows in e0]  # it is in the kernel
    else:
        width = min(WIDTH, int(MOST_SKETCHES / 4 / number) // 64 * 64)
        if not width:
            raise SuggestError(f"{number:,} energies and forces are too many to compare; give fewer candidates")
        networks = _sketches(path, level, sets, folder, workers, width)
    found = [Rows(network, rows) for network, rows in zip(networks, e0, strict=True)]
    squares = [np.sum(np.square(block), axis=2).ravel() for rows in found for _, block in rows.blocks(1)]
    return found, width, float(np.mean(np.concatenate(squares)))


def forget(folder):
    """Remove the blocks of a folder, and the folder where nothing else is in it."""
    for file in folder.glob(f"{'[0-9a-f]' * DIGITS}.npy*"):
        file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _sketches(path, level, sets, folder, workers, width):
    folder.mkdir(parents=True, exist_ok=True)
    model, tasks, files = load_model(path).sha256, [], []
    for structures, forces in sets:
        files.append([])
        for k in range(0, len(structures), BLOCK):
            block = structures[k : k + BLOCK]
            what = hashlib.sha256(repr((model, level, forces, width)).encode())
            for s in block:
                for part in (s.numbers, s.positions, s.cell, s.pbc, s.states, s.fragment):
                    what.update(np.ascontiguousarray(part, float).tobytes())
            file = folder / f"{what.hexdigest()[:DIGITS]}.npy"
            files[-1].append(file)
            if not file.exists() and all(file != of for of, *_ in tasks):
                tasks.append((file, _write_block, (file, path, level, block, forces, width)))
    every = len({file for of in files for file in of})
    with progress.task("gradients of the energies", "blocks", every, every - len(tasks)) as task:
        for _, _, error in in_parallel(tasks, workers):
            if error is not None:
                raise SuggestError(f"the gradients of a block of structures could not be computed ({error})")
            task.advance()
    out = []
    for (structures, forces), of in zip(sets, files, strict=True):
        rows, at = np.empty((len(structures), 1 + kernel.DIRECTIONS * forces, width), np.float32), 0
        for file in of:
            part = np.load(file)
            rows[at : at + len(part)] = part
            at += len(part)
        out.append(rows)
    return out
