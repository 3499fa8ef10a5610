"""Model files for the core's C++ test: every rank, with and without layers; and the instruction sets this machine has.

python tests/models.py build/models
"""

import os
import subprocess
import sys
from pathlib import Path

import conftest

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for rank in (0, 1, 2):
    for layers in (0, 2) if rank == 2 else (1,):
        model = conftest.random_model(rank, channels=16, layers=layers, cutoff=3.5, rank=rank, radial_functions=8)
        path = conftest.write(model, folder / f"rank{rank}_layers{layers}.pt")
conftest.write(conftest.all_at_once(), folder / "published.pt")
code = "import sys; from mfmd.engine import Engine; Engine(sys.argv[1], threads=1).compute([[0, 0, 0]], [1], terms=[('low', 1.0)])"
have = [
    simd
    for simd in ("generic", "avx2", "avx512")
    if not subprocess.run([sys.executable, "-c", code, path], env={**os.environ, "MFMD_SIMD": simd}, stderr=subprocess.DEVNULL).returncode
]
(folder / "simd").write_text(" ".join(have))
