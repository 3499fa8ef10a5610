"""Makes labels: samples structures by molecular dynamics and labels them with tblite (GFN1-xTB, GFN2-xTB) and PySCF (HF, DFT, MP2, CCSD, CCSD(T)).

out/trajectories/*.xyz   sampled structures, one trajectory a file
out/labels.jsonl         every label as soon as it is there, failed ones with their reason; where a killed run goes on
out/{train,val,test}.xyz, out/atoms.json   what mfmd-train reads: energy_<level> and forces_<level>, eV and Å
"""

import concurrent.futures
import importlib
import json
import multiprocessing
import os
import re
import warnings
import zlib
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Literal

import ase.build
import ase.io
import numpy as np
from ase.data import atomic_numbers, ground_state_magnetic_moments
from pydantic import Field, field_validator, model_validator
from rich.progress import track

from mfmd import Error, units
from mfmd.engine import charge_or_spin
from mfmd.plan import NotNegative, Positive, Section, write_json

HARTREE, BOHR = units.ENERGY["Hartree"], units.LENGTH["Bohr"]  # eV, Å
XTB = ("GFN1-xTB", "GFN2-xTB")
CORRELATED = ("mp2", "ccsd", "ccsd(t)")
ISOLATED = "isolated "  # and the element: the id of an atom's energies
SPLITS = ("train", "val", "test")


class LabelError(Error):
    """Structures or labels cannot be made; names what and why."""


class Method(Section):
    """One calculation of quantum chemistry."""

    method: str  # GFN1-xTB, GFN2-xTB, hf, mp2, ccsd, ccsd(t), or a functional by its name in PySCF
    basis: str | None = None  # by its name in PySCF; xTB has its own
    cartesian: bool = False  # d functions and up
    density_fitting: bool = False  # of Hartree-Fock or Kohn-Sham
    grid: Annotated[int, Field(ge=0, le=9)] = 3  # of the functional, PySCF's levels
    frozen_core: bool = True  # of correlated methods

    @model_validator(mode="after")
    def _has_a_basis(self):
        if (self.method in XTB) != (self.basis is None):
            raise ValueError(f"basis: {self.method} {'has a basis of its own' if self.method in XTB else 'needs one'}")
        return self


class Correction(Method):
    """A further calculation that counts in a level's energy."""

    coefficient: float = 1.0


class Level(Method):
    """One level of theory."""

    corrections: list[Correction] = []  # added to it, such as MP2 in a large basis and, times -1, in a small one
    forces: Literal["all", "test", "none"] = "all"
    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] = (
        1.0  # labelled of train and val: a share, or how many; test is whole
    )


class Sampling(Section):
    """Langevin dynamics from every structure, at every temperature; each split from a trajectory of its own."""

    method: Literal[XTB] = "GFN2-xTB"
    temperatures: Annotated[list[Positive], Field(min_length=1)] = [300.0, 500.0, 700.0]  # K
    train: Annotated[int, Field(ge=0)] = 20  # frames of a trajectory
    val: Annotated[int, Field(ge=0)] = 2
    test: Annotated[int, Field(ge=0)] = 5
    interval: Positive = 50.0  # fs between frames
    equilibration: NotNegative = 250.0  # fs before the first
    timestep: Positive = 0.5  # fs
    friction: Positive = 0.02  # 1/fs


class Config(Section):
    out: Path
    seed: int = 0
    structures: Annotated[list[str], Field(min_length=1)]  # files that ASE reads, or names of molecules in ase.build.molecule
    sampling: Sampling | None = None  # without it the structures are labelled as they are
    levels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Level]  # cheapest first
    workers: Annotated[int, Field(ge=1)] = os.cpu_count() or 1

    @field_validator("structures", mode="before")
    @classmethod
    def _one(cls, value):
        return [value] if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------ one label


