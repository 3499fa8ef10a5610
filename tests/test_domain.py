"""When a structure is far outside what a model was trained on: what the file says, what the engine makes of it, and what hosts tell."""

import json
import re
import warnings

import ase.build
import ase.io
import backends
import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from conftest import DATA, ELEMENTS, dimer, ethanol, random_cell, stretched, write

import mfmd
from mfmd.engine import Engine, ModelFileError, load_model

torch = pytest.importorskip("torch")

from mfmd.structures.record import Label, Structure  # noqa: E402
from mfmd.training import batches, domain  # noqa: E402


def frames(seeds=range(30)):
    """Molecules with all elements between them, shaken a little."""
    out = []
    for name in ("CH3CH2OH", "CH3CONH2"):
        for seed in seeds:
            out.append(ase.build.molecule(name))
            out[-1].rattle(0.06, seed=seed)
    return out


def record(atoms, level="low"):
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, {level: Label(energy=0.0)}, "")


def found(model, structures, elements=None):
    def collate(some):
        return batches.collate(some, [], model.backbone.radial.cutoff, torch.float64)

    elements = sorted({int(z) for s in structures for z in s.numbers}) if elements is None else elements
    return domain.trained_on(model, structures, elements, collate)


@pytest.fixture(scope="module")
def bounded(model, tmp_path_factory):
    """The random model of the tests, as if it had been trained on `frames`."""
    return write(model, tmp_path_factory.mktemp("bounded") / "model.pt", ELEMENTS, found(model, [record(a) for a in frames()]))


def outside(engine, atoms):
    return engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("low", 1.0)], domain=True)["outside"]


def test_what_the_file_says_is_what_ase_finds(model):
    """Distances and numbers of neighbours by ASE's neighbour list; of some of the elements too."""
    given = frames(range(3)) + [random_cell(seed, pbc=(seed % 2 == 0,) * 3, atoms=9) for seed in range(6)]
    got = found(model, [record(a) for a in given])
    assert got["structures"] == len(given) and got["elements"] == sorted(ELEMENTS)
    nearest, counts = {}, {z: [] for z in ELEMENTS}
    for atoms in given:
        i, j, d = neighbor_list("ijd", atoms, 4.0)
        for a, b, r in zip(atoms.numbers[i], atoms.numbers[j], d, strict=True):
            nearest[a, b] = min(nearest.get((a, b), 9.0), r)
        for z, n in zip(atoms.numbers, np.bincount(i, minlength=len(atoms)), strict=True):
            counts[z].append(n)
    for a, za in enumerate(got["elements"]):
        assert tuple(got["neighbors"][a]) == (min(counts[za]), max(counts[za]))
        for b, zb in enumerate(got["elements"]):
            assert got["nearest"][a, b] == pytest.approx(nearest.get((za, zb), 0.0), abs=1e-12)
    assert (got["features"][:, 0] <= got["features"][:, 1]).all()
    some, chosen = found(model, [record(a) for a in given], [1, 8]), np.searchsorted(got["elements"], [1, 8])
    assert np.array_equal(some["nearest"], got["nearest"][np.ix_(chosen, chosen)])
    assert np.array_equal(some["neighbors"], got["neighbors"][chosen]) and np.array_equal(some["features"], got["features"][chosen])


@pytest.mark.parametrize("precision", ["single", "double"])
def test_what_was_trained_on_is_within(bounded, device, precision):
    engine = Engine(bounded, precision, device)
    assert engine.has_domain and not any(outside(engine, a) for a in frames())


CASES = {
    "a nearer pair": (
        lambda: dimer(0.62, "CO"),
        r"atom 0 \(C\) is 0\.62 Å from atom 1 \(O\), and the nearest such pair in training was at ",
    ),
    "a longer bond": (lambda: stretched(1.9), r"atom \d \((C|O|H)\) has surroundings unlike"),
    "a broken bond": (stretched, r"atom \d \((C|O|H)\) has surroundings unlike"),
}


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("kind", CASES)
def test_what_is_far_outside_is_told(bounded, device, kind, precision):
    make, sentence = CASES[kind]
    engine, atoms = Engine(bounded, precision, device), make()
    told = outside(engine, atoms)
    assert told and told.startswith("far outside what the model was trained on: atom ") and re.search(sentence, told), told
    assert outside(Engine(bounded, "double"), atoms) == told  # whatever the device and precision


