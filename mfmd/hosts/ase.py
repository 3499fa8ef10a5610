"""ASE: `mfmd.Calculator`."""

import threading
import warnings

import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from mfmd import Extrapolation, units
from mfmd.engine import Engine, InputError, load_model
from mfmd.structures.charge import charge_or_spin


class _OfThread(threading.local):
    """What a calculator found last, in this thread; made anew with every other structure."""

    def __init__(self, atoms=None, results=None):
        self.atoms, self.results = atoms, {} if results is None else results
        self.heads, self.energy_error, self.outside = {}, None, None


class Calculator(AseCalculator):
    """Energies, forces and stress of a trained model in ASE.

    Parameters
    ----------
    model : path of a `model.pt`
    head : level of theory; None for the highest the model has
    precision : "single", "double" or, on a CUDA device, "tf32" (see `mfmd.engine.Engine`); totals are double in all
    device : "cpu", "cuda" or "cuda:1"
    threads : at most this many; None for every core of the process
    report_heads : names of levels, or True for all: their energies (eV) go into `heads`, at next to no cost

    Results
    -------
    energy, free_energy (eV), energies (atoms,) eV, forces (atoms, 3) eV/Å, stress (6,) eV/Å³ in Voigt order (only for structures periodic in
    three directions): all of them of one evaluation, whichever is asked for first. Beside `results`, of the same evaluation:

    heads : {level: eV} of report_heads
    energy_error : eV, one standard deviation, or None where the head has no error bars
    outside : None, or a sentence that says where and how the structure is far outside what the model was trained on; the first such structure
        is also told by a warning (mfmd.Extrapolation)

    Threads may share a calculator: each has results of its own, and they take turns to evaluate.

    Raises
    ------
    ModelFileError : the model cannot be read
    InputError : unknown head, a charged or open-shell structure, an untrained element, overlapping atoms, a flat cell

    Calculators of the same model share its weights. Pickles carry the model itself, not its path.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
    default_parameters = {}

    def __init__(self, model, head=None, precision="single", device="cpu", threads=None, report_heads=()):
        self._own = _OfThread()
        super().__init__()
        self.engine = Engine(load_model(model), precision, device, threads)
        self.head = self.engine.levels[-1] if head is None else head
        extra = self.engine.levels if report_heads is True else [report_heads] if isinstance(report_heads, str) else report_heads or ()
        self._terms = [(self.head, 1.0)] + [(level, 0.0) for level in extra]
        self.engine.terms(self._terms)  # an unknown head is told now
        self._told = False

    def __getstate__(self):
        return self.__dict__ | {"_own": dict(self._own.__dict__)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._own = _OfThread()
        self._own.__dict__.update(state["_own"])

    @property
    def atoms(self):
        return self._own.atoms

    @atoms.setter
    def atoms(self, atoms):
        self._own.atoms = atoms

    @property
    def results(self):
        return self._own.results

    @results.setter
    def results(self, results):
        self._own.__init__(self._own.atoms, results)

    @property
    def heads(self):
        return self._own.heads

    @property
    def energy_error(self):
        return self._own.energy_error

    @property
    def outside(self):
        return self._own.outside

    def check_state(self, atoms, tol=1e-15):
        """ASE asks before it takes results of before, and a charge is none of what it compares."""
        if reason := charge_or_spin(atoms.info, atoms.get_initial_charges(), atoms.get_initial_magnetic_moments(), atoms.numbers):
            raise InputError(reason)
        return super().check_state(atoms, tol)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        self.check_state(atoms)  # of a caller that asks for it directly
        periodic = bool(atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError("stress needs a structure that is periodic in three directions")
        out = self.engine.compute(
            atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc,
            terms=self._terms, virial=periodic, atom_energies=True, error_bars=True, domain=True,
        )  # fmt: skip
        self.results = {"energy": out["energy"], "free_energy": out["energy"], "energies": out["atom_energies"], "forces": out["forces"]}
        if periodic:
            self.results["stress"] = -units.voigt(out["virial"]) / atoms.get_volume()
        self._own.heads = {level: float(e) for (level, _), e in zip(self._terms[1:], out["term_energies"][1:], strict=True)}
        self._own.energy_error = float(out["term_errors"][0]) if np.isfinite(out["term_errors"][0]) else None
        self._own.outside = out["outside"]
        if self.outside and not self._told:
            self._told = True
            bar = "" if self.energy_error is None else f"; the error bar of {self.head} is {self.energy_error:.3f} eV"
            warnings.warn(self.outside + bar, Extrapolation, stacklevel=2)
