"""Charge and multiplicity, from labels to the engine: what is the sum of its parts, what an ion by itself is worth, what is refused, what is learned."""

import copy
import json

import ase
import ase.io
import backends
import numpy as np
import pytest
from ase.build import molecule
from conftest import ELEMENTS, SEEN, ethanol, random_cell, random_model

from mfmd.engine import Engine, InputError, ModelFileError, load_model

HYDRONIUM = ase.Atoms("OH3", [[0, 0, 0.2], [0.95, 0, 0], [-0.48, 0.82, 0], [-0.48, -0.82, 0]])
TERMS = [("high", 1.0), ("low", 0.0)]


def compute(engine, atoms, **more):
    return engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=TERMS, **more)


def pair(apart):
    """Hydronium and water, and their atoms."""
    water = molecule("H2O")
    water.positions += [apart, 0, 0]
    return HYDRONIUM + water, range(4), range(4, 7)


def test_fragments_beyond_reach_are_the_sum_of_what_they_are_alone(charged_file, device):
    engine = Engine(charged_file, "double", device)
    both, ion, solvent = pair(12.0)
    out = compute(engine, both, fragments=[(ion, 1, 1), (solvent, 0, 1)], atom_energies=True)
    parts = [compute(engine, both[list(ion)], charge=1), compute(engine, both[list(solvent)])]
    np.testing.assert_allclose(out["term_energies"], sum(p["term_energies"] for p in parts), rtol=0, atol=1e-9)
    np.testing.assert_allclose(out["forces"], np.concatenate([p["forces"] for p in parts]), rtol=0, atol=1e-12)
    assert out["atom_energies"].sum() == pytest.approx(out["energy"], abs=1e-9)
    assert abs(compute(engine, both, charge=1)["energy"] - out["energy"]) > 1e-3  # as one structure the charge is the solvent's too
    turned = both[[4, 0, 5, 1, 2, 6, 3]]
    again = compute(engine, turned, fragments=[([0, 2, 5], 0, 1), ([1, 3, 4, 6], 1, 1)])
    assert again["energy"] == pytest.approx(out["energy"], abs=1e-9)


def test_fragments_that_touch_are_what_the_torch_model_computes(charged_file):
    from mfmd.training.start import read_model

    both, ion, _ = pair(3.0)
    both.info["fragments"], both.arrays["fragment"] = [(1, 1), (0, 1)], np.array([0] * 4 + [1] * 3)
    model, _ = read_model(charged_file)
    energy, forces, _ = backends.reference(model.double(), "high")(both)
    out = compute(Engine(charged_file, "double", radial="exact"), both, fragments=[(ion, 1, 1), (range(4, 7), 0, 1)])
    assert out["energy"] == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(out["forces"], forces, rtol=0, atol=1e-9)


def test_a_neutral_atom_is_its_reference_energy_and_an_ion_is_not(charged_file, device):
    engine = Engine(charged_file, "double", device)
    levels = {level["name"]: level for level in engine.metadata["levels"]}
    for z in ELEMENTS:
        wanted = levels["middle"]["e0"][str(z)] + levels["high"]["e0"][str(z)]
        lowest = 1 + z % 2
        for multiplicity in (None, lowest, lowest + 2) if z > 1 else (None, 2):
            assert engine.compute(np.zeros((1, 3)), [z], terms=TERMS, multiplicity=multiplicity)["energy"] == pytest.approx(
                wanted, abs=1e-9
            )
        ion = engine.compute(np.zeros((1, 3)), [z], terms=TERMS, charge=1)["energy"]
        shift = sum(levels[name]["of_states"] @ np.array([1, 0, (z - 1) % 2]) for name in ("middle", "high"))
        assert abs(ion - wanted - shift) > 1e-3  # beside what its state has: it is evaluated like any structure


def test_structures_of_mixed_states_side_by_side(charged_file, device):
    """Whatever was evaluated before, each is what it is alone."""
    engine, alone = (Engine(charged_file, "double", device) for _ in range(2))
    states = [(0, None), (1, 2), (-1, 2), (1, None), (0, 3), [(range(8), 1, 1), ([8], 0, 2)]]
    given = [(a.positions, a.numbers, a.cell.array, a.pbc) for a in [ethanol()] * len(states)]
    for order in (range(len(states)), reversed(range(len(states)))):
        order = list(order)
        out = engine.compute_batch([given[k] for k in order], states=[states[k] for k in order], terms=TERMS)
        for k, one in zip(order, out, strict=True):
            wanted = alone.compute_batch([given[k]], states=[states[k]], terms=TERMS)[0]
            assert one["energy"] == wanted["energy"] and np.array_equal(one["forces"], wanted["forces"])
    assert len({one["energy"] for one in out}) == len(states) - 1  # of two it is the same


