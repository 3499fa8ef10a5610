"""Training on several processes is training on one."""

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from conftest import DATA, ROOT, small_config

pytest.importorskip("lightning")

from mfmd.training import batches, loop


def run(folder, processes, *overrides):
    """The folder of a run by `mfmd-train`, under torchrun or not."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
    out = folder / f"run{processes}"
    command = [
        *(launch if processes > 1 else []),
        Path(sys.executable).parent / "mfmd-train",
        small_config(folder),
        f"out={out}",
        *overrides,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return out, done


@pytest.fixture
def structures(tmp_path):
    """Levels and elements spread unevenly over the structures, so that shares differ in what they have."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("ethanol", "water", "formaldehyde")]
    ase.io.write(tmp_path / "small.xyz", frames[::6], format="extxyz")
    return tmp_path


@pytest.mark.parametrize("batch", [8, 7])
def test_two_processes_are_one(structures, batch):
    """A hundred steps and more in double, with levels that not every share has, nor every batch; then Gauss-Newton."""
    stages = [
        {"name": "all", "levels": {"gfn2": {}, "dft": {}, "cctz": {}}},
        {"name": "last", "levels": {"cctz": {}}, "fit": "gauss-newton"},
    ]
    overrides = ["train.epochs=12", f"train.batch_size={batch}", "train.precision=double", f"stages={json.dumps(stages)}"]
    results = []
    for processes in (1, 2):
        out, done = run(structures, processes, *overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(
            (loop.read_metrics(out / "all"), torch.load(out / "last" / "stage.ckpt"), (out / "errors.csv").read_text(), done.stdout)
        )
    (one, weights, errors, said), (two, others, errors_of_two, said_by_two) = results
    assert set(one) == set(two) and len(one["train/loss"][1]) == 12
    for name in one:
        assert two[name][1] == pytest.approx(one[name][1], abs=1e-6), name
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-5)
    assert errors_of_two.count("\n") == errors.count("\n")
    assert said_by_two.count("stage all learns") == said.count("stage all learns")


@pytest.mark.parametrize("number, size", [(20, 4), (21, 4), (22, 4), (2, 4), (7, 8)])
def test_shares_of_batches(number, size):
    """Together the processes see what one does, in batches of the same structures; a last one of a single structure joins the one before."""
    sampler = batches.Sampler(np.ones(number), 3)
    one = list(batches.Batches(sampler, size))
    assert [k for batch in one for k in batch] == list(sampler) and all(len(batch) == size for batch in one[:-1])
    shares = [list(batches.Batches(sampler, size, rank, 2)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == len(batches.Batches(sampler, size, 0, 2))
    both = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert all(a and b for a, b in zip(*shares, strict=True))
    if number % size == 1:
        one = [*one[:-2], one[-2] + one[-1]]
    assert both == [sorted(batch) for batch in one]


def test_streamed_and_resumed(structures):
    """Two processes pack the set once, and go on with the run of two."""
    out, done = run(structures, 2, "data.stream=true", "train.epochs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    out, done = run(structures, 2, "data.stream=true", "train.epochs=3", "resume=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(loop.read_metrics(out / "multihead")["train/loss"][1]) == 2  # the stage had ended


def test_too_many_processes(structures):
    _, done = run(structures, 2, "train.batch_size=1")
    assert done.returncode and "too small for 2 processes" in done.stderr
