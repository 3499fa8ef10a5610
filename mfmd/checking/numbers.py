"""What the engine gives, held against itself computed otherwise, against torch, and against ASE."""

from typing import NamedTuple

import ase.neighborlist
import numpy as np

from mfmd.checking import cases
from mfmd.engine import Engine, load_model, neighbor_list

STEP = 1e-4  # Å, and of strains, of finite differences
DIRECTIONS = 3  # of these
TABLES = {"energy": 1e-6, "forces": 1e-5}  # training.export.TABLE_BOUND: the largest that a model file is written with
DOUBLE = {"energy": 1e-9, "forces": 3e-9}
SINGLE = {"energy": 1e-5, "forces": 3e-5}
SLOPE = 1e-6
NEAR = 1e-9  # Å, of the cutoff: whether such a pair is one only rounding says
# What a number is of; forces and virials are relative to the largest of the structure, or to 1 eV/Å and 1 eV where that is less.
UNITS = {"energy": "eV/atom", "forces": "of the forces", "virial": "of the virial", "pairs": "pairs", "vectors": "Å"}


class Check(NamedTuple):
    """found and allowed : {kind of UNITS: the largest over the structures}, or else why it was left_out, or why it fails"""

    name: str
    found: dict
    allowed: dict
    left_out: str = ""
    fails: str = ""

    @property
    def passes(self):
        """None where it was left out."""
        if self.left_out:
            return None
        return not self.fails and all(self.found[kind] <= self.allowed[kind] for kind in self.allowed)  # what is no number does not


def off(one, other):
    """How far an evaluation, with energy and forces, is from another."""
    largest = max(1.0, np.max(np.abs(other["forces"]), initial=0.0))
    return {
        "energy": abs(one["energy"] - other["energy"]) / len(other["forces"]),
        "forces": float(np.max(np.abs(one["forces"] - other["forces"]), initial=0.0)) / largest,
    }


def worst(found):
    """Of dictionaries with the same keys the largest of each; what is no number is larger than all."""
    return {kind: float(np.max([one[kind] for one in found])) for kind in found[0]}


def _pairs(found):
    """{(i, j, shift): vector} of a list of pairs"""
    return {(int(i), int(j), *map(int, shift)): vector for i, j, shift, vector in zip(*found, strict=True)}


def _slope(energy):
    """Of a function of a displacement or strain at 0, by differences of fourth order."""
    return (8 * (energy(STEP) - energy(-STEP)) - (energy(2 * STEP) - energy(-2 * STEP))) / (12 * STEP)


