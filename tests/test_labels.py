"""Labels are what they say: units, signs, charges, and which structures are one, as files of real users have them."""

import itertools
import json
import warnings

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from conftest import DATA, ethanol

from mfmd import Note, units
from mfmd.config import ConfigError
from mfmd.structures import checks, consistency, identity, reading
from mfmd.structures.record import DataError, Label, Structure

pytest.importorskip("pydantic")
from mfmd.training import plan, schema

HARTREE, BOHR, KCAL, KJ = units.ENERGY["Hartree"], units.LENGTH["Bohr"], units.ENERGY["kcal/mol"], units.ENERGY["kJ/mol"]


@pytest.fixture(scope="module")
def shipped():
    return [a for a in ase.io.iread(DATA / "train.xyz") if a.info["molecule"] in ("ethanol", "methanol", "ammonia", "water_8")]


def config(folder, frames, levels=("gfn2",), **more):
    """A run on these frames, whose labels are called as the shipped ones."""
    ase.io.write(folder / "set.xyz", frames, format="extxyz")
    data = {"train": str(folder / "set.xyz")} | more.pop("data", {})
    return plan.parse(
        {"out": str(folder / "run"), "data": data, "levels": levels if isinstance(levels, dict) else dict.fromkeys(levels), **more}, "test"
    )