UNSEEN = {
    "a charge": (dict(charge=-2), "it has charge -2, multiplicity 1, and head low was trained on charge 0, multiplicity 1;"),
    "a multiplicity": (dict(multiplicity=5), "it has charge 0, multiplicity 5"),
    "a fragment's": (dict(fragments=[(range(8), 0, 4), ([8], 0, 2)]), "fragment 0 has charge 0, multiplicity 4"),
}
WRONG = {
    "a multiplicity of the other parity": (dict(multiplicity=2), "multiplicity is 2, which 26 electrons cannot have"),
    "the same of an ion": (dict(charge=1, multiplicity=1), "multiplicity is 1, which 25 electrons cannot have"),
    "no multiplicity": (dict(multiplicity=0), "multiplicity is 0; it is 2S \\+ 1, 1 or more"),
    "half a charge": (dict(charge=0.5), "charge is 0.5; it must be a whole number"),
    "more charge than electrons": (dict(charge=27), "charge is 27, and there are 26 electrons"),
    "both ways at once": (dict(charge=1, fragments=[(range(9), 1, 2)]), "fragments say the charges and multiplicities; leave out"),
    "an atom of no fragment": (dict(fragments=[(range(8), 0, 2)]), "atom 8 is in none of the fragments"),
    "an atom of two fragments": (dict(fragments=[(range(9), 0, 1), ([8], 0, 2)]), "fragment 1 has an atom that stands twice"),
    "an atom that is none": (dict(fragments=[(range(9), 0, 1), ([9], 0, 2)]), "fragment 1 has atom 9, and there are 9 atoms"),
    "a fragment of no atoms": (dict(fragments=[(range(9), 0, 1), ([], 0, 1)]), "fragment 1 has no atoms"),
    "a fragment's parity": (
        dict(fragments=[(range(8), 0, 1), ([8], 0, 2)]),
        "fragment 0: multiplicity is 1, which 25 electrons cannot have",
    ),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_unseen_states_are_refused(charged_file, kind, device):
    more, words = UNSEEN[kind]
    with pytest.raises(InputError, match=words):
        compute(Engine(charged_file, device=device), ethanol(), **more)
    allowed = Engine(charged_file, "double", device, allow_unseen_state=True)
    before = compute(allowed, ethanol())
    assert abs(compute(allowed, ethanol(), **more)["energy"] - before["energy"]) > 1e-6
    assert compute(allowed, ethanol())["energy"] == before["energy"]  # with rows for one more state


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be(charged_file, kind):
    more, words = WRONG[kind]
    with pytest.raises(InputError, match=words):
        compute(Engine(charged_file, allow_unseen_state=True), ethanol(), **more)


def test_every_head_of_a_chain_must_have_seen_a_state(charged_file, tmp_path):
    def alone(header):
        header["levels"][1]["states"] = [[0, 1]]  # of `middle`, which `high` is relative to

    engine = Engine(backends.rebuilt(charged_file, tmp_path / "less.pt", header=alone))
    assert engine.states == {"low": list(SEEN), "middle": [(0, 1)], "high": list(SEEN)}
    atoms = ethanol()
    engine.compute(atoms.positions, atoms.numbers, terms=[("low", 1.0)], charge=1)
    with pytest.raises(InputError, match="head middle was trained on charge 0, multiplicity 1 only"):
        engine.compute(atoms.positions, atoms.numbers, terms=[("high", 1.0)], charge=1)


def test_a_level_that_has_seen_ions_alone_takes_no_neutral_molecule(charged_file, tmp_path):
    def ions(header):
        for level in header["levels"]:
            level["states"] = [[1, 2]]

    engine = Engine(backends.rebuilt(charged_file, tmp_path / "ions.pt", header=ions), "double")
    compute(engine, ethanol(), charge=1)
    with pytest.raises(InputError, match=r"it has charge 0, multiplicity 1, and head \S+ was trained on charge \+1, multiplicity 2 only"):
        compute(engine, ethanol())
    assert np.isfinite(engine.compute(np.zeros((1, 3)), [8], terms=TERMS)["energy"])  # an atom is what E0 is of


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(states=[]), "level low lists no state that it was trained on"),
        (dict(states=[[0]]), "level low lists a state that is not a charge and a multiplicity"),
        (dict(states=[[0, 0]]), "level low lists a state that is not a charge and a multiplicity"),
        (dict(states=[[0.5, 1]]), "level low lists a state whose charge or multiplicity is no whole number"),
        (dict(of_states=[1.0]), "level low has `of_states` that are not three energies"),
        (dict(of_states=[]), "level low has `of_states` that are not three energies"),
    ],
)
def test_states_of_a_damaged_file(charged_file, tmp_path, change, words):
    with pytest.raises(ModelFileError, match=words):
        load_model(backends.rebuilt(charged_file, tmp_path / "bad.pt", header=lambda h: h["levels"][0].update(change)))


