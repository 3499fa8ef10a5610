"""The compiled engine from Python: the only importer of `mfmd._engine`, and the place where its input is checked once.

Needs numpy alone; torch is never imported here.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np

from mfmd import Error, Extrapolation

try:
    from mfmd import _engine
except ImportError as error:
    raise Error(f"the compiled engine does not load ({error}); reinstall mfmd, for instance with `pip install mfmd`") from error

ModelFileError = _engine.ModelFileError
InputError = _engine.InputError
LIBRARY_DIR = Path(_engine.__file__).parent
PRECISIONS = ("single", "double", "tf32")
training_maps = _engine.training  # functions on addresses, for training/maps.py
CLOSEST = _engine.closest  # Å; atoms nearer to each other are refused
states_of = _engine.states_of  # (numbers, [(charge, multiplicity)], fragment of each atom or (), periodic) -> the states that are evaluated


class HostError(Error):
    """A host's compiled part is missing or does not fit what is installed; the message names the command that mends it."""


def torch_library():
    """Where the TorchScript host for the installed torch is, or would be; patch releases of torch, with CUDA or without, have one in common."""
    import torch

    return LIBRARY_DIR / f"libmfmd_torch-{'.'.join(torch.__version__.split('.')[:2])}.so"


def load_torch_host():
    """Load torch.classes.mfmd, once.

    Raises
    ------
    HostError : the library was built against another torch or for another mfmd, or not at all.
    """
    import torch

    library = torch_library()
    if not library.exists():
        built = " and ".join(sorted(p.stem.removeprefix("libmfmd_torch-") for p in LIBRARY_DIR.glob("libmfmd_torch-*.so")))
        have = f"was built against torch {built}" if built else "was not built"
        raise HostError(f"the TorchScript host {have}, and torch {torch.__version__} is installed; run `mfmd build-host torch`")
    if str(library) not in torch.classes.loaded_libraries:
        try:
            torch.classes.load_library(str(library))
        except OSError as error:
            raise HostError(f"the TorchScript host does not load ({error}); run `mfmd build-host torch`") from None


def model_path(source):
    """Path of a model file, of which "mfmd:chno" names one that comes along with mfmd, and ~ is the user's home.

    Raises
    ------
    ModelFileError : none of this name comes along.
    """
    folder, name, path = Path(__file__).parent / "models", str(source).removeprefix("mfmd:"), Path(source).expanduser()
    if name == str(source):
        return path
    known = sorted(file.stem for file in folder.glob("*.pt"))
    if name not in known:
        raise ModelFileError(f"{source}: no model of this name comes along; there are {', '.join(f'mfmd:{k}' for k in known)}")
    return folder / f"{name}.pt"


def load_model(source):
    """The weights of a model file, shared by any number of engines.

    Parameters
    ----------
    source : path of a `model.pt`, "mfmd:chno" (see `model_path`), the bytes of its `mfmd.safetensors` entry, or a model already loaded.

    Raises
    ------
    ModelFileError : the file is missing, truncated, damaged, newer than this mfmd, or no model of mfmd.
    """
    if isinstance(source, _engine.Model):
        return source
    if isinstance(source, bytes):
        return _engine.Model.parse(source, "the embedded model")
    return _engine.Model.load(str(model_path(source)))


def neighbor_list(positions, cell, pbc, cutoff):
    """All pairs nearer than the cutoff, D = R[j] - R[i] + S @ cell, full and symmetric, in (i, j, S) order.

    Parameters
    ----------
    positions : (atoms, 3) Å
    cell : (3, 3) Å, vectors as rows; only periodic directions are read
    pbc : three booleans
    cutoff : Å

    Returns
    -------
    i, j : (pairs,) int; S : (pairs, 3) int; D : (pairs, 3) Å

    Raises
    ------
    InputError : a cell that is flat or has more than 50,000 like it within the cutoff, an atom with more than 20,000 neighbours or a million
        atoms around it to look at, a non-finite position, a wrong shape.
    """
    return _engine.neighbor_list(np.asarray(positions, float), np.asarray(cell, float), [bool(p) for p in pbc], float(cutoff))