def consider(c, given=None):
    """What a run does with its labels before it starts: the splits, and what was said on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits, isolated = reading.read_all(c.data, c.levels, c.out / "data")
        checks.check_units(splits["train"], c.levels, given or {}, c.data)
    return splits, isolated, [str(w.message) for w in caught]


def scaled(frames, energy=1.0, forces=1.0, level="gfn2"):
    out = [a.copy() for a in frames]
    for a, b in zip(frames, out, strict=True):
        b.info[f"energy_{level}"] = a.info[f"energy_{level}"] * energy
        if f"forces_{level}" in b.arrays:
            b.arrays[f"forces_{level}"] = a.arrays[f"forces_{level}"] * forces
    return out


# ------------------------------------------------------------------------------------------------ units and signs


WRONG = {  # factors of energies and forces, and the key that mends it
    "gradients": (1.0, -1.0, "levels.gfn2.forces_sign: gradient"),
    "gradients in kcal/mol/Å": (1.0, -1 / KCAL, "forces_sign: gradient, kcal/mol/Å\\? then levels.gfn2.forces_unit: kcal/mol/Å"),
    "kJ/mol/Å beside eV": (1.0, 1 / KJ, "kJ/mol/Å\\? then levels.gfn2.forces_unit: kJ/mol/Å"),
    "Hartree/Bohr beside eV": (1.0, BOHR / HARTREE, "Hartree/Bohr\\? then levels.gfn2.forces_unit: Hartree/Bohr"),
    "Hartree/Å beside eV": (1.0, 1 / HARTREE, "Hartree/Å\\? then levels.gfn2.forces_unit: Hartree/Å"),
    "all in kcal/mol": (1 / KCAL, 1 / KCAL, "kcal/mol/Å\\? then data.energy_unit: kcal/mol"),
    "all in Hartree": (1 / HARTREE, 1 / HARTREE, "Hartree/Å\\? then data.energy_unit: Hartree"),
    "energies alone in Hartree": (1 / HARTREE, 1.0, "energies in Hartree\\? then levels.gfn2.energy_unit: Hartree"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_forces_that_are_none_are_questioned(shipped, tmp_path, kind):
    energy, forces, words = WRONG[kind]
    c = config(tmp_path, scaled(shipped, energy, forces))
    with pytest.raises(DataError, match=words + ".*levels.gfn2.unchecked"):
        consider(c)
    meant = config(tmp_path, scaled(shipped, energy, forces), {"gfn2": {"unchecked": True}})
    assert any("the force on hydrogen" in text or "the work of the forces" in text for text in consider(meant)[2])


def test_what_mends_it_mends_it(shipped, tmp_path):
    """Gradients in Hartree/Bohr and energies in Hartree, said in keys: the labels that were."""
    keys = {"forces_sign": "gradient", "forces_unit": "Hartree/Bohr", "energy_unit": "Hartree"}
    c = config(tmp_path, scaled(shipped, 1 / HARTREE, -BOHR / HARTREE), {"gfn2": keys}, data={"val": 0.1})
    splits, _, _ = consider(c)
    for s in splits["train"][:5]:
        a = shipped[int(s.source.split()[-1])]
        np.testing.assert_allclose(s.labels["gfn2"].forces, a.arrays["forces_gfn2"], atol=1e-6)
        assert s.labels["gfn2"].energy == pytest.approx(a.info["energy_gfn2"], abs=1e-6)


def test_a_key_that_names_a_gradient_holds_one(shipped, tmp_path):
    frames = scaled(shipped[:40], 1.0, -1.0)
    for a in frames:
        a.arrays["dft_total_gradient"] = a.arrays.pop("forces_gfn2")
    splits, _, _ = consider(config(tmp_path, frames, {"gfn2": {"forces": "dft_total_gradient"}}))
    assert np.array_equal(
        splits["train"][0].labels["gfn2"].forces, shipped[int(splits["train"][0].source.split()[-1])].arrays["forces_gfn2"]
    )
    with pytest.raises(DataError, match="forces_sign: gradient"):
        consider(config(tmp_path, frames * 3, {"gfn2": {"forces": "dft_total_gradient", "forces_sign": "force", "unchecked": False}}))


@pytest.mark.parametrize("level", ["gfn2", "dft", "cctz"])
def test_shipped_labels_are_accepted(shipped, tmp_path, level):
    frames = [a for a in shipped if f"energy_{level}" in a.info]
    assert not any(word in text for text in consider(config(tmp_path, frames, (level,)))[2] for word in ("unchecked", "stand out"))


def test_frames_of_hot_runs_are_no_reason_for_doubt(shipped, tmp_path, monkeypatch):
    """Farther apart than the trapezoidal rule reaches, as 600 K lead methylamine in 50 fs: less correlation, and a slope that is too small by its square."""
    frames = [a for a in shipped if a.info["molecule"] == "methanol"]
    for value, doubted in ((0.597, False), (1.0, False), (0.4, True), (0.037, True)):
        monkeypatch.setattr(consistency, "work", lambda *_, value=value: consistency.Slope(value, 0.82, 405, 60))
        c = config(tmp_path, frames)
        if doubted:
            with pytest.raises(DataError, match=f"energies change by {value:g} times the work"):
                consider(c)
        else:
            consider(c)


def springs(number, rng, minima, numbers, k=30.0, width=0.015):
    """Structures about minima (positions, energy), with springs between all atoms: energies and forces fit each other, and turn with the structure."""
    out, (i, j) = [], np.triu_indices(len(numbers), 1)
    for n in range(number):
        rest, energy = minima[n % len(minima)]
        positions = rest + rng.normal(scale=width, size=rest.shape)
        vectors = positions[j] - positions[i]
        lengths = np.linalg.norm(vectors, axis=1)
        longer = lengths - np.linalg.norm(rest[j] - rest[i], axis=1)
        forces, pull = np.zeros_like(rest), k * (longer / lengths)[:, None] * vectors
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        label = Label(energy + 0.5 * k * np.sum(longer**2), forces)
        out.append(Structure(np.array(numbers), positions, np.zeros((3, 3)), np.zeros(3, bool), {"dft": label}, f"made up: {n}"))
    return out


def test_isomers_polymorphs_and_reactions_are_far_apart_in_energy():
    """cis and trans, three wells of 20 eV, and a path from one to another: no refusal."""
    rng = np.random.default_rng(0)
    chain = np.array([[1.3 * k, 0.2 * (k % 2), 0.0] for k in range(6)])
    bent = chain * [1.0, 3.0, 1.0] + [[0, 0, 0.4 * k] for k in range(6)]
    levels = {"dft": schema.Level()}
    for minima in ([(chain, 0.0), (bent, 6.0)], [(chain, 0.0), (bent, 20.0), (chain[::-1] * 1.1, -15.0)]):
        checks.check_units(springs(30, rng, minima, [6, 7, 6, 8, 6, 6]), levels, {}, schema.Data(train=[]))
    path = springs(40, rng, [(chain + t * (bent - chain), 8.0 * np.sin(np.pi * t) ** 2) for t in np.linspace(0, 1, 40)], [6, 7, 6, 8, 6, 6])
    checks.check_units(path, levels, {}, schema.Data(train=[]))


def test_without_hydrogen_the_work_tells():
    rng = np.random.default_rng(1)
    structures = springs(30, rng, [(np.array([[0, 0, 0], [0, 0, 1.16], [0, 0, 2.32]]), -5000.0)], [8, 6, 8])
    levels = {"dft": schema.Level()}
    checks.check_units(structures, levels, {}, schema.Data(train=[]))
    for factor, words in ((-1.0, "forces_sign: gradient"), (BOHR, "eV/Bohr"), (1 / KCAL, "kcal/mol")):
        wrong = [
            Structure(**{**vars(s), "labels": {"dft": Label(s.labels["dft"].energy, factor * s.labels["dft"].forces)}}) for s in structures
        ]
        with pytest.raises(DataError, match=words):
            checks.check_units(wrong, levels, {}, schema.Data(train=[]))


def test_where_nothing_can_tell_it_says_so_once_and_starts():
    rng = np.random.default_rng(2)
    one_each = [Structure(np.array([6, 8]), np.array([[0, 0, 0], [0, 0, 1.0 + 0.02 * k]]), np.zeros((3, 3)), np.zeros(3, bool),
                          {"dft": Label(-1.0, rng.normal(size=(2, 3)))}, str(k)) for k in range(8)]  # fmt: skip
    with pytest.warns(Note, match="levels.dft: whether its forces .* cannot be told") as caught:
        checks.check_units(one_each, {"dft": schema.Level()}, {}, schema.Data(train=[]))
    assert len(caught) == 1


def test_levels_of_energies_alone_are_held_against_each_other(shipped, tmp_path):
    frames = [a for a in shipped if "energy_cctz" in a.info]
    with pytest.raises(DataError, match="levels.cctz: its energies vary 0.0[0-9]* times as much as those of dft"):
        consider(config(tmp_path, scaled(frames, 1 / HARTREE, level="cctz"), ("dft", "cctz")))


@pytest.mark.parametrize("tags, factor", [(("kcal/mol", "Ang"), 1.0), (("kJ/mol", "angstrom"), 1.0), (("Hartree", "bohr"), BOHR)])
def test_tags_of_a_file_are_obeyed(shipped, tmp_path, tags, factor):
    molecule = [a for a in shipped if a.info["molecule"] == "ammonia"]
    energy, length = units.energy(tags[0]), units.length(tags[1])
    np.savez(
        tmp_path / "a.npz", z=molecule[0].numbers, R=np.array([a.positions for a in molecule]) / length, e_unit=tags[0], r_unit=tags[1],
        E=np.array([[a.info["energy_gfn2"]] for a in molecule]) / energy, F=np.array([a.arrays["forces_gfn2"] for a in molecule]) * length / energy,
    )  # fmt: skip
    levels = {"gfn2": schema.Level(energy="E", forces="F")}
    with pytest.warns(UserWarning, match=f"the file says that its numbers are in .*{tags[0]}"):
        read = list(reading.read_file(tmp_path / "a.npz", schema.Data(train=[]), levels))
    np.testing.assert_allclose(read[3].positions, molecule[3].positions, atol=1e-10)
    np.testing.assert_allclose(read[3].labels["gfn2"].forces, molecule[3].arrays["forces_gfn2"], atol=1e-10)
    with pytest.raises(DataError, match=f"the file says {tags[0]}, and data.energy_unit says meV"):
        list(reading.read_file(tmp_path / "a.npz", schema.Data(train=[], energy_unit="meV"), levels))


# ------------------------------------------------------------------------------------------------ stress


def crystals(stress=lambda s: s, key="stress_gfn2"):
    """A cubic crystal whose energy is ½ B (V − V₀)² / V₀ at thirteen volumes; stress (1/V) dE/dε = dE/dV on the diagonal."""
    out = []
    for a in np.linspace(3.9, 4.1, 13):
        atoms = ase.build.bulk("Ar", "sc", a=a)
        volume, slope = a**3, 0.5 * (a**3 - 64.0) / 64.0
        atoms.info = {"energy_gfn2": -5.0 + 0.25 * (volume - 64.0) ** 2 / 64.0, key: stress(slope * np.array([1, 1, 1, 0, 0, 0]), volume)}
        atoms.arrays["forces_gfn2"] = np.zeros((1, 3))
        out.append(atoms)
    return out


def matrix(s):
    return s[[0, 5, 4, 5, 1, 3, 4, 3, 2]]


def test_stress_and_virial(tmp_path):
    """By what users call them: as it is, in GPa by declared unit, as virial; zero forces of a perfect crystal are no sign of missing ones."""
    wanted = [s.labels["gfn2"].stress for s in consider(config(tmp_path, crystals(lambda s, v: s)))[0]["train"]]
    for key, make, level in (
        ("stress_gfn2", lambda s, v: 160.2176634 * s, {"stress_unit": "GPa"}),
        ("stress_gfn2", lambda s, v: matrix(s), {}),
        ("virial_gfn2", lambda s, v: matrix(-v * s), {}),
        ("W", lambda s, v: matrix(-v * s), {"virial": "W"}),
    ):
        found = [s.labels["gfn2"].stress for s in consider(config(tmp_path, crystals(make, key), {"gfn2": level}))[0]["train"]]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(
    "kind, make",
    {
        "sign": lambda s, v: -s,
        "GPa": lambda s, v: 160.2 * s,
        "kbar of VASP": lambda s, v: -1602.0 * s,
        "virial": lambda s, v: -v * s,
        "bar": lambda s, v: 1.6e6 * s,
    }.items(),
)
def test_a_stress_that_is_none_is_refused(tmp_path, kind, make):
    with pytest.raises(DataError, match="levels.gfn2.*stress"):
        consider(config(tmp_path, crystals(make)))


def test_stress_and_virial_at_once(tmp_path):
    frames = crystals(lambda s, v: s)
    for a in frames:
        a.info["virial_gfn2"] = np.zeros(9)
    with pytest.raises(DataError, match="level gfn2 has both stress_gfn2 and virial_gfn2; leave one"):
        consider(config(tmp_path, frames))


# ------------------------------------------------------------------------------------------------ what stands out


@pytest.mark.parametrize("kind", ["energy", "forces", "both"])
def test_one_frame_that_has_gone_wrong_is_named_and_moves_nothing(shipped, tmp_path, single, kind):
    """One unconverged calculation among hundreds: named; units are not blamed, and scale and E0 are those of the others."""
    from mfmd.training import stages

    frames = [a.copy() for a in shipped if a.info["molecule"] != "water_8"]
    if kind != "forces":
        frames[17].info["energy_gfn2"] += 97.0
    if kind != "energy":
        frames[17].arrays["forces_gfn2"] = frames[17].arrays["forces_gfn2"] * 4000.0
    heads = []
    for some in (frames, frames[:17] + frames[18:]):
        c = config(tmp_path, some, data={"val": 0.1, "split_seed": 2}, backbone={"channels": 16, "layers": 0, "radial_functions": 8})
        splits, _, said = consider(c)
        everything = sorted(splits["train"] + splits["val"], key=lambda s: int(s.source.split()[-1]))
        heads.append(stages.begin(c, c.stages[0], None, everything).heads["gfn2"])
        if some is frames:
            assert any("1 of" in text and "frame 17" in text for text in said)
    np.testing.assert_allclose(heads[0].e0, heads[1].e0, atol=0.02)
    assert float(heads[0].scale) == pytest.approx(float(heads[1].scale), rel=0.01)


def test_forces_of_zero_were_not_computed(shipped, tmp_path):
    frames = [a.copy() for a in shipped[:60]]
    for a in frames[::4]:
        a.arrays["forces_gfn2"] = np.zeros((len(a), 3))
    with pytest.raises(DataError, match="the forces of [0-9]+ structures are zero on every atom.*frame"):
        consider(config(tmp_path, frames))
    for a in frames[::4]:
        a.info["config_forces_weight"] = 0.0
    splits, _, said = consider(config(tmp_path, frames))
    assert sum(s.labels["gfn2"].forces is not None for s in splits["train"] + splits["val"]) == 45
    assert any("15 structures have config_forces_weight 0, and their forces are left out" in text for text in said)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("config_energy_weight", 0.5, "config_energy_weight is 0.5"),
        ("config_weight", 100.0, "config_weight is 100"),
        ("config_dipole_weight", 0.0, "there is no such label"),
    ],
)
def test_other_weights_are_refused_by_name(shipped, tmp_path, key, value, words):
    frames = [a.copy() for a in shipped[:20]]
    frames[7].info[key] = value
    with pytest.raises(DataError, match=f"frame 7: .*{words}|frame 7: {words}"):
        consider(config(tmp_path, frames))


def test_a_weight_of_zero_for_all(shipped, tmp_path):
    frames = [a.copy() for a in shipped[:20]]
    frames[3].info["config_weight"] = 0
    frames[4].info["config_weight"] = 1.0
    splits, _, _ = consider(config(tmp_path, frames, data={"val": 0.2}))
    assert sum("gfn2" in s.labels for s in splits["train"] + splits["val"]) == 19


@pytest.mark.parametrize("far", [0.0, 1e4, -3e5])
def test_distances_wherever_a_structure_lies(far):
    """Differences are taken before positions are rounded: molecules, and crystals whose atoms are many cells away."""
    torch = pytest.importorskip("torch")
    from mfmd.training.batches import collate

    molecule = ethanol()
    crystal = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    crystal.rattle(0.1, seed=1)
    moved = crystal.copy()
    moved.positions += np.round(far / 5.64) * 5.64 + np.array([[5.64 * (k % 3), -5.64 * k, 0] for k in range(8)])
    for atoms, other in ((molecule, molecule.copy()), (crystal, moved)):
        if other is not moved:
            other.positions += [far, -0.5 * far, far]
        wanted, found = (
            collate([Structure(a.numbers, a.positions, a.cell.array, a.pbc, {}, "")], [], 5.0, torch.float32) for a in (atoms, other)
        )
        distances = [
            np.sort(torch.linalg.vector_norm(b.positions[b.j] - b.positions[b.i] + b.shifts, dim=1).numpy()) for b in (wanted, found)
        ]
        np.testing.assert_allclose(distances[0], distances[1], atol=1e-5)


# ------------------------------------------------------------------------------------------------ charge and spin


def saying(info=(), charges=None, moments=None, name="H2O", pbc=False, **arrays):
    """A molecule that says something of its charge and spin."""
    atoms = ase.build.molecule(name)
    atoms.set_initial_magnetic_moments(moments)
    atoms.set_initial_charges(charges)
    atoms.info = {"energy_gfn2": -100.0, **dict(info)}
    for key, value in arrays.items():
        atoms.set_array(key, np.asarray(value))
    if pbc:
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
    return atoms


PAIR = {"fragments": [(-1, 1), (1, 1)]}
WRONG_STATES = {  # what is said of water, and the sentence
    "a word": (saying({"charge": "cation"}), "charge is 'cation', which is not a number"),
    "true": (saying({"charge": True}), "charge is 'True', which is not a number"),
    "half a charge": (saying({"charge": 0.5}), "charge is 0.5, which is no whole number"),
    "an infinite charge": (saying({"total_charge": np.inf}), "total_charge is inf, which is no whole number"),
    "a charge of another unit": (saying({"charge": 1.6e19}), "charge is 1.6e\\+19, which no molecule has"),
    "a number that stands for none": (saying({"charge": -999}), "charge is -999, and the nuclei have 10 together"),
    "more than all electrons": (saying({"charge": 11}), "charge is 11, and there are 10 electrons"),
    "two charges": (saying({"charge": 1, "net_charge": 0}), "charge says the charge 1, and net_charge says 0; correct one of them"),
    "a SMILES of another charge": (saying({"charge": 1, "smiles": "[O-][H]"}), "charge says the charge 1, and smiles says -1"),
    "two SMILES": (saying({"smiles": "O", "mapped_smiles": "[OH3+]"}), "smiles says the charge 0, and mapped_smiles says 1"),
    "atoms of another charge": (saying({"charge": 1}, [-1, 0, 0]), "charge says the charge 1, and the sum of the charges of the atoms says -1"),
    "two columns of other charges": (saying(charges=[1, 0, 0], q=[-0.4, -0.3, -0.3]), "the sum of the charges of the atoms says the charge .*1, and another"),
    "a column of another charge": (saying({"charge": 0}, q=[1.0, 0.0, 0.0]), "charge says the charge 0, and the sum .* says 1"),
    "partial charges alone": (saying(charges=[-0.5, 0.1, 0.1]), "add up to -0.3, which is no whole number; say the charge"),
    "a multiplicity of no electrons": (saying({"multiplicity": 0}), "multiplicity is 0; a multiplicity is 2S \\+ 1"),
    "a multiplicity of the wrong parity": (saying({"mult": 2}), "multiplicity is 2, which 10 electrons cannot have; correct it, or remove"),
    "a closed shell of a cation": (saying({"charge": 1, "multiplicity": 1}), "multiplicity is 1, which 9 electrons cannot have"),
    "a closed shell of a radical": (saying({"spin_multiplicity": 1}, name="CH3"), "multiplicity is 1, which 9 electrons cannot have"),
    "more unpaired than there are": (saying({"uhf": 12}), "multiplicity is 13, which 10 electrons cannot have"),
    "half an electron": (saying({"magmom": 0.5}), "magmom is 0.5, which is no whole number"),
    "two multiplicities": (saying({"mult": 3, "uhf": 0}), "mult says the multiplicity 3, and uhf says 1; correct one"),
    "moments of another multiplicity": (saying({"mult": 1}, moments=[2, 0, 0]), "mult says the multiplicity 1, and the sum of the magnetic moments"),
    "moments that are no electrons": (saying(moments=[0.4, 0, 0]), "add up to 0.4, which is no number of electrons"),
    "moments that cancel": (saying(moments=[0, 1, -1]), "add up to nothing; open-shell singlets are not told from closed shells"),
    "a spin": (saying({"spin": 2}), "spin is 2, which may be 2S or 2S \\+ 1; say which \\(data.spin of a config\\)"),
    "a spin of a cation": (saying({"spin": 1, "charge": 1}), "spin is 1, which may be 2S or 2S \\+ 1"),
    "fragments of nobody": (saying(PAIR), "fragments are said, and not which of them an atom belongs to"),
    "fragments without states": (saying(fragment=[0, 0, 1]), "atoms have a fragment, and nothing says the states"),
    "fragments that are no pairs": (saying({"fragments": "two"}), "fragments are two; wanted are pairs of charge and multiplicity"),
    "fragments of half an atom": (saying(PAIR, fragment=[0, 0, 0.5]), "the fragments of the atoms are not 3 whole numbers"),
    "one fragment too many": (saying(PAIR, fragment=[0, 1, 2]), "atom 2 is of fragment 2, and there are 2 fragments"),
    "a fragment without atoms": (saying({"fragments": [(0, 1), (0, 1)]}, fragment=[0, 0, 0]), "fragment 1 has no atoms"),
    "fragments of another charge": (saying({**PAIR, "charge": 1}, fragment=[0, 0, 1]), "fragments add up to \\+0, and the charge is \\+1"),
    "fragments of another spin": (saying({**PAIR, "mult": 3}, fragment=[0, 0, 1]), "the multiplicity is 3, which fragments of 1, 1 cannot"),
    "a fragment of the wrong parity": (saying({"fragments": [(0, 1), (0, 2)]}, fragment=[0, 0, 1]), "fragment 0: multiplicity is 1, which 9"),
    "a crystal of the wrong parity": (saying({"charge": 1, "mult": 3}, pbc=True), "multiplicity is 3, which 9 electrons cannot have"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_STATES)
def test_charges_and_spins_that_cannot_be(tmp_path, kind):
    atoms, words = WRONG_STATES[kind]
    with pytest.raises(DataError, match=f"set.xyz: frame 0: .*{words}|set.xyz: frame 0: {words}") as error:
        consider(config(tmp_path, [atoms]))
    assert "\n" not in str(error.value)


SAID_STATES = {  # what is said, and what it is
    "nothing": (saying(), (0, 1)),
    "nothing, of a radical": (saying(name="CH3"), (0, 2)),
    "a charge": (saying({"Total Charge": "+1"}), (1, 2)),
    "a charge that is nearly whole": (saying({"charge": -1.0001}), (-1, 2)),
    "nothing, under a key": (saying({"charge": np.nan, "multiplicity": 3}), (0, 3)),
    "unpaired electrons": (saying({"uhf": 2}), (0, 3)),
    "unpaired electrons, down": (saying({"magmom": -2.0}), (0, 3)),
    "a spin of a closed shell": (saying({"spin": 1}), (0, 1)),
    "a SMILES": (saying({"smiles": "[H:2][O+:1][H:3]"}), (1, 2)),
    "atoms' charges": (saying(charges=[0.6, 0.2, 0.2]), (1, 2)),
    "a column of charges": (saying(q=[-0.8, -0.1, -0.1]), (-1, 2)),
    "formal charges beside partial ones": (saying(charges=[0.5, 0.2, 0.1], q=[1, 0, 0]), (1, 2)),
    "partial charges beside the charge": (saying({"charge": 1}, [0.5, 0.2, 0.2]), (1, 2)),
    "moments": (saying({"charge": 0}, moments=[1.5, 0.25, 0.25]), (0, 3)),
    "one fragment": (saying({"fragments": [(1, 2)]}, fragment=[0, 0, 0]), (1, 2)),
    "a quadrupole called Q": (saying({"Q": np.eye(3)}), (0, 1)),
    "a crystal of an odd number": (saying({"charge": 1}, pbc=True), (1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID_STATES)
def test_charges_and_spins_that_are_said(tmp_path, kind):
    atoms, wanted = SAID_STATES[kind]
    c = config(tmp_path, [atoms])
    (s,) = reading.read_file(c.data.train[0], c.data, c.levels)
    assert s.states == (wanted,) and s.charge == wanted[0] and not np.size(s.fragment)


@pytest.mark.parametrize("stream", [False, True])
def test_fragments_through_a_file_and_a_run(tmp_path, stream):
    """extxyz there and back, packed or not."""
    atoms = saying({**PAIR, "charge": 0}, fragment=[0, 1, 0])
    ions = [atoms.copy(), saying({"charge": 1})]
    ions[1].positions += 0.01
    c = config(tmp_path, [atoms, *ions], {"gfn2": {"unchecked": True}}, data={"val": [str(tmp_path / "set.xyz")], "stream": stream})
    splits, _, _ = consider(c)
    found = splits["val"][0]
    assert found.states == ((-1, 1), (1, 1)) and list(found.fragment) == [0, 1, 0] and found.charge == 0
    assert reading.subset_states(splits["val"], "gfn2") == [(-1, 1), (1, 1), (1, 2)]


ROOT_MODEL = DATA.parent.parent / "tests" / "frozen" / "format1-heads.pt"


def test_what_is_not_said_is_told_once_a_file(tmp_path):
    frames = [ase.build.molecule(name) for name in ("CH3", "OH", "H2O", "NH2", "CH4")]
    for k, a in enumerate(frames):
        a.set_initial_magnetic_moments(None)
        a.info = {"energy_gfn2": -100.0} | ({"charge": 0} if k == 4 else {})
    said = consider(config(tmp_path, frames, data={"val": 0.4}))[2]
    assert sum("4 structures name no charge, and are taken as neutral" in text for text in said) == 1
    assert sum("3 structures have an odd number of electrons and no multiplicity" in text for text in said) == 1


def test_a_charge_that_is_set_later_meets_no_cache():
    import mfmd

    for change in (lambda a: a.info.update(Q=1), lambda a: a.set_initial_charges([1, 0, 0]), lambda a: a.info.update(multiplicity=3)):
        atoms = ase.build.molecule("H2O")
        atoms.calc = mfmd.Calculator(ROOT_MODEL)
        atoms.get_forces()
        change(atoms)
        for ask in (atoms.get_potential_energy, atoms.get_forces):
            with pytest.raises(mfmd.Error, match="trained on neutral structures of the lowest multiplicity only"):
                ask()


def test_formal_charges_add_up_over_the_atoms_the_model_sees(model_file):
    openmm = pytest.importorskip("openmm")
    import backends

    import mfmd

    topology = backends.topology(ethanol())
    members = list(topology.atoms())
    members[1].formalCharge, members[2].formalCharge = 1, -1
    for part, words in ((None, None), ([0, 1, 3], "it has charge \\+1")):
        system = openmm.System()
        for _ in members:
            system.addParticle(12.0)
        system.addForce(mfmd.openmm.create_force(model_file, topology, part, host="python"))
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(0.1 * ethanol().positions)
        if words is None:
            context.getState(energy=True)
        else:
            with pytest.raises(Exception, match=words):
                context.getState(energy=True)


def test_charge_of_a_torchsim_state():
    torch = pytest.importorskip("torch")
    ts = pytest.importorskip("torch_sim")
    import mfmd

    model = mfmd.torchsim.MfmdModel(ROOT_MODEL, device=torch.device("cpu"), compute_stress=False)
    state = ts.io.atoms_to_state([ase.build.molecule("H2O")], torch.device("cpu"), torch.float64)
    given = {key: getattr(state, key) for key in ("positions", "masses", "cell", "pbc", "atomic_numbers", "system_idx")}
    energy = model(given)["energy"]
    assert torch.equal(model({**given, "charge": torch.zeros(1), "spin": torch.ones(1)})["energy"], energy)
    for key, value, words in (("charge", -1.0, "it has charge -1"), ("spin", 2.0, "spin is 2, which may be")):
        with pytest.raises(mfmd.Error, match=words):
            model({**given, key: torch.tensor([value])})


# ------------------------------------------------------------------------------------------------ which structures are one


def one_level(frames, level, plain=False):
    out = []
    for a in frames:
        b = Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc)
        b.info[f"energy_{level}" if not plain else "E"] = a.info[f"energy_{level}"]
        if f"forces_{level}" in a.arrays:
            b.arrays[f"forces_{level}" if not plain else "F"] = a.arrays[f"forces_{level}"]
        out.append(b)
    return out


@pytest.fixture
def by_level(shipped, tmp_path):
    """Three files of one set of structures, each with one level under the same keys, the second in another order."""
    frames = [a for a in shipped if "energy_cctz" in a.info][:40]
    order = np.random.default_rng(0).permutation(len(frames))
    ase.io.write(tmp_path / "dft.xyz", one_level(frames, "dft", plain=True), format="extxyz")
    ase.io.write(tmp_path / "cctz.xyz", one_level([frames[k] for k in order], "cctz", plain=True), format="extxyz")
    return frames


def test_files_by_level_become_levels_of_one_structure(by_level, tmp_path):
    keys = {"energy": "E", "forces": "F"}
    data = {"train": {"dft": str(tmp_path / "dft.xyz"), "cctz": str(tmp_path / "cctz.xyz")}, "val": 0.25}
    c = plan.parse({"out": str(tmp_path / "run"), "data": data, "levels": {"dft": keys, "cctz": {**keys, "delta_of": "dft"}}}, "test")
    splits, _, said = consider(c)
    assert len(splits["train"]) + len(splits["val"]) == len(by_level)
    for s in splits["train"] + splits["val"]:
        a = by_level[int(s.source.split()[-1])]
        assert s.labels["dft"].energy == a.info["energy_dft"] and s.labels["cctz"].energy == a.info["energy_cctz"]
    assert any("40 structures stand in the files again" in text for text in said)
    with pytest.raises(ConfigError, match="levels.cctz.energy: 'E' is the key of levels.dft too"):
        plan.parse({"out": "x", "data": {"train": ["a.xyz", "b.xyz"]}, "levels": {"dft": keys, "cctz": keys}}, "test")
    with pytest.raises(ConfigError, match="data.train: there is no level 'mp2'"):
        plan.parse({"out": "x", "data": {"train": {"mp2": "a.xyz"}}, "levels": {"dft": keys}}, "test")


def test_two_different_labels_of_one_structure_are_refused(shipped, tmp_path):
    frames = [a.copy() for a in shipped[:30]] + [shipped[4].copy()]
    splits, _, said = consider(config(tmp_path, frames, data={"val": 0.2}))
    assert len(splits["train"]) + len(splits["val"]) == 30 and any("1 structures stand" in text for text in said)
    frames[-1].info["energy_gfn2"] += 0.01
    with pytest.raises(DataError, match="frame 30: it is the structure of .*frame 4, and its energy of level gfn2 differs by 0.01"):
        consider(config(tmp_path, frames))
    splits, _, _ = consider(config(tmp_path, frames, {"gfn2": {"unchecked": True}}, data={"val": 0.2}))
    assert len(splits["train"]) + len(splits["val"]) == 31


def test_structures_of_one_split_in_another_are_told(shipped, tmp_path):
    val = [a.copy() for a in shipped[:6]]
    val[4].positions = val[4].positions @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] + 2.0
    val[4].arrays["forces_gfn2"] = val[4].arrays["forces_gfn2"] * 0.0 + 1.0
    val[5] = val[5][::-1]
    ase.io.write(tmp_path / "val.xyz", val, format="extxyz")
    said = consider(config(tmp_path, shipped, data={"val": [str(tmp_path / "val.xyz")]}))[2]
    assert any("6 structures of val are structures of train, 4 of them exactly" in text for text in said)


def test_identity_is_by_comparison():
    """Shifts below 1e-4 Å are none, whatever digit they round; a cell, periodicity and the order of atoms count."""
    rng = np.random.default_rng(3)
    base = [Structure(np.array([6, 1, 1]), rng.normal(size=(3, 3)), np.zeros((3, 3)), np.zeros(3, bool), {}, "") for _ in range(200)]
    moved = [Structure(s.numbers, s.positions + rng.uniform(-4e-5, 4e-5, (3, 3)), s.cell, s.pbc, {}, "") for s in base]
    far = [Structure(s.numbers, s.positions + [3e-4, 0, 0], s.cell, s.pbc, {}, "") for s in base]
    swapped = [Structure(s.numbers, s.positions[[0, 2, 1]], s.cell, s.pbc, {}, "") for s in base]
    periodic = [Structure(s.numbers, s.positions, np.eye(3) * 9, np.ones(3, bool), {}, "") for s in base]
    first = identity.same(base + moved + far + swapped + periodic + periodic[:5])
    assert np.array_equal(first[:400], np.tile(np.arange(200), 2)) and np.array_equal(first[400:1000], np.arange(400, 1000))
    assert np.array_equal(first[1000:], np.arange(800, 805))
    assert identity.alike(swapped, base) == {k: k for k in range(200)} and not identity.alike(periodic, base)


def in_state(frames, charge, shift=0.0):
    """The same nuclei with another charge, whose energies lie elsewhere."""
    out = [a.copy() for a in frames]
    for a in out:
        a.info |= {"charge": charge, "energy_gfn2": a.info["energy_gfn2"] + shift}
    return out


def test_the_same_nuclei_in_two_states_are_two_structures(shipped, tmp_path):
    """They are no duplicates, within a split and across; energies of one are not held against those of the other."""
    methanol = [a for a in shipped if a.info["molecule"] == "methanol"][:60]
    cations = in_state(methanol, 1, 9.7)
    splits, _, said = consider(config(tmp_path, [*methanol, *cations], data={"val": 0.2}))
    assert len(splits["train"]) + len(splits["val"]) == 120
    assert not any(word in text for text in said for word in ("stand in the files again", "are structures of", "stand out"))
    ase.io.write(tmp_path / "val.xyz", cations[:20] + methanol[:3], format="extxyz")
    said = consider(config(tmp_path, methanol, data={"val": [str(tmp_path / "val.xyz")]}))[2]
    assert any("3 structures of val are structures of train, 3 of them exactly" in text for text in said)
    turned = in_state(methanol[:4], 1)
    for a in turned:
        a.rotate(50, (1, 2, 3))
        del a.arrays["forces_gfn2"]
    ase.io.write(tmp_path / "val.xyz", turned, format="extxyz")
    assert not any(
        "are structures of" in text for text in consider(config(tmp_path, methanol, data={"val": [str(tmp_path / "val.xyz")]}))[2]
    )


@pytest.mark.parametrize("said", [False, True])
def test_a_file_that_has_forgotten_its_charges_is_told(by_level, tmp_path, said):
    """Of two levels' files only one says that its structures are cations; where the other says 0 they are."""
    for name, info in (("dft", {"charge": 1}), ("cctz", {"charge": 0} if said else {})):
        frames = ase.io.read(tmp_path / f"{name}.xyz", ":")
        for a in frames:
            a.info |= info
        ase.io.write(tmp_path / f"{name}.xyz", frames, format="extxyz")
    keys = {"energy": "E", "forces": "F"}
    data = {"train": {name: str(tmp_path / f"{name}.xyz") for name in ("dft", "cctz")}, "val": 0.25}
    c = plan.parse({"out": str(tmp_path / "run"), "data": data, "levels": dict.fromkeys(("dft", "cctz"), keys)}, "test")
    words = f"{len(by_level)} structures name no charge and are taken as neutral, and with the same nuclei others are charged"
    assert any(words in text for text in consider(c)[2]) != said


