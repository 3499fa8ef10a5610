"""Start structures: what a file says is in topology, positions and velocities, or refused by name. The oracles are ASE, OpenMM and the files' own rules."""

import copy
import pickle
import re
import warnings

import ase.build
import ase.db
import ase.io
import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from conftest import ethanol

pytest.importorskip("openmm")

import openmm
from openmm import app, unit

import mfmd
from mfmd import Note, md, units
from mfmd.hosts import pdb, topology
from mfmd.hosts.states import Said
from mfmd.structures.state import NEUTRAL


def bonds(top):
    return sorted((min(a.index, b.index), max(a.index, b.index)) for a, b in top.bonds())


def symbols(top):
    return [a.element.symbol for a in top.atoms()]


def record(k, name, residue="MOL", number=1, x=(0.0, 0.0, 0.0), symbol="", alternate=" ", charge=""):
    return f"HETATM{k:>5} {name:<4}{alternate}{residue:<3} A{number:>4}    {x[0]:8.3f}{x[1]:8.3f}{x[2]:8.3f}  1.00  0.00          {symbol:>2}{charge}\n"


def boxed(molecules, edge=12.0, seed=0):
    """Copies of a molecule, turned, in the eight octants of a box and wrapped into it, so that several stand across the boundary."""
    rng, out = np.random.default_rng(seed), Atoms()
    for k, molecule in enumerate(molecules):
        one = molecule.copy()
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += edge * np.array([k & 1, k >> 1 & 1, k >> 2 & 1]) / 2 - one.positions.mean(0)
        out += one
    out.set_cell(np.eye(3) * edge)
    out.pbc = True
    out.wrap()
    return out


def residues(frames, path, conect=lambda residue: True, box=None):
    """A PDB file with a residue a molecule, and CONECT for some of them."""
    k, lines, connected = 0, [], []
    if box:
        lines.append(f"CRYST1{box:9.3f}{box:9.3f}{box:9.3f}  90.00  90.00  90.00 P 1           1\n")
    for number, (atoms, positions) in enumerate(frames, 1):
        said = bonds(md.topology_of(atoms)[0])
        for j, (symbol, x) in enumerate(zip(atoms.symbols, positions, strict=True)):
            lines.append(record(k + j + 1, f" {symbol}{j}", number=number, x=x, symbol=symbol))
        if conect(number):
            connected += [f"CONECT{k + a + 1:>5}{k + b + 1:>5}\n" for a, b in said]
        k += len(atoms)
    path.write_text("".join([*lines, *connected, "END\n"]))
    return path


def lengths_of(top, positions):
    return [np.linalg.norm(positions[a] - positions[b]) for a, b in bonds(top)]


# ------------------------------------------------------------------------------------------------ bonds


