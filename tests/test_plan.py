"""Strategies become stages, and a stage does what the plan says: what a head begins as, what is frozen, what is caught."""

import copy
import dataclasses

import ase.io
import numpy as np
import pytest
import yaml
from conftest import DATA, small_config

pytest.importorskip("lightning")
import torch

from mfmd.config import ConfigError
from mfmd.structures import reading
from mfmd.structures.record import DataError
from mfmd.training import batches, loop, plan, stages
from mfmd.training.run import train
from mfmd.training.strategies import STRATEGIES

STAGES = {
    "single": ["cctz"],
    "multihead": ["multihead"],
    "finetune": ["gfn2", "cctz"],
    "finetune-readout": ["gfn2", "cctz"],
    "replay": ["gfn2", "cctz"],
    "chain": ["gfn2", "dft", "cctz"],
    "delta": ["gfn2", "dft", "cctz"],
    "chain-newton": ["gfn2", "dft", "cctz"],
    "auto": ["lower-1", "cctz-1", "lower-2", "cctz-2", "lower-3", "cctz-3", "lower-4", "cctz-4", "cctz", "cctz-gradient", "cctz-delta"],
    "low-forces-high-energies": ["gfn2", "dft", "cctz"],
    "multihead-finetune": ["multihead", "finetune"],
    "multihead-newton": ["multihead", "newton"],
}


pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture
def load(tmp_path):
    """A function of overrides: the config of a quick run on water and formaldehyde."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("water", "formaldehyde")]
    labelled = [a for a in frames if "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", labelled[::3] + [a for a in frames if "energy_dft" not in a.info][::12], format="extxyz")
    path = small_config(tmp_path)
    return lambda *overrides: plan.load(path, overrides)


def override(stages):
    """The overrides that give a config these stages."""
    return f"stages={yaml.safe_dump(stages, default_flow_style=True, width=10**6).strip()}"


def test_every_strategy_has_its_stages(load):
    assert set(STAGES) == set(STRATEGIES)
    for strategy, names in STAGES.items():
        c = load(f"strategy={strategy}")
        assert [s.name for s in c.stages] == names
        assert all(word in "\n".join(plan.describe(c)) for word in [strategy, *names])
    chain = load("strategy=chain").stages
    assert [s.start for s in chain] == ["new", "gfn2", "dft"] and chain[2].heads == {"cctz": "dft"}
    assert chain[1].train.learning_rate == pytest.approx(0.5 * chain[0].train.learning_rate)
    assert load("strategy=finetune-readout").stages[1].backbone_rate == 0
    replay = load("strategy=replay", "levels.gfn2.forces_weight=5", "levels.gfn2.stress_weight=0").stages[1].levels
    assert list(replay) == ["gfn2", "cctz"]
    assert (replay["gfn2"].energy_weight, replay["gfn2"].forces_weight, replay["gfn2"].stress_weight) == (0.1, 0.5, 0.0)
    assert [load("strategy=auto", *more).stages[0].levels["dft"].sampling for more in ([], ["levels.dft.sampling=7"])] == [3.0, 7.0]
    assert len(load(override([{"name": "one", "levels": {"dft": None}}])).stages) == 1
    energies = load("strategy=low-forces-high-energies").stages
    assert energies[0].levels["gfn2"].forces_weight == 1 and energies[1].levels["dft"].forces_weight == 0
    # A level declared relative stays so in a chain; the monitor holds for the stage that learns its level.
    relative = load("strategy=chain", "levels.dft.delta_of=gfn2", "train.monitor=dft.forces").stages
    assert relative[1].heads == {"dft": "delta gfn2"} and [s.train.monitor for s in relative] == [
        "gfn2.energy",
        "dft.forces",
        "cctz.energy",
    ]


def test_a_chain_is_trained_stage_by_stage(load, capsys):
    """It leaves a model file with the head of the last level alone; what is done is not done again."""
    from mfmd.engine import load_model

    c = load("strategy=chain")
    tables = train(c)
    assert load_model(c.out / "model.pt").levels == ["cctz"] and {level for level, _ in tables["val"]} == {"cctz"}
    assert "left out of the model file: gfn2, dft" in capsys.readouterr().out
    before = {s.name: (c.out / s.name / "stage.ckpt").read_bytes() for s in c.stages}
    (c.out / "cctz" / "stage.ckpt").unlink()
    assert train(load("strategy=chain", "resume=true")) == tables
    assert (c.out / "dft" / "stage.ckpt").read_bytes() == before["dft"]
    one, other = (torch.load(c.out / "cctz" / name, weights_only=False) for name in ("stage.ckpt", "best.ckpt"))
    assert all(torch.equal(v, other["state_dict"][f"model.{k}"]) for k, v in one.items())


def test_a_frozen_backbone_keeps_every_head(load):
    c = load("strategy=finetune-readout")
    train(c)
    first, last = (torch.load(c.out / name / "stage.ckpt") for name in ("gfn2", "cctz"))
    assert all(torch.equal(v, last[k]) for k, v in first.items())  # the backbone and the head of gfn2, bit for bit
    from mfmd.engine import load_model

    assert load_model(c.out / "model.pt").levels == ["gfn2", "cctz"]


def beginning(c):
    """The model the first stage begins with, and the structures."""
    s = reading.read(c.data, c.levels)
    torch.manual_seed(0)
    return stages.begin(c, c.stages[0], None, s["train"]), s


def test_what_a_head_begins_as(load):
    """A copy predicts what its source does but for E0, which is fitted to what the source leaves over."""
    c = load("strategy=chain")
    start, s = beginning(c)
    model = stages.begin(c, c.stages[1], copy.deepcopy(start), s["train"])
    stages.check_beginning(model, start, c.stages[1], s["val"], c)
    errors = []
    for x in s["train"]:
        if "dft" in x.labels:
            batch = batches.collate([x], ["dft"], c.backbone.cutoff, torch.float32)
            errors.append((model(batch)["dft"].energy - batch.energy["dft"]).item())
    assert abs(sum(errors)) / len(errors) < 0.05 and max(map(abs, errors)) < 5  # totals are thousands of eV
    # Relative to a level whose labels are there: E0 is the mean difference of the labels, whatever the parent's network says.
    c = load("strategy=chain", "levels.dft.delta_of=gfn2")
    relative = stages.begin(c, c.stages[1], copy.deepcopy(start), s["train"])
    for x in (x for x in s["train"] if "dft" in x.labels and len(x.numbers) == 3):
        e0 = sum(float(relative.heads["dft"].e0[z]) for z in x.numbers)
        assert e0 == pytest.approx(x.labels["dft"].energy - x.labels["gfn2"].energy, abs=0.5)


def broken(name, model):
    """A model in which one promise of the plan is broken."""
    with torch.no_grad():
        if name == "a backbone that was not loaded":
            model.backbone.readout.linear.weight.mul_(1.5)
        elif name == "a head that was not copied":
            torch.nn.init.normal_(model.heads["dft"].out.weight)
        elif name == "a head that lost its scale":
            model.heads["dft"].scale.mul_(27.2114)
        elif name == "a head of the level before that changed":
            model.heads["gfn2"].hidden.bias.add_(0.1)
        elif name == "a head that is missing":
            model = stages.only(model, ["gfn2"])
    return model


@pytest.mark.parametrize(
    "mistake",
    [
        "a backbone that was not loaded", "a head that was not copied", "a head that lost its scale",
        "a head of the level before that changed", "a head that is missing",
    ],
)  # fmt: skip
def test_a_wrong_beginning_is_caught(mistake, load):
    c = load("strategy=chain")
    start, s = beginning(c)
    model = broken(mistake, stages.begin(c, c.stages[1], copy.deepcopy(start), s["train"]))
    with pytest.raises(stages.PlanError, match=r"stages.dft: (before its first update level|it has no head for dft)"):
        stages.check_beginning(model, start, c.stages[1], s["val"], c)


def test_a_relative_head_that_does_not_start_at_zero_is_caught(load):
    c = load("strategy=chain", "levels.dft.delta_of=gfn2")
    start, s = beginning(c)
    model = stages.begin(c, c.stages[1], copy.deepcopy(start), s["train"])
    torch.nn.init.normal_(model.heads["dft"].out.weight)
    with pytest.raises(stages.PlanError, match="stages.dft: before its first update level dft"):
        stages.check_beginning(model, start, c.stages[1], s["val"], c)


@pytest.mark.parametrize("name", ["backbone.embedding.elements.weight", "heads.gfn2.out.bias"])
def test_a_frozen_weight_that_moved_is_caught(name, load, monkeypatch):
    c = load("strategy=finetune-readout")
    optimise = loop.optimise

    def optimise_and_move(model, stage, *rest):
        optimise(model, stage, *rest)
        if stage.name == "cctz":
            model.state_dict()[name].add_(1e-7)

    monkeypatch.setattr("mfmd.training.run.optimise", optimise_and_move)
    with pytest.raises(stages.PlanError, match=f"stages.cctz: {name} is frozen"):
        train(c)


MISTAKES = {
    "a level that is not there": ([{"name": "a", "levels": {"ccsd": {}}}], "there is no level 'ccsd'; there are gfn2, dft, cctz"),
    "a copy of a head that was renamed": (
        [{"name": "a", "levels": {"gfn2": {}}}, {"name": "b", "levels": {"dft": {}}, "heads": {"dft": "xtb"}}],
        "stages.b.heads.dft: 'xtb' has no head to copy; there are gfn2, new, and delta",
    ),
    "a head for a level that is not learned": (
        [{"name": "a", "levels": {"gfn2": {}}}, {"name": "b", "levels": {"dft": {}}, "heads": {"cctz": "gfn2"}}],
        "stages.b.heads: cctz is not learned",
    ),
    "a head that is there already": (
        [{"name": "a", "levels": {"gfn2": {}}}, {"name": "b", "levels": {"gfn2": {}}, "heads": {"gfn2": "new"}}],
        "stages.b.heads.gfn2: the level has a head already",
    ),
    "a start that comes later": (
        [{"name": "a", "levels": {"gfn2": {}}, "start": "b"}, {"name": "b", "levels": {"dft": {}}}],
        "stages.a.start: 'b'",
    ),
    "two stages of one name": (
        [{"name": "a", "levels": {"gfn2": {}}}, {"name": "a", "levels": {"dft": {}}}],
        "stages.a: each stage needs a name",
    ),
    "a stage that learns nothing": (
        [{"name": "a", "levels": {"gfn2": {}}, "backbone_rate": 0, "heads_rate": 0}],
        "nothing would be learned",
    ),
    "a replayed level without a weight": (
        [{"name": "a", "levels": {"gfn2": {"energy_weight": 0, "forces_weight": 0, "stress_weight": 0}, "dft": {}}}],
        "stages.a.levels.gfn2: all its weights are 0",
    ),
    "a frozen new backbone": ([{"name": "a", "levels": {"gfn2": {}}, "backbone_rate": 0}], "a new backbone cannot be frozen"),
    "a key that is none": ([{"name": "a", "levels": {"gfn2": {}}, "freeze": True}], "stages.0.freeze: unknown key"),
    "a monitor of another stage": (
        [{"name": "a", "levels": {"gfn2": {}}, "train": {"monitor": "dft.energy"}}],
        "stages.a.train.monitor: 'dft.energy'",
    ),
    "Gauss-Newton from nothing": (
        [{"name": "a", "levels": {"gfn2": {}}, "fit": "gauss-newton"}],
        "stages.a.fit: gauss-newton moves what is trained",
    ),
    "Gauss-Newton of a head that is zero": (
        [
            {"name": "a", "levels": {"gfn2": {}}},
            {"name": "b", "levels": {"dft": {}}, "heads": {"dft": "delta gfn2"}, "fit": "gauss-newton"},
        ],
        "stages.b.fit: gauss-newton moves what is trained",
    ),
    "teachers that are not there": (
        [{"name": "a", "levels": {"gfn2": {}}}, {"name": "b", "levels": {"gfn2": {}}, "teachers": ["c"]}],
        "stages.b.teachers: .* 'c' is not a stage before it",
    ),
    "teachers without the level": (
        [{"name": "a", "levels": {"gfn2": {}}}, {"name": "b", "levels": {"dft": {}}, "heads": {"dft": "gfn2"}, "teachers": ["a"]}],
        "stages.b.teachers: .* 'a' has gfn2",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_plan_that_cannot_be_is_refused(mistake, load):
    stages, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message):
        load(override(stages))


def test_a_strategy_and_stages_exclude_each_other(load):
    with pytest.raises(ConfigError, match="give one of the two"):
        load("strategy=chain", override([{"name": "a", "levels": {"gfn2": {}}}]))
    with pytest.raises(ConfigError, match="cctz is relative to dft, which no stage"):
        load("strategy=finetune", "levels.cctz.delta_of=dft")


def test_labels_that_are_not_kept(load):
    c = load("levels.cctz.keep=5", "levels.dft.keep=0.5")
    s = reading.read(c.data, c.levels)["train"]
    whole = reading.count_labels(s, c.levels)
    reading.keep_labels(s, c.levels, 0)
    kept = reading.count_labels(s, c.levels)
    assert kept["cctz"]["energy"] == 5 and kept["dft"]["energy"] == round(0.5 * whole["dft"]["energy"]) and kept["gfn2"] == whole["gfn2"]
    with pytest.raises(DataError, match="levels.cctz.keep: 5000 labels"):
        reading.keep_labels(reading.read(c.data, c.levels)["train"], load("levels.cctz.keep=5000").levels, 0)


def test_auto_takes_the_better_way_and_says_so(load, capsys):
    """Several models taught to one, fine-tuning and closed form are all tried; the one with the lower validation error makes the model file."""
    c = load("strategy=auto")
    assert c.choose == ["cctz", "cctz-gradient", "cctz-delta"]
    assert c.stages[8].teachers == ["cctz-1", "cctz-2", "cctz-3", "cctz-4"] and c.stages[2].start == "new"
    train(c)
    said = " ".join(capsys.readouterr().out.split())
    assert "chosen for cctz: cctz" in said and "validation energy MAE" in said
    assert "cctz learns what cctz-1, cctz-2, cctz-3, cctz-4 predict" in said
    begun = [torch.load(c.out / f"lower-{k}" / "stage.ckpt") for k in (1, 2)]
    assert not torch.equal(begun[0]["backbone.embedding.elements.weight"], begun[1]["backbone.embedding.elements.weight"])
    from mfmd.engine import load_model

    assert load_model(c.out / "model.pt").levels[-1] == "cctz"
    relative = load("strategy=auto", "levels.cctz.delta_of=dft")
    assert [s.name for s in relative.stages] == ["lower-1", "cctz-gradient", "cctz-delta"]


def test_what_teachers_teach(load):
    """Their mean energies and forces on every structure whose elements the level knows, labels or not."""
    c = load(override([{"name": "a", "levels": {"gfn2": {}, "dft": {}}}, {"name": "b", "start": "new", "levels": {"gfn2": {}, "dft": {}}},
                       {"name": "c", "start": "a", "levels": {"dft": {}}, "teachers": ["a", "b"]}]))  # fmt: skip
    structures = reading.read(c.data, c.levels)["train"]
    teachers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        teachers.append(stages.begin(c, c.stages[0], None, structures))
    lessons = stages.taught(teachers, "dft", structures, c)
    assert len(lessons) == len(structures) > sum("dft" in s.labels for s in structures)
    batch = batches.collate(structures[:3], [], c.backbone.cutoff, torch.float32)
    each = [t(batch, forces=["dft"])["dft"] for t in teachers]
    for k, energy in enumerate((each[0].energy + each[1].energy).tolist()):
        assert list(lessons[k].labels) == ["dft"] and lessons[k].labels["dft"].energy == pytest.approx(energy / 2, abs=1e-4)
    mean = (each[0].forces + each[1].forces).detach().numpy() / 2
    assert abs(lessons[0].labels["dft"].forces - mean[: len(structures[0].numbers)]).max() < 1e-4
    nitrogen = dataclasses.replace(structures[0], numbers=np.full(len(structures[0].numbers), 7), labels={})
    assert len(stages.taught(teachers, "dft", [nitrogen, *structures], c)) == len(structures)


def test_the_best_of_several_stages(load):
    from rich.console import Console

    c, console = load("strategy=auto"), Console(quiet=True)

    def errors(energy, forces=None):
        return {("dft", "energy"): {"mae": energy}} | ({} if forces is None else {("dft", "forces"): {"mae": forces}})

    best = lambda a, b: stages.best_of(["a", "b"], {"a": a, "b": b}, c, console)  # noqa: E731
    assert best(errors(1.0), errors(0.95)) == "a" and best(errors(1.0), errors(0.85)) == "b"
    assert best(errors(0.1, 1.0), errors(1.0, 0.5)) == "b"  # forces decide where there are any
    assert stages.best_of("new", {}, c, console) is None and stages.best_of("a", {"a": {}}, c, console) == "a"
    with pytest.raises(ConfigError, match="no level with validation labels in common"):
        best(errors(1.0), {})


def test_a_damaged_stage_is_named(load):
    c = load("strategy=chain")
    train(c)
    (c.out / "gfn2" / "stage.ckpt").write_bytes((c.out / "gfn2" / "stage.ckpt").read_bytes()[:1000])
    with pytest.raises(ConfigError, match="gfn2/stage.ckpt: not the end of this stage .* delete the stage's folder"):
        train(load("strategy=chain", "resume=true"))


def test_a_tilde_is_the_users_home(monkeypatch, tmp_path):
    from mfmd.config import parse
    from mfmd.labelling import schema

    monkeypatch.setenv("HOME", str(tmp_path))
    config = plan.parse({"out": "~/run", "data": {"train": {"a": "~/a.xyz", "b": ["~/b.xyz"]}, "val": "~/v.xyz", "atoms": "~/atoms.json"}, "levels": {"a": {}, "b": {}}}, "here")  # fmt: skip
    assert [str(p) for p, _ in config.data.files("train") + config.data.files("val")] == [f"{tmp_path}/{n}.xyz" for n in "abv"]
    assert (config.out, config.data.atoms) == (tmp_path / "run", tmp_path / "atoms.json")
    labels = parse({"out": "~/labels", "structures": "~/start.xyz", "levels": {}}, "here", schema.Config)
    assert (labels.out, [named.structure for named in labels.structures]) == (tmp_path / "labels", [f"{tmp_path}/start.xyz"])
