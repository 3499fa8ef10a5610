"""Energies and forces on a CUDA device: what `benchmarks/inference.py --device cuda` runs.

Medians over replays of a CUDA graph, timed with events; positions and results stay on the device. The answer is compared with the CPU engine's
before anything is timed, and torchmd-net's TensorNet, with the same weights, runs in the same process, by graph where it can be recorded; MACE,
with random weights, in one of its own, where mace-torch is there (`make peers`, or in this environment).
"floor": the larger of the arithmetic (over the card's own fp32 sgemm) and the traffic (each stored tensor read and written once, over the card's own
copy) is that share of the time. TF32 is timed beside single precision, and how far its forces are off. `--stages` has a table of the stages instead.
"""

import gc
import importlib.util
import re
import statistics
import sys
import warnings
from time import monotonic

import numpy as np
import torch
from torchmdnet_oracle import state_for_peer
from yardsticks import ROOT, Peers, check, count_pairs, evaluation, floors, system

from mfmd import Error
from mfmd.engine import Engine, default_threads


def elapsed(run, seconds, least=5):
    """Median milliseconds of a call on the device, over about `seconds`."""
    run()
    torch.cuda.synchronize()
    times, until = [], monotonic() + seconds
    while len(times) < least or monotonic() < until:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def ceilings():
    """TFLOP/s of an fp32 product without TF32, TB/s of a copy, read and write counted."""
    a, big = torch.randn(8192, 8192, device="cuda"), torch.randn(2**29, device="cuda")
    other = torch.empty_like(big)
    return 2 * 8192**3 / elapsed(lambda: a @ a, 1) / 1e9, 2 * big.nbytes / elapsed(lambda: other.copy_(big), 1) / 1e9


def recorded(run):
    """The call as a CUDA graph: run three times beside, then recorded."""
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
    graph.replays = run  # which has the memory that it replays on
    return graph


