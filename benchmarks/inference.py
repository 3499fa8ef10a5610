"""Energies and forces beside other models, in one run; what has the same weights as another is compared with it before either is timed.

    python benchmarks/inference.py [--sizes small medium large] [--systems ethanol peptide water-192 …] [--no-peers]
    python benchmarks/inference.py --stages [--sizes small medium large] [--systems water-648]
    python benchmarks/inference.py --device cuda [--systems ethanol … water-1000000] [--stages] [--room]

One core and two: medians of interleaved runs, single precision. "share" is the arithmetic that the work needs (`needed` below) over the run's own
sgemm on one core, which an engine can exceed; "of peak" what ours does (yardsticks.floors) over what the core can multiply and add (peak.cpp). matgl, MACE, Symmetrix-XL and NEP live in an environment of their own, `make peers`.
torchmd-net has our weights, matgl lends us its own, and Symmetrix-XL has those of mace-torch.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule
from yardsticks import PEERS, ROOT, Peers, check, count_pairs, evaluation, floors, median, system

sys.path.insert(0, str(ROOT / "tests"))
warnings.filterwarnings("ignore")
import conftest  # noqa: E402
from torchmdnet_oracle import state_for_peer  # noqa: E402

from mfmd import foreign  # noqa: E402
from mfmd.engine import Engine  # noqa: E402
from mfmd.training import export  # noqa: E402
from mfmd.training.schema import SIZES  # noqa: E402

PRODUCTS = """
import time, numpy, torch
torch.set_num_threads(1)
best = {"torch": 0.0, "numpy": 0.0}
for n in 8 * (256, 512, 1024):
    a = torch.randn(n, n)
    for name, one in (("torch", a), ("numpy", a.numpy())):
        for _ in range(2**22 // n**2):
            start = time.perf_counter()
            one @ one
            best[name] = max(best[name], 2e-9 * n**3 / (time.perf_counter() - start))
print(*best.values())
"""


def sgemm_peaks():
    """GFLOP/s of one core, the best of many products of matrices by torch, and by numpy: neither's library is the faster on every machine."""
    one = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return [
        *map(float, subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True, env=one).stdout.split())
    ]


def arithmetic_peak(folder):
    """GFLOP/s of multiply-adds of one core: what nothing exceeds, as libraries' products do not use all instructions of every processor."""
    program = Path(folder) / "peak"
    subprocess.run(["c++", "-O2", "-march=native", ROOT / "benchmarks" / "peak.cpp", "-o", program], check=True)
    return float(subprocess.run([program], capture_output=True, text=True, check=True).stdout)


def peer_model(model):
    """torchmd-net's TensorNet (its compiled kernels, as a user runs it) with the weights of our backbone, single precision."""
    from torchmdnet.models.tensornet import TensorNet

    backbone = model.backbone
    peer = TensorNet(
        hidden_channels=backbone.embedding.pair.out_features, num_layers=len(backbone.layers), num_rbf=len(backbone.radial.means),
        trainable_rbf=False, cutoff_lower=0.0, cutoff_upper=backbone.radial.cutoff, max_z=backbone.embedding.elements.num_embeddings,
        static_shapes=False, max_num_neighbors=96,
    )  # fmt: skip
    peer.load_state_dict({k: v.float() for k, v in state_for_peer(backbone).items()}, strict=False)
    return peer.eval()


def peer_evaluation(peer, head, atoms):
    """A function that returns energy (eV, without E0) and forces as torchmd-net computes them."""
    z, batch = torch.tensor(atoms.numbers), torch.zeros(len(atoms), dtype=torch.long)
    box = torch.tensor(atoms.cell.array, dtype=torch.float32) if atoms.pbc.all() else None
    scale = float(head.scale)

    def evaluate():
        positions = torch.tensor(atoms.positions, dtype=torch.float32, requires_grad=True)
        x = peer(z, positions, batch, box=box)[0]
        energy = (head(x, z) * scale).sum()
        return energy.item(), -torch.autograd.grad(energy, positions)[0].numpy()

    return evaluate


