"""How exactly everything agrees: prints the figures of docs/accuracy.md.

    python benchmarks/accuracy.py runs/demo/model.pt

The first rows use random weights in double (the tests' own model and oracles), the last ones the model file named.
"""

import platform
import sys
import tempfile
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import ase.io
import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import backends  # noqa: E402
import conftest  # noqa: E402
from test_engine import supercell_of  # noqa: E402
from test_hosts import HOSTS  # noqa: E402
from test_model import features  # noqa: E402
from torchmdnet_oracle import peer_of  # noqa: E402

from mfmd import units  # noqa: E402


def row(what, *figures):
    print(f"| {what} | {' | '.join(figures)} |", flush=True)


def against_torchmdnet():
    energy = force = 0.0
    for layers in (0, 1, 2):
        backbone = conftest.random_model(layers, layers=layers).backbone
        peer = peer_of(backbone)
        for box in (None, np.diag([9.0, 10, 11]) + [[0, 0, 0], [0.8, 0, 0], [-0.5, 0.6, 0]]):
            atoms = conftest.ethanol() if box is None else conftest.random_cell(layers, atoms=20)
            if box is not None:
                atoms.set_cell(box, scale_atoms=True)
            weights = torch.rand(len(atoms), 32)
            x, gradient, _ = features(backbone, atoms, weights)
            positions = torch.tensor(atoms.positions, requires_grad=True)
            zeros = torch.zeros(len(atoms), dtype=torch.long)
            y = peer(torch.tensor(atoms.numbers), positions, zeros, box=None if box is None else torch.tensor(box))[0]
            other = torch.autograd.grad((y * weights).sum(), positions)[0]
            a, b = (x * weights).sum(), (y * weights).sum()
            energy = max(energy, abs((a - b) / b).item())
            force = max(force, (gradient - other).abs().max().item())
    row("torch model / torchmd-net 3.1.0, molecule and triclinic box, 0-2 layers", f"{energy:.1e} relative", f"{force:.1e}", "")


def engine_against_torch(model, path):
    energy = force = virial = 0.0
    got, wanted = backends.engine(path, "high"), backends.reference(model, "high")
    e0 = {z: sum(float(model.heads[h].e0[z]) for h in model.chain("high")) for z in conftest.ELEMENTS}
    for atoms in ase.io.read(conftest.DATA / "test.xyz", ":"):
        (e, f, v), (e2, f2, v2) = got(atoms), wanted(atoms)
        energy = max(energy, abs(e - e2) / abs(e2 - sum(e0[z] for z in atoms.numbers)))
        force = max(force, np.abs(f - f2).max())
        virial = max(virial, np.abs(v - v2).max()) if atoms.pbc.all() else virial
    row("engine / torch model, 370 test frames, double", f"{energy:.1e} relative (after E0)", f"{force:.1e}", f"{virial:.1e}")
    energy = force = virial = 0.0
    for seed in range(20):
        atoms = conftest.random_cell(seed, small=seed % 2 == 0, atoms=4 + seed % 5)
        big, copies = supercell_of(atoms, model.backbone.radial.cutoff)
        (e, f, v), (e2, f2, v2) = got(atoms), wanted(big)
        energy = max(energy, abs(e - e2 / copies) / abs(e2 / copies - sum(e0[z] for z in atoms.numbers)))
        force = max(force, np.abs(f - f2[: len(atoms)]).max())
        virial = max(virial, np.abs(v - v2 / copies).max())
    row(
        "engine / torch model on a supercell, 20 random triclinic cells, double",
        f"{energy:.1e} relative (after E0)",
        f"{force:.1e}",
        f"{virial:.1e}",
    )
    rc = model.backbone.radial.cutoff
    (e1, f1, _), (e2, f2, _) = got(conftest.dimer(rc - 1e-6)), got(conftest.dimer(rc + 1e-6))
    row("crossing the cutoff, rc ± 1e-6 Å, double", f"{abs(e1 - e2):.1e} eV", f"{np.abs(f1 - f2).max():.1e}", "")