@pytest.mark.parametrize("name", ["CH3OH", "CH3CH2OH", "H2O"])
@pytest.mark.parametrize("said", ["all", "none", "some", "one bond"])
def test_molecules_are_whole_whatever_a_file_says_of_bonds(name, said, tmp_path):
    molecule = ase.build.molecule(name)
    alone, n = bonds(md.topology_of(molecule)[0]), len(molecule)
    box = boxed([molecule] * 8)
    path = residues([(molecule, box.positions[k * n : k * n + n]) for k in range(8)], tmp_path / "box.pdb",
                    {"all": lambda k: True, "none": lambda k: False, "some": lambda k: k % 3 == 0, "one bond": lambda k: False}[said], 12.0)  # fmt: skip
    if said == "one bond":
        a, b = alone[0]
        path.write_text(path.read_text().replace("END\n", f"CONECT{a + 1:>5}{b + 1:>5}\nEND\n"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        top, positions = md.read_structure(path)
    assert bonds(top) == [(k * n + a, k * n + b) for k in range(8) for a, b in alone]
    wanted = [molecule.get_distance(a, b) for _ in range(8) for a, b in alone]
    np.testing.assert_allclose(lengths_of(top, positions), wanted, atol=2e-3)
    assert any("found by distance" in str(w.message) for w in told) == (said != "all")


def test_the_same_bonds_in_every_format(tmp_path):
    box = boxed([ase.build.molecule("CH3OH")] * 8)
    wanted = bonds(md.topology_of(box)[0])
    top, positions = md.topology_of(box)
    with open(tmp_path / "b.cif", "w") as file:
        app.PDBxFile.writeFile(top, positions * unit.angstrom, file)
    assert len(wanted) == 40
    text = (tmp_path / "b.cif").read_text()
    (tmp_path / "unsaid.cif").write_text(re.sub(r"loop_\n_struct_conn\..*?#\n", "", text, flags=re.DOTALL))
    assert "struct_conn" in text and "struct_conn" not in (tmp_path / "unsaid.cif").read_text()
    for name in ("b.xyz", "b.pdb", "b.traj", "b.json"):
        box.write(tmp_path / name, **({"format": "extxyz"} if name == "b.xyz" else {}))
    for path in sorted(tmp_path.iterdir()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Note)
            again, x = md.read_structure(path)
        assert bonds(again) == wanted, path
        assert max(lengths_of(again, x)) < 1.5, path
        assert np.diag(again.getPeriodicBoxVectors().value_in_unit(unit.angstrom)) == pytest.approx([12.0] * 3, abs=1e-3), path


def test_residue_templates_and_ions(tmp_path):
    """Water by its template, whatever its geometry; an ion, near as it is, is bonded to nothing, and a ligand without CONECT by distance."""
    lines = [record(1, " O", "HOH", 1, (0, 0, 0), "O"), record(2, " H1", "HOH", 1, (1.3, 0, 0), "H"), record(3, " H2", "HOH", 1, (0, 1.3, 0), "H"),
             record(4, "NA", "NA", 2, (0, 0, 2.3), "NA"), record(5, " O1", "LIG", 3, (5, 0, 0), "O"), record(6, " H1", "LIG", 3, (5.97, 0, 0), "H")]  # fmt: skip
    (tmp_path / "ion.pdb").write_text("".join(lines))
    with pytest.warns(Note, match="bonds of LIG; 1 are"):
        top, _ = md.read_structure(tmp_path / "ion.pdb")
    assert bonds(top) == [(0, 1), (0, 2), (4, 5)]


def test_bonds_of_an_sdf_file(tmp_path):
    """Which say them; isotopes that ASE passes over are refused."""
    sdf = "\n  made here\n\n  3  2  0  0  0  0  0  0  0  0999 V2000\n    0.0 0.0 0.0 O 0\n    0.97 0.0 0.0 H 0\n    -0.2 3.0 0.0 H 0\n  1  2  1  0\n  1  3  1  0\nM  END\n"
    (tmp_path / "w.sdf").write_text(sdf)
    assert bonds(md.read_structure(tmp_path / "w.sdf")[0]) == [(0, 1), (0, 2)]
    (tmp_path / "w.sdf").write_text(sdf.replace("M  END", "M  ISO  1   2   2\nM  END"))
    with pytest.raises(md.MDError, match=r"w\.sdf: its line M ISO"):
        md.read_structure(tmp_path / "w.sdf")


@pytest.mark.parametrize(
    "code, line, formal, state",
    [
        (0, "", [None] * 3, {}),
        (5, "", [-1, 0, 0], {"charge": -1}),
        (5, "M  CHG  2   1   1   3   1\n", [1, 0, 1], {"charge": 2}),  # the atoms' own line does not count then
        (0, "M  CHG  1   1   1\nM  RAD  1   1   2\n", [1, 0, 0], {"charge": 1, "multiplicity": 2}),
        (0, "M  RAD  1   1   3\n", [None] * 3, {"multiplicity": 3}),
    ],
)
def test_charges_and_radicals_of_an_sdf_file(tmp_path, code, line, formal, state):
    row = "{:10.4f}{:10.4f}{:10.4f} {:<3} 0{:>3}\n".format
    atoms = row(0, 0, 0, "O", code) + row(0.97, 0, 0, "H", 0) + row(-0.2, 0.95, 0, "H", 0)
    (tmp_path / "w.sdf").write_text(
        f"\n  made here\n\n  3  2  0  0  0  0  0  0  0  0999 V2000\n{atoms}  1  2  1  0\n  1  3  1  0\n{line}M  END\n"
    )
    start = md.read_start(tmp_path / "w.sdf")
    assert [a.formalCharge for a in start.topology.atoms()] == formal and start.state == state


@pytest.mark.parametrize("kind", ["db", "json"])
def test_charges_of_a_database(tmp_path, kind):
    """What stands beside the atoms in the last row, which ase.io.read leaves out."""
    with ase.db.connect(tmp_path / f"a.{kind}", type=kind) as file:
        file.write(Atoms("OH", [[0, 0, 0], [0, 0, 1]]))
        file.write(Atoms("OH", [[0, 0, 0], [0, 0, 1]]), charge=-1, data={"multiplicity": 1})
    assert md.read_start(tmp_path / f"a.{kind}").state == {"charge": -1, "multiplicity": 1}


def test_types_of_a_lammps_dump_are_no_elements(tmp_path):
    """ASE takes type 1 for hydrogen, and 2 for helium."""
    head = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    (tmp_path / "a.lammpstrj").write_text(f"{head}ITEM: ATOMS id type element x y z\n1 1 C 1 1 1\n2 2 O 2 1 1\n")
    assert symbols(md.read_structure(tmp_path / "a.lammpstrj")[0]) == ["C", "O"]
    (tmp_path / "a.lammpstrj").write_text(f"{head}ITEM: ATOMS id type x y z\n1 1 1 1 1\n2 2 2 1 1\n")
    with pytest.raises(md.MDError, match="types and no elements"):
        md.read_structure(tmp_path / "a.lammpstrj")


# ------------------------------------------------------------------------------------------------ molecules without end


def chain():
    """Carbon bonded through the boundary along x."""
    return Atoms("C4", [[1.3 * k, 4.5, 4.5] for k in range(4)], cell=[5.2, 9, 9], pbc=True)


def guest():
    """Water inside a carbon chain's box, across the boundary."""
    water = ase.build.molecule("H2O")
    water.positions += [0.0, 8.9, 0.1]
    both = chain() + water
    both.wrap()
    return both


@pytest.mark.parametrize(
    "make", [chain, lambda: ase.build.bulk("C", "diamond", 3.57), lambda: ase.build.bulk("C", "diamond", 3.57, cubic=True), guest]
)
def test_the_pressure_of_what_is_bonded_to_its_own_image(make, model_file):
    """MonteCarloBarostat's, which scales molecules, is that of the stress where each atom is a molecule of its own; and molecules beside stay whole."""
    atoms = make()
    with pytest.warns(Note, match="bonded to their own images"):
        top, positions = md.topology_of(atoms)
    system = mfmd.openmm.create_system(model_file, top, "low", precision="double", threads=1, remove_cm_motion=False)
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin)
    system.addForce(barostat)
    c = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    c.setPositions(positions * unit.angstrom)
    carbons = int(np.sum(atoms.numbers == 6))
    assert sorted(map(len, c.getMolecules())) == [1] * carbons + [3] * (len(atoms) > carbons)
    if len(atoms) > carbons:
        return  # the pressure of rigid molecules is not that of the stress
    atoms.calc = mfmd.Calculator(model_file, "low", precision="double")
    wanted = -np.trace(atoms.get_stress(voigt=False)) / 3 / (1e5 * ase.units.Pascal)
    assert barostat.computeCurrentPressure(c).value_in_unit(unit.bar) == pytest.approx(wanted, rel=2e-3)


def test_a_crystal_from_a_pdb_file_with_bonds(tmp_path):
    """As OpenMM writes it: what its CONECT records say is bonded through the boundary too."""
    cubic = ase.build.bulk("C", "diamond", 3.57, cubic=True)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(*ase.neighborlist.neighbor_list("ij", cubic, 1.7), strict=True)}
    lines = ["CRYST1    3.570    3.570    3.570  90.00  90.00  90.00 P 1           1\n"]
    lines += [record(k + 1, f" C{k}", x=x, symbol="C") for k, x in enumerate(cubic.positions)]
    lines += [f"CONECT{a + 1:>5}{b + 1:>5}\n" for a, b in sorted(pairs)]
    (tmp_path / "c.pdb").write_text("".join(lines))
    with pytest.warns(Note, match="8 atoms are bonded to their own images"):
        top, x = md.read_structure(tmp_path / "c.pdb")
    assert bonds(top) == [] and np.allclose(x, cubic.positions, atol=1e-3) and top.getNumAtoms() == 8


