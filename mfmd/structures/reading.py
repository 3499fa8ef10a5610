"""From files to the three splits: structures that are checked, in Å and eV, and which of their labels are kept."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np

from mfmd import Note, progress, units, whole
from mfmd.engine import neighbor_list
from mfmd.structures.checks import check_distances, check_labels, check_structure, holds_gradients
from mfmd.structures.formats import registry
from mfmd.structures.merging import merge, tell_duplicates
from mfmd.structures.packed import Packed, pack
from mfmd.structures.record import KINDS, SPLITS, DataError, Structure
from mfmd.structures.state import NEUTRAL, Assumed


def read(config, levels, folder=None):
    """Structures of the three splits.

    Parameters
    ----------
    config : training.schema.Data, files and units
    levels : {name: training.schema.Level}, keys of the labels
    folder : with config.stream, where the structures are packed into files; files of a run before are used as they are

    Returns
    -------
    {"train": ..., "val": ..., "test": ...}, lists of Structure, or Packed ones. Labels of one structure from several files are one structure's;
    isolated atoms are in none of the splits, see `read_all`

    Raises
    ------
    DataError : a file is missing or damaged, a label is not finite or of the wrong shape, what is said of a structure's charge and spin cannot be or may
    mean two things, it has two different labels of one level, a level has no label at all, a unit is not that of the file.
    """
    return read_all(config, levels, folder)[0]


def read_all(config, levels, folder=None):
    """The splits as `read` gives them, and the isolated atoms among the structures: {level: {Z: eV}}."""
    splits, atoms = {name: [] for name in SPLITS}, Isolated(levels)
    if config.stream:
        kept = Path(folder) / "isolated.json"  # atoms that were set aside when the splits were packed
        packed = {name: Path(folder) / f"{name}.packed" for name in splits}
        if not all(path.exists() for path in packed.values()):
            for name, path in packed.items():
                pack(atoms.set_aside(_of_split(config, levels, name)), path)
            with whole.writing(kept, text=True) as file:
                json.dump(atoms.energies, file)
        splits = {name: Packed(path) for name, path in packed.items()}
        if kept.exists():
            atoms.energies = {level: {int(z): e for z, e in found.items()} for level, found in json.loads(kept.read_text()).items()}
    else:
        for structure, name in _labelled_files(config, levels, splits):
            if not atoms.takes(structure):
                splits[name].append(structure)
        with progress.task("comparing the structures"):
            splits = {name: merge(structures, levels) for name, structures in splits.items()}
        if isinstance(config.train, dict) and len(config.train) > 1 and not any(len(s.labels) > 1 for s in splits["train"]):
            warnings.warn("data.train: the files of the levels have no structure in common (positions to 1e-4 Å)", Note, stacklevel=3)
    atoms.tell()
    _split_off(splits, config)
    for name in ("train", "val"):
        if not len(splits[name]):
            raise DataError(f"data.{name}: no structure is left for the {name} split; name files, a fraction or a split_key")
    check_labels(splits["train"], config, levels)
    if not config.stream:
        tell_duplicates(splits)
    return splits, atoms.energies


ALONE = 8.0  # Å, up to which an atom that is isolated has no image


class Isolated:
    """Single neutral atoms, without periodic boundaries or in a box that is large enough: reference energies, and no structures to learn from."""

    def __init__(self, levels):
        self.levels, self.energies, self.number = levels, {level: {} for level in levels}, 0

    def takes(self, structure):
        if len(structure.numbers) != 1 or structure.charge:
            return False
        if np.any(structure.pbc) and len(neighbor_list(structure.positions, structure.cell, structure.pbc, ALONE)[0]):
            return False
        self.number += 1
        z = int(structure.numbers[0])
        for level, label in structure.labels.items():
            if label.energy is None:
                continue
            before = self.energies[level].setdefault(z, label.energy)
            if abs(before - label.energy) > 1e-3 and not self.levels[level].unchecked:
                raise DataError(
                    f"{structure.source}: the isolated atom has {label.energy:.4f} eV at level {level}, and another has {before:.4f} eV; remove one of them"
                )
        return True

    def set_aside(self, structures):
        return (s for s in structures if not self.takes(s))

    def tell(self):
        if self.number:
            warnings.warn(
                f"{self.number} isolated atoms are no structures to learn from; they are reference energies where levels.<level>.e0 says atoms, and where "
                "nothing is said and they are there for all elements of the level",
                Note,
                stacklevel=3,
            )


def fingerprints(config):
    """What the files of a config hold, wherever they lie: a list of split, level, path and sha256 of each."""
    files = [("atoms", None, config.atoms)] if config.atoms else []
    files += [(split, level, path) for split in SPLITS for path, level in config.files(split)]
    files = progress.over(files, "fingerprints of the files", "files")
    return [{"split": split, "level": level, "path": str(path), "sha256": _sha256(Path(path))} for split, level, path in files]


def _sha256(path):
    """Of a file, or of the names and contents of all files in a folder."""
    if not path.exists():
        raise DataError(f"{path}: no such file (data files are looked up from the folder the command runs in)")
    digest = hashlib.sha256()
    for file in _parts(path):
        if file is not path:
            digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _parts(path):
    """The files that a data file consists of."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    records = path.with_name("data.lmdb")  # beside metadata.parquet
    return [path, records] if records.is_file() else [path]


