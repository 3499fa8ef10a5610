"""TorchSim: many systems side by side, the states of a batch staying where they are.

import torch_sim as ts
model = mfmd.torchsim.MfmdModel("model.pt", device=torch.device("cuda"))
final = ts.integrate(system=structures, model=model, integrator=ts.Integrator.nvt_langevin, n_steps=1000, temperature=300, timestep=0.0005)

(up to TorchSim 0.3 the integrator is ts.integrators.nvt_langevin).
"""

import warnings

import numpy as np
import torch
from torch_sim.models.interface import ModelInterface

from mfmd import Note
from mfmd.engine import Alarm, Engine, InputError, load_model
from mfmd.structures.charge import CLOSED, charge_or_spin

LOOK_EVERY = 100  # calls on a CUDA device, between looks at whether a system is far outside what the model was trained on


class MfmdModel(ModelInterface):
    """A mfmd model in TorchSim.

    Parameters
    ----------
    model : path of a `model.pt`, bytes or model
    head : a level's name; by default the last, the most expensive
    device : where the states of simulations are; by default CUDA where there is one. On a CUDA device the engine works in order of torch's
        current stream, and positions leave it at every hundredth call alone, to see whether the model extrapolates
    dtype : of the states' tensors and of the results
    precision : of the engine, "single", "double" or, on a CUDA device, "tf32"
    compute_stress : of structures that are not periodic in three directions it is not a number, which is told once

    Raises
    ------
    ModelFileError, InputError : as `mfmd.engine.Engine`
    """

    def __init__(self, model, head=None, *, device=None, dtype=torch.float64, precision="single", compute_forces=True, compute_stress=True):
        super().__init__()
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._dtype, self._compute_forces, self._compute_stress = dtype, compute_forces, compute_stress
        self.engine = Engine(load_model(model), precision, str(self._device))
        self.terms = [(head or self.engine.levels[-1], 1.0)]
        self.engine.terms(self.terms)  # an unknown head is told now
        self._known = None
        self._told = False
        self._alarm = Alarm()
        self._calls = 0

    # TorchSim asks for more or less as it goes.
    @ModelInterface.compute_forces.setter
    def compute_forces(self, wanted):
        self._compute_forces = wanted

    @ModelInterface.compute_stress.setter
    def compute_stress(self, wanted):
        self._compute_stress = wanted

    def forward(self, state, **_):
        """energy (systems,) eV, forces (atoms, 3) eV/Å and stress (systems, 3, 3) eV/Å³ of a SimState or its dictionary.

        Raises
        ------
        InputError : as `mfmd.engine.Engine.compute`; a state whose fields or extras say that a system is charged or open-shell
        """
        get = state.__getitem__ if isinstance(state, dict) else lambda key: getattr(state, key)
        pbc = [bool(p) for p in np.broadcast_to(torch.as_tensor(get("pbc")).cpu().numpy(), 3)]
        numbers, sizes = self._on_host(get("atomic_numbers"), get("system_idx"))
        _refuse_charges(state, sizes)
        positions = get("positions").detach().to(torch.float64).contiguous()
        cells = get("cell").detach().to(torch.float64).mT.contiguous()  # TorchSim's cell vectors are columns
        if self._device.type == "cuda":
            energy, forces, virial = self._on_device(positions, cells, numbers, sizes, pbc)
            if self._calls % LOOK_EVERY == 0 and not torch.cuda.is_current_stream_capturing():
                given = _apart(positions.cpu(), cells.cpu(), numbers, sizes, pbc)
                self._tell(self.engine.compute_batch(given, terms=self.terms, forces=False, domain=True), given)
            self._calls += 1
        else:
            given = _apart(positions, cells, numbers, sizes, pbc)
            results = self.engine.compute_batch(
                given, terms=self.terms, forces=self._compute_forces, virial=self._compute_stress, domain=True
            )
            self._tell(results, given)
            energy = torch.tensor([r["energy"] for r in results], dtype=torch.float64)
            forces = torch.from_numpy(np.concatenate([r["forces"] for r in results])) if self._compute_forces else None
            virial = torch.from_numpy(np.stack([r["virial"] for r in results])) if self._compute_stress else None
        out = {"energy": energy.to(self._dtype)}
        if self._compute_forces:
            out["forces"] = forces.to(self._dtype)
        if self._compute_stress:
            volume = torch.linalg.det(cells).abs() if all(pbc) else cells.new_full((len(sizes),), np.nan)
            out["stress"] = (-virial / volume[:, None, None]).to(self._dtype)
            if not all(pbc) and not self._told:
                self._told = True
                warnings.warn(
                    "structures that are not periodic in three directions have no stress, and it is not a number; compute_stress=False leaves it out",
                    Note,
                    stacklevel=2,
                )
        return out

    def _tell(self, results, given):
        """The system that is farthest outside what the model was trained on; again when one is twice as far."""
        far = max(range(len(results)), key=lambda k: results[k]["grade"], default=None)
        if far is not None and results[far]["grade"] > self._alarm.grade:
            error = self.engine.compute(*given[far], terms=self.terms, forces=False, error_bars=True)["term_errors"][0]
            self._alarm.tell(results[far], self.terms[0][0], error, f"system {far} is ")

    def _on_device(self, positions, cells, numbers, sizes, pbc):
        energies = positions.new_empty(2, len(sizes))
        forces = torch.empty_like(positions) if self._compute_forces else None
        virials = torch.empty_like(cells) if self._compute_stress else None
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream().cuda_stream
        self.engine.enqueue(
            sizes, numbers, positions.data_ptr(), cells.data_ptr(), pbc, terms=self.terms, energies=energies.data_ptr(),
            forces=0 if forces is None else forces.data_ptr(), virials=0 if virials is None else virials.data_ptr(), stream=stream,
        )  # fmt: skip
        return energies[0], forces, virials

    def _on_host(self, numbers, systems):
        """Atomic numbers and sizes of the systems, copied from the device once as long as the tensors stay the same."""
        inference = numbers.is_inference() or systems.is_inference()  # tensors without a version
        versions = None if inference else (numbers._version, systems._version)
        if inference or self._known is None or self._known[0] is not numbers or self._known[1] is not systems or self._known[2] != versions:
            z, idx = numbers.detach().cpu().numpy().astype(np.int32), systems.detach().cpu().numpy()
            if np.any(np.diff(idx) < 0):
                raise InputError("atoms of a system must follow each other: system_idx goes down")
            self._known = numbers, systems, versions, z, np.bincount(idx)
        return self._known[3:]