def test_a_finite_molecule_longer_than_half_a_box_has_an_end(tmp_path):
    long = Atoms("C6", [[1.3 * k, 0, 0] for k in range(6)], cell=[9.0, 9, 9], pbc=True)  # 6.5 of 9 Å
    long.positions += [6.0, 0, 0]
    long.wrap()
    top, x = md.topology_of(long)
    assert bonds(top) == [(k, k + 1) for k in range(5)]
    assert np.ptp(x[:, 0]) == pytest.approx(6.5)


# ------------------------------------------------------------------------------------------------ masses, held atoms, velocities


def heavy(numbers, mass):
    atoms = ethanol()
    masses = atoms.get_masses()
    masses[np.isin(atoms.numbers, numbers)] = mass
    atoms.set_masses(masses)
    return atoms


@pytest.mark.parametrize("atoms", [heavy([1], 2.014), heavy([6], 13.003), heavy([1, 8], 3.016)], ids=["deuterium", "carbon-13", "several"])
def test_masses_of_the_file_are_those_of_the_system(atoms, tmp_path, model_file):
    columns = ["symbols", "positions", "masses"]
    atoms.write(tmp_path / "m.xyz", format="extxyz", columns=columns)
    with pytest.warns(Note, match="masses are the file's"):
        top, _ = md.read_structure(tmp_path / "m.xyz")
    for again in (top, copy.deepcopy(top), pickle.loads(pickle.dumps(top)), app.Modeller(top, np.zeros((9, 3)) * unit.nanometer).topology):
        system = mfmd.openmm.create_system(model_file, again, "low")
        masses = [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(9)]
        np.testing.assert_allclose(masses, ase.io.read(tmp_path / "m.xyz").get_masses(), rtol=1e-12)
    md._write_pdb(tmp_path / "final.pdb", top, {"positions": atoms.positions / 10}, Said((NEUTRAL,)))
    with pytest.warns(Note, match=r"it had \d atoms with masses of their own"):
        again, _ = md.read_structure(tmp_path / "final.pdb")
    assert [a.element for a in again.atoms()] == [app.Element.getBySymbol(s) for s in atoms.symbols]
    assert symbols(top) == list(atoms.symbols)
    assert app.Element.getBySymbol("H").mass.value_in_unit(unit.dalton) == pytest.approx(1.008, abs=1e-3)