def test_few_ions_among_molecules_do_not_stand_out(shipped, tmp_path):
    """A few small ones, far from each other in ionisation energy, and isolated ions; one that has gone wrong among enough of them is named."""
    ammonia = [a for a in shipped if a.info["molecule"] == "ammonia"]
    ions = in_state(ammonia[:5], 1, 10.2) + in_state(ammonia[5:10], -1, 1.5) + in_state(ammonia[10:14], 2, 36.0)
    bare = [Atoms([z], info={"energy_gfn2": e, "charge": q}) for z, q, e in ((11, 1, -4000.0), (3, 1, -195.0), (17, -1, -12500.0))]
    splits, isolated, said = consider(config(tmp_path, [*ammonia[20:], *ions, *bare], data={"val": 0.1}), {"gfn2": {1: -10.7, 7: -71.0}})
    assert isolated == {"gfn2": {}} and not any("stand out" in text or "isolated" in text for text in said)
    assert sum(len(s.numbers) == 1 for split in splits.values() for s in split) == 3
    ions = in_state(ammonia[:80], 1, 10.2)
    ions[7].info["energy_gfn2"] += 30.0
    said = consider(config(tmp_path, [*ammonia[80:], *ions], data={"val": 0.1, "split_seed": 1}))[2]
    assert any("the energy of 1 of" in text and f"frame {len(ammonia) - 80 + 7}" in text for text in said)


