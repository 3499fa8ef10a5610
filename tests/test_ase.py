"""What ASE users do with the calculator, beyond what every host must pass."""

import pickle

import ase.build
import numpy as np
import pytest
from backends import python
from conftest import ethanol, random_cell

import mfmd


def test_relaxation_of_a_crystal_and_a_path(model_file, trained):
    """FrechetCellFilter lowers the energy; NEB runs with a calculator per image."""
    from ase.filters import FrechetCellFilter
    from ase.mep import NEB
    from ase.optimize import BFGS

    atoms = random_cell(31, small=True, atoms=5)
    atoms.calc = mfmd.Calculator(model_file, "low", "double")
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(steps=5)
    assert atoms.get_potential_energy() < before

    ends = [ethanol(), ethanol()]
    ends[1].rattle(0.05, seed=1)
    images = [ends[0]] + [ends[0].copy() for _ in range(3)] + [ends[1]]
    calculator = mfmd.Calculator(trained[0], "dft")
    for image in images:
        image.calc = pickle.loads(pickle.dumps(calculator))
    neb = NEB(images, method="improvedtangent")
    neb.interpolate()
    BFGS(neb, logfile=None).run(fmax=0.5, steps=5)
    assert np.isfinite([image.get_potential_energy() for image in images]).all()


def test_copies_of_the_calculator(model_file, tmp_path):
    import copy
    import shutil

    path = shutil.copy(model_file, tmp_path / "gone.pt")
    calculator = mfmd.Calculator(path, "low", "double", report_heads=True)
    atoms = ethanol()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    assert set(calculator.heads) == {"low", "middle", "high"}
    assert calculator.heads["low"] == pytest.approx(energy, rel=1e-14)
    import os

    os.remove(path)
    for other in (copy.copy(calculator), copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        again = ethanol()
        again.calc = other
        assert again.get_potential_energy() == energy


def test_ase_results(model_file):
    atoms = random_cell(33, atoms=7)
    atoms.calc = mfmd.Calculator(model_file)
    assert atoms.calc.head == "high"
    assert atoms.get_potential_energy() == atoms.calc.results["free_energy"]
    assert atoms.calc.results["energies"].sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert atoms.get_stress().shape == (6,)
    with pytest.raises(Exception, match="stress needs"):
        molecule = ethanol()
        molecule.calc = mfmd.Calculator(model_file)
        molecule.get_stress()


def test_ase_never_imports_torch(model_file):
    code = """
import sys, mfmd, ase.build
atoms = ase.build.molecule("CH3CH2OH")
atoms.calc = mfmd.Calculator(sys.argv[1])
atoms.get_forces()
assert "torch" not in sys.modules and "openmm" not in sys.modules
"""
    run = python(code, model_file)
    assert run.returncode == 0, run.stderr


def test_threads_share_a_calculator(model_file):
    """Each thread its own molecule: energies, forces and what stands beside them are those of this molecule, and of no other thread's."""
    from concurrent.futures import ThreadPoolExecutor

    shared = mfmd.Calculator(model_file, "low", "double", threads=1, report_heads=True)
    molecules = [ethanol()[:n] for n in range(2, 10)]
    wanted = []
    for atoms in molecules:
        atoms.calc = mfmd.Calculator(model_file, "low", "double", threads=1, report_heads=True)
        wanted.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.calc.heads["high"]))

    def wrong(k):
        atoms, bad = molecules[k].copy(), 0
        atoms.calc = shared
        for _ in range(60):
            shared.reset()
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            bad += energy != wanted[k][0] or not np.array_equal(forces, wanted[k][1])
            bad += shared.heads["high"] != wanted[k][2] or len(shared.results["energies"]) != len(atoms) or shared.atoms != atoms
        return bad

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(wrong, range(8))) == [0] * 8


def test_what_another_thread_found_is_seen(model_file, tmp_path):
    """Workers compute and this thread writes: results are there, and those of the atoms as they are now; also through a pool of processes."""
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    import ase.io
    from ase.optimize import BFGS

    def relax(atoms):
        BFGS(atoms, logfile=None).run(fmax=0.0, steps=2)
        return atoms

    fresh, asked = ethanol(), ethanol()
    for atoms in (fresh, asked):
        atoms.calc = mfmd.Calculator(model_file, "low", "double", threads=1, report_heads=True)
    before = asked.get_potential_energy()
    with ThreadPoolExecutor(1) as pool:
        relaxed = list(pool.map(relax, (fresh, asked)))
    with ProcessPoolExecutor(1) as pool:
        relaxed += list(pool.map(_energy_of, relaxed[:1]))
    for k, atoms in enumerate(relaxed):
        wanted = atoms.copy()
        wanted.calc = mfmd.Calculator(model_file, "low", "double")
        energy = wanted.get_potential_energy()
        assert atoms.calc.results["energy"] == atoms.calc.heads["low"] == energy != before
        assert np.array_equal(atoms.calc.results["forces"], wanted.get_forces())
        ase.io.write(tmp_path / f"{k}.xyz", atoms, format="extxyz")
        assert ase.io.read(tmp_path / f"{k}.xyz").get_potential_energy() == pytest.approx(energy, abs=1e-7)


