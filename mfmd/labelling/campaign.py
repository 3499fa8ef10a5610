"""Makes labels: samples structures by molecular dynamics and labels them with tblite (GFN1-xTB, GFN2-xTB) and PySCF (HF, DFT, MP2, CCSD, CCSD(T)).

out/trajectories/*.xyz   sampled structures, one trajectory a file
out/labels.jsonl         every label as soon as it is there, failed ones with their reason; where a killed run goes on
out/{train,val,test}.xyz, out/atoms.json   what mfmd-train reads: energy_<level> and forces_<level>, eV and Å
"""

import importlib
import json
import warnings

import ase.io
import numpy as np
from rich.progress import track

from mfmd.config import write_json
from mfmd.labelling.journal import Journal
from mfmd.labelling.methods import isolated, label
from mfmd.labelling.sampling import read_structures, simulate, trajectories
from mfmd.labelling.schema import XTB, LabelError
from mfmd.labelling.workers import in_parallel, on_cluster
from mfmd.structures.record import SPLITS

ISOLATED = "isolated "  # and the element: the id of an atom's energies


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
        planned = list(trajectories(config))
        tasks = [(t[0], simulate, (config.sampling, *t)) for t in planned if not t[0].exists()]
        for path, _, error in track(computed(tasks), "sampling", len(tasks)):
            if error is not None:
                raise LabelError(f"{path}: the trajectory failed ({error}); lower sampling.timestep or the temperature")
        structures = [a for path, *_ in planned for a in ase.io.read(path, ":")]
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