def openmm_step(path, atoms, seconds):
    """Time of an OpenMM step on Reference through the native force, one engine thread."""
    import backends

    context = backends.context(path, "low", atoms, "native", "single", threads=1)
    integrator = context.getIntegrator()
    integrator.setStepSize(1e-9)  # ps; the atoms stay: random weights are no force field
    integrator.step(3)
    return median(lambda: integrator.step(1), seconds)


def resident(path, name):
    """Resident memory of a fresh process after one evaluation, bytes."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import inference; from mfmd.engine import Engine\n"
        "a = inference.system(sys.argv[4]); e = Engine(sys.argv[3], threads=1)\n"
        "e.compute(a.positions, a.numbers, a.cell.array, a.pbc, terms=[('low', 1.0)])\n"
        "print([1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')][0])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(ROOT / "tests"), str(path), name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def first_energy(path):
    """Seconds from the start of a fresh process's imports to the first energy of ethanol through ASE."""
    code = (
        "import time; t = time.perf_counter(); import sys, mfmd; from ase import Atoms\n"
        "a = Atoms(numbers=eval(sys.argv[2]), positions=eval(sys.argv[3])); a.calc = mfmd.Calculator(sys.argv[1])\n"
        "a.get_potential_energy(); print(time.perf_counter() - t)"
    )
    a = molecule("CH3CH2OH")
    arguments = [str(path), json.dumps(a.numbers.tolist()), json.dumps(a.positions.tolist())]
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout) for _ in range(5)
    )


def bandwidth():
    """GB/s of one core, the best of many copies of an array beyond the caches: read once, written once."""
    a = np.ones(32_000_000)
    b, best = np.empty_like(a), np.inf
    for _ in range(10):
        start = time.perf_counter()
        np.copyto(b, a)
        best = min(best, time.perf_counter() - start)
    return 2 * a.nbytes / best / 1e9


def needed(atoms, pairs, channels, layers):
    """FLOP that energies and forces need once the pair weights are tables: 113 F² an atom and 120 F a pair, for each layer.

    A yardstick of the work, whatever an engine does: ours has 62 + 72 for each layer in place of 113 (the read-out beside them), thus less for two
    layers and more for one, and pays for the tables' look-ups (yardsticks.floors).
    """
    return atoms * 113 * layers * channels**2 + pairs * 120 * layers * channels


def print_stages(sizes, names, peak, copy, seconds):
    """Time, GFLOP/s and GB/s of every stage, medians, beside the ceilings of the machine; and which stage takes longest."""
    for (size, one), name in itertools.product(sizes.items(), names):
        atoms, engine, runs = system(name), Engine(one.path, threads=1), []
        evaluate, work = evaluation(engine, atoms), one.floors(atoms)
        evaluate()

        def run(engine=engine, evaluate=evaluate, runs=runs):
            before = engine.stage_times()
            evaluate()
            runs.append({stage: t - before[stage] for stage, t in engine.stage_times().items()})

        median(run, seconds)
        times = {stage: statistics.median(r[stage] for r in runs) for stage in ("neighbors", *work, "collect")}
        total = sum(times.values())
        print(f"\n**{size}, {name}**: {1e3 * total:.3g} ms\n\n| stage | ms | share | GFLOP/s | of peak | GB/s | of copy |\n|{'---|' * 7}")
        for stage, t in times.items():
            flops, traffic = (x / t / 1e9 for x in work.get(stage, (0, 0)))
            rates = (
                [f"{flops:.1f}", f"{100 * flops / peak:.0f} %", f"{traffic:.1f}", f"{100 * traffic / copy:.0f} %"]
                if stage in work
                else [""] * 4
            )
            print(f"| {stage} | {1e3 * t:.3g} | {100 * t / total:.0f} % | {' | '.join(rates)} |")
        worst = max(times, key=times.get)
        flops, traffic = (x / times[worst] / 1e9 for x in work.get(worst, (0, 0)))
        at = f", at {100 * flops / peak:.0f} % of peak and {100 * traffic / copy:.0f} % of copy" if worst in work else ""
        print(f"\nlongest: {worst}, {100 * times[worst] / total:.0f} % of the time{at}", flush=True)


