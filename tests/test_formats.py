"""Every format on files written by hand, as the programs that make them do: structures, labels, units, charge and spin; what is refused."""

import json
import sys
from types import SimpleNamespace

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mfmd.structures.formats import registry
from mfmd.structures.record import DataError
from mfmd.structures.state import read_states

WATER = np.array([8, 1, 1])
N = 3  # structures


def keys(energy="energy", forces="forces", stress="-", **more):
    return {"dft": SimpleNamespace(energy=energy, forces=forces, stress=stress, **more)}


def some(*shape, seed=0):
    """Numbers of which no two are the same."""
    return np.random.default_rng(seed).normal(size=shape)


POSITIONS, ENERGIES, FORCES = some(N, 3, 3), some(N, seed=1), some(N, 3, 3, seed=2)


def found_in(path, levels, given=None):
    """The structures of a file; each is looked over for what all share."""
    structures = list(registry.read(path, levels, given))
    for s in structures:
        assert str(path) in s["source"] and s["numbers"].dtype.kind == "i"
        assert s["positions"].shape == (len(s["numbers"]), 3) and np.shape(s["cell"]) == (3, 3) and np.shape(s["pbc"]) == (3,)
    return structures


def assert_waters(structures, energies=ENERGIES, forces=FORCES, positions=POSITIONS):
    assert len(structures) == len(positions)
    for k, s in enumerate(structures):
        label = s["labels"]["dft"]
        np.testing.assert_array_equal(s["numbers"], WATER)
        np.testing.assert_allclose(s["positions"], positions[k], atol=1e-12)
        assert np.shape(label.energy) == () and label.energy == pytest.approx(energies[k], abs=1e-12)
        if forces is not None:
            np.testing.assert_allclose(label.forces, forces[k], atol=1e-12)


def refused(path, levels, message, given=None):
    with pytest.raises(DataError, match=message) as error:
        list(registry.read(path, levels, given))
    assert "\n" not in str(error.value)


def hdf5(path, content, attributes=()):
    """content : {dataset: array}; attributes : [(item, name, value)]"""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
        for item, name, value in attributes:
            file[item].attrs[name] = value
    return path


# Arrays


def test_npz_of_sgdml(tmp_path):
    """Energies (n, 1), tags of the units, a lattice whose columns are the vectors."""
    lattice = np.arange(9.0).reshape(3, 3)
    tags = {"type": "d", "e_unit": "kcal/mol", "r_unit": np.array(b"Ang"), "lattice": lattice}
    np.savez(tmp_path / "a.npz", z=WATER, R=POSITIONS, E=ENERGIES[:, None], F=FORCES, **tags)
    structures = found_in(tmp_path / "a.npz", keys("E", "F"))
    assert_waters(structures)
    for s in structures:
        assert s["units"] == {"energy": "kcal/mol", "length": "Ang", "forces": "kcal/mol/Ang"} and s["pbc"].all()
        np.testing.assert_array_equal(s["cell"], lattice.T)


