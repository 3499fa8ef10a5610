"""Training on a device that is not the host: here a stand-in, which refuses what mixes tensors of the two."""

import json
from types import SimpleNamespace

import ase.io
import card
import lightning
import pytest
import torch
from conftest import DATA, need, small_config
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from mfmd.config import ConfigError
from mfmd.training import loop, maps, plan, processes, radial, run, schema

pytestmark = pytest.mark.usefixtures("single")

EVERYTHING = [  # by gradient from new, a copied head, closed form, both kinds of Gauss-Newton, and what several teach
    {"name": "low", "levels": {"gfn2": {}}},
    {"name": "both", "levels": {"gfn2": {}, "dft": {}}, "heads": {"dft": "gfn2"}},
    {"name": "relative", "start": "low", "levels": {"dft": {}}, "heads": {"dft": "delta gfn2"}},
    {"name": "solved", "start": "both", "levels": {"cctz": {}}, "heads": {"cctz": "delta dft"}, "fit": "closed form"},
    {"name": "newton", "start": "both", "levels": {"cctz": {}}, "heads": {"cctz": "dft"}, "fit": "gauss-newton"},
    {"name": "apart", "start": "both", "levels": {"cctz": {}}, "heads": {"cctz": "dft"}, "fit": "gauss-newton", "differences": True},
    {"name": "taught", "start": "newton", "levels": {"cctz": {"forces_weight": 1.0}}, "teachers": ["newton", "apart"]},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("water", "formaldehyde")]
    labelled = [a for a in frames if "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", labelled + [a for a in frames if "energy_dft" not in a.info][:20], format="extxyz")
    return tmp_path


@pytest.fixture
def on_card(monkeypatch):
    """Trains a config on the stand-in."""
    trainer = lightning.Trainer

    def on_the_card(**settings):
        return trainer(**{**settings, "strategy": SingleDeviceStrategy(card.CARD)})

    def train(config):
        with monkeypatch.context() as patch, card.standing_in():
            patch.setattr(maps, "_run", card.compiled(maps._run))
            patch.setattr(radial.Knots, "__init__", card.on_host(radial.Knots.__init__))
            patch.setattr(run, "device_of_process", lambda _: card.CARD)
            patch.setattr(loop.lightning, "Trainer", on_the_card)
            patch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
            return run.train(config)

    return train


def ends(config):
    return {stage.name: torch.load(config.out / stage.name / "stage.ckpt", weights_only=True) for stage in config.stages}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for stage, state in one.items():
        for name, value in state.items():
            assert type(other[stage][name]) is torch.Tensor and torch.equal(value, other[stage][name]), (stage, name)


def test_a_run_on_a_device_is_one_on_the_host(folder, on_card):
    """In every way that there is to train, to the bit, since the stand-in computes as the host does."""
    more = [f"stages={json.dumps(EVERYTHING)}", "heads_per_level=2"]
    here, there = (plan.load(small_config(folder), [*more, f"out={folder}/{name}"]) for name in ("here", "there"))
    errors = run.train(here)
    assert on_card(there) == errors
    assert_same(ends(here), ends(there))


def test_training_on_the_device(folder):
    """On a GPU: in double what the CPU learns, and in every way that there is to train the same bits when it is done again."""
    if need("cuda") and not torch.cuda.is_available():
        pytest.skip("training on a device needs a GPU and a torch with CUDA")

    def trained(name, device, stages, *more):
        config = plan.load(small_config(folder), [f"stages={json.dumps(stages)}", f"train.device={device}", f"out={folder}/{name}", *more])
        return run.train(config), ends(config)

    (here, _), (there, _) = (trained(device, device, EVERYTHING[:2], "train.precision=double") for device in ("cpu", "cuda"))
    for split, rows in here.items():
        for key, row in rows.items():
            assert there[split][key] == pytest.approx(row, rel=1e-6), (split, key)
    (once, state), (again, other) = (trained(name, "cuda", EVERYTHING) for name in ("once", "again"))
    assert once == again
    assert_same(state, other)


