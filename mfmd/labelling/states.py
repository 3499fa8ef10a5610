"""Charge and multiplicity of a structure that is labelled: what it says itself, and what the config says of it."""

from ase.data import ground_state_magnetic_moments

from mfmd.engine import states_of
from mfmd.labelling.schema import LabelError
from mfmd.structures.formats.fields import from_atoms
from mfmd.structures.state import FRAGMENTS, NEUTRAL, SPIN, State, StateError, name, read_states

OF_CONFIG = {
    "charge": "Total-Charge",
    "multiplicity": "Spin-Multiplicity",
}  # what the config says, beside what a structure says under keys of its own
IN_WORDS = dict.fromkeys(OF_CONFIG.values(), "the config") | {"data.spin of a config": "spin in the config"}


def state_of(atoms, said=None, spin=None):
    """The State of a structure as a whole; of a lone neutral atom that of its ground state.

    Parameters
    ----------
    atoms : ase.Atoms; said : {"charge": …, "multiplicity": …} of the config, or one of them; spin : what the key spin of the structure is, 2S or 2S+1

    Raises
    ------
    LabelError : it cannot be, may mean two things or contradicts the config; fragments have states, and nothing says that of the whole
    """
    own = from_atoms(atoms, (), {}, "")
    info = own["info"] | {OF_CONFIG[key]: value for key, value in (said or {}).items()}
    whole = {key: value for key, value in info.items() if name(key) not in FRAGMENTS}
    fragment, given = own["fragment"], {"charges": own["charges"], "moments": own["moments"], "spin": spin}
    try:
        (found,), _, unsaid = read_states(atoms.numbers, whole, pbc=atoms.pbc, **given)
        if len(whole) < len(info) or len(fragment):
            if unsaid:
                raise LabelError(f"fragments have states, and a label is of the whole; say its {' and '.join(sorted(unsaid))} too")
            read_states(atoms.numbers, info, fragment=fragment, pbc=atoms.pbc, **given)
        if not _is_lone(atoms, found):
            return found
        ground = 1 + round(ground_state_magnetic_moments[atoms.numbers[0]])
        ((_, as_said),), _, unsaid = read_states(atoms.numbers, whole, pbc=True, **given)  # where an atom by itself is nothing special
    except StateError as error:
        words = str(error)
        for key, meant in IN_WORDS.items():
            words = words.replace(key, meant)
        raise LabelError(words) from None
    if "multiplicity" not in unsaid and as_said != ground:
        raise LabelError(f"the multiplicity is {as_said}, and the ground state of the atom, which is what is labelled, has {ground}")
    return State(0, ground)


def _is_lone(atoms, found):
    return len(atoms) == 1 and found.charge == 0 and not atoms.pbc.any()


def settle(atoms, said, spin):
    """Put the state of a structure under charge and multiplicity, where it is no neutral closed shell or lone atom; `said`, `spin`: of the config.
    LabelError : see `state_of`"""
    found = state_of(atoms, said, spin)
    if spin is not None:
        for key in [key for key in atoms.info if name(key) in SPIN]:
            del atoms.info[key]
    if found != NEUTRAL and not _is_lone(atoms, found):
        atoms.info |= found._asdict()


def is_usual(atoms):
    """Whether a structure is neutral and in its lowest multiplicity, or a lone neutral atom."""
    found = state_of(atoms)
    return _is_lone(atoms, found) or [found] == states_of(atoms.numbers, [(0, 0)], (), bool(atoms.pbc.any()))