def test_npz_of_physnet(tmp_path):
    """Rows filled up with zeros; Q is the charge of a structure, and a quadrupole is none."""
    numbers = np.array([[8, 1, 1, 0], [7, 1, 1, 1], [8, 1, 0, 0]])
    real = (numbers > 0)[:, :, None]
    positions, forces = some(3, 4, 3) * real, some(3, 4, 3, seed=3) * real
    content = {"R": positions, "Z": numbers, "E": ENERGIES, "F": forces, "D": some(3, 3), "N": np.array([3, 4, 2])}
    np.savez(tmp_path / "a.npz", **content, Q=np.array([0.0, 1.0, -1.0], np.float32))
    structures = found_in(tmp_path / "a.npz", keys("E", "F"))
    assert [len(s["numbers"]) for s in structures] == [3, 4, 2]
    assert [s["info"] for s in structures] == [{"Q": 0.0}, {"Q": 1.0}, {"Q": -1.0}] and type(structures[0]["info"]["Q"]) is float
    for s, z, r, f in zip(structures, numbers, positions, forces, strict=True):
        np.testing.assert_array_equal(s["numbers"], z[z > 0])
        np.testing.assert_array_equal(s["positions"], r[z > 0])
        np.testing.assert_array_equal(s["labels"]["dft"].forces, f[z > 0])
    np.savez(tmp_path / "a.npz", **content, Q=some(3, 3, 3))
    assert found_in(tmp_path / "a.npz", keys("E", "F"))[0]["info"] == {}
    np.savez(tmp_path / "a.npz", **{**content, "N": np.array([3, 3, 2])})
    refused(tmp_path / "a.npz", keys("E", "F"), "structure 1: 4 atoms have an atomic number, and the number of atoms is given as 3")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([[8, 0, 1]] * N, "structure 0: atom 1 has the atomic number 0; 0 and -1 may stand at the end only"),
        ([[1, 0, 0]] * N, "atoms of number 0 have positions; atomic numbers are wanted, not indices of elements"),
        ([8.5, 1, 1], "not all atomic numbers are whole numbers"),
        ([b"O", b"H", b"Q"], "'Q' is no symbol of an element"),
        ([8, 1], r"\(2,\) atomic numbers for positions of shape \(3, 3, 3\)"),
    ],
)
def test_atomic_numbers_that_are_none(tmp_path, numbers, message):
    np.savez(tmp_path / "a.npz", R=POSITIONS, Z=np.array(numbers), E=ENERGIES)
    refused(tmp_path / "a.npz", keys("E", "F"), message)


def test_arrays_of_the_wrong_shape(tmp_path):
    content = {"R": POSITIONS, "Z": WATER, "E": ENERGIES}
    for key, value, message in (
        ("E", ENERGIES[:2], "E has 2 entries for 3 structures"),
        ("charge", np.zeros(2), "charge has 2 entries for 3 structures"),
        ("cell", np.ones(3), r"a cell of shape \(3,\) .* wanted are \(3, 3\)"),
        ("cell", np.full((3, 3), "a"), "cells are not numbers"),
        ("R", np.full((N, 3, 3), "a"), "positions are not numbers"),
        ("R", POSITIONS + 0j, "positions are not numbers .they are complex128"),
        ("pbc", np.array(["x", "y", "z"]), "pbc are not numbers"),
        ("Z", np.zeros(3, [("a", int)]), "wanted are atomic numbers or symbols of elements, not"),
    ):
        np.savez(tmp_path / "a.npz", **{**content, key: value})
        refused(tmp_path / "a.npz", keys("E", "F"), message)


def test_arrays_of_aimnet(tmp_path):
    """Charge a structure, multiplicity of all, charges an atom."""
    charges = some(N, 3, seed=4)
    content = {"coord": POSITIONS, "numbers": np.tile(WATER, (N, 1)), "energy": ENERGIES, "forces": FORCES, "charges": charges}
    content |= {"charge": np.array([0, 1, -1], np.int8), "mult": 1}
    for path in (tmp_path / "a.npz", hdf5(tmp_path / "a.h5", {f"003/{key}": value for key, value in content.items()})):
        if path.suffix == ".npz":
            np.savez(path, **content)
        structures = found_in(path, keys())
        assert_waters(structures)
        assert [(s["info"]["charge"], s["info"]["mult"]) for s in structures] == [(0, 1), (1, 1), (-1, 1)]
        np.testing.assert_array_equal([s["info"]["charges"] for s in structures], charges)


def test_charges_of_the_atoms_of_all_structures(tmp_path):
    """Which may be those of as many structures."""
    content = {"R": POSITIONS[:2], "Z": WATER, "E": ENERGIES[:2], "formal_charges": np.array([1, 0, 0])}
    for of_all in ({}, {"formal_charges": np.array([[[1], [0], [0]]] * 2)}):
        np.savez(tmp_path / "a.npz", **content | of_all)
        assert all(read_states(WATER, s["info"])[0] == ((1, 2),) for s in found_in(tmp_path / "a.npz", keys("E", "-")))
    np.savez(tmp_path / "a.npz", **content | {"R": POSITIONS, "E": ENERGIES})
    refused(
        tmp_path / "a.npz", keys("E", "-"), r"formal_charges has 3 numbers, which may be one a structure or one an atom; write it as \(str"
    )


