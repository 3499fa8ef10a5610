"""Atomic reference energies, E0, and what charge and unpaired electrons add to them: read, fitted, and what those of a head that begins are."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from mfmd import progress, units
from mfmd.config import ConfigError
from mfmd.structures import reading
from mfmd.structures.checks import deviations
from mfmd.structures.record import DataError
from mfmd.structures.state import state_terms
from mfmd.training.batches import collation, device_of
from mfmd.training.heads import TABLE


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
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f'{path}: not a table of isolated atoms ({error!r}); wanted: {{"unit": "eV", "energies": {{"H": {{"level": -13.6}}}}}}'
        ) from None
    return table


def given_atoms(config, isolated):
    """Isolated-atom energies {level: {Z: eV}}: of data.atoms, and of atoms that stand among the structures. DataError where the two differ."""
    table = read_atoms(config.data.atoms, config.levels) if config.data.atoms else {level: {} for level in config.levels}
    for level, energies in isolated.items():
        for z, energy in energies.items():
            if abs(table[level].setdefault(z, energy) - energy) > 1e-3:
                raise DataError(
                    f"data.atoms: {config.data.atoms}: {chemical_symbols[z]} has {table[level][z]:.4f} eV at level {level}, and an isolated atom among the "
                    f"structures {energy:.4f} eV; correct one of them"
                )
    return table


def by_atoms(config, level, structures, isolated):
    """Whether a level's E0 are those of isolated atoms: as levels.<level>.e0 says, else where these stand among the structures for all its elements, and no
    checkpoint is begun from, whose heads mean by an isolated atom what they were taught."""
    said = config.levels[level].e0
    return said == "atoms" or (
        said is None
        and config.backbone.checkpoint is None
        and set(isolated.get(level, ())) >= set(reading.subset_elements(structures, level))
    )


def fit_reference_energies(structures, energies, elements, level, given, of_states=(0.0, 0.0, 0.0)):
    """Energies per element, and per term of the states of fragments, such that their sums come closest to `energies` (least squares, eV).

    structures, energies : as many; elements : atomic numbers wanted; level : for messages. Energies that stand far out from the others
        (checks.deviations) have no say
    given, of_states : {Z: eV} and eV of each of state.state_terms; where compositions do not determine the solution, that with the smallest
        deviation from these is taken

    Returns
    -------
    {Z: eV}, eV of each of state.state_terms, and whether the compositions determine all of it
    """
    if not structures:
        missing = [chemical_symbols[z] for z in elements if z not in given]
        if missing:
            raise DataError(f"levels.{level}: it has no energies to fit E0 to, and data.atoms has none for {', '.join(missing)}")
        return {z: given[z] for z in elements}, np.asarray(of_states), True
    kept = _usual(structures, energies)
    counts = np.empty((len(kept), len(elements) + 3))
    for row, k in zip(counts, kept, strict=True):
        s = structures[k]
        row[:] = [*(np.count_nonzero(s.numbers == z) for z in elements), *state_terms(s.states).sum(0)]
    start = np.array([*(given.get(z, 0.0) for z in elements), *of_states])
    rows, index = np.unique(counts, axis=0, return_inverse=True)
    weight = np.sqrt(np.bincount(index.ravel()))
    mean = np.bincount(index.ravel(), np.asarray(energies)[kept] - counts @ start) / weight**2
    change, _, rank, _ = np.linalg.lstsq(rows * weight[:, None], mean * weight, rcond=1e-10)
    found = start + change
    return dict(zip(elements, found[:-3].tolist(), strict=True)), found[-3:], bool(rank == np.count_nonzero(counts.any(axis=0)))


def _usual(structures, energies):
    """Which of structures and energies do not stand far out from the others."""
    off = deviations(structures, energies) / [len(s.numbers) for s in structures]
    return np.flatnonzero(np.abs(off) <= max(0.5, 30.0 * np.median(np.abs(off))))


def fit_new_states(model, level, seen, structures, config):
    """In place, what those terms of states add that a level of the checkpoint has not met: by least squares of what it leaves of the energies (eV).

    seen : the States that it was trained on
    """
    new = ~state_terms(seen).any(axis=0)
    labelled = reading.where(structures, lambda s: s.has_energy(level) and state_terms(s.states)[:, new].any())
    if not len(labelled):
        return
    predicted = in_batches(model, lambda batch: model.eval()(batch)[level].energy, labelled, config)
    rest = np.array([s.labels[level].energy - e for s, e in zip(labelled, predicted, strict=True)])
    kept = _usual(labelled, rest)
    counts = np.array([state_terms(labelled[k].states).sum(0) for k in kept]) * new
    model.heads[level].of_states += torch.as_tensor(np.linalg.lstsq(counts, rest[kept], rcond=1e-10)[0], device=device_of(model))


def known_elements(structures, level, imported):
    """Atomic numbers that a level knows, ascending: those of its labels, and of a head of the checkpoint; imported: {level: theirs}."""
    return sorted({*reading.subset_elements(structures, level), *imported.get(level, ())})


def reference_energies(config, level, source, model, before, structures, atoms, fixed, imported):
    """(119,) E0 and (3,) of_states of a head that begins, a copy of that of `source` or none's, eV; of a relative head the difference to its parent's.

    atoms : {level: {Z: eV}}, isolated ones; fixed : they are the level's E0, instead of a fit; imported : {level: atomic numbers} of the checkpoint
    """
    elements, parent = reading.subset_elements(structures, level), model.delta_of.get(level)
    chain = model.chain(level)[1:]
    inherited = {z: sum(float(model.heads[h].e0[z]) for h in chain) for z in elements}
    of_chain = sum((model.heads[h].of_states.cpu().numpy() for h in chain), np.zeros(3))
    below = source if source in imported else parent
    if below is not None:
        known = known_elements(structures, below, imported)
        if missing := [chemical_symbols[z] for z in elements if z not in known]:
            raise ConfigError(
                f"levels.{level}: {below}, from which its head begins, was never trained on {', '.join(missing)}, which {level} has"
            )
    if fixed and (missing := [chemical_symbols[z] for z in elements if z not in atoms[level]]):
        raise ConfigError(f"levels.{level}.e0 is atoms, but data.atoms has no energy of this level for {', '.join(missing)}")
    labelled = reading.where(structures, lambda s: s.has_energy(level))
    fitted, of_states, determined = {z: atoms[level][z] - inherited[z] for z in elements} if fixed else {}, np.zeros(3), True
    if not fixed or any(state_terms(s.states).any() for s in labelled):
        both = reading.where(labelled, lambda s: s.has_energy(parent))
        given, begin = atoms[level], np.zeros(3)
        if source is None and len(both) and {int(z) for s in both for z in s.numbers} == set(elements):
            labelled, rest = both, [s.labels[parent].energy for s in both]
            given = {z: e - atoms[parent][z] for z, e in given.items() if z in atoms[parent]}
        else:
            rest = [
                model.constant(level) + sum(inherited[int(z)] for z in s.numbers) + state_terms(s.states).sum(0) @ of_chain
                for s in labelled
            ]
            trained = source is not None or (parent is not None and before is not None)
            if trained:
                rest = np.add(rest, network_energies(model, labelled, level, config))
            elif model.backbone.repulsion is not None:
                rest = np.add(rest, repulsions(model, labelled, config))
            if source is not None:
                shift = {z: given[z] - atoms[source][z] for z in given.keys() & atoms[source].keys()}
                given = {z: float(model.heads[source].e0[z]) + shift.get(z, 0.0) for z in elements}
                begin = model.heads[source].of_states.cpu().numpy()
            else:
                given = {z: e - inherited[z] for z, e in given.items() if z in inherited}
        energies = [s.labels[level].energy - r for s, r in zip(labelled, rest, strict=True)]
        free, of_states, determined = fit_reference_energies(labelled, energies, elements, level, given, begin)
        fitted = fitted or free
        if not determined and not fixed:
            base = (
                f"that of {source}"
                if source is not None
                else "the isolated atoms of data.atoms"
                if atoms[level]
                else "zero; give data.atoms"
            )
            warnings.warn(f"levels.{level}: its compositions do not determine E0; taken is the fit closest to {base}", stacklevel=1)
    e0 = np.zeros(TABLE)
    e0[list(fitted)] = list(fitted.values())
    return e0, of_states


def network_energies(model, structures, level, config):
    """What the networks of a level's chain of heads give, without E0; eV."""
    return in_batches(model, lambda batch: model.eval()(batch)[level].network_energy, structures, config)


def repulsions(model, structures, config):
    """Of the nuclei of each structure, which a network that is not trained yet has beside it; eV."""
    return in_batches(model, lambda batch: model.repulsion(batch, batch.positions, batch.shifts), structures, config)


def in_batches(model, energies, structures, config, batch_size=32):
    """What a function of a batches.Batch on the device of a model gives for structures, one behind the other; eV."""
    out = []
    with torch.no_grad():
        for start in progress.over(range(0, len(structures), batch_size), "predicting energies", "batches"):
            batch = collation(config, [])(structures[start : start + batch_size]).to(device_of(model))
            out += energies(batch).double().tolist()
    return out
