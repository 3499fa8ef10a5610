"""`mfmd export`: archives for programs that load them themselves."""

import json
import struct
import sys
import warnings
import zipfile

import backends
import pytest
from conftest import ELEMENTS, ethanol, random_model, write

import mfmd
from mfmd import Note, cli, units
from mfmd.engine import load_model


def test_archive_for_openmm(model_file, tmp_path):
    """`mfmd export --for openmm` writes what create_force runs."""
    openmmtorch = pytest.importorskip("openmmtorch")
    from openmm import app

    mfmd.openmm.load_torchforce()  # its plugin has not loaded where OpenMM came before torch

    atoms = ethanol()
    with open(tmp_path / "m.pdb", "w") as file:
        app.PDBFile.writeFile(backends.topology(atoms), atoms.positions, file)
    mfmd.openmm.write_archive(tmp_path / "force.pt", model_file, tmp_path / "m.pdb", precision="double")
    force = openmmtorch.TorchForce(str(tmp_path / "force.pt"))
    force.setOutputsForces(True)
    c = backends.context_of_force(force, atoms)
    energy = c.getState(energy=True).getPotentialEnergy()._value / units.KJ_PER_MOL
    assert energy == pytest.approx(backends.engine(model_file, "high", radial="table")(atoms)[0], rel=1e-12)


def test_exports_that_cannot_be(model_file, tmp_path, monkeypatch, capsys):
    for more, sentence in ((["openmm"], "name a PDB file"), (["gromacs", "--topology", "x.pdb"], "leave it out")):
        monkeypatch.setattr(sys, "argv", ["mfmd", "export", str(model_file), "-o", str(tmp_path / "model.pt"), "--for", *more])
        with pytest.raises(SystemExit):
            cli.main()
        assert sentence in capsys.readouterr().err


