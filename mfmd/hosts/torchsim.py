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
from mfmd.hosts.states import assumed
from mfmd.structures.state import CHARGE, KEYS, SPINS, StateError, name, read_states, spelled

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
    spin : what a state's `spin` and `total_spin` are, "2S" or "2S+1", which TorchSim leaves open; without it those that may mean two things are refused
    allow_unseen_state : whether charges and multiplicities that a head was not trained on are evaluated all the same

    Charge and multiplicity of each system are those that a state says, in fields or extras of its systems and atoms: charge, total_charge, multiplicity, spin,
    total_spin, total_magnetization, partial_charges, formal_charges, magnetic_moments. Where nothing is said a system is neutral and of the lowest
    multiplicity, which is told once (mfmd.Note) where its electrons are odd or the model knows other states.

    Raises
    ------
    ModelFileError, InputError : as `mfmd.engine.Engine`
    """

    def __init__(
        self,
        model,
        head=None,
        *,
        device=None,
        dtype=torch.float64,
        precision="single",
        compute_forces=True,
        compute_stress=True,
        spin=None,
        allow_unseen_state=False,
    ):
        super().__init__()
        if spin not in (None, *SPINS):
            raise InputError(f"spin is {spin!r}; it must be one of {', '.join(SPINS)}")
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._dtype, self._compute_forces, self._compute_stress = dtype, compute_forces, compute_stress
        self.engine = Engine(load_model(model), precision, str(self._device), allow_unseen_state=allow_unseen_state)
        self.terms = [(head or self.engine.levels[-1], 1.0)]
        self.engine.terms(self.terms)  # an unknown head is told now
        self._known = self._said = self._states = None
        self._spin, self._told, self._assumed = spin, False, False
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
        InputError : as `mfmd.engine.Engine.compute`; charges and spins that contradict each other or the electrons, or a spin that may mean two things
        """
        get = state.__getitem__ if isinstance(state, dict) else lambda key: getattr(state, key)
        pbc = [bool(p) for p in np.broadcast_to(torch.as_tensor(get("pbc")).cpu().numpy(), 3)]
        numbers, sizes = self._on_host(get("atomic_numbers"), get("system_idx"))
        states = self._states_of(state, numbers, sizes, pbc)
        positions = get("positions").detach().to(torch.float64).contiguous()
        cells = get("cell").detach().to(torch.float64).mT.contiguous()  # TorchSim's cell vectors are columns
        if self._device.type == "cuda":
            energy, forces, virial = self._on_device(positions, cells, numbers, sizes, pbc, states)
            if self._calls % LOOK_EVERY == 0 and not torch.cuda.is_current_stream_capturing():
                given = _apart(positions.cpu(), cells.cpu(), numbers, sizes, pbc)
                self._tell(self.engine.compute_batch(given, states=states, terms=self.terms, forces=False, domain=True), given, states)
            self._calls += 1
        else:
            given = _apart(positions, cells, numbers, sizes, pbc)
            results = self.engine.compute_batch(
                given, states=states, terms=self.terms, forces=self._compute_forces, virial=self._compute_stress, domain=True
            )
            self._tell(results, given, states)
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

    def _tell(self, results, given, states):
        """The system that is farthest outside what the model was trained on; again when one is twice as far."""
        far = max(range(len(results)), key=lambda k: results[k]["grade"], default=None)
        if far is not None and results[far]["grade"] > self._alarm.grade:
            (out,) = self.engine.compute_batch([given[far]], states=[states[far]], terms=self.terms, forces=False, error_bars=True)
            self._alarm.tell(results[far], self.terms[0][0], out["term_errors"][0], f"system {far} is ")

    def _on_device(self, positions, cells, numbers, sizes, pbc, states):
        energies = positions.new_empty(2, len(sizes))
        forces = torch.empty_like(positions) if self._compute_forces else None
        virials = torch.empty_like(cells) if self._compute_stress else None
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream().cuda_stream
        self.engine.enqueue(
            sizes, numbers, positions.data_ptr(), cells.data_ptr(), pbc, terms=self.terms, energies=energies.data_ptr(),
            forces=0 if forces is None else forces.data_ptr(), virials=0 if virials is None else virials.data_ptr(), stream=stream,
            states=states,
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

    def _states_of(self, state, numbers, sizes, pbc):
        """The states of the systems, as Engine.compute_batch takes them; read anew where numbers, or what the state says, are others."""
        said = _said(state)
        now = {"numbers": numbers, "sizes": sizes, "pbc": pbc} | said
        if self._said and now.keys() == self._said.keys() and all(np.array_equal(now[k], self._said[k], equal_nan=True) for k in now):
            return self._states
        states, ends, kinds = [], np.cumsum(sizes), {key: _kind(key, value, sizes) for key, value in said.items()}
        for k, end in enumerate(ends):
            atoms = slice(end - sizes[k], end)
            info = {key: _scalar(value[k]) for key, value in said.items() if kinds[key] is None}
            charges = [value[atoms] for key, value in said.items() if kinds[key] == "charges"]
            moments = next((value[atoms] for key, value in said.items() if kinds[key] == "moments"), ())
            try:
                found, _, unsaid = read_states(numbers[atoms], info, charges, moments, pbc=pbc, spin=self._spin)
            except StateError as error:
                raise InputError(f"system {k}: {error}") from None
            states.append(spelled(found))
            if not self._assumed and (words := assumed(unsaid, found[0], self.engine.states, f"system {k}")):
                self._assumed = True
                warnings.warn(f"{words} (system_extras: charge, multiplicity)", Note, stacklevel=3)
        self._said, self._states = now, states
        return states


def _apart(positions, cells, numbers, sizes, pbc):
    """The systems of a state on the host, as Engine.compute_batch takes them."""
    ends = np.cumsum(sizes)
    pieces = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [(positions[p].numpy(), numbers[p], cell.numpy(), pbc) for p, cell in zip(pieces, cells, strict=True)]


def _said(state):
    """What a state says of charge and spin in fields or extras of its systems and atoms, on the host."""
    if isinstance(state, dict):
        found = state
    else:
        found = {key: getattr(state, key, None) for key in (*KEYS, *OF_ATOMS)}
        for kind in ("system", "atom"):
            found |= getattr(state, f"{kind}_extras", {})
    return {
        key: torch.as_tensor(value).detach().cpu().numpy()
        for key, value in found.items()
        if value is not None and (name(key) in KEYS or key in OF_ATOMS)
    }


def _kind(key, value, sizes):
    """What a key says as read_states calls it, where it says it of atoms: one that is usually of systems does with as many values as there are atoms."""
    if np.shape(value)[:1] not in ((len(sizes),), (sum(sizes),)):
        raise InputError(f"{key} has the shape {np.shape(value)} for {len(sizes)} systems of {sum(sizes)} atoms")
    of_atoms = len(value) == sum(sizes) > len(sizes)
    return OF_ATOMS.get(key) or (("charges" if name(key) in CHARGE else "moments") if of_atoms else None)


def _scalar(value):
    """A number; of a vector, which a magnetisation may be, its length."""
    return np.linalg.norm(value) if np.size(value) == 3 else value


OF_ATOMS = {"partial_charges": "charges", "formal_charges": "charges", "magnetic_moments": "moments"}  # extras, as read_states calls them
