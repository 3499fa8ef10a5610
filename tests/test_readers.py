"""The same structures and labels from every format, in the units the config declares."""

import io
import json
import pickle
import zlib

import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import DATA

pytest.importorskip("lightning")
from mfmd import units
from mfmd.structures import reading
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
