"""`mfmd md`: a ready-made molecular-dynamics run in OpenMM, exact to the last bit however often it is interrupted.

A run goes on in blocks of `checkpoint` ps. At each block's end positions, velocities and box are written, with the sizes of the files
that grow; the next block starts a new Context from them, with random numbers that follow from the seed and the step it begins at alone. So a run
that was killed and goes on from its last checkpoint takes the way of one that was not.
"""

import dataclasses
import hashlib
import json
import math
import os
import time
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openmm
import openmm.app
import openmm.unit as unit

from mfmd import Note, lock, progress, units, whole
from mfmd.engine import load_model, model_path
from mfmd.hosts import openmm as host
from mfmd.hosts import pdb, states
from mfmd.hosts.relax import minimize
from mfmd.hosts.topology import Isotope, MDError, read_start, read_structure, start_of, topology_of
from mfmd.hosts.trajectory import DCD, XTC, write_hdf5
from mfmd.reports import dynamics
from mfmd.structures.state import NEUTRAL

__all__ = ["MDError", "Settings", "minimize", "read_start", "read_structure", "run", "start_of", "topology_of"]

ENSEMBLES = ("nve", "nvt", "npt")
BAROSTAT = 100  # steps from checkpoint to checkpoint that it needs at least; it acts at every 25th
LOOK = 100  # steps between looks at whether the run is far outside what the model was trained on
HEADER = 512  # bytes of a trajectory's beginning that its writer changes later


class _Watch(host.DomainReporter):
    """Writes besides domain.csv, a line a look: step, time, grade and the error bar (eV); and into outside.xyz each structure that is farther outside than all before it."""

    def begin(self, out, stop):
        """Go on with the files of a folder, where they are there. stop : whether a structure that is far outside ends the run"""
        self.lines, self.frames, self.worst, self.stop = out / "domain.csv", out / "outside.xyz", 0, stop
        if self.lines.exists():
            self.worst = max((int(line.split(",")[2]) for line in self.lines.read_text().splitlines()[1:]), default=0)
        elif self.engine.has_domain:
            self.lines.write_text("step,time_ps,grade,error\n")

    def report(self, simulation, state):
        if not self.engine.has_domain:
            return
        step, time = simulation.currentStep, state.getTime().value_in_unit(unit.picosecond)
        positions, cell, _, errors = self.look(state, f"step {step}")
        bar = errors[self.engine.levels.index(self.head)]
        with open(self.lines, "a") as file:
            print(f"{step},{time:.6g},{self.grade},{'' if np.isnan(bar) else f'{bar:.6f}'}", file=file)
        if self.grade > self.worst:
            self.worst = self.grade
            self.write(self.frames, positions, cell, {"step": step, "outside": self.outside})
        if self.grade and self.stop:
            raise host.LeftTrainedRegion(f"far outside what the model was trained on: {self.outside}")


