"""What several commands give to --json."""

from pathlib import Path

UNITS = {"energy": "eV", "energy_per_atom": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}


def rows(errors, *names):
    """A list of dicts from {(…, kind of label): {"count", "mae", "rmse"}} in eV and Å; names : of what stands in the keys."""
    return [dict(zip(names, key, strict=True)) | row | {"unit": UNITS[key[-1]]} for key, row in errors.items()]


def files(folder):
    """Paths of the files that a run has left in its folder."""
    return sorted(str(path) for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