class Numbers:
    """Evaluations of structures, [(Structure, level)], by engines of one model file."""

    def __init__(self, path, structures):
        self.path, self.model, self.structures = path, load_model(path), structures
        self.exact, self.double = (self.by(precision="double", radial=radial) for radial in ("exact", "table"))

    def by(self, **options):
        """A function of a Structure at a level, and of its positions and cell where they are others."""
        engine = Engine(self.model, **options)

        def evaluate(s, level, positions=None, cell=None):
            (at, numbers, box, pbc), states = cases.given(s)
            moved = (at if positions is None else positions, numbers, box if cell is None else cell, pbc)
            return engine.compute_batch([moved], states=[states], terms=[(level, 1.0)], virial=True)[0]

        return evaluate

    def compared(self, name, one, other, allowed):
        return Check(name, worst([off(one(s, level), other(s, level)) for s, level in self.structures]), allowed)

    def of_file(self):
        name = "the numbers that came in the file"
        own = [(s, level) for s, level in self.structures if level in s.labels]
        if not own:
            return Check(name, {}, {}, "the structures are the user's")
        found = [off(self.exact(s, level), vars(s.labels[level])) for s, level in own]
        return Check(name, worst(found), DOUBLE)

    def of_tables(self):
        name, found = "radial tables against exact evaluation", []
        for s, level in self.structures:
            a, b = self.double(s, level), self.exact(s, level)
            found.append(off(a, b) | {"forces": float(np.max(np.abs(a["forces"] - b["forces"])))})
        return Check(name, worst(found), TABLES)

    def of_precision(self):
        return self.compared("single against double precision", self.by(precision="single"), self.double, SINGLE)

    def of_torch(self):
        """By the model as torch has it, in double."""
        name = "the engine against torch"
        try:
            import torch

            from mfmd.training.batches import collate
            from mfmd.training.start import read_in_double
        except ModuleNotFoundError as error:
            return Check(name, {}, {}, f"{error.name} is not installed")
        model = read_in_double(self.path)

        def by_torch(s, level):
            found = model(collate([s], [], model.backbone.radial.cutoff, torch.float64), forces=[level])[level]
            return {"energy": found.energy.item(), "forces": found.forces.detach().numpy()}

        return self.compared(name, self.exact, by_torch, DOUBLE)

    def of_threads(self):
        """To the last bit."""
        one, many = self.by(threads=1), self.by(threads=3)
        return self.compared("three threads against one", many, one, {"energy": 0.0, "forces": 0.0})

    def of_forces(self):
        rng, found = np.random.default_rng(0), []
        for s, level in self.structures:
            forces = self.double(s, level)["forces"]
            for _ in range(DIRECTIONS):
                along = rng.normal(size=forces.shape)
                along /= np.linalg.norm(along)
                slope = _slope(lambda h, s=s, level=level, along=along: self.double(s, level, s.positions + h * along)["energy"])
                error = abs(slope + np.sum(forces * along))
                found.append({"forces": error / max(1.0, np.abs(forces).max())})
        return Check("forces against finite differences", worst(found), {"forces": SLOPE})

    def of_virial(self):
        rng, found = np.random.default_rng(1), []
        for s, level in self.structures:
            virial = self.double(s, level)["virial"]
            for _ in range(DIRECTIONS):
                strain = rng.normal(size=(3, 3))
                strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

                def strained(h, s=s, level=level, strain=strain):
                    by = np.eye(3) + h * strain
                    return self.double(s, level, s.positions @ by, s.cell @ by)["energy"]

                error = abs(_slope(strained) + np.sum(virial * strain))
                found.append({"virial": error / max(1.0, np.abs(virial).max())})
        return Check("virial against finite differences", worst(found), {"virial": SLOPE})

    def of_neighbors(self):
        """Pairs that one of both has, and how far the vectors of the others are apart."""
        cutoff, found = self.model.cutoff, []
        for s, _ in self.structures:
            by_ase = ase.neighborlist.primitive_neighbor_list("ijSD", s.pbc, s.cell, s.positions, cutoff)
            ours, theirs = map(_pairs, (neighbor_list(s.positions, s.cell, s.pbc, cutoff), by_ase))
            alone = [key for key in ours.keys() ^ theirs.keys() if abs(np.linalg.norm(ours.get(key, theirs.get(key))) - cutoff) > NEAR]
            both = [np.max(np.abs(ours[key] - theirs[key])) for key in ours.keys() & theirs.keys()]
            found.append({"pairs": float(len(alone)), "vectors": float(max(both, default=0.0))})
        return Check("the neighbour list against ASE's", worst(found), {"pairs": 0.0, "vectors": NEAR})

    def of_device(self):
        name = "CUDA against the CPU"
        from mfmd.engine import _engine

        if not _engine.cuda_devices():
            return Check(name, {}, {}, "there is no CUDA device" if _engine.has_cuda() else "the engine has no CUDA in it")
        return self.compared(name, self.by(precision="double", device="cuda"), self.double, DOUBLE)

    def checks(self):
        """One by one."""
        for check in (
            self.of_file, self.of_tables, self.of_precision, self.of_torch, self.of_forces, self.of_virial, self.of_neighbors, self.of_threads, self.of_device
        ):  # fmt: skip
            yield check()
