"""OpenMM: `mfmd.openmm.create_force` and `create_system`, through a native force, TorchForce or PythonForce.

Positions come in nm and leave as kJ/mol; the conversion stands here, in csrc/hosts/openmm.cpp and in the archive that TorchForce runs.
"""

import base64
import importlib.metadata
import importlib.util
import json
import warnings
from xml.etree import ElementTree

import ase
import ase.io
import numpy as np
import openmm
import openmm.app
import openmm.unit as unit
import openmm.version
from ase.data import chemical_symbols

from mfmd import Error, units
from mfmd.engine import LIBRARY_DIR, Alarm, Engine, HostError, InputError, load_model
from mfmd.hosts import pdb, states
from mfmd.hosts.torchforce import load_torchforce, script, torch_force  # noqa: F401  load_torchforce is public here

LAMBDA = "mfmd_lambda"  # the global parameter that leads from the first of two heads (0) to the second (1)


def create_force(
    model,
    topology,
    atoms=None,
    head=None,
    host=None,
    precision="single",
    threads=None,
    *,
    heads=None,
    terms=None,
    parameters=None,
    periodic=None,
    charge=None,
    multiplicity=None,
    fragments=None,
    allow_unseen_state=False,
):
    """An OpenMM Force that evaluates one head of a model, two heads and the way between them, or any weighted sum of heads.

    Parameters
    ----------
    model : path of a `model.pt`
    topology : openmm.app.Topology, whose elements and bonds are read
    atoms : indices of the atoms the model acts on (it sees no others); None for all
    head : level of theory; None for the highest the model has
    host : "native" (a plugin of mfmd, without torch and Python in the step; platforms Reference and CPU), "torch" (TorchForce, needs
        openmmtorch) or "python" (PythonForce, needs openmm 8.5 or newer); None for native, or torch where native was not compiled and openmmtorch is there
    precision : "single" or "double", of the engine
    threads : at most this many; None for every core of the process
    heads : two levels (a, b): E = (1 - λ) E_a + λ E_b, λ being the global parameter `mfmd_lambda`, by default 1. All energies and
        forces come from one forward and one reverse pass. State.getEnergyParameterDerivatives() has dE/dλ = E_b − E_a (not with "python")
    terms : (head, weight) or (head, weight, parameter) each: E = sum of weight · E_head, times the value of the global parameter if one is named
    parameters : {global parameter: default} of the terms
    periodic : whether the box of the Context counts; None where the topology has one
    charge : of the atoms, elementary charges; None for the sum of the formal charges that the topology says, or 0
    multiplicity : 2S + 1; None for the lowest that the electrons can have (of a whole periodic topology 1)
    fragments : instead of these [(atoms of the topology, charge, multiplicity), …], each atom of the model being of one
    allow_unseen_state : whether charges and multiplicities that a head was not trained on are evaluated all the same

    Raises
    ------
    ModelFileError : the model cannot be read
    InputError : unknown head or host, atoms that do not exist, an atom without element or of one that a head was not trained on, a parameter
        without default, a charge that formal charges contradict, or that nothing says of a part with an odd number of electrons, a multiplicity that
        the electrons cannot have
    HostError : the host is not installed, or in a version that does not work
    """
    model = load_model(model)
    evaluated = Evaluated(
        model,
        topology,
        atoms,
        _terms(model, head, heads, terms),
        parameters or ({LAMBDA: 1.0} if heads else {}),
        precision,
        threads,
        periodic,
        {"charge": charge, "multiplicity": multiplicity, "fragments": fragments},
        allow_unseen_state,
    )
    host = default_host() if host is None else host
    if host not in _HOSTS:
        raise InputError(f"host is {host!r}; it must be one of {', '.join(_HOSTS)}")
    force = _HOSTS[host](evaluated)
    force.setName("mfmd")
    return force