@pytest.mark.parametrize("given", ["all", "some", "none"])
def test_isolated_atoms_are_reference_energies(shipped, tmp_path, single, given):
    """Of all elements they fix E0; of some they are set aside; in no split, and no element is trained by them."""
    from mfmd.training import stages

    energies = {1: -10.7, 6: -48.8, 7: -71.0, 8: -102.5, 9: -125.0}
    elements = {"all": (1, 6, 7, 8, 9), "some": (1, 9), "none": ()}[given]
    atoms = [Atoms([z], info={"energy_gfn2": energies[z]}) for z in elements]
    c = config(tmp_path, atoms + shipped, data={"val": 0.2}, backbone={"channels": 16, "layers": 0, "radial_functions": 8})
    splits, isolated, said = consider(c)
    assert isolated == {"gfn2": {z: energies[z] for z in elements}}
    assert all(len(s.numbers) > 1 for split in splits.values() for s in split) and any("isolated atoms" in text for text in said) == bool(
        elements
    )
    assert 9 not in reading.subset_elements(splits["train"], "gfn2")
    e0 = stages.begin(c, c.stages[0], None, splits["train"], isolated).heads["gfn2"].e0
    assert (float(e0[8]) == energies[8]) == (given == "all") and float(e0[9]) == 0.0
    with pytest.raises(DataError, match="the isolated atom has -10"):
        consider(config(tmp_path, [*atoms, Atoms("H", info={"energy_gfn2": -10.0}), Atoms("H", info={"energy_gfn2": -10.5}), *shipped]))
    table = tmp_path / "atoms.json"
    table.write_text(json.dumps({"energies": {"H": {"gfn2": -9.0}}}))
    if elements:
        c = config(
            tmp_path, atoms + shipped, data={"val": 0.2, "atoms": str(table)}, backbone={"channels": 16, "layers": 0, "radial_functions": 8}
        )
        with pytest.raises(DataError, match="H has -9.0000 eV at level gfn2, and an isolated atom among the structures -10.7"):
            stages.begin(c, c.stages[0], None, splits["train"], isolated)