def test_deuterium_of_a_pdb_file(tmp_path):
    (tmp_path / "d.pdb").write_text(
        record(1, " O", x=(0, 0, 0), symbol="O")
        + record(2, " D1", x=(0.96, 0, 0), symbol="D")
        + record(3, " D2", x=(-0.2, 0.9, 0), symbol="D")
    )
    with pytest.warns(Note):
        top, _ = md.read_structure(tmp_path / "d.pdb")
    assert [a.element.atomic_number for a in top.atoms()] == [8, 1, 1]
    assert [round(a.element.mass._value, 1) for a in top.atoms()] == [16.0, 2.0, 2.0] and top.getNumBonds() == 2


def held(how, tmp_path):
    atoms = ethanol()
    atoms.positions += 3
    if how == "POSCAR":
        atoms.set_cell([9, 9, 9])
        atoms.set_constraint(FixAtoms([0, 1]))
        atoms = atoms[np.argsort(atoms.numbers == 1)]
        atoms.write(tmp_path / "POSCAR", format="vasp", direct=False)
        return tmp_path / "POSCAR"
    atoms.set_constraint(FixAtoms([0, 1]) if how == "one column" else [FixCartesian(0), FixCartesian(1)])
    atoms.write(tmp_path / "h.xyz", format="extxyz", columns=["symbols", "positions", "move_mask"])
    return tmp_path / "h.xyz"


