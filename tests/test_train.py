"""Training: what is masked, sampled, resumed; and that model.pt computes what was trained."""

import json

import ase.io
import numpy as np
import pytest
from conftest import DATA

pytest.importorskip("lightning")
import torch

from mfmd.config import ConfigError
from mfmd.engine import Engine, load_model
from mfmd.structures import reading
from mfmd.structures.record import DataError
from mfmd.training import batches, energies, loop, plan, stages
from mfmd.training.run import train

pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture
def config(tmp_path):
    """A quick run on water and formaldehyde."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("water", "formaldehyde")][::8]
    ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
out: {tmp_path}/run
seed: 3
data: {{train: {tmp_path}/small.xyz, val: 0.2, atoms: {DATA}/atoms.json}}
levels: {{gfn2: {{}}, dft: {{delta_of: gfn2}}, cctz: {{delta_of: dft}}}}
backbone: {{channels: 16, layers: 1, radial_functions: 16}}
train: {{epochs: 10, batch_size: 4, learning_rate: 0.01, monitor: gfn2.forces}}
"""
    )
    return path


@pytest.fixture
def splits(config):
    c = plan.load(config)
    return c, reading.read(c.data, c.levels)


def test_a_run_leaves_what_it_promises(config, tmp_path):
    tables = train(plan.load(config))
    out = tmp_path / "run"
    in_stage = [f"multihead/{name}" for name in ("log/version_0/metrics.csv", "stage.json", "best.ckpt", "last.ckpt", "stage.ckpt")]
    for name in ["model.pt", "errors.csv", "report.html", "plan.json", *in_stage]:
        assert (out / name).stat().st_size > 0
    curve = loop.read_metrics(out / "multihead")["val/gfn2.forces"][1]
    assert min(curve) < 0.9 * curve[0]
    # The model file carries the error of its radial tables and the run's own, and the engine has the same ones.
    header = json.loads(load_model(out / "model.pt").metadata)
    assert header["tables"]["structures"] == tables["val"]["gfn2", "energy"]["count"] and 0 < header["tables"]["forces"] < 1e-6
    assert header["provenance"]["errors"]["val"]["gfn2.forces"]["mae"] == tables["val"]["gfn2", "forces"]["mae"]
    c = plan.load(config)
    engine, errors = Engine(out / "model.pt", "double"), []
    for s in reading.read(c.data, c.levels)["val"]:
        forces = engine.compute(s.positions, s.numbers, terms=[("gfn2", 1.0)])["forces"]
        errors.append(np.abs(forces - s.labels["gfn2"].forces).ravel())
    assert np.concatenate(errors).mean() == pytest.approx(tables["val"]["gfn2", "forces"]["mae"], rel=1e-4)


def test_resumed_equals_uninterrupted(config, monkeypatch):
    """A run that dies in its third epoch and is resumed ends with the weights of one that did not."""
    whole = plan.load(config, [f"out={config.parent}/whole"])
    half = plan.load(config, [f"out={config.parent}/half"])
    train(whole)

    def die(self):
        if self.current_epoch == 2:
            raise RuntimeError("killed by the test")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "on_train_epoch_end", die)
        with pytest.raises(RuntimeError, match="killed by the test"):
            train(half)
    with pytest.raises(ConfigError, match="resume=true"):
        train(half)
    for change in ("backbone.channels=32", "levels.cctz.delta_of=gfn2", "train.epochs=1"):
        with pytest.raises(ConfigError, match="began with|has done"):
            train(plan.load(config, [f"out={half.out}", "resume=true", change]))
    train(plan.load(config, [f"out={half.out}", "resume=true"]))
    one, other = (torch.load(c.out / "multihead" / "stage.ckpt") for c in (whole, half))
    assert all(torch.equal(one[k], other[k]) for k in one)
    curves = [loop.read_metrics(c.out / "multihead")["val/gfn2.forces"] for c in (half, whole)]
    assert curves[0] == curves[1]


