"""Several processes of one run, as torchrun starts them; and files that appear whole or not at all."""

import contextlib
import os
from pathlib import Path

import torch


def processes():
    """(number of this process, how many there are): torchrun says so."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


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
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