@pytest.mark.parametrize("how", ["one column", "three columns", "POSCAR"])
def test_held_atoms_stay(how, tmp_path, trained):
    """Minimised, heated and run."""
    path = held(how, tmp_path)
    with pytest.warns(Note, match="2 of 9 atoms are held"):
        _, start = md.read_structure(path)
    settings = md.Settings(str(trained[0]), str(path), str(tmp_path / "run"), time=0.05, every=0.01, checkpoint=0.05, threads=1)
    md.run(settings)
    still = [k for k, a in enumerate(ase.io.read(path)) if a.symbol == "C"]
    with np.load(tmp_path / "run" / "checkpoint.npz") as saved:
        np.testing.assert_allclose(saved["positions"][still], start[still] / 10, rtol=1e-15)
        assert np.abs(saved["positions"] - start / 10).max() > 1e-3 and not saved["velocities"][still].any()
    for name in ("topology.pdb", "final.pdb"):  # which cannot hold them, and say so
        with pytest.warns(Note, match=f"{name}: the run that wrote it had 2 held atoms, and a PDB file does not say which"):
            md.read_structure(tmp_path / "run" / name)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (FixBondLength(0, 1), "FixBondLength"),
        (FixCartesian(2, [True, False, False]), "FixCartesian"),
        (ase.constraints.FixedPlane(0, [0, 0, 1]), "FixedPlane"),
    ],
)
def test_other_constraints_are_refused(constraint, words, tmp_path):
    atoms = ethanol()
    atoms.set_constraint(constraint)
    atoms.write(tmp_path / "c.traj")
    with pytest.raises(md.MDError, match=rf"c\.traj: its constraint {words}"):
        md.read_structure(tmp_path / "c.traj")


@pytest.mark.parametrize("mass", [0.0, -1.0, np.nan])
def test_masses_that_cannot_be(mass, tmp_path):
    atoms = heavy([8], 15.0)
    atoms.arrays["masses"][2] = mass
    with pytest.raises(md.MDError, match="masses are not all more than 0"):
        md.topology_of(atoms)


@pytest.mark.parametrize("suffix", ["xyz", "traj", "gro"])
def test_velocities_are_those_of_the_file(suffix, tmp_path, model_file):
    """In a cell that OpenMM needs turned; ASE's kinetic energy is that of the Context."""
    atoms = ethanol()
    atoms.set_cell(np.eye(3) * 9.0)
    atoms.pbc = True
    if suffix != "gro":
        atoms.rotate(40, (1, 2, 3), rotate_cell=True)
    atoms.set_momenta(np.random.default_rng(1).normal(size=(9, 3)))
    if suffix == "gro":
        lines = [f"{1:>5}MOL  {s + str(k):>5}{k + 1:>5}" + "".join(f"{v:8.3f}" for v in x / 10) + "".join(f"{v:8.4f}" for v in u)
                 for k, (s, x, u) in enumerate(zip(atoms.symbols, atoms.positions, atoms.get_velocities() * 100 * ase.units.fs, strict=True))]  # fmt: skip
        (tmp_path / "v.gro").write_text("\n".join(["made here", "    9", *lines, "   0.90000   0.90000   0.90000"]) + "\n")
    else:
        atoms.write(tmp_path / f"v.{suffix}", **({"format": "extxyz"} if suffix == "xyz" else {}))
    start = topology.read_start(tmp_path / f"v.{suffix}")
    c = openmm.Context(mfmd.openmm.create_system(model_file, start.topology, "low", threads=1), openmm.VerletIntegrator(0.0),
                       openmm.Platform.getPlatformByName("Reference"))  # fmt: skip
    c.setPositions(start.positions * unit.angstrom)
    c.setVelocities(start.velocities / 10)
    kinetic = c.getState(energy=True).getKineticEnergy()._value / units.KJ_PER_MOL
    assert kinetic == pytest.approx(atoms.get_kinetic_energy(), rel=2e-3)
    # and so are they to the positions: moving on both ways gives the same distances
    later, turned = atoms.positions + 5 * ase.units.fs * atoms.get_velocities(), start.positions + 5e-3 * start.velocities
    np.testing.assert_allclose(
        *(np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (later, turned)), atol=2e-2 if suffix == "gro" else 1e-6
    )


