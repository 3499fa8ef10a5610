"""Extended XYZ, through ASE. A label is looked up in `info` and `arrays`, then, for files that call it plainly `energy`,
`forces` or `stress`, where ASE puts these."""

import ase.io

from mfmd.structures.formats.fields import from_atoms
from mfmd.structures.record import DataError


def read(path, levels):
    frames = ase.io.iread(str(path), index=":", format="extxyz")
    k = -1
    while True:
        k += 1
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:  # ASE raises many kinds on a damaged file
            raise DataError(f"{path}: frame {k} cannot be read as extended XYZ ({error})") from error
        places = (atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {})
        yield from_atoms(atoms, places, levels, f"{path}: frame {k}")