FORMATS = {"dcd": DCD, "xtc": XTC, "h5": DCD}  # what is written along the way


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run. Times in ps, the time step in fs, temperature in K, pressure in bar, friction in 1/ps."""

    model: str
    structure: str  # PDB, mmCIF, XYZ, extended XYZ or another format of ASE
    out: str
    continue_from: str | None = None  # folder of another run of this structure: positions, velocities and box at its last checkpoint
    ensemble: str = "nvt"
    time: float = 10.0  # of production
    timestep: float = 0.5
    temperature: float = 300.0
    pressure: float = 1.0
    friction: float = 1.0
    equilibrate: float = 0.0  # with a thermostat, before production
    minimize: bool | None = None  # None: unless there are velocities to start with, which would be lost
    every: float = 0.05  # between frames, and between lines of the log
    checkpoint: float = 5.0
    format: str = "dcd"
    head: str | None = None
    terms: tuple | None = None  # (head, weight) pairs
    report_heads: bool = False  # heads.csv: every head's energy, with its error bar
    stop_outside: bool = False  # end where the run is far outside what the model was trained on
    charge: int | None = None  # of the structure; None: what its file says, or 0
    multiplicity: int | None = None  # 2S + 1; None: what the file says, or the lowest that the electrons can have
    allow_unseen_state: bool = False  # states that a head was not trained on
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
        if self.continue_from is not None and self.minimize:
            raise MDError("continue_from and minimize exclude each other: a run that goes on keeps its positions and velocities")
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


def run(settings):
    """Make the run, or go on with it where its last checkpoint is.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    dict: looks and far (how often it was looked along the run whether it is outside what the model was trained on, and it was), steps, ns_per_day (of this call; None if there was nothing left to do), temperature (K, mean), drift (meV/atom/ps, of the
    total energy; of production)

    Files in `out`: trajectory.dcd (or .xtc; with format h5 also trajectory.h5, at the end) and topology.pdb, log.csv, heads.csv, domain.csv (how far outside of training, a line a look), outside.xyz (the structures that were), report.html, checkpoint.npz, settings.json, final.pdb

    Raises
    ------
    FolderInUse : another process runs in `out`
    MDError : settings that cannot be, a structure that cannot be read, a folder that holds another run, files that do not fit the checkpoint
    """
    home = {
        name: os.path.expanduser(getattr(settings, name))
        for name in ("model", "structure", "out", "continue_from")
        if getattr(settings, name)
    }
    settings = dataclasses.replace(settings, **home)
    out, model = Path(settings.out), load_model(settings.model)
    start = read_start(settings.structure)
    kind, said = settings.host or host.default_host(), _state_of(settings, start, model)
    system = host.create_system(
        model, start.topology, settings.head, kind, settings.precision, settings.threads, terms=settings.terms, **_spelled(settings, said)
    )
    if settings.ensemble == "npt":
        if start.topology.getPeriodicBoxVectors() is None:
            raise MDError(f"{settings.structure} has no box, and the ensemble is npt")
        if any(system.getParticleMass(k)._value == 0 for k in range(system.getNumParticles())):
            raise MDError(f"{settings.structure} has atoms that are held, which a barostat would move; take nvt, or let them go")
        system.addForce(openmm.MonteCarloBarostat(settings.pressure * unit.bar, settings.temperature * unit.kelvin))
    made_of = {"host": kind, "model_sha256": model.sha256, "structure_sha256": _sha256(start), "state": states.told(*said.states)}
    if settings.continue_from is not None and (Path(settings.continue_from).exists() or not (out / "checkpoint.npz").exists()):
        made_of["continued_sha256"] = _take_up(settings, start, made_of)
    drawn = start.velocities is None and settings.continue_from is None
    settings = dataclasses.replace(settings, minimize=drawn if settings.minimize is None else settings.minimize)
    with lock.claim(out, "mfmd md"):
        _check_same(out, settings, made_of)
        try:
            return _run(settings, out, start, system, said)
        except openmm.OpenMMException as error:
            raise MDError(f"{error} (a checkpoint of {out}, if there is one, is as it was)") from None
        except OSError as error:  # a full disk
            raise MDError(f"{error}; {_going_on(out)}") from None
        except KeyboardInterrupt as stop:
            stop.args = (_going_on(out),)
            raise


def _stopped(out, simulation, watch, at, why, step):
    """Keep the structure at which a run could not go on; the sentence that says where and why, and what there is to begin with."""
    state, parts = simulation.context.getState(positions=True), [f"step {at}: {why}"]
    if np.isfinite(state.getPositions(asNumpy=True)._value).all():
        path = out / "stopped.xyz"
        try:
            with whole.writing(path, text=True) as file:
                watch.write(file, *watch.seen(state), {"step": at, "reason": why})
            parts.append(f"{path} is the structure")
        except OSError as error:
            parts.append(f"its structure is lost: {error}")
    return f"{'; '.join(parts)}; --continue-from {out} begins at its last checkpoint, of step {step}"


def _going_on(out):
    """What is left to a user whose run ends before its time."""
    if not (out / "checkpoint.npz").exists():
        return f"{out} has no checkpoint yet, and the same command starts anew"
    return f"the same command goes on from the checkpoint of {out}, at step {int(_load(out)['step'])}"


def _state_of(settings, start, model):
    """What is states.Said of the structure: by the settings, its file, or formal charges of its topology."""
    wanted = {key: value for key in ("charge", "multiplicity") if (value := getattr(settings, key)) is not None}
    if wanted and "fragments" in start.state:
        raise MDError(
            f"{settings.structure} says the states of its fragments, and --{next(iter(wanted))} is given; leave it out, or take them out of the file"
        )
    for key, value in wanted.items():
        if start.state.get(key, value) != value:
            raise MDError(f"{settings.structure} says {key} {start.state[key]}, and --{key} is {value}; correct one of them")
    atoms, periodic = list(start.topology.atoms()), start.topology.getPeriodicBoxVectors() is not None
    return states.of_atoms(atoms, False, periodic, model.states, **(start.state | wanted))


def _spelled(settings, said):
    """The same for forces and reporters."""
    return said.arguments | {"allow_unseen_state": settings.allow_unseen_state}


def _sha256(start):
    """Of all that a run begins with; of a structure without masses and velocities of its own it is that of box, positions and elements alone."""
    elements = [a.element for a in start.topology.atoms()]
    parts = [np.ravel(_box(start.topology)), np.ravel(start.positions), [e.atomic_number for e in elements]]
    if any(isinstance(e, Isotope) for e in elements):
        parts.append([e.mass._value for e in elements])
    if start.velocities is not None:
        parts.append(np.ravel(start.velocities))
    for of in start.state.get("fragments", ()):
        parts += map(np.ravel, of)
    return hashlib.sha256(np.concatenate(parts).tobytes()).hexdigest()


def _take_up(settings, start, made_of):
    """The start of a run that goes on from another's checkpoint; returns the hash of that."""
    folder = Path(settings.continue_from)
    try:
        then = json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError) as error:
        raise MDError(f"--continue-from {folder}: no run of mfmd md is there ({error})") from None
    if then.get("structure_sha256") != made_of["structure_sha256"]:
        raise MDError(f"--continue-from {folder}: its run is not of {settings.structure}; name the structure it started from")
    if then.get("state", made_of["state"]) != made_of["state"] and settings.charge is None:
        raise MDError(
            f"--continue-from {folder}: its run had {then['state']}, and this would have {made_of['state']}; say --charge and --multiplicity"
        )
    state = _load(folder)
    start.positions, start.velocities = state["positions"] * units.ANGSTROM_PER_NM, state["velocities"] * units.ANGSTROM_PER_NM
    if start.topology.getPeriodicBoxVectors() is not None:
        start.topology.setPeriodicBoxVectors(state["box"] * unit.nanometer)
    return hashlib.sha256(b"".join(state[name].tobytes() for name in ("positions", "velocities", "box"))).hexdigest()