def label(level, atoms, forces=True):
    """Energy of a structure at a level, and its forces and stress.

    Parameters
    ----------
    level : Level; atoms : ase.Atoms; forces : False for the energy alone

    Returns
    -------
    {"energy": eV, "forces": (atoms, 3) eV/Å or absent, "stress": (6,) eV/Å³ Voigt, of periodic structures}

    Raises
    ------
    LabelError : not converged, no analytic forces, a periodic structure with a method for molecules, a charge or an open shell
    """
    if reason := charge_or_spin(atoms.info, atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()):
        raise LabelError(reason)
    if atoms.numbers.sum() % 2:
        raise LabelError(f"{atoms.get_chemical_formula()} has an odd number of electrons, and only closed shells are labelled")
    total = {}
    for method, coefficient in ((level, 1.0), *((c, c.coefficient) for c in level.corrections)):
        part = _xtb(method, atoms) if method.method in XTB else _pyscf(method, atoms, forces)
        for kind, value in part.items():
            total[kind] = total.get(kind, 0.0) + coefficient * np.asarray(value)
    return {kind: value for kind, value in total.items() if forces or kind == "energy"}


def _xtb(method, atoms, unpaired=0):
    from tblite.interface import Calculator

    periodic = {"lattice": atoms.cell.array / BOHR, "periodic": atoms.pbc} if atoms.pbc.any() else {}
    positions = atoms.positions / BOHR
    calculator = Calculator(method.method, atoms.numbers, positions, uhf=unpaired if unpaired else None, **periodic)
    calculator.set("verbosity", 0)
    try:
        result = calculator.singlepoint()
    except RuntimeError as error:
        raise LabelError(f"{method.method}: {error}") from None
    out = {"energy": float(result["energy"]) * HARTREE, "forces": -result["gradient"] * HARTREE / BOHR}
    if atoms.pbc.all():
        out["stress"] = units.voigt(result["virial"]) * HARTREE / atoms.cell.volume
    return out


def _pyscf(method, atoms, forces, unpaired=0):
    import pyscf
    from pyscf.data.elements import chemcore

    if atoms.pbc.any():
        raise LabelError(f"{method.method}/{method.basis} is for molecules, and the structure is periodic")
    geometry = list(zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True))
    molecule = pyscf.M(atom=geometry, unit="Å", basis=method.basis, cart=method.cartesian, spin=unpaired, verbose=0)
    correlated = method.method in CORRELATED
    if correlated or method.method == "hf":
        field = pyscf.scf.UHF(molecule) if unpaired else pyscf.scf.RHF(molecule)
    else:
        field = pyscf.dft.UKS(molecule, xc=method.method) if unpaired else pyscf.dft.RKS(molecule, xc=method.method)
        field.grids.level = method.grid
    if method.density_fitting:
        field = field.density_fit()
    field.kernel()
    if not field.converged:
        raise LabelError(f"{method.method}/{method.basis}: the self-consistent field has not converged")
    energy, solver = field.e_tot, field
    if correlated:
        frozen = chemcore(molecule) if method.frozen_core else 0
        solver = pyscf.mp.MP2(field, frozen=frozen) if method.method == "mp2" else pyscf.cc.CCSD(field, frozen=frozen)
        solver.kernel()
        if method.method != "mp2" and not solver.converged:
            raise LabelError(f"{method.method}/{method.basis}: coupled cluster has not converged")
        energy = solver.e_tot
        if method.method == "ccsd(t)":
            energy += solver.ccsd_t()
    out = {"energy": float(energy) * HARTREE}
    if forces:
        if method.method == "ccsd(t)":
            from pyscf.cc import ccsd_t_lambda
            from pyscf.grad.ccsd_t import Gradients

            integrals = solver.ao2mo()
            converged, l1, l2 = ccsd_t_lambda.kernel(solver, integrals, solver.t1, solver.t2, verbose=0)
            if not converged:
                raise LabelError(f"{method.method}/{method.basis}: the lambda equations have not converged")
            gradient = Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
        else:
            try:
                gradients = solver.nuc_grad_method()
            except NotImplementedError:
                raise LabelError(f"{method.method}/{method.basis} with density fitting has no analytic forces; set forces: none") from None
            gradients.grid_response = True  # so that forces are the slope of the energy, whatever the grid
            gradient = gradients.kernel()
        out["forces"] = -gradient * HARTREE / BOHR
    return out