def on_threads(threads, evaluate):
    def run():
        torch.set_num_threads(threads)
        evaluate()

    return run


@dataclass
class Size:
    """A model of ours. peer : torchmd-net's with its weights."""

    channels: int
    layers: int
    path: Path
    model: torch.nn.Module
    peer: torch.nn.Module | None = None

    def floors(self, atoms):
        return floors(len(atoms), count_pairs(atoms), self.channels, self.layers, self.model.heads["low"].hidden.out_features)


TENSORNET, MATGL, SYMMETRIX = "torchmd-net TensorNet", "matgl TensorNet", "symmetrix-xl "
BESIDE = {MATGL: "mfmd, weights of matgl"}  # what a peer's times are divided by, where it is not "mfmd"
MATGL_SIZE = 128, 2


class Others:
    """The peers of `make peers`."""

    def __init__(self, folder, sizes):
        self.peers = Peers("peers.py", "cpu")
        self.size = next((name for name, one in sizes.items() if (one.channels, one.layers) == MATGL_SIZE), None)
        self.imported = import_matgl(self.peers.folder / "matgl", Path(folder) / "matgl.pt")
        self.symmetrix = {}
        try:
            if not (files := sorted(self.peers.folder.glob(f"{SYMMETRIX}*.json"))):
                raise RuntimeError("it is not installed there (its packages are for x86-64 alone)")
            self.symmetrix = {threads: Peers("symmetrix_cpu.py", *files, threads=threads) for threads in (1, 2)}
            print(f"symmetrix-xl runs by its package for {self.symmetrix[1].folder}", flush=True)
        except RuntimeError as error:
            print(f"symmetrix-xl is left out: {error}", flush=True)

    def timed(self, name, atoms):
        """{(model, size or None, threads): a function of `seconds`, the median time}"""
        small, timed = len(atoms) <= 1000, {}
        if small and self.size:
            check(name, evaluation(Engine(self.imported, threads=1), atoms)()["forces"], self.peers.forces(MATGL, atoms))
            for threads in (1, 2):
                timed[BESIDE[MATGL], self.size, threads] = partial(
                    median, evaluation(Engine(self.imported, threads=threads), atoms), least=3
                )
        for other in self.peers.names:
            for threads in (1, 2) if "NEP" not in other else (1,):  # NEP on the CPU knows one thread
                if "NEP" in other or (small and (other != MATGL or self.size)):
                    timed[other, self.size if other == MATGL else None, threads] = partial(self.peers.time, other, atoms, threads)
        if len(atoms) <= 6000:
            for threads, process in self.symmetrix.items():
                for other in process.names:
                    if small and threads == 1:
                        check(name, self.peers.forces(other.removeprefix(SYMMETRIX), atoms), process.forces(other, atoms))
                    timed[other, None, threads] = partial(process.time, other, atoms, threads)
        return timed


def import_matgl(folder, path):
    """A model file of the weights that matgl's peer has."""
    export.write_model(path, *foreign.read(folder, level="low"))
    return path