def means(*arguments, **options):
    return {kind: total / count for kind, (total, count) in loop.losses(*arguments, **options).items()}


def test_missing_labels_have_no_share(splits):
    """The loss and its gradient do not change when a level without labels in the batch is there or not."""
    c, s = splits
    torch.manual_seed(0)
    model = stages.begin(c, c.stages[0], None, s["train"])
    only_low = [x for x in s["train"] if list(x.labels) == ["gfn2"]][:3]
    both = [x for x in s["train"] if "dft" in x.labels][:2]
    batch = batches.collate(only_low + both, c.levels, c.backbone.cutoff, torch.float32)
    assert list(batch.forces) == ["gfn2", "dft"]
    p = model(batch, forces=list(batch.forces))
    loss = means(p, batch, "dft", 1.0)
    alone = batches.collate(both, c.levels, c.backbone.cutoff, torch.float32)
    wanted = means(model(alone, forces=["dft"]), alone, "dft", 1.0)
    assert loss["energy"].item() == pytest.approx(wanted["energy"].item(), rel=1e-5)
    assert loss["forces"].item() == pytest.approx(wanted["forces"].item(), rel=1e-5)
    assert loop.losses(p, batches.collate(only_low, c.levels, c.backbone.cutoff, torch.float32), "cctz", 1.0) == {}


def test_a_relative_level_learns_label_less_label(splits):
    """Where a structure has both labels, what the parent's head misses is no error of the difference; elsewhere it is."""
    c, s = splits
    torch.manual_seed(0)
    model = stages.begin(c, c.stages[0], None, s["train"])
    model.heads["gfn2"].e0 += 0.3  # an error of the parent alone
    both = [x for x in s["train"] if "dft" in x.labels][:4]
    batch = batches.collate(both, c.levels, c.backbone.cutoff, torch.float32)
    p = model(batch, forces=["gfn2", "dft"])
    apart = means(p, batch, "dft", 1.0, parent="gfn2")
    energy = (p["dft"].energy - p["gfn2"].energy - batch.energy["dft"] + batch.energy["gfn2"]) / batch.sizes
    assert apart["energy"].item() == pytest.approx(energy.abs().mean().item(), rel=1e-4)
    forces = p["dft"].forces - p["gfn2"].forces - batch.forces["dft"] + batch.forces["gfn2"]
    assert apart["forces"].item() == pytest.approx(forces.abs().mean().item(), rel=1e-4)
    for k in (0, 2):
        batch.energy["gfn2"][k] = torch.nan
    total = (p["dft"].energy - batch.energy["dft"]) / batch.sizes
    mixed = torch.where(torch.isnan(batch.energy["gfn2"]), total, energy)
    assert means(p, batch, "dft", 1.0, parent="gfn2")["energy"].item() == pytest.approx(mixed.abs().mean().item(), rel=1e-4)


def test_no_force_pass_without_force_labels(splits, monkeypatch):
    c, s = splits
    model = stages.begin(c, c.stages[0], None, s["train"])
    for x in s["train"]:
        for label in x.labels.values():
            label.forces = None
    batch = batches.collate(s["train"][:4], c.levels, c.backbone.cutoff, torch.float32)

    def never(*_, **__):
        raise AssertionError("forces were differentiated for a batch that has none")

    monkeypatch.setattr(torch.autograd, "grad", never)
    t = loop.Training(model, c.stages[0])
    t.log = lambda *_, **__: None
    t.training_step(batch, 0).backward()


def test_a_batch_whose_labels_have_no_weight_is_passed_over(splits):
    c, s = splits
    for level in c.stages[0].levels.values():
        level.energy_weight = level.forces_weight = 0.0
    t = loop.Training(stages.begin(c, c.stages[0], None, s["train"]), c.stages[0])
    t.log = lambda *_, **__: None
    assert t.training_step(batches.collate(s["train"][:4], c.levels, c.backbone.cutoff, torch.float32), 0) is None


