"""A run killed without warning, again and again, ends with the weights of one that was left alone."""

import signal
import subprocess
import sys
import time

import ase.io
import numpy as np
import pytest
from conftest import DATA

pytest.importorskip("lightning")
import torch

KILLS = 10


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
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
train: {{epochs: 60, batch_size: 4, learning_rate: 0.005}}
"""
    )

    def start(out):
        code = "from mfmd.cli import train; train()"
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "config.yaml"), f"out={tmp_path}/{out}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    whole = start("whole")
    assert whole.wait() == 0, whole.stderr.read()
    rng, kills, in_checkpoint = np.random.default_rng(0), 0, 0
    folder = tmp_path / "cut"
    while True:
        for left in folder.rglob("*.partial"):
            left.unlink()
        process = start("cut")
        before = sorted(folder.rglob("*.ckpt"))
        # Every other kill waits for a checkpoint to be under way, the others for a while after training has begun.
        wait_for_partial = kills % 2 == 1
        pause, started = rng.uniform(0.0, 0.5), None
        while process.poll() is None and kills < KILLS:
            if wait_for_partial and any(folder.rglob("*.partial")):
                process.send_signal(signal.SIGSTOP)  # so that it cannot get done between a look and the kill
                time.sleep(0.01)
                process.send_signal(signal.SIGKILL if any(folder.rglob("*.partial")) else signal.SIGCONT)
            elif not wait_for_partial:
                if started is None and sorted(folder.rglob("*.ckpt")) != before:
                    started = time.monotonic()
                if started is not None and time.monotonic() - started > pause:
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.0005)
        code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            in_checkpoint += any(folder.rglob("*.partial"))
            continue
        assert code == 0, process.stderr.read()
        break
    assert kills == KILLS and in_checkpoint >= KILLS // 2
    for stage in ("gfn2", "dft", "cctz"):
        one, other = (torch.load(tmp_path / out / stage / "stage.ckpt") for out in ("whole", "cut"))
        assert all(torch.equal(one[k], other[k]) for k in one), stage
    assert (tmp_path / "whole" / "errors.csv").read_text() == (folder / "errors.csv").read_text()
