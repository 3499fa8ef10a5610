"""What a structure and its labels must be like before anything is learned from them."""

import itertools
import warnings

import numpy as np

from mfmd import Note, units
from mfmd.engine import CLOSEST, InputError, neighbor_list
from mfmd.structures import consistency
from mfmd.structures.record import KINDS, MAX_Z, DataError
from mfmd.structures.state import StateError, read_states, state_terms

MOST_CHECKED = 3_000  # structures by which units are judged


def check_structure(s, spin=None):
    """Fills in the states as well; spin : what keys called so mean, as for read_states."""
    if not np.isfinite(s.positions).all():
        raise DataError(f"{s.source}: a position is not finite")
    if len(s.numbers) == 0:
        raise DataError(f"{s.source}: the structure has no atoms")
    if s.numbers.min() < 1 or s.numbers.max() > MAX_Z:
        raise DataError(f"{s.source}: {s.numbers.min()} to {s.numbers.max()} are not all atomic numbers")
    try:
        s.states, s.fragment, s.unsaid = read_states(s.numbers, s.info, s.charges, s.moments, s.fragment, s.pbc, spin)
    except StateError as error:
        raise DataError(f"{s.source}: {error}{'' if ';' in str(error) else '; correct it, or remove the structure'}") from None
    shapes = {"forces": (len(s.numbers), 3), "stress": (6,), "virial": (3, 3)}
    for level, label in s.labels.items():
        if label.virial is not None and np.size(label.virial) == 9:
            label.virial = np.reshape(label.virial, (3, 3))
        for kind in (*KINDS, "virial"):
            value = getattr(label, kind)
            if value is None:
                continue
            if np.shape(value) != shapes.get(kind, ()):
                raise DataError(f"{s.source}: {kind} of level {level} has the shape {np.shape(value)}, not {shapes.get(kind, ())}")
            if not np.isfinite(value).all():
                raise DataError(f"{s.source}: {kind} of level {level} is not finite; leave the key out where there is no label")
    if any(label.stress is not None or label.virial is not None for label in s.labels.values()) and not np.all(s.pbc):
        raise DataError(f"{s.source}: a stress label on a structure that is not periodic in three directions")


def check_distances(s):
    """What the engine would refuse is no training structure either."""
    try:
        i, j, _, vectors = neighbor_list(s.positions, s.cell, s.pbc, CLOSEST)
    except InputError as error:
        raise DataError(f"{s.source}: {error}") from None
    if len(i):
        raise DataError(f"{s.source}: atoms {i[0]} and {j[0]} are {np.linalg.norm(vectors[0]):.2f} Å apart; is data.length_unit right?")


def check_labels(structures, config, levels):
    for name, level in levels.items():
        files = ", ".join(str(path) for path, own in config.files("train") if own in (None, name))
        if level.from_ is None and not any(s.labels.get(name) for s in structures):
            keys = ", ".join(getattr(level, kind) for kind in KINDS)
            raise DataError(f"levels.{name}: no training structure in {files} has one of its keys {keys}")
        for kind in KINDS:  # keys that were named, and not those there are by default
            key = getattr(level, kind)
            if key not in ("", "-", kind, f"{kind}_{name}") and not any(
                name in s.labels and s.labels[name].count(kind) for s in structures
            ):
                warnings.warn(f"levels.{name}.{kind}: no training structure in {files} has the key {key!r}", stacklevel=4)


def check_units(structures, levels, given, config):
    """Refuse labels that are not what they are taken for, by laws that hold for any molecule (consistency.py); of very many structures a sample says so.

    given : {level: {Z: eV}}, isolated atoms. A level that is `unchecked` has its questions as warnings. DataError otherwise.
    """
    for name, level in levels.items():
        for sentence in questions(structures, name, level, given.get(name, {}), config):
            if not level.unchecked:
                raise DataError(f"{sentence}; if it is meant, set levels.{name}.unchecked")
            warnings.warn(sentence, stacklevel=2)
    for sentence in between_levels(structures, levels):
        raise DataError(sentence)