def _box(topology):
    """(3, 3) nm, or nothing."""
    box = topology.getPeriodicBoxVectors()
    return [] if box is None else np.array(box.value_in_unit(unit.nanometer))


def _run(settings, out, start, system, said):
    topology = start.topology
    watch = _Watch(LOOK, settings.model, topology, None, settings.precision, settings.threads, settings.head, **_spelled(settings, said))
    if settings.stop_outside and not watch.engine.has_domain:
        raise MDError(f"stop_outside: {settings.model} does not say what it was trained on; leave it out, or train the model anew")
    if not (out / "checkpoint.npz").exists():
        _begin(settings, out, start, system, watch)
    state = _load(out)
    _cut_back(out, json.loads(str(state["files"])))
    watch.begin(out, settings.stop_outside)
    before, after = settings.steps(settings.equilibrate), settings.steps(settings.time)
    reporters, began, first = None, time.perf_counter(), int(state["step"])
    with progress.task("dynamics", "steps", before + after, first) as waited:
        while (step := int(state["step"])) < before + after:
            producing = step >= before
            if producing and reporters is None:
                reporters = _reporters(settings, out, topology, said)
            todo = min(settings.steps(settings.checkpoint), (before + after if producing else before) - step)
            simulation = _simulation(settings, topology, system, state, thermostat=not producing or settings.ensemble != "nve")
            simulation.reporters = [watch, *(reporters if producing else [])]
            every = settings.steps(settings.every)
            for done in range(0, todo, every):
                try:
                    simulation.step(min(every, todo - done))
                except host.LeftTrainedRegion as left:
                    raise MDError(_stopped(out, simulation, watch, simulation.currentStep, str(left), step)) from None
                except openmm.OpenMMException as error:
                    why = f"{error}; the last look at it said: {watch.outside}" if watch.outside else str(error)
                    raise MDError(_stopped(out, simulation, watch, simulation.currentStep + 1, why, step)) from None
                elapsed = time.perf_counter() - began
                made = simulation.currentStep - first
                waited.reach(simulation.currentStep, f"{86400e-6 * settings.timestep * made / elapsed:.3g} ns/day")
            _save(out, simulation.context)
            state = _load(out)
    made = before + after - first
    _write_pdb(out / "final.pdb", topology, state, said)
    if settings.format == "h5" and (out / "trajectory.dcd").exists():
        frames = settings.steps(settings.every)
        write_hdf5(out, topology, settings.timestep, settings.steps(settings.equilibrate) // frames * frames, frames)
    looks, far = dynamics.looks(out)
    summary = {
        "looks": looks,
        "far": far,
        "steps": before + after,
        "ns_per_day": 86400e-6 * settings.timestep * made / (time.perf_counter() - began) if made else None,
    }
    if (out / "log.csv").exists():
        summary |= dynamics.summarize(out / "log.csv", topology.getNumAtoms())
    if made or not (out / "report.html").exists():
        dynamics.write(out, json.loads((out / "settings.json").read_text()), watch.numbers, summary, made)
    return summary


# ------------------------------------------------------------------------------------------------ a run and its files


def _check_same(out, settings, made_of):
    """The folder holds this run, or none; a run may be made longer."""
    now = {
        **dataclasses.asdict(settings),
        "model": str(model_path(settings.model).resolve()),
        "structure": str(Path(settings.structure).resolve()),
        "continue_from": settings.continue_from and str(Path(settings.continue_from).resolve()),
    }
    now |= {"terms": [list(t) for t in settings.terms] if settings.terms else None, **made_of}
    del now["out"]
    path = out / "settings.json"
    if (out / "checkpoint.npz").exists():
        try:
            then = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise MDError(f"{path} cannot be read ({error}); remove the folder to start anew") from None
        neutral = not settings.charge and settings.multiplicity is None
        then = {"allow_unseen_state": False, "state": now["state"] if neutral else None} | then  # of a run before there were states
        # What model and structure are, and charge and multiplicity, the hashes and the state say, wherever they are now.
        free = {"time", "threads", "stop_outside", "model", "structure", "charge", "multiplicity"}
        if now.get("continued_sha256") == then.get("continued_sha256"):
            free.add("continue_from")
        elif now["continue_from"] == then["continue_from"]:  # and that run has gone on since
            free.add("continued_sha256")
        if different := [key for key in now if now[key] != then.get(key) and key not in free]:
            key = different[0]
            raise MDError(
                f"{out} holds a run with {key} {then.get(key)}, and now it is {now[key]}; take another folder, or remove this one"
            )
        if now["time"] < then["time"]:
            raise MDError(f"{out} holds a run of {then['time']} ps, longer than the {now['time']} ps asked for; take another folder")
    elif not path.exists() and (
        foreign := [name for name in (*GROWING, "trajectory.h5", "topology.pdb", "final.pdb", "report.html") if (out / name).exists()]
    ):
        raise MDError(f"{out} has a {foreign[0]} that is no run's of mfmd md; take another folder")
    out.mkdir(parents=True, exist_ok=True)
    with whole.writing(path, text=True) as file:
        json.dump(now, file, indent=1)


def _begin(settings, out, start, system, watch):
    integrator = openmm.VerletIntegrator(settings.timestep * unit.femtosecond)
    context, topology = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(settings.platform)), start.topology
    if topology.getPeriodicBoxVectors() is not None:
        context.setPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    context.setPositions(start.positions * unit.angstrom)
    watch.look(context.getState(positions=True), f"{settings.structure}, as it is")
    if settings.minimize:
        minimize(context)
    if start.velocities is None or settings.minimize:
        context.setVelocitiesToTemperature(settings.temperature * unit.kelvin, settings.seed)
    else:
        context.setVelocities(start.velocities / units.ANGSTROM_PER_NM)
    if start.velocities is not None:
        warnings.warn(_told_of_velocities(settings, context), Note, stacklevel=4)
    state = context.getState(positions=True)
    _write_pdb(
        out / "topology.pdb",
        topology,
        {"positions": state.getPositions(asNumpy=True)._value, "box": state.getPeriodicBoxVectors()},
        watch.said,
    )
    _save(out, context)


