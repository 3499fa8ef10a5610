"""What `mfmd suggest` chooses, and what it says of it."""

import json

import ase.io
import numpy as np
import pytest
from conftest import DATA, ELEMENTS, random_model, write

pytest.importorskip("lightning")
import torch

from mfmd import cli
from mfmd.labelling.journal import Journal
from mfmd.structures.record import Label, Structure
from mfmd.suggest import choice, costs, features
from mfmd.suggest.features import SuggestError
from mfmd.suggest.process import Pool, Process, Rows, covariances, fit_parts
from mfmd.training import batches, kernel


def problem(seed=0, structures=30, rows=3, width=12, elements=2):
    """Rows of structures, a process of two levels that knows a few labels of both, and targets of two kinds; the labels as (row, level)."""
    rng = np.random.default_rng(seed)
    e0 = np.zeros((structures, rows, elements))
    e0[:, 0] = rng.normal(size=(structures, elements))
    own = Rows(rng.normal(size=(structures, rows, width)), e0)
    parts, noise = np.array([0.7, 0.3]), np.array([0.01, 0.02])
    known = {0: [rng.normal(size=(5, own.width))], 1: [rng.normal(size=(2, own.width)), rng.normal(size=(1, own.width))]}
    targets = rng.normal(size=(7, own.width)), 30 * rng.normal(size=(4, own.width))
    labels = [(row, level) for level, blocks in known.items() for block in blocks for row in block]
    return own, parts, noise, known, targets, labels


def variance(labels, targets, parts, noise):
    """Of the targets at the second level, all together, given labels: the Gaussian process in the space of functions."""
    rows, level = np.array([row for row, _ in labels]), np.array([of for _, of in labels])
    between = covariances(parts)
    known = between[level[:, None], level] * (rows @ rows.T) + np.diag(noise[level])
    cross = between[1, level] * (targets @ rows.T)
    return between[1, 1] * np.sum(targets**2) - np.sum(cross * np.linalg.solve(known, cross.T).T)


def test_falls_are_those_of_the_process_with_the_label():
    own, parts, noise, known, targets, labels = problem()
    counts = {0: 3, 1: 1}
    blocks = [[kind[:3], kind[3:]] for kind in targets]
    pool = Pool(Process(parts, own.width, noise, known), own, counts, np.ones((len(own), 2)), np.ones((len(own), 2), bool), blocks)
    for _ in range(6):
        before = np.array([variance(labels, kind, parts, noise) for kind in targets])
        np.testing.assert_allclose(pool.totals, before, rtol=1e-9)
        worth = {}
        for level, count in counts.items():
            known = [labels + [(row, level) for row in own[[k]][0][:count]] for k in range(len(own))]
            falls = before[:, None] - [[variance(of, kind, parts, noise) for of in known] for kind in targets]
            np.testing.assert_allclose(pool.falls(level), falls, rtol=1e-6, atol=1e-9)
            worth |= {(k, level): share for k, share in enumerate((falls / before[:, None]).sum(axis=0)) if pool.free[k, level]}
        k, level, score = pool.best()
        assert (k, level) == max(worth, key=worth.get) and score == pytest.approx(worth[k, level], rel=1e-6)
        pool.take(k, level)
        assert not pool.free[k, level]
        labels += [(row, level) for row in own[[k]][0][: counts[level]]]


def test_the_dearer_level_is_chosen_only_where_it_is_worth_it():
    own, parts, noise, known, targets, _ = problem()
    free = np.ones((len(own), 2), bool)
    for cost, level in (((1.0, 1e4), 0), ((1e4, 1.0), 1)):
        pool = Pool(
            Process(parts, own.width, noise, known), own, {0: 1, 1: 1}, np.tile(cost, (len(own), 1)), free, [[kind] for kind in targets]
        )
        assert pool.best()[1] == level
    assert pool.best(budget=0.5) is None
    pool = Pool(Process(parts, own.width, noise, known), own, {0: 1, 1: 1}, np.ones((len(own), 2)), free, [[targets[0]]])
    fall = np.array([pool.falls(0)[0], pool.falls(1)[0]])
    k, level, score = pool.best()
    assert fall[level, k] == fall.max() and score == pytest.approx(fall.max() / pool.totals[0])


def test_units_of_a_kind_of_targets_decide_nothing():
    own, parts, noise, known, targets, _ = problem()
    found = []
    for unit in (1.0, 1000.0):
        free = np.ones((len(own), 2), bool)
        pool = Pool(Process(parts, own.width, noise, known), own, {1: 1}, np.ones((len(own), 2)), free, [[targets[0]], [unit * targets[1]]])
        found.append([])
        for _ in range(8):
            found[-1].append(pool.best()[0])
            pool.take(found[-1][-1], 1)
    assert found[0] == found[1]


