"""Training that starts from a model file: whose levels it takes, what is kept bit for bit, what moves, and what is refused."""

import copy
import json
import re
import shutil

import ase.io
import numpy as np
import pytest
from conftest import DATA, ELEMENTS, all_at_once, random_model, write

pytest.importorskip("lightning")
import safetensors.torch
import torch

from mfmd import Note, cli
from mfmd.config import ConfigError
from mfmd.engine import Engine, load_model
from mfmd.structures import reading
from mfmd.structures.record import DataError, Label, Structure
from mfmd.training import batches, energies, fit, plan, stages, start
from mfmd.training.heads import LinearHead
from mfmd.training.model import Model, TensorNet
from mfmd.training.radial import Repulsion
from mfmd.training.run import train
from mfmd.training.strategies import STRATEGIES

pytestmark = pytest.mark.usefixtures("single")
THREE = "{xtb: {from: gfn2}, dft: {from: dft}, cctz: {}}"


@pytest.fixture(scope="module")
def frames():
    return ase.io.read(DATA / "train.xyz", ":")


@pytest.fixture
def load(trained, frames, tmp_path):
    """A function of overrides: the config of a run on ethanol that starts from a model file, whose cheapest level has no labels here."""
    ethanol = [a for a in frames if a.info["molecule"] == "ethanol" and "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", ethanol, format="extxyz")
    path = tmp_path / "config.yaml"

    def load(*overrides, levels="{xtb: {from: gfn2}, cctz: {}}"):
        path.write_text(
            f"""
out: {tmp_path}/run
data: {{train: {tmp_path}/small.xyz, val: 0.2, atoms: {DATA}/atoms.json}}
levels: {levels}
backbone: {{checkpoint: {trained[0]}}}
train: {{epochs: 2, batch_size: 8, learning_rate: 0.001}}
"""
        )
        return plan.load(path, overrides)

    return load


def tensors(path):
    return safetensors.torch.load(load_model(path).bytes)


def test_sizes_are_the_files(load, trained):
    backbone = load().backbone
    header = start.header_of(trained[0])["backbone"]
    assert backbone.channels == header["channels"] == 32 and backbone.layers == header["layers"] and backbone.zbl is None
    assert load("backbone.channels=32").backbone == backbone
    said = "\n".join(plan.describe(load("strategy=chain")))
    assert f"checkpoint: {trained[0]}; its head gfn2 is level xtb" in said and "1. xtb: from checkpoint" in said


