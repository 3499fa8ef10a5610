"""What every host must pass. A host inherits one of these classes and gives its numbers; without them it cannot be made.

Evaluates      energies and forces of a structure: archives that other programs load
Moves          and dynamics with it
OpenMMSystem   any System with the model in it
OpenMMForce    and what create_force offers: some of the atoms, heads and terms, parameters
"""

import abc
import copy
from concurrent.futures import ThreadPoolExecutor

import backends
import numpy as np
import pytest
from conftest import LEVELS, changed, ethanol, random_cell

from mfmd import units


def reduced(atoms):
    """The cell as OpenMM and GROMACS want it."""
    atoms.set_cell(np.diag(atoms.cell.lengths()) + [[0, 0, 0], [0.9, 0, 0], [-0.7, 0.5, 0]], scale_atoms=True)
    return atoms


STRUCTURES = {
    "molecule": ethanol,
    "box": lambda: reduced(random_cell(21, atoms=12)),
    "cell narrower than a cutoff": lambda: reduced(random_cell(23, small=True, atoms=5)),
}


BAD = {  # a structure and a head that must be refused, in these words
    "a head it does not have": (ethanol, "ccsd", "ccsd"),
    "an untrained element": (lambda: changed(numbers=26), "high", "is Fe, and head middle was trained on H C N O only"),
    "overlapping atoms": (lambda: changed(positions=ethanol().positions[1] + 0.1), "high", "atoms 0 and 1 overlap"),
    "a position that is no number": (lambda: changed(positions=np.nan), "high", "not finite|NaN|nan"),
    "a flat cell": (lambda: changed(cell=np.diag([9.0, 9.0, 1e-3])), "high", "the cell is flat"),
    "a charge": (
        lambda: changed(info={"charge": 1, "multiplicity": 2}),
        "high",
        "it has charge [+]1, multiplicity 2, and head middle was trained on neutral",
    ),
    "an open shell": (lambda: changed(info={"multiplicity": 3}), "high", "multiplicity 3, and head middle was trained on neutral"),
    "a multiplicity of other electrons": (
        lambda: changed(info={"multiplicity": 2}),
        "high",
        "multiplicity is 2, which 26 electrons cannot have",
    ),
}
STATES = {  # of charged_file
    "a cation": {"charge": 1, "multiplicity": 2},
    "an anion": {"charge": -1, "multiplicity": 2},
    "a triplet": {"charge": 0, "multiplicity": 3},
    "a neutral molecule": {"charge": 0, "multiplicity": 1},
}


