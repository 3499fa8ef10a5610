"""Which structures are labelled: those of files, or frames of molecular dynamics that starts from them."""

import re
import warnings
import zlib
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
from ase.io.formats import filetype

from mfmd import Note, whole
from mfmd.labelling.checks import fingerprint
from mfmd.labelling.journal import ISOLATED
from mfmd.labelling.schema import LabelError
from mfmd.labelling.states import settle, state_of
from mfmd.structures.formats import asedb
from mfmd.structures.record import KINDS, SPLITS


def read_structures(config):
    """The structures of the config as ase.Atoms, each with the info keys molecule and split (train where the file says nothing), and charge and multiplicity
    where it is no neutral closed shell; without labels of its levels."""
    out = []
    own = {f"{kind}_{level}" for kind in (*KINDS, "virial") for level in config.levels}
    for named in config.structures:
        name, found = named.structure, []
        if Path(name).exists():
            try:
                frames = ase.io.read(name, ":")
                if (kind := filetype(name)) in ("db", "json"):
                    for atoms, said in zip(frames, asedb.said_in(name, kind), strict=True):
                        atoms.info |= said
            except Exception as error:  # ASE raises many kinds on a damaged file
                raise LabelError(f"structures: {name} cannot be read ({error})") from error
            if old := sorted({key for atoms in frames for key in own & (atoms.info.keys() | atoms.arrays.keys())}):
                warnings.warn(
                    f"{name}: {', '.join(old)} of the file are left out, since this run makes these labels anew", Note, stacklevel=2
                )
            for k, atoms in enumerate(frames):
                for key in own:
                    atoms.info.pop(key, None)
                    atoms.arrays.pop(key, None)
                atoms.info.setdefault("id", f"{Path(name).stem}-{k}")
                atoms.info.setdefault("molecule", Path(name).stem if len(frames) == 1 else atoms.get_chemical_formula())
                found.append(atoms)
        else:
            try:
                atoms = ase.build.molecule(name)
            except (KeyError, NotImplementedError):
                raise LabelError(f"structures: {name!r} is neither a file nor a molecule that ase.build.molecule knows") from None
            if named.charge or named.multiplicity:  # the moments are of the neutral molecule's ground state
                atoms.set_initial_magnetic_moments(None)
            found.append(atoms)
            atoms.info |= {"id": name, "molecule": name}
        for atoms in found:
            try:
                settle(atoms, named.said, config.spin)
            except LabelError as error:
                raise LabelError(f"structures: {atoms.info['id']}: {error}") from None
            atoms.calc = None
            if ending := (f"{named.charge:+d}" if named.charge else "") + (f"m{named.multiplicity}" if named.multiplicity else ""):
                atoms.info |= {key: f"{atoms.info[key]}{ending}" for key in ("id", "molecule")}
        out += found
    ids = set()
    for atoms in out:
        key = atoms.info["id"] = str(atoms.info["id"])  # ASE reads 7 and T as numbers
        if key in ids:
            raise LabelError(f"structures: two of them have the id {key}; give one of them another with the info key id")
        if key.startswith(ISOLATED):
            raise LabelError(f"structures: the id {key!r} is an isolated atom's; give the structure another with the info key id")
        ids.add(key)
        atoms.info.setdefault("split", "train")
        if atoms.info["split"] not in SPLITS:
            raise LabelError(
                f"structures: the info key split of {atoms.info['id']} is {atoms.info['split']!r}; it must be {', '.join(SPLITS)}"
            )
        if "levels" in atoms.info:
            atoms.info["levels"] = " ".join(np.atleast_1d(atoms.info["levels"]).astype(str))  # ASE reads several as an array
            if unknown := sorted(set(atoms.info["levels"].split()) - set(config.levels)):
                raise LabelError(
                    f"structures: {atoms.info['id']} is to be labelled at {', '.join(unknown)} (info key levels), and the config's levels are "
                    f"{', '.join(config.levels)}"
                )
            if config.sampling is not None:
                raise LabelError(
                    f"structures: {atoms.info['id']} says at which levels it is labelled (info key levels); that goes without sampling"
                )
    return out


def trajectories(config, starts):
    """(file, start, split, temperature, seed) of every trajectory to be sampled. LabelError : two of them have one name"""
    folder, of = config.out.resolve() / "trajectories", {}
    for atoms in starts:
        for temperature in config.sampling.temperatures:
            for split in SPLITS:
                if getattr(config.sampling, split):
                    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{atoms.info['id']}-{split}-{temperature:g}")
                    if name in of:
                        a, b = of[name], atoms.info["id"]
                        what = f"structures: the ids {a!r} and {b!r}" if a != b else f"sampling.temperatures: two that are {temperature:g}"
                        raise LabelError(f"{what} make one trajectory's name, {name}; change one of them")
                    of[name] = atoms.info["id"]
                    yield folder / f"{name}.xyz", atoms, split, temperature, zlib.crc32(f"{config.seed} {name}".encode())


def read_trajectory(path, start):
    """The frames of a trajectory. LabelError : it cannot be read, or was sampled from another structure than its start is now"""
    try:
        frames = ase.io.read(path, ":")
    except Exception as error:  # ASE raises many kinds on a damaged file
        raise LabelError(f"{path} cannot be read ({error}); delete it, and the same command samples it anew") from error
    for atoms in frames:
        if (then := atoms.info.pop("start", None)) is None:
            told = f"{path.parent}: from which geometries these were sampled is not recorded; taken is that it was from those of structures"
            warnings.warn(told, Note, stacklevel=2)
        elif then != fingerprint(start):
            raise LabelError(
                f"{path} was sampled from another geometry or state than {start.info['id']} has now; give that another id (info key id), or name another "
                "folder with out=…"
            )
    return frames


def simulate(sampling, path, start, split, temperature, seed):
    """One trajectory by Langevin dynamics, written when it is whole."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.units import fs
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.calc = TBLite(method=sampling.method, verbosity=0, **state_of(start)._asdict())
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    md = Langevin(atoms, sampling.timestep * fs, temperature_K=temperature, friction=sampling.friction / fs, fixcm=False, rng=rng)
    md.run(round(sampling.equilibration / sampling.timestep))
    frames, origin = [], fingerprint(start)
    kept = {key: start.info[key] for key in ("charge", "multiplicity", "fragments") if key in start.info}
    for k in range(getattr(sampling, split)):
        md.run(round(sampling.interval / sampling.timestep))
        frame = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        frame.info = {"id": f"{path.stem}-{k:04d}", "molecule": start.info["molecule"], "split": split, "temperature": temperature}
        frame.info |= {"start": origin} | kept
        if "fragment" in start.arrays:
            frame.arrays["fragment"] = start.arrays["fragment"]
        frames.append(frame)
    with whole.writing(path, text=True) as file:
        ase.io.write(file, frames, format="extxyz")
