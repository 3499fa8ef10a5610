"""What the engine gives, held against itself computed otherwise, against torch, and against ASE."""

from dataclasses import dataclass, field

import ase.neighborlist
import numpy as np

from mfmd.checking.cases import CheckError
from mfmd.engine import Engine, InputError, _engine, load_model, neighbor_list

STEP = 1e-4  # Å, and of strains, of finite differences
DIRECTIONS = 3  # of these
TABLES = {"energy": 1e-6, "forces": 1e-5, "virial": 1e-5}
DOUBLE = {"energy": 1e-9, "forces": 3e-9, "virial": 3e-9}
SINGLE = {"energy": 1e-5, "forces": 3e-5, "virial": 3e-5}
SAME = {"energy": 0.0, "forces": 0.0, "virial": 0.0}
SLOPE = 1e-6
NEAR = 1e-9  # Å, of the cutoff: whether such a pair is one only rounding says
# What a number is of; forces and virials are relative to the largest of the structure, or to 1 eV/Å and 1 eV where that is less.
UNITS = {"energy": "eV/atom", "forces": "of the forces", "virial": "of the virial", "pairs": "pairs", "vectors": "Å"}


@dataclass
class Check:
    """What came of one: found, {kind of UNITS: the largest over the structures}, beside allowed; or why it was left_out, or fails."""

    name: str
    found: dict = field(default_factory=dict)
    allowed: dict = field(default_factory=dict)
    structures: int = 0  # of how many
    left_out: str = ""
    lacks: str | None = None  # the module without which it was left out
    fails: str = ""

    @property
    def passes(self):
        """None where it was left out."""
        if self.left_out:
            return None
        return not self.fails and all(self.found[kind] <= self.allowed[kind] for kind in self.found)  # what is no number does not


class LeftOut(Exception):
    """A check that cannot be made here; says why."""


def off(one, other):
    """How far an evaluation is from another: energy, forces, and the virial where both have it."""
    found = {"energy": abs(one["energy"] - other["energy"]) / len(other["forces"])}
    for kind in ("forces", "virial"):
        if one.get(kind) is not None and other.get(kind) is not None:
            a, b = np.asarray(one[kind]), np.asarray(other[kind])
            found[kind] = float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))))
    return found


def worst(found):
    """Of dictionaries the largest of each key; what is no number is larger than all."""
    kinds = {kind for one in found for kind in one}
    return {kind: float(np.max([one[kind] for one in found if kind in one])) for kind in UNITS if kind in kinds}


def _pairs(found):
    """{(i, j, shift): vector} of a list of pairs"""
    return {(int(i), int(j), *map(int, shift)): vector for i, j, shift, vector in zip(*found, strict=True)}


def _slope(energies):
    """Of a function of a displacement or strain, (atoms,) eV, at 0, by differences of fourth order; atom by atom, since a total of many has too few digits."""
    first, second = (np.sum(energies(h) - energies(-h)) for h in (STEP, 2 * STEP))
    return (8 * first - second) / (12 * STEP)


def evaluator(model, **options):
    """A function of a Structure at a level, and of its positions and cell where they are others, by an engine; all that it gives."""
    engine = Engine(model, **options)

    def evaluate(s, level, positions=None, cell=None):
        (at, numbers, box, pbc), states = s.for_engine
        moved = (at if positions is None else positions, numbers, box if cell is None else cell, pbc)
        return engine.compute_batch([moved], states=[states], terms=[(level, 1.0)], virial=True, atom_energies=True)[0]

    return evaluate