def test_crowding_and_pairs_never_seen(model, tmp_path, device):
    """Trained on molecules apart, a crowd of them has more neighbours; trained without one of them, its pairs are new."""
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    alone = write(model, tmp_path / "alone.pt", [1, 8], found(model, [record(water)]))
    two = water.copy()
    two.positions += [0, 0, 2.6]
    told = outside(Engine(alone, device=device), water + two)
    assert re.search(r"atom 0 \(O\) is 2\.60 Å from atom 3 \(O\), and no such pair was within 4\.0 Å in training", told), told
    pairs = []
    for seed in range(8):
        a, b = water.copy(), water.copy()
        a.rattle(0.05, seed=seed), b.rattle(0.05, seed=100 + seed)
        b.positions += [0.3 * np.cos(seed), 0.3 * np.sin(seed), 2.3 + 0.1 * seed]
        pairs.append(record(a + b))
    crowd = water.copy()
    for k in range(1, 5):
        one = water.copy()
        one.positions += [0, 0, 2.7 * k] if k < 2 else [2.7 * (k - 3), 3.0, 1.0]
        crowd += one
    told = outside(Engine(write(model, tmp_path / "two.pt", [1, 8], found(model, pairs)), device=device), crowd)
    assert re.search(r"atom \d+ \((O|H)\) has \d+ neighbours within 4\.0 Å, and in training (O|H) had \d to \d", told), told


def test_an_atom_by_itself_is_not(bounded, device):
    assert outside(Engine(bounded, device=device), Atoms("O")) is None


def test_of_a_batch_each_is_told_by_itself(bounded, device):
    engine = Engine(bounded, device=device)
    given = [ethanol(), stretched(), dimer(0.62, "CO"), ethanol()]
    out = engine.compute_batch([(a.positions, a.numbers, None, a.pbc) for a in given], terms=[("low", 1.0)], domain=True)
    assert [r["outside"] for r in out] == [outside(engine, a) for a in given] and out[0]["outside"] is None and "0.62" in out[2]["outside"]
    assert "outside" not in engine.compute_batch([(given[0].positions, given[0].numbers, None, given[0].pbc)], terms=[("low", 1.0)])[0]


def test_the_same_atom_whatever_the_order(bounded):
    atoms, engine = stretched(), Engine(bounded)
    told = outside(engine, atoms)
    where = int(re.search(r"atom (\d+)", told)[1])
    order = np.random.default_rng(0).permutation(len(atoms))
    assert outside(engine, atoms[order]) == told.replace(f"atom {where} ", f"atom {list(order).index(where)} ")


def test_a_file_that_does_not_say_it(model_file):
    engine = Engine(model_file)
    assert not engine.has_domain and outside(engine, dimer(0.62, "CO")) is None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("domain.nearest"), "tensor domain.nearest is missing"),
        (lambda t: t.update({"domain.neighbors": t["domain.neighbors"][1:]}), r"tensor domain.neighbors has shape \(3, 2\)"),
        (lambda t: t.update({"domain.features": t["domain.features"][:, ::-1].copy()}), "a range in domain.features is none"),
        (lambda t: t.update({"domain.nearest": -t["domain.nearest"]}), "a distance in domain.nearest"),
    ],
)
def test_a_damaged_one_is_refused(bounded, change, message):
    import safetensors.numpy

    content = load_model(bounded).bytes
    tensors = safetensors.numpy.load(content)
    change(tensors)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    with pytest.raises(ModelFileError, match=message):
        load_model(safetensors.numpy.save(tensors, metadata))


def test_a_training_run_writes_it(trained):
    """Ethanol it has not seen is within, but for few; ethanol broken, two of them, and another molecule are not."""
    engine = Engine(trained[0])
    assert engine.metadata["domain"]["elements"] == [1, 6, 8]

    def told(atoms):
        return engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("cctz", 1.0)], domain=True)["outside"]

    test = [a for a in ase.io.iread(DATA / "test.xyz") if a.info["molecule"] == "ethanol"]
    assert sum(told(a) is not None for a in test) <= 2
    two = ethanol()
    two.positions += [0, 0, 4.2]
    methane = ase.build.molecule("CO2")
    assert "no such pair" in told(ethanol() + two) and told(stretched()) and told(methane)