def test_from_a_checkpoint_on_ions_on_disk(folder, on_card):
    """What charges add is fitted, and the network learns it, from structures that are read when asked for."""
    first = plan.load(small_config(folder), [f"out={folder}/first"])
    run.train(first)
    frames = ase.io.read(folder / "small.xyz", ":")
    for k, atoms in enumerate(frames):
        atoms.info["charge"] = int(k % 3 == 0)
        atoms.info["energy_gfn2"] += 5.0 * atoms.info["charge"]
    ase.io.write(folder / "small.xyz", frames, format="extxyz")
    levels = {"gfn2": {"from": "gfn2", "unchecked": True}}
    more = [f"levels={json.dumps(levels)}", f"backbone={{checkpoint: {first.out}/model.pt}}", "data.stream=true"]
    text = small_config(folder).read_text().splitlines()
    (folder / "config.yaml").write_text("\n".join(line for line in text if not line.startswith(("levels", "backbone"))))
    here, there = (plan.load(folder / "config.yaml", [*more, f"out={folder}/{name}"]) for name in ("here", "there"))
    assert run.train(here) == on_card(there)
    assert_same(ends(here), ends(there))
    assert "backbone.embedding.states" in ends(here)["multihead"]


def test_a_run_goes_on_elsewhere(folder, on_card, monkeypatch):
    """What was begun on a device continues on the host, and the other way round."""
    whole = plan.load(small_config(folder), ["train.epochs=4", f"out={folder}/whole"])
    run.train(whole)

    def die(self):
        if self.current_epoch == 2:
            raise RuntimeError("killed by the test")

    for name, first, then in (("there", on_card, run.train), ("back", run.train, on_card)):
        half = plan.load(small_config(folder), ["train.epochs=4", f"out={folder}/{name}", "resume=true"])
        with monkeypatch.context() as patch:
            patch.setattr(loop.Training, "on_train_epoch_end", die)
            with pytest.raises(RuntimeError, match="killed by the test"):
                first(half)
        then(half)
        assert_same(ends(whole), ends(half))


@pytest.mark.parametrize(
    "asked, compiled, cards, here, found",
    [
        ({}, True, 0, 1, "cpu"),
        ({}, False, 1, 1, "cpu"),
        ({}, True, 2, 2, "cuda:1"),
        ({"device": "cpu"}, True, 1, 2, "cpu"),
        ({"device": "cuda", "precision": "tf32"}, True, 2, 1, "cuda:1"),
        ({"device": "cuda"}, True, 0, 1, "train.device: cuda, but torch finds no GPU here; set train.device=cpu"),
        ({"device": "cuda"}, False, 1, 1, "train.device: cuda, but mfmd was built without CUDA; set train.device=cpu"),
        ({"precision": "tf32"}, True, 0, 1, "this run is on the CPU; set train.precision=single"),
        ({}, True, 2, 4, "4 processes on a machine of 2 GPUs; start torchrun with --nproc-per-node=2"),
    ],
)
def test_which_device(monkeypatch, asked, compiled, cards, here, found):
    monkeypatch.setattr(processes, "_engine", SimpleNamespace(has_cuda=lambda: compiled))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setenv("LOCAL_RANK", "1")
    if found.startswith(("cpu", "cuda:")):
        assert str(processes.device_of_process(schema.Train(**asked))) == found
    else:
        with pytest.raises(ConfigError, match=found):
            processes.device_of_process(schema.Train(**asked))


def test_one_device_for_all_stages(folder):
    """And one precision: what a stage would have of its own is refused, not passed over."""
    for key, value in (("device", "cpu"), ("precision", "double")):
        stages = [{"name": "low", "levels": {"gfn2": {}}, "train": {key: value}}]
        with pytest.raises(ConfigError, match=f"stages.low.train.{key}: it is the same for all stages; set train.{key}"):
            plan.load(small_config(folder), [f"stages={json.dumps(stages)}"])
        assert getattr(plan.load(small_config(folder), [f"train.{key}={value}"]).stages[0].train, key) == value