def questions(structures, name, level, given, config):
    """Sentences on what of a level's labels is not what it is taken for, each with the key that mends it; what cannot be told, and frames that stand out
    from the others, are warnings."""
    labelled = [s for s in structures[:: 1 + len(structures) // MOST_CHECKED] if name in s.labels]
    for sentence in outliers(labelled, name):
        warnings.warn(sentence, stacklevel=3)
    yield from _zero_forces(labelled, name)
    yield from _forces(labelled, name, level)
    files = {}
    for s in (s for s in structures if name in s.labels):
        files.setdefault(s.source.partition(": ")[0], []).append(s)
    for file, own in files.items() if 1 < len(files) <= MOST_FILES else ():
        yield from (f"{file}: {sentence}" for sentence in _forces(own[:: 1 + len(own) // MOST_CHECKED], name, level, alone=False))
    yield from _binding(labelled, name, given, config)
    yield from _stresses(labelled, name)


MOST_FILES = 50  # that are asked one by one, since each may have conventions of its own
PULL = -80.0, -12.0  # eV/Å²; measured are -53 to -20
USUAL_PULL = -34.0
WORK = 0.7, 1.4  # measured are 0.87 to 1.20
FEW, WORK_OF_FEW = 40, (0.5, 1.75)  # frames, whose pairs say little that the others do not


def _forces(labelled, name, level, alone=True):
    """What is questionable of forces, and of energies beside them; alone: what cannot be told is told."""
    pull, work = consistency.pull(labelled, name), consistency.work(labelled, name)
    has_pull = pull.points >= 30 and abs(pull.correlation) > 0.7
    has_work = work.points >= 20 and abs(work.correlation) > 0.8
    low, high = WORK if work.frames >= FEW else WORK_OF_FEW
    # Where frames are too far apart for the trapezoidal rule, as in hot runs of small molecules, the slope is too small by so much.
    low *= work.correlation**2
    # Bonds that hardly stretch, as in scans of torsions, say nothing of the sign.
    if has_work and low <= work.value <= high and pull.value > 0:
        has_pull = False
    if (has_pull and not PULL[0] <= pull.value <= PULL[1]) or (has_work and not low <= work.value <= high):
        yield _blame(name, level, pull.value if has_pull else None, work.value if has_work else None)
    elif not alone:
        return
    elif not (has_pull or has_work) and any(s.labels[name].forces is not None for s in labelled):
        mixed = max((pull.points, pull.correlation, "bonds"), (work.points, work.correlation, "pairs of frames"))
        why = (
            f" ({mixed[0]:,} {mixed[2]} correlate by {mixed[1]:.2f} alone: are labels of several conventions mixed?)"
            if mixed[0] >= 200
            else ""
        )
        warnings.warn(
            f"levels.{name}: whether its forces are in the right unit and of the right sign cannot be told from these structures{why}",
            Note,
            stacklevel=4,
        )
    elif has_work and not has_pull:
        warnings.warn(
            f"levels.{name}: energies and forces fit each other; a unit that both share cannot be told from these structures",
            Note,
            stacklevel=4,
        )


def holds_gradients(name, level):
    """Whether what stands under a level's key of forces is taken for gradients: as it says, else where the key, but for the level's name, says so."""
    return level.forces_sign == "gradient" or (
        level.forces_sign is None and level.forces != f"forces_{name}" and "grad" in level.forces.lower()
    )


UNITS = {  # of forces and of energies, and how many times too large the numbers are
    "kcal/mol/Å": 1 / units.force("kcal/mol/Å"), "kJ/mol/Å": 1 / units.force("kJ/mol/Å"), "kJ/mol/nm": 1 / units.force("kJ/mol/nm"),
    "Hartree/Å": 1 / units.force("Hartree/Å"), "Hartree/Bohr": 1 / units.force("Hartree/Bohr"), "meV/Å": 1e3, "eV/Bohr": 1 / units.force("eV/Bohr"),
}  # fmt: skip


def _blame(name, level, pull, work):
    """What the forces, and the energies beside them, look like."""
    found = []
    if pull is not None:
        found.append(f"the force on hydrogen changes by {pull:+.3g} eV/Å² along its bonds, where molecules have {PULL[0]:g} to {PULL[1]:g}")
    if work is not None:
        found.append(
            f"energies change by {work:.3g} times the work of the forces between near frames, where they must by {WORK[0]:g} to {WORK[1]:g}"
        )
    sign = np.sign(pull if pull is not None else -work)
    factor = abs(pull / USUAL_PULL) if pull is not None else 1.0 / abs(work)
    unit, _ = min(UNITS.items(), key=lambda item: abs(np.log(factor / item[1])))
    mend = []
    if sign > 0:
        mend.append(f"the other sign? then levels.{name}.forces_sign: {'force' if holds_gradients(name, level) else 'gradient'}")
    if not 1 / 1.6 < factor < 1.6 and (pull is None or not PULL[0] <= -abs(pull) <= PULL[1]):
        both = work is not None and WORK[0] <= abs(work) <= WORK[1]
        energy = unit.rpartition("/")[0]
        mend.append(f"{unit}? then {f'data.energy_unit: {energy}' if both else f'levels.{name}.forces_unit: {unit}'}")
        if not both and work is None:
            mend.append(f"or data.energy_unit: {energy}, if the energies are in {energy} too")
    elif work is not None and not WORK[0] <= abs(work) <= WORK[1]:
        energy = min(units.ENERGY, key=lambda key: abs(np.log(abs(work) * units.ENERGY[key])))
        of_forces = min(UNITS, key=lambda key: abs(np.log(abs(work) * UNITS[key])))
        if abs(np.log(abs(work) * UNITS[of_forces])) < abs(np.log(abs(work) * units.ENERGY[energy])):
            mend.append(f"forces in {of_forces}? then levels.{name}.forces_unit: {of_forces}")
        else:
            mend.append(f"energies in {energy}? then levels.{name}.energy_unit: {energy}, and levels.{name}.forces_unit: eV/Å")
    return f"levels.{name}: {', and '.join(found)}; {', '.join(mend) or 'see data.energy_unit, data.length_unit and forces_unit'}"


def _binding(labelled, name, given, config):
    """Energies an atom against those of isolated atoms: of most neutral structures they cannot be far."""
    binding = [
        (s.labels[name].energy - sum(given[int(z)] for z in s.numbers)) / len(s.numbers)
        for s in labelled
        if s.labels[name].energy is not None and not s.charge and all(int(z) in given for z in s.numbers)
    ]
    if binding and not -25.0 < np.median(binding) < 5.0:
        yield (
            f"levels.{name}: energies are {np.median(binding):+.1f} eV an atom away from those of the isolated atoms in data.atoms, which no molecule is; "
            f"data.energy_unit is {config.energy_unit or 'eV, or as the file says'}; it may be one of {', '.join(units.ENERGY)}"
        )


def between_levels(structures, levels):
    """Energies of one level against another's over the same structures, less the median of each composition in its states: of most structures they are of one size."""
    structures = structures[:: 1 + len(structures) // MOST_CHECKED]
    spread = {}
    for name in levels:
        groups = {}
        for s in structures:
            if s.has_energy(name):
                groups.setdefault((np.sort(s.numbers).tobytes(), s.states), []).append(s)
        spread[name] = {}
        for group in groups.values():
            if len(group) >= 5:
                middle = np.median([s.labels[name].energy for s in group])
                spread[name] |= {id(s): abs(s.labels[name].energy - middle) for s in group}
    for low, high in itertools.pairwise(levels):
        shared = sorted(spread[low].keys() & spread[high].keys())
        if len(shared) < 20 or levels[low].unchecked or levels[high].unchecked:
            continue
        ratio = np.median([spread[high][k] for k in shared]) / max(np.median([spread[low][k] for k in shared]), 1e-12)
        if not 0.2 < ratio < 5.0:
            yield (
                f"levels.{high}: its energies vary {ratio:.2g} times as much as those of {low} on the same structures; the two are in different units: set "
                f"levels.{high}.energy_unit or levels.{low}.energy_unit (one of {', '.join(units.ENERGY)}); if it is meant, set levels.{high}.unchecked"
            )


def outliers(labelled, name):
    """Structures whose label stands out from all others, an energy from those with as many charges and unpaired electrons: names of the worst."""
    groups = {}
    for s in labelled:
        if s.labels[name].energy is not None:
            groups.setdefault(tuple(state_terms(s.states).sum(0)), []).append(s)
    for group in groups.values():
        if len(group) >= 5:
            off = deviations(group, [s.labels[name].energy for s in group]) / [len(s.numbers) for s in group]
            yield from _standing_out(name, "energy", "eV an atom from what its elements have in the others", group, off, 0.3)
    forced = [s for s in labelled if s.labels[name].forces is not None]
    if len(forced) >= 5:
        largest = np.array([np.abs(s.labels[name].forces).max() for s in forced])
        yield from _standing_out(name, "forces", "eV/Å", forced, largest, 20.0)


def _standing_out(name, kind, words, structures, values, least):
    limit = max(least, 30.0 * np.median(np.abs(values)))
    found = np.flatnonzero(np.abs(values) > limit)
    worst = found[np.argsort(-np.abs(values[found]))][:3]
    if 0 < len(found) <= max(1, 0.1 * len(values)):
        named = "; ".join(f"{structures[k].source}: {values[k]:+.4g} {words}" for k in worst)
        yield f"levels.{name}: the {kind} of {len(found)} of {len(values)} structures stand out, look at them first: {named}"


def deviations(structures, energies):
    """(structures,) eV by which energies differ from sums over the elements and the terms of states, fitted to the medians of compositions."""
    elements = sorted({int(z) for s in structures for z in s.numbers})
    counts = np.array([[*(np.count_nonzero(s.numbers == z) for z in elements), *state_terms(s.states).sum(0)] for s in structures], float)
    rows, index = np.unique(counts, axis=0, return_inverse=True)
    energies, index = np.asarray(energies, float), index.ravel()
    order = np.argsort(index, kind="stable")
    middles = np.array([np.median(part) for part in np.split(energies[order], np.cumsum(np.bincount(index))[:-1])])
    weight = np.sqrt(np.bincount(index))
    sums = np.linalg.lstsq(rows * weight[:, None], middles * weight, rcond=1e-10)[0]
    return energies - counts @ sums


def _zero_forces(labelled, name):
    """Forces that are zero on all atoms, but by symmetry: they were not computed."""
    zero = [s for s in labelled if s.labels[name].forces is not None and not np.any(s.labels[name].forces) and not _symmetric(s)]
    if len(zero) >= 2:
        yield (
            f"levels.{name}: the forces of {len(zero)} structures are zero on every atom, as where none were computed (the first is {zero[0].source}); "
            "leave the key out there, or give these a config_forces_weight of 0"
        )


def _symmetric(s):
    """Whether every atom's surroundings are such that no force can act: their directions cancel."""
    i, _, _, vectors = neighbor_list(s.positions, s.cell, s.pbc, 6.0)
    distances = np.linalg.norm(vectors, axis=1)
    pull = np.zeros((len(s.numbers), 3))
    np.add.at(pull, i, vectors * (np.exp(-distances) * (1.0 - distances / 6.0) ** 2)[:, None])
    return np.abs(pull).max(initial=0.0) < 1e-3


def _stresses(labelled, name):
    stressed = [s for s in labelled if s.labels[name].stress is not None]
    if not stressed:
        return
    slope = consistency.stress_work(stressed, name)
    told = slope.points >= 10 and abs(slope.correlation) > 0.8
    size = np.median([np.abs(s.labels[name].stress).max() for s in stressed])
    if size > 1.0 and not (told and WORK[0] <= slope.value <= WORK[1]):
        yield (
            f"levels.{name}: half of the stresses are above {size:.3g} eV/Å³ ({160.2 * size:.0f} GPa); set levels.{name}.stress_unit (GPa, kbar, …), or "
            f"levels.{name}.virial to the key if it holds virials"
        )
    elif not told:
        warnings.warn(
            f"levels.{name}: whether its stresses are in the right unit and of the right sign cannot be told, for want of near cells",
            Note,
            stacklevel=3,
        )
    elif not WORK[0] <= slope.value <= WORK[1]:
        yield (
            f"levels.{name}: between near cells energies change by {slope.value:.3g} times the work of the stresses, where they must by {WORK[0]:g} to "
            f"{WORK[1]:g}; a stress is dE/dε over the volume, positive where the cell wants to shrink: see levels.{name}.stress_unit, and virial for "
            "its opposite times the volume"
        )
