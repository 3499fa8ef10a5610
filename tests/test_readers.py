"""The same structures and labels from every format, in the units the config declares."""

import io
import json
import pickle
import tempfile
import zlib
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import DATA

pytest.importorskip("lightning")
from mfmd import units
from mfmd.structures import reading, state
from mfmd.structures.record import DataError
from mfmd.training import schema

LEVELS = {
    "gfn2": schema.Level(energy="energy_gfn2", forces="forces_gfn2", stress="-"),
    "cctz": schema.Level(energy="energy_cctz", forces="-", stress="-"),
}


@pytest.fixture(scope="module")
def frames():
    """Formaldehyde, some of it with a cctz energy."""
    return [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "formaldehyde"][:40]


def xyz(frames, path):
    ase.io.write(path, frames, format="extxyz")
    return LEVELS


def database(frames, path):
    with ase.db.connect(path) as file:
        for a in frames:
            plain = a[:]
            plain.calc = SinglePointCalculator(plain, energy=a.info["energy_gfn2"])
            pairs = {"energy_cctz": a.info["energy_cctz"]} if "energy_cctz" in a.info else {}
            file.write(plain, data={"forces_gfn2": a.arrays["forces_gfn2"]}, molecule="formaldehyde", **pairs)
    return {"gfn2": schema.Level(energy="energy", forces="forces_gfn2", stress="-"), "cctz": LEVELS["cctz"]}


def arrays(frames):
    return {
        "coordinates": np.array([a.positions for a in frames]),
        "atomic_numbers": frames[0].numbers,
        "xtb.energy": np.array([a.info["energy_gfn2"] for a in frames]),
        "xtb.forces": np.array([a.arrays["forces_gfn2"] for a in frames]),
        "ccsd(t)_cbs.energy": np.array([a.info.get("energy_cctz", np.nan) for a in frames]),
    }


ARRAY_LEVELS = {
    "gfn2": schema.Level(energy="xtb.energy", forces="xtb.forces", stress="-"),
    "cctz": schema.Level(energy="ccsd(t)_cbs.energy", forces="-", stress="-"),
}


def npz(frames, path):
    content = arrays(frames)
    content["R"], content["z"] = content.pop("coordinates"), content.pop("atomic_numbers")
    content["xtb.energy"] = content["xtb.energy"][:, None]  # as MD17 has it
    del content["ccsd(t)_cbs.energy"]
    np.savez(path, **content)
    return {"gfn2": ARRAY_LEVELS["gfn2"]}


def hdf5(frames, path):
    import h5py

    with h5py.File(path, "w") as file:
        for key, value in arrays(frames).items():
            file.create_dataset(f"C1H2O1/{key}", data=value)
    return ARRAY_LEVELS


def packed(record):
    """As msgpack-numpy does it."""
    import msgpack

    return msgpack.packb(
        {k: {b"nd": True, b"type": v.dtype.str, b"kind": b"", b"shape": v.shape, b"data": v.tobytes()} for k, v in record.items()}
    )


def zipped(record):
    file = io.BytesIO()
    np.savez(file, **record)
    return file.getvalue()


def text(record):
    return zlib.compress(json.dumps({k: v.tolist() for k, v in record.items()}).encode())