def test_fresh_relative_heads_add_nothing(splits):
    c, s = splits
    model = stages.begin(c, c.stages[0], None, s["train"])
    batch = batches.collate(s["train"][:4], c.levels, c.backbone.cutoff, torch.float32)
    p = model(batch)
    assert torch.equal(p["dft"].network_energy, p["gfn2"].network_energy)
    assert not torch.equal(p["dft"].energy, p["gfn2"].energy)  # reference energies are each level's own


def test_sampler_depends_on_seed_and_epoch_alone():
    weights = [1, 2, 0.5, 0.5, 3]
    a, b = batches.Sampler(weights, 1), batches.Sampler(weights, 1)
    list(a)
    a.set_epoch(5), b.set_epoch(5)
    assert list(a) == list(b) and len(list(a)) == len(a) == 7
    b.set_epoch(6)
    assert list(a) != list(b)
    counts = np.bincount(list(a), minlength=5)
    assert counts[1] == 2 and counts[4] == 3 and counts[2] + counts[3] == 1


def test_reference_energies(splits):
    """Fitted ones reproduce a level that is a sum over atoms; undetermined ones stay closest to what was given."""
    _, s = splits
    atoms = {1: -10.0, 6: -50.0, 8: -100.0}
    for x in s["train"]:
        x.labels["gfn2"].energy = sum(atoms[int(z)] for z in x.numbers)
    totals = [x.labels["gfn2"].energy for x in s["train"]]
    fitted, _, determined = energies.fit_reference_energies(s["train"], totals, list(atoms), "gfn2", {})
    assert not determined  # CH2O and H2O do not tell C from H
    fitted, _, _ = energies.fit_reference_energies(s["train"], totals, list(atoms), "gfn2", atoms)
    assert fitted == pytest.approx(atoms)


def test_a_set_that_stays_on_disk_trains_to_the_same_weights(config, tmp_path):
    """Streamed or in memory, with labels left out and resumed; what is streamed is read from one file a split."""
    more = ["train.epochs=2", "levels.dft.keep=4", "levels.gfn2.delta_of=null"]
    weights = {}
    other = tmp_path / "stream-True" / "data" / "other.txt"
    other.parent.mkdir(parents=True)
    other.write_text("somebody's own file")
    for stream in (False, True, True):
        c = plan.load(config, [*more, f"data.stream={stream}", f"out={tmp_path}/stream-{stream}", "resume=true"])
        train(c)
        state = torch.load(c.out / "multihead" / "stage.ckpt", weights_only=True)
        weights.setdefault(stream, state)
        if stream and (c.out / "model.pt").exists():
            (c.out / "multihead" / "stage.ckpt").unlink()  # the second time it goes on from what is packed
    assert all(torch.equal(value, weights[True][name]) for name, value in weights[False].items())
    assert other.exists()
    from mfmd.structures.packed import Packed

    whole = reading.read(plan.load(config).data, plan.load(config).levels)
    packed = Packed(tmp_path / "stream-True" / "data" / "train.packed")
    assert len(packed) == len(whole["train"]) + len(whole["val"])  # a fraction is split off afterwards
    by_source = {s.source: s for s in whole["train"] + whole["val"]}
    for s in packed:
        other = by_source[s.source]
        assert (
            np.array_equal(s.positions, other.positions)
            and np.array_equal(s.numbers, other.numbers)
            and s.labels.keys() == other.labels.keys()
        )
        for level, label in s.labels.items():
            assert label.energy == other.labels[level].energy and np.array_equal(label.forces, other.labels[level].forces)


