"""Energies and forces beside other models, in one run; the TensorNets of torchmd-net and matgl have our weights and are compared before they are timed.

    python benchmarks/inference.py [--channels 128] [--layers 2] [--systems ethanol peptide water-192 …] [--no-peers]
    python benchmarks/inference.py --stages [--systems water-648]
    python benchmarks/inference.py --device cuda [--systems ethanol … water-1000000] [--stages]

One core and two: medians of interleaved runs, single precision. "share" is the arithmetic the work needs (FLOP below)
over the run's own sgemm peak on one core. matgl, MACE and NEP live in an environment of their own, `make peers`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule
from yardsticks import ROOT, Peers, check, count_pairs, evaluation, floors, median, system

sys.path.insert(0, str(ROOT / "tests"))
warnings.filterwarnings("ignore")
import conftest  # noqa: E402
from torchmdnet_oracle import state_for_peer  # noqa: E402

from mfmd import foreign  # noqa: E402
from mfmd.engine import Engine  # noqa: E402
from mfmd.training import export  # noqa: E402


def sgemm_peak():
    """GFLOP/s of one core, the best of many products of 1024 x 1024 matrices."""
    torch.set_num_threads(1)
    a, best = torch.randn(1024, 1024), np.inf
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 1e9


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
    """Resident memory of a fresh process after one evaluation (bytes), and the number of atoms."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import inference; from mfmd.engine import Engine\n"
        "a = inference.system(sys.argv[4]); e = Engine(sys.argv[3], threads=1)\n"
        "e.compute(a.positions, a.numbers, a.cell.array, a.pbc, terms=[('low', 1.0)])\n"
        "print([1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')][0])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(ROOT / "tests"), str(path), name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]), len(system(name))


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
    """FLOP that energies and forces need once the pair weights are tables: 113 F² an atom and 120 F a pair, for each layer."""
    return atoms * 113 * layers * channels**2 + pairs * 120 * layers * channels


def print_stages(path, model, names, peak, seconds):
    """Time, GFLOP/s and GB/s of every stage, beside the ceilings of the machine."""
    F, L = model.backbone.embedding.pair.out_features, len(model.backbone.layers)
    print(f"ceilings of one core: {peak:.0f} GFLOP/s (sgemm), {bandwidth():.1f} GB/s (copy beyond the caches)")
    for name in names:
        atoms, engine = system(name), Engine(path, threads=1)
        evaluate = evaluation(engine, atoms)
        evaluate()
        before, runs = engine.stage_times(), []
        median(lambda e=evaluate, r=runs: r.append(e()), seconds)
        after = engine.stage_times()
        work = floors(len(atoms), count_pairs(atoms), F, L, model.heads["low"].hidden.out_features)
        total = sum(after[k] - before[k] for k in after) / len(runs)
        print(f"\n{name}\n\n| stage | ms | share | GFLOP/s | GB/s |\n|---|---|---|---|---|")
        for stage in ("neighbors", *work, "collect"):
            t = (after[stage] - before[stage]) / len(runs)
            rates = [f"{x / t / 1e9:.1f}" for x in work[stage]] if stage in work else ["", ""]
            print(f"| {stage} | {1e3 * t:.3g} | {100 * t / total:.0f} % | {' | '.join(rates)} |")


def on_threads(threads, evaluate):
    def run():
        torch.set_num_threads(threads)
        evaluate()

    return run


TENSORNET, MATGL = "torchmd-net TensorNet", "matgl TensorNet"
BESIDE = {MATGL: "mfmd, weights of matgl"}  # what a peer's times are divided by, where it is not "mfmd"


def import_matgl(folder, path):
    """A model file of the weights that matgl's peer has."""
    export.write_model(path, *foreign.read(folder, level="low"))
    return path


def measure(name, path, imported, peer, head, peers, seconds, rounds=3):
    """{(model, threads): seconds} of a system, interleaved, and an OpenMM step. imported : model file of matgl's weights, where it is a peer."""
    atoms = system(name)
    timed = {}
    for threads in (1, 2):
        timed["mfmd", threads] = partial(median, evaluation(Engine(path, threads=threads), atoms), least=3)
    small = len(atoms) <= 1000
    if peer is not None and small:
        evaluate = peer_evaluation(peer, head, atoms)
        check(name, evaluation(Engine(path, threads=1), atoms)()["forces"], evaluate()[1])
        for threads in (1, 2):
            timed[TENSORNET, threads] = partial(median, on_threads(threads, evaluate), least=2)
    if peers and small:
        check(name, evaluation(Engine(imported, threads=1), atoms)()["forces"], peers.forces(MATGL, atoms))
        for threads in (1, 2):
            timed[BESIDE[MATGL], threads] = partial(median, evaluation(Engine(imported, threads=threads), atoms), least=3)
    for other in peers.names if peers else []:
        for threads in (1, 2) if "NEP" not in other else (1,):  # NEP on the CPU knows one thread
            if small or "NEP" in other:
                timed[other, threads] = partial(peers.time, other, atoms, threads)
    times = {key: [] for key in timed}
    for _ in range(rounds):
        for key, run in timed.items():
            times[key].append(run(seconds=seconds / rounds))
    step = openmm_step(path, atoms, seconds)
    return {key: statistics.median(values) for key, values in times.items()}, step


