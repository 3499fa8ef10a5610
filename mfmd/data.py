"""Labelled structures: the record every reader fills, checks of what was read, splits, and batches for training."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from mfmd import Error, units
from mfmd.engine import CLOSEST, InputError, charge_or_spin, neighbor_list

MAX_Z = 118
MOST_CHECKED = 20_000  # structures by which units are judged


class DataError(Error):
    """A data file cannot be used; names the file, the structure, the key and what to do."""


@dataclass
class Label:
    """What one level says of one structure; anything may be missing."""

    energy: float | None = None  # eV, total
    forces: np.ndarray | None = None  # (atoms, 3) eV/Å
    stress: np.ndarray | None = None  # (6,) eV/Å³, Voigt

    def count(self, kind):
        return int(getattr(self, kind) is not None)


KINDS = ("energy", "forces", "stress")
SPLITS = ("train", "val", "test")


@dataclass
class Structure:
    numbers: np.ndarray  # (atoms,)
    positions: np.ndarray  # (atoms, 3) Å
    cell: np.ndarray  # (3, 3) Å
    pbc: np.ndarray  # (3,) bool
    labels: dict[str, Label]
    source: str  # file and frame, for messages
    info: dict = field(default_factory=dict)
    charges: np.ndarray | tuple = ()  # initial charges and magnetic moments of the atoms, where the file has them
    moments: np.ndarray | tuple = ()


# ------------------------------------------------------------------------------------------------ reading


def read(config, levels, folder=None):
    """Structures of the three splits.

    Parameters
    ----------
    config : plan.Data, files and units
    levels : {name: plan.Level}, keys of the labels
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
        from mfmd.packed import Packed, pack  # it imports the record from here

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
    _check_labels(splits["train"], config, levels)
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


def where(structures, condition):
    """The structures for which the condition holds: a list, or of packed ones a subset that stays in its file."""
    return _subset(structures, np.fromiter((k for k, s in enumerate(structures) if condition(s)), dtype=np.int64))


def _subset(structures, indices):
    return [structures[k] for k in indices] if isinstance(structures, list) else structures.subset(indices)