def test_hdf5_of_ani1(tmp_path):
    """Nested groups, symbols of elements, the SMILES as an array of its letters; structures of high energy are left alone."""
    content = {
        "species": np.array([b"O", b"H", b"H"]), "coordinates": POSITIONS.astype(np.float32), "energies": ENERGIES,
        "coordinatesHE": some(5, 3, 3), "energiesHE": some(5), "smiles": np.array([c.encode() for c in "[H]O[H]"]),
    }  # fmt: skip
    hdf5(tmp_path / "a.h5", {f"gdb11_s01/gdb11_s01-0/{key}": value for key, value in content.items()})
    structures = found_in(tmp_path / "a.h5", keys("energies", "-"))
    assert_waters(structures, forces=None, positions=POSITIONS.astype(np.float32))
    assert structures[0]["info"] == {"molecule": "gdb11_s01/gdb11_s01-0", "smiles": "[H]O[H]"} and structures[0]["units"] == {}


@pytest.mark.parametrize("how", ["a link", "external storage", "a virtual dataset"])
def test_hdf5_that_names_another_file(tmp_path, how):
    """Which the user has not named, and which is not read."""
    h5py = pytest.importorskip("h5py")
    other = hdf5(tmp_path / "other.h5", {"coordinates": np.zeros((2, 1, 3))})
    with h5py.File(hdf5(tmp_path / "a.h5", {"species": np.array([8])}), "a") as file:
        if how == "a link":
            file["coordinates"] = h5py.ExternalLink(str(other), "coordinates")
        elif how == "external storage":
            np.zeros((2, 1, 3)).tofile(tmp_path / "raw")
            file.create_dataset("coordinates", (2, 1, 3), float, external=[(str(tmp_path / "raw"), 0, 48)])
        else:
            layout = h5py.VirtualLayout((2, 1, 3), float)
            layout[:] = h5py.VirtualSource(str(other), "coordinates", (2, 1, 3))
            file.create_virtual_dataset("coordinates", layout)
    with pytest.raises(DataError, match=r"a\.h5: coordinates lies in another file, which is not read"):
        list(found_in(tmp_path / "a.h5", keys("energies", "forces")))


def test_hdf5_of_ani2x(tmp_path):
    """A group a number of atoms, with several compositions; symbols as str."""
    numbers = np.array([[8, 1, 1], [6, 8, 8], [7, 1, 1]])
    content = {"3/species": numbers, "3/coordinates": POSITIONS, "3/energies": ENERGIES, "3/forces": FORCES}
    content |= {"2/species": ["O", "H"], "2/coordinates": POSITIONS[:1, :2], "2/energies": ENERGIES[:1], "2/forces": FORCES[:1, :2]}
    first, *structures = found_in(hdf5(tmp_path / "a.hdf5", content), keys("energies", "forces"))
    np.testing.assert_array_equal(first["numbers"], [8, 1])
    for s, z, e, f in zip(structures, numbers, ENERGIES, FORCES, strict=True):
        np.testing.assert_array_equal(s["numbers"], z)
        assert s["labels"]["dft"].energy == e and s["info"] == {}
        np.testing.assert_array_equal(s["labels"]["dft"].forces, f)


