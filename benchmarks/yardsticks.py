"""What the benchmarks of inference share: systems, a clock, what the arithmetic needs, and peers in a process of their own."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule

from mfmd import engine

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"  # of `make peers`


def water(atoms):
    """Liquid-like water at 1 g/cm³: molecules on a lattice, turned at random."""
    n = atoms // 3
    length = (n * 18.015 / 0.602214) ** (1 / 3)
    k = int(np.ceil(n ** (1 / 3) - 1e-9))
    rng = np.random.default_rng(0)
    sites = [(x, y, z) for x in range(k) for y in range(k) for z in range(k)][:n]
    one = molecule("H2O")
    positions = [one.positions @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + np.array(s) * length / k for s in sites]
    return Atoms(np.tile(one.numbers, n), np.concatenate(positions), cell=[length] * 3, pbc=True)


def peptide():
    """Alanine dipeptide, ACE-ALA-NME, extended: 22 atoms."""
    symbols = "HCHHCONHCHCHHHCONHCHHH"
    positions = [
        [2.0, 1.0, 0.0], [2.0, 2.09, 0.0], [1.486, 2.454, 0.89], [1.486, 2.454, -0.89], [3.427, 2.641, 0.0], [4.391, 1.877, 0.0],
        [3.555, 3.97, 0.0], [2.733, 4.556, 0.0], [4.853, 4.614, 0.0], [5.408, 4.316, 0.89], [5.661, 4.221, -1.232],
        [5.123, 4.521, -2.131], [6.63, 4.719, -1.206], [5.809, 3.141, -1.241], [4.713, 6.129, 0.0], [3.601, 6.653, 0.0],
        [5.846, 6.835, 0.0], [6.737, 6.359, 0.0], [5.846, 8.284, 0.0], [4.819, 8.648, 0.0], [6.36, 8.648, 0.89], [6.36, 8.648, -0.89],
    ]  # fmt: skip
    return Atoms(symbols, positions)


def system(name):
    if name in ("ethanol", "peptide"):
        return molecule("CH3CH2OH") if name == "ethanol" else peptide()
    return water(int(name.split("-")[1]))


def median(function, seconds, least=5):
    """Median time of a call over about `seconds`."""
    times = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def count_pairs(atoms):
    """Directed pairs within 5 Å."""
    return len(engine.neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 5.0)[0])


def evaluation(engine, atoms, head="low"):
    return lambda: engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[(head, 1.0)])


def print_cost(engine, option, systems, seconds):
    """CPU time of an evaluation with forces, without and with an option of `Engine.compute`, in turns; medians of each of the systems are told."""
    terms = [(engine.levels[-1], 1.0)]
    for atoms in systems:
        given, times = (atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc), {False: [], True: []}
        end = time.process_time() + seconds
        while time.process_time() < end or len(times[True]) < 5:
            for asked in times:
                begin = time.process_time()
                engine.compute(*given, terms=terms, **{option: asked})
                times[asked].append(time.process_time() - begin)
        without, with_it = (1e3 * statistics.median(times[asked]) for asked in (False, True))
        print(f"{len(atoms)} atoms: {without:.3f} ms, with it {with_it:.3f} ms, {100 * (with_it / without - 1):+.1f} %")


def check(name, ours, theirs):
    """The two models are one: the same forces, or no timing."""
    difference, largest = np.abs(theirs - ours).max(), np.abs(ours).max()
    if difference > 2e-3 * largest:
        sys.exit(f"error: {name}: the two do not give the same forces ({difference:.1e} of {largest:.1e} eV/Å)")


def floors(atoms, pairs, F, L, hidden):
    """{stage: (FLOP it does, bytes if every feature is read and written once)} of the engine at rank 2, single precision.

    A table costs 30 FLOP a function triple and pair, value and slope together 54; what slopes need is done once for (i, j) and (j, i).
    """
    features, dense = 4 * 9 * F * atoms, 18 * F * F * atoms  # one array of tensors; one channel mixing of all components
    gates, readout = 16 * F * F * atoms, (12 * F * F + 4 * F * hidden) * atoms
    pair, basis = 4 * 4 * pairs, 4 * 9 * pairs
    return {
        "embedding_gather": (51 * F * pairs, features + pair + basis),
        "embedding_mix": (dense + gates + (dense if L else readout + dense + gates), 6 * features),
        "message": (48 * F * pairs * L, (2 * features + pair) * L),
        "product": (L * dense + (L - 1) * dense + readout + dense, (7 * L + 2) * features),
        "message_reverse": ((48 + 33) * F * pairs * L, (4 * features + pair) * L),
        "mixing_reverse": (L * dense + (L - 1) * dense + dense + gates, (8 * L + 2) * features),
        "embedding_gather_reverse": (66 * F * pairs, features + pair + basis),
    }


class Peers:
    """The models of benchmarks/<script>, in a process of the environment of `make peers`. threads : of the process, where they are not set by request.

    RuntimeError, with the process's last words, where it does not start.
    """

    def __init__(self, script, *arguments, threads=None, python=PEERS):
        command = [python, ROOT / "benchmarks" / script, *arguments]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with tempfile.TemporaryFile("w+") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
            if not (first := self.process.stdout.readline()):
                said.seek(0)
                raise RuntimeError((said.read().splitlines() or [f"{script} ended without a word"])[-1])
        started = json.loads(first)
        self.names, self.folder = started["names"], Path(started["folder"])

    def time(self, peer, atoms, threads, seconds):
        """Of an evaluation, s; None where it has not the memory."""
        return self._ask(peer, atoms, threads, seconds)

    def forces(self, peer, atoms):
        """(N, 3), eV/Å."""
        return np.array(self._ask(peer, atoms, 1, None))

    def _ask(self, peer, atoms, threads, seconds):
        request = {
            "peer": peer, "threads": threads, "seconds": seconds, "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(), "cell": atoms.cell.array.tolist(), "periodic": bool(atoms.pbc.all()),
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
