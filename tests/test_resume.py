"""A run killed without warning, again and again, ends with the weights of one that was left alone."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time

import ase.io
import numpy as np
import pytest
from conftest import DATA

pytest.importorskip("lightning")
import torch

KILLS = 10


def run(config, out):
    """What `mfmd-train config out=…` does, in this process."""
    from mfmd import cli

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["mfmd-train", str(config), f"out={out}"]
    cli.train()


def send(process, number):
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(process.pid, number)


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "water"]
    labelled = [a for a in frames if "energy_cctz" in a.info]
    ase.io.write(tmp_path / "water.xyz", labelled + [a for a in frames if "energy_dft" not in a.info][:30], format="extxyz")
    (tmp_path / "config.yaml").write_text(
        f"""
out: {tmp_path}/run
resume: true
data: {{train: {tmp_path}/water.xyz, val: 0.2, atoms: {DATA}/atoms.json}}
levels: {{gfn2: , dft: , cctz: }}
strategy: chain
backbone: {{channels: 16, layers: 1, radial_functions: 8}}
train: {{epochs: 30, batch_size: 4, learning_rate: 0.005}}
"""
    )

    # Each run is a fork of a process that has loaded torch: to load it eleven times would take longer than the training.
    for name, value in (("OMP_NUM_THREADS", "1"), ("MKL_CBWR", "AUTO")):
        monkeypatch.setenv(name, value)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["mfmd.training.run"])

    def start(out):
        process = forks.Process(target=run, args=(tmp_path / "config.yaml", tmp_path / out))
        process.start()
        return process

    def written():
        return max((path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")), default=0)

    whole = start("whole")  # while the other is killed again and again
    rng, kills, in_checkpoint = np.random.default_rng(0), 0, 0
    folder = tmp_path / "cut"
    while True:
        for left in folder.rglob("*.partial"):
            left.unlink()
        process = start("cut")
        before = written()
        # Every other kill waits for a checkpoint to be under way, the others for a while after training has begun.
        wait_for_partial = kills % 2 == 1
        pause, started = rng.uniform(0.0, 0.5), None
        while process.is_alive() and kills < KILLS:
            if wait_for_partial and any(folder.rglob("*.partial")):
                send(process, signal.SIGSTOP)  # so that it cannot get done between a look and the kill
                time.sleep(0.01)
                send(process, signal.SIGKILL if any(folder.rglob("*.partial")) else signal.SIGCONT)
            elif not wait_for_partial:
                if started is None and written() != before:
                    started = time.monotonic()
                if started is not None and time.monotonic() - started > pause:
                    send(process, signal.SIGKILL)
            time.sleep(0.0005)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            in_checkpoint += any(folder.rglob("*.partial"))
            continue
        assert process.exitcode == 0
        break
    whole.join()
    assert whole.exitcode == 0
    assert kills == KILLS and in_checkpoint >= KILLS // 2
    for stage in ("gfn2", "dft", "cctz"):
        one, other = (torch.load(tmp_path / out / stage / "stage.ckpt") for out in ("whole", "cut"))
        assert all(torch.equal(one[k], other[k]) for k in one), stage
    assert (tmp_path / "whole" / "errors.csv").read_text() == (folder / "errors.csv").read_text()