def _told_of_velocities(settings, context):
    if settings.minimize:
        return f"velocities of {settings.structure} are not used: it is minimised, and new ones are drawn at {settings.temperature:g} K"
    system = context.getSystem()
    free = 3 * sum(system.getParticleMass(k)._value > 0 for k in range(system.getNumParticles()))
    free -= 3 * any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    kelvin = 2 * context.getState(energy=True).getKineticEnergy() / (free * unit.MOLAR_GAS_CONSTANT_R)
    return f"velocities are those of {settings.continue_from or settings.structure}, of {kelvin.value_in_unit(unit.kelvin):.0f} K, and nothing is minimised"


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


def _reporters(settings, out, topology, said):
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
            host.HeadReporter(
                out / "heads.csv",
                every,
                settings.model,
                topology,
                precision=settings.precision,
                threads=settings.threads,
                **_spelled(settings, said),
            )
        )
    return reporters


GROWING = ("trajectory.dcd", "trajectory.xtc", "log.csv", "heads.csv", "domain.csv", "outside.xyz")


def _save(out, context):
    lock.check(out)
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
    with whole.writing(out / "checkpoint.npz") as file:
        np.savez(file, **arrays)


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


def _write_pdb(path, topology, state, said):
    if topology.getPeriodicBoxVectors() is not None:
        topology.setPeriodicBoxVectors(state["box"] if unit.is_quantity(state["box"]) else state["box"] * unit.nanometer)
    isotopes = [a.element for a in topology.atoms() if isinstance(a.element, Isotope)]
    held, other = sum(e.mass._value == 0 for e in isotopes), sum(e.mass._value > 0 and e.unusual for e in isotopes)
    with whole.writing(path, text=True) as file:
        parts = len(said.states) if len(said.states) > 1 else 0
        for n, what in ((held, "held atoms"), (other, "atoms with masses of their own"), (parts, "fragments with states of their own")):
            if n:
                file.write(f"{pdb.TOLD}{n} {what}\n")
        if parts:
            file.write(f"{pdb.STATE}charge {sum(one.charge for one in said.states)}\n")
        elif said.states[0] != NEUTRAL:
            file.write(f"{pdb.STATE}charge {said.states[0].charge} multiplicity {said.states[0].multiplicity}\n")
        pdb.write(file, topology, state["positions"] * unit.nanometer)
