"""Several processes of one run, as torchrun starts them, and the device of each; and files that appear whole or not at all."""

import contextlib
import io
import os
from pathlib import Path

import torch

from mfmd import whole
from mfmd.config import ConfigError
from mfmd.engine import _engine


def processes():
    """(number of this process, how many there are): torchrun says so."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def processes_here():
    """How many of them there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


BACKEND = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # by which the processes of a device speak to each other


def device_of_process(train):
    """The torch.device that this process trains on; of several on a machine each has a GPU of its own.

    train : schema.Train

    Raises
    ------
    ConfigError : there is no GPU where one is asked for, or fewer than processes; TF32 without one
    """
    cards = torch.cuda.device_count() if _engine.has_cuda() else 0
    if train.device == "cuda" and not cards:
        why = "torch finds no GPU here" if _engine.has_cuda() else "mfmd was built without CUDA"
        raise ConfigError(f"train.device: cuda, but {why}; set train.device=cpu")
    if train.device == "cpu" or not cards:
        if train.precision == "tf32":
            raise ConfigError(
                "train.precision: tf32 is of the tensor cores of a GPU, and this run is on the CPU; set train.precision=single"
            )
        return torch.device("cpu")
    if processes_here() > cards:
        raise ConfigError(
            f"train.device: {processes_here()} processes on a machine of {cards} GPUs; start torchrun with --nproc-per-node={cards}, or set train.device=cpu"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def wait_for_all():
    if processes()[1] > 1:
        torch.distributed.barrier()


@contextlib.contextmanager
def first_process_first():
    """What the first process does and writes here, the others find done."""
    if processes()[0] > 0:
        wait_for_all()
    yield
    if processes()[0] == 0:
        wait_for_all()


def save(content, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()  # of a full disk torch says another thing than that
    torch.save(content, archive)
    with whole.writing(path) as file:
        file.write(archive.getbuffer())
