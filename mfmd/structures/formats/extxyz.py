"""Extended XYZ, through ASE. A label is looked up in `info` and `arrays`, then, for files that call it plainly `energy`,
`forces` or `stress`, where ASE puts these."""

import itertools
import re
import sys

import ase.io
from ase.io.formats import open_with_compression

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
    """DataError where the first line of a frame says more atoms than the file has lines, which ASE does not see."""
    with open_with_compression(str(path), "rb") as file:
        for line in file:
            try:
                count = int(line)
            except ValueError:
                if not line.strip():
                    return  # the end, to ASE too
                continue
            lines = sum(1 for _ in itertools.islice(file, min(max(count, 0) + 1, sys.maxsize)))  # its comment and its atoms
            if lines < count:
                raise DataError(
                    f"{path}: a frame is to have {count} atoms, and the file ends {lines} lines later; is it cut off or damaged?"
                )


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
