"""The fields of a Structure out of what a file holds."""

import numpy as np

from mfmd.structures.record import DataError, Label


def labels_of(places, levels, source):
    """{level: Label} of what stands under the levels' keys in any of the mappings `places`; the first that has a key counts."""

    def value(key):
        return next((np.asarray(place[key], float) for place in places if key in place), None)

    labels = {}
    for name, keys in levels.items():
        try:
            energy, forces, stress = (value(key) for key in (keys.energy, keys.forces, keys.stress))
        except (TypeError, ValueError) as error:
            raise DataError(f"{source}: a label of level {name} is not a number ({error})") from None
        if stress is not None and stress.size == 9:
            stress = stress.reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if any(v is not None for v in (energy, forces, stress)):
            labels[name] = Label(None if energy is None else energy[()], forces, stress)
    return labels


def from_atoms(atoms, places, levels, source):
    """The dict of an ase.Atoms."""
    return {
        "numbers": atoms.numbers.copy(),
        "positions": atoms.positions.copy(),
        "cell": np.asarray(atoms.cell).copy(),
        "pbc": atoms.pbc.copy(),
        "labels": labels_of(places, levels, source),
        "source": source,
        "info": dict(atoms.info),
        "charges": atoms.get_initial_charges(),
        "moments": atoms.get_initial_magnetic_moments(),
    }
