"""One body for every host: ASE, plain TorchScript, TorchForce, PythonForce."""

import pickle
import subprocess
import sys

import backends
import numpy as np
import pytest
from conftest import ethanol, random_cell

import mfmd
from mfmd import units
from mfmd.engine import InputError


@pytest.fixture(params=backends.HOSTS)
def host(request):
    if request.param in backends.NEEDS:
        pytest.importorskip(backends.NEEDS[request.param])
    return backends.HOSTS[request.param]


def python(code, *arguments):
    """Run code in a fresh process."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("structure", ["molecule", "box"])
def test_equals_the_engine(host, model_file, precision, structure):
    atoms = ethanol() if structure == "molecule" else lower_triangular(random_cell(21, atoms=12))
    energy, forces, _ = backends.engine(model_file, "high", "double", "table")(atoms)
    e, f = host(model_file, "high", precision)(atoms)
    tolerance = {"single": 1e-5, "double": 1e-9}[precision]
    assert abs(e - energy) < tolerance * len(atoms)
    np.testing.assert_allclose(f, forces, rtol=tolerance, atol=tolerance * np.abs(forces).max() * 3)


def lower_triangular(atoms):
    """The cell as OpenMM wants it, in reduced form."""
    atoms.set_cell(np.diag(atoms.cell.lengths()) + [[0, 0, 0], [0.9, 0, 0], [-0.7, 0.5, 0]], scale_atoms=True)
    return atoms


@pytest.mark.parametrize("name", ["torchforce", "pythonforce"])
def test_openmm_forces_by_finite_differences(model_file, name):
    """In OpenMM's units, kJ/mol and nm: step 1e-5 nm, error below 1e-6 of the largest force (double, Reference)."""
    pytest.importorskip(backends.NEEDS[name])
    from openmm import unit

    atoms = lower_triangular(random_cell(22, atoms=10))
    c = backends.context(model_file, "high", atoms, {"torchforce": "torch", "pythonforce": "python"}[name])
    start = atoms.positions / units.ANGSTROM_PER_NM
    forces = c.getState(forces=True).getForces(asNumpy=True)._value
    h = 1e-5
    for i, a in ((0, 0), (3, 1), (7, 2), (9, 0)):
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[i, a] += sign * h
            c.setPositions(moved * unit.nanometer)
            ends.append(c.getState(energy=True).getPotentialEnergy()._value)
        assert forces[i, a] == pytest.approx(-(ends[0] - ends[1]) / (2 * h), abs=1e-6 * np.abs(forces).max())


def test_ase_forces_and_stress_by_finite_differences(model_file):
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = random_cell(23, small=True, atoms=5)
    atoms.calc = mfmd.Calculator(model_file, "high", "double")
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6 * np.abs(forces).max())
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5, voigt=False), atol=1e-6 * np.abs(stress).max())


@pytest.mark.parametrize("kind", ["torch", "python"])
def test_subset_of_atoms(model_file, kind):
    """The model sees the chosen atoms alone and pushes no other."""
    pytest.importorskip({"torch": "openmmtorch", "python": "openmm"}[kind])

    atoms = ethanol()
    chosen = [6, 1, 2, 8, 0]
    force = mfmd.openmm.create_force(model_file, backends.topology(atoms), chosen, "low", kind, "double")
    c = backends.context_of_force(force, atoms)
    state = c.getState(energy=True, forces=True)
    energy, forces, _ = backends.engine(model_file, "low", radial="table")(atoms[chosen])
    assert state.getPotentialEnergy()._value / units.KJ_PER_MOL == pytest.approx(energy, rel=1e-12)
    got = state.getForces(asNumpy=True)._value
    np.testing.assert_allclose(got[chosen] / mfmd.openmm.FORCE_UNIT, forces, atol=1e-9)
    assert not np.delete(got, chosen, axis=0).any()


CONTINUE = """
import sys
import mfmd
if sys.argv[3] == "torch":
    mfmd.openmm.load_torchforce()
import openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(openmm.XmlSerializer.deserialize(open(sys.argv[2]).read()).getPositions())
print(repr(context.getState(energy=True).getPotentialEnergy()._value))
"""


@pytest.mark.parametrize("kind", ["torch", "python"])
def test_system_survives_xml_into_a_fresh_process(model_file, tmp_path, kind):
    pytest.importorskip({"torch": "openmmtorch", "python": "openmm"}[kind])
    import openmm

    c = backends.context(model_file, "high", ethanol(), kind, "single")
    state = c.getState(energy=True, positions=True, velocities=True)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(c.getSystem()))
    (tmp_path / "state.xml").write_text(openmm.XmlSerializer.serialize(state))
    run = python(CONTINUE, tmp_path / "system.xml", tmp_path / "state.xml", kind)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == state.getPotentialEnergy()._value