def test_export_for_gromacs(model_file, tmp_path, monkeypatch, capsys):
    """The command writes what hosts/gromacs.py does, and says what the mdp file needs."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(
        sys, "argv", ["mfmd", "export", str(model_file), "--for", "gromacs", "-o", str(tmp_path / "g.pt"), "--head", "middle"]
    )
    cli.main()
    assert "nnpot-model-input2 = atom-numbers" in capsys.readouterr().out
    atoms = ethanol()
    positions = torch.tensor(atoms.positions / units.ANGSTROM_PER_NM, dtype=torch.float32)
    energy, _ = torch.jit.load(str(tmp_path / "g.pt"))(positions, torch.tensor(atoms.numbers, dtype=torch.int32))
    wanted = backends.engine(model_file, "middle", radial="table")(atoms)[0]
    assert float(energy) / units.KJ_PER_MOL == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("host", ["openmm", "gromacs"])
def test_archives_with_a_state(charged_file, tmp_path, monkeypatch, capsys, host):
    """`mfmd info` shows what is in them; the other archive is told it with each structure."""
    torch = pytest.importorskip("torch")
    if host == "openmm":
        pytest.importorskip("openmmtorch")
        with open(tmp_path / "m.pdb", "w") as file:
            app = pytest.importorskip("openmm.app")
            app.PDBFile.writeFile(backends.topology(ethanol()), ethanol().positions, file)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mfmd", *map(str, words)])
        cli.main()
        return capsys.readouterr()

    more = ("--topology", tmp_path / "m.pdb") if host == "openmm" else ()
    run(
        "export",
        charged_file,
        "--for",
        host,
        "-o",
        tmp_path / "a.pt",
        "--charge",
        "1",
        "--multiplicity",
        "2",
        "--precision",
        "double",
        *more,
    )
    assert "evaluates charge 1, multiplicity 2, whatever" in run("info", tmp_path / "a.pt").out
    assert json.loads(run("info", tmp_path / "a.pt", "--json").out)["archived"] == {"states": [[1, 2]], "fragment": []}
    positions = torch.tensor(ethanol().positions / units.ANGSTROM_PER_NM)
    arguments = (positions, torch.tensor(ethanol().numbers)) if host == "gromacs" else (positions,)
    energy, _ = torch.jit.load(str(tmp_path / "a.pt"))(*arguments)
    atoms = ethanol()
    atoms.info |= {"charge": 1, "multiplicity": 2}
    assert float(energy) / units.KJ_PER_MOL == pytest.approx(backends.engine(charged_file, "high", radial="table")(atoms)[0], abs=1e-8)
    monkeypatch.setattr(
        sys, "argv", ["mfmd", "export", str(charged_file), "--for", "torchscript", "-o", str(tmp_path / "t.pt"), "--charge", "1"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert "told them with each structure" in capsys.readouterr().err
    assert "charge and multiplicity: 0 1; 0 2; 0 3; +1 1; +1 2; -1 2" in run("info", charged_file).out


def test_an_archive_of_a_pdb_file_that_says_its_state(charged_file, tmp_path):
    """As a run of `mfmd md` writes it."""
    app = pytest.importorskip("openmm.app")
    with open(tmp_path / "m.pdb", "w") as file:
        file.write("REMARK  99 STATE charge 1 multiplicity 2\n")
        app.PDBFile.writeFile(backends.topology(ethanol()), ethanol().positions, file)
    with pytest.raises(mfmd.Error, match="m.pdb says charge 1, and charge is 0; correct one of them"):
        mfmd.openmm.write_archive(tmp_path / "a.pt", charged_file, tmp_path / "m.pdb", charge=0)


def test_a_group_in_a_box_is_a_molecule(charged_file, tmp_path):
    """For GROMACS, which says neither charge nor whether a group is all there is: the lowest multiplicity of the electrons."""
    torch = pytest.importorskip("torch")
    from mfmd.hosts import gromacs

    gromacs.write_archive(tmp_path / "g.pt", charged_file, "low", "double", charge=1)
    atoms = ethanol()
    atoms.set_cell([12.0] * 3)
    atoms.pbc = True
    module = torch.jit.load(str(tmp_path / "g.pt"))
    given = [torch.tensor(atoms.positions / 10), torch.tensor(atoms.numbers), torch.tensor(atoms.cell.array / 10), torch.tensor(atoms.pbc)]
    atoms.info |= {"charge": 1, "multiplicity": 2}
    assert float(module(*given)[0]) / units.KJ_PER_MOL == pytest.approx(
        backends.engine(charged_file, "low", radial="table")(atoms)[0], abs=1e-8
    )


def test_without_torchscript(model, tmp_path, monkeypatch, capsys):
    """Where torch makes none, the file has the weights alone, aligned, and says so; `mfmd export` adds it later."""
    torch = pytest.importorskip("torch")

    def refuse(*arguments, **options):
        raise RuntimeError("torch.jit is gone")

    path, whole = tmp_path / "model.pt", tmp_path / "whole.pt"
    with monkeypatch.context() as patched:
        patched.setattr(torch.jit, "script", refuse)
        with pytest.warns(Note, match=r"has no TorchScript in it.*\(torch.jit is gone\); `mfmd export --for torchscript"):
            write(model, path)
    with zipfile.ZipFile(path) as archive:
        (entry,) = archive.infolist()
        assert entry.filename == "model/extra/mfmd.safetensors" and entry.compress_type == zipfile.ZIP_STORED
    raw = path.read_bytes()
    name, extra = struct.unpack("<HH", raw[entry.header_offset + 26 : entry.header_offset + 30])
    begin = entry.header_offset + 30 + name + extra
    assert begin % 64 == 0 and raw[begin : begin + entry.file_size] == load_model(path).bytes
    assert json.loads(load_model(path).metadata)["levels"]
    monkeypatch.setattr("sys.argv", ["mfmd", "export", str(path), "--for", "torchscript", "-o", str(whole)])
    cli.main()
    assert load_model(whole).sha256 == load_model(path).sha256
    with warnings.catch_warnings(action="error"):
        again = write(model, tmp_path / "again.pt")  # torch's own warnings are not shown as ours
    assert load_model(again).sha256 == load_model(path).sha256
    module = torch.jit.load(str(whole))
    atoms = ethanol()
    energy = module(torch.tensor(atoms.positions), torch.tensor(atoms.numbers), torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool))[0]
    assert float(energy) == pytest.approx(backends.engine(path, "high", "double", "table")(atoms)[0], rel=1e-14)


def test_tables_are_judged_by_the_forces_that_there_are(model):
    """Of forces 150 times larger they err by 150 times more, in eV/Å, and that is all the same."""
    from mfmd.training import export

    strong, frames = random_model(), [backends.structure(ethanol())]
    for head in strong.heads.values():
        head.scale *= 150
    weak, strong = (export.table_error(export.serialize(m, dict.fromkeys(m.heads, ELEMENTS), {}), frames) for m in (model, strong))
    assert strong["forces"] == pytest.approx(150 * weak["forces"], rel=1e-3) and strong["forces"] > export.TABLE_BOUND["forces"]
