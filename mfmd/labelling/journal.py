"""Every label as soon as it is there: what a killed campaign goes on from."""

import json
import os
from pathlib import Path

import numpy as np


class Journal:
    """Labels as lines of JSON, each written at once; a line that a kill has cut short is none."""

    def __init__(self, path):
        self.path, self.labels = Path(path), {}
        if self.path.exists():
            text = self.path.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():
                row = json.loads(line)
                self.labels[row["id"], row["level"]] = row
            if not text.endswith("\n"):
                self.path.write_text(text[: text.rfind("\n") + 1])

    def add(self, name, level, found, error):
        row = {"id": name, "level": level} | ({"error": error} if found is None else {k: np.asarray(v).tolist() for k, v in found.items()})
        self.labels[name, level] = row
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