class Alarm:
    """Of a host: warns (mfmd.Extrapolation) of the first structure that is far outside what the model was trained on, and of each that is twice as far."""

    def __init__(self):
        self.grade = 0  # that was told

    def tell(self, out, head, error, begin=""):
        """out : of Engine.compute with `domain`; error : eV, the error bar of a head, NaN where it has none; begin : what the sentence begins with."""
        if out["grade"] > self.grade:
            self.grade = out["grade"]
            bar = "" if np.isnan(error) else f"; the error bar of {head} is {error:.3f} eV"
            warnings.warn(f"{begin}{out['outside']}{bar}", Extrapolation, stacklevel=3)


def default_threads():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Engine:
    """Energies, forces and virial of structures, from a weighted sum of heads.

    Parameters
    ----------
    model : path, bytes or model (see `load_model`)
    precision : "single", "double" or, on a CUDA device, "tf32": single, but with the backbone's matrix products (but the read-out's) by tensor
        cores, which round factors to ten bits of mantissa. E0 and total energies are double in all
    device : "cpu", "cuda" or "cuda:1"
    threads : at most this many; None for every core of the process. Results do not depend on it.
    radial : "table" (quintic Hermite, errs by some 1e-7 in the forces) or "exact" (slow, the reference)
    skin : Å, by how much the neighbour list reaches beyond the cutoff
    allow_unseen_state : whether charges and multiplicities that a head was not trained on are evaluated all the same

    Raises
    ------
    ModelFileError : see `load_model`
    InputError : an unknown precision, device or radial, a number of threads below one, "exact" on a CUDA device

    One engine serves one caller at a time; engines of the same model share its weights.
    """

    def __init__(self, model, precision="single", device="cpu", threads=None, radial="table", skin=1.0, allow_unseen_state=False):
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        kind, _, number = str(device).partition(":")
        if kind not in ("cpu", "cuda") or not (number.isdigit() or not number):
            raise InputError(f"device is {device!r}; it must be 'cpu', 'cuda' or 'cuda:' and a number")
        if radial not in ("table", "exact"):
            raise InputError(f"radial is {radial!r}; it must be 'table' or 'exact'")
        self.model = load_model(model)
        self.precision, self.device, self.threads, self.radial, self.skin = (
            precision,
            device,
            default_threads() if threads is None else threads,
            radial,
            skin,
        )
        self.allow_unseen_state = bool(allow_unseen_state)
        self._workspace = _engine.Workspace(
            self.model, precision, self.threads, radial == "table", skin, int(number or 0) if kind == "cuda" else -1
        )

    def __reduce__(self):
        return Engine, (self.model.bytes, *self._options())

    def __deepcopy__(self, memo):
        return Engine(self.model, *self._options())

    def _options(self):
        return self.precision, self.device, self.threads, self.radial, self.skin, self.allow_unseen_state

    @property
    def levels(self):
        """Names of the levels of theory, cheapest first."""
        return self.model.levels

    @property
    def states(self):
        """{level: [(charge, multiplicity), …]} that each was trained on; a level is missing of which the file does not say it: neutral structures of
        the lowest multiplicity."""
        return self.model.states

    @property
    def with_error_bars(self):
        """Those of the levels whose energies come with a standard deviation."""
        return self.model.with_error_bars

    @property
    def has_domain(self):
        """Whether the model file says what it was trained on."""
        return self.model.has_domain

    @property
    def metadata(self):
        return json.loads(self.model.metadata)

    def stage_times(self):
        """Seconds spent in each stage so far, {stage: s}."""
        return dict(self._workspace.stage_times)

    def terms(self, terms):
        """(head, weight) pairs with heads by name, as the compiled engine takes them. InputError for an unknown head."""
        return [(self.model.level(head), float(weight)) for head, weight in terms]

    def compute(
        self,
        positions,
        numbers,
        cell=None,
        pbc=(False, False, False),
        *,
        terms,
        charge=0,
        multiplicity=None,
        fragments=None,
        forces=True,
        virial=False,
        atom_energies=False,
        error_bars=False,
        domain=False,
    ):
        """Evaluate sum_k weight_k E_head_k.

        Parameters
        ----------
        positions : (atoms, 3) Å, wrapped or not
        numbers : (atoms,) atomic numbers
        cell : (3, 3) Å, vectors as rows; may be None without periodic directions
        pbc : three booleans
        terms : (head name, weight) pairs; a weight of zero asks for a head's energy only
        charge : of the structure, elementary charges
        multiplicity : 2S + 1; None for the lowest that the electrons can have (of a periodic structure 1)
        fragments : instead of these (atoms, charge, multiplicity) of each part, all atoms being of one of them: parts beyond each other's reach
            then have the energies that they have by themselves

        Returns
        -------
        dict: energy (eV, the sum), term_energies (terms,) eV, and on request forces (atoms, 3) eV/Å,
        virial (3, 3) eV (-dE/dstrain), atom_energies (atoms,) eV, term_errors (terms,) eV, the standard deviation of each
        head's energy (NaN for heads without error bars); with `domain` outside, None or a sentence that says where and how the structure is far
        outside what the model was trained on (always None where the model file does not say it, see `has_domain`), and grade, 0 or a number that
        grows each time it is twice as far outside

        Raises
        ------
        InputError : unknown head, untrained element, a state that a head was not trained on, a multiplicity that the electrons cannot have, fragments
            that share an atom or lack one, overlapping atoms, flat cell, non-finite input or result
        """
        if fragments is not None and (charge, multiplicity) != (0, None):
            raise InputError("fragments say the charges and multiplicities; leave out charge and multiplicity")
        return self.compute_batch(
            [(positions, numbers, cell, pbc)],
            states=[(charge, multiplicity) if fragments is None else list(fragments)], terms=terms, forces=forces, virial=virial, atom_energies=atom_energies, error_bars=error_bars, domain=domain,
        )[0]  # fmt: skip

    def compute_batch(
        self, structures, *, terms, states=None, forces=True, virial=False, atom_energies=False, error_bars=False, domain=False
    ):
        """Evaluate many structures, on a CUDA device side by side: replicas, conformers, screening.

        Parameters
        ----------
        structures : of (positions, numbers, cell, pbc), each as for `compute`
        states : of each structure (charge, multiplicity), or a list of its fragments, as for `compute`; None where nothing is said

        Returns
        -------
        list of what `compute` returns, bit for bit

        Raises
        ------
        InputError : as `compute`, of any of the structures
        """
        return self._workspace.evaluate(
            [self._checked(*s, state) for s, state in zip(structures, _of_each(states, len(structures)), strict=True)],
            self.terms(terms), forces, virial, atom_energies, error_bars, domain, self.allow_unseen_state,
        )  # fmt: skip

    def enqueue(self, atoms, numbers, positions, cells, pbc, *, terms, energies, forces=0, virials=0, stream=0, states=None):
        """Evaluate structures that are on the engine's CUDA device, in order of a stream and without waiting for it.

        Only the first call for other numbers waits, to see how much room they need; after it, calls may be recorded in a CUDA graph. Where a
        structure cannot be evaluated or has more neighbours than there is room for, its results are not numbers, and the next call raises or
        makes room.

        Parameters
        ----------
        atoms : (systems,) how many atoms each structure has
        numbers : (all atoms,) atomic numbers, on the host
        positions : address of (all atoms, 3) Å, double, on the device, as are all addresses
        cells : address of (systems, 3, 3) Å, double; 0 where nothing is periodic
        pbc : three booleans
        terms : (head name, weight) pairs
        energies : address of (1 + terms, systems) eV, double: the weighted sum, then each head's own
        forces : address of (all atoms, 3) eV/Å, double; 0 for none
        virials : address of (systems, 3, 3) eV, double; 0 for none
        stream : cudaStream_t
        states : as for `compute_batch`

        Raises
        ------
        InputError : as `compute`; an engine on the CPU; within a graph, structures or weights that no call before had
        """
        atoms, numbers, pbc = np.asarray(atoms, np.int32), np.asarray(numbers, np.int32), [bool(p) for p in pbc]
        parts = np.split(numbers, np.cumsum(atoms)[:-1])
        said = [_states(part, state, pbc) for part, state in zip(parts, _of_each(states, len(parts)), strict=True)]
        fragment = np.concatenate([np.zeros(len(n), np.int32) if f is None else f for n, (_, f) in zip(parts, said, strict=True)])
        self._workspace.enqueue(
            atoms, numbers, positions, cells, pbc, self.terms(terms), energies, forces, virials, stream,
            [of_system for of_system, _ in said], fragment, self.allow_unseen_state,
        )  # fmt: skip

    def _checked(self, positions, numbers, cell, pbc, state):
        if cell is None:
            if any(pbc):
                raise InputError("pbc is set, but there is no cell")
            cell = np.zeros((3, 3))
        integers = np.asarray(numbers, np.int32)
        if (integers != numbers).any():
            raise InputError("atomic numbers must be whole numbers")
        pbc = [bool(p) for p in pbc]
        states, fragment = _states(integers, state, pbc)
        return np.asarray(positions, float), integers, np.asarray(cell, float), pbc, states, () if fragment is None else fragment


