"""Ctrl-C and SIGTERM end a command in one sentence, with the exit codes of a shell, and its worker processes in none; mfmd md is in test_md.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import pytest
from backends import interruptible
from conftest import DATA, small_config


def interrupted(words, ready, stop, cwd):
    """(exit code, stderr) of a command whose whole process group is signalled, as a terminal does it, once it is under way."""
    program = Path(sys.executable).parent / words[0]
    run = interruptible([program, *words[1:]], cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not ready() and run.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2)
        os.killpg(run.pid, stop)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    return run.returncode, said


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training(stop, code, tmp_path):
    pytest.importorskip("lightning")
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "ethanol"]
    ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
    words = ["mfmd-train", small_config(tmp_path), "train.epochs=100000", "train.patience=100000"]
    found = interrupted(words, lambda: any((tmp_path / "run").rglob("last.ckpt")), stop, tmp_path)
    assert found[0] == code, found[1]
    assert found[1].splitlines()[-1] == "interrupted; the same command with resume=true goes on"
    assert "Traceback" not in found[1]


def test_labelling(tmp_path):
    pytest.importorskip("pyscf")
    frames = []
    for k in range(200):
        atoms = ase.build.molecule("CH3OH")
        atoms.rattle(0.02, seed=k)
        atoms.info["id"] = f"m{k}"
        frames.append(atoms)
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    (tmp_path / "c.yaml").write_text("out: out\nworkers: 2\nstructures: in.xyz\nlevels:\n  hf: {method: hf, basis: sto-3g}\n")
    journal = tmp_path / "out" / "labels.jsonl"
    found = interrupted(
        ["mfmd", "label", "c.yaml"], lambda: journal.exists() and journal.read_text().count("\n") > 3, signal.SIGINT, tmp_path
    )
    assert found[0] == 130, found[1]
    assert found[1].splitlines()[-1] == "interrupted; the same command goes on"
    assert "Traceback" not in found[1]
    assert journal.read_text().endswith("\n")
