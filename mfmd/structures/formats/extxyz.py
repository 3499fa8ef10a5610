"""Extended XYZ, through ASE. A label is looked up in `info` and `arrays`, then, for files that call it plainly `energy`,
`forces` or `stress`, where ASE puts these."""

import itertools
import re

import ase.io

from mfmd.structures.formats.fields import frames_of, from_atoms
from mfmd.structures.record import DataError

NUMBER = r"[-+]?\d*\.\d+(?:[eEdD][-+]?\d+)?"
ENERGY = re.compile(rf"^\s*[-+]?\d+\s*$|\be(?:nergy|tot)?\s*[:=]\s*[-+]?\d|(?<![\w.]){NUMBER}(?![\w.])", re.IGNORECASE)


def read(path, levels):
    for k, atoms in frames_of(ase.io.iread(str(path), index=":", format="extxyz"), path, "extended XYZ"):
        places = (atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {})
        structure = from_atoms(atoms, places, levels, f"{path}: frame {k}")
        if k == 0 and levels and not structure["labels"]:
            _refuse_energy_in_comment(path, levels)
        yield structure


def _refuse_energy_in_comment(path, levels):
    """Plain XYZ, whose comment is free text: a number in it may be an energy, of whatever level and unit."""
    with open(path) as file:
        comment = [line.strip() for line in itertools.islice(file, 2)][-1]
    energy = ENERGY.search(comment)
    if energy is None or re.search(r"\w=\S", comment):  # a comment of key=value is extended XYZ
        return
    number = re.search(rf"{NUMBER}|[-+]?\d+", comment[energy.start() :])[0]
    key = next((own.energy for own in levels.values() if own.energy), "energy")
    raise DataError(
        f"{path}: frame 0: this is a plain XYZ file, and its comment {comment!r} is not read; write extended XYZ, "
        f"whose second line is here Properties=species:S:1:pos:R:3 {key}={number}"
    )
