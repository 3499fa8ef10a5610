"""`mfmd md`: a ready-made molecular-dynamics run in OpenMM, exact to the last bit however often it is interrupted.

A run goes on in blocks of `checkpoint` ps. At each block's end positions, velocities and box are written, with the sizes of the files
that grow; the next block starts a new Context from them, with random numbers that follow from the seed and the step it begins at alone. So a run
that was killed and goes on from its last checkpoint takes the way of one that was not.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import ase.io
import numpy as np
import openmm
import openmm.app
import openmm.unit as unit
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.cell import Cell
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import LBFGS

from mfmd import Error, units
from mfmd.engine import load_model
from mfmd.hosts import openmm as host
from mfmd.structures.charge import charge_or_spin

ENSEMBLES = ("nve", "nvt", "npt")
FORMATS = {"dcd": openmm.app.DCDReporter, "xtc": openmm.app.XTCReporter, "h5": openmm.app.DCDReporter}  # what is written along the way
BAROSTAT = 100  # steps from checkpoint to checkpoint that it needs at least; it acts at every 25th
HEADER = 512  # bytes of a trajectory's beginning that its writer changes later


class MDError(Error):
    """A run cannot be made, or not gone on with; names the option or file."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run. Times in ps, the time step in fs, temperature in K, pressure in bar, friction in 1/ps."""

    model: str
    structure: str  # PDB, XYZ, extended XYZ or another format of ASE
    out: str
    ensemble: str = "nvt"
    time: float = 10.0  # of production
    timestep: float = 0.5
    temperature: float = 300.0
    pressure: float = 1.0
    friction: float = 1.0
    equilibrate: float = 0.0  # with a thermostat, before production
    minimize: bool = True
    every: float = 0.05  # between frames, and between lines of the log
    checkpoint: float = 5.0
    format: str = "dcd"
    head: str | None = None
    terms: tuple | None = None  # (head, weight) pairs
    report_heads: bool = False  # heads.csv: every head's energy, with its error bar
    host: str | None = None
    platform: str = "Reference"
    precision: str = "single"
    threads: int | None = None
    seed: int = 1

    def __post_init__(self):
        for name, known in (("ensemble", ENSEMBLES), ("format", FORMATS)):
            if getattr(self, name) not in known:
                raise MDError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.format == "h5" and not (find_spec("mdtraj") and find_spec("tables")):
            raise MDError("format is 'h5', which needs mdtraj and tables: pip install mfmd[hdf5]")
        for name in ("timestep", "temperature", "friction", "every", "checkpoint"):
            if not 0 < getattr(self, name) < math.inf:
                raise MDError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in ("time", "equilibrate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise MDError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not math.isfinite(self.pressure):
            raise MDError(f"pressure is {self.pressure}; it must be finite")
        if not 0 <= self.seed < 2**31:
            raise MDError(f"seed is {self.seed}; it must be from 0 to {2**31 - 1}")
        for name in ("checkpoint", "time"):
            if self.steps(self.every) < 1 or self.steps(getattr(self, name)) % self.steps(self.every):
                raise MDError(f"{name} ({getattr(self, name)} ps) must be a multiple of every ({self.every} ps), and that of the time step")
        if self.ensemble == "npt" and self.steps(self.checkpoint) < BAROSTAT:
            raise MDError(
                f"checkpoint ({self.checkpoint} ps) must be {BAROSTAT} steps or more with npt: the barostat begins anew after each"
            )

    def steps(self, picoseconds):
        return round(1e3 * picoseconds / self.timestep)


def run(settings, progress=lambda step, steps, rate: None):
    """Make the run, or go on with it where its last checkpoint is.

    progress : called with (step, steps, ns/day) now and then

    Returns
    -------
    dict: steps, ns_per_day (of this call; None if there was nothing left to do), temperature (K, mean), drift (meV/atom/ps, of the
    total energy; of production)

    Files in `out`: trajectory.dcd (or .xtc; with format h5 also trajectory.h5, at the end) and topology.pdb, log.csv, heads.csv, md.png, checkpoint.npz, settings.json, final.pdb

    Raises
    ------
    MDError : settings that cannot be, a structure that cannot be read, a folder that holds another run, files that do not fit the checkpoint
    """
    out, model = Path(settings.out), load_model(settings.model)
    topology, positions = read_structure(settings.structure)
    kind = settings.host or host.default_host()
    system = host.create_system(model, topology, settings.head, kind, settings.precision, settings.threads, terms=settings.terms)
    if settings.ensemble == "npt":
        if topology.getPeriodicBoxVectors() is None:
            raise MDError(f"{settings.structure} has no box, and the ensemble is npt")
        system.addForce(openmm.MonteCarloBarostat(settings.pressure * unit.bar, settings.temperature * unit.kelvin))
    atoms = np.concatenate([np.ravel(_box(topology)), np.ravel(positions), [a.element.atomic_number for a in topology.atoms()]])
    _claim(out, settings, {"host": kind, "model_sha256": model.sha256, "structure_sha256": hashlib.sha256(atoms.tobytes()).hexdigest()})
    try:
        return _run(settings, out, topology, system, positions, progress)
    except openmm.OpenMMException as error:
        raise MDError(f"{error} (a checkpoint of {out}, if there is one, is as it was)") from None


def _box(topology):
    """(3, 3) nm, or nothing."""
    box = topology.getPeriodicBoxVectors()
    return [] if box is None else np.array(box.value_in_unit(unit.nanometer))


def _run(settings, out, topology, system, positions, progress):
    if not (out / "checkpoint.npz").exists():
        _begin(settings, out, topology, system, positions)
    state = _load(out)
    _cut_back(out, json.loads(str(state["files"])))
    before, after = settings.steps(settings.equilibrate), settings.steps(settings.time)
    reporters, start, first = None, time.perf_counter(), int(state["step"])
    while (step := int(state["step"])) < before + after:
        producing = step >= before
        if producing and reporters is None:
            reporters = _reporters(settings, out, topology)
        todo = min(settings.steps(settings.checkpoint), (before + after if producing else before) - step)
        simulation = _simulation(settings, topology, system, state, thermostat=not producing or settings.ensemble != "nve")
        simulation.reporters = reporters if producing else []
        every = settings.steps(settings.every)
        for done in range(0, todo, every):
            simulation.step(min(every, todo - done))
            elapsed = time.perf_counter() - start
            made = simulation.currentStep - first
            progress(simulation.currentStep, before + after, 86400e-6 * settings.timestep * made / elapsed)
        _save(out, simulation.context)
        state = _load(out)
    made = before + after - first
    _write_pdb(out / "final.pdb", topology, state)
    if settings.format == "h5" and (out / "trajectory.dcd").exists():
        _write_hdf5(out, topology, settings)
    summary = {"steps": before + after, "ns_per_day": 86400e-6 * settings.timestep * made / (time.perf_counter() - start) if made else None}
    if (out / "log.csv").exists():
        from mfmd import report

        summary |= report.summarize_md(out / "log.csv", topology.getNumAtoms(), out / "md.png")
    return summary


# ------------------------------------------------------------------------------------------------ structures


def read_structure(path):
    """(openmm.app.Topology, positions (atoms, 3) Å) of a PDB file, or of the first structure in a file that ASE reads.

    Bonds, which a barostat needs to move molecules whole, are those of the PDB file, else between atoms within 1.2 times the sum of their
    covalent radii; a molecule that stands across the boundary is put together. A cell is turned so that it is lower triangular, as OpenMM needs it.
    """
    path = Path(path)
    if not path.exists():
        raise MDError(f"{path}: there is no such file")
    if path.suffix.lower() == ".pdb":
        pdb = host.read_pdb(path)
        topology, positions = pdb.topology, np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.angstrom))
        bonds = [(a.index, b.index) for a, b in topology.bonds()]
        positions = _molecules(positions, bonds, units.ANGSTROM_PER_NM * np.array(_box(topology)))[1]
    else:
        try:
            atoms = ase.io.read(path, index=0)
        except Exception as error:  # readers raise whatever they meet
            raise MDError(f"{path}: cannot be read as a structure ({error})") from None
        if reason := charge_or_spin(atoms.info, atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()):
            raise MDError(f"{path}: {reason}")
        topology, positions = topology_of(atoms)
    if topology.getNumAtoms() < 2:
        raise MDError(f"{path}: it takes two atoms or more for dynamics, and there are {topology.getNumAtoms()}")
    return topology, positions