def test_hdf5_of_ani1x(tmp_path):
    """NaN is a missing label."""
    energies = ENERGIES.copy()
    energies[1] = np.nan
    content = {"H2O/atomic_numbers": WATER, "H2O/coordinates": POSITIONS, "H2O/wb97x_dz.energy": energies, "H2O/wb97x_dz.forces": FORCES}
    structures = found_in(hdf5(tmp_path / "a.h5", content), keys("wb97x_dz.energy", "wb97x_dz.forces"))
    assert [s["labels"]["dft"].energy is None for s in structures] == [False, True, False]
    np.testing.assert_array_equal(structures[1]["labels"]["dft"].forces, FORCES[1])


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [("[O:1]([H:2])[H:3]", 0), ("[NH3+:1][CH2:2][C:3](=[O:4])[O-:5]", 0), ("[Mg++]", 2), ("[S-2:1].[C@@H:2]", -2)],
)
def test_hdf5_of_spice(tmp_path, smiles, charge):
    """Units as attributes, a gradient as it stands, the charge by the SMILES."""
    content = {"atomic_numbers": WATER, "conformations": POSITIONS, "dft_total_energy": ENERGIES, "dft_total_gradient": FORCES}
    content |= {"smiles": [smiles.encode()], "subset": [b"SPICE PubChem"], "mbis_charges": some(N, 3, 1)}
    tags = {"conformations": "bohr", "dft_total_energy": b"hartree", "dft_total_gradient": "hartree/bohr"}
    path = hdf5(
        tmp_path / "a.hdf5",
        {f"water/{key}": value for key, value in content.items()},
        [(f"water/{key}", "units", value) for key, value in tags.items()],
    )
    structures = found_in(path, keys("dft_total_energy", "dft_total_gradient"))
    assert_waters(structures)
    assert structures[0]["units"] == {"length": "bohr", "dft_total_energy": "hartree", "dft_total_gradient": "hartree/bohr"}
    assert (
        structures[0]["info"] == {"molecule": "water", "smiles": smiles}
        and read_states(WATER, structures[0]["info"])[0][0].charge == charge
    )


def test_hdf5_of_qm7x(tmp_path):
    """A group a structure; attributes of an outer group count for those in it."""
    content = {}
    for k in range(N):
        group = f"7/Geom-m7-i1-c{k}-opt"
        content |= {f"{group}/atNUM": WATER, f"{group}/atXYZ": POSITIONS[k], f"{group}/ePBE0+MBD": ENERGIES[k : k + 1]}
        content |= {f"{group}/totFOR": FORCES[k], f"{group}/hCHG": some(3)}
    attributes = [("7", "charge", 1), ("7/Geom-m7-i1-c2-opt", "charge", 0), ("/", "Multiplicity", 1)]
    structures = found_in(hdf5(tmp_path / "a.hdf5", content, attributes), keys("ePBE0+MBD", "totFOR"))
    assert_waters(structures)
    assert [s["info"]["charge"] for s in structures] == [1, 1, 0]
    assert all(s["info"]["molecule"] == "7" and s["info"]["Multiplicity"] == 1 for s in structures)


def test_hdf5_without_groups_or_layout(tmp_path):
    content = {"Z": WATER, "R": POSITIONS, "dft/energy": ENERGIES, "dft/forces": FORCES}
    assert_waters(found_in(hdf5(tmp_path / "a.h5", content), keys("dft/energy", "dft/forces")))
    hdf5(tmp_path / "a.h5", {"a/xyz": POSITIONS, "b/xyz": POSITIONS, "b/charges": FORCES})
    refused(tmp_path / "a.h5", keys(), "wanted is a group with positions .* found are datasets called xyz, charges$")


# DeePMD


def system(folder, types=(0, 1, 1), type_map="O\nH\n", **content):
    (folder / "set.000").mkdir(parents=True, exist_ok=True)
    (folder / "type.raw").write_text("\n".join(map(str, types)))
    if type_map is not None:
        (folder / "type_map.raw").write_text(type_map)
    frames = {"coord": POSITIONS.reshape(N, 9), "energy": ENERGIES, "force": FORCES.reshape(N, 9), **content}
    for name, value in frames.items():
        np.save(folder / "set.000" / f"{name}.npy", value)
    return folder


DEEPMD = {"length": "Å", "energy": "eV", "forces": "eV/Å", "virial": "eV"}


