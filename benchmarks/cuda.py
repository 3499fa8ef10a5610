"""Energies and forces on a CUDA device: what `benchmarks/inference.py --device cuda` runs.

Medians over replays of a CUDA graph, timed with events; positions and results stay on the device. The answer is compared with the CPU engine's
before anything is timed, and torchmd-net's TensorNet, with the same weights, runs in the same process, by graph where it can be recorded; MACE,
with random weights, in one of its own, where mace-torch is there (`make peers`, or in this environment).
"of the floor": the larger of the arithmetic (over the card's own fp32 sgemm) and the traffic (each stored tensor read and written once, over the card's own
copy) is that share of the time. TF32 is timed beside single precision, and how far its forces are off. `--stages` has a table of the stages instead,
`--room` how many atoms fit.
"""

import gc
import importlib.util
import itertools
import re
import sys
import warnings
from time import monotonic

import device
import numpy as np
import torch
from device import OnDevice, Recorded, elapsed
from torchmdnet_oracle import state_for_peer
from yardsticks import PEERS, Peers, check, count_pairs, evaluation, floors, system

from mfmd import Error
from mfmd.engine import Engine, default_threads


def ceilings():
    """TFLOP/s of an fp32 product without TF32, TB/s of a copy, read and write counted."""
    edge, length = (8192, 2**29) if device.PLACE == "cuda" else (256, 2**20)
    a, big = torch.randn(edge, edge, device=device.PLACE), torch.randn(length, device=device.PLACE)
    other = torch.empty_like(big)
    return 2 * edge**3 / elapsed(lambda: a @ a, 1) / 1e9, 2 * big.nbytes / elapsed(lambda: other.copy_(big), 1) / 1e9


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
    """Milliseconds of the peer in its best setting, eager or by graph; None where it does not fit the card."""
    try:
        run = peer_on_device(model, head, atoms)
        run()
        check("torchmd-net", ours, run.forces.double().cpu().numpy())
        best = elapsed(run, seconds)
    except torch.cuda.OutOfMemoryError:
        return None
    try:
        best = min(best, elapsed(Recorded(run).replay, seconds))
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
    """Time of every stage's kernels within replays of a graph, and how much of it the larger of its two floors is; below, all of them beside a replay.

    Returns {system: {stage: µs}}.
    """
    found, kinds = {}, torch.profiler.ProfilerActivity
    activities = [kinds.CUDA if device.PLACE == "cuda" else kinds.CPU]
    with torch.profiler.profile(activities=activities):
        pass  # a profiler that begins after a graph was recorded may miss its kernels
    for name in names:
        atoms = system(name)
        graph, replays, times = Recorded(OnDevice(path, atoms)), 20, {}
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(replays):
                graph.replay()
            device.synchronize()
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
        replay = 1e3 * elapsed(graph.replay, seconds)
        print(f"| all | {sum(times.values()):.4g}, a replay {replay:.4g} | | | | |", flush=True)
        found[name] = times | {"a replay": replay}
    return found


def mace_peers():
    """MACE in a process of its own, or None where it is not installed."""
    if PEERS.exists() or importlib.util.find_spec("mace"):
        return Peers("peers.py", "cuda", python=PEERS if PEERS.exists() else sys.executable)
    warnings.warn("mace-torch is not installed; torchmd-net is the only peer", stacklevel=1)
    return None


COLUMNS = (
    "atoms", "ms", "µs/atom", "TFLOP/s", "TB/s", "of the floor, %", "ns/day at 0.5 fs", "GB", "TF32, ms",
    "its forces are off by, of the largest",
)  # fmt: skip
PEER = "{}, ms", "{}, times ours"
TORCHMD = tuple(of.format("torchmd-net") for of in PEER)


def row(model, head, path, name, atoms, seconds, peers, mace, sizes, flops, bandwidth):
    """{column: number}. mace: {its name: seconds}, of those that fit."""
    free = device.free()
    run = OnDevice(path, atoms)
    run()
    device.synchronize()
    forces = run.forces.cpu().numpy()
    if len(atoms) <= 25000:
        wanted = evaluation(Engine(path, threads=default_threads()), atoms)()["forces"]
        if np.abs(forces - wanted).max() > 1e-3 * np.abs(wanted).max():
            raise SystemExit(f"error: {name}: the device does not give the CPU's forces")
    assert np.isfinite(forces).all()
    time = elapsed(Recorded(run).replay, seconds)
    gigabytes = (free - device.free()) / 1e9
    del run
    work = stage_floors(len(atoms), count_pairs(atoms), *sizes)
    arithmetic, traffic = (sum(stage[k] for stage in work.values()) for k in (0, 1))
    floor = max(arithmetic / flops / 1e9, traffic / bandwidth / 1e9)
    rounded = OnDevice(path, atoms, precision="tf32")
    rounded()
    error = np.abs(rounded.forces.cpu().numpy() - forces).max() / np.abs(forces).max()
    peer = peer_time(model, head, atoms, forces, seconds) if peers and len(atoms) <= 25000 else None
    values = (
        len(atoms), time, 1e3 * time / len(atoms), arithmetic / time / 1e9, traffic / time / 1e9, 100 * floor / time, 0.5e-6 * 86400e3 / time,
        gigabytes, elapsed(Recorded(rounded).replay, seconds), float(error),
    )  # fmt: skip
    found = dict(zip(COLUMNS, values, strict=True)) | (dict(zip(TORCHMD, (peer, peer / time), strict=True)) if peer else {})
    for other, seconds_of in mace.items():
        found |= {of.format(other): value for of, value in zip(PEER, (1e3 * seconds_of, 1e3 * seconds_of / time), strict=True)}
    return found