def topology_of(atoms):
    """(openmm.app.Topology, positions (atoms, 3) Å) of ase.Atoms; see `read_structure`. MDError for a cell that OpenMM does not have."""
    if atoms.pbc.any() and not atoms.pbc.all():
        raise MDError("the structure is periodic in some directions only, which OpenMM does not have")
    if periodic := bool(atoms.pbc.all()):
        if abs(atoms.cell.volume) < 1e-3:
            raise MDError("the structure is periodic, and its cell has no volume")
        cell, rotation = Cell(
            atoms.cell.array * np.sign(np.linalg.det(atoms.cell.array))
        ).standard_form()  # of the same lattice, right-handed
        box = openmm.app.internal.unitcell.reducePeriodicBoxVectors([openmm.Vec3(*v) for v in cell.array] * unit.angstrom)
        atoms = Atoms(atoms.numbers, atoms.positions @ rotation.T, cell=np.array(box.value_in_unit(unit.angstrom)), pbc=True)
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    bonds = sorted({(int(min(a, b)), int(max(a, b))) for a, b in zip(first, second, strict=True) if a != b})
    molecule, positions = _molecules(atoms.positions, bonds, atoms.cell.array if periodic else [])
    # A residue a molecule where the atoms of each stand together, since a topology's atoms are in the order of its residues; else one an atom.
    together = all(np.all(np.diff(np.flatnonzero(molecule == m)) == 1) for m in set(molecule))
    topology = openmm.app.Topology()
    chain, members = topology.addChain(), []
    for k, z in enumerate(atoms.numbers):
        if not together or molecule[k] == k:
            residue = topology.addResidue("MOL", chain)
        name = f"{atoms.symbols[k]}{k - molecule[k]}" if together else atoms.symbols[k]
        members.append(topology.addAtom(name, openmm.app.Element.getByAtomicNumber(int(z)), residue))
    for a, b in bonds:
        topology.addBond(members[a], members[b])
    if periodic:
        topology.setPeriodicBoxVectors([openmm.Vec3(*v) for v in atoms.cell.array] * unit.angstrom)
    return topology, positions


