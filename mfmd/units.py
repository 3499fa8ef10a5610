"""Units and constants, once. Inside mfmd: Å, eV, eV/Å, amu; stress = (1/V) dE/dstrain in eV/Å³, Voigt xx yy zz yz xz xy.

Values: CODATA 2018.
"""

import numpy as np

# How many eV, or Å, one of the named unit is.
ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": 27.211386245988,
    "kcal/mol": 4184.0 / 96485.33212331001,
    "kJ/mol": 1000.0 / 96485.33212331001,
}
LENGTH = {"Å": 1.0, "Angstrom": 1.0, "nm": 10.0, "Bohr": 0.529177210903}

KJ_PER_MOL = 1.0 / ENERGY["kJ/mol"]  # kJ/mol in one eV
ANGSTROM_PER_NM = LENGTH["nm"]


def voigt(matrix):
    """(..., 3, 3) symmetric matrices as (..., 6) vectors, xx yy zz yz xz xy (the order of ASE)."""
    matrix = np.asarray(matrix)
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return 0.5 * (matrix[..., rows, columns] + matrix[..., columns, rows])