def create_system(model, topology, head=None, host=None, precision="single", threads=None, remove_cm_motion=True, **more):
    """An OpenMM System of a whole topology: masses, box, the model's force, and no constraints.

    Parameters as for `create_force`; `remove_cm_motion` adds a CMMotionRemover, as OpenMM's ForceField does, unless atoms are held (mass 0).
    """
    force = create_force(model, topology, None, head, host, precision, threads, **more)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    system.addForce(force)
    if remove_cm_motion and all(atom.element.mass._value > 0 for atom in topology.atoms()):
        system.addForce(openmm.CMMotionRemover())
    return system


def default_host():
    """Of create_force: native, or torch where native was not compiled for this OpenMM and openmmtorch is there."""
    return "torch" if not native_library().exists() and importlib.util.find_spec("openmmtorch") else "native"


class Evaluated:
    """What a force evaluates: which atoms of a topology, and which weighted heads; checked once, for every host.

    Attributes: model; numbers (atoms,) int32; chosen, indices or None for all; atoms, how many the topology has; bonds within the chosen;
    said, the states.Said of the chosen; terms, of (head index, weight, parameter or ""); parameters; periodic; precision; threads; allow_unseen_state
    """

    def __init__(self, model, topology, atoms, terms, parameters, precision, threads, periodic=None, state=None, allow_unseen_state=False):
        if precision not in ("single", "double"):
            raise InputError(f"precision is {precision!r}; it must be 'single' or 'double'")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        if missing := {name for _, _, name in terms if name} - set(parameters):
            raise InputError(f"terms have the parameter {', '.join(sorted(missing))}, for which `parameters` gives no default")
        self.model, self.terms, self.precision, self.threads = model, terms, precision, threads
        self.parameters = {name: float(value) for name, value in parameters.items()}
        self.periodic = topology.getPeriodicBoxVectors() is not None if periodic is None else periodic
        self.allow_unseen_state = bool(allow_unseen_state)
        self.numbers, self.chosen, self.said = _atoms(topology, atoms, self.periodic, model.states, state)
        _check_elements(model, [head for head, _, _ in terms], self.numbers, self.chosen)
        self.atoms = topology.getNumAtoms()
        mine = set(range(self.atoms) if self.chosen is None else self.chosen)
        self.bonds = [(a.index, b.index) for a, b in topology.bonds() if a.index in mine and b.index in mine]


def _terms(model, head, heads, terms):
    """[(head index, weight, parameter or "")]"""
    if sum(given is not None for given in (head, heads, terms)) > 1:
        raise InputError("give only one of head, heads and terms")
    if heads is not None:
        if len(heads) != 2:
            raise InputError(f"heads are two levels, from the first to the second; found {list(heads)}")
        first, second = heads
        terms = [(first, 1.0), (first, -1.0, LAMBDA), (second, 1.0, LAMBDA)]
    elif terms is None:
        terms = [(model.levels[-1] if head is None else head, 1.0)]
    if not terms:
        raise InputError("terms are empty; name a head and a weight")
    if wrong := [weight for _, weight, *_ in terms if not np.isfinite(weight)]:
        raise InputError(f"the weight of a term is {wrong[0]}; it must be finite")
    return [(model.level(name), float(weight), parameter[0] if parameter else "") for name, weight, *parameter in terms]


def _check_elements(model, heads, numbers, chosen):
    """That every head, and those it is relative to, was trained on the elements."""
    levels = {level["name"]: level for level in json.loads(model.metadata)["levels"]}
    for index in heads:
        chain = [model.levels[index]]
        while parent := levels[chain[0]].get("delta_of"):
            chain.insert(0, parent)
        for name in chain:
            known = levels[name]["elements"]
            if len(unknown := np.flatnonzero(~np.isin(numbers, known))):
                k = unknown[0] if chosen is None else chosen[unknown[0]]
                raise InputError(
                    f"atom {k} is {chemical_symbols[numbers[unknown[0]]]}, and head {name} was trained on "
                    f"{' '.join(chemical_symbols[z] for z in known)} only; take a model that has learned the element"
                )


def native_library():
    """Where the native force's plugin for the installed OpenMM is, or would be: releases of one minor version have it in common."""
    return LIBRARY_DIR / f"libmfmd_openmm-{'.'.join(openmm.version.short_version.split('.')[:2])}.so"