def _molecules(positions, bonds, cell):
    """Of each atom the lowest index of its molecule, and positions with every molecule in one piece; cell : (3, 3), or nothing."""
    near = [[] for _ in positions]
    for a, b in bonds:
        near[a].append(b)
        near[b].append(a)
    whole, molecule = np.array(positions, float), np.full(len(positions), -1)
    inverse = np.linalg.inv(cell) if len(cell) else None
    for k in range(len(positions)):
        if molecule[k] >= 0:
            continue
        molecule[k], todo = k, [k]
        while todo:
            a = todo.pop()
            for b in near[a]:
                if molecule[b] < 0:
                    molecule[b] = k
                    todo.append(b)
                    if inverse is not None:
                        whole[b] -= np.round((whole[b] - whole[a]) @ inverse) @ cell
    return molecule, whole


def minimize(context, fmax=0.05, steps=500):
    """Relax the positions of a Context, each atom by at most 0.1 Å a step; OpenMM's own minimiser may start with steps of a nm.

    fmax : eV/Å, of the largest force; steps : at most so many
    """
    start = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    atoms = Atoms(["X"] * len(start), start, calculator=_ContextCalculator(context))
    LBFGS(atoms, maxstep=0.1, logfile=None).run(fmax=fmax, steps=steps)
    context.setPositions(atoms.positions * unit.angstrom)


