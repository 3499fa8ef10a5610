"""ASE: `mfmd.Calculator`."""

import dataclasses
import threading
import warnings
import weakref

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes, compare_atoms

from mfmd import Note, units
from mfmd.engine import Alarm, Engine, InputError, load_model
from mfmd.hosts.states import assumed, of_structure
from mfmd.structures.state import StateError, spelled


@dataclasses.dataclass
class _Found:
    """An evaluation: of what, and what came of it."""

    atoms: Atoms | None = None
    results: dict = dataclasses.field(default_factory=dict)
    heads: dict = dataclasses.field(default_factory=dict)
    energy_error: float | None = None
    outside: str | None = None
    asked: weakref.ref | None = None  # the user's atoms, which may move on


class Calculator(AseCalculator):
    """Energies, forces and stress of a trained model in ASE.

    Parameters
    ----------
    model : path of a `model.pt`, or "mfmd:chno", which comes along (H, C, N and O; `mfmd info mfmd:chno` prints its card)
    head : level of theory; None for the highest the model has
    precision : "single", "double" or, on a CUDA device, "tf32" (see `mfmd.engine.Engine`); totals are double in all
    device : "cpu", "cuda" or "cuda:1"
    threads : at most this many; None for every core of the process
    report_heads : names of levels, or True for all: their energies (eV) go into `heads`, at next to no cost
    allow_unseen_state : whether charges and multiplicities that a head was not trained on are evaluated all the same

    Charge and multiplicity are those that the atoms say: in `atoms.info` (charge, multiplicity, and what files call them), as initial charges and
    magnetic moments, or of fragments, `atoms.arrays["fragment"]` with `atoms.info["fragments"] = [(1, 1), (0, 1)]`. Where nothing is said a structure is
    neutral and of the lowest multiplicity, which is told once (mfmd.Note) where its electrons are odd or the model knows other states.

    Results
    -------
    energy, free_energy (eV), energies (atoms,) eV, forces (atoms, 3) eV/Å, stress (6,) eV/Å³ in Voigt order (only for structures periodic in
    three directions): all of them of one evaluation, whichever is asked for first. Beside `results`, of the same evaluation:

    heads : {level: eV} of report_heads
    energy_error : eV, one standard deviation, or None where the head has no error bars
    outside : None, or a sentence that says where and how the structure is far outside what the model was trained on; the first such structure
        is also told by a warning (mfmd.Extrapolation), and again one that is twice as far

    Threads may share a calculator: each has results of its own, and they take turns to evaluate. What one thread has found another sees that has asked
    for nothing itself, or whose atoms have moved to where it was found.

    Raises
    ------
    ModelFileError : the model cannot be read
    InputError : unknown head, charges and spins that contradict each other or the electrons, a state that a head was not trained on, an untrained
        element, overlapping atoms, a flat cell

    Calculators of the same model share its weights. Pickles carry the model itself, not its path.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
    default_parameters = {}

    def __init__(self, model, head=None, precision="single", device="cpu", threads=None, report_heads=(), allow_unseen_state=False):
        self._own, self._newest = threading.local(), _Found()
        super().__init__()
        self._own = threading.local()  # nothing has been found yet
        self.engine = Engine(load_model(model), precision, device, threads, allow_unseen_state=allow_unseen_state)
        self.head = self.engine.levels[-1] if head is None else head
        extra = self.engine.levels if report_heads is True else [report_heads] if isinstance(report_heads, str) else report_heads or ()
        self._terms = [(self.head, 1.0)] + [(level, 0.0) for level in extra]
        self.engine.terms(self._terms)  # an unknown head is told now
        self._alarm, self._told = Alarm(), False

    def __getstate__(self):
        state = {key: value for key, value in self.__dict__.items() if key != "_own"}
        return state | {"_newest": dataclasses.replace(self._found, asked=None)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._own = threading.local()

    @property
    def _found(self):
        """The last evaluation of this thread; of any thread, where this one has made none, or its atoms have moved to what another has evaluated."""
        own, newest = getattr(self._own, "found", None), self._newest
        if own is None or own is newest:
            return newest
        atoms = own.asked and own.asked()
        if atoms is not None and _changes(own.atoms, atoms) and not _changes(newest.atoms, atoms):
            return newest
        return own

    @_found.setter
    def _found(self, found):
        self._own.found = found

    @property
    def atoms(self):
        return self._found.atoms

    @atoms.setter
    def atoms(self, atoms):
        self._found = _Found(atoms, self._found.results)

    @property
    def results(self):
        return self._found.results

    @results.setter
    def results(self, results):
        self._found = _Found(self._found.atoms, results)

    @property
    def heads(self):
        return self._found.heads

    @property
    def energy_error(self):
        return self._found.energy_error

    @property
    def outside(self):
        return self._found.outside

    def get_property(self, name, atoms=None, allow_calculation=True):
        self._found = self._found  # until it has been answered, whatever other threads find
        return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms, tol=1e-15):
        """ASE asks before it takes results of before."""
        return _changes(self.atoms, atoms, tol)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        asked = None if atoms is None else weakref.ref(atoms)
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        states, fragment, unsaid = _states(atoms)
        periodic = bool(atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError("stress needs a structure that is periodic in three directions")
        (out,) = self.engine.compute_batch(
            [(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)], states=[spelled(states, fragment)],
            terms=self._terms, virial=periodic, atom_energies=True, error_bars=True, domain=True,
        )  # fmt: skip
        results = {"energy": out["energy"], "free_energy": out["energy"], "energies": out["atom_energies"], "forces": out["forces"]}
        if periodic:
            results["stress"] = -units.voigt(out["virial"]) / atoms.get_volume()
        heads = {level: float(e) for (level, _), e in zip(self._terms[1:], out["term_energies"][1:], strict=True)}
        error = float(out["term_errors"][0]) if np.isfinite(out["term_errors"][0]) else None
        self._found = self._newest = _Found(atoms, results, heads, error, out["outside"], asked)
        self._alarm.tell(out, self.head, out["term_errors"][0])
        if not self._told and (words := assumed(unsaid, states[0], self.engine.states)):
            self._told = True
            warnings.warn(f"{words} (atoms.info: charge, multiplicity)", Note, stacklevel=2)


def _states(atoms):
    """States of its fragments, the fragment of each atom or (), and what nothing says."""
    try:
        return of_structure(atoms)
    except StateError as error:
        raise InputError(str(error)) from None


def _changes(before, now, tol=1e-15):
    """What ASE compares, and the state, which it does not."""
    changes = compare_atoms(before, now, tol)
    if changes:
        return changes
    (states, fragment, _), (others, other, _) = _states(before), _states(now)
    return [] if states == others and np.array_equal(fragment, other) else ["state"]
