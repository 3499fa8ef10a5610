"""The archive that GROMACS' NNPot module loads: TorchScript, nm and kJ/mol, forces from the engine (nnpot.rst of the GROMACS manual)."""

import torch

from mfmd import units
from mfmd.engine import InputError, load_model, torch_library
from mfmd.hosts.states import ENTRY, archived
from mfmd.training import export


def write_archive(path, model, head=None, precision="single", *, charge=0, multiplicity=None, allow_unseen_state=False):
    """Write a model for `nnpot-modelfile`, for the inputs atom-positions, atom-numbers and, in a periodic box, box and pbc, in this order.

    Parameters
    ----------
    model : path of a model file; head : level, by default the highest; precision : "single" or "double" (positions come in single)
    charge, multiplicity : of the atoms of nnpot-input-group, since GROMACS does not say them; None for the lowest multiplicity that their electrons can
        have, which are counted when GROMACS calls it
    allow_unseen_state : whether a state that the head was not trained on is evaluated all the same

    The archive names the library it needs, which GROMACS loads first; it was compiled against torch as it is installed here, and GROMACS
    must have been linked with the same version.
    """
    model = load_model(model)
    chosen = model.level(head) if head is not None else len(model.levels) - 1
    if multiplicity is not None and multiplicity < 1:
        raise InputError(f"multiplicity is {multiplicity}; it is 2S + 1, 1 or more")
    state = (charge or 0, multiplicity or 0)
    module = _Module(export.torch_engine(model.bytes), chosen, precision == "single", *state, allow_unseen_state).eval()
    export.write_archive(path, module, model.bytes, extension_libs=str(torch_library()), **{ENTRY: archived([state])})


class _Module(torch.nn.Module):
    """Positions (atoms, 3) nm, atomic numbers, box (3, 3) nm, pbc (3,) -> energy kJ/mol, forces (atoms, 3) kJ/mol/nm."""

    def __init__(self, engine, head: int, single: bool, charge: int, multiplicity: int, allow_unseen: bool):
        super().__init__()
        self.engine = engine
        self.head = head
        self.single = single
        self.charge = charge
        self.multiplicity = multiplicity
        self.allow_unseen = allow_unseen
        self.length: float = units.ANGSTROM_PER_NM
        self.energy: float = units.KJ_PER_MOL

    def forward(
        self, positions: torch.Tensor, numbers: torch.Tensor, box: torch.Tensor | None = None, pbc: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        host = torch.device("cpu")
        cell = torch.zeros(3, 3, dtype=torch.float64)
        periodic = torch.zeros(3, dtype=torch.bool)
        if box is not None:
            if pbc is None:
                raise RuntimeError("mfmd: the inputs of this model are atom-positions, atom-numbers, and box and pbc or neither")
            cell = box.detach().to(host, torch.float64) * self.length
            periodic = pbc.to(host)
        multiplicity = self.multiplicity
        if multiplicity == 0 and numbers.size(0) > 1:  # the group may be a molecule in a box
            multiplicity = 1 + (int(numbers.sum()) - self.charge) % 2
        energies, forces, _ = self.engine.evaluate_in_states(
            positions.detach().to(host, torch.float64) * self.length, numbers.to(host), cell, periodic,
            [self.charge, multiplicity], torch.zeros(0), [self.head], [1.0], self.single, 0, self.allow_unseen,
        )  # fmt: skip
        return energies[0] * self.energy, (forces * (self.energy * self.length)).to(positions.dtype)
