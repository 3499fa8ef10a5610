"""From a trained model to the model file: `mfmd.safetensors` inside a TorchScript archive that the engine runs."""

import contextlib
import copy
import hashlib
import io
import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from mfmd import Error, Note, progress, whole
from mfmd.engine import Engine, HostError, load_model, load_torch_host
from mfmd.evaluation import Trained
from mfmd.structures.record import to_json
from mfmd.training.batches import collate
from mfmd.training.heads import ERROR_BARS
from mfmd.training.model import SIZES, VARIANTS
from mfmd.training.start import read_in_double

FORMATS = (1, 2, 3, 4)  # of the model file; a later one where the backbone or a head says or is what those before do not know
CHECKED, LARGEST = 3, 200  # structures that travel in the file with their numbers, and of how many atoms they are at most
TABLE_BOUND = {"energy": 1e-6, "forces": 1e-5}  # eV/atom, and of the forces: what the radial tables may differ by from exact evaluation
NO_TORCHSCRIPT = (HostError, RuntimeError, NotImplementedError, AttributeError)  # where its host is missing, or torch makes none of it
STATE = 1  # version of the engine's state inside the archive
ENTRY = "mfmd.safetensors"


class ExportError(Error):
    """The model cannot be exported."""


def table_error(content, structures):
    """What the engine's radial tables cost in accuracy, in double: the largest over the structures, each at the highest level that
    knows its elements.

    content : bytes of mfmd.safetensors; structures : Structure, of validation

    Returns
    -------
    dict: structures (how many), energy (eV/atom), forces (eV/Å)

    Raises
    ------
    ExportError : more than TABLE_BOUND, of forces in parts of the structure's largest where that is more than 1 eV/Å
    """
    table, exact = (Engine(content, precision="double", radial=radial, allow_unseen_state=True) for radial in ("table", "exact"))
    trained = Trained(content, allow_unseen_state=True)
    worst, share = {"structures": len(structures), "energy": 0.0, "forces": 0.0}, 0.0
    for s in progress.over(structures, "the error of the radial tables", "structures"):
        level = trained.highest(s)
        if level is None:
            continue
        given, states = s.for_engine
        a, b = (engine.compute_batch([given], states=[states], terms=[(level, 1.0)])[0] for engine in (table, exact))
        energy, forces = abs(a["energy"] - b["energy"]) / len(s.numbers), float(np.abs(a["forces"] - b["forces"]).max())
        worst |= {"energy": max(worst["energy"], energy), "forces": max(worst["forces"], forces)}
        share = max(share, forces / max(1.0, np.abs(b["forces"]).max()))
    for kind, off, unit in (("energy", worst["energy"], "eV/atom"), ("forces", share, "of the forces")):
        if off > TABLE_BOUND[kind]:
            raise ExportError(
                f"the engine's radial tables err by {off:.1e} {unit} on the validation set, and {TABLE_BOUND[kind]:.0e} is allowed; "
                "the model's radial functions are too steep: train with fewer radial_functions or with weight_decay"
            )
    return worst


def checked(content, structures):
    """Structures with the numbers that torch has for them in double, for `mfmd check`: the smallest, the largest and one between of those of LARGEST atoms at most
    that a level knows, each at the highest that does.

    content : bytes of mfmd.safetensors; structures : Structure

    Returns
    -------
    list of dicts: what record.to_json has, and level, energy (eV), forces (eV/Å)
    """
    model, trained = read_in_double(content), Trained(content)
    known = sorted((len(s.numbers), k) for k, s in enumerate(structures) if len(s.numbers) <= LARGEST and trained.highest(s))
    out = []
    for which in np.unique(np.linspace(0, len(known) - 1, min(CHECKED, len(known))).astype(int)):
        s = structures[known[which][1]]
        level = trained.highest(s)
        found = model(collate([s], [], model.backbone.radial.cutoff, torch.float64), forces=[level])[level]
        out.append(to_json(s) | {"level": level, "energy": found.energy.item(), "forces": found.forces.detach().tolist()})
    return out


def _sizes(head, members):
    """What a head of this kind has for sizes."""
    if head.kind == "mlp":
        return {"hidden": head.hidden.out_features, "members": members}
    return {"hidden": head.hidden} if head.kind == "gated" else {}


