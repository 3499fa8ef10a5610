"""What a label costs: as given, or a power of the number of electrons through what `mfmd label` has recorded."""

import warnings

import numpy as np

from mfmd import Note
from mfmd.labelling.journal import Journal

FAR = 1.5  # times the electrons of the largest structure whose label's cost is recorded, beyond which a cost is told to be a guess


def electrons(structure):
    return int(np.sum(structure.numbers)) - structure.charge


def recorded(folders, structures):
    """{level: [(electrons, CPU-seconds)]} of the labels in the journals of folders of `mfmd label`, of structures that are known by their id."""
    by_id, out = {str(s.info["id"]): electrons(s) for s in structures if "id" in s.info}, {}
    for folder in folders:
        for (key, level), row in Journal(folder / "labels.jsonl").labels.items():
            if key in by_id and row.get("cpu_seconds", 0) > 0:
                out.setdefault(level, []).append((by_id[key], row["cpu_seconds"]))
    return out


def power(pairs):
    """(factor, power) of seconds = factor · electrons**power, least squares of logarithms; the power is 0 where all are of one size."""
    x, y = np.log(np.array(pairs, float).T)
    slope = 0.0 if np.ptp(x) == 0 else float(np.polyfit(x, y, 1)[0])
    return float(np.exp(np.mean(y) - slope * np.mean(x))), slope


def seconds(level, pairs, structures):
    """(structures,) CPU-seconds of a label of a level, by what is recorded; a Note where structures are far larger than those of the record."""
    n = np.array([electrons(s) for s in structures], float)
    factor, slope = power(pairs)
    largest = max(size for size, _ in pairs)
    if n.max() > FAR * largest:
        warnings.warn(
            f"the cost of a label of level {level} is recorded for up to {largest} electrons, and candidates have up to {n.max():.0f}; taken is that it goes "
            f"with their power {slope:.2f} (--cost {level}=SECONDS says otherwise)",
            Note,
            stacklevel=2,
        )
    return factor * n**slope