def test_ase_warns_once_and_again_of_worse(trained):
    calculator = mfmd.Calculator(trained[0])
    atoms = ethanol()
    atoms.calc = calculator
    with warnings.catch_warnings():
        warnings.simplefilter("error", mfmd.Extrapolation)
        atoms.get_forces()
    assert calculator.outside is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for length in (2.2, 0.8):  # a broken bond, and then two atoms on top of each other
            for _ in range(3):
                atoms.positions = stretched(length).positions
                atoms.get_potential_energy()
                assert calculator.outside.startswith("far outside")
                atoms.positions = ethanol().positions
                atoms.get_potential_energy()
                assert calculator.outside is None
    assert len(told(caught)) == 2 and all(t.startswith("far outside what the model was trained on: atom ") for t in told(caught)), told(
        caught
    )
    assert "surroundings" in told(caught)[0] and "0.80 Å" in told(caught)[1]


@pytest.mark.parametrize("seed", range(3))
def test_ghosts_of_a_host_change_nothing(bounded, seed, device):
    """A host that owns the images, as LAMMPS does: the same sentence, atoms by the host's names."""
    atoms, engine = random_cell(seed, small=True, atoms=5), Engine(bounded, "double")
    told = outside(engine, atoms)
    host = backends.Images(atoms, engine.model.cutoff + 0.5)
    assert told and host.evaluate(Engine(bounded, "double", device), atoms, "low")["outside"] == told


def told(record):
    return [str(w.message) for w in record if w.category is mfmd.Extrapolation]


@pytest.mark.parametrize("kind", ["DomainReporter", "HeadReporter"])
def test_openmm_reporters_warn_once(trained, tmp_path, kind):
    openmm = pytest.importorskip("openmm")
    from openmm import app, unit

    from mfmd import md

    topology, positions = md.topology_of(ethanol())
    simulation = app.Simulation(topology, mfmd.openmm.create_system(trained[0], topology, threads=1), openmm.VerletIntegrator(1e-6), openmm.Platform.getPlatformByName("Reference"))  # fmt: skip
    if kind == "HeadReporter":
        reporter = mfmd.openmm.HeadReporter(tmp_path / "heads.csv", 2, trained[0], topology)
    else:
        reporter = mfmd.openmm.DomainReporter(2, trained[0], topology)
    simulation.reporters = [reporter]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulation.context.setPositions(positions * unit.angstrom)
        simulation.step(4)
        assert told(caught) == []
        simulation.context.setPositions(md.topology_of(stretched())[1] * unit.angstrom)
        simulation.step(4)
    calculator = mfmd.Calculator(trained[0])
    with pytest.warns(mfmd.Extrapolation):
        calculator.calculate(stretched())
    assert len(told(caught)) == 1 and told(caught)[0].startswith(f"step 6: {calculator.outside[:80]}"), told(caught)


def test_mfmd_md_says_it_of_the_start_structure(trained, tmp_path):
    """Before anything runs, and once; a start that is as trained says nothing."""
    from mfmd import md

    for name, atoms, sentences in (("near", ethanol(), 0), ("far", stretched(), 1)):
        atoms.write(tmp_path / f"{name}.xyz", format="extxyz")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            md.run(md.Settings(str(trained[0]), str(tmp_path / f"{name}.xyz"), str(tmp_path / name), time=0.005, every=0.001, checkpoint=0.005, minimize=False, threads=1))  # fmt: skip
        assert len(told(caught)) == sentences
    assert told(caught)[0].startswith(f"{tmp_path}/far.xyz, as it is: far outside what the model was trained on: atom ")


def test_a_chain_has_learned_from_all_its_stages(tmp_path):
    """A file with the last level alone: its backbone has seen the structures of the levels before, and the file says so."""
    from conftest import train_once

    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("ethanol", "methanol")]
    path, _ = train_once(tmp_path, frames[::3], levels={"gfn2": {}, "dft": {}}, strategy="chain", backbone={"channels": 16, "layers": 0, "radial_functions": 8}, train={"epochs": 1, "batch_size": 16})  # fmt: skip
    header = load_model(path)
    labelled = [a for a in frames[::3] if "energy_dft" in a.info]
    said = json.loads(header.metadata)
    assert [level["name"] for level in said["levels"]] == ["dft"] and said["domain"]["structures"] > 2 * len(labelled)