def plot(path, results, caption):
    """Time against atoms, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for model in dict.fromkeys(key[0] for times, _, _ in results.values() for key in times if key[0] not in BESIDE.values()):
        points = [(n, 1e3 * times[model, 1]) for times, _, n in results.values() if (model, 1) in times]
        axes.loglog(*zip(*points, strict=True), "o-", label=model, lw=2.5 if model == "mfmd" else 1.2)
    axes.set(xlabel="atoms", ylabel="energy and forces, ms (one core)", title=caption)
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    every = ["ethanol", "peptide", "water-192", "water-648", "water-5184", "water-20736"]
    parser.add_argument("--systems", nargs="+", default=every)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each figure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--stages", action="store_true", help="where the time goes, instead of the comparison")
    parser.add_argument("--plot", help="PNG file")
    args = parser.parse_args()
    model = conftest.random_model(0, args.channels, args.layers, 5.0, 2, 32)
    torch.set_default_dtype(torch.float32)
    peak = sgemm_peak()
    title = f"{args.channels} channels, {args.layers} layers, 5 Å, single precision"
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {title}; sgemm {peak:.0f} GFLOP/s on a core\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = conftest.write(model, Path(folder) / "model.pt")
        if args.device == "cuda":
            import cuda

            names = args.systems if args.systems != every else [*every, "water-99999", "water-999999"]
            return cuda.main(model, path, names, args.seconds, not args.no_peers, args.stages)
        if args.stages:
            return print_stages(path, model, args.systems if args.systems != every else ["ethanol", "water-648"], peak, args.seconds)
        peers = imported = None
        if not args.no_peers:
            python = ROOT / ".venv-peers" / "bin" / "python"
            if not python.exists():
                sys.exit("error: the peers are not installed; run `make peers` first, or give --no-peers")
            peers = Peers(str(python))
            imported = import_matgl(peers.folder / "matgl", Path(folder) / "matgl.pt")
        peer, head = (None if args.no_peers else peer_model(model)), model.heads["low"].float()
        print(
            "| system | atoms | one core, ms | µs/atom | share | two cores, ms | times | atom·steps/s | OpenMM step, ms | ns/day at 0.5 fs | MB |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        results, memory = {}, {}
        for name in args.systems:
            times, step = measure(name, path, imported, peer, head, peers, args.seconds)
            bytes_, n = memory[name] = resident(path, name)
            one, two = times["mfmd", 1], times["mfmd", 2]
            share = needed(n, count_pairs(system(name)), args.channels, args.layers) / one / 1e9 / peak
            cells = [name, n, f"{1e3 * one:.3g}", f"{1e6 * one / n:.1f}", f"{100 * share:.0f} %", f"{1e3 * two:.3g}", f"{one / two:.2f}"]
            cells += [f"{n / one:.3g}", f"{1e3 * step:.3g}", f"{0.5e-6 * 86400 / step:.3g}", f"{bytes_ / 1e6:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            results[name] = times, step, n
        ours = {"mfmd", *BESIDE.values()}
        others = list(dict.fromkeys(key[0] for times, _, _ in results.values() for key in times if key[0] not in ours))
        if others:
            print("\nMilliseconds on one core / two, and how many times mfmd's:\n")
            print("| system | " + " | ".join(others) + " |\n" + "|---" * (len(others) + 1) + "|")
            for name, (times, _, _) in results.items():
                cells = []
                for other in others:
                    both = [(times[other, t], times[BESIDE.get(other, "mfmd"), t]) for t in (1, 2) if (other, t) in times]
                    cells.append(
                        " / ".join(f"{1e3 * t:.4g}" for t, _ in both)
                        + (f" ({' / '.join(f'{t / m:.1f}' for t, m in both)} ×)" if both else "")
                    )
                print(f"| {name} | " + " | ".join(cells) + " |")
        if {"water-5184", "water-20736"} <= set(memory):
            slope = (memory["water-20736"][0] - memory["water-5184"][0]) / (memory["water-20736"][1] - memory["water-5184"][1])
            print(f"\nresident memory, 5184 to 20736 atoms: {slope / 1e3:.0f} kB an atom")
        print(f"import, Calculator and first energy of ethanol in a fresh process: {first_energy(path):.2f} s")
        weights = 4 * sum(p.numel() for k, p in model.backbone.named_parameters() if "mixing" in k or "gate" in k or "readout" in k)
        print(
            f"weights a step reads in both directions: {2 * weights / 1e6:.1f} MB, {2 * weights / bandwidth() / 1e6:.3f} ms if they came from memory"
        )
        if args.plot:
            plot(args.plot, results, title)


if __name__ == "__main__":
    main()
