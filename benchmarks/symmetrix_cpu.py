"""Symmetrix-XL's MACE on CPU cores, served to benchmarks/inference.py: OMP_NUM_THREADS=n .venv-peers/bin/python benchmarks/symmetrix_cpu.py FILE …

Each file is a model that its extractor has written (benchmarks/peers.py); its name without the ending, the model's. The threads are the process's.
It takes the package of the widest instructions that the machine has, which the first line says in place of a folder; its neighbour list has a skin.
"""

import sys
from pathlib import Path

import symmetrix
from serving import answer, requests, result, through_ase


def main():
    models = {Path(file).stem: through_ase(symmetrix.Symmetrix(file, execution_profile="speed")) for file in sys.argv[1:]}
    for request in requests(models, symmetrix.selected_backend()["selector"]):
        answer(result(models, request))


if __name__ == "__main__":
    main()