def test_of_equals_the_first_is_chosen():
    own, parts, noise, known, targets, _ = problem()
    twice = Rows(np.concatenate([own.network, own.network]), np.concatenate([own.e0, own.e0]))
    blocks = [[kind] for kind in targets]
    pool = Pool(Process(parts, own.width, noise, known), twice, {1: 1}, np.ones((len(twice), 2)), np.ones((len(twice), 2), bool), blocks)
    k, _, _ = pool.best()
    assert k < len(own) and np.all(pool.falls(1)[:, k] == pool.falls(1)[:, k + len(own)])


def test_sizes_of_parts_are_found():
    """Of labels that are drawn from the process, of one level and of a second that lies near it."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(240, 500)) / np.arange(1, 501)
    level, true, penalty = np.arange(240) % 2, np.array([2.0, 0.05]), 1e-4
    weights = rng.normal(size=(2, 500)) * np.sqrt(true)[:, None]
    noise = np.sqrt(penalty * np.mean(np.sum(rows**2, axis=1)) * np.cumsum(true)[level])
    left = rows @ weights[0] + level * (rows @ weights[1]) + noise * rng.normal(size=240)
    found = fit_parts(rows @ rows.T, level, left, penalty)
    assert np.all(np.abs(np.log(found / true)) < 0.7)


# ------------------------------------------------------------------------------------------------ rows of a model


@pytest.fixture(scope="module")
def pool():
    """Small molecules of the shipped data, without labels."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if len(a) < 8 and set(a.numbers) <= set(ELEMENTS)][::40][:24]
    return [
        Structure(a.numbers, a.positions, a.cell.array, a.pbc, {}, f"pool.xyz: frame {k}", {"id": f"s{k}"}) for k, a in enumerate(frames)
    ]


def collate(model):
    return lambda structures: batches.collate(structures, [], model.backbone.radial.cutoff, torch.float64)


def test_rows_are_gradients_of_energies_and_forces(pool):
    """Against finite differences along a random change of the weights."""
    model = random_model(layers=1)
    weights = kernel.Weights(model, model.chain("high"))
    rng = np.random.default_rng(0)
    along, start, step = torch.as_tensor(rng.normal(size=len(weights))), weights.get(), 1e-5
    s = pool[5]
    rows = kernel.rows_of(weights, s, "high", collate(model), forces=True)
    directions = kernel._directions(s)
    ends = []
    for sign in (1, -1):
        weights.put(start + sign * step * weights.width * along)
        p = model(collate(model)([s]), forces=["high"])["high"]
        forces = np.sum(directions * p.forces.detach().numpy(), axis=(1, 2))
        ends.append(np.array([p.network_energy.item() / np.sqrt(len(s.numbers)), *(forces / np.sqrt(kernel.RATIO))]))
    weights.put(start)
    np.testing.assert_allclose((rows @ along).numpy(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)
    assert rows.shape[0] == 1 + kernel.DIRECTIONS
    np.testing.assert_allclose(np.linalg.norm(directions.reshape(len(directions), -1), axis=1), 1.0)


def test_the_kernel_is_that_of_the_rows(pool, monkeypatch):
    model = random_model(layers=1)
    weights, few = kernel.Weights(model, model.chain("high")), [(pool[:3], True), (pool[3:6], False)]
    rows = torch.cat([kernel.rows_of(weights, s, "high", collate(model), forces) for of, forces in few for s in of]).numpy()
    e0 = np.concatenate([kernel.e0_rows(of, ELEMENTS, forces).reshape(-1, len(ELEMENTS) + 3) for of, forces in few])
    for most in (kernel.MOST_GRADIENTS, 1e6):  # in one piece, and in several
        monkeypatch.setattr(kernel, "MOST_GRADIENTS", most)
        np.testing.assert_allclose(
            kernel.gram(weights, few, "high", collate(model), ELEMENTS).numpy(), rows @ rows.T + e0 @ e0.T, rtol=1e-9
        )
    assert len(weights.pieces(len(rows))) > 1


def test_a_sketch_keeps_products_as_it_says():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200, 5000)).astype(np.float32)
    sketch = kernel.Sketch(5000, 512)
    error = np.sum(sketch(torch.from_numpy(a)).numpy() * sketch(torch.from_numpy(b)).numpy(), axis=1) - np.sum(a * b, axis=1)
    relative = error / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.sqrt(np.mean(relative**2)) < np.sqrt(2 / 512) and abs(np.mean(relative)) < 0.01