@pytest.mark.parametrize("forces", ["force", "forces"])
def test_deepmd(tmp_path, forces):
    boxes, virials = some(N, 9, seed=5), some(N, 9, seed=6)
    folder = system(tmp_path / "water", box=boxes, virial=virials, energy=ENERGIES[:, None])
    structures = found_in(folder, keys(forces=forces, virial="virial"))
    assert_waters(structures)
    for s, box, virial in zip(structures, boxes, virials, strict=True):
        assert s["pbc"].all() and s["units"] == DEEPMD
        np.testing.assert_array_equal(s["cell"], box.reshape(3, 3))
        np.testing.assert_array_equal(s["labels"]["dft"].virial, virial)


def test_deepmd_of_several_systems(tmp_path):
    """In order, of mixed types filled up with -1, without labels, with spins."""
    (system(tmp_path / "a" / "molecule", spin=FORCES.reshape(N, 9)) / "nopbc").touch()
    types = np.array([[1, 0, -1], [1, 0, 0], [0, 1, 0]])
    (system(tmp_path / "b", types=(0, 0, 0), type_map="H O", real_atom_types=types) / "nopbc").touch()
    structures = found_in(tmp_path, keys())
    assert_waters(structures[:N])
    assert [list(s["numbers"]) for s in structures[N:]] == [[8, 1], [8, 1, 1], [1, 8, 1]]
    assert not structures[0]["pbc"].any() and not structures[0]["cell"].any()
    np.testing.assert_array_equal(structures[0]["moments"], FORCES[0])
    np.testing.assert_array_equal(structures[N]["positions"], POSITIONS[0, :2])
    np.testing.assert_array_equal(structures[N]["labels"]["dft"].forces, FORCES[0, :2])
    assert found_in(tmp_path, keys("energy_of_another_level", "-"))[0]["labels"] == {}


def test_deepmd_that_cannot_be_read(tmp_path):
    refused(tmp_path, keys(), "is no system of DeePMD and holds none; wanted are type.raw")
    refused(system(tmp_path / "a", type_map=None), keys(), "there is no type_map.raw; write one, with the symbols")
    refused(system(tmp_path / "b"), keys(), "there is no box.npy; an empty file nopbc")
    refused(
        system(tmp_path / "c", types=(0, 1)), keys(), r"coord.npy has the shape \(3, 9\), and type.raw has 2 atoms; wanted is \(frames, 6\)"
    )
    refused(
        system(tmp_path / "d", types=(0, 1, 2), box=some(N, 9)),
        keys(),
        "the types 0 to 2 of 3 atoms are not types of 3 atoms of 2 elements",
    )
    refused(system(tmp_path / "e", box=some(2, 9)), keys(), r"box has the shape \(2, 9\) for 3 frames")
    (system(tmp_path / "f") / "set.000" / "energy.npy").write_text("no such thing")
    refused(tmp_path / "f", keys(), "energy.npy: cannot be read")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "type.raw").write_text("0")
    (tmp_path / "g" / "type_map.raw").write_text("H")
    refused(tmp_path / "g", keys(), "there is no set")


# n2p2


def block(k, lattice="", end="end\n"):
    atoms = "".join(
        f"atom {' '.join(map(repr, map(float, r)))} {symbol} 0.1 0.0 {' '.join(map(repr, map(float, f)))}\n"
        for symbol, r, f in zip("OHH", POSITIONS[k], FORCES[k], strict=True)
    )
    return f"begin\ncomment energy of structure {k}\n{lattice}{atoms}energy {float(ENERGIES[k])!r}\ncharge {k}.0\n{end}"


def test_deepmd_of_the_wrong_sizes(tmp_path):
    folder = system(
        tmp_path / "types", coord=POSITIONS.reshape(N, 9), energy=ENERGIES, real_atom_types=np.full((N, 3), 0.5), box=np.ones((N, 9))
    )
    refused(folder, keys(), "are not types of 3 atoms of 2 elements")
    folder = system(tmp_path / "box", coord=POSITIONS.reshape(N, 9), energy=ENERGIES, box=np.ones((N, 3)))
    refused(folder, keys(), "box.npy has 3 numbers for it; wanted are 9")
    folder = system(tmp_path / "map", coord=POSITIONS.reshape(N, 9), energy=ENERGIES, box=np.ones((N, 9)))
    (folder / "type_map.raw").write_bytes(b"\xff O")
    refused(folder, keys(), "is no symbol of an element")