class _ContextCalculator(Calculator):
    implemented_properties = ["energy", "forces"]

    def __init__(self, context):
        super().__init__()
        self.context = context

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.context.setPositions(self.atoms.positions * unit.angstrom)
        state = self.context.getState(energy=True, forces=True)
        forces = state.getForces(asNumpy=True)._value / host.FORCE_UNIT
        self.results = {"energy": state.getPotentialEnergy()._value / units.KJ_PER_MOL, "forces": forces}


# ------------------------------------------------------------------------------------------------ a run and its files


def _claim(out, settings, made_of):
    """The folder holds this run, or none; a run may be made longer."""
    now = {
        **dataclasses.asdict(settings),
        "model": str(Path(settings.model).resolve()),
        "structure": str(Path(settings.structure).resolve()),
    }
    now |= {"terms": [list(t) for t in settings.terms] if settings.terms else None, **made_of}
    del now["out"]
    path = out / "settings.json"
    if (out / "checkpoint.npz").exists():
        try:
            then = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise MDError(f"{path} cannot be read ({error}); remove the folder to start anew") from None
        if different := [key for key in now if now[key] != then.get(key) and key not in ("time", "threads")]:
            key = different[0]
            raise MDError(
                f"{out} holds a run with {key} {then.get(key)}, and now it is {now[key]}; take another folder, or remove this one"
            )
        if now["time"] < then["time"]:
            raise MDError(f"{out} holds a run of {then['time']} ps, longer than the {now['time']} ps asked for")
    elif not path.exists() and (
        foreign := [name for name in (*GROWING, "trajectory.h5", "topology.pdb", "final.pdb", "md.png") if (out / name).exists()]
    ):
        raise MDError(f"{out} has a {foreign[0]} that is no run's of mfmd md; take another folder")
    out.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(now, indent=1).encode())


def _begin(settings, out, topology, system, positions):
    integrator = openmm.VerletIntegrator(settings.timestep * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(settings.platform))
    if topology.getPeriodicBoxVectors() is not None:
        context.setPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    context.setPositions(positions * unit.angstrom)
    if settings.minimize:
        minimize(context)
    context.setVelocitiesToTemperature(settings.temperature * unit.kelvin, settings.seed)
    state = context.getState(positions=True)
    _write_pdb(out / "topology.pdb", topology, {"positions": state.getPositions(asNumpy=True)._value, "box": state.getPeriodicBoxVectors()})
    _save(out, context)


def _simulation(settings, topology, system, state, thermostat):
    step, seed = int(state["step"]), int(np.random.SeedSequence([settings.seed, int(state["step"])]).generate_state(1)[0] % 2**31)
    dt = settings.timestep * unit.femtosecond
    if thermostat:
        integrator = openmm.LangevinMiddleIntegrator(settings.temperature * unit.kelvin, settings.friction / unit.picosecond, dt)
        integrator.setRandomNumberSeed(seed)
    else:
        integrator = openmm.VerletIntegrator(dt)
    for force in system.getForces():
        if isinstance(force, openmm.MonteCarloBarostat):
            force.setRandomNumberSeed(seed)
    # The CPU platform's random numbers follow from its number of threads; the engine has threads of its own.
    properties = {"Threads": "1"} if settings.platform == "CPU" else {}
    simulation = openmm.app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName(settings.platform), properties)
    context = simulation.context
    if topology.getPeriodicBoxVectors() is not None:
        context.setPeriodicBoxVectors(*state["box"])
    context.setPositions(state["positions"])
    context.setVelocities(state["velocities"])
    context.setStepCount(step)
    context.setTime(step * dt)
    return simulation