class Numbers:
    """Evaluations of structures, [(Structure, level)], by engines of one model file.

    Raises
    ------
    CheckError : a structure that the engine refuses; names it
    """

    def __init__(self, path, structures):
        self.path, self.model, self.structures = path, load_model(path), structures
        self.exact, self.double = (evaluator(self.model, precision="double", radial=radial) for radial in ("exact", "table"))
        for s, level in structures:
            try:
                self.double(s, level)
            except InputError as error:
                raise CheckError(f"{s.source}: {error}") from None

    def compared(self, one, other):
        return worst([off(one(s, level), other(s, level)) for s, level in self.structures])

    def of_file(self):
        own = [(s, level) for s, level in self.structures if level in s.labels]
        if not own:
            raise LeftOut("the structures are the user's")
        return worst([off(self.exact(s, level), {"energy": s.labels[level].energy, "forces": s.labels[level].forces}) for s, level in own])

    def of_tables(self):
        return self.compared(self.double, self.exact)

    def of_precision(self):
        return self.compared(evaluator(self.model, precision="single"), self.double)

    def of_torch(self):
        """By the model as torch has it, in double."""
        import torch

        from mfmd.training.batches import collate
        from mfmd.training.start import read_in_double

        model = read_in_double(self.path)

        def by_torch(s, level):
            found = model(collate([s], [], model.backbone.radial.cutoff, torch.float64), forces=[level])[level]
            return {"energy": found.energy.item(), "forces": found.forces.detach().numpy()}

        return self.compared(self.exact, by_torch)

    def of_forces(self):
        rng, found = np.random.default_rng(0), []
        for s, level in self.structures:
            forces = self.double(s, level)["forces"]
            for _ in range(DIRECTIONS):
                along = rng.normal(size=forces.shape)
                along /= np.linalg.norm(along)
                slope = _slope(lambda h, s=s, level=level, along=along: self.double(s, level, s.positions + h * along)["atom_energies"])
                found.append({"forces": abs(slope + np.sum(forces * along)) / max(1.0, np.abs(forces).max())})
        return worst(found)

    def of_virial(self):
        rng, found = np.random.default_rng(1), []
        for s, level in self.structures:
            virial = self.double(s, level)["virial"]
            for _ in range(DIRECTIONS):
                strain = rng.normal(size=(3, 3))
                strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

                def strained(h, s=s, level=level, strain=strain):
                    by = np.eye(3) + h * strain
                    return self.double(s, level, s.positions @ by, s.cell @ by)["atom_energies"]

                found.append({"virial": abs(_slope(strained) + np.sum(virial * strain)) / max(1.0, np.abs(virial).max())})
        return worst(found)

    def of_neighbors(self):
        """Pairs that one of both has, and how far the vectors of the others are apart."""
        cutoff, found = self.model.cutoff, []
        for s, _ in self.structures:
            by_ase = ase.neighborlist.primitive_neighbor_list("ijSD", s.pbc, s.cell, s.positions, cutoff)
            ours, theirs = map(_pairs, (neighbor_list(s.positions, s.cell, s.pbc, cutoff), by_ase))
            alone = [key for key in ours.keys() ^ theirs.keys() if abs(np.linalg.norm(ours.get(key, theirs.get(key))) - cutoff) > NEAR]
            both = [np.max(np.abs(ours[key] - theirs[key])) for key in ours.keys() & theirs.keys()]
            found.append({"pairs": float(len(alone)), "vectors": float(max(both, default=0.0))})
        return worst(found)

    def of_threads(self):
        return self.compared(*(evaluator(self.model, threads=threads) for threads in (3, 1)))

    def of_device(self):
        if not _engine.cuda_devices():
            raise LeftOut("there is no CUDA device" if _engine.has_cuda() else "the engine has no CUDA in it")
        return self.compared(evaluator(self.model, precision="double", device="cuda"), self.double)

    def checks(self):
        """One by one."""
        for name, (find, allowed) in CHECKS.items():
            try:
                yield Check(name, find(self), allowed, len(self.structures))
            except LeftOut as why:
                yield Check(name, left_out=str(why))
            except ModuleNotFoundError as error:
                yield Check(name, left_out=str(error), lacks=error.name)
            except (ImportError, OSError, RuntimeError) as error:  # of torch, or of a device
                yield Check(name, fails=" ".join(str(error).split()) or type(error).__name__)


CHECKS = {
    "the numbers that came in the file": (Numbers.of_file, DOUBLE), "radial tables against exact evaluation": (Numbers.of_tables, TABLES),
    "single against double precision": (Numbers.of_precision, SINGLE), "the engine against torch": (Numbers.of_torch, DOUBLE),
    "forces against finite differences": (Numbers.of_forces, {"forces": SLOPE}),
    "virial against finite differences": (Numbers.of_virial, {"virial": SLOPE}),
    "the neighbour list against ASE's": (Numbers.of_neighbors, {"pairs": 0.0, "vectors": NEAR}),
    "three threads against one": (Numbers.of_threads, SAME), "CUDA against the CPU": (Numbers.of_device, DOUBLE),
}  # fmt: skip