# ------------------------------------------------------------------------------------------------ elements


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ((" C1", " O1", " H1", "1H2", " N"), "C O H H N"),
        ((" C1", "NI"), "C Ni"),
        ((" C1", "CL1", "BR", "SI2"), "C Cl Br Si"),
        (("ZN", "MG1"), "Zn Mg"),  # there is no Z, and no M
        (("C1", "NI"), None),  # names begin in the first column all the same
        ((" C1", " NI"), None),
        ((" C1", " CA"), None),
        ((" C1", "HG11"), None),
        ((" C1", " Q1"), None),
    ],
)
def test_elements_that_are_not_said(names, wanted, tmp_path):
    (tmp_path / "n.pdb").write_text("".join(record(k + 1, name, x=(4.0 * k, 0, 0)) for k, name in enumerate(names)))
    if wanted is None:
        with pytest.raises(md.MDError, match=r"n\.pdb: .*element.*columns 77 and 78"):
            md.read_structure(tmp_path / "n.pdb")
        return
    with pytest.warns(Note, match="elements are missing, and taken from the names"):
        top, _ = md.read_structure(tmp_path / "n.pdb")
    assert symbols(top) == wanted.split()


def test_elements_of_residues_and_ions_by_their_names(tmp_path):
    lines = [
        record(1, " CA", "ALA", 1),
        record(2, " HG", "CYS", 2, (4, 0, 0)),
        record(3, "CA", "CA", 3, (8, 0, 0)),
        record(4, "NA", "NA+", 4, (12, 0, 0)),
    ]
    (tmp_path / "r.pdb").write_text("".join(lines))
    with pytest.warns(Note, match="elements"):
        assert symbols(md.read_structure(tmp_path / "r.pdb")[0]) == ["C", "H", "Ca", "Na"]


def test_elements_of_a_gromacs_file(tmp_path):
    """ASE makes nitrogen of NA and carbon of CL."""
    row = "{:>5}{:<5}{:>5}{:>5}   0.000   {:.3f}   0.000\n".format
    water = [row(1, "SOL", n, k + 1, 0.1 * k) for k, n in enumerate(("OW", "HW1", "HW2"))]
    ions = [row(2, "NA", "NA", 4, 0.9), row(3, "CL", "CL", 5, 1.4)]
    (tmp_path / "w.gro").write_text(f"made here\n5\n{''.join(water + ions)}   2.0 2.0 2.0\n")
    assert symbols(md.read_structure(tmp_path / "w.gro")[0]) == ["O", "H", "H", "Na", "Cl"]
    (tmp_path / "w.gro").write_text(f"made here\n4\n{''.join(water)}{row(2, 'LIG', 'NA1', 4, 0.9)}   2.0 2.0 2.0\n")
    with pytest.raises(md.MDError, match=r"element of atom NA1 of LIG is Na or N"):
        md.read_structure(tmp_path / "w.gro")


def test_an_element_that_a_head_does_not_know_is_refused_before_anything_runs(model_file):
    top, _ = md.topology_of(ase.build.molecule("CH3Cl"))
    for options in ({"head": "low"}, {"heads": ("low", "high")}, {"atoms": [1]}):
        with pytest.raises(mfmd.Error, match=r"atom 1 is Cl, and head \w+ was trained on H C N O only; take a model"):
            mfmd.openmm.create_force(model_file, top, **options)
    assert mfmd.openmm.create_force(model_file, top, atoms=[0, 2, 3, 4], head="low", charge=1)


# ------------------------------------------------------------------------------------------------ PDB and mmCIF files