def read_file(path, config, levels):
    """Structures of one file, checked, in Å and eV; config : plan.Data, its units. DataError as in `read`."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file (data files are looked up from the folder the command runs in)")
    from mfmd import readers  # these import the record from here

    energy, length = units.ENERGY[config.energy_unit], units.LENGTH[config.length_unit]
    if readers.format_of(path) == "multifidelity" and (energy, length) != (1.0, 1.0):
        raise DataError(f"{path}: each label names its unit itself; leave out data.energy_unit and data.length_unit")
    for frame in readers.read(path, levels):
        structure = Structure(**frame)
        _check_structure(structure)
        structure.positions = structure.positions * length
        structure.cell = structure.cell * length
        _check_distances(structure)
        for label in structure.labels.values():
            label.energy = None if label.energy is None else label.energy * energy
            label.forces = None if label.forces is None else label.forces * (energy / length)
            label.stress = None if label.stress is None else label.stress * (energy / length**3)
        yield structure


def _check_structure(s):
    if not np.isfinite(s.positions).all():
        raise DataError(f"{s.source}: a position is not finite")
    if len(s.numbers) == 0:
        raise DataError(f"{s.source}: the structure has no atoms")
    if s.numbers.min() < 1 or s.numbers.max() > MAX_Z:
        raise DataError(f"{s.source}: {s.numbers.min()} to {s.numbers.max()} are not all atomic numbers")
    if reason := charge_or_spin(s.info, s.charges, s.moments):
        raise DataError(f"{s.source}: {reason}; remove the structure")
    shapes = {"forces": (len(s.numbers), 3), "stress": (6,)}
    for level, label in s.labels.items():
        for kind in KINDS:
            value = getattr(label, kind)
            if value is None:
                continue
            if np.shape(value) != shapes.get(kind, ()):
                raise DataError(f"{s.source}: {kind} of level {level} has the shape {np.shape(value)}, not {shapes.get(kind, ())}")
            if not np.isfinite(value).all():
                raise DataError(f"{s.source}: {kind} of level {level} is not finite; leave the key out where there is no label")
    if any(label.stress is not None for label in s.labels.values()) and not s.pbc.all():
        raise DataError(f"{s.source}: a stress label on a structure that is not periodic in three directions")


def _check_distances(s):
    """What the engine would refuse is no training structure either."""
    try:
        i, j, _, vectors = neighbor_list(s.positions, s.cell, s.pbc, CLOSEST)
    except InputError as error:
        raise DataError(f"{s.source}: {error}") from None
    if len(i):
        raise DataError(f"{s.source}: atoms {i[0]} and {j[0]} are {np.linalg.norm(vectors[0]):.2f} Å apart; is data.length_unit right?")


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


def _check_labels(structures, config, levels):
    for name, level in levels.items():
        if not any(s.labels.get(name) for s in structures):
            files = ", ".join(map(str, config.train))
            keys = ", ".join(getattr(level, kind) for kind in KINDS)
            raise DataError(f"levels.{name}: no training structure in {files} has one of its keys {keys}")


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


# ------------------------------------------------------------------------------------------------ reference energies


def read_atoms(path, levels, energy_unit="eV"):
    """Isolated-atom energies {level: {Z: eV}} of a JSON file {"unit": …, "energies": {element: {level: energy}}}."""
    try:
        content = json.loads(Path(path).read_text())
        scale = units.ENERGY[content.get("unit", energy_unit)]
        table = {level: {} for level in levels}
        for element, energies in content["energies"].items():
            for level in levels:
                if level in energies:
                    table[level][atomic_numbers[element]] = float(energies[level]) * scale
    except FileNotFoundError:
        raise DataError(f"data.atoms: {path}: no such file") from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: not a table of isolated atoms ({error!r}); wanted: {{"unit": "eV", "energies": {{"H": {{"level": -13.6}}}}}}'
        ) from None
    return table


def fit_reference_energies(structures, energies, elements, level, given):
    """Energies per element such that their sums come closest to `energies` (least squares, eV).

    structures, energies : as many; elements : atomic numbers wanted; level : for messages
    given : {Z: eV}; where compositions do not determine the solution, that with the smallest deviation from these is taken

    Returns
    -------
    {Z: eV}, and whether the compositions determine it
    """
    if not structures:
        missing = [chemical_symbols[z] for z in elements if z not in given]
        if missing:
            raise DataError(f"levels.{level}: it has no energies to fit E0 to, and data.atoms has none for {', '.join(missing)}")
        return {z: given[z] for z in elements}, True
    counts = np.empty((len(structures), len(elements)))
    for row, s in zip(counts, structures, strict=True):
        row[:] = [np.count_nonzero(s.numbers == z) for z in elements]
    start = np.array([given.get(z, 0.0) for z in elements])
    rows, index = np.unique(counts, axis=0, return_inverse=True)
    weight = np.sqrt(np.bincount(index.ravel()))
    mean = np.bincount(index.ravel(), np.asarray(energies) - counts @ start) / weight**2
    change, _, rank, _ = np.linalg.lstsq(rows * weight[:, None], mean * weight, rcond=1e-10)
    return dict(zip(elements, (start + change).tolist(), strict=True)), bool(rank == len(elements))


def check_units(structures, levels, given, config):
    """Refuse energies that cannot be in the declared unit; of very many structures a sample says so.

    Three tests, each with a wide margin (the units in use differ by a factor of 23 or more): energies per atom against
    the given isolated atoms; the spread of energies within a composition against the forces (a length, some 0.1 Å for
    thermal structures); and the spread of one level against another's over the same structures.
    """
    hint = f"data.energy_unit is {config.energy_unit}; it may be one of {', '.join(units.ENERGY)}"
    structures = structures[:: 1 + len(structures) // MOST_CHECKED]
    spread = {}
    for level in levels:
        labelled = [s for s in structures if level in s.labels and s.labels[level].energy is not None]
        groups = {}
        for s in labelled:
            groups.setdefault(tuple(sorted(s.numbers.tolist())), []).append(s)
            known = given.get(level, {})
            if all(int(z) in known for z in s.numbers):
                binding = (s.labels[level].energy - sum(known[int(z)] for z in s.numbers)) / len(s.numbers)
                if not -25.0 < binding < 5.0:
                    raise DataError(
                        f"{s.source}: the energy of level {level} is {binding:+.1f} eV an atom away from that of the isolated atoms "
                        f"in data.atoms, which no molecule is; {hint}"
                    )
        deviations = {}
        for group in groups.values():
            if len(group) < 5:
                continue
            mean = np.mean([s.labels[level].energy for s in group])
            for s in group:
                deviations[id(s)] = (s.labels[level].energy - mean, s)
        spread[level] = {k: d for k, (d, _) in deviations.items()}
        # Relaxed structures have no forces to compare with.
        pairs = [
            (d / np.sqrt(3 * len(s.numbers)), s.labels[level].forces) for d, s in deviations.values() if s.labels[level].forces is not None
        ]
        if len(pairs) >= 20:
            force = np.sqrt(np.mean(np.concatenate([f.ravel() for _, f in pairs]) ** 2))
            length = np.sqrt(np.mean([d**2 for d, _ in pairs])) / max(force, 1e-12)
            if force > 0.2 and not 0.006 < length < 0.6:
                raise DataError(
                    f"levels.{level}: energies vary by {length:.2g} Å times the forces, where thermal structures give about 0.06; "
                    f"energies and forces are in different units. {hint}"
                )
    names = list(spread)
    for low, high in itertools.pairwise(names):
        shared = sorted(spread[low].keys() & spread[high].keys())
        if len(shared) >= 20:
            ratio = np.std([spread[high][k] for k in shared]) / max(np.std([spread[low][k] for k in shared]), 1e-12)
            if not 0.2 < ratio < 5.0:
                raise DataError(
                    f"levels.{high}: its energies vary {ratio:.2g} times as much as those of {low} on the same structures; "
                    f"the two are in different units. {hint}"
                )


# ------------------------------------------------------------------------------------------------ batches


@dataclass
class Batch:
    """Structures one behind the other. Pairs are one of each (i, j, S), (j, i, -S); the model adds the reverse."""

    numbers: torch.Tensor  # (atoms,)
    positions: torch.Tensor  # (atoms, 3) Å
    structure: torch.Tensor  # (atoms,) which structure an atom belongs to
    i: torch.Tensor  # (pairs,)
    j: torch.Tensor  # (pairs,)
    shifts: torch.Tensor  # (pairs, 3) S @ cell, Å
    volume: torch.Tensor  # (structures,) Å³
    sizes: torch.Tensor  # (structures,) atoms
    energy: dict[str, torch.Tensor]  # (structures,) eV, double; NaN where missing
    forces: dict[str, torch.Tensor]  # (atoms, 3) eV/Å; a level without any is absent
    stress: dict[str, torch.Tensor]  # (structures, 6) eV/Å³; likewise


def half_pairs(structure, cutoff):
    """One of each pair and its reverse: i, j, S @ cell."""
    i, j, shifts, _ = neighbor_list(structure.positions, structure.cell, structure.pbc, cutoff)
    forward = (i < j) | ((i == j) & _positive(shifts))
    cell = np.where(np.asarray(structure.pbc)[:, None], structure.cell, 0.0)
    return i[forward], j[forward], shifts[forward] @ cell


def _positive(shifts):
    return (shifts[:, 0] > 0) | ((shifts[:, 0] == 0) & ((shifts[:, 1] > 0) | ((shifts[:, 1] == 0) & (shifts[:, 2] > 0))))


def collate(structures, levels, cutoff, dtype):
    """A Batch of Structure records with the labels of `levels`; a level without a label of a kind has no entry there."""
    pairs, start = [], 0
    for s in structures:
        i, j, shift = half_pairs(s, cutoff)
        pairs.append((i + start, j + start, shift))
        start += len(s.numbers)
    sizes = [len(s.numbers) for s in structures]

    def labels(kind, empty, kind_dtype):
        out = {}
        for level in levels:
            values = [getattr(s.labels[level], kind) if level in s.labels else None for s in structures]
            if any(v is not None for v in values):
                filled = [empty(n) if v is None else np.reshape(v, empty(n).shape) for v, n in zip(values, sizes, strict=True)]
                out[level] = torch.as_tensor(np.concatenate(filled), dtype=kind_dtype)
        return out

    return Batch(
        numbers=torch.as_tensor(np.concatenate([s.numbers for s in structures]), dtype=torch.long),
        positions=torch.as_tensor(np.concatenate([s.positions for s in structures]), dtype=dtype),
        structure=torch.repeat_interleave(torch.arange(len(structures)), torch.tensor(sizes)),
        i=torch.as_tensor(np.concatenate([p[0] for p in pairs]), dtype=torch.long),
        j=torch.as_tensor(np.concatenate([p[1] for p in pairs]), dtype=torch.long),
        shifts=torch.as_tensor(np.concatenate([p[2] for p in pairs]), dtype=dtype),
        volume=torch.as_tensor([abs(np.linalg.det(s.cell)) if s.pbc.all() else 1.0 for s in structures], dtype=dtype),
        sizes=torch.tensor(sizes),
        energy=labels("energy", lambda n: np.full(1, np.nan), torch.float64),
        forces=labels("forces", lambda n: np.full((n, 3), np.nan), dtype),
        stress=labels("stress", lambda n: np.full((1, 6), np.nan), dtype),
    )


class Sampler(torch.utils.data.Sampler):
    """Every structure `weight` times an epoch (fractions by lot), in an order that only seed and epoch decide."""

    def __init__(self, weights, seed):
        self.weights, self.seed, self.epoch = np.asarray(weights, float), seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        times = np.floor(self.weights).astype(int)
        rest = self.weights - times
        if (extra := len(self) - times.sum()) > 0:
            times[rng.choice(len(times), extra, replace=False, p=rest / rest.sum())] += 1
        order = np.repeat(np.arange(len(self.weights)), times)
        rng.shuffle(order)
        return map(int, order)

    def __len__(self):
        return max(1, round(self.weights.sum()))


class Batches(torch.utils.data.Sampler):
    """Of each batch of `size` structures that a Sampler gives the share of one process; a last batch too small for all joins the one before."""

    def __init__(self, sampler, size, rank=0, world=1):
        self.sampler, self.size, self.rank, self.world = sampler, size, rank, world

    def __iter__(self):
        order = list(self.sampler)
        for k in range(len(self)):
            end = (k + 1) * self.size if k + 1 < len(self) else len(order)
            yield order[k * self.size : end][self.rank :: self.world]

    def __len__(self):
        whole, rest = divmod(len(self.sampler), self.size)
        return max(1, whole + (rest >= self.world))