class OnDevice:
    """Structures of one kind on the device, in one batch, with an engine of their own."""

    def __init__(self, path, atoms, copies=1, precision="single"):
        self.engine, self.sizes, self.pbc = Engine(path, precision, "cuda"), [len(atoms)] * copies, atoms.pbc
        self.numbers = np.tile(atoms.numbers, copies)
        self.positions = torch.tensor(np.tile(atoms.positions, (copies, 1)), device="cuda")
        self.cells = torch.tensor(np.tile(atoms.cell.array, (copies, 1, 1)), device="cuda")
        self.forces, self.energies = torch.empty_like(self.positions), torch.empty(2, copies, dtype=torch.float64, device="cuda")

    def __call__(self):
        self.engine.enqueue(
            self.sizes, self.numbers, self.positions.data_ptr(), self.cells.data_ptr(), self.pbc, terms=[("low", 1.0)],
            energies=self.energies.data_ptr(), forces=self.forces.data_ptr(), stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip


def peer_on_device(model, head, atoms):
    """torchmd-net's TensorNet with our weights: a function that leaves its forces in .forces."""
    from torchmdnet.models.tensornet import TensorNet

    backbone = model.backbone
    peer = TensorNet(
        hidden_channels=backbone.embedding.pair.out_features, num_layers=len(backbone.layers), num_rbf=len(backbone.radial.means),
        trainable_rbf=False, cutoff_lower=0.0, cutoff_upper=backbone.radial.cutoff, max_z=backbone.embedding.elements.num_embeddings,
        static_shapes=True, check_errors=False, max_num_neighbors=96,
    )  # fmt: skip
    peer.load_state_dict({k: v.float() for k, v in state_for_peer(backbone).items()}, strict=False)
    peer, head = peer.eval().cuda(), head.cuda()
    z, batch = torch.tensor(atoms.numbers, device="cuda"), torch.zeros(len(atoms), dtype=torch.long, device="cuda")
    box = torch.tensor(atoms.cell.array, dtype=torch.float32, device="cuda") if atoms.pbc.all() else None
    positions = torch.tensor(atoms.positions, dtype=torch.float32, device="cuda", requires_grad=True)
    scale = float(head.scale)

    def run():
        x = peer(z, positions, batch, box=box)[0]
        (gradient,) = torch.autograd.grad((head(x, z) * scale).sum(), positions)
        run.forces = -gradient

    return run


def peer_time(model, head, atoms, ours, seconds):
    """Milliseconds of the peer in its best setting, and which; None where it does not fit the card."""
    try:
        run = peer_on_device(model, head, atoms)
        run()
        check("torchmd-net", ours, run.forces.double().cpu().numpy())
        best = elapsed(run, seconds), "eager"
    except torch.cuda.OutOfMemoryError:
        return None
    try:
        graph = recorded(run)
        best = min(best, (elapsed(graph.replay, seconds), "graph"))
    except RuntimeError as error:
        warnings.warn(f"torchmd-net cannot be recorded as a CUDA graph here: {error}", stacklevel=1)
    return best


def stage_floors(atoms, pairs, F, L, hidden):
    """{stage: (FLOP, bytes)} as `yardsticks.floors` counts them, but the read-out is a kernel with what follows it; adjoints of pairs by slabs of 16."""
    of = floors(atoms, pairs, F, L, hidden)
    features, dense, gates = 4 * 9 * F * atoms, 18 * F * F * atoms, 16 * F * F * atoms
    kept = 4 * (9 * F + 16) * atoms  # what the gates' reverse needs
    slope = 4 * F // 16 * pairs // 2
    leave_layer, leave_embedding = (dense, 5 * features), (dense + gates, 3 * features + kept)
    last = leave_layer if L else leave_embedding
    return {
        "embedding_gather": of["embedding_gather"],
        "embedding_mix": (dense + gates + dense * (L > 0), (3 + (L > 0)) * features + kept),
        "message": of["message"],
        "product": (max(2 * L - 1, 0) * dense, max(6 * L - 1, 0) * features),
        "readout": ((12 * F * F + 4 * F * hidden) * atoms + last[0], 2 * features + last[1]),
        "message_reverse": (of["message_reverse"][0], of["message_reverse"][1] + max(2 * L - 1, 0) * slope),
        "mixing_reverse": (
            L * dense + max(L - 1, 0) * leave_layer[0] + (L > 0) * leave_embedding[0],
            4 * L * features + max(L - 1, 0) * leave_layer[1] + (L > 0) * leave_embedding[1],
        ),
        "embedding_gather_reverse": (of["embedding_gather_reverse"][0], of["embedding_gather_reverse"][1] + (1 + (L > 0) + 3) * slope),
    }


def print_stages(path, names, seconds, sizes, flops, bandwidth):
    """Time of every stage's kernels within replays of a graph, and how much of it the larger of its two floors is; below, all of them beside a replay."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
        pass  # a profiler that begins after a graph was recorded may miss its kernels
    for name in names:
        atoms = system(name)
        graph, replays, times = recorded(OnDevice(path, atoms)), 20, {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(replays):
                graph.replay()
            torch.cuda.synchronize()
        for kernel in profile.key_averages():
            if kernel.device_type != torch.autograd.DeviceType.CUDA:
                continue
            stage = re.search(r"(\w+)_kernel\b", kernel.key)
            stage = stage[1] if stage else "list, sums and copies"
            times[stage] = times.get(stage, 0.0) + kernel.device_time_total / replays
        work = stage_floors(len(atoms), count_pairs(atoms), *sizes)
        print(f"\n{name}\n\n| stage | µs | share | TFLOP/s | TB/s | floor |\n|---|---|---|---|---|---|")
        for stage in (stage for stage in (*work, "list, sums and copies") if stage in times):
            t, rest = times[stage], ["", "", ""]
            if stage in work:
                arithmetic, traffic = work[stage]
                floor = 1e6 * max(arithmetic / flops / 1e12, traffic / bandwidth / 1e12)
                rest = [f"{arithmetic / t / 1e6:.1f}", f"{traffic / t / 1e6:.2f}", f"{100 * floor / t:.0f} %"]
            print(f"| {stage} | {t:.4g} | {100 * t / sum(times.values()):.0f} % | {' | '.join(rest)} |")
        print(f"| all | {sum(times.values()):.4g}, a replay {1e3 * elapsed(graph.replay, seconds):.4g} | | | | |", flush=True)


def mace_peers():
    """MACE in a process of its own, or None where it is not installed."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    if python.exists() or importlib.util.find_spec("mace"):
        return Peers(str(python) if python.exists() else sys.executable, "cuda")
    warnings.warn("mace-torch is not installed; torchmd-net is the only peer", stacklevel=1)
    return None


def row(model, head, path, name, atoms, seconds, peers, mace, sizes, flops, bandwidth):
    """Of the table, but for name and atoms. mace: its times in seconds, of which None is one that does not fit."""
    free = torch.cuda.mem_get_info()[0]
    run = OnDevice(path, atoms)
    run()
    torch.cuda.synchronize()
    forces = run.forces.cpu().numpy()
    if len(atoms) <= 25000:
        wanted = evaluation(Engine(path, threads=default_threads()), atoms)()["forces"]
        if np.abs(forces - wanted).max() > 1e-3 * np.abs(wanted).max():
            raise SystemExit(f"error: {name}: the device does not give the CPU's forces")
    assert np.isfinite(forces).all()
    time = elapsed(recorded(run).replay, seconds)
    gigabytes = (free - torch.cuda.mem_get_info()[0]) / 1e9
    del run
    work = stage_floors(len(atoms), count_pairs(atoms), *sizes)
    arithmetic, traffic = (sum(stage[k] for stage in work.values()) for k in (0, 1))
    floor = max(arithmetic / flops / 1e9, traffic / bandwidth / 1e9)
    rounded = OnDevice(path, atoms, precision="tf32")
    rounded()
    error = np.abs(rounded.forces.cpu().numpy() - forces).max() / np.abs(forces).max()
    peer = peer_time(model, head, atoms, forces, seconds) if peers and len(atoms) <= 25000 else None
    beside = [f"{peer[0]:.3g} ({peer[1]})", f"{peer[0] / time:.1f}"] if peer else ["", ""]
    beside += [f"{1e3 * other:.3g} ({1e3 * other / time:.1f} ×)" if other else "" for other in mace]
    return [
        f"{time:.4g}", f"{1e3 * time / len(atoms):.3g}", f"{arithmetic / time / 1e9:.1f}", f"{traffic / time / 1e9:.2f}", f"{100 * floor / time:.0f} %",
        f"{0.5e-6 * 86400e3 / time:.3g}", f"{gigabytes:.1f}", f"{elapsed(recorded(rounded).replay, seconds):.4g}", f"{error:.0e}", *beside,
    ]  # fmt: skip


def main(model, path, names, seconds, peers, stages):
    flops, bandwidth = ceilings()
    sizes = model.backbone.embedding.pair.out_features, len(model.backbone.layers), model.heads["low"].hidden.out_features
    card = torch.cuda.get_device_name()
    print(f"{card}: {flops:.1f} TFLOP/s (sgemm, fp32), {bandwidth:.2f} TB/s (copy)\n")
    if stages:
        return print_stages(path, names, seconds, sizes, flops, bandwidth)
    columns = [
        "system", "atoms", "ms", "µs/atom", "TFLOP/s", "TB/s", "floor", "ns/day at 0.5 fs", "GB", "TF32, ms", "its forces are off by, of the largest",
        "torchmd-net, ms", "ratio",
    ]  # fmt: skip
    others = mace_peers() if peers else None
    columns += [f"{peer}, ms" for peer in others.names] if others else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    head = model.heads["low"].float()
    for name in names:
        atoms = system(name)
        gc.collect()  # a million atoms fit once
        torch.cuda.empty_cache()
        try:
            mace = [others.time(peer, atoms, 1, seconds) if len(atoms) <= 25000 else None for peer in others.names] if others else []
            cells = row(model, head, path, name, atoms, seconds, peers, mace, sizes, flops, bandwidth)
        except (Error, torch.cuda.OutOfMemoryError) as error:
            if "out of memory" not in str(error):
                raise
            cells = ["does not fit"]
        print(f"| {' | '.join(map(str, [name, len(atoms), *cells]))} |", flush=True)
    one, many = (elapsed(recorded(OnDevice(path, system("ethanol"), copies)).replay, seconds) for copies in (1, 1000))
    print(
        f"\n1000 ethanols in one batch: {many:.3g} ms, {1000 * one / many:.0f} times as many a second as one at a time ({1e3 * one:.0f} µs)"
    )
