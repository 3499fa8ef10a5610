"""What says that a structure is charged or open-shell, in the words of every file and host. Only neutral closed shells are modelled yet."""

import numpy as np

# Keys in lower case with _ between words, and the values that stand for a neutral closed shell. Some call 2S + 1 the spin, some the number of
# unpaired electrons.
CHARGE = dict.fromkeys(
    ("charge", "charges", "total_charge", "totalcharge", "charge_total", "tot_charge", "net_charge", "netcharge", "molecular_charge", "mol_charge", "molcharge",
     "formal_charge", "system_charge", "q"), (0,),
)  # fmt: skip
MULTIPLICITY = dict.fromkeys(("multiplicity", "mult", "spin_multiplicity", "spin_mult", "spinmult", "molecular_multiplicity", "2s+1"), (1,))
SPIN = dict.fromkeys(("spin", "total_spin"), (0, 1)) | dict.fromkeys(
    ("uhf", "unpaired", "unpaired_electrons", "n_unpaired", "nunpaired", "num_unpaired", "magmom", "total_magmom", "magmom_total", "total_magnetization",
     "tot_magnetization"), (0,),
)  # fmt: skip
CLOSED = CHARGE | MULTIPLICITY | SPIN
ROUNDED = 1e-2  # by how much a number may be off from what it stands for


def _name(key):
    return str(key).lower().replace(" ", "_").replace("-", "_")


def charge_or_spin(info, charges=(), moments=(), numbers=None):
    """Why a structure is not neutral and closed-shell, or why what it says of that cannot be; None where it is.

    info : what a file or a host says, under the keys of CLOSED in any case
    charges, moments : of the atoms
    numbers : atomic numbers, to hold a multiplicity against
    """
    for key, value in _said(info):
        try:
            value = float(np.ravel(value)[0])
        except (TypeError, ValueError):
            return f"{key} is {value!r}, which is not a number"
        if np.isnan(value):
            continue  # nothing is said
        if min(abs(value - closed) for closed in CLOSED[_name(key)]) > ROUNDED:
            return f"{key} is {value:+g}; charged and open-shell structures are not modelled yet"
        if numbers is not None and _name(key) in MULTIPLICITY and np.sum(numbers) % 2:
            return f"{key} is {value:+g}, which {np.sum(numbers)} electrons cannot have"
    if abs(np.sum(charges)) > ROUNDED + 1e-3 * np.size(charges):  # each may be rounded
        return f"the charges of the atoms add up to {np.sum(charges):+g}; charged structures are not modelled yet"
    if np.any(np.abs(moments) > 1e-2):
        return "atoms have magnetic moments; open-shell structures are not modelled yet"
    return None


def _said(info):
    """What stands under one of the keys, but for arrays: a quadrupole may be called Q as well."""
    return [
        (key, value)
        for key, value in info.items()
        if _name(key) in CLOSED and value is not None and (isinstance(value, str) or np.size(value) == 1)
    ]


class Assumed:
    """What structures of a file do not say of charge and spin, and what is taken for it."""

    def __init__(self):
        self.structures = self.charge = self.odd = 0

    def add(self, structure):
        said = {_name(key) for key, _ in _said(structure.info)}
        self.structures += 1
        self.charge += not said & CHARGE.keys()
        self.odd += bool(np.sum(structure.numbers) % 2) and not said & (MULTIPLICITY | SPIN).keys()

    def sentences(self):
        if self.charge:
            yield f"{_structures(self.charge, 'name')} no charge, and {'is' if self.charge == 1 else 'are'} taken as neutral"
        if self.odd:
            yield (
                f"{_structures(self.odd, 'have')} an odd number of electrons and no multiplicity; taken is the lowest, a doublet, "
                "which the model does not tell from a closed shell"
            )


def _structures(n, verb):
    return f"{n:,} structures {verb}" if n > 1 else f"1 structure {'has' if verb == 'have' else verb + 's'}"