def _labelled_files(config, levels, names):
    """(structure, split) of the files that may hold structures of the splits `names`."""
    for split in SPLITS:
        if split not in names and not (split == "train" and config.split_key is not None):
            continue
        for path, level in config.files(split):
            for structure in read_file(path, config, levels if level is None else {level: levels[level]}):
                name = split
                if split == "train" and config.split_key is not None:
                    name = structure.info.get(config.split_key)
                    if name not in SPLITS:
                        raise DataError(f"{structure.source}: info key {config.split_key!r} is {name!r}; it must be train, val or test")
                yield structure, name


def _of_split(config, levels, name):
    return (structure for structure, own in _labelled_files(config, levels, [name]) if own == name)


def read_file(path, config, levels):
    """Structures of one file, checked, in Å and eV; config : training.schema.Data, its units. DataError as in `read`.

    What the structures do not say of charge and spin is told once, as a Note.
    """
    if not Path(path).exists():
        raise DataError(f"{path}: no such file (data files are looked up from the folder the command runs in)")
    assumed, left_out, told = Assumed(), {}, False
    for frame in progress.over(registry.read(path, levels, config.format), f"reading {path}", "structures"):
        said, usual, spin = frame.pop("units", {}), frame.pop("default_units", {}), frame.pop("default_spin", None)
        structure = Structure(**frame)
        for kind in _weighted_out(structure):
            left_out[kind] = left_out.get(kind, 0) + 1
        check_structure(structure, config.spin or spin)
        unit = Units(path, said, usual, config)
        if not told and (words := unit.obeyed(levels)):
            warnings.warn(f"{path}: {words}", stacklevel=2)
        told = True
        _convert(structure, unit, levels)
        check_distances(structure)
        assumed.add(structure)
        yield structure
    for kind, number in left_out.items():
        warnings.warn(f"{path}: {number} structures have config_{kind}_weight 0, and their {kind} are left out", Note, stacklevel=2)
    for sentence in assumed.sentences():
        warnings.warn(f"{path}: {sentence}", Note, stacklevel=2)


WEIGHTS = {"energy": "energy", "forces": "forces", "force": "forces", "stress": "stress", "virial": "virial", "virials": "virial"}


ZERO_OR_ONE = {"0": 0, "0.0": 0, "0.": 0, "False": 0, "1": 1, "1.0": 1, "1.": 1, "True": 1}


def _weighted_out(structure):
    """Kinds of labels that a structure's own weights in MACE's dialect, config_<kind>_weight, leave out; these are dropped. DataError for other weights."""
    dropped = []
    for key, value in structure.info.items():
        name = str(key).lower()
        if not (name.startswith("config_") and name.endswith("weight")):
            continue
        if str(value).strip("[]") not in ZERO_OR_ONE:
            raise DataError(
                f"{structure.source}: {key} is {value}; of a structure's own weights 0 leaves its label out and 1 is what every label has; "
                "set levels.<level>.energy_weight and the like, or remove the key"
            )
        if ZERO_OR_ONE[str(value).strip("[]")]:
            continue
        kinds = list(WEIGHTS.values()) if name == "config_weight" else [WEIGHTS.get(name.removeprefix("config_").removesuffix("_weight"))]
        for label in structure.labels.values():
            for kind in dict.fromkeys(kinds):
                if kind is None:
                    raise DataError(f"{structure.source}: {key} is 0, and there is no such label; remove the key")
                if getattr(label, kind) is not None:
                    setattr(label, kind, None)
                    dropped.append(kind)
    structure.labels = {level: label for level, label in structure.labels.items() if any(v is not None for v in vars(label).values())}
    return dict.fromkeys(dropped)


