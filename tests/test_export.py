"""`mfmd export`: archives for programs that load them themselves."""

import sys

import backends
import pytest
from conftest import ethanol

import mfmd
from mfmd import cli, units


def test_archive_for_openmm(model_file, tmp_path):
    """`mfmd export --for openmm` writes what create_force runs."""
    openmmtorch = pytest.importorskip("openmmtorch")
    from openmm import app

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