def isolated(level, symbol):
    """{"energy": eV} of an isolated atom in its ground state, spin-polarised."""
    unpaired = round(ground_state_magnetic_moments[atomic_numbers[symbol]])
    atom, energy = ase.Atoms(symbol), 0.0
    for method, coefficient in ((level, 1.0), *((c, c.coefficient) for c in level.corrections)):
        part = _xtb(method, atom, unpaired) if method.method in XTB else _pyscf(method, atom, False, unpaired)
        energy += coefficient * part["energy"]
    return {"energy": energy}


# ------------------------------------------------------------------------------------------------ sampling


def read_structures(config):
    """The structures of the config as ase.Atoms, each with the info keys molecule and split (train where the file says nothing)."""
    out = []
    for name in config.structures:
        if Path(name).exists():
            try:
                frames = ase.io.read(name, ":")
            except Exception as error:  # ASE raises many kinds on a damaged file
                raise LabelError(f"structures: {name} cannot be read ({error})") from error
            for k, atoms in enumerate(frames):
                atoms.calc = None
                atoms.info.setdefault("id", f"{Path(name).stem}-{k}")
                atoms.info.setdefault("molecule", Path(name).stem if len(frames) == 1 else atoms.get_chemical_formula())
                out.append(atoms)
        else:
            try:
                atoms = ase.build.molecule(name)
            except (KeyError, NotImplementedError):
                raise LabelError(f"structures: {name!r} is neither a file nor a molecule that ase.build.molecule knows") from None
            out.append(atoms)
            atoms.info |= {"id": name, "molecule": name}
    for atoms in out:
        atoms.info.setdefault("split", "train")
        if atoms.info["split"] not in SPLITS:
            raise LabelError(
                f"structures: the info key split of {atoms.info['id']} is {atoms.info['split']!r}; it must be {', '.join(SPLITS)}"
            )
    return out


def _trajectories(config):
    """(file, start, split, temperature, seed) of every trajectory to be sampled."""
    folder = config.out.resolve() / "trajectories"
    for atoms in read_structures(config):
        for temperature in config.sampling.temperatures:
            for split in SPLITS:
                if getattr(config.sampling, split):
                    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{atoms.info['id']}-{split}-{temperature:g}")
                    yield folder / f"{name}.xyz", atoms, split, temperature, zlib.crc32(f"{config.seed} {name}".encode())


def _simulate(sampling, path, start, split, temperature, seed):
    """One trajectory by Langevin dynamics, written when it is whole."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.units import fs
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.calc = TBLite(method=sampling.method, verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    md = Langevin(atoms, sampling.timestep * fs, temperature_K=temperature, friction=sampling.friction / fs, fixcm=False, rng=rng)
    md.run(round(sampling.equilibration / sampling.timestep))
    frames = []
    for k in range(getattr(sampling, split)):
        md.run(round(sampling.interval / sampling.timestep))
        frame = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        frame.info = {"id": f"{path.stem}-{k:04d}", "molecule": start.info["molecule"], "split": split, "temperature": temperature}
        frames.append(frame)
    partial = path.with_suffix(".partial")
    ase.io.write(partial, frames, format="extxyz")
    os.replace(partial, path)


# ------------------------------------------------------------------------------------------------ many labels


def _guarded(function, arguments):
    """The result of a task, or its failure in words."""
    try:
        return function(*arguments), None
    except Exception as error:  # whatever a quantum-chemistry code raises is that structure's failure, not the run's
        return None, f"{type(error).__name__}: {error}"


def _alone():
    """A worker computes on one thread; the run has as many workers as it has cores."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def in_parallel(tasks, workers):
    """Yield (key, result, error) of tasks (key, function, arguments) as they end; one whose process dies is an error of its own."""
    tasks, suspects = list(tasks), []
    for batch, size in ((tasks, workers), (suspects, 1)):
        while batch:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(size, mp_context=context, initializer=_alone) as pool:
                waiting, queue = {}, list(batch)
                batch.clear()
                try:
                    while queue or waiting:
                        while queue and len(waiting) < size:
                            task = queue.pop(0)
                            waiting[pool.submit(_guarded, *task[1:])] = task
                        done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                        for future in done:
                            result, error = future.result()
                            yield waiting.pop(future)[0], result, error
                except BrokenProcessPool:  # which of the tasks under way it was shows when they run one at a time
                    batch.extend(queue)
                    if batch is tasks:
                        suspects.extend(waiting.values())
                    else:
                        for key, *_ in waiting.values():
                            yield key, None, "the process that computed it died"