class Units:
    """What the numbers of a file are in: as the file says itself, as the config says, or by default; where two of these differ, DataError."""

    def __init__(self, path, said, usual, config):
        self.path, self.said, self.usual, self.config = path, said, usual, config
        self.length = self._one(units.length, said.get("length"), config.length_unit, "data.length_unit", usual.get("length", "Å"))

    def of(self, name, level):
        """Factors of energies, forces and stresses of a level."""
        wanted, key = level.energy_unit or self.config.energy_unit, "levels.{name}.energy_unit" if level.energy_unit else "data.energy_unit"
        energy = self._one(units.energy, self._tag(level.energy, "energy"), wanted, key.format(name=name), self.usual.get("energy", "eV"))
        forces = self._one(units.force, self._tag(level.forces, "forces"), level.forces_unit, f"levels.{name}.forces_unit")
        stress = self._one(units.stress, self._tag(level.stress, "stress"), level.stress_unit, f"levels.{name}.stress_unit")
        virial = self._one(units.energy, self._tag(level.virial, "virial"), None, "")
        return {
            "energy": energy,
            "forces": energy / self.length if forces is None else forces,
            "stress": energy / self.length**3 if stress is None else stress,
            "virial": energy if virial is None else virial,
        }

    def obeyed(self, levels):
        """In words, what the file says that is neither mfmd's unit nor told by the config; None if nothing."""
        silent = self.config.energy_unit is None and self.config.length_unit is None
        found = {"length": self.length} | {
            f"{kind} of {name}": f for name, level in levels.items() for kind, f in self.of(name, level).items()
        }
        tags = sorted({str(tag) for tag in self.said.values()})
        if silent and tags and any(f != 1.0 for f in found.values()):
            return f"the file says that its numbers are in {', '.join(tags)}, and they are converted to eV and Å"
        return None

    def _tag(self, key, kind):
        return self.said.get(key) or self.said.get(kind)

    def _one(self, parse, said, wanted, key, usual=None):
        try:
            found = parse(said) if said else None
        except ValueError as error:
            if not wanted:
                raise DataError(f"{self.path}: the file's unit {error}; say what it is with {key or 'data.energy_unit'}") from None
            found = None  # the config says what it is
        if found is not None and wanted and abs(parse(wanted) / found - 1) > 1e-4:
            raise DataError(f"{self.path}: the file says {said}, and {key} says {wanted}; leave out the key, or correct the file")
        name = wanted or usual
        return found if found is not None else parse(name) if name else None


def _convert(structure, unit, levels):
    """In place, to Å and eV; gradients become forces, and virials stresses."""
    structure.positions, structure.cell = structure.positions * unit.length, structure.cell * unit.length
    for name, label in structure.labels.items():
        level, factor = levels[name], unit.of(name, levels[name])
        for kind in (*KINDS, "virial"):
            if (value := getattr(label, kind)) is not None:
                setattr(label, kind, value * factor[kind])
        if label.forces is not None and holds_gradients(name, level):
            label.forces = -label.forces
        if label.virial is not None:
            if label.stress is not None:
                raise DataError(f"{structure.source}: level {name} has both {level.stress} and {level.virial}; leave one of the keys out")
            label.stress = -units.voigt(label.virial) / abs(np.linalg.det(structure.cell))
            label.virial = None


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


def of_run(config):
    """{split: structures} as the run of a config reads them, with the training labels that it keeps."""
    splits, _ = read_all(config.data, config.levels, Path(config.out) / "data")
    keep_labels(splits["train"], config.levels, config.data.split_seed)
    return splits


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


def subset_states(structures, level):
    """Charges and multiplicities with a label of this level, of structures or of their fragments, ascending."""
    return sorted({state for s in structures if level in s.labels for state in s.states})


def has_states(structures):
    """Whether any of the structures is not a neutral closed shell."""
    return any(state != NEUTRAL for s in structures for state in s.states)