MISTAKES = {
    "another size": (["backbone.channels=64"], r"backbone.channels: 64, and it is 32 in the checkpoint .*; leave it out"),
    "another named size": (["backbone.size=large"], r"backbone.channels: 128, and it is 32"),
    "a repulsion that the file has not": (["backbone.zbl=2"], r"backbone.zbl: 2, and it is None"),
    "no file": (["backbone.checkpoint=nowhere.pt"], r"backbone.checkpoint: nowhere.pt: no such file"),
    "another package's file": (["backbone.checkpoint={folder}/foreign.ckpt"], r"foreign.ckpt: .* `mfmd import \S*foreign.ckpt -o model.pt` makes"),
    "another package's folder": (["backbone.checkpoint={folder}"], r"`mfmd import \S+ -o model.pt` makes a model file"),
    "no checkpoint": (["backbone.checkpoint=null"], r"levels.xtb.from: there is no backbone.checkpoint"),
    "a head that is not there": (["levels.xtb.from=pbe"], r"levels.xtb.from: .* has no head 'pbe'; it has gfn2, dft, cctz"),
    "a difference without its parent": (["levels.xtb.from=dft"], r"levels.xtb.from: dft of .* list a level with from: gfn2 before xtb"),
    "a head that is no difference": (["levels.cctz.from=gfn2", "levels.cctz.delta_of=xtb"], r"levels.cctz.delta_of: gfn2 of .* is no difference"),
    "reference energies of another kind": (["levels.xtb.e0=fit"], r"levels.xtb.e0: its reference energies come with the head gfn2"),
    "differences by gradient": (
        ["stages=[{{name: a, levels: {{cctz: }}, heads: {{cctz: xtb}}, differences: true}}]"], r"stages.a.differences: of gauss-newton",
    ),
    "a stage of that name": (["stages=[{{name: checkpoint, levels: {{cctz: }}}}]"], r"a name of its own other than new and checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_is_refused(mistake, load, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    overrides, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message):
        load(*(text.format(folder=tmp_path) for text in overrides))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_accepts_it(strategy, load):
    c = load(f"strategy={strategy}", levels=THREE)
    assert c.stages[0].start == "checkpoint"
    assert [stage.name for stage in c.stages if stage.start == "new"] == (["lower-new"] if strategy == "auto" else [])  # to compare with
    assert not any(how == "new" for stage in c.stages if stage.start != "new" for how in stage.heads.values())
    assert c.levels["dft"].delta_of == "xtb"  # as in the file


def test_a_frozen_backbone_keeps_the_level_bit_for_bit(load, trained, tmp_path, capsys):
    train(load("strategy=finetune-readout"))
    said = " ".join(capsys.readouterr().out.split())
    assert "stage xtb is skipped, and is what it starts from, checkpoint: there are no training labels of xtb" in said
    assert "the model file does not say what it was trained on: this run has not learned xtb" in said and "has moved" not in said
    path = tmp_path / "run" / "model.pt"
    assert load_model(path).levels == ["xtb", "cctz"] and not load_model(path).has_domain
    before, after = tensors(trained[0]), tensors(path)
    of_level = [key for key in before if key.startswith(("backbone.", "heads.gfn2."))]
    assert len(of_level) > 20
    for key in of_level:
        assert torch.equal(before[key], after[key.replace("heads.gfn2", "heads.xtb")]), key
    for atoms in ase.io.read(tmp_path / "small.xyz", ":5"):
        one, other = (
            Engine(file).compute(atoms.positions, atoms.numbers, terms=[(level, 1.0)])
            for file, level in ((trained[0], "gfn2"), (path, "xtb"))
        )
        assert one["energy"] == other["energy"] and np.array_equal(one["forces"], other["forces"])
    origin = json.loads(load_model(path).metadata)["provenance"]["checkpoint"]
    assert origin["sha256"] == load_model(trained[0]).sha256 and origin["from"] == {"xtb": "gfn2"} and origin["moved"] == {}
    assert origin["provenance"]["errors"] == json.loads(load_model(trained[0]).metadata)["provenance"]["errors"]


def test_a_stage_that_only_harms_is_undone(load, trained, tmp_path):
    """Levels that are learned at a rate which spoils them stay what they were, and that is said; the backbone has not moved, so that all are in the file."""
    c = load("strategy=finetune", "train.learning_rate=0.3", levels="{gfn2: {from: gfn2}, cctz: {}}")
    with pytest.warns(UserWarning, match="stage gfn2 keeps what it began with: the validation error of gfn2.energy was"):
        train(c)
    assert load_model(tmp_path / "run" / "model.pt").levels == ["gfn2", "cctz"]
    before, after = tensors(trained[0]), tensors(tmp_path / "run" / "model.pt")
    assert all(torch.equal(before[key], value) for key, value in after.items() if key.startswith("backbone."))


def test_a_constant_of_the_source_stays_with_what_is_copied(load, trained, tmp_path):
    """As E0 of elements cannot take it up: a file and labels that are both higher by one number give the same forces."""
    from mfmd.training import export

    model, _ = start.read_model(trained[0])
    found = []
    for shift in (0.0, 7.25):
        model.heads["gfn2"].constant = shift
        path = tmp_path / f"{shift}.pt"
        export.write_model(path, stages.only(model, ["gfn2"]), {"gfn2": list(ELEMENTS)}, {})
        c = load("strategy=chain-newton", f"backbone.checkpoint={path}", f"out={tmp_path}/run{shift}")
        for frame in (frames := ase.io.read(tmp_path / "small.xyz", ":")):
            frame.info["energy_cctz"] += shift
        ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
        found.append(train(c)["val"]["cctz", "energy"]["mae"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_what_moves_is_measured(load, trained, tmp_path, capsys, monkeypatch):
    """Against both model files, by the engine; levels without labels that no stage keeps are left out."""
    train(load("strategy=multihead", levels=THREE))
    said = " ".join(capsys.readouterr().out.split())
    assert "stage multihead learns dft, cctz alone: there are no training labels of xtb" in said
    path = tmp_path / "run" / "model.pt"
    moved = json.loads(load_model(path).metadata)["provenance"]["checkpoint"]["moved"]["multihead"]
    c = load(levels=THREE)
    structures, found = reading.read(c.data, c.levels)["train"], {"energy": [], "forces": []}
    engines = [Engine(file, "double", radial="exact") for file in (trained[0], path)]
    for s in structures:
        a, b = (engine.compute(s.positions, s.numbers, terms=[("dft", 1.0)]) for engine in engines)
        found["energy"].append(abs(a["energy"] - b["energy"]) / len(s.numbers))
        found["forces"].append(np.abs(a["forces"] - b["forces"]).ravel())
    assert moved["dft"]["structures"] == len(structures) < 200
    for kind, values in found.items():
        assert moved["dft"][kind] == pytest.approx(np.mean(np.concatenate([np.ravel(v) for v in values])), rel=1e-3)
    assert moved["dft"]["forces"] > 1e-3 and f"moved level dft by {1e3 * moved['dft']['energy']:.2f} meV/atom" in said
    assert moved["xtb"]["forces"] > 1e-3  # the parent of dft, which learns with it
    monkeypatch.setattr("sys.argv", ["mfmd", "info", str(path)])
    cli.main()
    told = capsys.readouterr().out
    assert f"trained from the model of sha256 {load_model(trained[0]).sha256[:16]}…: xtb from its head gfn2, dft from its head dft" in told
    assert f"dft had moved by {1e3 * moved['dft']['energy']:.2f} meV/atom" in told


def test_labels_that_are_not_those_of_the_head_are_told(load, recwarn):
    """Another level has other energies of atoms, which come with the head; the levels of THREE are what they are said to be."""
    for levels, told in ((THREE, False), ("{dft: {from: gfn2}, cctz: {}}", True)):
        recwarn.clear()
        train(load("strategy=finetune-readout", "resume=false", f"out={load().out}-{told}", levels=levels))
        found = [str(w.message) for w in recwarn if "levels.dft.from: the labels of dft are" in str(w.message)]
        assert len(found) == told and all("list the head as a level of its own, such as before: {from: gfn2}" in words for words in found)


def test_energies_alone_of_the_highest_level(load, trained, tmp_path, capsys):
    """Gauss-Newton from the file, whose level has no labels, is a model of the level that has some."""
    tables = train(load("strategy=chain-newton"))
    assert load_model(tmp_path / "run" / "model.pt").levels == ["cctz"] and load_model(tmp_path / "run" / "model.pt").has_domain
    assert "stage cctz has moved level xtb by" in " ".join(capsys.readouterr().out.split())
    assert tables["val"]["cctz", "energy_per_atom"]["mae"] < 0.02


@pytest.mark.parametrize("labelled", [True, False])
def test_auto_takes_the_file_for_its_lower_levels(labelled, load, tmp_path, capsys):
    """With labels of the file's level it learns from them, or not, as validation errors say, and differences to them; without any, what would be the
    same is done once."""
    train(load("strategy=auto", levels=f"{{gfn2: {{}}, {'dft' if labelled else 'xtb'}: {{from: gfn2}}, cctz: {{}}}}"))
    said = " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run" / "gfn2").exists() and load_model(tmp_path / "run" / "model.pt").levels[-1] == "cctz"
    if labelled:
        assert (
            re.search(r"chosen for dft: \S+ validation forces MAE [^()]*\([^)]*lower-new [^)]*\)", said)
            or "chosen for dft: lower-new" in said
        )
        first, second = (torch.load(tmp_path / "run" / f"cctz-{way}" / "stage.ckpt") for way in ("differences", "newton"))
        assert not torch.equal(first["backbone.readout.linear.weight"], second["backbone.readout.linear.weight"])
    else:
        assert not (tmp_path / "run" / "lower-new").exists() and "stage lower-new is left out: there are no training labels of xtb" in said
        assert "stage lower is skipped" in said and "stage cctz-newton is skipped: it would be cctz-differences again" in said
        assert not (tmp_path / "run" / "cctz-newton").exists()


def test_a_new_backbone_beside_the_file_is_as_its(load, tmp_path):
    """Variants that no config can name too."""
    write(all_at_once(), tmp_path / "published.pt")
    c = load(f"backbone.checkpoint={tmp_path}/published.pt", "strategy=chain", levels="{xtb: {from: high}, cctz: {}}")
    stage = c.stages[-1].model_copy(update={"start": "new", "heads": {"cctz": "new"}})
    s = Structure(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool), {"cctz": Label(energy=-1.0)}, "")
    model = stages.begin(c, stage, None, [s])
    assert model.backbone.architecture == all_at_once().backbone.architecture


def test_differences_are_those_of_labels(frames):
    """On top of what the copied head predicts, where both labels are there; else the label itself. Labels of nothing but a difference of atoms leave the
    network as it is."""
    c = config_of(levels={"low": {}, "middle": {}}, strategy="chain", backbone={"channels": 32, "layers": 1})
    before = stages.only(random_model(channels=32, layers=1, cutoff=5.0), ["low"])
    shift = {1: 0.5, 6: -2.0, 7: 1.0, 8: 3.0}
    structures = structures_of(frames, before, "low", lambda batch: before(batch)["low"].energy)
    rng = np.random.default_rng(1)
    for k, s in enumerate(structures):
        s.labels["low"].energy += rng.normal()  # what the head does not fit
        s.labels["middle"] = Label(energy=s.labels["low"].energy + sum(shift[int(z)] for z in s.numbers))
        if k == 0:
            del s.labels["low"]
    stage = c.stages[1].model_copy(update={"heads": {"middle": "low"}, "fit": "gauss-newton", "differences": True})
    assert len(stages.in_common(stage, structures)) == len(structures) - 1
    given = stages.differences(stage, before, structures, c)
    assert given[0].labels["middle"].energy == structures[0].labels["middle"].energy
    given = given[1:]
    model = stages.begin(c, stage, copy.deepcopy(before), given, imported={"low": list(ELEMENTS)})
    start = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    fit.gauss_newton(model, "middle", given, batches.collation(c, ["middle"]))
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=1e-6, atol=1e-7)
    batch = batches.collate(given, ["middle"], 5.0, torch.float64)
    np.testing.assert_allclose(model(batch)["middle"].energy.detach(), batch.energy["middle"], atol=1e-6)


def test_the_file_teaches_what_was_forgotten(load, tmp_path):
    """Teachers without any label of their level, in training or validation."""
    lessons = [
        {"name": "cctz", "levels": {"cctz": {}}, "heads": {"cctz": "xtb"}, "fit": "gauss-newton"},
        {"name": "again", "levels": {"xtb": {}}, "teachers": ["checkpoint"], "train": {"epochs": 14}},
    ]
    c = load(f"stages={json.dumps(lessons)}", "train.learning_rate=0.003")
    train(c)
    moved = json.loads(load_model(tmp_path / "run" / "model.pt").metadata)["provenance"]["checkpoint"]["moved"]
    assert moved["again"]["xtb"]["forces"] < 0.7 * moved["cctz"]["xtb"]["forces"]


def test_resumed_from_the_same_file_alone(load, trained, tmp_path):
    copied = tmp_path / "elsewhere.pt"
    copied.write_bytes(trained[0].read_bytes())
    tables = train(load("strategy=chain"))
    assert train(load("strategy=chain", "resume=true", f"backbone.checkpoint={copied}")) == tables
    with pytest.raises(ConfigError, match=r"backbone.checkpoint: .* is not what the run in .* began from"):
        other = write(random_model(channels=32, layers=1, cutoff=5.0, radial_functions=32), tmp_path / "other.pt")
        train(load("strategy=chain", "resume=true", f"backbone.checkpoint={other}", "levels.xtb.from=low"))


def test_elements_that_the_file_does_not_know(load, frames, tmp_path):
    some = [a for a in frames if a.info["molecule"] in ("ethanol", "ammonia") and "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", some, format="extxyz")
    with (
        pytest.warns(Note, match="knows nothing of N, which training structures have"),
        pytest.raises(ConfigError, match=r"levels.cctz: xtb, from which its head begins, was never trained on N, which cctz has"),
    ):
        train(load("strategy=chain"))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(
        DataError, match=r"small.xyz.*: N is not among the elements of level xtb, the head gfn2 of .*; leave out this label"
    ):
        train(load("strategy=chain", "levels.xtb.energy=energy_gfn2"))


def test_states_that_the_file_does_not_know(load, frames, tmp_path):
    """What they add to an energy is fitted before anything is learned; a level that no stage learns has not seen them."""
    some = [a for a in frames if a.info["molecule"] == "ethanol" and "energy_cctz" in a.info]
    ions = [a.copy() for a in some]
    for atoms in ions:
        atoms.info |= {"charge": 1, "energy_gfn2": atoms.info["energy_gfn2"] + 7.5, "energy_cctz": atoms.info["energy_cctz"] + 9.0}
    ase.io.write(tmp_path / "small.xyz", some + ions, format="extxyz")
    both = "{xtb: {from: gfn2, energy: energy_gfn2, forces: forces_gfn2}, cctz: {}}"
    stage = {"name": "a", "start": "checkpoint", "backbone_rate": 0.0}
    ethanol, positions = some[0], some[0].positions
    for level, heads, plus, known in (("xtb", {}, 7.5, {"xtb": 2}), ("cctz", {"cctz": "xtb"}, 9.0, {"xtb": 1, "cctz": 2})):
        out, stages = tmp_path / level, [stage | {"levels": {level: {}}, "heads": heads}]
        with pytest.warns(
            Note, match="knows nothing of charge \\+1, multiplicity 2, which training structures have: a stage whose backbone is frozen"
        ):
            train(load(f"out={out}", f"stages={json.dumps(stages)}", "train.epochs=1", "train.learning_rate=1e-9", levels=both))
        engine = Engine(out / "model.pt", "double")
        assert {name: len(states) for name, states in engine.states.items()} == known
        neutral, ion = (engine.compute(positions, ethanol.numbers, terms=[(level, 1.0)], charge=q)["energy"] for q in (0, 1))
        assert ion - neutral == pytest.approx(plus, abs=0.1)


def structures_of(frames, model, level, energy, count=40):
    """Ethanol, moved about, with an energy (of a function of a batch) at a level."""
    rng, out = np.random.default_rng(0), []
    for atoms in [a for a in frames if a.info["molecule"] in ("ethanol", "water", "formaldehyde")][:: 600 // count]:
        positions = atoms.positions + rng.normal(size=atoms.positions.shape) * 0.1
        s = Structure(atoms.numbers, positions, np.zeros((3, 3)), np.zeros(3, bool), {}, "")
        batch = batches.collate([s], [], model.backbone.radial.cutoff, torch.float64)
        s.labels = {level: Label(energy=float(energy(batch)))}
        out.append(s)
    return out


def config_of(**more):
    return plan.parse({"out": "run", "data": {"train": "none.xyz"}, "train": {"precision": "double"}, **more}, "here")


def test_constants_of_levels_that_begin(frames):
    """A copy has the constant of what it copies, a difference leaves it where it is, and E0 accounts for either."""
    c = config_of(levels={"low": {}, "middle": {}}, strategy="chain", backbone={"channels": 32, "layers": 1})
    before = random_model(channels=32, layers=1, cutoff=5.0)
    before = stages.only(before, ["low"])
    before.heads["low"].constant = 5.0
    for how, constant in (("low", 5.0), ("delta low", 0.0)):
        target = lambda batch: before(batch)["low"].energy  # noqa: E731
        structures = structures_of(frames, before, "middle", target)
        stage = c.stages[1].model_copy(update={"heads": {"middle": how}})
        model = stages.begin(c, stage, copy.deepcopy(before), structures, imported={"low": list(ELEMENTS)})
        assert model.heads["middle"].constant == constant
        batch = batches.collate(structures, ["middle"], 5.0, torch.float64)
        np.testing.assert_allclose(model(batch)["middle"].energy.detach(), batch.energy["middle"], atol=1e-8)
    # Where E0 are those of isolated atoms, such an atom has that energy.
    isolated = {"middle": {z: -10.0 * z for z in ELEMENTS}}
    stage = c.stages[1].model_copy(update={"heads": {"middle": "delta low"}})
    model = stages.begin(c, stage, copy.deepcopy(before), structures, isolated, {"low": list(ELEMENTS)})
    alone = Structure(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool), {}, "")
    assert model(batches.collate([alone], [], 5.0, torch.float64))["middle"].energy.item() == pytest.approx(-80.0)


def test_a_repulsion_is_no_part_of_what_heads_learn(frames):
    """Labels of nothing but atoms and the repulsion of nuclei: E0 of a new head are the atoms', and a head in closed form finds nothing more."""
    c = config_of(levels={"low": {}}, backbone={"channels": 32, "layers": 1, "zbl": 2.0})
    e0 = torch.zeros(119, dtype=torch.float64)
    e0[[1, 6, 8]] = torch.tensor([-13.0, -1030.0, -2040.0], dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = Model(TensorNet(32, 1, 5.0, 2, 32, zbl=2.0), {})
    own = Repulsion(2.0)

    def energy(batch):
        return own(batch.numbers, batch.positions, batch.i, batch.j, batch.shifts).sum() + e0[batch.numbers].sum()

    structures = structures_of(frames, model, "low", energy)
    begun = stages.begin(c, c.stages[0], None, structures)
    np.testing.assert_allclose(begun.heads["low"].e0, e0, atol=1e-6)
    assert np.ptp(energies.repulsions(begun, structures, c)) > 1.0  # eV, which would be in E0 otherwise
    rng = np.random.default_rng(1)
    for s in structures:
        batch = batches.collate([s], [], 5.0, torch.float64)
        batch.positions.requires_grad_()
        s.labels["low"].forces = -torch.autograd.grad(energy(batch), batch.positions)[0].numpy() + rng.normal(size=s.positions.shape) * 1e-3
        s.labels["low"].energy += rng.normal() * 1e-4
    model = Model(model.backbone, {"low": LinearHead(32, e0)})
    found = fit.closed_form(model, "low", structures, batches.collation(c, ["low"]))
    assert found["forces"] == len(structures) and found["loo_mae"] < 1e-3
    with pytest.raises(ConfigError, match=r"backbone.zbl: 6.0 Å is more than the cutoff, 5.0 Å"):
        config_of(levels={"low": {}}, backbone={"zbl": 6})