# ------------------------------------------------------------------------------------------------ the choice


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return write(random_model(channels=16, layers=1), tmp_path_factory.mktemp("suggest") / "model.pt")


@pytest.fixture
def in_double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    features.weights_of.cache_clear()
    yield
    features.weights_of.cache_clear()
    torch.set_default_dtype(before)


def chosen(found):
    return [(pick.structure.source, pick.level) for pick in found.picks]


def test_a_choice_from_sketches_is_resumed_to_the_same_end(pool, model_file, tmp_path, monkeypatch, in_double):
    exact = choice.choose(model_file, pool, ["high"], ["high"], count=6)
    monkeypatch.setattr(features, "MOST_EXACT", 0)
    monkeypatch.setattr(features, "BLOCK", 5)
    here = lambda tasks, _: ((key, function(*arguments), None) for key, function, arguments in tasks)  # noqa: E731
    monkeypatch.setattr(features, "in_parallel", here)
    whole = choice.choose(model_file, pool, ["high"], ["high"], count=6, folder=tmp_path / "whole")
    assert whole.width == features.WIDTH and exact.width is None
    assert whole.picks[-1].left == pytest.approx(exact.picks[-1].left, rel=0.5)

    def killed(tasks, workers):
        for n, done in enumerate(here(tasks, workers)):
            if n == 2:
                raise KeyboardInterrupt
            yield done

    monkeypatch.setattr(features, "in_parallel", killed)
    with pytest.raises(KeyboardInterrupt):
        choice.choose(model_file, pool, ["high"], ["high"], count=6, folder=tmp_path / "half")
    made, there = [], {path.name for path in (tmp_path / "half").iterdir()}
    monkeypatch.setattr(
        features, "in_parallel", lambda tasks, workers: here([made.append(task[0].name) or task for task in tasks], workers)
    )
    again = choice.choose(model_file, pool, ["high"], ["high"], count=6, folder=tmp_path / "half")
    assert len(there) == 3 and len(made) == 7 and not there & set(made)
    assert chosen(again) == chosen(whole) and [pick.left for pick in again.picks] == [pick.left for pick in whole.picks]


def test_only_blocks_are_removed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / f"{'0' * features.DIGITS}.npy").write_text("")
    (tmp_path / "kept" / "mine.txt").write_text("")
    features.forget(tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["mine.txt"]
    (tmp_path / "kept" / "mine.txt").unlink()
    for _ in range(2):  # also where it is gone already
        features.forget(tmp_path / "kept")
        assert not (tmp_path / "kept").exists()


def test_labels_that_are_there_are_not_chosen_again(pool, model_file, in_double):
    learned = [Structure(s.numbers, s.positions, s.cell, s.pbc, {"high": Label(energy=0.0)}, "train.xyz", {}) for s in pool[:9]]
    found = choice.choose(model_file, pool, ["high"], ["high"], learned)
    assert {source for source, _ in chosen(found)} == {s.source for s in pool[9:]}
    assert found.learned == {"high": 9} and found.before is None  # nine labels are too few for an error bar
    with pytest.raises(SuggestError, match="every candidate has its labels of high already"):
        choice.choose(model_file, pool[:9], ["high"], ["high"], learned)
    with pytest.raises(SuggestError, match="none of them is new"):
        choice.choose(model_file, pool, ["new"], ["new"])
    found = choice.choose(model_file, pool, ["high"], ["high"], learned, held=pool[9:12])
    assert {source for source, _ in chosen(found)} == {s.source for s in pool[12:]}
    strange = Structure(np.array([1, 17]), np.array([[0, 0, 0], [0, 0, 1.3]]), np.zeros((3, 3)), np.zeros(3, bool), {}, "odd.xyz: frame 0")
    with pytest.raises(SuggestError, match="odd.xyz: frame 0: Cl is not among the elements"):
        choice.choose(model_file, [*pool, strange], ["high"], ["high"])


def test_error_bars_are_those_of_labels(model_file, in_double):
    """Labels that are drawn from the process itself: their size is found, and the errors of others are as predicted."""
    model = features.weights_of(str(model_file), "high").model
    weights = kernel.Weights(model, model.chain("high"))
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if len(a) < 10 and set(a.numbers) <= set(ELEMENTS)][::12][:200]
    every = [Structure(a.numbers, a.positions, a.cell.array, a.pbc, {}, f"f: frame {k}", {}) for k, a in enumerate(frames)]
    rows = torch.cat([kernel.rows_of(weights, s, "high", features.collation(model)) for s in every]).numpy()
    size, rng, width = np.sqrt([len(s.numbers) for s in every]), np.random.default_rng(3), 0.05
    noise = width * np.sqrt(choice.PENALTY * np.mean(np.sum(rows**2, axis=1))) * rng.normal(size=len(every))
    change = (width * rows @ rng.normal(size=len(weights)) + noise) * size
    energies = kernel.predictions(model, every, "high", features.collation(model)) + change
    for s, energy in zip(every[:120], energies, strict=False):
        s.labels["high"] = Label(energy=energy)
    found = choice.choose(model_file, every[120:], ["high"], ["high"], every[:120], count=20)
    assert np.sqrt(found.parts[0]) == pytest.approx(width, rel=0.3)
    assert found.after < found.before