def finite_differences(path):
    import mfmd

    atoms = conftest.random_cell(23, small=True, atoms=5)
    atoms.calc = mfmd.Calculator(path, "high", "double")
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    f, s = atoms.get_forces(), atoms.get_stress(voigt=False)
    force = np.abs(f - calculate_numerical_forces(atoms, eps=1e-4)).max() / np.abs(f).max()
    stress = np.abs(s - calculate_numerical_stress(atoms, eps=1e-5, voigt=False)).max() / np.abs(s).max()
    row("ASE, finite differences (1e-4 Å; strain 1e-5)", "", f"{force:.1e} relative", f"{stress:.1e} relative")
    from openmm import unit

    molecule = conftest.ethanol()
    for name, host in (("native force", "native"), ("TorchForce", "torch"), ("PythonForce", "python")):
        if not find_spec(backends.OPENMM[host]):
            continue
        context = backends.context(path, "high", molecule, host)
        f = context.getState(forces=True).getForces(asNumpy=True)._value
        worst, h = 0.0, 1e-5
        for k in range(27):
            ends = []
            for sign in (1, -1):
                moved = molecule.positions / units.ANGSTROM_PER_NM
                moved.flat[k] += sign * h
                context.setPositions(moved * unit.nanometer)
                ends.append(context.getState(energy=True).getPotentialEnergy()._value)
            worst = max(worst, abs(f.flat[k] + (ends[0] - ends[1]) / (2 * h)))
        row(f"OpenMM {name}, finite differences (1e-5 nm), kJ/mol/nm", "", f"{worst / np.abs(f).max():.1e} relative", "")


def single_and_hosts(path):
    from mfmd.engine import load_model

    head = load_model(path).levels[-1]
    single, double = backends.engine(path, head, "single"), backends.engine(path, head, "double")
    energy = force = 0.0
    for atoms in ase.io.read(conftest.DATA / "test.xyz", ":"):
        (e, f, _), (e2, f2, _) = single(atoms), double(atoms)
        energy, force = max(energy, abs(e - e2) / len(atoms)), max(force, np.abs(f - f2).max())
    row(f"single / double, head {head} of the model file, 370 test frames", f"{energy:.1e} eV/atom", f"{force:.1e}", "")
    atoms = conftest.ethanol()
    e, f, _ = single(atoms)
    with tempfile.TemporaryDirectory() as folder:
        for name, host in HOSTS.items():
            if all(map(find_spec, host.needs)):
                e2, f2, *_ = host().evaluator(path, head, "single", Path(folder))(atoms)
                row(f"{name} / engine, ethanol, single", f"{abs(e2 - e) / len(atoms):.1e} eV/atom", f"{np.abs(f2 - f).max():.1e}", "")
    from openmm import unit

    context = backends.context(path, head, atoms, "native", "double", threads=1)
    context.setVelocitiesToTemperature(300 * unit.kelvin, 7)
    energies = []
    for _ in range(200):
        context.getIntegrator().step(200)
        state = context.getState(energy=True)
        energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / units.KJ_PER_MOL * 1e3 / len(atoms))
    drift = np.polyfit(0.1 * np.arange(200), energies, 1)[0]
    row("20 ps NVE of ethanol through the native force, 0.5 fs, double", f"drift {drift:+.5f} meV/atom/ps", "", "")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/accuracy.py runs/demo/model.pt")
    print(f"{date.today()}, {platform.system()} {platform.machine()}\n")
    print("| comparison | energy | forces, eV/Å | virial, eV (or stress) |\n|---|---|---|---|")
    against_torchmdnet()
    model = conftest.random_model()
    with tempfile.TemporaryDirectory() as folder:
        path = conftest.write(model, Path(folder) / "model.pt")
        engine_against_torch(model, path)
        finite_differences(path)
    single_and_hosts(sys.argv[1])


if __name__ == "__main__":
    main()