# ------------------------------------------------------------------------------------------------ a run is its config and its data


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_goes_on_with_the_data_it_began_with(shipped, tmp_path, single, stream):
    pytest.importorskip("lightning")
    from mfmd.training.run import train

    frames = [a for a in shipped if a.info["molecule"] == "ammonia"][:40]
    (tmp_path / "a").mkdir()
    ase.io.write(tmp_path / "a" / "set.xyz", frames[:30], format="extxyz")
    ase.io.write(tmp_path / "a" / "val.xyz", frames[30:], format="extxyz")

    def run(folder, epochs=1, **more):
        data = {"train": [str(folder / "set.xyz")], "val": [str(folder / "val.xyz")], "atoms": str(DATA / "atoms.json"), "stream": stream}
        return train(plan.parse(
            {"out": str(tmp_path / "run"), "data": data | more, "levels": {"gfn2": {}}, "backbone": {"channels": 16, "layers": 0, "radial_functions": 8},
             "train": {"epochs": epochs, "batch_size": 8}, "resume": epochs > 1}, "test"))  # fmt: skip

    run(tmp_path / "a")
    files = json.loads((tmp_path / "run" / "plan.json").read_text())["files"]
    assert [(f["split"], len(f["sha256"])) for f in files] == [("atoms", 64), ("train", 64), ("val", 64)]
    then = json.loads((tmp_path / "run" / "plan.json").read_text())
    del then["data"]["spin"]  # as of a run that began before there was this key
    (tmp_path / "run" / "plan.json").write_text(json.dumps(then))
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "run" / "multihead" / "stage.ckpt").unlink()
    run(tmp_path / "b", epochs=2)  # the files lie elsewhere and are the same
    for change in ("append", "swap"):
        content = (tmp_path / "b" / "val.xyz").read_text()
        if change == "append":
            ase.io.write(tmp_path / "b" / "val.xyz", frames[:2], format="extxyz", append=True)
        else:
            (tmp_path / "b" / "val.xyz").write_text((tmp_path / "b" / "set.xyz").read_text())
        with pytest.raises(ConfigError, match="data.val: .*b/val.xyz is not what it was when the run in .*run began"):
            run(tmp_path / "b", epochs=3)
        (tmp_path / "b" / "val.xyz").write_text(content)
    ase.io.write(tmp_path / "b" / "test.xyz", frames[:3], format="extxyz")
    with pytest.raises(ConfigError, match="data.test: .*test.xyz is new when"):
        run(tmp_path / "b", epochs=3, test=[str(tmp_path / "b" / "test.xyz")])