def test_costs_are_powers_of_electrons(pool):
    n = np.array([10, 16, 18, 24])
    assert costs.power(list(zip(n, 0.01 * n**3.0, strict=True))) == pytest.approx((0.01, 3.0))
    assert costs.power([(10, 2.0), (10, 8.0)]) == pytest.approx((4.0, 0.0))
    own = np.array([costs.electrons(s) for s in pool])
    np.testing.assert_allclose(costs.seconds("dft", list(zip(n, 0.01 * n**3.0, strict=True)), pool), 0.01 * own**3.0)
    large = Structure(np.full(40, 8), np.zeros((40, 3)), np.zeros((3, 3)), np.zeros(3, bool), {}, "")
    with pytest.warns(match="the cost of a label of level dft is recorded for up to 20 electrons, and candidates have up to 320"):
        costs.seconds("dft", [(10, 1.0), (20, 8.0)], [large])


# ------------------------------------------------------------------------------------------------ the command


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["mfmd", "suggest", *map(str, words)])
    try:
        cli.main()
    except SystemExit as end:
        assert end.code == 1
    return capsys.readouterr()


@pytest.fixture
def campaign(tmp_path, in_double):
    """Labels of two levels with what they have cost, a config and a pool."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if "energy_cctz" in a.info and len(a) < 8]
    own = []
    for a in frames[::2][:40]:
        atoms = ase.Atoms(a.numbers, a.positions, info={"id": a.info["id"], "energy_low": a.info["energy_gfn2"]})
        if len(own) % 2:
            atoms.info["energy_high"] = a.info["energy_cctz"]
        own.append(atoms)
    (tmp_path / "labels").mkdir()
    ase.io.write(tmp_path / "labels" / "train.xyz", own, format="extxyz")
    journal = Journal(tmp_path / "labels" / "labels.jsonl")
    for atoms in own:
        for level, factor in (("low", 1e-5), ("high", 1e-3)):
            journal.add(atoms.info["id"], level, {"energy": 0.0, "cpu_seconds": factor * atoms.numbers.sum() ** 3.0}, None)
    rest = [
        ase.Atoms(a.numbers, a.positions, info={"id": a.info["id"], "molecule": a.info["molecule"], "split": "val"})
        for a in frames[1::2][:30]
    ]
    ase.io.write(tmp_path / "pool.xyz", rest, format="extxyz")
    (tmp_path / "data.yaml").write_text(
        f"out: {tmp_path}/run\ndata: {{train: {tmp_path}/labels/train.xyz, val: 0.1}}\nlevels: {{low: , high: }}\nbackbone: small\n"
    )
    return tmp_path


def test_the_command_writes_what_mfmd_label_takes(campaign, model_file, monkeypatch, capsys):
    words = [model_file, campaign / "pool.xyz", "--data", campaign / "data.yaml", "--levels", "low,high", "--budget", "15s", "--json"]
    found = json.loads(run(monkeypatch, capsys, *words, "-o", campaign / "chosen.xyz").out)
    frames, kept = ase.io.read(campaign / "chosen.xyz", ":"), json.loads((campaign / "chosen.json").read_text())
    assert found == {key: value for key, value in kept.items() if key != "picks"} | {key: found[key] for key in ("structures", "report")}
    low, high = (found["learned"][level] for level in ("low", "high"))
    assert low == 36 and 15 <= high <= 20
    labels = [(a.info["id"], level) for a in frames for level in " ".join(np.atleast_1d(a.info["levels"])).split()]
    assert len(set(labels)) == len(labels) == len(kept["picks"]) == sum(own["labels"] for own in found["levels"].values())
    pool = {a.info["id"]: a for a in ase.io.read(campaign / "pool.xyz", ":")}
    assert all(np.allclose(a.positions, pool[a.info["id"]].positions) and a.info["molecule"] and "split" not in a.info for a in frames)
    spent = sum(pick["cpu_seconds"] for pick in kept["picks"])
    assert 12.0 < spent <= 15.0
    assert 0 < found["error_bar"]["after"] < found["error_bar"]["before"]
    left = [pick["left"] for pick in kept["picks"]]
    assert all(b < a for a, b in zip([1.0, *left], left, strict=False)) and left[-1] == found["variance_left"]
    page = (campaign / "chosen.html").read_text()
    assert "halvings of the variance" in page and "<svg" in page
    again = json.loads(run(monkeypatch, capsys, *words, "-o", campaign / "again.xyz").out)
    assert again["variance_left"] == found["variance_left"]
    assert (campaign / "again.xyz").read_text() == (campaign / "chosen.xyz").read_text()


def test_predictions_are_judged_once_the_labels_are_there(campaign, model_file, monkeypatch, capsys):
    words = ["--data", campaign / "data.yaml", "--levels", "high", "--json"]
    run(monkeypatch, capsys, model_file, campaign / "pool.xyz", "--count", 8, *words, "-o", campaign / "chosen.xyz")
    frames = ase.io.read(campaign / "chosen.xyz", ":")
    assert len(frames) == 8 and {a.info["levels"] for a in frames} == {"high"}
    for k, a in enumerate(frames):
        a.info["energy_high"] = a.info["predicted_high"] + (2.0 if k == 0 else 0.5) * a.info["predicted_error_high"]
    known = [
        ase.Atoms(a.numbers, a.positions, info={"id": a.info["id"], "energy_low": 0.0}) for a in frames
    ]  # as a pool that is whole at a lower level
    ase.io.write(campaign / "train.xyz", [*ase.io.read(campaign / "labels" / "train.xyz", ":"), *known, *frames], format="extxyz")
    text = (campaign / "data.yaml").read_text().replace("labels/train.xyz", "train.xyz").replace("0.1", f"{campaign}/labels/train.xyz")
    (campaign / "data.yaml").write_text(text)
    told = run(monkeypatch, capsys, model_file, campaign / "pool.xyz", "--count", 2, *words, "-o", campaign / "next.xyz")
    before = json.loads(told.out)["before"]
    assert before["labels"] == 8 and before["coverage"] == 7 / 8
    bars = [a.info["predicted_error_high"] for a in frames]
    assert before["rms_error_bar"] == pytest.approx(np.sqrt(np.mean(np.square(bars))))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--count", "0"], "--count: 0 labels are none"),
        (["--budget", "40"], "--budget: '40' is no time; give CPU time with a unit"),
        (["--count", "3", "--cost", "high"], "--cost: 'high' is no cost"),
        (["--count", "3", "--cost", "low=2"], "--cost: low is not among the levels that are chosen from, high"),
        (["--count", "3", "--levels", "low,newer", "--cost", "low=2"], "what a label of level newer costs is not recorded"),
        (["--budget", "1min"], "no labels.jsonl beside the files of --data"),
        (["--budget", "1s", "--cost", "high=2"], "--budget: no label of a candidate costs so little"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, sentence, campaign, model_file, monkeypatch, capsys):
    told = run(monkeypatch, capsys, model_file, campaign / "pool.xyz", *words, "-o", campaign / "chosen.xyz")
    (error,) = [line for line in told.err.splitlines() if line.startswith("error")]
    assert sentence in error and not (campaign / "chosen.xyz").exists()


def test_candidates_may_be_the_trajectories_of_mfmd_label(campaign, model_file, monkeypatch, capsys):
    (campaign / "sampled" / "trajectories").mkdir(parents=True)
    frames = ase.io.read(campaign / "pool.xyz", ":")
    for k, split in enumerate(("train", "test")):
        for atoms in frames[k::2]:
            atoms.info["split"] = split
        ase.io.write(campaign / "sampled" / "trajectories" / f"{k}.xyz", frames[k::2], format="extxyz")
    told = run(monkeypatch, capsys, model_file, campaign / "sampled", "--count", 3, "--json", "-o", campaign / "chosen.xyz")
    assert json.loads(told.out)["targets"] == len(frames[::2])
    assert {a.info["id"] for a in ase.io.read(campaign / "chosen.xyz", ":")} < {a.info["id"] for a in frames[::2]}
