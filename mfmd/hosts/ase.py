"""ASE: `mfmd.Calculator`."""

import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from mfmd import units
from mfmd.engine import Engine, InputError, load_model
from mfmd.structures.charge import charge_or_spin


class Calculator(AseCalculator):
    """Energies, forces and stress of a trained model in ASE.

    Parameters
    ----------
    model : path of a `model.pt`
    head : level of theory; None for the highest the model has
    precision : "single", "double" or, on a CUDA device, "tf32" (see `mfmd.engine.Engine`); totals are double in all
    device : "cpu", "cuda" or "cuda:1"
    threads : at most this many; None for every core of the process
    report_heads : names of levels, or True for all: their energies (eV) go into results["heads"], at next to no cost

    Results
    -------
    energy, free_energy (eV), energies (atoms,) eV, forces (atoms, 3) eV/Å, stress (6,) eV/Å³ in Voigt order
    (only for structures periodic in three directions), heads {level: eV} on request, energy_error (eV, one standard
    deviation) where the head has error bars

    Raises
    ------
    ModelFileError : the model cannot be read
    InputError : unknown head, a charged or open-shell structure, an untrained element, overlapping atoms, a flat cell

    Copies and pickles carry the model itself, not its path.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
    default_parameters = {}

    def __init__(self, model, head=None, precision="single", device="cpu", threads=None, report_heads=()):
        super().__init__()
        self.head = head
        self.report_heads = [report_heads] if isinstance(report_heads, str) else report_heads
        self._open(load_model(model), precision, device, threads)

    def _open(self, model, precision, device, threads):
        self.engine = Engine(model, precision, device, threads)
        self.head = self.engine.levels[-1] if self.head is None else self.head
        extra = self.engine.levels if self.report_heads is True else self.report_heads
        self._terms = [(self.head, 1.0)] + [(level, 0.0) for level in extra]
        self.engine.terms(self._terms)  # an unknown head is told now

    def __getstate__(self):
        state = {k: v for k, v in self.__dict__.items() if k != "engine"}
        e = self.engine
        return state | {"_engine": (e.model.bytes, e.precision, e.device, e.threads)}

    def __setstate__(self, state):
        content, precision, device, threads = state.pop("_engine")
        self.__dict__.update(state)
        self._open(load_model(content), precision, device, threads)

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
        gradient = "forces" in properties or "stress" in properties
        out = self.engine.compute(
            atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc,
            terms=self._terms, forces=gradient, virial=gradient and periodic, atom_energies=True, error_bars=True,
        )  # fmt: skip
        self.results = {"energy": out["energy"], "free_energy": out["energy"], "energies": out["atom_energies"]}
        if np.isfinite(out["term_errors"][0]):
            self.results["energy_error"] = float(out["term_errors"][0])
        if gradient:
            self.results["forces"] = out["forces"]
            if periodic:
                self.results["stress"] = -units.voigt(out["virial"]) / atoms.get_volume()
        if len(self._terms) > 1:
            self.results["heads"] = {level: float(e) for (level, _), e in zip(self._terms[1:], out["term_energies"][1:], strict=True)}