def test_openmm_may_be_imported_before_torch(model_file, tmp_path):
    """OpenMM loads its plugins at import; those that need torch then fail, and must be loaded again."""
    pytest.importorskip("openmmtorch")
    import openmm.app

    atoms = ethanol()
    with open(tmp_path / "m.pdb", "w") as file:
        openmm.app.PDBFile.writeFile(backends.topology(atoms), atoms.positions, file)
    code = """
import sys, openmm, openmm.app
assert "torch" not in sys.modules
import mfmd
pdb = openmm.app.PDBFile(sys.argv[2])
system = mfmd.openmm.create_system(sys.argv[1], pdb.topology)
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(pdb.positions)
print(context.getState(energy=True).getPotentialEnergy())
"""
    run = python(code, model_file, tmp_path / "m.pdb")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("kind", ["torch", "python"])
def test_contexts_in_threads(trained, kind):
    """Three contexts of one System at the same time give the bits of one alone."""
    pytest.importorskip({"torch": "openmmtorch", "python": "openmm"}[kind])
    from concurrent.futures import ThreadPoolExecutor

    import openmm

    system = mfmd.openmm.create_system(trained[0], backends.topology(ethanol()), "cctz", kind, "double", threads=1)

    def walk(_):
        c = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
        c.setPositions(ethanol().positions / units.ANGSTROM_PER_NM)
        c.getIntegrator().step(50)
        return c.getState(positions=True).getPositions(asNumpy=True)._value

    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(walk, range(3)))
    assert all(np.array_equal(runs[0], run) for run in runs)


def test_energy_is_conserved_through_torchforce(trained):
    """20 ps NVE of ethanol at 0.5 fs, double: drift below 0.02 meV/atom/ps."""
    pytest.importorskip("openmmtorch")
    from openmm import unit

    atoms = ethanol()
    c = backends.context(trained[0], "cctz", atoms, "torch", "double", threads=1)
    c.setVelocitiesToTemperature(300 * unit.kelvin, 7)
    energies = []
    for _ in range(200):
        c.getIntegrator().step(200)  # 0.1 ps
        state = c.getState(energy=True)
        energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    time = 0.1 * np.arange(1, 201)
    drift = np.polyfit(time, np.array(energies) / units.KJ_PER_MOL * 1e3 / len(atoms), 1)[0]
    assert abs(drift) < 0.02, f"{drift} meV/atom/ps"


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
    assert set(calculator.results["heads"]) == {"low", "middle", "high"}
    assert calculator.results["heads"]["low"] == pytest.approx(energy, rel=1e-14)
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


def test_unknown_host_and_atoms(model_file):
    pytest.importorskip("openmm")
    topology = backends.topology(ethanol())
    with pytest.raises(InputError, match="host is 'cuda'"):
        mfmd.openmm.create_force(model_file, topology, host="cuda")
    for atoms in ([99], [1, 1], []):
        with pytest.raises(InputError, match="atoms must be different indices"):
            mfmd.openmm.create_force(model_file, topology, atoms, host="python")


def test_force_of_a_box_refuses_to_be_that_of_a_molecule(model_file):
    pytest.importorskip("openmmtorch")
    import openmm

    atoms = lower_triangular(random_cell(24, atoms=6))
    force = mfmd.openmm.create_force(model_file, backends.topology(atoms), head="low", host="torch")
    force.setUsesPeriodicBoundaryConditions(False)
    c = backends.context_of_force(force, atoms)
    with pytest.raises(openmm.OpenMMException, match="another kind of box"):
        c.getState(energy=True)


def test_archive_for_openmm(model_file, tmp_path):
    """`mfmd export --for openmm` writes what create_force runs."""
    openmmtorch = pytest.importorskip("openmmtorch")
    from openmm import app

    atoms = ethanol()
    with open(tmp_path / "m.pdb", "w") as file:
        app.PDBFile.writeFile(backends.topology(atoms), atoms.positions, file)
    mfmd.openmm.write_archive(tmp_path / "force.pt", model_file, tmp_path / "m.pdb", precision="double")
    force = openmmtorch.TorchForce(str(tmp_path / "force.pt"))
    force.setOutputsForces(True)
    c = backends.context_of_force(force, atoms)
    energy = c.getState(energy=True).getPotentialEnergy()._value / units.KJ_PER_MOL
    assert energy == pytest.approx(backends.engine(model_file, "high", radial="table")(atoms)[0], rel=1e-12)