def load_native():
    """Make the native force usable in this process; needed before a System that holds one is deserialised.

    Raises
    ------
    HostError : it was compiled for another OpenMM or mfmd, or not at all
    """
    library = native_library()
    if not library.exists():
        raise HostError(f"the native force was not compiled for openmm {openmm.version.short_version}; run `mfmd build-host openmm`")
    if str(library) in _loaded:
        return
    try:
        openmm.Platform.loadPluginLibrary(str(library))
    except openmm.OpenMMException as error:
        raise HostError(f"the native force does not load ({error}); run `mfmd build-host openmm`") from None
    _loaded.add(str(library))
    if "CUDA" in (openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())):
        on_cuda = LIBRARY_DIR / f"libmfmd_openmm_cuda-{openmm.version.short_version}.so"
        if on_cuda.exists():
            try:
                openmm.Platform.loadPluginLibrary(str(on_cuda))
            except openmm.OpenMMException as error:
                _loaded.discard(str(library))
                raise HostError(
                    f"the native force does not load on the platform CUDA ({error}); run `mfmd build-host openmm_cuda`"
                ) from None
        else:
            warnings.warn("the native force was not compiled for OpenMM's platform CUDA; run `mfmd build-host openmm_cuda`", stacklevel=2)


_loaded = set()


def _native_force(e):
    """The XML that csrc/hosts/openmm.cpp reads."""
    load_native()
    chosen = range(e.atoms) if e.chosen is None else e.chosen
    node = ElementTree.Element(
        "Force", type="MfmdForce", version="2", forceGroup="0", name="mfmd", periodic=str(int(e.periodic)), single=str(int(e.precision == "single")),
        threads=str(e.threads or 0), atoms=_words(chosen), numbers=_words(e.numbers), bonds=_words(a for bond in e.bonds for a in bond),
        states=_words(a for state in e.said.states for a in state), fragment=_words(e.said.fragment), allowUnseenState=str(int(e.allow_unseen_state)),
    )  # fmt: skip
    terms = ElementTree.SubElement(node, "Terms")
    for head, weight, parameter in e.terms:
        ElementTree.SubElement(terms, "Term", head=str(head), weight=repr(weight), parameter=parameter)
    parameters = ElementTree.SubElement(node, "Parameters")
    for name, value in e.parameters.items():
        ElementTree.SubElement(parameters, "Parameter", name=name, default=repr(value))
    ElementTree.SubElement(node, "Model", safetensors=base64.b64encode(e.model.bytes).decode())
    return openmm.XmlSerializer.deserialize(ElementTree.tostring(node, encoding="unicode"))


def _words(values):
    return " ".join(str(int(v)) for v in values)


class DomainReporter:
    """For Simulation.reporters: a warning (mfmd.Extrapolation) at the first structure that is far outside what the model was trained on,
    and again at one that is twice as far. `looks` and `far` count them; `grade` and `outside` are those of the last look (see Engine.compute).

    Parameters
    ----------
    interval : steps between looks; each is an evaluation without forces
    model, topology, atoms, precision, threads : as for `create_force`
    head : level whose error bar is told with it, where it has one; None for the highest
    state : charge, multiplicity, fragments and allow_unseen_state, as for `create_force`
    """

    def __init__(
        self, interval, model, topology, atoms=None, precision="single", threads=None, head=None, *, allow_unseen_state=False, **state
    ):
        self.engine = Engine(model, precision, threads=threads, allow_unseen_state=allow_unseen_state)
        self.interval, self.alarm, self.looks, self.far, self.grade, self.outside = interval, Alarm(), 0, 0, 0, None
        self.periodic = topology.getPeriodicBoxVectors() is not None
        self.numbers, self.chosen, self.said = _atoms(topology, atoms, self.periodic, self.engine.states, state)
        self.head = self.engine.levels[-1] if head is None else head
        self.engine.terms([(self.head, 1.0)])

    def describeNextReport(self, simulation):
        return {"steps": self.interval - simulation.currentStep % self.interval, "periodic": False, "include": ["positions"]}

    def report(self, simulation, state):
        if self.engine.has_domain:
            self.look(state, f"step {simulation.currentStep}")

    def look(self, state, when):
        """Energies, error bars and whether it is far outside, of an openmm.State; told with `when` it was."""
        positions, cell = self.seen(state)
        terms = [(self.head, 1.0)] + [(level, 0.0) for level in self.engine.levels]
        (out,) = self.engine.compute_batch(
            [(positions, self.numbers, cell, (self.periodic,) * 3)],
            states=[self.said.spelled],
            terms=terms,
            forces=False,
            error_bars=True,
            domain=True,
        )
        self.looks, self.far = self.looks + 1, self.far + bool(out["grade"])
        self.grade, self.outside = out["grade"], out["outside"]
        self.alarm.tell(out, self.head, out["term_errors"][0], f"{when}: ")
        return positions, cell, out["term_energies"][1:], out["term_errors"][1:]

    def seen(self, state):
        """Positions and cell, Å, of an openmm.State"""
        return _seen(state, self.chosen, self.periodic)

    def write(self, path, positions, cell, info):
        """Append a structure to an extended XYZ file, by its path or open, with its state where it is not neutral and closed-shell."""
        atoms = ase.Atoms(self.numbers, positions, cell=cell, pbc=self.periodic, info=info)
        ase.io.write(path, self.said.mark(atoms), format="extxyz", append=True)


