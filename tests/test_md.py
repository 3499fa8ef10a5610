"""mfmd md: runs that an interruption does not change, ensembles, and what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import ase.units
import backends
import numpy as np
import pytest
from backends import interruptible
from conftest import changed, ethanol

pytest.importorskip("openmm")

from mfmd import Error, Extrapolation, Note, md, units
from mfmd.engine import InputError


@pytest.fixture
def start(tmp_path):
    ethanol().write(tmp_path / "ethanol.xyz")
    return tmp_path / "ethanol.xyz"


def settings(trained, start, out, **more):
    options = {"time": 0.2, "every": 0.01, "checkpoint": 0.05, "threads": 1, "report_heads": True, "minimize": False}
    return md.Settings(str(trained[0]), str(start), str(out), **{**options, **more})


def frames(out):
    """Coordinates of a DCD file, as they stand in it."""
    content = (out / "trajectory.dcd").read_bytes()
    return int.from_bytes(content[8:12], "little"), content[256:]


RUN = """
import os, sys
from mfmd import md
if sys.argv[5]:  # die while the checkpoint of this number is being written
    replace, left = os.replace, [int(sys.argv[5])]
    def deadly(source, target):
        if str(target).endswith("checkpoint.npz"):
            left[0] -= 1
            if left[0] < 0:
                open(source, "r+b").truncate(1000)
                os.kill(os.getpid(), 9)
        replace(source, target)
    os.replace = deadly
if sys.argv[6]:  # die in the middle of a block
    steps = [int(sys.argv[6])]
    import openmm.app
    write = openmm.app.DCDFile.writeModel
    def counted(*a, **k):
        write(*a, **k)
        steps[0] -= 1
        if steps[0] < 0:
            os.kill(os.getpid(), 9)
    openmm.app.DCDFile.writeModel = counted
md.run(md.Settings(sys.argv[1], sys.argv[2], sys.argv[3], ensemble=sys.argv[4], time=0.2, every=0.01, checkpoint=0.05, threads=1,
                   equilibrate=0.03, report_heads=True, minimize=False))