def measure(name, sizes, others, seconds, rounds=3):
    """{(model, size or None, threads): seconds} of a system, interleaved, and {size: seconds of an OpenMM step}."""
    atoms, timed = system(name), {}
    for size, one in sizes.items():
        for threads in (1, 2):
            timed["mfmd", size, threads] = partial(median, evaluation(Engine(one.path, threads=threads), atoms), least=3)
        if one.peer is not None and len(atoms) <= 1000:
            evaluate = peer_evaluation(one.peer, one.model.heads["low"], atoms)
            check(name, evaluation(Engine(one.path, threads=1), atoms)()["forces"], evaluate()[1])
            for threads in (1, 2):
                timed[TENSORNET, size, threads] = partial(median, on_threads(threads, evaluate), least=2)
    if others:
        timed |= others.timed(name, atoms)
    times = {key: [] for key in timed}
    for _ in range(rounds):
        for key, run in timed.items():
            times[key].append(run(seconds=seconds / rounds))
    return {key: statistics.median(values) for key, values in times.items()}, {
        size: openmm_step(one.path, atoms, seconds) for size, one in sizes.items()
    }


def print_peers(results, sizes):
    """A row for each system and size: ours, and every other's times with how many times ours they are."""
    ours = {"mfmd", *BESIDE.values()}
    others = list(dict.fromkeys(key[0] for times in results.values() for key in times if key[0] not in ours))
    if not others:
        return
    print("\nMilliseconds on one core / two, and how many times mfmd's:\n")
    print(f"| system | size | mfmd | {' | '.join(others)} |\n|{'---|' * (len(others) + 3)}")
    for (name, times), size in itertools.product(results.items(), sizes):
        cells = [" / ".join(f"{1e3 * times['mfmd', size, t]:.3g}" for t in (1, 2))]
        for other in others:
            found = [times.get((other, size, t), times.get((other, None, t))) for t in (1, 2)]
            both = [(t, times[BESIDE.get(other, "mfmd"), size, k]) for k, t in enumerate(found, 1) if t]
            factors = " / ".join(f"{t / own:.1f}" for t, own in both)
            cells.append(" / ".join(f"{1e3 * t:.4g}" for t, _ in both) + (f" ({factors} ×)" if both else ""))
        print(f"| {name} | {size} | {' | '.join(cells)} |")