def parquet(frames, path, encode=packed):
    """metadata.parquet and data.lmdb of paper 1; gfn2 in eV, cctz in Hartree."""
    import lmdb
    import pyarrow
    import pyarrow.parquet

    rows = []
    with lmdb.open(str(path.parent / "data.lmdb"), subdir=False, map_size=2**26) as file, file.begin(write=True) as transaction:
        for k, a in enumerate(frames):
            record = {"positions": a.positions, "atomic_numbers": a.numbers}
            common = {"formula": "CH2O", "conformation_idx": k, "n_atoms": len(a)}
            own = [
                {
                    "method": "xtb",
                    "energy": a.info["energy_gfn2"],
                    "energy_unit": "eV",
                    "forces_present": True,
                    "forces_unit": "Hartree/Bohr",
                }
            ]
            if "energy_cctz" in a.info:
                hartree = a.info["energy_cctz"] / units.ENERGY["Hartree"]
                own.append({"method": "cc", "energy": hartree, "energy_unit": "hartree", "forces_present": False, "forces_unit": None})
            for row in own:
                atomic = units.ENERGY["Hartree"] / units.LENGTH["Bohr"]
                more = {"forces": a.arrays["forces_gfn2"] / atomic} if row["forces_present"] else {}
                transaction.put(str(len(rows)).encode(), encode({**record, **more}))
                rows.append({**common, **row, "idx": len(rows)})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.parent / "metadata.parquet")
    return {
        "gfn2": schema.Level(energy="xtb.energy", forces="xtb.forces", stress="-"),
        "cctz": schema.Level(energy="cc.energy", forces="cc.forces", stress="-"),
    }


FORMATS = {"a.extxyz": xyz, "a.db": database, "a.json": database, "a.npz": npz, "a.h5": hdf5, "metadata.parquet": parquet}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same(name, frames, tmp_path):
    levels = FORMATS[name](frames, tmp_path / name)
    config = schema.Data(train=[tmp_path / name])
    found = list(reading.read_file(tmp_path / name, config, levels))
    assert len(found) == len(frames)
    for s, a in zip(found, frames, strict=True):
        np.testing.assert_array_equal(s.numbers, a.numbers)
        np.testing.assert_allclose(s.positions, a.positions, atol=1e-8)
        assert s.labels["gfn2"].energy == pytest.approx(a.info["energy_gfn2"], abs=1e-8)
        np.testing.assert_allclose(s.labels["gfn2"].forces, a.arrays["forces_gfn2"], atol=1e-8)
        if "cctz" in levels:
            assert ("cctz" in s.labels) == ("energy_cctz" in a.info)
            if "cctz" in s.labels:
                assert s.labels["cctz"].energy == pytest.approx(a.info["energy_cctz"], abs=1e-8)
        assert not s.pbc.any() and str(tmp_path) in s.source


def test_units_of_the_file(frames, tmp_path):
    hdf5(frames, tmp_path / "a.h5")
    config = schema.Data(train=[tmp_path / "a.h5"], energy_unit="Hartree")
    s = next(reading.read_file(tmp_path / "a.h5", config, ARRAY_LEVELS))
    assert s.labels["gfn2"].energy == pytest.approx(frames[0].info["energy_gfn2"] * units.ENERGY["Hartree"])


def test_files_that_cannot_be_read(frames, tmp_path):
    def read(name):
        return list(reading.read_file(tmp_path / name, schema.Data(train=[tmp_path / name]), ARRAY_LEVELS))

    for name, message in (
        ("a.npz", "cannot be read as .npz"),
        ("a.h5", "cannot be read as HDF5"),
        ("a.db", "cannot be read as an ASE database"),
    ):
        (tmp_path / name).write_text("no such thing, whatever its name says")
        with pytest.raises(DataError, match=message):
            read(name)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"the ending .csv stands for no format; there are .xyz"):
        read("a.csv")
    np.savez(tmp_path / "b.npz", energies=np.zeros(3))
    with pytest.raises(DataError, match="wanted are positions .* found energies"):
        read("b.npz")
    content = arrays(frames)
    np.savez(tmp_path / "c.npz", **{**content, "xtb.energy": content["xtb.energy"][:-1]})
    with pytest.raises(DataError, match="xtb.energy has 39 entries for 40 structures"):
        read("c.npz")
    np.savez(tmp_path / "d.npz", **{**content, "atomic_numbers": content["atomic_numbers"][:-1]})
    with pytest.raises(DataError, match=r"\(3,\) atomic numbers for positions of shape \(40, 4, 3\)"):
        read("d.npz")