"""


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_killed_at_any_moment_a_run_goes_on_as_if_nothing_had_happened(trained, start, tmp_path, ensemble):
    """Ten kills, while checkpoints are written, between a frame and the next, and by SIGKILL from outside."""

    def run(out, checkpoint="", frame=""):
        command = [sys.executable, "-c", RUN, trained[0], start, out, ensemble, checkpoint, frame]
        return subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True)

    whole = run(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    rng = np.random.default_rng(7)
    for checkpoint, frame in [(0, ""), (1, ""), (0, ""), (1, ""), ("", 3), ("", 1), ("", 7), ("", 0)]:
        killed = run(tmp_path / "killed", checkpoint, frame)
        assert killed.wait() == -signal.SIGKILL, killed.stderr.read()
    for _ in range(2):
        outside = run(tmp_path / "killed")
        time.sleep(rng.uniform(0.5, 1.5))
        outside.kill()
        outside.wait()
    last = run(tmp_path / "killed")
    assert last.wait() == 0, last.stderr.read()
    assert frames(tmp_path / "killed") == frames(tmp_path / "whole")
    assert frames(tmp_path / "whole")[0] == 20
    for name in ("log.csv", "heads.csv", "domain.csv", "final.pdb"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_longer_run_goes_on_and_another_is_refused(trained, start, tmp_path):
    out = tmp_path / "run"
    md.run(settings(trained, start, out, time=0.1))
    longer = md.run(settings(trained, start, out))
    md.run(settings(trained, start, tmp_path / "whole"))
    assert frames(out) == frames(tmp_path / "whole")
    assert longer["steps"] == 400 and longer["temperature"] > 0
    written = (out / "report.html").stat().st_mtime_ns
    assert md.run(settings(trained, start, out))["ns_per_day"] is None
    assert (out / "report.html").stat().st_mtime_ns == written  # nothing has become of it
    with pytest.raises(md.MDError, match=r"holds a run with temperature 300\.0, and now it is 350"):
        md.run(settings(trained, start, out, temperature=350.0))
    with pytest.raises(md.MDError, match="longer than the 0.1 ps"):
        md.run(settings(trained, start, out, time=0.1))
    with open(out / "log.csv", "r+b") as file:
        file.truncate(100)
    with pytest.raises(md.MDError, match=r"log\.csv has 100 bytes"):
        md.run(settings(trained, start, out, time=0.3))


def test_kinetic_energy_of_a_canonical_run(trained, start, tmp_path):
    """Its mean and variance are those of 3 N − 3 degrees of freedom, within four standard errors (block averages)."""
    summary = md.run(settings(trained, start, tmp_path / "run", time=40.0, checkpoint=10.0, friction=10.0, report_heads=False, every=0.05))
    log = np.genfromtxt(tmp_path / "run" / "log.csv", delimiter=",")[100:]
    kinetic, kt = log[:, 3] / units.KJ_PER_MOL, 300.0 * 8.617333262e-5
    free = 3 * len(ethanol()) - 3
    for values, expected in ((kinetic, free * kt / 2), ((kinetic - free * kt / 2) ** 2, free * kt**2 / 2)):
        blocks = values[: len(values) // 20 * 20].reshape(20, -1).mean(1)
        assert abs(values.mean() - expected) < 4 * blocks.std(ddof=1) / np.sqrt(20)
    assert summary["temperature"] == pytest.approx(300, abs=30)


def test_a_box_of_molecules_at_constant_pressure(trained, tmp_path):
    """Molecules stay whole, the box changes, and a killed run's box comes back."""
    box = ethanol()
    box.set_cell(np.eye(3) * 9.5)
    box.set_pbc(True)
    box.positions += [9.0, 4.0, 4.0]  # across the boundary
    box.rotate(25, "z", rotate_cell=True)
    box.write(tmp_path / "box.xyz", format="extxyz")
    summary = md.run(settings(trained, tmp_path / "box.xyz", tmp_path / "run", ensemble="npt", pressure=2000.0, time=0.4, checkpoint=0.1))
    log = np.genfromtxt(tmp_path / "run" / "log.csv", delimiter=",")
    assert summary["steps"] == 800 and len(set(log[:, 6])) > 5
    import mdtraj

    trajectory = mdtraj.load(tmp_path / "run" / "trajectory.dcd", top=tmp_path / "run" / "topology.pdb")
    assert trajectory.unitcell_volumes[-1] == pytest.approx(log[-1, 6], rel=1e-5)
    bond = np.linalg.norm(trajectory.xyz[:, 0] - trajectory.xyz[:, 1], axis=1)
    assert bond.min() > 0.13 and bond.max() < 0.18


@pytest.mark.parametrize("format_", ["xtc", "h5"])
def test_trajectory_in_other_formats(trained, start, tmp_path, format_):
    import mdtraj

    for time_ in (0.05, 0.1):  # and made longer
        md.run(settings(trained, start, tmp_path / "run", format=format_, time=time_, equilibrate=0.02))
    trajectory = mdtraj.load(tmp_path / "run" / f"trajectory.{format_}", top=tmp_path / "run" / "topology.pdb")
    log = np.genfromtxt(tmp_path / "run" / "log.csv", delimiter=",")
    before = 0.02 if format_ == "xtc" else 0.0  # OpenMM's XTC files count from the first frame
    assert trajectory.time == pytest.approx(log[:, 1] - before, abs=1e-6)
    final = mdtraj.load(tmp_path / "run" / "final.pdb")
    assert np.abs(trajectory.xyz[-1] - final.xyz[0]).max() < 2e-3


def test_minimisation_starts_gently(trained, tmp_path):
    """From a structure as far off as hand-drawn ones are."""
    atoms = ethanol()
    atoms.rattle(0.15, seed=3)
    atoms.write(tmp_path / "start.xyz")
    md.run(
        settings(trained, tmp_path / "start.xyz", tmp_path / "run", minimize=True, time=0.01, temperature=1.0, ensemble="nve", head="gfn2")
    )
    import mfmd

    relaxed = ase.io.read(tmp_path / "run" / "topology.pdb")
    relaxed.calc = mfmd.Calculator(trained[0], "gfn2")
    assert np.abs(relaxed.get_forces()).max() < 0.3  # PDB files have three decimals


def test_molecules_are_found():
    """As bonded atoms, in whatever order they stand; a residue each where these are together."""
    pair = ase.build.molecule("H2O") + ase.build.molecule("CH3OH")
    pair.positions[3:] += 4
    topology, positions = md.topology_of(pair)
    assert [len(list(r.atoms())) for r in topology.residues()] == [3, 6]
    assert topology.getNumBonds() == 2 + 5 and np.array_equal(positions, pair.positions)
    mixed, _ = md.topology_of(pair[[0, 3, 1, 2, 4, 5, 6, 7, 8]])
    assert mixed.getNumResidues() == 9 and mixed.getNumBonds() == 7