def _energy_of(atoms):
    atoms.rattle(0.02, seed=5)
    atoms.get_forces()
    return atoms


def test_one_evaluation_for_energy_forces_and_stress(model_file, monkeypatch):
    atoms = random_cell(33, atoms=7)
    atoms.calc = mfmd.Calculator(model_file)
    calls = []
    compute = atoms.calc.engine.compute_batch
    monkeypatch.setattr(atoms.calc.engine, "compute_batch", lambda *a, **k: calls.append(1) or compute(*a, **k))
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()
    assert len(calls) == 1
    atoms.rattle(0.01)
    atoms.get_stress(), atoms.get_potential_energy()
    assert len(calls) == 2


def test_a_state_that_changes_is_another_calculation(charged_file):
    """However it is said; what is not said is taken, and told once a calculator."""
    atoms, energies = ethanol(), {}
    atoms.calc = mfmd.Calculator(charged_file, "low", "double")
    with pytest.warns(mfmd.Note, match="no charge and no multiplicity; it is taken with charge 0, multiplicity 1") as told:
        energies["nothing"] = atoms.get_potential_energy()
        atoms.info["total_charge"] = 1
        energies["charge"] = atoms.get_potential_energy()
    assert len(told) == 1
    atoms.info = {"spin multiplicity": 3}
    energies["triplet"] = atoms.get_potential_energy()
    atoms.info = {}
    assert atoms.get_potential_energy() == energies["nothing"]
    atoms.set_initial_charges([0.0] * 2 + [1.0] + [0.0] * 6)
    assert atoms.get_potential_energy() == energies["charge"]
    atoms.set_initial_charges(None)
    atoms.set_initial_magnetic_moments([1.0, 1.0] + [0.0] * 7)
    assert atoms.get_potential_energy() == energies["triplet"] != energies["charge"]
    atoms.info["charge"] = 1
    with pytest.raises(mfmd.Error, match="multiplicity is 3, which 25 electrons cannot have"):
        atoms.get_potential_energy()
    atoms.set_initial_magnetic_moments(None)
    atoms.info["q"] = -1
    with pytest.raises(mfmd.Error, match="charge says the charge 1, and q says -1"):
        atoms.get_forces()


def test_fragments_and_single_atoms(charged_file):
    """An ion beside a molecule, out of reach: the energies of both; other fragments are another calculation. A neutral atom has its E0, and says nothing."""
    import warnings

    calculator = mfmd.Calculator(charged_file, "low", "double")

    def energy(atoms):
        atoms.calc = calculator
        return atoms.get_potential_energy()

    water, hydroxyl = ase.build.molecule("H2O"), ase.build.molecule("OH")
    hydroxyl.info |= {"charge": -1}
    hydroxyl.set_initial_magnetic_moments(None)
    hydroxyl.info["multiplicity"] = 1
    calculator = mfmd.Calculator(charged_file, "low", "double", allow_unseen_state=True)
    both = water + hydroxyl
    both.positions[3:] += 50.0
    both.set_initial_magnetic_moments(None)
    both.info = {"fragments": [(0, 1), (-1, 1)]}
    both.arrays["fragment"] = np.array([0, 0, 0, 1, 1])
    apart = energy(both)
    assert apart == pytest.approx(energy(water) + energy(hydroxyl), abs=1e-9)
    both.arrays["fragment"][:] = [1, 1, 1, 0, 0]
    both.info["fragments"] = [(-1, 1), (0, 1)]
    assert energy(both) == pytest.approx(apart, abs=1e-9)
    both.info["fragments"] = [(1, 1), (0, 1)]
    assert abs(energy(both) - apart) > 0.1
    both.arrays["fragment"] = np.array([0, 0, 0, 1, 2])
    with pytest.raises(mfmd.Error, match="fragment"):
        energy(both)
    with warnings.catch_warnings(action="error"):
        assert energy(ase.Atoms("H")) == pytest.approx(-13.6, abs=1e-9)


