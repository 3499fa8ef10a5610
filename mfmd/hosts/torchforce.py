"""TorchForce: the engine's TorchScript host inside openmmtorch, for `mfmd.hosts.openmm`."""

import importlib.metadata
from pathlib import Path

import openmm
import openmm.version

from mfmd import units
from mfmd.engine import HostError, InputError, load_torch_host

MOST_PARAMETERS = 6  # of a TorchForce, whose module has a fixed number of arguments


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


def torch_force(e):
    """A TorchForce of an Evaluated."""
    load_torchforce()
    import openmmtorch

    force = openmmtorch.TorchForce(script(e))
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(e.periodic)
    for name, value in e.parameters.items():
        force.addGlobalParameter(name, value)
        force.addEnergyParameterDerivative(name)
    return force


def script(e):
    """The scripted module that TorchForce runs.

    Its forward calls no other method: with openmmtorch 1.5 and torch 2.9.1 an error below such a call ends the process (segmentation fault) in every
    Context but the first.
    """
    import torch

    from mfmd.training import export

    load_torch_host()
    names = list(e.parameters)
    if len(names) > MOST_PARAMETERS:
        raise InputError(f"host='torch' has up to {MOST_PARAMETERS} global parameters, and there are {len(names)}: {', '.join(names)}")

    class OpenMMModule(torch.nn.Module):
        """positions (atoms, 3) nm, box (3, 3) nm if periodic, parameters -> energy (kJ/mol, double), forces (atoms, 3) kJ/mol/nm."""

        def __init__(self):
            super().__init__()
            self.engine = export.torch_engine(e.model.bytes)
            self.register_buffer("numbers", torch.as_tensor(e.numbers))
            self.register_buffer("chosen", torch.as_tensor([] if e.chosen is None else e.chosen, dtype=torch.long))
            self.register_buffer("no_cell", torch.zeros(3, 3, dtype=torch.float64))
            self.states = [value for state in e.said.states for value in state]
            self.register_buffer("fragment", torch.as_tensor(e.said.fragment, dtype=torch.int32))
            self.allow_unseen: bool = e.allow_unseen_state
            self.heads = [head for head, _, _ in e.terms]
            self.weights = [weight for _, weight, _ in e.terms]
            self.parameter_of = [names.index(name) if name else -1 for _, _, name in e.terms]
            self.parameters_wanted: int = len(names)
            self.single: bool = e.precision == "single"
            self.threads: int = 0 if e.threads is None else e.threads  # 0: as many as torch uses
            self.periodic: bool = e.periodic
            self.length: float = units.ANGSTROM_PER_NM
            self.energy: float = units.KJ_PER_MOL

        def forward(
            self,
            positions: torch.Tensor,
            a: torch.Tensor | None = None,
            b: torch.Tensor | None = None,
            c: torch.Tensor | None = None,
            d: torch.Tensor | None = None,
            e: torch.Tensor | None = None,
            f: torch.Tensor | None = None,
            g: torch.Tensor | None = None,
            h: torch.Tensor | None = None,  # one more than there should be, so that a box too much meets a sentence
        ) -> tuple[torch.Tensor, torch.Tensor]:
            inputs: list[torch.Tensor] = []
            for tensor in (a, b, c, d, e, f, g, h):
                if tensor is not None:
                    inputs.append(tensor)
            cell = self.no_cell
            if len(inputs) != self.parameters_wanted + int(self.periodic):
                raise RuntimeError(
                    "mfmd: this force was made for another kind of box; call setUsesPeriodicBoundaryConditions as it was exported"
                )
            if self.periodic:
                cell = inputs.pop(0).to(positions.device, torch.float64) * self.length
            picked = positions.detach().to(torch.float64)
            if self.chosen.numel() > 0:
                picked = picked.index_select(0, self.chosen)
            pbc = torch.full((3,), self.periodic, dtype=torch.bool)
            weights: list[float] = []
            for k, weight in enumerate(self.weights):
                which = self.parameter_of[k]
                weights.append(weight * float(inputs[which].item()) if which >= 0 else weight)
            energies, forces, _ = self.engine.evaluate_in_states(
                picked * self.length,
                self.numbers,
                cell,
                pbc,
                self.states,
                self.fragment,
                self.heads,
                weights,
                self.single,
                self.threads,
                self.allow_unseen,
            )
            energies = energies * self.energy
            energy = torch.zeros([], dtype=torch.float64, device=positions.device)
            for k, weight in enumerate(self.weights):  # TorchForce differentiates this sum in the parameters
                which = self.parameter_of[k]
                term = energies[k] * weight
                energy = energy + (term * inputs[which] if which >= 0 else term)
            forces = forces * (self.energy * self.length)
            if self.chosen.numel() > 0:
                forces = torch.zeros(positions.shape, dtype=forces.dtype, device=positions.device).index_copy(0, self.chosen, forces)
            return energy, forces.to(positions.dtype)

    with export.calls_torch_jit():
        return torch.jit.script(OpenMMModule().eval())
