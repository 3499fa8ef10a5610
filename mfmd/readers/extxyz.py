"""Extended XYZ, through ASE."""

import ase.io
import numpy as np

from mfmd.data import DataError, Label


def read(path, levels):
    """Yield one dict a frame: numbers, positions, cell, pbc, labels {level: Label}, source, info.

    Parameters
    ----------
    levels : {name: object with the attributes energy, forces, stress: the keys of the labels}; a key is looked up in
        `info` and `arrays`, then, for files that call it plainly `energy`, `forces` or `stress`, where ASE puts these.
    """
    frames = ase.io.iread(str(path), index=":", format="extxyz")
    k = -1
    while True:
        k += 1
        try:
            atoms = next(frames)
        except StopIteration:
            if k == 0:
                raise DataError(f"{path}: the file holds no structure") from None
            return
        except Exception as error:  # ASE raises many kinds on a damaged file
            raise DataError(f"{path}: frame {k} cannot be read as extended XYZ ({error})") from error
        places = (atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {})
        labels = {}
        for name, keys in levels.items():
            try:
                energy, forces, stress = (_value(places, key) for key in (keys.energy, keys.forces, keys.stress))
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}: frame {k}: a label of level {name} is not a number ({error})") from None
            if stress is not None and stress.size == 9:
                stress = stress.reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            if any(v is not None for v in (energy, forces, stress)):
                labels[name] = Label(None if energy is None else energy[()], forces, stress)
        yield {
            "numbers": atoms.numbers.copy(),
            "positions": atoms.positions.copy(),
            "cell": np.asarray(atoms.cell).copy(),
            "pbc": atoms.pbc.copy(),
            "labels": labels,
            "source": f"{path}: frame {k}",
            "info": dict(atoms.info),
            "charges": atoms.get_initial_charges(),
            "moments": atoms.get_initial_magnetic_moments(),
        }


def _value(places, key):
    for place in places:
        if key in place:
            return np.asarray(place[key], float)
    return None
