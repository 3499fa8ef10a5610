"""Sets of structures larger than memory: packed into a file once, read from there one by one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors

from mfmd import whole
from mfmd.engine import states_of
from mfmd.structures.record import KINDS, Label, Structure
from mfmd.structures.state import State


class Packed(Sequence):
    """Structures in a file. structures[5] is read when asked for, structures[5:9] is a list of such, structures.subset(indices) one more Packed.

    path : what `pack` has written; index : which of its structures, in which order, by default all
    """

    def __init__(self, path, index=None):
        self.path = Path(path)
        self.ends = np.load(self.path.with_suffix(".npy"))
        self.index = np.arange(len(self.ends)) if index is None else np.asarray(index)
        self.file = os.open(self.path, os.O_RDONLY)
        self.dropped = {}  # level: structures of the file whose label is left out

    def __del__(self):
        if hasattr(self, "file"):
            os.close(self.file)

    def subset(self, indices):
        part = Packed(self.path, self.index[indices])
        part.dropped = self.dropped
        return part

    def drop_label(self, k, level):
        """Leave out the label of a level of structure k, here and in every subset."""
        self.dropped.setdefault(level, set()).add(int(self.index[k]))

    def __len__(self):
        return len(self.index)

    def __getitem__(self, k):
        if isinstance(k, slice):
            return [self[n] for n in range(*k.indices(len(self)))]
        record = int(self.index[k])
        start = int(self.ends[record - 1]) if record else 0
        structure = _load(os.pread(self.file, int(self.ends[record]) - start, start))
        for level, left_out in self.dropped.items():
            if record in left_out:
                structure.labels.pop(level, None)
        return structure


def pack(structures, path):
    """Write an iterable of structures; the file is there when it is whole. Their info is not kept."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = []
    with whole.writing(path) as file:
        for s in structures:
            file.write(_dump(s))
            ends.append(file.tell())
        with whole.writing(path.with_suffix(".npy")) as index:
            np.save(index, np.array(ends, dtype=np.int64))
    return Packed(path)


def _dump(s):
    arrays = {"numbers": np.asarray(s.numbers), "positions": s.positions, "cell": np.asarray(s.cell, float), "pbc": np.asarray(s.pbc, bool)}
    for level, label in s.labels.items():
        arrays |= {f"{kind}.{level}": np.asarray(getattr(label, kind), float) for kind in KINDS if getattr(label, kind) is not None}
    arrays |= {"states": np.array(s.states), "fragment": np.asarray(s.fragment, np.int32)}
    arrays["source"] = np.frombuffer(json.dumps(s.source).encode(), np.uint8)
    return safetensors.save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def _load(record):
    arrays = safetensors.load(record)
    labels = {}
    for key, value in arrays.items():
        kind, _, level = key.partition(".")
        if level:
            setattr(labels.setdefault(level, Label()), kind, value.item() if kind == "energy" else value)
    source = json.loads(arrays["source"].tobytes())
    structure = Structure(arrays["numbers"], arrays["positions"], arrays["cell"], arrays["pbc"], labels, source)
    if "states" in arrays:
        structure.states, structure.fragment = tuple(State(*pair) for pair in arrays["states"].tolist()), arrays["fragment"]
    else:  # packed before there were any: all were neutral
        structure.states = tuple(State(*pair) for pair in states_of(structure.numbers, [(0, 0)], (), bool(structure.pbc.any())))
    return structure