def plot(path, results, caption):
    """Time against atoms, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for model, size in dict.fromkeys(key[:2] for times in results.values() for key in times if key[0] not in BESIDE.values()):
        points = [(len(system(name)), 1e3 * times[model, size, 1]) for name, times in results.items() if (model, size, 1) in times]
        label = f"{model}, {size}" if size and model != MATGL else model
        axes.loglog(*zip(*points, strict=True), "o-", label=label, lw=2.5 if model == "mfmd" else 1.2)
    axes.set(xlabel="atoms", ylabel="energy and forces, ms (one core)", title=caption)
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["large"], help="of the backbone, as a config names them")
    parser.add_argument("--channels", type=int, help="of a size without a name, instead of --sizes")
    parser.add_argument("--layers", type=int, help="of that size")
    every = ["ethanol", "peptide", "water-192", "water-648", "water-5184", "water-20736"]
    parser.add_argument("--systems", nargs="+", default=every)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each figure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--stages", action="store_true", help="where the time goes, instead of the comparison")
    parser.add_argument("--room", action="store_true", help="how many atoms fit on the CUDA device, instead of the comparison")
    parser.add_argument("--json", type=Path, help="file for what was found on the CUDA device")
    parser.add_argument("--plot", help="PNG file")
    args = parser.parse_args()
    named = {name: (SIZES[name]["channels"], SIZES[name]["layers"]) for name in args.sizes}
    if args.channels or args.layers is not None:
        if not args.channels or args.layers is None:
            parser.error("--channels and --layers go together")
        named = {f"{args.channels} × {args.layers}": (args.channels, args.layers)}
    if args.device == "cuda" and len(named) > 1:
        parser.error("--device cuda takes one size at a time")
    peers = not args.no_peers and args.device == "cpu" and not args.stages
    if peers and not PEERS.exists():
        sys.exit("error: the peers are not installed; run `make peers` first, or give --no-peers")
    title = "; ".join(f"{name}: {channels} channels, {layers} layer{'s' * (layers != 1)}" for name, (channels, layers) in named.items())
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {title}; 5 Å, single precision")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for k, (name, (channels, layers)) in enumerate(named.items()):
            model = conftest.random_model(0, channels, layers, 5.0, 2, 32)
            sizes[name] = Size(channels, layers, conftest.write(model, Path(folder) / f"{k}.pt"), model)
        torch.set_default_dtype(torch.float32)
        if args.device == "cuda":
            import cuda

            (one,) = sizes.values()
            names = args.systems if args.systems != every else [*every, "water-99999", "water-999999"]
            what = "stages" if args.stages else "room" if args.room else "table"
            found = cuda.main(one.model, one.path, names, args.seconds, not args.no_peers, what)
            if args.json:
                args.json.write_text(json.dumps(found))
            return
        (by_torch, by_numpy), peak = sgemm_peaks(), arithmetic_peak(folder)
        print(f"one core: {peak:.0f} GFLOP/s (multiply-adds), {by_torch:.0f} by torch's sgemm and {by_numpy:.0f} by numpy's, ", end="")
        copy = bandwidth()
        print(f"{copy:.1f} GB/s (copy beyond the caches)", flush=True)
        if args.stages:
            print_stages(sizes, args.systems if args.systems != every else ["ethanol", "water-648"], peak, copy, args.seconds)
        else:
            compare(sizes, args.systems, max(by_torch, by_numpy), peak, args.seconds, folder if peers else None, args.plot)


def compare(sizes, names, sgemm, peak, seconds, folder, picture):
    """Tables of ours, and of the others beside them. sgemm, peak : GFLOP/s. folder : for files of the peers, or None: no peers."""
    others = Others(folder, sizes) if folder else None
    for one in sizes.values():
        one.peer = peer_model(one.model) if folder else None
        one.model.heads["low"].float()
    columns = ["system", "atoms", "size", "one core, ms", "µs/atom", "share", "of peak", "two cores, ms", "times", "atom·steps/s"]
    columns += ["OpenMM step, ms", "ns/day at 0.5 fs", "MB"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    results, memory = {}, {}
    for name in names:
        atoms = system(name)
        results[name], steps = measure(name, sizes, others, seconds)
        for size, one in sizes.items():
            n, t, two, step = len(atoms), results[name]["mfmd", size, 1], results[name]["mfmd", size, 2], steps[size]
            memory[name, size] = resident(one.path, name)
            share = needed(n, count_pairs(atoms), one.channels, one.layers) / t / 1e9 / sgemm
            rate = sum(flops for flops, _ in one.floors(atoms).values()) / t / 1e9 / peak
            cells = [
                name,
                n,
                size,
                f"{1e3 * t:.3g}",
                f"{1e6 * t / n:.1f}",
                f"{100 * share:.0f} %",
                f"{100 * rate:.0f} %",
                f"{1e3 * two:.3g}",
            ]
            cells += [
                f"{t / two:.2f}",
                f"{n / t:.3g}",
                f"{1e3 * step:.3g}",
                f"{0.5e-6 * 86400 / step:.3g}",
                f"{memory[name, size] / 1e6:.0f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print_peers(results, sizes)
    print()
    for size, one in sizes.items():
        least, most = ("water-5184", size), ("water-20736", size)
        if least in memory and most in memory:
            print(f"{size}: resident memory, 5184 to 20736 atoms: {(memory[most] - memory[least]) / (20736 - 5184) / 1e3:.0f} kB an atom")
        weights = 8e-6 * sum(p.numel() for k, p in one.model.backbone.named_parameters() if "mixing" in k or "gate" in k or "readout" in k)
        print(
            f"{size}: weights a step reads in both directions: {weights:.1f} MB, {weights / bandwidth():.3f} ms if they came from memory; "
            f"import, Calculator and first energy of ethanol in a fresh process: {first_energy(one.path):.2f} s"
        )
    if picture:
        plot(picture, results, "5 Å, single precision")


if __name__ == "__main__":
    main()
