"""What says that a structure is charged or open-shell, in the words of every file and host."""

import numpy as np


def charge_or_spin(info, charges=(), moments=()):
    """Why a structure is not neutral and closed-shell, which is all that is modelled yet; None where it is.

    info : of ase.Atoms; charge, total_charge, spin (0 or 1), total_spin (1: a multiplicity), multiplicity, spin_multiplicity
    charges, moments : of the atoms
    """
    closed = {"charge": (0,), "total_charge": (0,), "spin": (0, 1), "total_spin": (0, 1), "multiplicity": (1,), "spin_multiplicity": (1,)}
    for key, values in closed.items():
        if info.get(key) is None:
            continue
        try:
            value = float(info[key])
        except (TypeError, ValueError):
            return f"{key} is {info[key]!r}, which is not a number"
        if value not in values:
            return f"{key} is {value:+g}; charged and open-shell structures are not modelled yet"
    if abs(np.sum(charges)) > 1e-2:
        return f"the charges of the atoms add up to {np.sum(charges):+g}; charged structures are not modelled yet"
    if np.any(np.abs(moments) > 1e-2):
        return "atoms have magnetic moments; open-shell structures are not modelled yet"
    return None