@pytest.mark.parametrize("hand", [1, -1])
def test_a_molecule_across_the_boundary_is_put_together(hand, tmp_path):
    """In cells of either handedness, from extended XYZ and from PDB; nothing else moves."""
    from openmm import app, unit

    box = ethanol()
    box.set_cell(np.array([[9.0, 0.0, 0.0], [1.0, 9.0, 0.0], [0.5, -1.0, hand * 9.0]]))
    box.set_pbc(True)
    lengths = box.get_all_distances()
    box.positions += [8.5, 4.0, 4.0]
    box.wrap()
    topology, positions = md.topology_of(box)
    assert topology.getNumBonds() == 8
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.testing.assert_allclose(apart, lengths, atol=1e-9)
    cell = np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.angstrom))
    assert abs(np.linalg.det(cell)) == pytest.approx(box.cell.volume)
    wrapped = positions - np.floor(positions @ np.linalg.inv(cell)) @ cell
    with open(tmp_path / "box.pdb", "w") as file:
        app.PDBFile.writeFile(topology, wrapped * unit.angstrom, file)
    again, whole = md.read_structure(tmp_path / "box.pdb")
    assert again.getNumBonds() == 8
    np.testing.assert_allclose(np.linalg.norm(whole[:, None] - whole[None], axis=-1), lengths, atol=2e-3)


def test_a_large_box_keeps_its_atoms_in_a_pdb_file(tmp_path):
    from openmm import app, unit

    water = ase.build.molecule("H2O")
    water.set_cell(np.eye(3) * 4.0)
    box = water.repeat((8, 8, 8))
    box.pbc = True
    topology, positions = md.topology_of(box)
    with open(tmp_path / "box.pdb", "w") as file:
        app.PDBFile.writeFile(topology, positions * unit.angstrom, file)
    again, _ = md.read_structure(tmp_path / "box.pdb")
    assert again.getNumAtoms() == 1536 and again.getNumBonds() == 1024


def test_what_a_folder_may_hold(trained, start, tmp_path):
    """A refused run claims nothing, files of others stay, a model or structure that changed is another run."""
    out = tmp_path / "run"
    with pytest.raises(InputError, match="no head `ccsd`"):
        md.run(settings(trained, start, out, head="ccsd"))
    out.mkdir()
    (out / "log.csv").write_text("my notes")
    with pytest.raises(md.MDError, match=r"has a log\.csv that is no run's"):
        md.run(settings(trained, start, out))
    assert (out / "log.csv").read_text() == "my notes"
    (out / "log.csv").unlink()
    copied = shutil.copy(trained[0], tmp_path / "model.pt")
    first = settings((copied,), start, out, time=0.05)
    md.run(first)
    final = (out / "final.pdb").read_text()
    (out / "final.pdb").write_text("left from a shorter run")
    md.run(first)
    assert (out / "final.pdb").read_text() == final
    saved = (out / "checkpoint.npz").read_bytes()
    (out / "checkpoint.npz").write_bytes(saved[:200])
    with pytest.raises(md.MDError, match="checkpoint.npz cannot be read"):
        md.run(first)
    (out / "checkpoint.npz").write_bytes(saved)
    moved = ethanol()
    moved.rattle(0.01, seed=1)
    moved.write(start)
    with pytest.raises(md.MDError, match="holds a run with structure_sha256"):
        md.run(first)
    (out / "settings.json").write_text("")
    with pytest.raises(md.MDError, match="settings.json cannot be read"):
        md.run(first)