def test_a_run_of_before_fingerprints_goes_on_with_a_sentence(shipped, tmp_path, single):
    """plan.json as commit 7eba450 wrote it: no files, units of eV and Å, E0 fitted, none of the keys there are now."""
    pytest.importorskip("lightning")
    from mfmd.training.run import train

    c = config(tmp_path, shipped[:40], backbone={"channels": 16, "layers": 0, "radial_functions": 8}, train={"epochs": 1, "batch_size": 8})
    train(c)
    path = tmp_path / "run" / "plan.json"
    old = json.loads(path.read_text())
    del old["files"], old["data"]["format"]
    old["data"] |= {"energy_unit": "eV", "length_unit": "Å"}
    old["levels"]["gfn2"] = {
        k: v
        for k, v in old["levels"]["gfn2"].items()
        if k not in ("virial", "energy_unit", "forces_unit", "stress_unit", "forces_sign", "unchecked")
    }
    old["levels"]["gfn2"]["e0"] = "fit"
    path.write_text(json.dumps(old))
    with pytest.warns(Note, match="began with an mfmd that kept no fingerprints"):
        train(c.model_copy(update={"resume": True}))


# ------------------------------------------------------------------------------------------------ as a first week's user found


def test_a_file_of_another_convention_among_good_ones_is_named(shipped, tmp_path):
    frames = [a for a in shipped if a.info["molecule"] in ("ethanol", "ammonia")]
    ase.io.write(tmp_path / "bad.xyz", scaled(frames[:80], 1.0, -1.0), format="extxyz")
    ase.io.write(tmp_path / "good.xyz", frames[80:], format="extxyz")
    both = [str(tmp_path / "good.xyz"), str(tmp_path / "bad.xyz")]
    with pytest.raises(DataError, match="bad.xyz: levels.gfn2: .*forces_sign: gradient"):
        consider(config(tmp_path, frames, data={"train": both}))


