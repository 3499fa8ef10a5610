"""Makes labels: samples structures by molecular dynamics and labels them with tblite (GFN1-xTB, GFN2-xTB) and PySCF (HF, DFT, MP2, CCSD, CCSD(T)).

out/trajectories/*.xyz   sampled structures, one trajectory a file
out/labels.jsonl         every label as soon as it is there, failed ones with their reason; where a killed run goes on
out/{train,val,test}.xyz, out/atoms.json   what mfmd-train reads: energy_<level> and forces_<level>, eV and Å
out/report.html         what was labelled, what failed, what it cost, how levels differ
"""

import importlib
import itertools
import json
import re
import warnings

import ase.io
import numpy as np

from mfmd import Note, lock, progress, whole
from mfmd.config import write_json
from mfmd.evaluation import foreseen, foresight
from mfmd.labelling.checks import absurd, check_elements, check_periodicity, check_splits, check_structure, contaminated, fingerprint
from mfmd.labelling.journal import ISOLATED, Journal
from mfmd.labelling.methods import check_valence, isolated, label, probe, recorded
from mfmd.labelling.sampling import read_structures, read_trajectory, simulate, trajectories
from mfmd.labelling.schema import XTB, LabelError, Level
from mfmd.labelling.states import state_of
from mfmd.labelling.workers import in_parallel, on_cluster
from mfmd.reports import labelling as report
from mfmd.reports import page, tables
from mfmd.structures.record import SPLITS


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
    LabelError : a structure that is no file and no molecule, or whose charge and multiplicity cannot be, a method or basis that cannot be computed, a periodicity that a method does not have, a
        trajectory that failed, structures with one id or in two splits, labels or trajectories in `out` that were made otherwise, a full disk
    ModuleNotFoundError : a package of the extra `label` is missing
    FolderInUse : another process labels in config.out
    """
    methods = [m.method for level in config.levels.values() for m, _ in level.parts]
    for package, needed in (("tblite", config.sampling or set(methods) & set(XTB)), ("pyscf", set(methods) - set(XTB))):
        if needed:
            importlib.import_module(package)  # a package that is missing ends the run, not each label by itself
    with lock.claim(config.out, "mfmd label"), page.overheard() as told:
        structures, journal = _run(config, retry, scheduler)
        counts = write(config, structures, journal)
        asked = {name: chosen(structures, name, level, config.seed) for name, level in config.levels.items()}
        report.write(config, structures, asked, journal, told)
        return counts


def _run(config, retry, scheduler):
    journal = Journal(config.out / "labels.jsonl")
    _check_same(config, journal)

    def computed(tasks, words, unit):
        found = on_cluster(tasks, scheduler) if scheduler else in_parallel(tasks, config.workers)
        return progress.over(found, words, unit, len(tasks))

    starts = structures = read_structures(config)
    _check_structures(config, starts)
    missing, versions = [], {}
    if config.sampling is not None:
        (config.out / "trajectories").mkdir(exist_ok=True)
        planned = list(trajectories(config, starts))
        sampled = {t[0]: read_trajectory(*t[:2]) for t in planned if t[0].exists()}
        missing = [(t[0], simulate, (config.sampling, *t)) for t in planned if t[0] not in sampled]
    if missing:
        versions = _check_methods(config, config.levels, starts, journal, computed)
        for path, _, error in computed(missing, "sampling", "trajectories"):
            if error is not None:
                raise LabelError(f"{path}: the trajectory failed ({error}); lower sampling.timestep or the temperature")
    if config.sampling is not None:
        structures = [a for path, start, *_ in planned for a in sampled.get(path) or read_trajectory(path, start)]
    check_splits(structures)
    prints = {a.info["id"]: fingerprint(a) for a in structures}
    _check_geometries(config, structures, prints, journal)
    tasks = _tasks(config, structures, prints, journal, retry)
    if tasks and not missing:
        versions = _check_methods(config, {name for (_, name), *_ in tasks}, starts, journal, computed)
    told = set()
    for (key, name), found, error in computed(tasks, "labelling", "labels") if tasks else ():
        if found and found["versions"] != versions[name]:
            raise LabelError(f"levels.{name}: one worker has {found['versions']}, another {versions[name]}; give them the same packages")
        journal.add(key, name, found, error, prints.get(key))
        if error is not None and key.startswith(ISOLATED):
            warnings.warn(f"levels.{name}: the {key} atom has no energy ({error}), and atoms.json lacks it", stacklevel=2)
        for words in found["warnings"] if found else ():
            kind = name, re.sub(r"[\d.e+-]+", "", words)
            if kind not in told:
                warnings.warn(f"levels.{name}, {key}: {words}", stacklevel=2)
            told.add(kind)
    _sort_out(config, structures, prints, journal)
    _tell_foresight(config, structures, journal)
    return structures, journal


def _tasks(config, structures, prints, journal, retry):
    """[(id, level), function, arguments] of what has no label yet: isolated atoms, then the structures a level labels."""
    by_id = {a.info["id"]: a for a in structures}

    def wanted(key, forces=False):
        row = journal.labels.get(key)
        if row is None or "error" not in row:
            return row is None or (forces and "forces" not in row)
        now = prints.get(key[0])
        return retry or row.get("structure", now) != now  # what has failed may have been mended

    tasks = []
    for name, level in config.levels.items():
        for symbol in sorted({s for a in structures for s in a.get_chemical_symbols()}):
            if wanted((ISOLATED + symbol, name)):
                tasks.append(((ISOLATED + symbol, name), recorded, (isolated, level, {symbol}, symbol)))
        for key in sorted(chosen(structures, name, level, config.seed)):
            atoms = by_id[key]
            forces = _has_forces(level, atoms)
            if wanted((key, name), forces):
                tasks.append(((key, name), recorded, (label, level, set(atoms.get_chemical_symbols()), atoms, forces)))
    return tasks


def _has_forces(level, atoms):
    return level.forces == "all" or (level.forces == "test" and atoms.info["split"] == "test")


def chosen(structures, name, level, seed):
    """Ids of the structures a level labels: those that say it, and of those that say no levels all of test, and its share of the others; a smaller share is
    part of a larger one."""
    said = {a.info["id"] for a in structures if name in a.info.get("levels", "").split()}
    silent = [a for a in structures if "levels" not in a.info]
    others = [a.info["id"] for a in silent if a.info["split"] != "test"]
    n = level.keep if isinstance(level.keep, int) else round(level.keep * len(others))
    if n > len(others) and silent:
        raise LabelError(f"levels.{name}.keep: {n} structures are to be labelled, and there are {len(others)}")
    if n == 0 and len(others) == len(structures):
        raise LabelError(f"levels.{name}.keep: {level.keep:g} of {len(others)} structures is none")
    order = np.random.default_rng([seed, len(others)]).permutation(len(others))
    return said | {others[k] for k in order[:n]} | {a.info["id"] for a in silent if a.info["split"] == "test"}


def _check_structures(config, structures):
    """Refuse before anything is computed atoms of no element, a periodicity that a level does not have, and what the sampling cannot start from."""
    for atoms in structures:
        try:
            key = "structures"
            check_elements(atoms)
            for name, level in config.levels.items():
                key = f"levels.{name}.method"
                check_periodicity(level, atoms)
            if config.sampling is not None:
                key = "sampling"
                check_structure(Level(method=config.sampling.method), atoms)
                check_valence(config.sampling.method, atoms, state_of(atoms))
        except LabelError as error:
            raise LabelError(f"{key}: {error}: {atoms.info['id']}") from None


def _check_geometries(config, structures, prints, journal):
    """Refuse labels of another geometry than the structure of that id has now."""
    for atoms in structures:
        key = atoms.info["id"]
        for name in config.levels:
            row = journal.labels.get((key, name), {"error": "none"})
            if "error" in row:
                continue
            if "structure" not in row:
                told = f"levels.{name}: which geometries the labels in {config.out} are of is not recorded; taken is that they are of these structures"
                warnings.warn(told, Note, stacklevel=3)
            if row.get("structure", prints[key]) != prints[key] or len(row.get("forces", atoms)) != len(atoms):
                raise LabelError(
                    f"{config.out}: the label of {key} at level {name} was made of another geometry or state than {key} has now; give each structure an id "
                    "that stays its own (info key id), or name another folder with out=…"
                )


def _check_methods(config, names, structures, journal, computed):
    """Try levels before anything is labelled; refuse to mix labels of another definition, or of other versions of the packages. {level: its versions}"""
    versions = {}
    symbols = {s for a in structures for s in a.get_chemical_symbols()}
    tasks = [(name, recorded, (probe, config.levels[name], symbols, name, symbols)) for name in config.levels if name in names]
    for name, made, error in computed(tasks, "trying the methods", "levels"):
        if error is not None:
            of_a_key = error.startswith("levels.")
            raise LabelError(error if of_a_key else f"levels.{name}.method: {config.levels[name].method} cannot be computed ({error})")
        for words in made["warnings"]:
            warnings.warn(words, Note, stacklevel=3)
        versions[name] = made["versions"]
        rows = [row for (_, level), row in journal.labels.items() if level == name and "error" not in row]
        if any("versions" not in row for row in rows):
            warnings.warn(f"levels.{name}: which versions made the labels in {config.out} is not recorded", stacklevel=3)
        for old, new in (pair for row in rows if "versions" in row for pair in _differences(row, made)):
            raise LabelError(
                f"levels.{name}: labels in {config.out} were made with {old}, and now it is {new}; go on with what made them, or name another "
                "folder with out=…"
            )
    return versions


def _differences(row, made):
    """Pairs of words for what of a label was made otherwise than it would be now."""
    for package in row["versions"].keys() | made["versions"].keys():
        pair = [f"{package} {each['versions'].get(package, '(none)')}" for each in (row, made)]
        if pair[0] != pair[1]:
            yield pair
    for then, now in itertools.zip_longest(row["definition"], made["definition"], fillvalue={}):
        for key in then.keys() | now.keys():
            old, new = then.get(key), now.get(key)
            if key == "ecp" and old and new:  # of the elements that the structure has
                new = {symbol: core for symbol, core in new.items() if symbol in old}
            if old != new:
                yield f"{key} {old}", f"{key} {new}"


def _sort_out(config, structures, prints, journal):
    """Labels that cannot be, against the isolated atoms or the limit of spin contamination, fail; their number stays in the journal."""
    by_id = {a.info["id"]: a for a in structures}
    energies = journal.isolated()
    for (key, name), row in list(journal.labels.items()):
        if key not in by_id or "error" in row:
            continue
        reason = absurd(row["energy"], by_id[key], energies.get(name, {}))
        if name in config.levels and "spin_contamination" in row:
            limit = config.levels[name].max_spin_contamination
            reason = reason or contaminated(row["spin_contamination"], state_of(by_id[key]).multiplicity, limit)
        if reason:
            journal.add(key, name, None, reason, prints[key])


def _tell_foresight(config, structures, journal):
    """How far labels are from what `mfmd suggest` predicted of them."""
    for level in config.levels:
        rows = [(a.info, row) for a in structures if (row := journal.labels.get((a.info["id"], level))) and "error" not in row]
        if found := foreseen([pair for info, row in rows if (pair := foresight(info, (level, row["energy"])))]):
            warnings.warn(f"{level}: {tables.foreseen(found)}", Note, stacklevel=4)


UNMIXED = ("keep", "forces", "max_spin_contamination")  # of which labels a level has, not of what they are


def _check_same(config, journal):
    """Refuse to mix: labels of a level that there are, and trajectories, were made as the config says now."""
    path, now = config.out / "config.json", config.model_dump(mode="json")
    labelled = {level for (_, level), row in journal.labels.items() if "error" not in row}
    sampled = any((config.out / "trajectories").glob("*.xyz"))
    if not path.exists() and (labelled or sampled):
        warnings.warn(f"{config.out}: how the labels there were made is not recorded; taken is that the config says it", stacklevel=2)
    try:
        then = json.loads(path.read_text()) if path.exists() else now
        if not isinstance(then["levels"], dict) or not all(isinstance(level, dict) for level in then["levels"].values()):
            raise ValueError("its levels are none")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LabelError(
            f"{path}: what the labels were made with is damaged ({error!r}); put the file back, or name another folder"
        ) from None
    pairs = []
    for name in labelled & now["levels"].keys() & then["levels"].keys():
        old, new = then["levels"][name], now["levels"][name]
        pairs += [(f"levels.{name}.{key}", old[key], new[key]) for key in new if key not in UNMIXED and key in old]
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


def write(config, structures, journal):
    """The files that mfmd-train reads, from those of the labels there are that the config asks for; returns as `run`."""
    counts = {}
    for name, level in config.levels.items():
        asked, more = chosen(structures, name, level, config.seed), {"keep": 0, "forces": 0}
        for atoms in structures:
            row = journal.labels.get((atoms.info["id"], name))
            if row is None or atoms.info["id"] not in asked:
                more["keep"] += row is not None and "error" not in row
                continue
            good, bad = counts.get(name, (0, 0))
            counts[name] = (good, bad + 1) if "error" in row else (good + 1, bad)
            if "error" not in row:
                atoms.info[f"energy_{name}"] = row["energy"]
                if not _has_forces(level, atoms):
                    more["forces"] += "forces" in row
                    continue
                if "forces" in row:
                    atoms.arrays[f"forces_{name}"] = np.array(row["forces"])
                if "stress" in row:
                    atoms.info[f"stress_{name}"] = np.array(row["stress"])
        for key, n in more.items():
            if n:
                told = f"levels.{name}.{key}: {n} labels in {config.out / 'labels.jsonl'} have more than it asks for now, which is left out"
                warnings.warn(told, Note, stacklevel=4)
    energies = {}
    for name, of_level in journal.isolated().items():
        for symbol, energy in of_level.items():
            energies.setdefault(symbol, {})[name] = energy
    try:
        for split in SPLITS:
            if frames := [a for a in structures if a.info["split"] == split]:
                with whole.writing(config.out / f"{split}.xyz", text=True) as file:
                    ase.io.write(file, frames, format="extxyz")
        write_json(config.out / "atoms.json", {"unit": "eV", "energies": energies})
    except OSError as error:
        raise LabelError(
            f"{config.out}: the structures could not be written ({error.strerror}); the labels are kept in labels.jsonl: free some space "
            "and give the same command again"
        ) from None
    return counts
