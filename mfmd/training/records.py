"""Structures as records of 8-byte words, the pairs of a cutoff among them, so that a batch is gathered from many by arithmetic."""

import dataclasses
import os

import numpy as np
from ase.geometry import wrap_positions

from mfmd import progress, whole
from mfmd.engine import neighbor_list
from mfmd.structures.packed import Packed
from mfmd.structures.record import KINDS
from mfmd.structures.state import state_terms

FIELDS = ("numbers", "positions", "states", "fragments", "volume", "images", "pairs")  # of a record, before the labels of its levels


def half_pairs(structure, cutoff):
    """One of each pair and its reverse, ascending in i: i, j, S @ cell."""
    i, j, shifts, _ = neighbor_list(structure.positions, structure.cell, structure.pbc, cutoff)
    forward = (i < j) | ((i == j) & _positive(shifts))
    cell = np.where(np.asarray(structure.pbc)[:, None], structure.cell, 0.0)
    return i[forward], j[forward], shifts[forward] @ cell


def _positive(shifts):
    return (shifts[:, 0] > 0) | ((shifts[:, 0] == 0) & ((shifts[:, 1] > 0) | ((shifts[:, 1] == 0) & (shifts[:, 2] > 0))))


def centred(s):
    """The structure about the origin, atoms of a crystal in its cell: distances are as good in single precision wherever it lies."""
    positions = wrap_positions(s.positions, s.cell, s.pbc, eps=0) if np.any(s.pbc) else s.positions
    return dataclasses.replace(s, positions=positions - positions.mean(0))


def record(s, levels, cutoff):
    """A structure as words: the length of each of its fields, then the fields; a label that is missing has the length zero.

    A row of pairs is i, j, which of the images its S @ cell is, and the pairs once more in the order of j.
    """
    s = centred(s)
    i, j, shifts = half_pairs(s, cutoff)
    images, image = np.unique(shifts, axis=0, return_inverse=True) if np.any(s.pbc) else (np.zeros((1, 3)), np.zeros_like(i))
    terms = state_terms(s.states)
    fields = [
        np.asarray(s.numbers, np.int64),
        s.positions,
        terms[s.fragment if np.size(s.fragment) else np.zeros(len(s.numbers), int)],
        terms.sum(0),
        [abs(np.linalg.det(s.cell)) if np.all(s.pbc) else 1.0],
        images,
        np.stack([i, j, image.ravel(), np.argsort(j, kind="stable")], axis=1).astype(np.int32).view(np.int64),
    ]
    for level in levels:
        values = [getattr(s.labels[level], kind) if level in s.labels else None for kind in KINDS]
        fields += [() if value is None else value for value in values]
    fields = [np.ravel(f if np.asarray(f).dtype == np.int64 else np.asarray(f, float)).view(np.int64) for f in fields]
    return np.concatenate([[len(f) for f in fields], *fields])


def spans(first, count):
    """first[0], first[0] + 1, … count[0] of them, first[1], …"""
    ends = np.cumsum(count)
    return np.repeat(first - ends + count, count) + np.arange(ends[-1])


class Held:
    """Records in memory."""

    def __init__(self, structures, levels, cutoff):
        words, starts = bytearray(), []
        for s in structures:
            starts.append(len(words) // 8)
            words += record(s, levels, cutoff).tobytes()
        self.levels, self.words, self.starts = list(levels), np.frombuffer(words, np.int64), np.array(starts)

    def take(self, which):
        """Words, and where in them the records asked for begin."""
        return self.words, self.starts[which]


class Filed:
    """Records beside the file of a Packed, which are written where they are missing or of other levels or another cutoff."""

    def __init__(self, packed, levels, cutoff):
        path = packed.path.with_suffix(".pairs")
        index = packed.path.with_suffix(".pairs.npz")
        if not _is_of(index, levels, cutoff):
            _write(path, index, packed.path, levels, cutoff)
        self.levels, self.ends, self.file = list(levels), np.load(index)["ends"], os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "file"):
            os.close(self.file)

    def take(self, which):
        ends = self.ends[which]
        lengths = ends - np.where(which > 0, self.ends[which - 1], 0)
        read = [os.pread(self.file, length, start) for length, start in zip(lengths.tolist(), (ends - lengths).tolist(), strict=True)]
        return np.frombuffer(b"".join(read), np.int64), (np.cumsum(lengths) - lengths) // 8


def _is_of(index, levels, cutoff):
    if not index.exists():
        return False
    with np.load(index) as written:
        return written["levels"].tolist() == list(levels) and written["cutoff"] == cutoff


def _write(path, index, packed, levels, cutoff):
    index.unlink(missing_ok=True)
    ends = []
    with whole.writing(path) as file:
        for s in progress.over(Packed(packed), "finding the pairs", "structures"):
            file.write(record(s, levels, cutoff).tobytes())
            ends.append(file.tell())
    with whole.writing(index) as file:
        np.savez(file, ends=np.array(ends, np.int64), levels=np.array(list(levels)), cutoff=cutoff)
