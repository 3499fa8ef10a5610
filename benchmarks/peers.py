"""Peers that live in an environment of their own (`make peers`): energies and forces timed on request, as serving.py says.

Run by benchmarks/inference.py as `.venv-peers/bin/python benchmarks/peers.py cpu|cuda`. Weights are random. The folder it names has, on the CPU, those of
matgl's TensorNet in `matgl`, as matgl writes them, and the MACEs, as Symmetrix-XL's extractor does, in files `symmetrix-xl <name>.json`. The neighbour lists of MACE and
matgl are made beforehand and not timed.

`peers.py symmetrix-xl FILE` writes a MACE for benchmarks/symmetrix_xl.py instead.
"""

import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4 reads its own constants the old way

from serving import answer, requests, result, through_ase  # noqa: I001 (first: from here on what is printed goes to standard error)

import numpy as np
import torch
from e3nn import o3
from mace import data, modules
from mace.tools import torch_geometric, utils

ELEMENTS = {1: "H", 6: "C", 7: "N", 8: "O"}
torch.set_default_dtype(torch.float32)


def mace_network(irreps, cutoff):
    torch.manual_seed(0)
    block = modules.interaction_classes
    return modules.ScaleShiftMACE(
        r_max=cutoff, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, num_interactions=2, correlation=3,
        interaction_cls_first=block["RealAgnosticInteractionBlock"], interaction_cls=block["RealAgnosticResidualInteractionBlock"],
        hidden_irreps=o3.Irreps(irreps), MLP_irreps=o3.Irreps("16x0e"), radial_MLP=[64, 64, 64], radial_type="bessel",
        gate=torch.nn.functional.silu, num_elements=len(ELEMENTS), atomic_numbers=list(ELEMENTS), atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=40.0, atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip


def mace(model, device):
    """A function of ase.Atoms that returns a function without arguments: one evaluation."""
    model, table, cutoff = model.to(device), utils.AtomicNumberTable(list(ELEMENTS)), float(model.r_max)

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

    return through_ase(CPUNEP(str(path)))


def write_symmetrix_xl(model, path):
    """A MACE as Symmetrix-XL reads it."""
    from symmetrix.extract_mace_data import extract_mace_data

    with tempfile.TemporaryDirectory() as folder:
        torch.save(model, f"{folder}/mace.model")
        Path(path).write_text(json.dumps(extract_mace_data(f"{folder}/mace.model"), separators=(",", ":")))


def main():
    device = sys.argv[1]
    networks = {f"MACE {irreps}, {cutoff:g} Å": mace_network(irreps, cutoff) for irreps, cutoff in (("96x0e", 4.5), ("128x0e+128x1o", 5.0))}
    if device == "symmetrix-xl":
        return write_symmetrix_xl(networks["MACE 96x0e, 4.5 Å"], sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        if device == "cpu" and find_spec("symmetrix"):
            for name, network in networks.items():
                write_symmetrix_xl(network, f"{folder}/symmetrix-xl {name}.json")
        models = {name: mace(network, device) for name, network in networks.items()}
        if device == "cpu":
            models["matgl TensorNet"] = tensornet(Path(folder) / "matgl")
            models["NEP4, 6 Å"] = nep(folder)
        for request in requests(models, folder):
            torch.set_num_threads(request["threads"])
            try:
                found = result(models, request)
            except torch.cuda.OutOfMemoryError:
                found = None
            if device == "cuda":
                torch.cuda.empty_cache()  # the card is others' too
            answer(found)


if __name__ == "__main__":
    main()
