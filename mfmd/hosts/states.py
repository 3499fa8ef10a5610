"""Charge and multiplicity as hosts say them: of atoms of an OpenMM topology, and what is told where nobody has said them."""

import json
import warnings
from typing import NamedTuple

import numpy as np

from mfmd import Note
from mfmd.engine import InputError
from mfmd.structures.state import NEUTRAL, StateError, read_states, said_of, spelled


def of_structure(atoms, computed=None):
    """read_states of ase.Atoms; computed : as for said_of.

    Raises
    ------
    StateError : as read_states
    """
    return read_states(atoms.numbers, pbc=atoms.pbc, **said_of(atoms, computed))


def assumed(unsaid, state, seen, whose="the structure"):
    """A sentence on a charge and multiplicity that were taken where nothing is said, or None where that is of no account.

    unsaid : of read_states; state : the State; seen : Engine.states; whose : what the sentence begins with
    """
    others = any(tuple(one) != NEUTRAL for states in seen.values() for one in states)
    if not unsaid or not (others or ("multiplicity" in unsaid and state.multiplicity > 1)):
        return None
    return f"{whose} says no {' and no '.join(sorted(unsaid))}; it is taken with {told(state)}"


def told(*states):
    return "; ".join(
        f"charge {charge:+d}, multiplicity {multiplicity}" if charge else f"charge 0, multiplicity {multiplicity}"
        for charge, multiplicity in states
    )


ENTRY = "mfmd.states.json"  # of an archive for a host that says none


def archived(states, fragment=()):
    """What such an archive has under this name."""
    return json.dumps({"states": [[int(value) for value in state] for state in states], "fragment": [int(k) for k in fragment]})


class Said(NamedTuple):
    """Of some atoms of a topology: the states of their fragments, and which of these each atom is of, or () where there is one."""

    states: tuple
    fragment: np.ndarray | tuple = ()

    @property
    def spelled(self):
        """As Engine.compute_batch takes it."""
        return spelled(self.states, self.fragment)

    @property
    def arguments(self):
        """As create_force takes it."""
        return {"fragments": self.spelled} if np.size(self.fragment) else self.states[0]._asdict()

    def mark(self, atoms):
        """ase.Atoms, with what read_states reads as this."""
        if np.size(self.fragment):
            atoms.arrays["fragment"], atoms.info["fragments"] = self.fragment, np.array(self.states)
        elif self.states[0] != NEUTRAL:
            atoms.info |= self.states[0]._asdict()
        return atoms


def of_atoms(atoms, part, periodic, seen, charge=None, multiplicity=None, fragments=None):
    """What is Said of atoms of an openmm.app.Topology.

    Parameters
    ----------
    atoms : those that the model acts on
    part : whether there are others; a part is a molecule, whatever box it is in
    periodic : whether the box counts
    seen : Engine.states
    charge : None for the sum of the formal charges that the topology says
    multiplicity : 2S + 1; None for the lowest that the electrons can have
    fragments : instead of these (atoms of the topology, charge, multiplicity) of each, all atoms being of one

    Raises
    ------
    InputError : formal charges of all atoms that add up to another charge, a part with an odd number of electrons whose charge nothing says, a multiplicity
        that the electrons cannot have, fragments that are none of the atoms
    """
    periodic = periodic and not part
    if fragments is None:
        state, unsaid = _state(atoms, charge, multiplicity, periodic)
        if part and len(unsaid) == 2 and state.multiplicity == 2:
            raise InputError(
                f"the {len(atoms)} atoms of the model's part have an odd number of electrons, and neither charge= nor a formal charge says why; "
                "say charge=, and multiplicity= too if they are a radical"
            )
        if words := assumed(unsaid, state, seen):
            warnings.warn(words, Note, stacklevel=5)
        return Said((state,))
    if charge is not None or multiplicity is not None:
        raise InputError("fragments say the charges and multiplicities; leave out charge and multiplicity")
    place, fragment = {atom.index: k for k, atom in enumerate(atoms)}, np.full(len(atoms), -1, np.int32)
    states = []
    for k, (members, *said) in enumerate(fragments):
        for atom in members:
            if atom not in place:
                raise InputError(f"fragment {k} has atom {atom}, which is none of the model's")
            if fragment[place[atom]] >= 0:
                raise InputError(f"atom {atom} stands in fragments {fragment[place[atom]]} and {k}")
            fragment[place[atom]] = k
        try:
            states.append(_state([atoms[place[atom]] for atom in members], *said, periodic)[0])
        except InputError as error:
            raise InputError(f"fragment {k}: {error}") from None
    if np.any(fragment < 0):
        raise InputError(f"atom {atoms[int(np.argmin(fragment))].index} is in none of the fragments")
    return Said(tuple(states), fragment)


def _state(atoms, charge, multiplicity, periodic):
    """The State of atoms, and what nobody has said of it."""
    formal = [atom.formalCharge for atom in atoms if getattr(atom, "formalCharge", None) is not None]
    words = f"the formal charges of the atoms add up to {sum(formal):+d}, and charge is {charge}"
    if charge is not None and formal and sum(formal) != charge:
        if len(formal) == len(atoms):
            raise InputError(f"{words}; correct one of them")
        warnings.warn(f"{words}, which is taken: {len(atoms) - len(formal)} of {len(atoms)} atoms have no formal charge", stacklevel=6)
    if charge is None and formal:
        charge = sum(formal)
    numbers = np.array([atom.element.atomic_number for atom in atoms])
    try:
        (state,), _, unsaid = read_states(numbers, {"charge": charge, "multiplicity": multiplicity}, pbc=periodic)
    except StateError as error:
        raise InputError(str(error)) from None
    return state, unsaid