def test_splits(config):
    c = plan.load(config, ["data.val=0.25", "data.test=0.25"])
    s = reading.read(c.data, c.levels)
    assert len(s["val"]) == len(s["test"]) and len(s["train"]) == pytest.approx(2 * len(s["val"]), abs=2)
    names = [x.source for split in s.values() for x in split]
    assert len(set(names)) == len(names)
    again = reading.read(c.data, c.levels)
    assert [x.source for x in again["val"]] == [x.source for x in s["val"]]
    frames = ase.io.read(config.parent / "small.xyz", ":")
    for k, a in enumerate(frames):
        a.info["split"] = "val" if k % 4 == 0 else "train"
    ase.io.write(config.parent / "keyed.xyz", frames, format="extxyz")
    c = plan.load(config, [f"data.train={config.parent}/keyed.xyz", "data.split_key=split", "data.val=null"])
    assert all(x.info["split"] == "val" for x in reading.read(c.data, c.levels)["val"])
    with pytest.raises(ConfigError, match="not fractions"):
        plan.load(config, ["data.split_key=split"])
    c = plan.load(config, ["data.train=[" + str(DATA / "val.xyz") + "]", "data.split_key=split", "data.val=[]"])
    with pytest.raises(DataError, match="data.train: no structure"):
        reading.read(c.data, c.levels)


def test_units_are_converted(config, tmp_path):
    """The same file in Hartree and Bohr gives the same labels."""
    from mfmd import units

    frames = ase.io.read(tmp_path / "small.xyz", ":")
    h, b = units.ENERGY["Hartree"], units.LENGTH["Bohr"]
    for a in frames:
        a.positions /= b
        for level in ("gfn2", "dft", "cctz"):
            if f"energy_{level}" in a.info:
                a.info[f"energy_{level}"] /= h
            if f"forces_{level}" in a.arrays:
                a.arrays[f"forces_{level}"] *= b / h
    ase.io.write(tmp_path / "atomic.xyz", frames, format="extxyz")
    c = plan.load(config)
    one = reading.read(c.data, c.levels)["train"][0]
    c = plan.load(config, [f"data.train={tmp_path}/atomic.xyz", "data.energy_unit=Hartree", "data.length_unit=Bohr"])
    other = reading.read(c.data, c.levels)["train"][0]
    assert other.labels["gfn2"].energy == pytest.approx(one.labels["gfn2"].energy, abs=1e-5)
    np.testing.assert_allclose(other.labels["gfn2"].forces, one.labels["gfn2"].forces, atol=1e-5)
    np.testing.assert_allclose(other.positions, one.positions, atol=1e-6)


def test_sizes_of_the_backbone(config):
    def size(*overrides):
        return plan.load(config, overrides).backbone

    named = config.with_name("named.yaml")
    named.write_text(config.read_text().replace("{channels: 16, layers: 1, radial_functions: 16}", "large"))
    assert (plan.load(named).backbone.channels, plan.load(named).backbone.layers) == (128, 2)
    assert (size().channels, size().layers) == (16, 1)
    named.write_text(config.read_text().replace("backbone: {channels: 16, layers: 1, radial_functions: 16}", ""))
    assert plan.load(named).backbone.model_dump() == plan.load(named, ["backbone=medium"]).backbone.model_dump()
    assert plan.load(named, ["backbone.size=small", "backbone.layers=2"]).backbone.layers == 2
    with pytest.raises(ConfigError, match=r"backbone.size: found 'huge'.*'small', 'medium' or 'large'"):
        size("backbone.size=huge")


def test_a_log_cut_short_is_read_as_far_as_it_goes(tmp_path):
    folder = tmp_path / "log" / "version_0"
    folder.mkdir(parents=True)
    whole = "epoch,step,val/gfn2.energy\n0,9,0.5\n1,19,0.25\n"
    for cut in range(len(whole) + 1):
        (folder / "metrics.csv").write_text(whole[:cut])
        epochs, values = loop.read_metrics(tmp_path).get("val/gfn2.energy", ([], []))
        assert values == [0.5, 0.25][: len(values)] and len(epochs) == whole[:cut].count("\n", len("epoch,step,val/gfn2.energy\n"))