def test_an_assumption_is_told_where_it_matters(model_file, charged_file):
    """Odd electrons, or a model that knows other states; not where all is said or nothing else can be."""
    import warnings

    for path, said, told in (
        (model_file, {}, None),
        (charged_file, {"charge": 0, "multiplicity": 1}, None),
        (charged_file, {"charge": 1}, "no multiplicity; it is taken with charge +1, multiplicity 2"),
    ):
        atoms = ethanol()
        atoms.info |= said
        atoms.calc = mfmd.Calculator(path, "low")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            atoms.get_forces()
        assert [told in str(w.message) for w in caught] == [True] * bool(told), caught
    radical = ethanol()[:8]
    radical.calc = mfmd.Calculator(model_file, "low")
    with pytest.warns(mfmd.Note, match="taken with charge 0, multiplicity 2"):
        radical.get_potential_energy()


@pytest.fixture(params=["plain", "heads", "error bars"])
def everything(request, model_file, tmp_path):
    """A calculator with every option on, and without."""
    if request.param != "error bars":
        return mfmd.Calculator(model_file, "low", "double", report_heads=request.param == "heads")
    from conftest import random_model, write

    from mfmd.training.heads import MLPHead

    model = random_model()
    model.heads["middle"] = MLPHead(32, 60.0, model.heads["middle"].e0, False, members=5)
    return mfmd.Calculator(write(model.eval(), tmp_path / "ensemble.pt"), "middle", "double", report_heads=True)


def test_results_are_in_the_words_of_ase(everything, tmp_path):
    """What ASE, and programs on top of it, do with results: SinglePointCalculator, get_properties (i-PI's driver), trajectories, extended XYZ."""
    import ase.io
    from ase.calculators.calculator import all_outputs, all_properties
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.trajectory import Trajectory

    for atoms in (ethanol(), random_cell(33, atoms=7)):
        atoms.calc = everything
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert set(everything.results) <= set(all_properties) & set(all_outputs)
        assert SinglePointCalculator(atoms, **everything.results).get_property("energy", atoms) == energy
        properties = atoms.get_properties(["energy", "forces"] + ["stress"] * bool(atoms.pbc.all()))
        assert properties["energy"] == energy and everything.export_properties()["free_energy"] == energy
        with Trajectory(tmp_path / "out.traj", "w", atoms) as file:
            file.write()
        ase.io.write(tmp_path / "out.xyz", atoms, format="extxyz")
        for path in ("out.traj", "out.xyz"):
            again = ase.io.read(tmp_path / path)
            assert again.get_potential_energy() == pytest.approx(energy) and np.allclose(again.get_forces(), forces, atol=1e-7)
    assert (everything.energy_error is not None) == (everything.head == "middle")


def test_a_path_with_one_calculator(everything):
    """NEB's own way to share one: its images keep their results."""
    from ase.mep import NEB
    from ase.optimize import BFGS

    images = [ethanol() for _ in range(5)]
    images[-1].rattle(0.05, seed=1)
    for image in images:
        image.calc = everything
    neb = NEB(images, method="improvedtangent", allow_shared_calculator=True)
    neb.interpolate()
    BFGS(neb, logfile=None).run(fmax=0.5, steps=2)
    assert np.isfinite([image.get_potential_energy() for image in images]).all()


def test_a_socket_client(everything):
    """ASE's side of i-PI's protocol."""
    from threading import Thread

    from ase.calculators.socketio import SocketClient, SocketIOCalculator

    atoms, there = random_cell(33, atoms=7), random_cell(33, atoms=7)
    there.calc = everything
    alone = mfmd.Calculator(everything.engine.model, everything.head, "double")
    name = f"mfmd-{id(everything)}"
    with SocketIOCalculator(unixsocket=name) as driver:
        client = Thread(target=lambda: SocketClient(unixsocket=name).run(there, use_stress=True))
        client.start()
        atoms.calc = driver
        for _ in range(2):
            atoms.rattle(0.02)
            energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
            same = atoms.copy()
            same.calc = alone
            assert energy == pytest.approx(same.get_potential_energy(), rel=1e-12)
            np.testing.assert_allclose(forces, same.get_forces(), atol=1e-9)
            np.testing.assert_allclose(stress, same.get_stress(), atol=1e-9)
    client.join(30)
    assert not client.is_alive()


def test_many_calculators_cost_one_model(tmp_path):
    """200 of one file, half of them copied with their atoms, in a process of its own: memory, and whose weights they are."""
    from conftest import random_model, write

    path = write(random_model(channels=128), tmp_path / "model.pt")
    code = """
import copy, resource, sys
import ase.build, mfmd
from mfmd.engine import load_model
def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
def one():
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = mfmd.Calculator(sys.argv[1])
    atoms.get_forces()
    return atoms
atoms = one()
before = used()
others = [one() for _ in range(100)] + [copy.deepcopy(atoms) for _ in range(100)]
for other in others:
    other.calc.reset()
assert len({id(a.calc.engine.model) for a in others}) == 1
assert all(a.get_potential_energy() == atoms.get_potential_energy() for a in others)
print(used() - before)
"""
    run = python(code, path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 20  # MB
