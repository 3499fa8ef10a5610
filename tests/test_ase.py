"""What ASE users do with the calculator, beyond what every host must pass."""

import pickle

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