class Evaluates(abc.ABC):
    needs = ()  # packages without which there is no such host
    heads = LEVELS  # that it can be asked for
    precisions = ("single", "double")
    rounding = {"single": 1e-5, "double": 1e-9}  # of energies, eV an atom, and of the largest force
    step = 1e-4  # Å, of finite differences
    slope = 1e-6  # what forces and stress may differ by from these, of the largest
    stress = False
    deaf = {}  # kinds of bad input that it cannot be told of, and why

    @pytest.fixture(autouse=True)
    def _installed(self):
        for package in self.needs:
            pytest.importorskip(package)

    @abc.abstractmethod
    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        """A function of ase.Atoms -> energy (eV), forces (eV/Å) and, where `stress` says so, stress (3, 3) eV/Å³. The atoms' info has `charge` and
        `multiplicity`, or neither."""

    @abc.abstractmethod
    def reopened(self, path, atoms, folder):
        """The energy of the last head, single precision; and that of a fresh process, from what the host has written."""

    @pytest.mark.parametrize("structure", STRUCTURES)
    @pytest.mark.parametrize("precision", ["single", "double"])
    def test_equals_the_engine(self, any_model, tmp_path, precision, structure):
        if precision not in self.precisions:
            pytest.skip(f"its numbers are {' and '.join(self.precisions)}")
        atoms = STRUCTURES[structure]()
        energy, forces, virial = backends.engine(any_model, "high", "double", "table")(atoms)
        e, f, *s = self.evaluator(any_model, "high", precision, tmp_path)(atoms)
        bound = self.rounding[precision]
        assert abs(e - energy) < bound * len(atoms)
        np.testing.assert_allclose(f, forces, rtol=bound, atol=bound * np.abs(forces).max() * 3)
        if self.stress and atoms.pbc.all():
            np.testing.assert_allclose(s[0], -virial / atoms.get_volume(), atol=bound * np.abs(virial).max() / atoms.get_volume() * 3)

    def test_every_head(self, model_file, tmp_path):
        precision, atoms = self.precisions[-1], ethanol()
        for head in self.heads:
            wanted = backends.engine(model_file, head, "double", "table")(atoms)[0]
            assert self.evaluator(model_file, head, precision, tmp_path)(atoms)[0] == pytest.approx(
                wanted, abs=9 * self.rounding[precision]
            )

    def test_forces_and_stress_by_finite_differences(self, any_model, tmp_path):
        atoms, h = STRUCTURES["box"](), self.step
        compute = self.evaluator(any_model, "high", self.precisions[-1], tmp_path)
        _, forces, *stress = compute(atoms)
        for i, a in ((0, 0), (3, 1), (7, 2), (9, 0)):
            slope = backends.slope_along(compute, atoms, i, a, h)
            assert forces[i, a] == pytest.approx(-slope, abs=self.slope * np.abs(forces).max())
        for a, b in ((0, 0), (1, 2)) if self.stress else ():
            slope = backends.slope_of_strain(compute, atoms, a, b, h) / atoms.get_volume()
            assert stress[0][a, b] == pytest.approx(slope, abs=self.slope * np.abs(stress[0]).max())

    def test_survives_into_a_fresh_process(self, any_model, tmp_path):
        here, there = self.reopened(any_model, ethanol(), tmp_path)
        assert here == there

    def test_states(self, charged_file, tmp_path):
        """One evaluator, a structure in one state after the other: what the engine has for each, and for a radical that does not say what it is."""
        compute, bound = self.evaluator(charged_file, "high", self.precisions[-1], tmp_path), self.rounding[self.precisions[-1]]
        energies = []
        for said in (*STATES.values(), {}, {"charge": 1}, {"charge": -1}):
            atoms = changed(info=said)
            energy, forces, _ = backends.engine(charged_file, "high", "double", "table")(atoms)
            e, f, *_ = compute(atoms)
            assert abs(e - energy) < bound * len(atoms), said
            np.testing.assert_allclose(f, forces, rtol=bound, atol=bound * np.abs(forces).max() * 3)
            energies.append(energy)
        assert len(set(energies)) == len(STATES)

    def test_unseen_states(self, charged_file, tmp_path):
        atoms = changed(info={"charge": 2, "multiplicity": 1})
        with pytest.raises(
            Exception,
            match="it has charge [+]2, multiplicity 1, and head middle was trained on charge 0, multiplicity 1; .*allow_unseen_state",
        ):
            self.evaluator(charged_file, "high", self.precisions[-1], tmp_path)(atoms)
        compute = self.evaluator(charged_file, "high", self.precisions[-1], tmp_path, allow_unseen_state=True)
        wanted = backends.engine(charged_file, "high", "double", "table", allow_unseen_state=True)(atoms)[0]
        assert compute(atoms)[0] == pytest.approx(wanted, abs=9 * self.rounding[self.precisions[-1]])

    @pytest.mark.parametrize("state", ["a cation", "a triplet"])
    def test_a_state_survives_into_a_fresh_process(self, charged_file, tmp_path, state):
        here, there = self.reopened(charged_file, changed(info=STATES[state]), tmp_path)
        assert here == there

    @pytest.mark.parametrize("kind", BAD)
    def test_refuses(self, model_file, tmp_path, kind):
        if kind in self.deaf:
            pytest.skip(self.deaf[kind])
        make, head, words = BAD[kind]
        with pytest.raises(Exception, match=words):
            self.evaluator(model_file, head, self.precisions[-1], tmp_path)(make())