class HeadReporter(DomainReporter):
    """For Simulation.reporters: a CSV line with every head's energy (eV) and, where it has one, its error bar (eV). Warns as DomainReporter.

    Parameters
    ----------
    file : path, appended to
    interval : steps between lines
    model, topology, atoms, precision, threads, state : as for DomainReporter
    head : level whose error bar is watched; None for the highest
    limit : eV; a structure whose error bar is larger is outside what the model was trained on. None watches nothing
    frames : extended XYZ file that such structures are appended to, for `mfmd label`; their error bar stands in info["energy_error"]
    stop : raise LeftTrainedRegion at the first such structure

    Raises
    ------
    InputError : a limit, and the head has no error bars
    """

    def __init__(
        self,
        file,
        interval,
        model,
        topology,
        atoms=None,
        precision="single",
        threads=None,
        head=None,
        limit=None,
        frames=None,
        stop=False,
        **state,
    ):
        super().__init__(interval, model, topology, atoms, precision, threads, head, **state)
        self.limit, self.stop, self.frames = limit, stop, frames
        self.with_bars = self.engine.with_error_bars
        if limit is not None and self.head not in self.with_bars:
            raise InputError(
                f"head {self.head} has no error bars to compare with a limit; fit it by Gauss-Newton or in closed form, or train with heads_per_level"
            )
        self.file = open(file, "a", buffering=1)
        if self.file.tell() == 0:
            print(",".join(["step", "time_ps", *self.engine.levels, *(f"{k}_error" for k in self.with_bars)]), file=self.file)

    def report(self, simulation, state):
        levels = self.engine.levels
        positions, cell, energies, errors = self.look(state, f"step {simulation.currentStep}")
        energies, errors = dict(zip(levels, energies, strict=True)), dict(zip(levels, errors, strict=True))
        time = state.getTime().value_in_unit(unit.picosecond)
        print(
            f"{simulation.currentStep},{time:.6g},"
            + ",".join([f"{energies[k]:.8f}" for k in levels] + [f"{errors[k]:.6f}" for k in self.with_bars]),
            file=self.file,
        )
        if self.limit is None or errors[self.head] <= self.limit:
            return
        if self.frames is not None:
            self.write(self.frames, positions, cell, {"energy_error": errors[self.head], "step": simulation.currentStep})
        if self.stop:
            raise LeftTrainedRegion(
                f"step {simulation.currentStep}: the error bar of {self.head} is {errors[self.head]:.3f} eV, above {self.limit} eV"
            )


class LeftTrainedRegion(Error):
    """A run has met a structure whose error bar is above the limit of a HeadReporter, or that is far outside what the model was trained on."""


