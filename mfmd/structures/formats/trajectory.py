"""Trajectories of ASE. A label is looked up in `info` and `arrays`, then in what the calculator had computed."""

import ase.io

from mfmd.structures.formats.fields import frames_of, from_atoms


def read(path, levels):
    for k, atoms in frames_of(ase.io.iread(str(path), index=":", format="traj"), path, "an ASE trajectory"):
        places = (atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {})
        yield from_atoms(atoms, places, levels, f"{path}: frame {k}")