def _apart(positions, cells, numbers, sizes, pbc):
    """The systems of a state on the host, as Engine.compute_batch takes them."""
    ends = np.cumsum(sizes)
    pieces = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [(positions[p].numpy(), numbers[p], cell.numpy(), pbc) for p, cell in zip(pieces, cells, strict=True)]


def _refuse_charges(state, sizes):
    """InputError where what a state says beside its structures, in fields or extras of its systems and atoms, is not neutral and closed-shell."""
    said = {} if isinstance(state, dict) else {key: getattr(state, key, None) for key in ("charge", "spin")}
    for extras in [state] if isinstance(state, dict) else [getattr(state, f"{kind}_extras", {}) for kind in ("system", "atom")]:
        said |= extras
    host = {
        key: torch.as_tensor(value).detach().cpu().numpy()
        for key, value in said.items()
        if value is not None and (key.lower() in CLOSED or key in OF_ATOMS)
    }
    reasons = [charge_or_spin({key: v}) for key, value in host.items() if key not in OF_ATOMS for v in np.ravel(value)]
    for key in OF_ATOMS.keys() & host.keys():
        reasons += [charge_or_spin({}, **{OF_ATOMS[key]: part}) for part in np.split(host[key], np.cumsum(sizes)[:-1])]
    if reason := next(filter(None, reasons), None):
        raise InputError(reason)


OF_ATOMS = {
    "partial_charges": "charges",
    "formal_charges": "charges",
    "magnetic_moments": "moments",
}  # extras, as charge_or_spin calls them