def serialize(model, elements, provenance, tables=None, domain=None, states=None, check=()):
    """The bytes of mfmd.safetensors.

    Parameters
    ----------
    model : training.model.Model
    elements : {level: atomic numbers it was trained on}
    provenance : JSON-able; where the model comes from
    tables : what `table_error` measured
    domain : what `domain.trained_on` found
    states : {level: (charge, multiplicity) pairs it was trained on}; a level is missing of which nobody knows
    check : what `checked` found

    head(isolated neutral atom) is folded into E0, so that an isolated atom returns its reference energy.
    """
    exact = copy.deepcopy(model).cpu().double().eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("heads.")}
    levels = []
    for level, head in exact.heads.items():
        z = torch.tensor(elements[level])
        none = torch.zeros(0, dtype=torch.long)
        with torch.no_grad():
            x = exact.backbone(z, torch.zeros(len(z), 3, dtype=torch.float64), none, none, torch.zeros(0, 3, dtype=torch.float64))
            isolated = head(x, z) * head.scale
            members = getattr(head, "members", 1)
            if members > 1:
                state[f"heads.{level}.alone"] = head.each(x)
        e0 = torch.zeros_like(head.e0)
        e0[z] = head.e0[z] - isolated
        own = model.heads[level]
        for name, tensor in own.state_dict().items():
            if name not in ("of_states", *(() if own.has_error_bars else ERROR_BARS)):
                state[f"heads.{level}.{name}"] = tensor
        state[f"heads.{level}.scale"] = own.scale.double()
        state[f"heads.{level}.e0"] = e0
        reference = {int(k): float(head.e0[k]) for k in z}
        levels.append(
            {
                "name": level,
                "kind": head.kind,
                **_sizes(head, members),
                "delta_of": model.delta_of.get(level),
                "elements": [int(k) for k in z],
                "e0": reference,
                **({"constant": head.constant} if head.constant else {}),
                **({"states": [list(state) for state in states[level]]} if level in (states or {}) else {}),
                **({"of_states": head.of_states.tolist()} if head.of_states.any() else {}),
            }
        )
    architecture = model.backbone.architecture
    variants = {key: architecture[key] for key, value in VARIANTS.items() if architecture[key] != value}
    second = variants or any(level["kind"] == "gated" or "constant" in level for level in levels)
    third = "state_embedding" in variants or any("states" in level or "of_states" in level for level in levels)
    sure = {level for level, head in model.heads.items() if head.has_error_bars}
    spread = {level for level, head in model.heads.items() if getattr(head, "members", 1) > 1}
    fourth = any(model.heads[level].kind != "linear" or model.delta_of.get(level) in sure | spread for level in sure)
    header = {
        "format": FORMATS[3 if fourth else 2 if third else 1 if second else 0],
        "backbone": {"kind": "tensornet", **{key: architecture[key] for key in SIZES}, **variants},
        "levels": levels,
        "units": {"energy": "eV", "length": "Å"},
        "tables": tables,
        "provenance": provenance,
    }
    if check:
        header["check"] = check
    if domain is not None:
        header["domain"] = {key: domain[key] for key in ("elements", "structures")}
        state |= {f"domain.{key}": torch.from_numpy(domain[key]) for key in ("nearest", "neighbors", "features")}
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    return safetensors.torch.save(tensors, metadata={"mfmd": json.dumps(header, allow_nan=False)})


class ModelFile(torch.nn.Module):
    """`model.pt`: Å and eV. Precision follows the positions: float32 runs the engine in single, float64 in double."""

    def __init__(self, engine, head: int):
        super().__init__()
        self.engine = engine
        self.head = head

    def forward(
        self,
        positions: torch.Tensor,
        numbers: torch.Tensor,
        cell: torch.Tensor,
        pbc: torch.Tensor,
        charge: int = 0,
        multiplicity: int = 1,  # 2S + 1; 0: the lowest that the electrons can have
        allow_unseen_state: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Energy (double, eV), forces (atoms, 3) eV/Å and virial (3, 3) eV of the highest level's head."""
        energies, forces, virial = self.engine.evaluate_in_states(
            positions, numbers, cell, pbc, [charge, multiplicity], torch.zeros(0), [self.head], [1.0], positions.dtype != torch.float64, 1,
            allow_unseen_state,
        )  # fmt: skip
        return energies[0], forces, virial


def torch_engine(content):
    """torch.classes.mfmd.Model from the bytes of mfmd.safetensors."""
    load_torch_host()
    data = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    return torch.classes.mfmd.Model(STATE, hashlib.sha256(content).hexdigest(), data)


def _writing(path):
    folder = Path(path).parent
    if not folder.is_dir():
        raise ExportError(f"{path}: there is no folder {folder}")
    return whole.writing(path)


@contextlib.contextmanager
def calls_torch_jit():
    """That torch.jit is deprecated, torch says to those who call it, and that is us."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # before torch 2.14, and since
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=category)
        yield


def write_archive(path, module, content, **entries):
    """A module as TorchScript archive with the weights and more entries beside it; the file appears whole or not at all."""
    archive = io.BytesIO()  # written by torch itself it would end the process on a full disk
    with calls_torch_jit():
        torch.jit.save(torch.jit.script(module), archive, _extra_files={ENTRY: content, **entries})
    with _writing(path) as file:
        file.write(archive.getbuffer())


def write_torchscript(path, model):
    """A model file, an engine.load_model, again: with the TorchScript that torch makes of it here.

    Raises
    ------
    HostError : the TorchScript host is missing
    """
    write_archive(path, ModelFile(torch_engine(model.bytes), len(model.levels) - 1), model.bytes)


def write_weights(path, content):
    """The weights alone, in an archive as TorchScript's: a stored entry at a multiple of 64 bytes."""
    with _writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo(f"{Path(path).stem}/extra/{ENTRY}")
        padding = -(30 + len(entry.filename) + 4) % 64
        entry.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)
        archive.writestr(entry, content)


def write_model(path, model, elements, provenance, structures=(), domain=None, states=None):
    """Write the model file of a training.model.Model; the error of its radial tables is measured on `structures` first, and some of them travel in it.

    domain, states : as for `serialize`

    Where torch makes no TorchScript of it, or its host is missing, the file has the weights alone, and a Note says so.

    Raises
    ------
    ExportError : see `table_error`
    """
    content = serialize(model, elements, provenance, domain=domain, states=states)
    if len(structures):
        tables, check = table_error(content, structures), checked(content, structures)
        content = serialize(model, elements, provenance, tables, domain, states, check)
    try:
        write_torchscript(path, load_model(content))
    except NO_TORCHSCRIPT as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"{path} has no TorchScript in it, which TorchForce, GROMACS and torch.jit.load need and no other host ({reason}); "
            f"`mfmd export --for torchscript {path} -o {path}` adds it where torch makes it",
            Note,
            stacklevel=2,
        )
        write_weights(path, content)
