"""Energies and forces beside torchmd-net's TensorNet with the same weights, in one run, answers compared first.

    python benchmarks/inference.py [--channels 128] [--layers 2] [--systems ethanol water-192 water-648 …] [--no-peer]

One core and two: medians of interleaved runs, single precision. "share" is the arithmetic the work needs (226 F² FLOP
an atom for two layers, 240 F a pair) over the run's own sgemm peak on one core.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
warnings.filterwarnings("ignore")
import conftest  # noqa: E402
from torchmdnet_oracle import state_for_peer  # noqa: E402

from mfmd.engine import Engine  # noqa: E402


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


def system(name):
    return molecule("CH3CH2OH") if name == "ethanol" else water(int(name.split("-")[1]))


def median(function, seconds, least=5):
    """Median time of a call over about `seconds`."""
    times = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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
        energy = (head(x) * scale).sum()
        return energy.item(), -torch.autograd.grad(energy, positions)[0].numpy()

    return evaluate


def openmm_step(path, atoms, seconds):
    """Time of an OpenMM step on Reference through TorchForce, one engine thread."""
    import backends

    context = backends.context(path, "low", atoms, "torch", "single", threads=1)
    integrator = context.getIntegrator()
    integrator.setStepSize(1e-9)  # ps; the atoms stay: random weights are no force field
    integrator.step(3)
    return median(lambda: integrator.step(1), seconds)


def memory_slope(path, small, large):
    """Resident memory an atom, from two fresh processes (bytes)."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import inference; from mfmd.engine import Engine\n"
        "a = inference.system(sys.argv[4]); e = Engine(sys.argv[3], threads=1)\n"
        "e.compute(a.positions, a.numbers, a.cell.array, a.pbc, terms=[('low', 1.0)])\n"
        "print([1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')][0])"
    )
    resident = {}
    for name in (small, large):
        command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(ROOT / "tests"), str(path), name]
        resident[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    atoms = {name: len(system(name)) for name in resident}
    return (resident[large] - resident[small]) / (atoms[large] - atoms[small])


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=["ethanol", "water-192", "water-648", "water-5184", "water-20736"])
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each figure")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    model = conftest.random_model(0, args.channels, args.layers, 5.0, 2, 32)
    torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = conftest.write(model, Path(folder) / "model.pt")
        peer = None if args.no_peer else peer_model(model)
        head = model.heads["low"].float()
        peak = sgemm_peak()
        print(
            f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {args.channels} channels, {args.layers} layers, 5 Å, single; sgemm {peak:.0f} GFLOP/s on a core\n"
        )
        print(
            "| system | atoms | one core, ms | µs/atom | share of sgemm | two cores, ms | TorchForce step, ms | torchmd-net one core, ms | times |"
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for name in args.systems:
            atoms = system(name)
            data = (atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
            one, two = (Engine(path, threads=n) for n in (1, 2))
            out = one.compute(*data, terms=[("low", 1.0)])
            pairs = len(conftest.neighbor_list("i", atoms, 5.0))
            theirs = None
            if peer is not None and len(atoms) <= 1000:
                evaluate = peer_evaluation(peer, head, atoms)
                _, forces = evaluate()
                if np.abs(forces - out["forces"]).max() > 2e-3 * np.abs(out["forces"]).max():
                    sys.exit(f"error: {name}: the two do not give the same forces ({np.abs(forces - out['forces']).max():.1e} eV/Å)")
            ours, rounds = [], 3
            theirs = []
            for _ in range(rounds):  # interleaved
                ours.append(median(lambda e=one, d=data: e.compute(*d, terms=[("low", 1.0)]), args.seconds / rounds, 3))
                if peer is not None and len(atoms) <= 1000:
                    torch.set_num_threads(1)
                    theirs.append(median(evaluate, args.seconds / rounds, 3))
            t = statistics.median(ours)
            t2 = median(lambda e=two, d=data: e.compute(*d, terms=[("low", 1.0)]), args.seconds)
            step = openmm_step(path, atoms, args.seconds) if len(atoms) <= 1000 else None
            flop = len(atoms) * 113 * args.layers * args.channels**2 + pairs * 120 * args.layers * args.channels
            cells = [
                name,
                len(atoms),
                f"{1e3 * t:.3g}",
                f"{1e6 * t / len(atoms):.1f}",
                f"{100 * flop / t / 1e9 / peak:.0f} %",
                f"{1e3 * t2:.3g}",
            ]
            cells += [f"{1e3 * step:.3g}" if step else "", f"{1e3 * statistics.median(theirs):.4g}" if theirs else ""]
            cells += [f"{statistics.median(theirs) / t:.1f}" if theirs else ""]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        if {"water-5184", "water-20736"} <= set(args.systems):
            print(f"\nresident memory, 5184 to 20736 atoms: {memory_slope(path, 'water-5184', 'water-20736') / 1e3:.0f} kB an atom")
        print(f"import, Calculator and first energy of ethanol in a fresh process: {first_energy(path):.2f} s")
        print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
