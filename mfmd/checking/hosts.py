"""What programs get that have the model in them, held against the engine; each in a process of its own.

A host is a function of a model's path, ase.Atoms and a level. It returns energy (eV), forces (eV/Å), the virial (eV) where it has one, and the positions and cell
at which it has them, since some turn a structure.
"""

import os
import re
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from mfmd import progress, units
from mfmd.checking import cases
from mfmd.checking.numbers import DOUBLE, Check, evaluator, off, worst
from mfmd.engine import HostError
from mfmd.hosts import apart, lammps
from mfmd.structures.record import from_json, to_json

VACUUM = 8.0  # Å around a molecule, where a program has boxes alone
BAR = 1.6021765e6  # of an eV/Å³, as LAMMPS has it


def by_ase(path, atoms, level):
    from mfmd.hosts.ase import Calculator

    atoms.calc = Calculator(path, level, "double")
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        found["virial"] = -atoms.get_stress(voigt=False) * atoms.get_volume()
    return found, atoms.positions, atoms.cell.array


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
    return {"energy": energy / units.KJ_PER_MOL, "forces": forces / units.KJ_PER_MOL_NM}, start.positions, cell


def by_torchscript(path, atoms, level):
    """Written anew from the weights: of a file only its weights are read, never the code that is in it."""
    import torch

    from mfmd.engine import load_model
    from mfmd.training import export

    module = _scripted(lambda file: export.write_torchscript(file, load_model(path)))
    given = (torch.tensor(value) for value in (atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc))
    energy, forces, virial = module(*given, **atoms.info)
    return {"energy": float(energy), "forces": forces.numpy(), "virial": virial.numpy()}, atoms.positions, atoms.cell.array


def by_gromacs(path, atoms, level):
    """The archive, called as GROMACS does: nm in single precision, kJ/mol."""
    import torch

    from mfmd.hosts import gromacs

    module = _scripted(lambda file: gromacs.write_archive(file, path, level, "double", **atoms.info))
    rounded = [np.float32(x / units.ANGSTROM_PER_NM) for x in (atoms.positions, atoms.cell.array)]
    positions, cell = (torch.from_numpy(x) for x in rounded)
    energy, forces = module(positions, torch.tensor(atoms.numbers).int(), *([cell, torch.tensor(atoms.pbc)] if atoms.pbc.any() else []))
    found = {"energy": energy.item() / units.KJ_PER_MOL, "forces": forces.double().numpy() / units.KJ_PER_MOL_NM}
    return found, *(x.astype(float) * units.ANGSTROM_PER_NM for x in rounded)


def _scripted(write):
    """The TorchScript that is written to a file. ImportError : torch makes none"""
    import torch

    from mfmd.training import export

    with tempfile.TemporaryDirectory() as folder:
        try:
            write(f"{folder}/model.pt")
        except export.NO_TORCHSCRIPT as error:
            raise ImportError(f"torch {torch.__version__} makes no TorchScript here ({' '.join(str(error).split())[:200]})") from error
        return torch.jit.load(f"{folder}/model.pt")


def by_torchsim(path, atoms, level):
    import torch
    import torch_sim

    from mfmd.hosts.torchsim import MfmdModel

    cpu, periodic = torch.device("cpu"), bool(atoms.pbc.all())
    state = torch_sim.io.atoms_to_state([atoms], cpu, torch.float64)
    for key, value in atoms.info.items():
        if hasattr(state, "system_extras"):
            state.system_extras[key] = torch.tensor([value])
        else:
            setattr(state, key, torch.tensor([value]))
    out = MfmdModel(path, level, device=cpu, precision="double", compute_stress=periodic)(state)
    found = {"energy": float(out["energy"][0]), "forces": out["forces"].numpy()}
    if periodic:
        found["virial"] = -out["stress"][0].numpy() * atoms.get_volume()
    return found, atoms.positions, atoms.cell.array


