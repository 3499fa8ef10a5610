"""OpenMM: `mfmd.openmm.create_force` and `create_system`, through TorchForce or PythonForce.

Positions come in nm and leave as kJ/mol; the conversion stands here and in the archive that TorchForce runs.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import openmm
import openmm.app
import openmm.unit as unit
import openmm.version

from mfmd import units
from mfmd.engine import Engine, HostError, InputError, load_model, load_torch_host

FORCE_UNIT = units.KJ_PER_MOL * units.ANGSTROM_PER_NM  # kJ/mol/nm in one eV/Å


def create_force(model, topology, atoms=None, head=None, host="torch", precision="single", threads=None):
    """An OpenMM Force that evaluates one head of a model.

    Parameters
    ----------
    model : path of a `model.pt`
    topology : openmm.app.Topology; its elements are read, and it is periodic where it has box vectors
    atoms : indices of the atoms the model acts on (it sees no others); None for all
    head : level of theory; None for the highest the model has
    host : "torch" (TorchForce, needs openmmtorch) or "python" (PythonForce, needs openmm 8.5 or newer)
    precision : "single" or "double", of the engine
    threads : at most this many; None for every core of the process

    Raises
    ------
    ModelFileError : the model cannot be read
    InputError : unknown head or host, atoms that do not exist, an atom without element, a charged atom
    HostError : the host is not installed, or in a version that does not work
    """
    model = load_model(model)
    head = model.levels[-1] if head is None else head
    index = model.level(head)
    numbers, chosen = _atoms(topology, atoms)
    periodic = topology.getPeriodicBoxVectors() is not None
    if host == "torch":
        load_torchforce()
        import openmmtorch

        force = openmmtorch.TorchForce(_script(model, numbers, chosen, index, precision, threads, periodic))
        force.setOutputsForces(True)
    elif host == "python":
        if not hasattr(openmm, "PythonForce"):
            raise HostError(f"host='python' needs openmm 8.5 or newer, and {openmm.__version__} is installed")
        force = openmm.PythonForce(PythonEvaluation(model.bytes, numbers, chosen, head, precision, threads, periodic))
    else:
        raise InputError(f"host is {host!r}; it must be 'torch' or 'python'")
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName("mfmd")
    return force


def create_system(model, topology, head=None, host="torch", precision="single", threads=None, remove_cm_motion=True):
    """An OpenMM System of a whole topology: masses, box, the model's force, and no constraints.

    Parameters as for `create_force`; `remove_cm_motion` adds a CMMotionRemover, as OpenMM's ForceField does.
    """
    force = create_force(model, topology, None, head, host, precision, threads)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    system.addForce(force)
    if remove_cm_motion:
        system.addForce(openmm.CMMotionRemover())
    return system


def write_archive(path, model, topology, head=None, precision="single", threads=None):
    """Write what TorchForce runs (nm and kJ/mol, atomic numbers baked in) to a file, for programs that load it themselves.

    topology : openmm.app.Topology, or the path of a PDB file

    Returns
    -------
    whether the topology is periodic; TorchForce.setUsesPeriodicBoundaryConditions must be told the same
    """
    from mfmd import export

    if not isinstance(topology, openmm.app.Topology):
        try:
            topology = openmm.app.PDBFile(str(topology)).topology
        except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise InputError(f"{topology}: not a readable PDB file ({error})") from None
    model = load_model(model)
    numbers, chosen = _atoms(topology, None)
    index = model.level(model.levels[-1] if head is None else head)
    periodic = topology.getPeriodicBoxVectors() is not None
    export.write_archive(path, _script(model, numbers, chosen, index, precision, threads, periodic), model.bytes)
    return periodic


def load_torchforce():
    """Make TorchForce usable in this process; needed before a System that holds one is deserialised.

    Loads torch and the engine's TorchScript library, and, where OpenMM was imported before torch and could not load
    its torch plugins then, these.

    Raises
    ------
    HostError : openmmtorch is missing, or does not work with this version of OpenMM
    """
    try:
        have = importlib.metadata.version("openmmtorch")
    except importlib.metadata.PackageNotFoundError:
        raise HostError("TorchForce needs the package openmmtorch (1.5, with openmm 8.5.2 and torch 2.9.1); or use host='python'") from None
    version = tuple(int(part) for part in openmm.__version__.split(".")[:2])
    if have == "1.5" and version >= (8, 6):
        raise HostError(
            f"openmmtorch {have} crashes with openmm {openmm.__version__} when a System is deserialised; install openmm 8.5.2, or use host='python'"
        )
    load_torch_host()
    plugins = Path(openmm.version.openmm_library_path) / "plugins"
    failed = [p for p in plugins.glob("libOpenMMTorch*.so") if any(str(p) in line for line in openmm.Platform.getPluginLoadFailures())]
    try:
        import openmmtorch  # noqa: F401  loads libOpenMMTorch, which the plugins link

        for plugin in failed:
            if "OpenCL" not in plugin.name or not _opencl_missing():
                openmm.Platform.loadPluginLibrary(str(plugin))
    except (ImportError, openmm.OpenMMException) as error:
        raise HostError(f"openmmtorch {have} does not load with this torch ({error}); it was built for torch 2.9.1") from None


def _opencl_missing():
    """OpenMM's OpenCL platform itself did not load: no driver here."""
    return any("libOpenMMOpenCL.so" in line for line in openmm.Platform.getPluginLoadFailures())