@pytest.mark.parametrize("encode", [packed, zipped, text])
def test_records_of_the_multifidelity_set(frames, tmp_path, encode):
    """Whatever they are encoded in, all of it or what a split file lists."""
    levels = parquet(frames, tmp_path / "metadata.parquet", encode)
    config = schema.Data(train=[])
    whole = list(reading.read_file(tmp_path / "metadata.parquet", config, levels))
    assert len(whole) == len(frames) and sum("cctz" in s.labels for s in whole) == sum("energy_cctz" in a.info for a in frames)
    (tmp_path / "xtb_train_a.json").write_text("[0, 4, 7]")
    part = list(reading.read_file(tmp_path / "xtb_train_a.json", config, levels))
    assert sum(len(s.labels) for s in part) == 3
    for s in part:
        a = frames[int(s.source.rpartition(" ")[2])]
        np.testing.assert_allclose(s.positions, a.positions, atol=1e-12)
        for level, label in s.labels.items():
            assert label.energy == pytest.approx(a.info[f"energy_{level}"], abs=1e-9)


def test_a_multifidelity_set_that_cannot_be_read(frames, tmp_path):
    def read(name="metadata.parquet", **more):
        return list(reading.read_file(tmp_path / name, schema.Data(train=[], **more), levels))

    levels = parquet(frames[:2], tmp_path / "metadata.parquet", pickle.dumps)
    with pytest.raises(DataError, match="conformation 0, xtb: the record is a pickle, which may run anything"):
        read()
    for name, content in (("cc_train_a.json", "[0, 99]"), ("cc_train_b.json", "{}}")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"{name}: not a list of idx of .*metadata.parquet"):
            read(name)
    parquet(frames[:2], tmp_path / "metadata.parquet", packed)
    with pytest.raises(DataError, match="the file says eV, and data.energy_unit says Hartree; leave out the key"):
        read(energy_unit="Hartree")
    parquet(frames[:2], tmp_path / "metadata.parquet", lambda record: packed({k: v for k, v in record.items() if k != "forces"}))
    with pytest.raises(DataError, match=r"the record of idx 0 is not what its row says \(KeyError\('forces'\)\)"):
        read()
    (tmp_path / "data.lmdb").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"data.lmdb: cannot be read as LMDB"):
        read()
    (tmp_path / "metadata.parquet").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"metadata.parquet: cannot be read .* wanted are the columns formula"):
        read()


# Charge and spin: what is said of one water, in the words of each format. Each writes a file and returns its path.

WATER, PLACES = np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])


def of_ase(suffix):
    def write(folder, info):
        atoms = Atoms(WATER, PLACES, info=dict(info))
        if "fragment" in info and suffix == "xyz":
            atoms.set_array("fragment", np.array(atoms.info.pop("fragment")))
        atoms.calc = SinglePointCalculator(atoms, energy=-2000.0)
        ase.io.write(folder / f"a.{suffix}", atoms, format={"xyz": "extxyz", "traj": "traj"}[suffix])
        return folder / f"a.{suffix}"

    return write


def of_database(suffix):
    def write(folder, info):
        pytest.importorskip("ase_db_backends") if suffix == "aselmdb" else None
        with ase.db.connect(folder / f"a.{suffix}", type=suffix, append=False) as file:
            file.write(Atoms(WATER, PLACES), data={"energy": -2000.0, **info})
        return folder / f"a.{suffix}"

    return write


def of_npz(each):
    """A number of all structures, or each structure's."""

    def write(folder, info):
        said = {key: np.asarray(value)[None] if each else np.asarray(value) for key, value in info.items()}
        np.savez(folder / "a.npz", z=WATER, R=PLACES[None], energy=np.array([-2000.0]), **said)
        return folder / "a.npz"

    return write


def of_hdf5(place):
    """A dataset beside the others, or an attribute of their group or of the file."""

    def write(folder, info):
        import h5py

        with h5py.File(folder / "a.h5", "w") as file:
            group = file.create_group("water")
            group["species"], group["coordinates"], group["energy"] = WATER, PLACES[None], [-2000.0]
            for key, value in info.items():
                if place == "dataset" or key == "fragment":
                    group[key] = value
                else:
                    (group if place == "group" else file).attrs[key] = value
        return folder / "a.h5"

    return write


