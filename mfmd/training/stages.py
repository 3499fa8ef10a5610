"""What a stage begins with, what it hands on, and guards that the plan is kept."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import torch
from ase.data import chemical_symbols

from mfmd import Error, Note, progress
from mfmd.config import ConfigError
from mfmd.structures import reading
from mfmd.structures.record import DataError, Label
from mfmd.structures.state import state_terms
from mfmd.training import energies
from mfmd.training.batches import collation, device_of
from mfmd.training.heads import TABLE, LinearHead, MLPHead
from mfmd.training.model import Model, TensorNet
from mfmd.training.start import architecture


class PlanError(Error):
    """A stage did not do what the plan says of it; a defect, found before it could spoil a run."""


def check_levels(config, splits, imported, states):
    """Levels have names that torch takes, and labels of those from the checkpoint are of elements that it knows; ConfigError, DataError.

    imported, states : {level: atomic numbers} and {level: States} of the checkpoint
    """
    for level in config.levels:
        if hasattr(torch.nn.ModuleDict, level):
            raise ConfigError(f"levels.{level}: torch keeps this name for itself; choose another")
    for s in (s for structures in splits.values() for s in structures):
        for level in s.labels.keys() & imported.keys():
            if unknown := sorted(set(s.numbers.tolist()) - set(imported[level])):
                raise DataError(
                    f"{s.source}: {', '.join(chemical_symbols[z] for z in unknown)} is not among the elements of level {level}, the head "
                    f"{config.imported[level]} of {config.backbone.checkpoint}; leave out this label"
                )
    if imported:
        known = {z for elements in imported.values() for z in elements}
        if new := sorted({z for level in config.levels for z in reading.subset_elements(splits["train"], level)} - known):
            warnings.warn(
                f"backbone.checkpoint: {config.backbone.checkpoint} knows nothing of {', '.join(chemical_symbols[z] for z in new)}, which training "
                "structures have: a stage whose backbone is frozen cannot learn them",
                Note,
                stacklevel=4,
            )
        met = np.any([state_terms(of_level).any(axis=0) for of_level in states.values()], axis=0)
        new = sorted({state for s in splits["train"] for state in s.states if state_terms([state])[:, ~met].any()})
        if new:
            words = "; ".join(f"charge {charge:+d}, multiplicity {multiplicity}" for charge, multiplicity in new)
            warnings.warn(
                f"backbone.checkpoint: {config.backbone.checkpoint} knows nothing of {words}, which training structures have: a stage whose backbone is "
                "frozen learns what these states add to an energy, and not that they change forces",
                Note,
                stacklevel=4,
            )


def begin(config, stage, before, structures, isolated=None, imported=None):
    """The Model a stage begins with.

    Parameters
    ----------
    stage : plan.Stage
    before : Model of the stage it starts from, or None for a new one (weights from torch's current random state)
    structures : training structures; E0 of a new head is fitted to them, and its scale is taken from their forces
    isolated : {level: {Z: eV}}, atoms that stood among the structures
    imported : {level: atomic numbers} of the levels of the checkpoint

    A new head has E0 fitted to its level's energies; a copied one to what its network leaves of them; a relative one to
    label − label where a structure has both, else to label − parent's prediction.
    """
    isolated, imported = isolated or {}, imported or {}
    atoms = energies.given_atoms(config, isolated)
    backbone = TensorNet(**architecture(config)) if before is None else before.backbone
    device = device_of(backbone)
    if reading.has_states(structures):
        backbone.add_states()
    heads = {} if before is None else dict(before.heads)
    for name in heads.keys() & (stage.levels if stage.backbone_rate == 0 else config.levels):
        heads[name].set_error_bars()  # they are of the weights as they were
    delta_of = {} if before is None else dict(before.delta_of)
    for level in config.levels:  # parents before those relative to them
        if level not in stage.levels or level in heads:
            continue
        how, source = stage.heads[level], None
        if how.startswith("delta "):
            delta_of[level] = how.removeprefix("delta ")
        elif how != "new":
            source = how
            delta_of |= {level: delta_of[how]} if how in delta_of else {}
        if source is not None:
            heads[level] = copy.deepcopy(heads[source])
            heads[level].set_error_bars()
        elif stage.fit == "closed form":
            heads[level] = LinearHead(config.backbone.channels, np.zeros(TABLE))
        else:
            others = [float(head.scale) for head in heads.values()]
            scale = _scale(structures, level) or (others[-1] if others else 1.0)
            heads[level] = MLPHead(config.backbone.channels, scale, np.zeros(TABLE), level in delta_of, config.heads_per_level)
        partial = Model(backbone, heads, delta_of).to(device)
        fixed = energies.by_atoms(config, level, structures, isolated)
        e0, of_states = energies.reference_energies(config, level, source, partial, before, structures, atoms, fixed, imported)
        heads[level].e0.copy_(torch.as_tensor(e0))
        heads[level].of_states.copy_(torch.as_tensor(of_states))
        if fixed:  # an isolated atom has the energy that is given, whatever the levels below add to a structure
            heads[level].constant -= partial.constant(level)
    return Model(backbone, {level: heads[level] for level in config.levels if level in heads}, delta_of)


def _scale(structures, level):
    """Root mean square of the level's force components, the size its energies vary by over an Å, but for structures that stand far out; None without
    forces."""
    labels = (s.labels[level].forces for s in structures if level in s.labels)  # one at a time: they may be on disk
    sums = np.array([[np.sum(f**2), f.size] for f in labels if f is not None]).reshape(-1, 2)
    sizes = np.sqrt(sums[:, 0] / sums[:, 1])
    total, count = 0.0, 0
    for size, (square, number) in zip(sizes, sums, strict=True):
        if size <= max(30.0 * np.median(sizes), 1e-12):
            total, count = total + float(square), count + int(number)
    return float(np.sqrt(total / count)) if count else None


def check_beginning(model, start, stage, structures, config):
    """Before the first update the model predicts what the plan implies, or PlanError.

    Levels from before as before; a copied head what its source does, apart from E0; a relative head its parent's energy.
    """
    structures = structures[:64]
    batch = collation(config, [])(structures).to(device_of(model))
    with torch.no_grad():
        now = {level: p.network_energy for level, p in model.eval()(batch).items()}
        then = {level: p.network_energy for level, p in start.eval()(batch).items()} if start else {}
    expected = dict(then)
    for level in stage.levels:
        if level not in then:
            how = stage.heads[level]
            if how.startswith("delta "):
                expected[level] = now[how.removeprefix("delta ")]
            elif how != "new":
                expected[level] = then[how]
    for level, value in expected.items():
        if level not in now or not torch.equal(now[level], value):
            raise PlanError(f"stages.{stage.name}: before its first update level {level} does not predict what the plan implies")
    if missing := [level for level in stage.levels if level not in now]:
        raise PlanError(f"stages.{stage.name}: it has no head for {', '.join(missing)}")


def check_frozen(model, before, stage):
    """What the stage froze is bitwise what it was, or PlanError."""
    trained = ["heads." + level + "." for level in stage.levels if stage.heads_rate > 0] + (
        ["backbone."] if stage.backbone_rate > 0 else []
    )
    for name, value in model.state_dict().items():
        if not name.startswith(tuple(trained)) and not torch.equal(value, before[name]):
            raise PlanError(f"stages.{stage.name}: {name} is frozen, and yet it has changed")


def calibrate(model, stage, structures, config):
    """Scale the spread of the stage's ensembles so that it holds 68.3 % of the validation errors of energies."""
    ratios = {level: [] for level in stage.levels if getattr(model.heads[level], "members", 1) > 1}
    with torch.no_grad():
        for start in range(0, len(structures) if ratios else 0, 32):
            batch = collation(config, list(ratios))(structures[start : start + 32]).to(device_of(model))
            for level, p in ((level, p) for level, p in model.eval()(batch).items() if level in batch.energy and level in ratios):
                ratio = (p.energy - batch.energy[level]).abs() / p.deviations.double().std(dim=1)
                ratios[level] += ratio[~torch.isnan(ratio)].tolist()
    for level, values in ratios.items():
        if values:
            model.heads[level].calibration.fill_(np.quantile(values, 0.683))


def in_common(stage, structures):
    """The structures with energies of the stage's level and of the one whose head is copied."""
    pair = next(iter(stage.heads.items()))
    return reading.where(structures, lambda s: all(s.has_energy(level) for level in pair))


def differences(stage, before, structures, config):
    """The structures with an energy of the stage's level, each as it is to be fitted: where it has an energy too of the level whose head is copied, that is
    what the head predicts and the difference of the two labels, so that what the head does not fit is not learned as a difference of the levels.

    before : Model of the stage it starts from
    """
    (level, source), out = next(iter(stage.heads.items())), []
    structures = reading.where(structures, lambda s: s.has_energy(level))
    predicted = energies.in_batches(before, lambda batch: before.eval()(batch)[source].energy, structures, config)
    for s, energy in zip(structures, predicted, strict=True):
        below = s.labels.get(source)
        if below is not None and below.energy is not None:
            s = dataclasses.replace(s, labels={level: Label(energy + s.labels[level].energy - below.energy, None, None)})
        out.append(s)
    return out


def taught(teachers, level, structures, config, imported=None, batch_size=32):
    """Structures whose only label is what several models predict for a level on average, energy and forces; those with its elements, and in the states of
    its labels."""
    known, states = set(energies.known_elements(structures, level, imported or {})), set(reading.subset_states(structures, level))
    structures = [s for s in structures if known.issuperset(s.numbers.tolist()) and (not states or states.issuperset(s.states))]
    out, collate = [], collation(config, [])
    for start in progress.over(range(0, len(structures), batch_size), "what the teachers predict", "batches"):
        part = structures[start : start + batch_size]
        batch = collate(part).to(device_of(teachers[0]))
        predictions = [model.eval()(batch, forces=[level])[level] for model in teachers]
        means = torch.stack([p.energy.detach() for p in predictions]).mean(0).tolist()
        forces = torch.stack([p.forces.detach() for p in predictions]).double().mean(0).cpu()
        for s, energy, force in zip(part, means, torch.split(forces, [len(s.numbers) for s in part]), strict=True):
            out.append(dataclasses.replace(s, labels={level: Label(energy, force.numpy(), None)}))
    return out


def best_of(stages, validation, config, console):
    """The name of one of the stages, by validation error: the first, unless another is lower by a tenth; None for "new".

    Compared is the highest level all of them have learned, by its forces where there are such labels, otherwise by its energies.
    """
    stages = [stages] if isinstance(stages, str) else stages
    if len(stages) == 1:
        return stages[0] if stages[0] in validation else None
    for level in reversed(config.levels):
        for kind, unit in (("forces", "meV/Å"), ("energy", "meV")):
            if all((level, kind) in validation[name] for name in stages):
                errors = {name: 1e3 * validation[name][level, kind]["mae"] for name in stages}
                best = min(errors, key=errors.get)
                best = best if errors[best] < 0.9 * errors[stages[0]] else stages[0]
                others = ", ".join(f"{name} {error:.1f}" for name, error in errors.items() if name != best)
                console.print(f"chosen for {level}: {best}, validation {kind} MAE {errors[best]:.1f} {unit} ({others})")
                return best
    raise ConfigError(f"choose: {', '.join(stages)} have no level with validation labels in common")


def only(model, levels):
    """The model with the heads of some levels alone."""
    return Model(model.backbone, {level: head for level, head in model.heads.items() if level in levels}, model.delta_of)


def load_stage(model, path):
    try:
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ConfigError(
            f"{path}: not the end of this stage ({str(error).splitlines()[0]}); delete the stage's folder to train it again"
        ) from None