def test_deepmd_of_no_arrays(tmp_path):
    folder = system(tmp_path / "a", box=np.ones((N, 9)))
    for content in (b"PK\x03\x04", b"", b"words"):
        (folder / "set.000" / "coord.npy").write_bytes(content)
        refused(folder, keys(), "coord.npy: cannot be read")


def test_n2p2(tmp_path):
    lattice = "lattice 9 0 0\nlattice 1 9 0\nlattice 0 0 9\n"
    (tmp_path / "input.data").write_text("# made by hand\n" + block(0) + block(1, lattice) + "\n" + block(2))
    structures = found_in(tmp_path / "input.data", keys())
    assert_waters(structures)
    assert [s["info"] for s in structures] == [{"charge": 0.0}, {"charge": 1.0}, {"charge": 2.0}]
    for s in structures:
        assert s["default_units"] == {"energy": "Hartree", "length": "Bohr"} and "units" not in s
        np.testing.assert_array_equal(s["charges"], [0.1] * 3)
    assert [s["pbc"].all() for s in structures] == [False, True, False]
    np.testing.assert_array_equal(structures[1]["cell"], [[9, 0, 0], [1, 9, 0], [0, 0, 9]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LAMMPS data file\n\n3 atoms\n", "is no input.data of n2p2 or RuNNer.*the first here is 'LAMMPS'"),
        (block(0) + "energy 1\n", "'energy' stands between structures"),
        (block(0, end="") + block(1), "line 8: structure 0 has no `end` before the next `begin`"),
        (block(0) + block(1, end=""), "structure 1 has no `end`; is the file cut off?"),
        (block(0, "lattice 1 0 0\n"), "structure 0: 1 lines `lattice`; wanted are three"),
        ("begin\natom 0 0 0 H\nend\n", "line 2 has 4 values after `atom`; wanted is atom x y z symbol charge energy fx fy fz"),
        ("begin\nenergy high\nend\n", "line 2: could not convert string to float: 'high'"),
        ("begin\nend\n", "structure 0: the structure has no atoms"),
        ("", "the file holds no structure"),
    ],
)
def test_n2p2_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "a.data").write_text(text)
    refused(tmp_path / "a.data", keys(), message)


# ASE


def waters(**info):
    frames = []
    for r, e, f in zip(POSITIONS, ENERGIES, FORCES, strict=True):
        frames.append(Atoms(WATER, r, cell=np.eye(3) * 9, pbc=True, info=info))
        frames[-1].calc = SinglePointCalculator(frames[-1], energy=e, forces=f, stress=np.arange(6.0))
    return frames


def test_trajectory(tmp_path):
    for name, given in (("a.traj", None), ("a.whatever", "trajectory")):
        ase.io.write(tmp_path / name, waters(charge=1), format="traj")
        structures = found_in(tmp_path / name, keys(stress="stress"), given)
        assert_waters(structures)
        for s in structures:
            np.testing.assert_array_equal(s["labels"]["dft"].stress, np.arange(6.0))
            assert s["info"] == {"charge": 1} and s["pbc"].all()
    (tmp_path / "a.traj").write_text("no such thing")
    refused(tmp_path / "a.traj", keys(), "frame 0 cannot be read as an ASE trajectory")


def xyz(comment, k=0):
    atoms = "".join(
        f"{symbol} {' '.join(map(repr, map(float, [*r, *f])))}\n" for symbol, r, f in zip("OHH", POSITIONS[k], FORCES[k], strict=True)
    )
    return f"3\n{comment}\n{atoms}"