def test_structures_that_cannot_be_run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ethanol().write("ethanol.xyz")
    (tmp_path / "broken.pdb").write_text("ATOM  what\n")
    charged = ethanol()
    charged.info["charge"] = 1
    charged.write("charged.xyz", format="extxyz")
    ase.Atoms("O").write("one.xyz")
    ase.build.molecule("CH3SH").write("sulfur.xyz")
    flat = ethanol()
    flat.set_cell([9.0, 9.0, 0.0])
    flat.pbc = True
    flat.write("flat.xyz", format="extxyz")
    slab = ethanol()
    slab.set_cell(np.eye(3) * 9)
    slab.pbc = [True, True, False]
    slab.write("slab.xyz", format="extxyz")
    for name, more, words in (
        ("none.xyz", {}, "no such file"),
        ("broken.pdb", {}, "not a readable PDB file"),
        ("charged.xyz", {}, r"it has charge \+1, multiplicity 2, and head gfn2 was trained on charge 0, multiplicity 1 only"),
        ("charged.xyz", {"charge": 0}, "charged.xyz says charge 1, and --charge is 0"),
        ("ethanol.xyz", {"charge": -1}, "it has charge -1, multiplicity 2"),
        ("ethanol.xyz", {"multiplicity": 2}, "multiplicity is 2, which 26 electrons cannot have"),
        ("one.xyz", {}, "two atoms or more"),
        ("sulfur.xyz", {}, "atom 1 is S"),
        ("flat.xyz", {}, "no volume"),
        ("ethanol.xyz", {"platform": "CUDA"}, "CUDA"),
        ("ethanol.xyz", {"seed": -1}, "seed is -1"),
        ("ethanol.xyz", {"time": float("nan")}, "time is nan"),
        ("ethanol.xyz", {"time": 0.015}, "time .* must be a multiple of every"),
        ("ethanol.xyz", {"ensemble": "npt", "checkpoint": 0.02}, "100 steps or more"),
        ("ethanol.xyz", {"terms": (("gfn2", float("inf")),)}, "must be finite"),
        ("slab.xyz", {}, "periodic in some directions only"),
        ("ethanol.xyz", {"ensemble": "npt"}, "has no box"),
        ("ethanol.xyz", {"ensemble": "nph"}, "ensemble is 'nph'"),
        ("ethanol.xyz", {"checkpoint": 0.013}, "multiple of every"),
        ("ethanol.xyz", {"timestep": 0.0}, "timestep is 0.0"),
    ):
        with pytest.raises(Error, match=words):
            md.run(settings(trained, name, "out", **more))


def ions(start, out, model, **more):
    options = {"time": 0.004, "every": 0.001, "checkpoint": 0.002, "timestep": 0.1, "threads": 1, "ensemble": "nve", "precision": "double"}
    return md.run(md.Settings(str(model), str(start), str(out), **{**options, "minimize": False, "report_heads": True, **more}))


def test_a_run_in_a_state(charged_file, tmp_path):
    """Of a file or of the settings: the same run. Files say it, a run goes on in it alone, and so does one from its end."""
    cation = ethanol()
    cation.write(tmp_path / "plain.xyz")
    cation.info |= {"charge": 1, "multiplicity": 2}
    cation.write(tmp_path / "cation.xyz", format="extxyz")
    ions(tmp_path / "cation.xyz", tmp_path / "of a file", charged_file)
    ions(tmp_path / "plain.xyz", tmp_path / "said", charged_file, charge=1)
    heads = [np.genfromtxt(tmp_path / out / "heads.csv", delimiter=",", names=True) for out in ("of a file", "said")]
    assert np.array_equal(*heads)
    final = ase.io.read(tmp_path / "said" / "final.pdb")
    for head in ("low", "high"):
        found = heads[0][head][-1]
        gaps = []
        for info in (cation.info, {}):
            final.info = info
            gaps.append(abs(backends.engine(charged_file, head)(final)[0] - found))
        assert gaps[0] < 0.02 < 1.0 < gaps[1]
    assert json.loads((tmp_path / "said" / "settings.json").read_text())["state"] == "charge +1, multiplicity 2"
    assert "charge +1, multiplicity 2" in (tmp_path / "said" / "report.html").read_text()
    start = md.read_start(tmp_path / "said" / "final.pdb")
    assert start.state == {"charge": 1, "multiplicity": 2}
    with pytest.raises(md.MDError, match=r"final.pdb: it has a state that an openmm.app.Topology cannot say \(charge 1, multiplicity 2\)"):
        md.read_structure(tmp_path / "said" / "final.pdb")
    ions(tmp_path / "said" / "final.pdb", tmp_path / "from its end", charged_file)
    after = np.genfromtxt(tmp_path / "from its end" / "heads.csv", delimiter=",", names=True)
    assert after["high"][0] == pytest.approx(heads[0]["high"][-1], abs=0.3)

    def refused(words, name="plain.xyz", out="said", **more):
        with pytest.raises(md.MDError, match=words):
            ions(tmp_path / name, tmp_path / out, charged_file, **more)

    ions(tmp_path / "plain.xyz", tmp_path / "said", charged_file, charge=1, multiplicity=2, time=0.008)  # the same, and longer
    refused(r"holds a run with state charge \+1, multiplicity 2, and now it is charge 0, multiplicity 1", time=0.008)
    refused("holds a run with state", charge=-1, time=0.008)
    refused("holds a run with allow_unseen_state False", charge=1, time=0.008, allow_unseen_state=True)
    refused("its run had charge", out="on", continue_from=str(tmp_path / "said"))
    ions(tmp_path / "plain.xyz", tmp_path / "on", charged_file, continue_from=str(tmp_path / "said"), charge=1, minimize=None)
    ions(tmp_path / "plain.xyz", tmp_path / "ionised", charged_file, continue_from=str(tmp_path / "on"), charge=0, minimize=None)