def on_cluster(tasks, scheduler):
    """As `in_parallel`, on the workers of a Dask scheduler (its address). What a lost worker had under way is computed by another."""
    from distributed import Client, as_completed
    from distributed.scheduler import KilledWorker

    with Client(scheduler) as client:
        futures = {client.submit(_guarded, *task, pure=False): key for key, *task in tasks}
        for future in as_completed(futures):
            key = futures.pop(future)
            try:
                found, error = future.result()
            except KilledWorker as lost:
                found, error = None, f"every worker that computed it died ({lost})"
            yield key, found, error


class Journal:
    """Labels as lines of JSON, each written at once; a line that a kill has cut short is none."""

    def __init__(self, path):
        self.path, self.labels = Path(path), {}
        if self.path.exists():
            text = self.path.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():
                row = json.loads(line)
                self.labels[row["id"], row["level"]] = row
            if not text.endswith("\n"):
                self.path.write_text(text[: text.rfind("\n") + 1])

    def add(self, name, level, found, error):
        row = {"id": name, "level": level} | ({"error": error} if found is None else {k: np.asarray(v).tolist() for k, v in found.items()})
        self.labels[name, level] = row
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def chosen(structures, level, seed):
    """Ids of the structures a level labels: all of test, and its share of the others; a smaller share is part of a larger one."""
    others = [a.info["id"] for a in structures if a.info["split"] != "test"]
    n = level.keep if isinstance(level.keep, int) else round(level.keep * len(others))
    if n > len(others):
        raise LabelError(f"levels: keep: {n} structures are to be labelled, and there are {len(others)}")
    order = np.random.default_rng([seed, len(others)]).permutation(len(others))
    return {others[k] for k in order[:n]} | {a.info["id"] for a in structures if a.info["split"] == "test"}


def _check_same(config, journal):
    """Refuse to mix: labels of a level that there are, and trajectories, were made as the config says now."""
    path, now = config.out / "config.json", config.model_dump(mode="json")
    labelled = {level for (_, level), row in journal.labels.items() if "error" not in row}
    sampled = any((config.out / "trajectories").glob("*.xyz"))
    if not path.exists() and (labelled or sampled):
        warnings.warn(f"{config.out}: how the labels there were made is not recorded; taken is that the config says it", stacklevel=2)
    then = json.loads(path.read_text()) if path.exists() else now
    pairs = []
    for name in labelled & now["levels"].keys() & then["levels"].keys():
        old, new = then["levels"][name], now["levels"][name]
        pairs += [(f"levels.{name}.{key}", old[key], new[key]) for key in new if key not in ("keep", "forces") and key in old]
    if sampled:
        old, new = (c["sampling"] or {} for c in (then, now))
        pairs += [("seed", then["seed"], now["seed"])]
        pairs += [(f"sampling.{key}", old[key], new[key]) for key in new if key != "temperatures" and key in old]
    for key, old, new in pairs:
        if old != new:
            raise LabelError(
                f"{key}: what there is in {config.out} was made with {old}, and now it is {new}; name another folder with out=…"
            )
    write_json(path, now | {"levels": then["levels"] | now["levels"], "sampling": now["sampling"] or then["sampling"]})