def _atoms(topology, atoms):
    """Atomic numbers of the atoms the model acts on, and their indices (None for all)."""
    everything = list(topology.atoms())
    chosen = None if atoms is None else [int(a) for a in atoms]
    if chosen is not None:
        wrong = [a for a in chosen if not 0 <= a < len(everything)]
        if wrong or len(set(chosen)) != len(chosen) or not chosen:
            raise InputError(f"atoms must be different indices from 0 to {len(everything) - 1}; found {wrong or atoms}")
    picked = everything if chosen is None else [everything[a] for a in chosen]
    for atom in picked:
        if atom.element is None:
            raise InputError(f"atom {atom.index} ({atom.name}) has no element; a model needs one for every atom")
        if getattr(atom, "formalCharge", None):
            raise InputError(f"atom {atom.index} ({atom.name}) has the formal charge {atom.formalCharge:+d}; charges are not modelled yet")
    return np.array([atom.element.atomic_number for atom in picked], np.int32), chosen


class PythonEvaluation:
    """What PythonForce calls; pickled with the System, model included."""

    def __init__(self, content, numbers, chosen, head, precision, threads, periodic):
        self.arguments = (content, numbers, chosen, head, precision, threads, periodic)
        self.engine = None

    def __getstate__(self):
        return self.arguments

    def __setstate__(self, arguments):
        self.__init__(*arguments)

    def __call__(self, state):
        content, numbers, chosen, head, precision, threads, periodic = self.arguments
        if self.engine is None:
            self.engine = Engine(content, precision, threads=threads)
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom) if periodic else None
        picked = positions if chosen is None else positions[chosen]
        out = self.engine.compute(picked, numbers, cell, (periodic,) * 3, terms=[(head, 1.0)])
        forces = out["forces"]
        if chosen is not None:
            forces = np.zeros((len(positions), 3))
            forces[chosen] = out["forces"]
        return out["energy"] * units.KJ_PER_MOL, forces * FORCE_UNIT


def _script(model, numbers, chosen, head, precision, threads, periodic):
    """The scripted module that TorchForce runs."""
    import torch

    from mfmd import export

    if precision not in ("single", "double"):
        raise InputError(f"precision is {precision!r}; it must be 'single' or 'double'")
    load_torch_host()

    class OpenMMModule(torch.nn.Module):
        """positions (atoms, 3) nm, box (3, 3) nm -> energy (kJ/mol, double), forces (atoms, 3) kJ/mol/nm."""

        def __init__(self):
            super().__init__()
            self.engine = export.torch_engine(model.bytes)
            self.register_buffer("numbers", torch.as_tensor(numbers))
            self.register_buffer("chosen", torch.as_tensor([] if chosen is None else chosen, dtype=torch.long))
            self.register_buffer("no_cell", torch.zeros(3, 3, dtype=torch.float64))
            self.head: int = head
            self.single: bool = precision == "single"
            self.threads: int = 0 if threads is None else threads  # 0: as many as torch uses
            self.periodic: bool = periodic
            self.length: float = units.ANGSTROM_PER_NM
            self.energy: float = units.KJ_PER_MOL

        def forward(self, positions: torch.Tensor, box: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            if self.periodic != (box is not None):
                raise RuntimeError(
                    "mfmd: this force was made for another kind of box; call setUsesPeriodicBoundaryConditions as it was exported"
                )
            picked = positions.detach().to(torch.device("cpu"), torch.float64)
            if self.chosen.numel() > 0:
                picked = picked.index_select(0, self.chosen)
            cell = self.no_cell
            if box is not None:
                cell = box.to(torch.device("cpu"), torch.float64) * self.length
            pbc = torch.full((3,), self.periodic, dtype=torch.bool)
            energies, forces, _ = self.engine.evaluate(
                picked * self.length, self.numbers, cell, pbc, [self.head], [1.0], self.single, self.threads
            )
            forces = forces * (self.energy * self.length)
            if self.chosen.numel() > 0:
                forces = torch.zeros(positions.shape, dtype=forces.dtype).index_copy(0, self.chosen, forces)
            return energies[0] * self.energy, forces.to(positions.device, positions.dtype)

    return torch.jit.script(OpenMMModule().eval())
