"""Model files for the core's C++ test: every rank, with and without layers; and the instruction sets this machine has.

python tests/models.py build/models
"""

import sys
from pathlib import Path

import conftest

from mfmd import _engine

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for rank in (0, 1, 2):
    for layers in (0, 2) if rank == 2 else (1,):
        model = conftest.random_model(rank, channels=16, layers=layers, cutoff=3.5, rank=rank, radial_functions=8)
        conftest.write(model, folder / f"rank{rank}_layers{layers}.pt")
conftest.write(conftest.all_at_once(), folder / "published.pt")
(folder / "simd").write_text(" ".join(_engine.instruction_sets()))