def test_extended_xyz_with_a_virial(tmp_path):
    """ASE has the matrix by columns; a virial is the same either way."""
    comments = (
        f'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:dft_forces:R:3 dft_energy={float(e)!r} virial="1 2 3 2 4 5 3 5 6" '
        f"charge={k}"
        for k, e in enumerate(ENERGIES)
    )
    (tmp_path / "a.xyz").write_text("".join(xyz(comment, k) for k, comment in enumerate(comments)))
    structures = found_in(tmp_path / "a.xyz", keys("dft_energy", "dft_forces", virial="virial"))
    assert_waters(structures)
    np.testing.assert_array_equal(structures[0]["labels"]["dft"].virial, [[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert [s["info"]["charge"] for s in structures] == [0, 1, 2]


@pytest.mark.parametrize("comment", ["-76.4", "E = -76.4", "energy: -76.4", "water -76.4 hartree", "i = 5, E = -76.4"])
def test_plain_xyz_with_an_energy(tmp_path, comment):
    """Is refused with the line to write, which is then read."""
    path = tmp_path / "a.xyz"
    path.write_text(xyz(comment))
    wanted = "Properties=species:S:1:pos:R:3 energy_dft=-76.4"
    refused(path, keys("energy_dft", "forces_dft"), f"its comment .{comment}. is not read; write extended XYZ, .* is here {wanted}$")
    path.write_text(xyz(wanted))
    assert found_in(path, keys("energy_dft", "forces_dft"))[0]["labels"]["dft"].energy == -76.4


@pytest.mark.parametrize("comment", ["", "frame 5", "water-2.5A", "E=-76.4 other=1"])
def test_xyz_without_labels(tmp_path, comment):
    """Is a matter of whoever needs labels."""
    (tmp_path / "a.xyz").write_text(xyz(comment))
    assert found_in(tmp_path / "a.xyz", keys("energy_dft", "forces_dft"))[0]["labels"] == {}


def test_xyz_that_is_to_have_more_atoms_than_it_has_bytes(tmp_path):
    """Which ASE does not see."""
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n40\n\nH 0 0 0\n")
    refused(tmp_path / "a.xyz", keys(), "a frame is to have 40 atoms, and the file ends 2 lines later")
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n+40\n\nH 0 0 0\n")  # which is a number to ASE
    refused(tmp_path / "a.xyz", keys(), "a frame is to have 40 atoms")
    (tmp_path / "a.xyz").write_text("000001\nProperties=species:S:1:pos:R:3 energy=1.5\nH 0 0 0\n\n40\n")  # ASE ends at a blank line
    assert [s["labels"]["dft"].energy for s in found_in(tmp_path / "a.xyz", keys())] == [1.5]


def test_xyz_whose_comment_ase_reads(tmp_path):
    (tmp_path / "a.xyz").write_text(xyz("i = 5, E = -76.4"))
    assert found_in(tmp_path / "a.xyz", keys("E"))[0]["labels"]["dft"].energy == -76.4


@pytest.mark.parametrize("name", ["a.db", "a.json", "a.aselmdb"])
def test_databases(name, tmp_path):
    kind = name.rpartition(".")[2]
    if kind == "aselmdb":
        pytest.importorskip("ase_db_backends")
    with ase.db.connect(tmp_path / name, type=kind) as file:
        for atoms in waters():
            file.write(atoms, charge=1, data={"spin": 2})
    structures = found_in(tmp_path / name, keys())
    assert_waters(structures)
    assert all((s["info"]["charge"], s["info"]["spin"], s["units"]) == (1, 2, {}) for s in structures)
    assert structures[0]["default_spin"] == ("2S+1" if kind == "aselmdb" else None)
    before = sorted(tmp_path.iterdir())
    found_in(tmp_path / name, keys())
    assert sorted(tmp_path.iterdir()) == before  # reading leaves nothing behind


def test_databases_of_schnetpack(tmp_path):
    """Their metadata say the units; energies are arrays of one."""
    with ase.db.connect(tmp_path / "a.db") as file:
        file.metadata = {"_distance_unit": "Bohr", "_property_unit_dict": {"energy_U0": "Ha", "forces": "Ha/Bohr", "mu": "Debye"}}
        for r, e, f in zip(POSITIONS, ENERGIES, FORCES, strict=True):
            file.write(Atoms(WATER, r), data={"energy_U0": np.array([e]), "forces": f})
    structures = found_in(tmp_path / "a.db", keys("energy_U0"))
    assert_waters(structures)
    assert structures[0]["units"] == {"length": "Bohr", "energy_U0": "Ha", "forces": "Ha/Bohr"}


def test_databases_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.db").write_text("no such thing")
    refused(tmp_path / "a.db", keys(), "cannot be read as an ASE database")
    monkeypatch.setitem(sys.modules, "ase_db_backends", None)
    monkeypatch.setitem(sys.modules, "ase_db_backends.aselmdb", None)
    with pytest.raises(ModuleNotFoundError, match="ase_db_backends"):
        list(registry.read(tmp_path / "a.aselmdb", keys()))


# QCSchema


def result(k, driver="gradient", **more):
    value = -FORCES[k].ravel() if driver == "gradient" else ENERGIES[k]
    molecule = {"symbols": ["O", "H", "H"], "geometry": POSITIONS[k].ravel().tolist(), "molecular_charge": 1.0, "molecular_multiplicity": 2}
    return {
        "schema_name": "qcschema_output",
        "molecule": molecule,
        "driver": driver,
        "model": {"method": "B3LYP", "basis": "def2-SVP"},
        "properties": {"return_energy": float(ENERGIES[k])} if driver == "gradient" else {},
        "return_result": np.asarray(value).tolist(),
        "success": True,
        **more,
    }


def test_qcschema(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([result(k) for k in range(N)]))
    structures = found_in(path, keys())
    assert_waters(structures)
    for s in structures:
        assert s["info"] == {"charge": 1, "multiplicity": 2} and not np.size(s["fragment"])
        assert s["units"] == {"length": "Bohr", "energy": "Hartree", "forces": "Hartree/Bohr"}
    path.write_text(json.dumps(result(0, "energy", schema_name="qc_schema_output")))
    for given in (None, "qcschema"):
        (one,) = found_in(path, keys(), given)
        assert one["labels"]["dft"].energy == pytest.approx(ENERGIES[0]) and one["labels"]["dft"].forces is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "this is a JSON list of 3 items; wanted is an ASE database .* or QCSchema"),
        ([], "this is a JSON list of 0 items"),
        ({"atoms": 1, "bonds": 2}, "this is a JSON object with the keys atoms, bonds; wanted"),
        ("x", "this is the JSON value 'x'"),
        ([result(0), result(1, success=False, error={"error_message": "no\nconvergence"})], r"entry 1: .* failed \(no convergence\)"),
        ([result(0), {"success": False}], r"entry 1: the calculation has failed \(no reason is given\)"),
        (
            [result(0), result(1, model={"method": "CCSD", "basis": "cc-pVTZ"})],
            "entry 1: is of ccsd/cc-pvtz, and those before are of b3lyp/def2-svp",
        ),
        (result(0, molecule={"symbols": ["O", "H"], "geometry": [0.0] * 9}), "entry 0: is not as QCSchema has it"),
        (result(0, molecule={"symbols": ["O"], "geometry": [0.0] * 3, "real": [False]}), "entry 0: has ghost atoms"),
        (result(0, molecule={}), "entry 0: is not as QCSchema has it .KeyError"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "a.json").write_text(json.dumps(content))
    refused(tmp_path / "a.json", keys(), message)
    (tmp_path / "a.json").write_text("no such thing")
    refused(tmp_path / "a.json", keys(), "cannot be read as JSON")


def test_the_format_of_a_file(tmp_path):
    np.savez(tmp_path / "a.npz", Z=WATER, R=POSITIONS, E=ENERGIES)
    refused(tmp_path / "a.npz", keys(), "'npz' is no format; there are arrays, asedb, deepmd, extxyz", given="npz")
    refused(tmp_path / "a.npz", keys(), "frame 0 cannot be read as extended XYZ", given="extxyz")
    refused(tmp_path / "a.csv", keys(), "the ending .csv stands for no format; there are .xyz")
    assert registry.format_of(tmp_path) == "deepmd" and registry.format_of("input.data") == "n2p2"