def _of_each(states, structures):
    if states is not None and len(states) != structures:
        raise InputError(f"states are of {len(states)} structures, and there are {structures}")
    return [None] * structures if states is None else states


def _states(numbers, state, pbc):
    """[(charge, multiplicity)] as they are evaluated, and the fragment of each atom, or None where there is one."""
    if state is None:
        state = (0, None)
    one = isinstance(state, tuple) and len(state) == 2
    try:
        charge, multiplicity = state if one else (0, None)
        parts = [] if one else [(np.asarray(atoms), *pair) for atoms, *pair in state]
        known = all(len(part) == 3 and part[0].ndim == 1 and (part[0].dtype.kind in "iu" or not part[0].size) for part in parts)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise InputError(
            f"a state is {str(state)[:80]}; it must be (charge, multiplicity), or a list of (atoms, charge, multiplicity) of each fragment"
        )
    if one:
        return states_of(numbers, [(_whole("charge", charge), _said("multiplicity", multiplicity))], (), any(pbc)), None
    fragment, said = np.full(len(numbers), -1, np.int32), []
    for k, (atoms, charge, multiplicity) in enumerate(parts):
        atoms = atoms.astype(int)
        if atoms.size and (atoms.min() < 0 or atoms.max() >= len(numbers)):
            raise InputError(
                f"fragment {k} has atom {atoms.max() if atoms.min() >= 0 else atoms.min()}, and there are {len(numbers)} atoms"
            )
        if np.any(fragment[atoms] >= 0) or len(np.unique(atoms)) < atoms.size:
            raise InputError(f"fragment {k} has an atom that stands twice among the fragments")
        fragment[atoms] = k
        said.append((_whole("charge", charge), _said("multiplicity", multiplicity)))
    if np.any(fragment < 0):
        raise InputError(f"atom {int(np.argmax(fragment < 0))} is in none of the fragments")
    return states_of(numbers, said, fragment, any(pbc)), fragment


def _whole(key, value):
    if type(value) is int and abs(value) <= 10_000:  # as nearly always: all that follows takes longer
        return value
    if (
        isinstance(value, bool)
        or not np.isscalar(value)
        or isinstance(value, str)
        or not np.isfinite(value)
        or value != round(value)
        or abs(value) > 10_000
    ):
        raise InputError(f"{key} is {value!r}; it must be a whole number")
    return int(value)


def _said(key, value):
    """A multiplicity; 0 where nothing is said."""
    if value is None:
        return 0
    if _whole(key, value) < 1:
        raise InputError(f"{key} is {value!r}; it is 2S + 1, 1 or more")
    return int(value)