def of_deepmd(folder, info):
    folder = folder / "water"
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("0 1 1")
    (folder / "type_map.raw").write_text("O H")
    (folder / "nopbc").touch()
    for key, value in {"coord": PLACES.ravel(), "energy": -2000.0, **info}.items():
        np.save(folder / "set.000" / f"{key}.npy", np.array([value], float))
    return folder


def of_n2p2(folder, info):
    lines = [f"atom {x} {y} {z} {symbol} 0 0 0 0 0" for (x, y, z), symbol in zip(PLACES / units.LENGTH["Bohr"], "OHH", strict=True)]
    words = [f"{key} {value}" for key, value in info.items()]
    (folder / "input.data").write_text("\n".join(["begin", *lines, "energy -76.0", *words, "end"]) + "\n")
    return folder / "input.data"


def of_qcschema(folder, info):
    own = {"charge": "molecular_charge", "multiplicity": "molecular_multiplicity"}
    molecule = {"symbols": ["O", "H", "H"], "geometry": (PLACES / units.LENGTH["Bohr"]).ravel().tolist()}
    molecule |= {own[key]: value for key, value in info.items() if key in own}
    molecule["identifiers"] = {key: value for key, value in info.items() if key == "smiles"}
    if "fragments" in info:
        molecule["fragments"] = [np.flatnonzero(np.equal(info["fragment"], k)).tolist() for k in range(len(info["fragments"]))]
        molecule["fragment_charges"], molecule["fragment_multiplicities"] = np.transpose(info["fragments"]).tolist()
    entry = {"schema_name": "qcschema_output", "driver": "energy", "return_result": -76.0, "molecule": molecule}
    (folder / "a.json").write_text(json.dumps(entry))
    return folder / "a.json"


def of_multifidelity(in_record):
    """A column of the table, or a key of the record."""

    def write(folder, info):
        import lmdb
        import pyarrow
        import pyarrow.parquet

        record = {"positions": PLACES, "atomic_numbers": WATER} | (
            {key: np.asarray(value) for key, value in info.items()} if in_record else {}
        )
        with lmdb.open(str(folder / "data.lmdb"), subdir=False, map_size=2**26) as file, file.begin(write=True) as transaction:
            transaction.put(b"0", zipped(record))
        row = {"formula": "H2O", "conformation_idx": 0, "method": "dft", "energy": -2000.0, "energy_unit": "eV"}
        row |= {"forces_present": False, "forces_unit": None, "idx": 0} | ({} if in_record else info)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "metadata.parquet")
        return folder / "metadata.parquet"

    return write


SAYING = {
    "extxyz": of_ase("xyz"), "traj": of_ase("traj"), "db": of_database("db"), "json": of_database("json"), "aselmdb": of_database("aselmdb"),
    "npz, of all": of_npz(False), "npz, each": of_npz(True), "HDF5 dataset": of_hdf5("dataset"), "HDF5 group": of_hdf5("group"),
    "HDF5 file": of_hdf5("file"), "deepmd": of_deepmd, "n2p2": of_n2p2, "qcschema": of_qcschema, "multifidelity column": of_multifidelity(False),
    "multifidelity record": of_multifidelity(True),
}  # fmt: skip
WITHOUT_TEXT = ("deepmd", "n2p2")  # files of numbers, which have no SMILES
WITH_FRAGMENTS = [kind for kind in SAYING if kind not in (*WITHOUT_TEXT, "multifidelity column", "multifidelity record")]


@pytest.fixture
def said(tmp_path):
    """A function of a kind and what is said -> the one structure, or DataError in one sentence that names the file."""

    def read(kind, info, **data):
        path = SAYING[kind](Path(tempfile.mkdtemp(dir=tmp_path)), info)
        levels = {"dft": schema.Level(energy="dft.energy" if "multifidelity" in kind else "energy", forces="-", stress="-")}
        try:
            (structure,) = reading.read_file(path, schema.Data(train=[path], **data), levels)
        except DataError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
            raise
        assert structure.labels["dft"].energy is not None
        return structure

    return read


