"""The same structures and labels from every format, in the units the config declares."""

import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import DATA

pytest.importorskip("lightning")
from mfmd import data, plan, units

LEVELS = {
    "gfn2": plan.Level(energy="energy_gfn2", forces="forces_gfn2", stress="-"),
    "cctz": plan.Level(energy="energy_cctz", forces="-", stress="-"),
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
    return {"gfn2": plan.Level(energy="energy", forces="forces_gfn2", stress="-"), "cctz": LEVELS["cctz"]}


def arrays(frames):
    return {
        "coordinates": np.array([a.positions for a in frames]),
        "atomic_numbers": frames[0].numbers,
        "xtb.energy": np.array([a.info["energy_gfn2"] for a in frames]),
        "xtb.forces": np.array([a.arrays["forces_gfn2"] for a in frames]),
        "ccsd(t)_cbs.energy": np.array([a.info.get("energy_cctz", np.nan) for a in frames]),
    }


ARRAY_LEVELS = {
    "gfn2": plan.Level(energy="xtb.energy", forces="xtb.forces", stress="-"),
    "cctz": plan.Level(energy="ccsd(t)_cbs.energy", forces="-", stress="-"),
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


FORMATS = {"a.extxyz": xyz, "a.db": database, "a.json": database, "a.npz": npz, "a.h5": hdf5}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same(name, frames, tmp_path):
    levels = FORMATS[name](frames, tmp_path / name)
    config = plan.Data(train=[tmp_path / name])
    found = list(data.read_file(tmp_path / name, config, levels))
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
        assert not s.pbc.any() and name in s.source


def test_units_of_the_file(frames, tmp_path):
    hdf5(frames, tmp_path / "a.h5")
    config = plan.Data(train=[tmp_path / "a.h5"], energy_unit="Hartree")
    s = next(data.read_file(tmp_path / "a.h5", config, ARRAY_LEVELS))
    assert s.labels["gfn2"].energy == pytest.approx(frames[0].info["energy_gfn2"] * units.ENERGY["Hartree"])


def test_files_that_cannot_be_read(frames, tmp_path):
    def read(name):
        return list(data.read_file(tmp_path / name, plan.Data(train=[tmp_path / name]), ARRAY_LEVELS))

    for name, message in (
        ("a.npz", "cannot be read as .npz"),
        ("a.h5", "cannot be read as HDF5"),
        ("a.db", "cannot be read as an ASE database"),
    ):
        (tmp_path / name).write_text("no such thing, whatever its name says")
        with pytest.raises(data.DataError, match=message):
            read(name)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(data.DataError, match=r"the ending .csv stands for no format; there are .xyz"):
        read("a.csv")
    np.savez(tmp_path / "b.npz", energies=np.zeros(3))
    with pytest.raises(data.DataError, match="wanted are positions .* found energies"):
        read("b.npz")
    content = arrays(frames)
    np.savez(tmp_path / "c.npz", **{**content, "xtb.energy": content["xtb.energy"][:-1]})
    with pytest.raises(data.DataError, match="xtb.energy has 39 entries for 40 structures"):
        read("c.npz")
    np.savez(tmp_path / "d.npz", **{**content, "atomic_numbers": content["atomic_numbers"][:-1]})
    with pytest.raises(data.DataError, match=r"\(3,\) atomic numbers for positions of shape \(40, 4, 3\)"):
        read("d.npz")