def test_files_that_do_not_say_states_take_neutral_structures_of_the_lowest_multiplicity(model_file):
    engine = Engine(model_file, "double")
    methyl = molecule("CH3")
    assert engine.states == {} and compute(engine, methyl)["energy"] == compute(engine, methyl, multiplicity=2)["energy"]
    for more in (dict(charge=1), dict(multiplicity=4), dict(charge=-1, multiplicity=3)):
        with pytest.raises(InputError, match="was trained on neutral structures of the lowest multiplicity only"):
            compute(engine, methyl, **more)


def test_the_size_of_a_cell_is_no_state(model_file):
    """A crystal whose cell has an odd number of electrons is what its supercell is."""
    engine, cell = Engine(model_file, "double"), random_cell(3, atoms=5)
    cell.numbers = [1, 6, 6, 8, 8]
    double = cell.repeat((2, 1, 1))
    assert 2 * compute(engine, cell)["energy"] == pytest.approx(compute(engine, double)["energy"], abs=1e-9)


# ------------------------------------------------------------------------------------------------ what is learned


@pytest.fixture
def double():
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double")
def test_gauss_newton_tells_two_states_of_one_molecule_apart():
    """From a model that knows neutral ones alone, by energies alone; what is added by states then makes its forces."""
    import torch

    from mfmd.structures.record import Label
    from mfmd.training import batches, fit
    from mfmd.training.model import Model

    start = random_model(1, channels=16, layers=1)
    start = Model(start.backbone, {"low": start.heads["low"]}).eval()
    start.backbone.add_states()
    target = copy.deepcopy(start)
    with torch.no_grad():
        target.backbone.embedding.states.normal_(std=1.0)
        target.heads["low"].of_states.copy_(torch.tensor([7.0, -1.0, 0.5]))

    def collate(structures):
        return batches.collate(structures, [], start.backbone.radial.cutoff, torch.float64)

    rng, structures = np.random.default_rng(0), []
    for k in range(120):
        atoms = molecule(("CH3", "H2O", "CH3OH", "NH3")[k // 2 % 4])
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        charge = k % 2
        atoms.info |= {"charge": charge, "multiplicity": 1 + int(atoms.numbers.sum() - charge) % 2}
        structures.append(backends.structure(atoms))
    for s in structures:
        p = target(collate([s]), forces=["low"])["low"]
        s.labels = {"low": Label(energy=p.energy.item(), forces=p.forces.detach().numpy())}

    def errors(model):
        found = [(s, model(collate([s]), forces=["low"])["low"]) for s in structures[96:]]
        energies = np.array([p.energy.item() - s.labels["low"].energy for s, p in found])
        forces = np.concatenate([(p.forces.detach().numpy() - s.labels["low"].forces).ravel() for s, p in found])
        return np.abs(energies).mean(), np.abs(forces).mean()

    before = errors(start)
    fit.gauss_newton(start, "low", structures[:96], collate)
    after = errors(start)
    assert start.backbone.embedding.states.abs().max() > 1e-3
    assert after[0] < 0.02 * before[0] and after[1] < 0.55 * before[1]


@pytest.mark.usefixtures("double")
def test_what_a_state_adds_is_fitted_beside_the_reference_energies():
    """A level that is a sum over atoms, and over charges and unpaired electrons, is found; E0 are as they would be without ions."""
    from mfmd.training import energies

    structures, totals = [], []
    e0, of_states = {1: -10.0, 6: -50.0, 7: -70.0, 8: -100.0}, np.array([8.0, -1.5, 0.25])
    for name in ("CH4", "CH3", "NH3", "NH2", "H2O", "OH", "CH3OH", "CO2"):
        for charge in (0, 1, -1):
            atoms = molecule(name)
            atoms.info |= {"charge": charge, "multiplicity": 1 + int(atoms.numbers.sum() - charge) % 2}
            structures.append(backends.structure(atoms))
            terms = [max(charge, 0), max(-charge, 0), atoms.info["multiplicity"] - 1]
            totals.append(sum(e0[int(z)] for z in atoms.numbers) + of_states @ terms)
    found, found_of_states, determined = energies.fit_reference_energies(structures, totals, list(e0), "low", {})
    assert determined and found == pytest.approx(e0)
    np.testing.assert_allclose(found_of_states, of_states, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_teachers_say_nothing_of_states_that_their_level_has_not_learned():
    from types import SimpleNamespace

    from mfmd.structures.record import Label
    from mfmd.training import stages

    model = random_model(1, channels=16, layers=1)
    model.backbone.add_states()
    given = []
    for charge in (0, 1, 0, 1):
        atoms = molecule("NH3")
        atoms.info["charge"] = charge
        given.append(backends.structure(atoms))
    given[0].labels = {"low": Label(energy=-1500.0)}
    config = SimpleNamespace(train=SimpleNamespace(precision="double"), backbone=SimpleNamespace(cutoff=4.0))
    taught = stages.taught([model], "low", given, config)
    assert [s.states for s in taught] == [given[0].states, given[2].states]
    assert all(s.labels["low"].forces.shape == (4, 3) for s in taught)


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("strategy", ["chain", "chain-newton", "delta"])
def test_a_run_on_ions(tmp_path, strategy):
    """From files with charges to a model file that knows what it has seen; ions among the isolated atoms are structures."""
    from mfmd.training import plan
    from mfmd.training.run import train

    rng, frames = np.random.default_rng(1), []
    for k in range(60):
        name, charge = (("CH3", 1), ("CH3", 0), ("NH3", 0), ("NH2", -1), ("H2O", 0))[k % 5]
        atoms = molecule(name)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        energy = float(-100.0 * len(atoms) + 6.0 * charge + 5 * np.square(np.triu(atoms.get_all_distances() - 1.2, 1)).sum())
        atoms = ase.Atoms(atoms.numbers, atoms.positions)
        atoms.info = {"charge": charge, "energy_low": energy, "energy_high": energy - 1.0 - 0.5 * charge}
        frames.append(atoms)
    for charge, energy in ((1, 0.0), (0, -13.0)):
        frames.append(ase.Atoms("H", [[0, 0, 0]], info={"charge": charge, "energy_low": energy, "energy_high": energy}))
    ase.io.write(tmp_path / "ions.xyz", frames, format="extxyz")
    config = {
        "out": str(tmp_path / "run"), "data": {"train": str(tmp_path / "ions.xyz"), "val": 0.2}, "levels": {"low": {}, "high": {}},
        "backbone": {"channels": 16, "layers": 1, "radial_functions": 8}, "train": {"epochs": 3, "batch_size": 8}, "strategy": strategy,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    errors = train(plan.load(tmp_path / "config.yaml"))
    engine = Engine(tmp_path / "run" / "model.pt", "double")
    assert engine.states["high"] == [(-1, 1), (0, 1), (0, 2), (1, 1)]
    assert engine.metadata["backbone"]["state_embedding"] and errors["val"]["high", "energy"]["mae"] < 3.0
    methyl = molecule("CH3")
    energies = [engine.compute(methyl.positions, methyl.numbers, terms=[("high", 1.0)], charge=q)["energy"] for q in (0, 1)]
    assert energies[1] - energies[0] == pytest.approx(5.5, abs=1.5)
    with pytest.raises(InputError, match="it has charge -1, multiplicity 1|charge -2"):
        engine.compute(methyl.positions, methyl.numbers, terms=[("high", 1.0)], charge=-2)
    again = train(plan.load(tmp_path / "config.yaml", ["resume=true"]))
    assert again == errors