def test_a_run_of_fragments(charged_file, tmp_path):
    """Of an extended XYZ file: as two runs apart; final.pdb says what it lacks."""
    both = ethanol() + ethanol()
    both.positions[9:] += 40.0
    both.arrays["fragment"] = np.repeat([0, 1], 9)
    both.info["fragments"] = np.array([[0, 3], [-1, 2]])
    both.write(tmp_path / "both.xyz", format="extxyz")
    ions(tmp_path / "both.xyz", tmp_path / "run", charged_file)
    with pytest.raises(md.MDError, match="says the states of its fragments, and --charge is given"):
        ions(tmp_path / "both.xyz", tmp_path / "other", charged_file, charge=1)
    with pytest.warns(Note, match="it had 2 fragments with states of their own"):
        assert md.read_start(tmp_path / "run" / "final.pdb").state == {"charge": -1}
    with pytest.raises(md.MDError, match="a state that an openmm.app.Topology cannot say"):
        md.topology_of(both)
    both.info["fragments"] = np.array([[-1, 2], [0, 3]])
    both.write(tmp_path / "both.xyz", format="extxyz")
    with pytest.raises(md.MDError, match="holds a run with structure_sha256"):
        ions(tmp_path / "both.xyz", tmp_path / "run", charged_file, time=0.008)


def test_a_folder_from_before_there_were_states(charged_file, tmp_path, start):
    """Goes on as what it was: neutral."""
    ions(start, tmp_path / "run", charged_file)
    path = tmp_path / "run" / "settings.json"
    kept = {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key not in ("charge", "multiplicity", "allow_unseen_state", "state")
    }
    path.write_text(json.dumps(kept))
    with pytest.raises(md.MDError, match="holds a run with state None"):
        ions(start, tmp_path / "run", charged_file, time=0.008, charge=1)
    assert ions(start, tmp_path / "run", charged_file, time=0.008)["steps"] == 80