@pytest.mark.parametrize("kind", SAYING)
def test_charge_and_multiplicity_arrive_from_every_format(kind, said):
    s = said(kind, {"charge": 1, "multiplicity": 4})
    assert s.states == ((1, 4),) and s.charge == 1 and not s.unsaid and not np.size(s.fragment)
    assert said(kind, {"charge": -1}).states == ((-1, 2),)
    neutral = said(kind, {})
    assert neutral.states == ((0, 1),) and neutral.unsaid == ({"multiplicity"} if kind == "qcschema" else {"charge", "multiplicity"})
    with pytest.raises(DataError, match="multiplicity is 2, which 10 electrons cannot have; correct it, or remove the structure"):
        said(kind, {"multiplicity": 2})


@pytest.mark.parametrize("kind", [kind for kind in SAYING if kind != "qcschema"])  # whose keys are fixed
def test_nothing_charged_is_read_as_neutral(kind, said):
    """Under every key, in small letters and great; what may mean two things is refused."""
    slow = kind in ("db", "multifidelity column")  # to write; their readers are those of json and of records
    for key in sorted(state.KEYS)[:: 8 if slow else 1]:
        if kind == "extxyz" and key[0] == "2":  # no name of that format, whose reader stops there
            continue
        value = 1 if key in state.CHARGE else 2 if key in state.UNPAIRED else 3
        for spelling in {key, key.title(), key.upper()} if not slow else {key}:
            try:
                found = said(kind, {spelling: value}).states
            except DataError as error:
                assert key in state.SPIN and "2S or 2S + 1" in str(error), (key, str(error))
            else:
                assert found == (((1, 2) if key in state.CHARGE else (0, 3)),), (spelling, found)


@pytest.mark.parametrize("kind", [kind for kind in SAYING if kind not in WITHOUT_TEXT])
def test_a_smiles_says_a_charge_or_holds_against_one(kind, said):
    if kind != "qcschema":  # where a charge that is not said is 0
        assert said(kind, {"smiles": "[OH2+:1]"}).states == ((1, 2),)
    assert said(kind, {"smiles": "[OH2-]", "charge": -1}).charge == -1
    with pytest.raises(DataError, match="charge says the charge 0, and smiles says 2; correct one of them"):
        said(kind, {"charge": 0, "smiles": "[O+2]"})


@pytest.mark.parametrize("kind", WITH_FRAGMENTS)
def test_fragments_arrive(kind, said):
    s = said(kind, {"fragments": [[-1, 1], [1, 1]], "fragment": [0, 0, 1], **({"charge": 0} if kind == "extxyz" else {})})
    assert s.states == ((-1, 1), (1, 1)) and list(s.fragment) == [0, 0, 1] and s.charge == 0
    with pytest.raises(DataError, match="fragment 0: multiplicity is 1, which 9 electrons cannot have"):
        said(kind, {"fragments": [[0, 1], [0, 2]], "fragment": [0, 0, 1]})


@pytest.mark.parametrize("kind", SAYING)
def test_what_spin_means_is_said(kind, said):
    """By the config, or by the format whose spin is 2S + 1."""
    if kind == "qcschema":
        return
    assert said(kind, {"spin": 0, "charge": 0} if kind != "aselmdb" else {"spin": 1}).states == ((0, 1),)
    assert said(kind, {"spin": 2}, spin="2S").states == said(kind, {"spin": 3}, spin="2S+1").states == ((0, 3),)
    with pytest.raises(DataError, match="spin"):
        said(kind, {"spin": 2}, spin="2S+1")
    if kind == "aselmdb":
        assert said(kind, {"spin": 2, "charge": 1}).states == ((1, 2),)
    else:
        with pytest.raises(DataError, match=r"spin is 2, which may be 2S or 2S \+ 1; say which \(data.spin of a config\)"):
            said(kind, {"spin": 2})
