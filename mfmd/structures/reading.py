"""From files to the three splits: structures that are checked, in Å and eV, and which of their labels are kept."""

from pathlib import Path

import numpy as np

from mfmd import units
from mfmd.structures.checks import check_distances, check_labels, check_structure
from mfmd.structures.formats import registry
from mfmd.structures.packed import Packed, pack
from mfmd.structures.record import KINDS, SPLITS, DataError, Structure


def read(config, levels, folder=None):
    """Structures of the three splits.

    Parameters
    ----------
    config : training.schema.Data, files and units
    levels : {name: training.schema.Level}, keys of the labels
    folder : with config.stream, where the structures are packed into files; files of a run before are used as they are

    Returns
    -------
    {"train": ..., "val": ..., "test": ...}, lists of Structure, or Packed ones

    Raises
    ------
    DataError : a file is missing or damaged, a label is not finite or of the wrong shape, a structure is charged or
    open-shell, a level has no label at all, energies cannot be in the declared unit.
    """
    splits = {"train": [], "val": [], "test": []}
    if config.stream:
        for name in splits:
            path = Path(folder) / f"{name}.packed"
            splits[name] = Packed(path) if path.exists() else pack(_of_split(config, levels, name), path)
    else:
        for structure, name in _labelled_files(config, levels, splits):
            splits[name].append(structure)
    _split_off(splits, config)
    for name in ("train", "val"):
        if not len(splits[name]):
            raise DataError(f"data.{name}: no structure is left for the {name} split; name files, a fraction or a split_key")
    check_labels(splits["train"], config, levels)
    return splits


def _labelled_files(config, levels, names):
    """(structure, split) of the files that may hold structures of the splits `names`."""
    for path in config.train if config.split_key is not None or "train" in names else []:
        for structure in read_file(path, config, levels):
            name = "train"
            if config.split_key is not None:
                name = structure.info.get(config.split_key)
                if name not in SPLITS:
                    raise DataError(f"{structure.source}: info key {config.split_key!r} is {name!r}; it must be train, val or test")
            yield structure, name
    for name in ("val", "test"):
        source = getattr(config, name)
        for path in (source or []) if name in names and not isinstance(source, float) else []:
            for structure in read_file(path, config, levels):
                yield structure, name


def _of_split(config, levels, name):
    return (structure for structure, own in _labelled_files(config, levels, [name]) if own == name)


def read_file(path, config, levels):
    """Structures of one file, checked, in Å and eV; config : training.schema.Data, its units. DataError as in `read`."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file (data files are looked up from the folder the command runs in)")
    energy, length = units.ENERGY[config.energy_unit], units.LENGTH[config.length_unit]
    if registry.format_of(path) == "multifidelity" and (energy, length) != (1.0, 1.0):
        raise DataError(f"{path}: each label names its unit itself; leave out data.energy_unit and data.length_unit")
    for frame in registry.read(path, levels):
        structure = Structure(**frame)
        check_structure(structure)
        structure.positions = structure.positions * length
        structure.cell = structure.cell * length
        check_distances(structure)
        for label in structure.labels.values():
            label.energy = None if label.energy is None else label.energy * energy
            label.forces = None if label.forces is None else label.forces * (energy / length)
            label.stress = None if label.stress is None else label.stress * (energy / length**3)
        yield structure


def _split_off(splits, config):
    """Seeded fractions of the training structures become the validation and test sets."""
    sizes = {name: getattr(config, name) for name in ("val", "test") if isinstance(getattr(config, name), float)}
    if not sizes:
        return
    structures, start = splits["train"], 0
    order = np.random.default_rng(config.split_seed).permutation(len(structures))
    for name, fraction in sizes.items():
        stop = start + round(fraction * len(order))
        splits[name] = _subset(structures, np.sort(order[start:stop]))
        start = stop
    splits["train"] = _subset(structures, np.sort(order[start:]))


def keep_labels(structures, levels, seed):
    """Drop training labels of levels that keep only a share of them, or so many; which ones only the seed decides.

    Raises
    ------
    DataError : a level is to keep more labels than there are
    """
    for name, level in levels.items():
        if level.keep is None:
            continue
        labelled = [k for k, s in enumerate(structures) if name in s.labels]
        n = level.keep if isinstance(level.keep, int) else max(1, round(level.keep * len(labelled)))
        if n > len(labelled):
            raise DataError(f"levels.{name}.keep: {n} labels are to be kept, and the training set has {len(labelled)}")
        for k in np.random.default_rng([seed, len(labelled)]).permutation(len(labelled))[n:]:
            if isinstance(structures, list):
                del structures[labelled[k]].labels[name]
            else:
                structures.drop_label(labelled[k], name)


def where(structures, condition):
    """The structures for which the condition holds: a list, or of packed ones a subset that stays in its file."""
    return _subset(structures, np.fromiter((k for k, s in enumerate(structures) if condition(s)), dtype=np.int64))


def _subset(structures, indices):
    return [structures[k] for k in indices] if isinstance(structures, list) else structures.subset(indices)


def count_labels(structures, levels):
    """{level: {"energy": n, "forces": n, "stress": n}}"""
    counts = {level: dict.fromkeys(KINDS, 0) for level in levels}
    for s in structures:
        for level in levels:
            for kind in KINDS if level in s.labels else ():
                counts[level][kind] += s.labels[level].count(kind)
    return counts


def subset_elements(structures, level):
    """Atomic numbers with a label of this level, ascending."""
    return sorted({int(z) for s in structures if level in s.labels for z in s.numbers})