def test_a_relaxation_has_steps_that_are_nearer_than_identity(tmp_path):
    """Its last steps lie within 1e-4 Å of each other and have labels of their own: no conflict, and nothing is lost."""
    rng = np.random.default_rng(4)
    rest = np.array([[0, 0, 0], [0, 0, 1.16], [0, 0, 2.32]])
    steps = []
    for k in range(30):
        (s,) = springs(1, np.random.default_rng(5), [(rest, -500.0)], [8, 6, 8], k=100.0, width=0.05 * 0.6**k)
        steps.append(Atoms(s.numbers, s.positions + rng.normal(scale=1e-7, size=(3, 3)), info={"energy_gfn2": s.labels["dft"].energy}))
        steps[-1].arrays["forces_gfn2"] = s.labels["dft"].forces
    splits, _, _ = consider(config(tmp_path, steps, data={"val": 0.2}))
    assert len(splits["train"]) + len(splits["val"]) >= 20


def test_few_frames_are_not_refused_for_a_slope_that_says_little(shipped, tmp_path):
    frames = [a for a in shipped if a.info["molecule"] == "ammonia"]
    for start in range(0, 100, 10):
        consider(config(tmp_path, frames[start : start + 10], data={"val": 0.2}))


def test_a_key_that_matches_nothing_is_said(shipped, tmp_path):
    said = consider(config(tmp_path, shipped[:30], {"gfn2": {"forces": "forces_gfn"}}))[2]
    assert any("levels.gfn2.forces: no training structure in" in text and "'forces_gfn'" in text for text in said)