@pytest.mark.parametrize(
    "atoms",
    [ethanol(), boxed([ase.build.molecule("H2O")] * 8), boxed([ase.build.molecule("CH3Cl")] * 5)],
    ids=["ethanol", "water", "CH3Cl"],
)
def test_pdb_files_that_ase_writes(atoms, tmp_path):
    """One residue, names repeated. Every atom comes back, in OpenMM's and in ASE's reading of what we write then."""
    atoms.write(tmp_path / "a.pdb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        top, x = md.read_structure(tmp_path / "a.pdb")
    assert symbols(top) == list(atoms.symbols) and len({a.name for a in top.atoms()}) == len(atoms)
    apart = ase.io.read(tmp_path / "a.pdb").get_all_distances(mic=True)
    whole = Atoms(atoms.numbers, x, cell=atoms.cell, pbc=atoms.pbc).get_all_distances(mic=True)
    np.testing.assert_allclose(whole, apart, atol=1e-6)
    with open(tmp_path / "again.pdb", "w") as file:
        app.PDBFile.writeFile(top, x * unit.angstrom, file)
    again = app.PDBFile(str(tmp_path / "again.pdb")).topology
    assert symbols(again) == list(atoms.symbols) and bonds(again) == bonds(top)


def test_a_particle_of_more_atoms_than_there_are_names_is_several_residues(tmp_path):
    """Bound to each other; and it comes back so from the file that a run writes."""
    from ase.cluster import Octahedron

    atoms = Octahedron("Ru", 13, cutoff=2, latticeconstant=3.8)
    assert len(atoms) > 1036
    topology, positions = md.topology_of(atoms)
    residues = list(topology.residues())
    assert len(residues) == 2 and all(len({a.name for a in r.atoms()}) == len(list(r.atoms())) for r in residues)
    assert any(a.residue is not b.residue for a, b in topology.bonds())
    with open(tmp_path / "particle.pdb", "w") as file:
        pdb.write(file, topology, positions * unit.angstrom)
    again, found = md.read_structure(tmp_path / "particle.pdb")
    assert [a.element for a in again.atoms()] == [a.element for a in topology.atoms()] and np.allclose(found, positions, atol=1e-3)
    assert bonds(again) == bonds(topology)


def test_names_for_more_atoms_than_four_characters_have_room_for():
    names = [pdb.label("C", n) for n in (*range(1, 1200), 34695)]
    assert len(set(names)) == 1200 and max(map(len, names)) == 4 and names[:2] == ["C1", "C2"]
    assert len({pdb.label("Cl", n) for n in range(1, 1036)}) == 1035
    with pytest.raises(mfmd.Error, match="more atoms of Cl"):
        pdb.label("Cl", 1036)


def test_the_last_structure_of_several(tmp_path):
    """Of an XYZ file, of MODELs and of an mmCIF file; and it is said."""
    frames = [ethanol() for _ in range(3)]
    for k, atoms in enumerate(frames):
        atoms.positions += k
    ase.io.write(tmp_path / "f.xyz", frames)
    ase.io.write(tmp_path / "f.pdb", frames)
    top, x = md.topology_of(frames[0])
    with open(tmp_path / "f.cif", "w") as file:
        app.PDBxFile.writeHeader(top, file)
        for k in range(3):
            app.PDBxFile.writeModel(top, (x + k) * unit.angstrom, file, k + 1)
    for name in ("f.xyz", "f.pdb", "f.cif"):
        with pytest.warns(Note, match=r"the last"):
            _, last = md.read_structure(tmp_path / name)
        np.testing.assert_allclose(last, frames[-1].positions, atol=1e-3)


WATER = [(" O", "O", (0, 0, 0)), (" H1", "H", (0.96, 0, 0)), (" H2", "H", (-0.2, 0.9, 0))]


def water(**more):
    return "".join(record(k + 1, name, x=x, symbol=symbol, **more) for k, (name, symbol, x) in enumerate(WATER))


def test_alternate_locations(tmp_path):
    other = record(4, " H1", x=(0.5, 0.8, 0), symbol="H", alternate="B")
    text = water().replace(" H1  MOL", " H1 AMOL")
    (tmp_path / "a.pdb").write_text(text + other)
    with pytest.warns(Note, match="1 alternate locations are not taken"):
        top, x = md.read_structure(tmp_path / "a.pdb")
    assert top.getNumAtoms() == 3 and x[1] == pytest.approx([0.96, 0, 0])
    (tmp_path / "a.pdb").write_text(text + other + record(5, " O", x=(9, 9, 9), symbol="O"))
    with pytest.raises(md.MDError, match="alternate locations; keep one"):
        md.read_structure(tmp_path / "a.pdb")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CRYST1   30.000   30.000   30.000  90.00  90.00  90.00 P 21 21 21    4\n" + water(), "space group is P 21 21 21"),
        (f"MODEL        1\n{water()}ENDMDL\nMODEL        2\n{water()[:160]}\nENDMDL\n", "different atoms"),
        (water() + record(1, " O2", x=(5, 5, 5), symbol="O") + "CONECT    1    2\n", "serial numbers that repeat"),
        (water() + record(4, "EP", x=(5, 5, 5), symbol="EP"), "has no element"),
        ("HEADER    nothing\nEND\n", "no atoms"),
    ],
)
def test_pdb_files_that_mean_something_else(text, words, tmp_path):
    (tmp_path / "x.pdb").write_text(text)
    with pytest.raises(md.MDError, match=rf"x\.pdb: .*{words}"):
        md.read_structure(tmp_path / "x.pdb")


