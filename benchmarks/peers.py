"""Peers that live in an environment of their own (`make peers`): energies and forces timed on request.

Run by benchmarks/inference.py as `.venv-peers/bin/python benchmarks/peers.py cpu|cuda`: the first line on standard output names the models and a
folder; then each line on standard input is a request {"peer", "threads", "seconds", "numbers", "positions", "cell", "periodic"}, each line on standard
output the median time in seconds, or null where the device has not the memory; with seconds null, the forces in eV/Å. Weights are random. Those of
matgl's TensorNet lie in the folder `matgl` in the one named, as matgl writes them. The neighbour lists of MACE and matgl are made beforehand and not timed.
"""

import json
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter

warnings.filterwarnings("ignore")
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4 reads its own constants the old way
OUT = os.dup(1)
os.dup2(2, 1)  # what the packages print goes to standard error

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import data, modules  # noqa: E402
from mace.tools import torch_geometric, utils  # noqa: E402

ELEMENTS = {1: "H", 6: "C", 7: "N", 8: "O"}
torch.set_default_dtype(torch.float32)


def mace(irreps, cutoff, device):
    """A function of ase.Atoms that returns a function without arguments: one evaluation."""
    block = modules.interaction_classes
    model = modules.ScaleShiftMACE(
        r_max=cutoff, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, num_interactions=2, correlation=3,
        interaction_cls_first=block["RealAgnosticInteractionBlock"], interaction_cls=block["RealAgnosticResidualInteractionBlock"],
        hidden_irreps=o3.Irreps(irreps), MLP_irreps=o3.Irreps("16x0e"), radial_MLP=[64, 64, 64], radial_type="bessel",
        gate=torch.nn.functional.silu, num_elements=len(ELEMENTS), atomic_numbers=list(ELEMENTS), atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=40.0, atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip
    model, table = model.to(device), utils.AtomicNumberTable(list(ELEMENTS))

    def prepare(atoms):
        one = data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=cutoff)
        batch = next(iter(torch_geometric.dataloader.DataLoader([one], batch_size=1))).to(device).to_dict()

        def evaluate():
            forces = model(batch, compute_force=True)["forces"]
            if device == "cuda":
                torch.cuda.synchronize()
            return forces

        return evaluate

    return prepare


def tensornet(folder):
    """matgl's TensorNet in the size of its MatPES models, 89 elements, as it is fastest on a CPU: Warp kernels, no gradients of weights, no stress.

    One core, 648 atoms of water: 6.5 s in plain torch, 3.1 s compiled, 1.6 s by Warp, as well when that is compiled.
    """
    from matgl.apps.pes import Potential
    from matgl.ext.ase import Atoms2Graph
    from matgl.models import TensorNet

    torch.manual_seed(0)
    network = TensorNet(
        units=128, nblocks=2, rbf_type="SphericalBessel", use_smooth=True, max_n=3, cutoff=5.0, is_intensive=False, use_warp=True
    )
    potential = Potential(network, calc_stresses=False).requires_grad_(False).eval()
    potential.save(folder)
    converter = Atoms2Graph(network.element_types, network.cutoff)

    def prepare(atoms):
        graph, cell, _ = converter.get_graph(atoms)
        cell = torch.as_tensor(np.reshape(cell, (1, 3, 3)), dtype=torch.float32)
        return lambda: potential(graph, cell)[1]

    return prepare


def nep(folder, n=4, basis=8, l3=4, neurons=30):
    """NEP4 (Song et al. 2024) as calorine runs it, with a usual size."""
    from calorine.calculators import CPUNEP

    types = len(ELEMENTS)
    descriptors = (n + 1) + (n + 1) * (l3 + 1)
    parameters = types * (descriptors + 2) * neurons + 1 + types**2 * 2 * (n + 1) * (basis + 1)
    values = np.random.default_rng(0).uniform(-0.1, 0.1, parameters)
    lines = [
        f"nep4 {types} {' '.join(ELEMENTS.values())}",
        "cutoff 6 4.5 400 200",
        f"n_max {n} {n}",
        f"basis_size {basis} {basis}",
        f"l_max {l3} 2 0",
    ]
    path = Path(folder) / "nep.txt"
    path.write_text("\n".join([*lines, f"ANN {neurons} 0", *map(str, values), *["0.01"] * descriptors]) + "\n")

    def prepare(atoms):
        if not atoms.cell.any():
            atoms.set_cell([50.0] * 3)  # it asks for a cell
        atoms.calc = CPUNEP(str(path))

        def evaluate():
            atoms.rattle(1e-9)  # ASE would remember the last result
            return atoms.get_forces()

        return evaluate

    return prepare


def median_time(evaluate, seconds):
    evaluate()
    times = []
    while not times or sum(times) < seconds:
        start = perf_counter()
        evaluate()
        times.append(perf_counter() - start)
    return statistics.median(times)


def main():
    device = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        models = {
            f"MACE {irreps}, {cutoff:g} Å": mace(irreps, cutoff, device) for irreps, cutoff in (("96x0e", 4.5), ("128x0e+128x1o", 5.0))
        }
        if device == "cpu":
            models["matgl TensorNet"] = tensornet(Path(folder) / "matgl")
            models["NEP4, 6 Å"] = nep(folder)
        os.write(OUT, (json.dumps({"names": list(models), "folder": folder}) + "\n").encode())
        for line in sys.stdin:
            request = json.loads(line)
            torch.set_num_threads(request["threads"])
            atoms = Atoms(request["numbers"], request["positions"], cell=request["cell"], pbc=request["periodic"])
            try:
                evaluate = models[request["peer"]](atoms)
                answer = median_time(evaluate, request["seconds"]) if request["seconds"] else torch.as_tensor(evaluate()).tolist()
            except torch.cuda.OutOfMemoryError:
                answer = None
            if device == "cuda":
                torch.cuda.empty_cache()  # the card is others' too
            os.write(OUT, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