def test_isolated_atoms_in_a_box(shipped, tmp_path):
    atoms = [Atoms([z], cell=[15, 15, 15], pbc=True, info={"energy_gfn2": -10.0 * z}) for z in (1, 6, 7, 8)]
    crystal = Atoms("C", cell=[3, 3, 3], pbc=True, info={"energy_gfn2": -60.0})
    splits, isolated, _ = consider(config(tmp_path, [*atoms, crystal, *shipped[:30]], data={"val": 0.2}))
    assert isolated["gfn2"] == {1: -10.0, 6: -60.0, 7: -70.0, 8: -80.0} and len(splits["train"]) + len(splits["val"]) == 31


def test_bonds_that_do_not_stretch_say_nothing_of_the_sign(tmp_path):
    """Scans at fixed bond lengths, of molecules whose longer bonds happen to be pushed: the work of the forces says that their sign is right."""
    rng, frames = np.random.default_rng(0), []
    for k in range(120):
        length, push = ((1.08, -0.4), (1.12, 0.4))[k // 60]
        atoms = ase.build.molecule("CH4")
        rays = atoms.positions[1:] / np.linalg.norm(atoms.positions[1:], axis=1)[:, None] + rng.normal(scale=0.015, size=(4, 3))
        atoms.positions[1:] = length * rays / np.linalg.norm(rays, axis=1)[:, None]
        # E = -push · Σ bond lengths + ½ · 3 eV/Å² · Σ (H-H distance - 1.8 Å)²
        bonds, forces = atoms.positions[1:] - atoms.positions[0], np.zeros((5, 3))
        energy = -push * np.linalg.norm(bonds, axis=1).sum() - 200.0
        forces[1:] += push * bonds / length
        for i, j in itertools.combinations(range(1, 5), 2):
            apart = atoms.positions[j] - atoms.positions[i]
            r = np.linalg.norm(apart)
            energy += 1.5 * (r - 1.8) ** 2
            forces[j] -= 3.0 * (r - 1.8) * apart / r
            forces[i] += 3.0 * (r - 1.8) * apart / r
        forces[0] = -forces[1:].sum(0)
        if k >= 60:  # another molecule
            atoms, forces = atoms + Atoms("Ne", [[6, 0, 0]]), np.vstack([forces, np.zeros(3)])
        atoms.info["energy_gfn2"], atoms.arrays["forces_gfn2"] = energy, forces
        frames.append(atoms)
    c = config(tmp_path, frames)
    structures = list(reading.read_file(tmp_path / "set.xyz", c.data, c.levels))
    pull = consistency.pull(structures, "gfn2")
    assert pull.value > 0 and pull.correlation > 0.7
    assert not list(checks.questions(structures, "gfn2", c.levels["gfn2"], {}, c.data))