def test_mmcif_files_say_charges_and_space_groups(tmp_path, model_file):
    top, x = md.topology_of(ethanol())
    with open(tmp_path / "m.cif", "w") as file:
        app.PDBxFile.writeFile(top, x * unit.angstrom, file)
    text = (tmp_path / "m.cif").read_text()
    again, positions = md.read_structure(tmp_path / "m.cif")
    assert bonds(again) == bonds(top) and np.allclose(positions, x, atol=1e-3) and again.getPeriodicBoxVectors() is None
    rows = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    assert "pdbx_formal_charge" in text and rows
    columns = [line.split(".")[1].strip() for line in text.splitlines() if line.startswith("_atom_site.")]
    words = rows[0].split()
    words[columns.index("pdbx_formal_charge")] = "-1"
    (tmp_path / "m.cif").write_text(text.replace(rows[0], " ".join(words)))
    charged, _ = md.read_structure(tmp_path / "m.cif")
    assert [a.formalCharge for a in charged.atoms()] == [-1] + [None] * 8
    with pytest.warns(UserWarning, match="formal charges of the atoms add up to -1, and charge is 1, which is taken: 8 of 9 atoms have no"):
        mfmd.openmm.create_force(model_file, charged, charge=1)
    for atom in charged.atoms():
        atom.formalCharge = atom.formalCharge or 0
    with pytest.raises(mfmd.Error, match="formal charges of the atoms add up to -1, and charge is 1; correct one of them"):
        mfmd.openmm.create_force(model_file, charged, charge=1)
    words[columns.index("type_symbol")] = "?"
    (tmp_path / "m.cif").write_text(text.replace(rows[0], " ".join(words)))
    with pytest.raises(md.MDError, match="has no element"):
        md.read_structure(tmp_path / "m.cif")
    (tmp_path / "m.cif").write_text(text + "\n_symmetry.space_group_name_H-M 'P 21 21 21'\n")
    with pytest.raises(md.MDError, match="space group is P 21 21 21"):
        md.read_structure(tmp_path / "m.cif")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xyz", b"40\n\nH 0 0 0\n", "a frame is to have 40 atoms, and the file ends 2 lines later"),
        ("a.cif", b"data_\xff\n_cell.length_a 8\n", "cannot be read .*utf-8"),
        ("a.xyz", b'0\nLattice="5 0 0 0 5 0 0 0 5"\n', "it takes two atoms or more"),
        ("a.pdb.gz", b"no archive", "cannot be read|not a readable PDB file"),
        (
            "a.pdb",
            b"REMARK  99 STATE charge one\nATOM      1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O\nEND\n",
            "REMARK  99 STATE charge one, is not that of a run of mfmd",
        ),
    ],
)
def test_files_that_are_damaged(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(mfmd.Error, match=words) as refusal:
        topology.read_start(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_a_cell_that_has_no_height_is_refused(tmp_path):
    """Bonds would be looked for in more images than there is memory for."""
    atoms = ethanol()
    atoms.set_cell([9, 9, 1e-2])
    atoms.pbc = True
    ase.io.write(tmp_path / "a.xyz", atoms)
    with pytest.raises(mfmd.Error, match="the cell is flat, or not in Å"):
        topology.read_start(tmp_path / "a.xyz")


def test_a_crystal_file_is_no_mmcif(tmp_path):
    salt = ase.build.bulk("NaCl", "rocksalt", 5.64, cubic=True)
    salt.write(tmp_path / "salt.cif")
    with pytest.warns(Note, match="8 atoms are bonded to their own images"):
        top, _ = md.read_structure(tmp_path / "salt.cif")
    assert sorted(symbols(top)) == ["Cl"] * 4 + ["Na"] * 4


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ethanol().write(tmp_path / "e.xyz")
    assert md.read_structure("~/e.xyz")[0].getNumAtoms() == 9
