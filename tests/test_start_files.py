"""What other writers put into start structures: arrays and records that are read, or refused by name. The oracles are ASE and files' own rules."""

import warnings

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from conftest import DATA, ethanol
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

pytest.importorskip("openmm")

from openmm import unit

from mfmd import Note, md
from mfmd.hosts import topology


def pieces(atoms):
    """Of each atom, the number of its molecule, by the bonds of the topology."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        top, _ = md.topology_of(atoms)
    bonds = np.array([(a.index, b.index) for a, b in top.bonds()]).reshape(-1, 2)
    return connected_components(coo_matrix((np.ones(len(bonds)), bonds.T), (len(atoms),) * 2), False)[1]


# ------------------------------------------------------------------------------------------------ arrays of other writers


def with_array(path, column, rows):
    """Water as extended XYZ with one column more."""
    water = ase.build.molecule("H2O")
    lines = [
        f"{s} {x[0]} {x[1]} {x[2]} {' '.join(map(str, np.atleast_1d(row)))}"
        for s, x, row in zip(water.symbols, water.positions, rows, strict=True)
    ]
    path.write_text("\n".join(["3", f"Properties=species:S:1:pos:R:3:{column} pbc=F", *lines]) + "\n")
    return path


SOME = [[1.0, 0, 0], [0, 0.5, 0], [0, 0, 0]]
NONE = [[0.0] * 3] * 3


@pytest.mark.parametrize(
    ("column", "rows", "remedy"),
    [
        ("vel:R:3", SOME, "momenta:R:3"),
        ("velo:R:3", SOME, "momenta:R:3"),
        ("Velocities:R:3", SOME, "momenta:R:3"),
        ("vx:R:1", [1.0, 0.0, 0.0], "momenta:R:3"),
        ("mass:R:1", [16.0, 2.014, 1.008], "masses:R:1"),
        ("Masses:R:1", [18.0, 1.008, 1.008], "masses:R:1"),
        ("atomic_mass:R:1", [16.0, 3.016, 3.016], "masses:R:1"),
        ("fixed:L:1", ["T", "F", "F"], "move_mask"),
        ("frozen:I:1", [0, 1, 0], "move_mask"),
        ("Move_Mask:L:1", ["F", "T", "T"], "move_mask"),
        ("selective_dynamics:L:3", [["F", "F", "F"], ["T"] * 3, ["T"] * 3], "move_mask"),
    ],
)
def test_arrays_under_names_of_others_are_refused(column, rows, remedy, tmp_path):
    """ASE reads them as they are, and neither moves, weighs nor holds an atom by them."""
    path, name = with_array(tmp_path / "a.xyz", column, rows), column.partition(":")[0]
    atoms = ase.io.read(path)
    assert name in atoms.arrays and not atoms.get_momenta().any() and not atoms.has("masses") and not atoms.constraints
    with pytest.raises(md.MDError, match=rf"a\.xyz: its array {name} is not read.*{remedy}"):
        md.read_structure(path)


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        ("vel:R:3", NONE),
        ("mass:R:1", [15.9994, 1.008, 1.00794]),
        ("fixed:L:1", ["F"] * 3),
        ("selective_dynamics:L:3", [["T"] * 3] * 3),
        ("charge_model:R:1", [1.0, 2.0, 3.0]),
        ("velocity_group:I:1", [1, 2, 3]),
    ],
)
def test_arrays_that_say_nothing_else_are_let_pass(column, rows, tmp_path):
    start = topology.read_start(with_array(tmp_path / "a.xyz", column, rows))
    assert start.velocities is None and [round(a.element.mass._value) for a in start.topology.atoms()] == [16, 1, 1]


def test_the_remedies_are_right(tmp_path):
    """Written as the sentences say, velocities and held atoms arrive."""
    atoms, v = ethanol(), np.random.default_rng(0).normal(size=(9, 3))
    atoms.set_velocities(v / (1000 * ase.units.fs))
    atoms.write(tmp_path / "v.xyz", format="extxyz")
    np.testing.assert_allclose(topology.read_start(tmp_path / "v.xyz").velocities, v, atol=1e-6)
    with pytest.warns(Note, match="1 of 3 atoms are held"):
        start = topology.read_start(with_array(tmp_path / "h.xyz", "move_mask:L:1", ["F", "T", "T"]))
    assert [a.element.mass._value == 0 for a in start.topology.atoms()] == [True, False, False]


def test_the_unit_of_velocities_in_a_lammps_dump_is_told(tmp_path):
    head = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    (tmp_path / "a.lammpstrj").write_text(f"{head}ITEM: ATOMS id type element x y z vx vy vz\n1 1 C 1 1 1 3 0 0\n2 2 O 2 1 1 0 5 0\n")
    with pytest.warns(Note, match="Å/ps, as in LAMMPS' units metal"):
        start = topology.read_start(tmp_path / "a.lammpstrj")
    np.testing.assert_allclose(start.velocities, [[3, 0, 0], [0, 5, 0]], atol=1e-6)


@pytest.mark.parametrize("columns", ["id type element mass", "type id mass", "mass element type"])
def test_masses_of_a_lammps_dump_are_kept(columns, tmp_path):
    """As ASE's reader finds elements, and in its order; an older frame's are not taken."""
    head = "ITEM: TIMESTEP\n{}\nITEM: NUMBER OF ATOMS\n3\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    frames = []
    for step, mass in enumerate((3.0, 2.014)):
        rows = [
            {"id": i, "type": 1, "element": e, "mass": m, "x": x}
            for i, e, m, x in ((3, "H", 1.008, 3), (1, "O", 15.999, 4), (2, "H", mass, 5))
        ]
        names = columns.split()
        body = "".join(f"{' '.join(str(row[n]) for n in names)} {row['x']} 1 1 0 {row['id']} 0\n" for row in rows)
        frames.append(f"{head.format(step)}ITEM: ATOMS {columns} x y z vx vy vz\n{body}")
    (tmp_path / "m.lammpstrj").write_text("".join(frames))
    with pytest.warns(Note, match="masses are the file's, such as 2.014"):
        start = topology.read_start(tmp_path / "m.lammpstrj")
    found = {round(x[0]): (a.element.symbol, a.element.mass._value) for a, x in zip(start.topology.atoms(), start.positions, strict=True)}
    assert found == {3: ("H", pytest.approx(1.008)), 4: ("O", pytest.approx(15.999)), 5: ("H", pytest.approx(2.014))}
    speeds = {round(x[0]): round(v[1], 6) for x, v in zip(start.positions, start.velocities, strict=True)}
    assert speeds == {3: 3, 4: 1, 5: 2}


def test_a_lammps_data_file_by_its_name(tmp_path):
    water = ase.build.molecule("H2O", vacuum=4, pbc=True)
    water.set_velocities(np.array(SOME) / (1000 * ase.units.fs))
    ase.io.write(tmp_path / "w.lammps-data", water, format="lammps-data", masses=True, velocities=True, atom_style="atomic")
    with pytest.warns(Note, match="LAMMPS' units metal"):
        start = topology.read_start(tmp_path / "w.lammps-data")
    assert [a.element.symbol for a in start.topology.atoms()] == ["O", "H", "H"] and start.topology.getNumBonds() == 2
    np.testing.assert_allclose(start.velocities, SOME, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("d.xyz", "3\n\nO 0 0 0\nD 0.96 0 0\nD -0.2 0.9 0\n", "element D, which ASE does not know; write H"),
        ("e.xyz", "2\nProperties=species:S:1:pos:R:3\nO 0 0 0\nT 0.96 0 0\n", "element T, which ASE does not know"),
        ("q.xyz", "2\n\nO 0 0 0\nQq 0.96 0 0\n", r"ASE cannot read it as a structure of the kind extxyz \(KeyError: 'Qq'\)$"),
        ("l.data", "made\n\n2 atoms\n1 atom types\n\nAtoms # atomic\n\n1 1 0 0 0\n", r"of the kind runnerdata \(\w+\).*\.lammps-data"),
        ("l.lmp", "made\n\n2 atoms\n", r"ASE cannot read it .*UnknownFileTypeError.*\.lammps-data"),
    ],
)
def test_what_ase_cannot_read_is_told_with_a_reason(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(md.MDError, match=rf"{name}: .*{words}"):
        md.read_structure(tmp_path / name)


# ------------------------------------------------------------------------------------------------ PDB files


def frames_of(style, path):
    """Three frames of ethanol in growing boxes, each moved, as one writer or another divides them."""
    bodies = []
    for k in range(3):
        atoms = ethanol()
        atoms.positions += 2 + k
        box = f"CRYST1{12 + k:9.3f}{12 + k:9.3f}{12 + k:9.3f}  90.00  90.00  90.00 P 1           1\n"
        rows = [
            f"ATOM  {j + 1:>5} {s + str(j):<4} MOL A   1    {x[0]:8.3f}{x[1]:8.3f}{x[2]:8.3f}  1.00  0.00          {s:>2}\n"
            for j, (s, x) in enumerate(zip(atoms.symbols, atoms.positions, strict=True))
        ]
        bodies.append((box, "".join(rows)))
    path.write_text(
        {
            "END": bodies[2][0] + "END\n".join(b for _, b in bodies) + "END\n",
            "END and a box each": "".join(f"{c}{b}END\n" for c, b in bodies),
            "END and no box": "".join(f"{b}END   \n" for _, b in bodies),
            "ENDMDL": "".join(f"{c}{b}ENDMDL\n" for c, b in bodies),
            "MODEL": "".join(f"MODEL     {k:>4}\n{c}{b}TER\nENDMDL\n" for k, (c, b) in enumerate(bodies)) + "CONECT    1    2\nEND\n",
            "MODEL alone": "".join(f"{c}MODEL     {k:>4}\n{b}" for k, (c, b) in enumerate(bodies)),
        }[style]
    )
    return atoms.positions, None if "no box" in style else 14.0


@pytest.mark.parametrize("style", ["END", "END and a box each", "END and no box", "ENDMDL", "MODEL", "MODEL alone"])
def test_frames_however_they_are_divided(style, tmp_path):
    positions, edge = frames_of(style, tmp_path / "f.pdb")
    if style != "MODEL alone":
        assert len([a for a in ase.io.read(tmp_path / "f.pdb", ":") if len(a)]) == 3  # and an empty one at an END that is alone
    with pytest.warns(Note, match="the last of 3 models is taken"):
        top, x = md.read_structure(tmp_path / "f.pdb")
    assert top.getNumAtoms() == 9 and top.getNumBonds() == 8
    np.testing.assert_allclose(x, positions, atol=1e-3)
    box = top.getPeriodicBoxVectors()
    assert box is None if edge is None else np.diag(box.value_in_unit(unit.angstrom)) == pytest.approx([edge] * 3, abs=1e-3)


def test_one_frame_with_an_end_is_one_frame(tmp_path):
    frames_of("END", tmp_path / "f.pdb")
    text = (tmp_path / "f.pdb").read_text()
    (tmp_path / "one.pdb").write_text(text[: text.index("END\n") + 4])
    (tmp_path / "two.pdb").write_text(text[: text.index("END\n")].replace("MOL", "LIG") + "END\n" + text[: text.index("END\n") + 4])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert md.read_structure(tmp_path / "one.pdb")[0].getNumAtoms() == 9
    assert not any("models" in str(w.message) for w in told)
    with pytest.raises(md.MDError, match="models .* hold different atoms"):
        md.read_structure(tmp_path / "two.pdb")


@pytest.mark.parametrize("group", ["P 1", "p 1", "1", "", "NONE", "UNK", "P 1 1 1", "P -1", "P 1 21 1", "C 1", "I 1"])
def test_groups_that_mean_no_symmetry(group, tmp_path):
    frames_of("END", tmp_path / "g.pdb")
    path = tmp_path / "g.pdb"
    path.write_text(path.read_text().replace("P 1           1\n", f"{group:<11}   1\n"))
    if group in ("P -1", "P 1 21 1", "C 1", "I 1"):
        with pytest.raises(md.MDError, match=f"space group is {group}"):
            md.read_structure(path)
    else:
        with pytest.warns(Note):
            assert md.read_structure(path)[0].getPeriodicBoxVectors() is not None


# ------------------------------------------------------------------------------------------------ bonds by distance


def test_hot_molecules_and_dense_water_come_out_as_they_are():
    """The hottest frames shipped: molecules in one piece, boxes and clusters as waters. At 1.2 times the covalent radii some come apart."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["temperature"] >= 1000 or a.pbc.all()]
    assert len(frames) > 500 and any(a.pbc.all() for a in frames)
    for atoms in frames:
        size = 3 if atoms.info["molecule"].startswith("water") else len(atoms)
        np.testing.assert_array_equal(pieces(atoms), np.arange(len(atoms)) // size, str(atoms.info))


def test_every_molecule_of_g2_is_one_piece():
    from ase.collections import g2

    for name in g2.names:
        atoms = ase.build.molecule(name)
        atoms = Atoms(atoms.numbers, atoms.positions)  # without the spins of radicals
        if len(atoms) > 1:
            assert set(pieces(atoms)) == {0}, name


@pytest.mark.parametrize(
    ("atoms", "wanted"),
    [
        (Atoms("H2", [[0, 0, 0], [0.84, 0, 0]]), 1),
        (Atoms("F2", [[0, 0, 0], [1.47, 0, 0]]), 1),
        (Atoms("N2O4", [[0.89, 0, 0], [-0.89, 0, 0], *([x, y, 0] for x in (1.36, -1.36) for y in (1.1, -1.1))]), 1),  # 1.78 Å
        (Atoms("OHH", [[0, 0, 0], [1.25, 0, 0], [-0.3, 0.9, 0]]), 1),
        (Atoms("FHFH", [[0, 0, 0], [0.95, 0, 0], [2.5, 0, 0], [3.45, 0, 0]]), 2),  # hydrogen bond of 1.55 Å
        (Atoms("H4", [[0, 0, 0], [0.74, 0, 0], [2.2, 0, 0], [2.94, 0, 0]]), 2),
        (Atoms("I4", [[0, 0, 0], [2.72, 0, 0], [6.22, 0, 0], [8.94, 0, 0]]), 2),  # of the crystal: 2.72 and 3.50 Å
    ],
)
def test_long_bonds_and_short_contacts(atoms, wanted):
    assert len(set(pieces(atoms))) == wanted
