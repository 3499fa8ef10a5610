"""Extended XYZ, through ASE. A label is looked up in `info` and `arrays`, then, for files that call it plainly `energy`,
`forces` or `stress`, where ASE puts these."""

import itertools
import os
import re

import ase.io

from mfmd.structures.formats.fields import frames_of, from_atoms
from mfmd.structures.record import DataError

NUMBER = r"[-+]?\d*\.\d+(?:[eEdD][-+]?\d+)?"
ENERGY = re.compile(rf"^\s*[-+]?\d+\s*$|\be(?:nergy|tot)?\s*[:=]\s*[-+]?\d|(?<![\w.]){NUMBER}(?![\w.])", re.IGNORECASE)


def read(path, levels):
    check_counts(path)
    for k, atoms in frames_of(ase.io.iread(str(path), index=":", format="extxyz"), path, "extended XYZ"):
        places = (atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {})
        structure = from_atoms(atoms, places, levels, f"{path}: frame {k}")
        if k == 0 and levels and not structure["labels"]:
            _refuse_energy_in_comment(path, levels)
        yield structure


def check_counts(path):
    """DataError where the first line of a frame says more atoms than the file has bytes, which ASE does not see."""
    size = os.path.getsize(path)
    with open(path, errors="replace") as file:
        for line in file:
            count = line.strip()
            if not count.isdecimal():
                continue
            if len(count) > len(str(size)) or int(count) > size:
                raise DataError(f"{path}: a frame is to have {count[:20]} atoms, and the file has {size} bytes; is it cut off or damaged?")
            next(itertools.islice(file, int(count), int(count) + 1), None)  # its comment and its atoms


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