def test_reporter_of_heads(trained, model_file, tmp_path):
    """A structure outside what the model knows is flagged, its frame saved, and the run stopped where that is wanted."""
    import backends
    import openmm

    import mfmd
    from mfmd.training import plan
    from mfmd.training.run import train

    atoms = ethanol()
    topology = backends.topology(atoms)
    with pytest.raises(InputError, match="no error bars"):
        mfmd.openmm.HeadReporter(tmp_path / "heads.csv", 5, model_file, topology, limit=1.0)
    c = plan.load(trained[0].parent.parent / "config.yaml", ["strategy=delta", "levels.dft.delta_of=null", "levels.cctz.delta_of=null",
                                                              f"out={tmp_path}/delta", "train.epochs=2"])  # fmt: skip
    train(c)
    model = tmp_path / "delta" / "model.pt"
    system = mfmd.openmm.create_system(model, topology, "gfn2", "native")
    simulation = openmm.app.Simulation(topology, system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(atoms.positions / 10)
    options = {"limit": 1e-6, "frames": tmp_path / "far.xyz"}
    simulation.reporters = [mfmd.openmm.HeadReporter(tmp_path / "heads.csv", 2, model, topology, **options)]
    simulation.step(6)
    assert len(ase.io.read(tmp_path / "far.xyz", ":")) == 3
    table = np.genfromtxt(tmp_path / "heads.csv", delimiter=",", names=True)
    calculator = mfmd.Calculator(model, "cctz")
    last = ase.io.read(tmp_path / "far.xyz", "-1")
    last.calc = calculator
    assert table["cctz"][-1] == pytest.approx(last.get_potential_energy(), abs=1e-4)
    assert table["cctz_error"][-1] == pytest.approx(calculator.energy_error, rel=1e-2)
    simulation.reporters = [mfmd.openmm.HeadReporter(tmp_path / "heads.csv", 2, model, topology, stop=True, **options)]
    with pytest.raises(mfmd.openmm.LeftTrainedRegion, match="step 8: the error bar of cctz"):
        simulation.step(6)


def test_command_line(trained, start, tmp_path, capsys, monkeypatch):
    from mfmd import cli

    command = [
        "mfmd",
        "md",
        str(trained[0]),
        str(start),
        "-o",
        str(tmp_path / "run"),
        "--time",
        "0.1",
        "--checkpoint",
        "0.05",
        "--threads",
        "1",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--term", "cctz=0.5", "--term", "gfn2=0.5"])
    cli.main()
    assert "200 steps" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--term", "cctz"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "write head=weight" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run")


# ------------------------------------------------------------------------------------------------ going on, from runs and from velocities


def checkpoint(out):
    with np.load(out / "checkpoint.npz") as saved:
        return {name: saved[name] for name in ("positions", "velocities", "box")}


@pytest.mark.parametrize("more", [{"timestep": 0.25}, {"ensemble": "nve"}, {"temperature": 500.0, "head": "gfn2"}])
def test_a_run_goes_on_from_another(trained, start, tmp_path, more):
    """In another time step, ensemble, temperature, head: with its positions and velocities, and as exactly as any other."""
    md.run(settings(trained, start, tmp_path / "first", time=0.1, minimize=None))
    before = checkpoint(tmp_path / "first")
    options = {"continue_from": str(tmp_path / "first"), "minimize": None, "report_heads": False, **more}
    with pytest.warns(Note, match=r"velocities are those of .*first, of \d+ K"):
        md.run(settings(trained, start, tmp_path / "none", time=0, **options))
    for name, values in checkpoint(tmp_path / "none").items():
        np.testing.assert_allclose(values, before[name], rtol=1e-15)
    with pytest.warns(Note, match="nothing is minimised"):
        md.run(settings(trained, start, tmp_path / "whole", time=0.1, **options))
        md.run(settings(trained, start, tmp_path / "parts", time=0.05, **options))
    md.run(settings(trained, start, tmp_path / "first", time=0.15, minimize=None))  # which has gone on since
    md.run(settings(trained, start, tmp_path / "parts", time=0.1, **options))
    assert frames(tmp_path / "parts") == frames(tmp_path / "whole")
    shutil.rmtree(tmp_path / "first")  # nobody needs it any more
    assert md.run(settings(trained, start, tmp_path / "parts", time=0.1, **options))["ns_per_day"] is None


def test_what_a_run_cannot_go_on_from(trained, start, tmp_path):
    md.run(settings(trained, start, tmp_path / "first", time=0.05))
    other = ethanol()
    other.rattle(0.01, seed=1)
    other.write(tmp_path / "other.xyz")
    for structure, options, words in (
        (tmp_path / "other.xyz", {"continue_from": str(tmp_path / "first"), "minimize": None}, "its run is not of"),
        (start, {"continue_from": str(tmp_path / "nowhere"), "minimize": None}, "no run of mfmd md is there"),
        (start, {"continue_from": str(tmp_path / "first"), "minimize": True}, "exclude each other"),
    ):
        with pytest.raises(md.MDError, match=words):
            md.run(settings(trained, structure, tmp_path / "second", **options))
        assert not (tmp_path / "second").exists()
    md.run(settings(trained, start, tmp_path / "second", time=0.05))
    with pytest.raises(md.MDError, match="holds a run with continue_from None"):
        md.run(settings(trained, start, tmp_path / "second", time=0.05, continue_from=str(tmp_path / "first"), minimize=None))


@pytest.mark.parametrize(("minimize", "kept"), [(None, True), (False, True), (True, False)])
def test_velocities_of_the_structure_to_start_from(trained, tmp_path, minimize, kept):
    """Are used, unless it is to be minimised; either is said."""
    moving = ethanol()
    moving.set_momenta(np.random.default_rng(0).normal(scale=0.3, size=(9, 3)))
    moving.write(tmp_path / "moving.xyz", format="extxyz")
    with pytest.warns(Note, match=r"velocities are those of .*moving" if kept else r"velocities of .*moving.* are not used"):
        md.run(settings(trained, tmp_path / "moving.xyz", tmp_path / "run", time=0, minimize=minimize))
    found = checkpoint(tmp_path / "run")["velocities"]
    assert np.allclose(found, moving.get_velocities() * 100 * ase.units.fs, atol=1e-9) == kept
    with pytest.raises(md.MDError, match="structure_sha256"):  # velocities are a part of it
        moving.set_momenta(moving.get_momenta() * 1.1)
        moving.write(tmp_path / "moving.xyz", format="extxyz")
        md.run(settings(trained, tmp_path / "moving.xyz", tmp_path / "run", time=0, minimize=minimize))


@pytest.mark.parametrize("place", ["moved", "linked", "home"])
def test_a_folder_that_was_moved_goes_on(trained, model_file, start, tmp_path, place, monkeypatch):
    """Model and structure are known by their hashes; those of other bytes are refused as before."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    shutil.copy(trained[0], here / "model.pt")
    shutil.copy(start, here / "start.xyz")
    go = lambda at, time: md.run(settings((f"{at}/model.pt",), f"{at}/start.xyz", f"{at}/run", time=time))  # noqa: E731
    go(here, 0.05)
    if place == "linked":
        there.symlink_to(here)
    else:
        here.rename(there)
    monkeypatch.setenv("HOME", str(there))
    assert go("~" if place == "home" else there, 0.1)["steps"] == 200
    with pytest.raises(md.MDError, match="holds a run with model_sha256"):
        md.run(settings((model_file,), there / "start.xyz", there / "run", time=0.1))
    moved = ethanol()
    moved.rattle(0.01, seed=2)
    moved.write(there / "start.xyz")
    with pytest.raises(md.MDError, match="holds a run with structure_sha256"):
        go(there, 0.1)


# ------------------------------------------------------------------------------------------------ ends before their time


def command(trained, start, out, **options):
    words = [str(w) for key, value in options.items() for w in (f"--{key.replace('_', '-')}", value)]
    program = Path(sys.executable).parent / "mfmd"
    return [
        program,
        "md",
        trained[0],
        start,
        "-o",
        out,
        "--every",
        "0.01",
        "--checkpoint",
        "0.05",
        "--threads",
        "1",
        "--no-minimize",
        *words,
    ]


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_how_to_go_on(trained, start, tmp_path, stop, code):
    run = interruptible(command(trained, start, tmp_path / "run", time=1000), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run" / "log.csv").exists():
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.05)
        time.sleep(0.5)
        run.send_signal(stop)
        assert run.wait(60) == code
    finally:
        run.kill()
    said = run.stderr.read()
    found = re.search(r"^interrupted; the same command goes on from the checkpoint of \S+, at step (\d+)\n\Z", said, re.MULTILINE)
    assert found, said
    with np.load(tmp_path / "run" / "checkpoint.npz") as saved:
        assert int(saved["step"]) == int(found[1])


@pytest.mark.parametrize("format_", ["dcd", "xtc", "h5"])
def test_a_full_disk_loses_nothing(trained, start, tmp_path, format_):
    """Files may have 12 kB, which is fewer than there are to be; afterwards the run is that of a disk that was not full."""
    line = [str(w) for w in command(trained, start, tmp_path / "run", time=1.0, every=0.005, format=format_)]
    failed = subprocess.run(["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", *line], capture_output=True, text=True)
    assert failed.returncode == 1
    assert re.search(
        r"^error: \[Errno \d+\] .*; the same command goes on from the checkpoint of \S+, at step \d+\n\Z", failed.stderr, re.MULTILINE
    ), failed.stderr
    for out in ("run", "whole"):
        md.run(settings(trained, start, tmp_path / out, time=1.0, every=0.005, format=format_, report_heads=False))
    name, begins = ("trajectory.xtc", 0) if format_ == "xtc" else ("trajectory.dcd", 256)  # a DCD file says when it was written
    assert (tmp_path / "run" / name).read_bytes()[begins:] == (tmp_path / "whole" / name).read_bytes()[begins:]
    assert (tmp_path / "run" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_hdf5_that_has_no_room_is_told(trained, start, tmp_path):
    """PyTables ends as if all were written. Of a run that is at its end nothing else is left to write."""
    import mdtraj

    options, out = dict(time=1.0, every=0.005, format="h5"), tmp_path / "run"
    md.run(settings(trained, start, out, report_heads=False, **options))
    wanted = mdtraj.load(str(out / "trajectory.h5")).xyz
    (out / "trajectory.h5").unlink()
    line = [str(w) for w in command(trained, start, out, **options)]
    failed = subprocess.run(["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", *line], capture_output=True, text=True)
    assert failed.returncode == 1
    assert re.search(r"^error: \[Errno \d+\] .*trajectory.h5'; the same command goes on", failed.stderr, re.MULTILINE), failed.stderr
    assert not list(out.glob("*.h5"))
    md.run(settings(trained, start, out, report_heads=False, **options))
    assert np.array_equal(mdtraj.load(str(out / "trajectory.h5")).xyz, wanted)


def test_held_atoms_and_a_barostat_exclude_each_other(trained, tmp_path):
    from ase.constraints import FixAtoms

    box = ethanol()
    box.set_cell([9, 9, 9])
    box.pbc = True
    box.set_constraint(FixAtoms([0]))
    box.write(tmp_path / "h.traj")
    with pytest.raises(md.MDError, match="which a barostat would move"), pytest.warns(Note, match="held"):
        md.run(settings(trained, tmp_path / "h.traj", tmp_path / "run", ensemble="npt", checkpoint=0.1))


def test_a_run_far_outside_ends_where_that_is_wanted(trained, start, tmp_path):
    """At the look that says so, with its structure; without the flag it goes on from there as ever."""
    hot = dict(time=0.3, checkpoint=0.1, temperature=1500.0, friction=20.0)
    with (
        pytest.warns(Extrapolation),
        pytest.raises(md.MDError, match="far outside what the model was trained on: .*stopped.xyz is the structure") as stopped,
    ):
        md.run(settings(trained, start, tmp_path / "run", stop_outside=True, **hot))
    step = int(re.match(r"step (\d+): ", str(stopped.value))[1])
    frame, looks = (
        ase.io.read(tmp_path / "run" / "stopped.xyz"),
        np.atleast_1d(np.genfromtxt(tmp_path / "run" / "domain.csv", delimiter=",", names=True)),
    )
    assert frame.info["step"] == looks["step"][-1] == step and looks["grade"][-1] > 0 == looks["grade"][:-1].sum()
    assert (frame.positions == ase.io.read(tmp_path / "run" / "outside.xyz", "-1").positions).all()
    with pytest.warns(Extrapolation):
        assert md.run(settings(trained, start, tmp_path / "run", **hot))["far"]


def test_a_model_that_does_not_say_what_it_was_trained_on_cannot_stop_a_run(model_file, start, tmp_path):
    with pytest.raises(md.MDError, match="stop_outside: .* does not say what it was trained on"):
        md.run(md.Settings(str(model_file), str(start), str(tmp_path / "run"), stop_outside=True))


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_run_that_falls_apart_stops_with_its_structure(trained, tmp_path, kind):
    """With its reason and a checkpoint to begin from, and without a value that is no number: in a small box at 60,000 K, until atoms are in one place."""
    start = tmp_path / "box.xyz"
    changed(cell=[6.0, 6.0, 6.0]).write(start, format="extxyz")
    falling = dict(time=2.0, every=0.01, checkpoint=0.01, temperature=60_000.0, friction=20.0, minimize=False, host=kind)
    with pytest.warns(Extrapolation), pytest.raises(md.MDError) as stopped:
        md.run(settings(trained, start, tmp_path / "hot", **falling))
    found = re.fullmatch(
        r"step (\d+): (.*(?:overlap|not finite).*); the last look at it said: (.*); \S+/stopped\.xyz is the structure; --continue-from \S+ begins at its last "
        r"checkpoint, of step (\d+)",
        str(stopped.value),
    )
    assert found and int(found[4]) < int(found[1]) <= int(found[4]) + 20, stopped.value
    frame = ase.io.read(tmp_path / "hot" / "stopped.xyz")
    assert np.isfinite(frame.positions).all() and frame.info["step"] == int(found[1])
    assert frame.info["reason"] == f"{found[2]}; the last look at it said: {found[3]}"
    assert "nan" not in (tmp_path / "hot" / "log.csv").read_text().lower()
    with np.load(tmp_path / "hot" / "checkpoint.npz") as saved:
        assert saved["step"] == int(found[4]) and all(np.isfinite(saved[name]).all() for name in ("positions", "velocities"))