def print_table(model, path, names, seconds, peers, sizes, flops, bandwidth):
    """{system: what `row` finds}, of which None is one that does not fit."""
    others = mace_peers() if peers else None
    head, found = model.heads["low"].float(), {}
    columns = [*COLUMNS, *(TORCHMD if peers else ()), *(of.format(peer) for peer in (others.names if others else ()) for of in PEER)]
    print(f"| system | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)
    for name in names:
        atoms = system(name)
        gc.collect()  # a million atoms fit once
        torch.cuda.empty_cache()
        mace = {peer: others.time(peer, atoms, 1, seconds) for peer in others.names} if others and len(atoms) <= 25000 else {}
        mace = {peer: time for peer, time in mace.items() if time}
        try:
            cells = found[name] = row(model, head, path, name, atoms, seconds, peers, mace, sizes, flops, bandwidth)
            print(f"| {name} | {' | '.join(f'{cells[key]:.4g}' if key in cells else '' for key in columns)} |", flush=True)
        except (Error, torch.cuda.OutOfMemoryError) as error:
            if "out of memory" not in str(error):
                raise
            found[name] = None
            print(f"| {name} | {len(atoms)} | does not fit |{' |' * (len(columns) - 2)}", flush=True)
    return found


def print_batch(path, seconds, copies=1000):
    copies = copies if device.PLACE == "cuda" else 10
    one, many = (elapsed(Recorded(OnDevice(path, system("ethanol"), n)).replay, seconds) for n in (1, copies))
    print(
        f"{copies} ethanols in one batch: {many:.3g} ms, {copies * one / many:.0f} times as many a second as one at a time ({1e3 * one:.0f} µs)\n"
    )
    return {"ethanols": copies, "ms": many, "one, ms": one, "times as many a second": copies * one / many}


def print_room(path):
    """How many atoms of water fit: the same cell over and over, whose forces must be those of one cell."""
    one, most = system("water-648"), None
    wanted = evaluation(Engine(path, threads=default_threads()), one)()["forces"]
    fine = (tuple(edge + (k > axis) for axis in range(3)) for edge in range(10, 99) for k in range(3))
    for edge in itertools.chain([(1, 1, 2), (4, 4, 4), (6, 6, 6), (8, 8, 8)], fine):
        atoms = one.repeat(edge)
        gc.collect()
        torch.cuda.empty_cache()
        free = device.free()
        try:
            run = OnDevice(path, atoms)
            start = monotonic()
            run()
            device.synchronize()
            time = monotonic() - start
            forces = run.forces.cpu().numpy().reshape(-1, *wanted.shape)
        except (Error, torch.cuda.OutOfMemoryError) as error:
            if "out of memory" not in str(error):
                raise
            break
        if not np.abs(forces - wanted).max() < 1e-3 * np.abs(wanted).max():
            raise SystemExit(f"error: {len(atoms)} atoms: a cell among many has not the forces that it has alone")
        most = {"atoms": len(atoms), "GB": (free - device.free()) / 1e9, "first step, s": time}
        del run
        if device.PLACE == "cpu":  # which has no end
            break
    if most is None:
        raise SystemExit(f"error: {len(atoms)} atoms do not fit")
    print(f"{most['atoms']} atoms of water fit: {most['GB']:.1f} GB, {most['first step, s']:.2g} s for the first step, list included")
    return most


def main(model, path, names, seconds, peers, what):
    """what : "table", "stages" or "room". Returns what was found, JSON-able."""
    flops, bandwidth = ceilings()
    sizes = model.backbone.embedding.pair.out_features, len(model.backbone.layers), model.heads["low"].hidden.out_features
    print(f"{device.name()}: {flops:.1f} TFLOP/s (sgemm, fp32), {bandwidth:.2f} TB/s (copy)\n")
    found = {"TFLOP/s": flops, "TB/s": bandwidth}
    if what == "stages":
        return found | {"stages, µs": print_stages(path, names, seconds, sizes, flops, bandwidth)}
    if what == "room":
        return found | {"room": print_room(path)}
    batch = print_batch(path, seconds)
    return found | {"batch": batch, "systems": print_table(model, path, names, seconds, peers, sizes, flops, bandwidth)}
