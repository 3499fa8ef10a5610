"""Every label as soon as it is there: what a killed campaign goes on from."""

import json
import os
from pathlib import Path

import numpy as np

from mfmd.labelling.schema import LabelError

ISOLATED = "isolated "  # and the element: the id of an atom's energies


class Journal:
    """Labels as lines of JSON, each written at once; a line that a kill has cut short is none. LabelError : a damaged line"""

    def __init__(self, path):
        self.path, self.labels = Path(path), {}
        if self.path.exists():
            whole, _, cut = self.path.read_bytes().rpartition(b"\n")
            for k, line in enumerate(whole.splitlines(), 1):
                try:
                    row = json.loads(line)
                    if not isinstance(row["id"], str) or not isinstance(row["level"], str):
                        raise TypeError
                    if "error" not in row:
                        float(row["energy"])
                    self.labels[row["id"], row["level"]] = row
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise LabelError(f"{self.path}: line {k} is damaged; delete it, and the same command makes its label anew") from None
            if cut:
                os.truncate(self.path, self.path.stat().st_size - len(cut))

    def add(self, name, level, found, error, structure=None):
        """structure : fingerprint of what was labelled; none of an isolated atom. LabelError where it cannot be written; the lines before are as they were."""
        row = {"id": name, "level": level} | ({"structure": structure} if structure else {})
        row |= {"error": error} if found is None else {k: np.asarray(v).tolist() for k, v in found.items()}
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            if self.path.exists():
                os.truncate(self.path, size)
            raise LabelError(
                f"{self.path}: the label of {name} at level {level} could not be written ({problem.strerror}); those before it are kept: "
                "free some space and give the same command again"
            ) from None
        self.labels[name, level] = row

    def isolated(self):
        """{level: {symbol: eV}} of the isolated atoms."""
        out = {}
        for (key, name), row in self.labels.items():
            if key.startswith(ISOLATED) and "error" not in row:
                out.setdefault(name, {})[key.removeprefix(ISOLATED)] = row["energy"]
        return out

    def first_failure(self, level):
        """Why the first structure that has failed has no label at a level."""
        failed = (
            (key, row) for (key, name), row in self.labels.items() if name == level and "error" in row and not key.startswith(ISOLATED)
        )
        return next(f"{key}: {row['error']}" for key, row in failed)