def run(config, retry=False, scheduler=None):
    """Sample, label, write: the whole of `mfmd label`. The same command goes on where a run has ended.

    Parameters
    ----------
    config : Config; retry : compute labels that have failed before once more
    scheduler : address of a Dask scheduler whose workers sample and label, such as tcp://host:8786; they must see config.out

    Returns
    -------
    {level: (labels there are, labels that failed)}

    Raises
    ------
    LabelError : a structure that is no file and no molecule, a trajectory that failed, structures with one id, labels or trajectories in
        `out` that were made otherwise
    ModuleNotFoundError : a package of the extra `label` is missing
    """
    methods = [m.method for level in config.levels.values() for m in (level, *level.corrections)]
    for package, needed in (("tblite", config.sampling or set(methods) & set(XTB)), ("pyscf", set(methods) - set(XTB))):
        if needed:
            importlib.import_module(package)  # a package that is missing ends the run, not each label by itself
    config.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(config.out / "labels.jsonl")
    _check_same(config, journal)

    def computed(tasks):
        return on_cluster(tasks, scheduler) if scheduler else in_parallel(tasks, config.workers)

    structures = read_structures(config)
    if config.sampling is not None:
        (config.out / "trajectories").mkdir(exist_ok=True)
        trajectories = list(_trajectories(config))
        tasks = [(t[0], _simulate, (config.sampling, *t)) for t in trajectories if not t[0].exists()]
        for path, _, error in track(computed(tasks), "sampling", len(tasks)):
            if error is not None:
                raise LabelError(f"{path}: the trajectory failed ({error}); lower sampling.timestep or the temperature")
        structures = [a for path, *_ in trajectories for a in ase.io.read(path, ":")]
    by_id = {a.info["id"]: a for a in structures}
    if len(by_id) < len(structures):
        raise LabelError("structures: two of them have the same info key id")

    def wanted(key, forces=False):
        row = journal.labels.get(key)
        return row is None or (retry if "error" in row else forces and "forces" not in row)

    tasks = []
    for name, level in config.levels.items():
        for symbol in sorted({s for a in structures for s in a.get_chemical_symbols()}):
            if wanted((ISOLATED + symbol, name)):
                tasks.append(((ISOLATED + symbol, name), isolated, (level, symbol)))
        for key in sorted(chosen(structures, level, config.seed)):
            atoms = by_id[key]
            forces = level.forces == "all" or (level.forces == "test" and atoms.info["split"] == "test")
            if wanted((key, name), forces):
                tasks.append(((key, name), label, (level, atoms, forces)))
    for (key, name), found, error in track(computed(tasks), "labelling", len(tasks)):
        journal.add(key, name, found, error)
    return write(config, structures, journal)


def write(config, structures, journal):
    """The files that mfmd-train reads, from the labels there are; returns as `run`."""
    counts = {}
    for atoms in structures:
        for name in config.levels:
            row = journal.labels.get((atoms.info["id"], name))
            if row is None:
                continue
            good, bad = counts.get(name, (0, 0))
            counts[name] = (good, bad + 1) if "error" in row else (good + 1, bad)
            if "error" not in row:
                atoms.info[f"energy_{name}"] = row["energy"]
                if "forces" in row:
                    atoms.arrays[f"forces_{name}"] = np.array(row["forces"])
                if "stress" in row:
                    atoms.info[f"stress_{name}"] = np.array(row["stress"])
    for split in SPLITS:
        if frames := [a for a in structures if a.info["split"] == split]:
            ase.io.write(config.out / f"{split}.xyz", frames, format="extxyz")
    energies = {}
    for (key, name), row in journal.labels.items():
        if key.startswith(ISOLATED) and "error" not in row:
            energies.setdefault(key.removeprefix(ISOLATED), {})[name] = row["energy"]
    (config.out / "atoms.json").write_text(json.dumps({"unit": "eV", "energies": energies}, indent=1))
    return counts