def by_lammps(path, atoms, level):
    import ase.io

    if not re.fullmatch(r"[^\s$&#\"']+", level):  # a script may hold anything, and the name comes from a file
        raise ImportError(f"the level {level!r} is not one word that an input of LAMMPS could have")
    if not atoms.pbc.any():
        atoms.center(VACUUM)
    right_handed = atoms.cell * np.sign(np.linalg.det(atoms.cell.array))
    atoms.set_cell(right_handed)
    cell, rotation = atoms.cell.standard_form()
    atoms.positions, atoms.cell = atoms.positions @ rotation.T, cell
    atoms.wrap()
    elements = sorted(set(atoms.symbols))
    script = [
        "units metal", "atom_style atomic", "atom_modify map yes", f"boundary {'p p p' if atoms.pbc.any() else 'f f f'}", "read_data data",
        f"pair_style mfmd head {level} precision double {' '.join(f'{key} {value}' for key, value in atoms.info.items())}",
        f"pair_coeff * * model.pt {' '.join(elements)}", "compute p all pressure NULL virial",
        f"thermo_style custom step pe {' '.join(f'c_p[{k}]' for k in range(1, 7))}", "run 0",
        f'print "found $(pe:%.17g) {" ".join(f"$(c_p[{k}]:%.17g)" for k in range(1, 7))}"',
        "write_dump all custom forces id fx fy fz modify sort id format float %.17g",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(os.path.abspath(path), f"{folder}/model.pt")  # whose path may have blanks in it
        ase.io.write(f"{folder}/data", atoms, format="lammps-data", specorder=elements, masses=True)
        try:
            said = lammps.run("\n".join(script) + "\n", folder)
        except lammps.LammpsError as error:
            if "pair style" in str(error):
                raise ImportError(f"{error}; `mfmd build-host lammps` compiles it") from None
            raise
        forces = np.array([line.split()[1:] for line in Path(folder, "forces").read_text().splitlines()[9:]], float)
    energy, *pressure = map(float, re.search(r"^found (.+)$", said, re.MULTILINE)[1].split())
    xx, yy, zz, xy, xz, yz = np.array(pressure) * atoms.get_volume() / BAR
    virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return {"energy": energy, "forces": forces, "virial": virial if atoms.pbc.all() else None}, atoms.positions, atoms.cell.array


HOSTS = {
    "ASE": by_ase, "OpenMM, native force": partial(by_openmm, "native"), "OpenMM, PythonForce": partial(by_openmm, "python"),
    "OpenMM, TorchForce": partial(by_openmm, "torch"), "TorchScript": by_torchscript, "archives for GROMACS": by_gromacs, "TorchSim": by_torchsim,
    "LAMMPS": by_lammps,
}  # fmt: skip
ANY_BOUNDARY = {"ASE", "TorchScript", "archives for GROMACS"}  # the others are periodic in all directions here, or in none
FRAGMENTS = {"ASE", "OpenMM, native force", "OpenMM, PythonForce", "OpenMM, TorchForce"}  # the others say the state of a whole structure
LAST_LEVEL = {"TorchScript"}
NONE = "it can have none of the structures"
ALLOWED = {
    "archives for GROMACS": {"energy": 1e-7, "forces": 1e-6},
    "LAMMPS": DOUBLE | {"virial": 1e-7},
}  # single comes back; bar has other digits


def fits(name, model, s, level):
    """Whether a host can have a structure."""
    return bool(
        (s.pbc.all() or not s.pbc.any() or name in ANY_BOUNDARY)
        and (len(s.states) == 1 or name in FRAGMENTS)
        and (level == model.levels[-1] or name not in LAST_LEVEL)
    )


def differences(name, path, given):
    """`off` of each structure that is given as JSON, with its level; of a process of its own."""
    evaluate, out = evaluator(path, precision="double"), []
    for one in given:
        s, level = from_json(one, {}, name), one["level"]
        try:
            found, positions, cell = HOSTS[name](path, cases.atoms_of(s), level)
        except HostError as error:
            raise ImportError(str(error)) from error
        out.append(off(found, evaluate(s, level, positions, cell)))
    return out


def checks(numbers):
    """Of the structures of a Numbers, host by host."""
    for name in progress.over(list(HOSTS), "asking the hosts", "hosts"):
        given = [to_json(s) | {"level": level} for s, level in numbers.structures if fits(name, numbers.model, s, level)]
        if not given:
            yield Check(name, left_out=NONE)
            continue
        answer = apart.asked(differences, name, str(numbers.path), given)
        if "found" in answer:
            yield Check(name, worst(answer["found"]), ALLOWED.get(name, DOUBLE), len(given))
        elif "lacks" in answer:
            yield Check(name, left_out=answer["fails"], lacks=answer["lacks"])
        else:
            yield Check(name, fails=answer["fails"])