def _reporters(settings, out, topology):
    """Of production; where files are there already, to go on with them."""
    every = settings.steps(settings.every)
    trajectory = out / ("trajectory.xtc" if settings.format == "xtc" else "trajectory.dcd")
    log, going_on = out / "log.csv", (out / "log.csv").exists()
    periodic = topology.getPeriodicBoxVectors() is not None
    state = openmm.app.StateDataReporter(
        open(log, "a", buffering=1), every, step=True, time=True, potentialEnergy=True, kineticEnergy=True, totalEnergy=True, temperature=True,
        volume=periodic, density=periodic, append=going_on,
    )  # fmt: skip
    reporters = [FORMATS[settings.format](str(trajectory), every, append=trajectory.exists(), enforcePeriodicBox=False), state]
    if settings.report_heads:
        reporters.append(
            host.HeadReporter(out / "heads.csv", every, settings.model, topology, precision=settings.precision, threads=settings.threads)
        )
    return reporters


GROWING = ("trajectory.dcd", "trajectory.xtc", "log.csv", "heads.csv")


def _save(out, context):
    state = context.getState(positions=True, velocities=True)
    files = {}
    for name in GROWING:
        if (out / name).exists():
            with open(out / name, "rb") as file:
                files[name] = {"size": os.path.getsize(out / name), "begins": file.read(HEADER).hex()}
    arrays = {
        "positions": state.getPositions(asNumpy=True)._value, "velocities": state.getVelocities(asNumpy=True)._value,
        "box": state.getPeriodicBoxVectors(asNumpy=True)._value, "step": context.getStepCount(), "files": json.dumps(files),
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    _replace(out / "checkpoint.npz", buffer.getvalue())


def _load(out):
    try:
        with np.load(out / "checkpoint.npz") as saved:
            return {name: saved[name] for name in ("positions", "velocities", "box", "step", "files")}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise MDError(f"{out / 'checkpoint.npz'} cannot be read ({error}); remove the folder to start anew") from None


def _cut_back(out, files):
    """Files as they were at the checkpoint; what was written since will be written again."""
    for name in GROWING:
        path = out / name
        if name not in files:
            path.unlink(missing_ok=True)
            continue
        size = path.stat().st_size if path.exists() else 0
        if size < files[name]["size"]:
            raise MDError(
                f"{path} has {size} bytes, and there were {files[name]['size']} at the last checkpoint; remove the folder to start anew"
            )
        with open(path, "r+b") as file:
            file.truncate(files[name]["size"])
            file.write(bytes.fromhex(files[name]["begins"]))


def _replace(path, content):
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _write_pdb(path, topology, state):
    if topology.getPeriodicBoxVectors() is not None:
        topology.setPeriodicBoxVectors(state["box"] if unit.is_quantity(state["box"]) else state["box"] * unit.nanometer)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        openmm.app.PDBFile.writeFile(topology, state["positions"] * unit.nanometer, file)
    os.replace(partial, path)


def _write_hdf5(out, topology, settings):
    """trajectory.h5 of mdtraj from trajectory.dcd: an HDF5 file that a killed run left open could not be gone on with."""
    import mdtraj

    every = settings.steps(settings.every)
    partial, step = out / "trajectory.partial.h5", settings.steps(settings.equilibrate) // every * every
    with mdtraj.formats.HDF5TrajectoryFile(str(partial), "w", force_overwrite=True) as file:
        file.topology = mdtraj.Topology.from_openmm(topology)
        for part in mdtraj.iterload(str(out / "trajectory.dcd"), top=file.topology, chunk=1000):
            steps = step + every * np.arange(1, part.n_frames + 1)
            file.write(
                part.xyz, time=1e-3 * settings.timestep * steps, cell_lengths=part.unitcell_lengths, cell_angles=part.unitcell_angles
            )
            step = steps[-1]
    os.replace(partial, out / "trajectory.h5")
