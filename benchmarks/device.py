"""The device that a benchmark runs on: its clock, its memory, a step that is recorded, structures that stay on it.

With benchmarks/emulated.py in front of it a benchmark goes through the emulated engine: tensors are in host memory, and nothing is a speed.
"""

import statistics
from time import monotonic, perf_counter

import numpy as np
import torch

from mfmd.engine import Engine

PLACE = "cuda"  # or "cpu", under the emulator


def synchronize():
    if PLACE == "cuda":
        torch.cuda.synchronize()


def name():
    return torch.cuda.get_device_name() if PLACE == "cuda" else "the emulator"


def free():
    """Bytes of the card that nobody has; 0 under the emulator."""
    return torch.cuda.mem_get_info()[0] if PLACE == "cuda" else 0


def elapsed(run, seconds, least=5):
    """Median milliseconds of a call on the device, over about `seconds`."""
    run()
    synchronize()
    times, until = [], monotonic() + seconds
    while len(times) < least or monotonic() < until:
        if PLACE != "cuda":
            start = perf_counter()
            run()
            times.append(1e3 * (perf_counter() - start))
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


class Recorded:
    """A call as a CUDA graph: run three times beside, then recorded. Under the emulator it is called."""

    def __init__(self, run):
        self.run = self.replay = run  # which has the memory that it replays on
        if PLACE != "cuda":
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self.replay = graph.replay


class OnDevice:
    """Structures of one kind on the device, in one batch, with an engine of their own."""

    def __init__(self, path, atoms, copies=1, precision="single"):
        self.engine, self.sizes, self.pbc = Engine(path, precision, "cuda"), [len(atoms)] * copies, atoms.pbc
        self.numbers = np.tile(atoms.numbers, copies)
        self.positions = torch.tensor(np.tile(atoms.positions, (copies, 1)), device=PLACE)
        self.cells = torch.tensor(np.tile(atoms.cell.array, (copies, 1, 1)), device=PLACE)
        self.forces, self.energies = torch.empty_like(self.positions), torch.empty(2, copies, dtype=torch.float64, device=PLACE)

    def __call__(self):
        self.engine.enqueue(
            self.sizes, self.numbers, self.positions.data_ptr(), self.cells.data_ptr(), self.pbc, terms=[("low", 1.0)],
            energies=self.energies.data_ptr(), forces=self.forces.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream if PLACE == "cuda" else 0,
        )  # fmt: skip
