"""What a structure and its labels must be like before anything is learned from them."""

import itertools

import numpy as np

from mfmd import units
from mfmd.engine import CLOSEST, InputError, neighbor_list
from mfmd.structures.charge import charge_or_spin
from mfmd.structures.record import KINDS, MAX_Z, DataError

MOST_CHECKED = 20_000  # structures by which units are judged


def check_structure(s):
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
        if not any(s.labels.get(name) for s in structures):
            files = ", ".join(map(str, config.train))
            keys = ", ".join(getattr(level, kind) for kind in KINDS)
            raise DataError(f"levels.{name}: no training structure in {files} has one of its keys {keys}")


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