class Moves(Evaluates):
    restart = 0.0  # Å, what a restart may change

    @abc.abstractmethod
    def walk(self, path, atoms, steps, parts, folder):
        """Positions after steps of 0.5 fs without a thermostat, from rest, at level gfn2, and the total energy (eV) then. Of several parts each
        begins with what the one before has written."""

    def start(self):
        atoms = ethanol()
        atoms.rattle(0.03, seed=3)
        return atoms

    def test_a_restarted_run_is_the_run_in_one(self, trained, tmp_path):
        whole, _ = self.walk(trained[0], self.start(), 40, 1, tmp_path / "whole")
        parts, _ = self.walk(trained[0], self.start(), 40, 2, tmp_path / "parts")
        if self.restart:
            np.testing.assert_allclose(parts, whole, rtol=0, atol=self.restart)
        else:
            assert np.array_equal(parts, whole)
        assert np.abs(whole - self.start().positions).max() > 0.01

    def test_energy_is_conserved(self, trained, tmp_path):
        before, after = (self.walk(trained[0], self.start(), steps, 1, tmp_path / str(steps))[1] for steps in (0, 400))
        assert abs(after - before) < 5e-4 * 9


class OpenMMSystem(Moves):
    needs = ("openmm",)
    platform = "Reference"

    @abc.abstractmethod
    def system(self, path, atoms, head, precision, threads=None, **options):
        """The System, in the state that the atoms say."""

    @property
    @abc.abstractmethod
    def prepare(self):
        """The Python line that makes the host usable in a process, before a System is deserialised there."""

    def context(self, path, atoms, head, precision, threads=None, **options):
        return backends.context_of_system(self.system(path, atoms, head, precision, threads, **options), atoms, self.platform, 0.0005)

    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        return lambda atoms: backends.energy_and_forces(self.context(path, atoms, head, precision, allow_unseen_state=allow_unseen_state))

    def reopened(self, path, atoms, folder):
        import openmm

        c = self.context(path, atoms, "high", "single")
        (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(c.getSystem()))
        (folder / "state.xml").write_text(openmm.XmlSerializer.serialize(c.getState(positions=True)))
        code = f"""
import sys
import mfmd
{self.prepare}
import openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("{self.platform}"))
context.setPositions(openmm.XmlSerializer.deserialize(open(sys.argv[2]).read()).getPositions())
print(repr(context.getState(energy=True).getPotentialEnergy()._value))
"""
        printed = backends.output(code, folder / "system.xml", folder / "state.xml")
        return c.getState(energy=True).getPotentialEnergy()._value, float(printed)

    def walk(self, path, atoms, steps, parts, folder):
        system = self.system(path, atoms, "gfn2", "double", threads=1)
        c = backends.context_of_system(system, atoms, self.platform, 0.0005)
        for part in range(parts):
            if part:
                saved = c.createCheckpoint()
                c = backends.context_of_system(copy.deepcopy(system), atoms, self.platform, 0.0005)
                c.loadCheckpoint(saved)
            c.getIntegrator().step(steps // parts)
        state = c.getState(energy=True, positions=True)
        total = (state.getPotentialEnergy() + state.getKineticEnergy())._value / units.KJ_PER_MOL
        return state.getPositions(asNumpy=True)._value * units.ANGSTROM_PER_NM, total

    def test_contexts_in_threads(self, trained):
        """Three contexts of one System at the same time give the bits of one alone."""
        system = self.system(trained[0], ethanol(), "cctz", "double", threads=1)

        def walk(_):
            c = backends.context_of_system(system, ethanol(), self.platform, 0.0005)
            c.getIntegrator().step(50)
            return c.getState(positions=True).getPositions(asNumpy=True)._value

        with ThreadPoolExecutor(3) as pool:
            runs = list(pool.map(walk, range(3)))
        assert all(np.array_equal(runs[0], run) for run in runs)


class OpenMMForce(OpenMMSystem):
    kind = None  # what create_force(host=…) takes
    derivatives = True  # of the energy in global parameters

    def system(self, path, atoms, head, precision, threads=None, **options):
        import mfmd

        return mfmd.openmm.create_system(
            path, backends.topology(atoms), head, self.kind, precision, threads, **backends.said(atoms), **options
        )

    def force(self, path, atoms, chosen=None, **options):
        import mfmd

        return mfmd.openmm.create_force(path, backends.topology(atoms), chosen, host=self.kind, precision="double", **options)

    def test_subset_of_atoms(self, model_file):
        """The model sees the chosen atoms alone and pushes no other."""
        atoms, chosen = ethanol(), [6, 1, 2, 8, 0]
        c = backends.context_of_force(self.force(model_file, atoms, chosen, head="low"), atoms, self.platform)
        energy, forces, _ = backends.engine(model_file, "low", radial="table")(atoms[chosen])
        e, f = backends.energy_and_forces(c)
        assert e == pytest.approx(energy, rel=1e-12)
        np.testing.assert_allclose(f[chosen], forces, atol=1e-9)
        assert not np.delete(f, chosen, axis=0).any()

    @pytest.mark.parametrize("structure", ["molecule", "box"])
    def test_from_one_head_to_another(self, model_file, structure):
        """E(λ) = (1 - λ) E_a + λ E_b, dE/dλ = E_b - E_a to 1e-10, and forces by finite differences at three λ."""
        from openmm import unit

        atoms = STRUCTURES[structure]()
        ends = [backends.engine(model_file, head, radial="table")(atoms)[0] * units.KJ_PER_MOL for head in ("low", "high")]
        c = backends.context_of_force(self.force(model_file, atoms, heads=("low", "high")), atoms, self.platform)
        start = atoms.positions / units.ANGSTROM_PER_NM
        assert c.getParameter("mfmd_lambda") == 1.0
        for value in (0.0, 0.3, 1.0):
            c.setParameter("mfmd_lambda", value)
            c.setPositions(start)
            state = c.getState(energy=True, forces=True, parameterDerivatives=self.derivatives)
            assert state.getPotentialEnergy()._value == pytest.approx((1 - value) * ends[0] + value * ends[1], rel=1e-10)
            if self.derivatives:
                assert state.getEnergyParameterDerivatives()["mfmd_lambda"] == pytest.approx(ends[1] - ends[0], rel=1e-10)
            forces, h, energies = state.getForces(asNumpy=True)._value, 1e-5, []
            for sign in (1, -1):
                moved = start.copy()
                moved[1, 0] += sign * h
                c.setPositions(moved * unit.nanometer)
                energies.append(c.getState(energy=True).getPotentialEnergy()._value)
            assert forces[1, 0] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-6 * np.abs(forces).max())

    def test_terms_of_one_model(self, model_file):
        """Weights, two parameters, and a group of their own: what a multiple-time-step or a free-energy scheme puts together."""
        atoms = ethanol()
        low, middle, high = (backends.engine(model_file, head, radial="table")(atoms)[0] for head in ("low", "middle", "high"))
        terms = [("low", -1.0), ("middle", 0.5, "a"), ("high", 2.0, "b"), ("low", 0.25, "b")]
        force = self.force(model_file, atoms, terms=terms, parameters={"a": 0.2, "b": 1.5})
        force.setForceGroup(3)
        c = backends.context_of_force(force, atoms, self.platform)
        c.setParameter("a", 0.4)
        expected = -low + 0.4 * 0.5 * middle + 1.5 * (2 * high + 0.25 * low)
        assert c.getState(energy=True, groups={3}).getPotentialEnergy()._value / units.KJ_PER_MOL == pytest.approx(expected, rel=1e-12)
        assert c.getState(energy=True, groups={0}).getPotentialEnergy()._value == 0.0
        if self.derivatives:
            slopes = c.getState(energy=True, parameterDerivatives=True).getEnergyParameterDerivatives()
            assert slopes["a"] / units.KJ_PER_MOL == pytest.approx(0.5 * middle, rel=1e-10)
            assert slopes["b"] / units.KJ_PER_MOL == pytest.approx(2 * high + 0.25 * low, rel=1e-10)