def write_archive(path, model, topology, head=None, precision="single", threads=None, *, allow_unseen_state=False, **state):
    """Write what TorchForce runs (nm and kJ/mol, atomic numbers baked in) to a file, for programs that load it themselves.

    topology : openmm.app.Topology, or the path of a PDB file
    state : charge, multiplicity and fragments, as for `create_force`; they are in the archive, and `mfmd info` shows them

    Returns
    -------
    whether the topology is periodic; TorchForce.setUsesPeriodicBoundaryConditions must be told the same
    """
    from mfmd.training import export

    if not isinstance(topology, openmm.app.Topology):
        said, given = pdb.state_said(topology), {key: value for key, value in state.items() if value is not None}
        if wrong := [key for key in said.keys() & given.keys() if said[key] != given[key]]:
            raise InputError(f"{topology} says {wrong[0]} {said[wrong[0]]}, and {wrong[0]} is {given[wrong[0]]}; correct one of them")
        state = said | given
        topology, _ = pdb.read_pdb(topology)
    model = load_model(model)
    evaluated = Evaluated(model, topology, None, _terms(model, head, None, None), {}, precision, threads, None, state, allow_unseen_state)
    export.write_archive(path, script(evaluated), model.bytes, **{states.ENTRY: states.archived(*evaluated.said)})
    return evaluated.periodic


def _atoms(topology, atoms, periodic, seen, state):
    """Atomic numbers of the atoms the model acts on, their indices (None for all), and what is Said of their states; seen, state : as for states.of_atoms."""
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
    said = states.of_atoms(picked, len(picked) < len(everything), periodic, seen, **(state or {}))
    return np.array([atom.element.atomic_number for atom in picked], np.int32), chosen, said


def _seen(state, chosen, periodic):
    """Of an openmm.State what the model sees: positions (atoms, 3) Å, and the cell (3, 3) Å or None."""
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom) if periodic else None
    return positions if chosen is None else positions[chosen], cell


def _python_force(e):
    if not hasattr(openmm, "PythonForce"):
        raise HostError(f"host='python' needs openmm 8.5 or newer, and {openmm.__version__} is installed")
    terms = [(e.model.levels[head], weight, parameter) for head, weight, parameter in e.terms]
    picks = hasattr(openmm.PythonForce, "setParticles")  # since openmm 8.6 it hands over some atoms alone, and takes theirs alone
    compute = PythonEvaluation(
        e.model.bytes,
        e.numbers,
        None if picks else e.chosen,
        terms,
        e.precision,
        e.threads,
        e.periodic,
        e.said.spelled,
        e.allow_unseen_state,
    )
    force = openmm.PythonForce(compute, e.parameters)
    if picks and e.chosen is not None:
        force.setParticles(e.chosen)
    force.setUsesPeriodicBoundaryConditions(e.periodic)
    return force


class PythonEvaluation:
    """What PythonForce calls; pickled with the System, model included."""

    def __init__(self, content, numbers, chosen, terms, precision, threads, periodic, state=None, allow_unseen_state=False):
        self.arguments = (content, numbers, chosen, terms, precision, threads, periodic, state, allow_unseen_state)
        self.engine = None

    def __getstate__(self):
        return self.arguments

    def __setstate__(self, arguments):
        self.__init__(*arguments)

    def __call__(self, state):
        content, numbers, chosen, terms, precision, threads, periodic, said, allow_unseen_state = self.arguments
        if self.engine is None:
            self.engine = Engine(content, precision, threads=threads, allow_unseen_state=allow_unseen_state)
        picked, cell = _seen(state, chosen, periodic)
        values = state.getParameters()
        weighted = [(head, weight * (values[parameter] if parameter else 1.0)) for head, weight, parameter in terms]
        (out,) = self.engine.compute_batch([(picked, numbers, cell, (periodic,) * 3)], states=[said], terms=weighted)
        forces = out["forces"]
        if chosen is not None:
            forces = np.zeros((len(state.getPositions(asNumpy=True)), 3))
            forces[chosen] = out["forces"]
        return out["energy"] * units.KJ_PER_MOL, forces * units.KJ_PER_MOL_NM


_HOSTS = {"native": _native_force, "torch": torch_force, "python": _python_force}
