"""What a process of peers does: energies and forces on request of yardsticks.Peers.

Its first line on standard output names the models and a folder; then each line on standard input is a request {"peer", "threads", "seconds", "numbers",
"positions", "cell", "periodic"}, each line on standard output the median time in seconds, or null where the device has not the memory; with seconds
null, the forces in eV/Å.
"""

import json
import os
import statistics
import sys
import warnings
from time import perf_counter

warnings.filterwarnings("ignore")
OUT = os.dup(1)
os.dup2(2, 1)  # what the packages print goes to standard error

from ase import Atoms  # noqa: E402


def through_ase(calculator):
    """A function of ase.Atoms that returns a function without arguments: one evaluation."""

    def prepare(atoms):
        if not atoms.cell.any():
            atoms.set_cell([50.0] * 3)  # it asks for a cell
        atoms.calc = calculator

        def evaluate():
            atoms.rattle(1e-9)  # ASE would remember the last result
            return atoms.get_forces()

        return evaluate

    return prepare


def requests(names, folder):
    """What is asked, one after the other; names and a folder are said first."""
    answer({"names": list(names), "folder": str(folder)})
    yield from map(json.loads, sys.stdin)


def answer(line):
    os.write(OUT, (json.dumps(line) + "\n").encode())


def result(models, request):
    """models : {name: a function of ase.Atoms that returns a function without arguments: one evaluation, its result the forces}"""
    atoms = Atoms(request["numbers"], request["positions"], cell=request["cell"], pbc=request["periodic"])
    evaluate = models[request["peer"]](atoms)
    return median_time(evaluate, request["seconds"]) if request["seconds"] else evaluate().tolist()


def median_time(evaluate, seconds):
    evaluate()
    times = []
    while not times or sum(times) < seconds:
        start = perf_counter()
        evaluate()
        times.append(perf_counter() - start)
    return statistics.median(times)
