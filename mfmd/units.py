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
PRESSURE = {"GPa": 1.0 / 160.2176634, "kbar": 0.1 / 160.2176634, "bar": 1e-4 / 160.2176634}  # eV/Å³

# What files call them, in lower case.
_ENERGIES = {name.lower(): value for name, value in ENERGY.items()} | dict.fromkeys(
    ("ha", "eh", "hartrees", "e_h", "au", "a.u.", "atomic units"), ENERGY["Hartree"]
)
_ENERGIES |= dict.fromkeys(("electronvolt", "electron volt"), 1.0) | {
    "kilojoule/mole": ENERGY["kJ/mol"],
    "kilocalorie/mole": ENERGY["kcal/mol"],
}
_LENGTHS = {name.lower(): value for name, value in LENGTH.items()} | dict.fromkeys(("a", "ang", "angstroms"), 1.0)
_LENGTHS |= dict.fromkeys(("a0", "bohrs", "au", "a.u.", "atomic units"), LENGTH["Bohr"])

BOHR = LENGTH["Bohr"]
COULOMB = ENERGY["Hartree"] * BOHR  # eV Å, e²/(4π ε0)
KJ_PER_MOL = 1.0 / ENERGY["kJ/mol"]  # kJ/mol in one eV
ANGSTROM_PER_NM = LENGTH["nm"]
KJ_PER_MOL_NM = KJ_PER_MOL * ANGSTROM_PER_NM  # kJ/mol/nm in one eV/Å


def voigt(matrix):
    """(..., 3, 3) symmetric matrices as (..., 6) vectors, xx yy zz yz xz xy (the order of ASE)."""
    matrix = np.asarray(matrix)
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return 0.5 * (matrix[..., rows, columns] + matrix[..., columns, rows])


def energy(name):
    """How many eV one of the unit is. ValueError for one that is not known."""
    return _value(name, _ENERGIES, "of energy", ENERGY)


def length(name):
    """How many Å one of the unit is. ValueError as `energy`."""
    return _value(name, _LENGTHS, "of length", LENGTH)


def force(name):
    """How many eV/Å one of the unit is, such as eV/Å, Hartree/Bohr, kcal/mol/Å. ValueError as `energy`."""
    numerator, slash, denominator = str(name).rpartition("/")
    if not slash or not denominator:
        raise ValueError(f"{name!r} is no unit of force; write an energy over a length, such as eV/Å, Hartree/Bohr or kcal/mol/Å")
    return energy(numerator) / length(denominator)


def stress(name):
    """How many eV/Å³ one of the unit is: GPa, kbar, bar, or an energy over a volume, such as eV/Å³ or Hartree/Bohr³. ValueError as `energy`."""
    if (known := {key.lower(): value for key, value in PRESSURE.items()}.get(str(name).lower())) is not None:
        return known
    numerator, slash, denominator = str(name).rpartition("/")
    for power in ("^3", "**3", "³", "3"):
        if slash and denominator.endswith(power):
            return energy(numerator) / length(denominator.removesuffix(power)) ** 3
    raise ValueError(f"{name!r} is no unit of stress; there are {', '.join(PRESSURE)} and energies over a volume, such as eV/Å³")


def _value(name, values, of, known):
    found = values.get(str(name).strip().lower())
    if found is None:
        raise ValueError(f"{name!r} is no unit {of}; there are {', '.join(known)}")
    return found
