"""Levels by linear algebra: the regressions, their error bars, what the engine makes of them, and runs that end with one."""

import copy
import json

import numpy as np
import pytest
from conftest import DATA, ELEMENTS, ethanol, random_cell, random_model, small_config, write

pytest.importorskip("lightning")
import ase.io
import backends
import torch

import mfmd
from mfmd import evaluation
from mfmd.engine import Engine, load_model
from mfmd.structures import reading
from mfmd.structures.record import Label, Structure
from mfmd.training import batches, energies, error_bars, export, fit, kernel
from mfmd.training.heads import LinearHead, MLPHead


def problem(n=60, p=12, noise=0.02, seed=0):
    """phi, y, sizes, penalised, of a linear relation with noise that grows with the root of the number of atoms."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 20, n).astype(float)
    phi = np.concatenate([rng.normal(size=(n, p - 1)) * rng.uniform(0.1, 10, p - 1), sizes[:, None]], axis=1)
    theta = rng.normal(size=p) / np.append(phi[:, :-1].std(axis=0), 100)
    return phi, phi @ theta + rng.normal(size=n) * noise * np.sqrt(sizes), sizes, np.arange(p) < p - 1


@pytest.mark.parametrize("rows", [1, 4])
def test_left_out_errors_are_those_of_fits_without_the_structure(rows, monkeypatch):
    """A structure is one row (its energy) or several (its forces too), left out together."""
    phi, y, sizes, penalised = problem()
    block = np.arange(len(y)) // rows
    monkeypatch.setattr(fit, "PENALTIES", np.array([3.0]))
    _, covariance, noise, errors, bars = fit.regress(phi, y, sizes, block, penalised)
    # covariance = noise (phi^T W phi + prior)^-1 gives the prior away, so that each fit can be done again without a structure.
    w = 1 / sizes
    prior = np.linalg.inv(covariance / noise) - (phi * w[:, None]).T @ phi
    for k in range(0, block[-1], 3):
        rest, out = block != k, block == k
        gram = (phi[rest] * w[rest, None]).T @ phi[rest] + prior
        without = np.linalg.solve(gram, phi[rest].T @ (w[rest] * y[rest]))
        np.testing.assert_allclose(errors[out], y[out] - phi[out] @ without, rtol=1e-5)
        variance = noise * (sizes[out] + np.diag(phi[out] @ np.linalg.solve(gram, phi[out].T)))
        np.testing.assert_allclose(bars[out] ** 2, variance, rtol=1e-5)


def test_a_stand_in_covers_new_data():
    """Left-out errors of one linear model, and what another, of half of its features, makes of how they grow away from the data."""
    covered, gains = [], []
    for seed in range(20):
        phi, y, sizes, penalised = problem(n=400, p=30, seed=seed)
        phi[:, :-1] *= 10.0 ** np.random.default_rng(seed).normal(0, 0.5, (400, 1))
        theta, _, _, errors, _ = fit.regress(phi[:100], y[:100], sizes[:100], np.arange(100), penalised)
        error = y[100:] - phi[100:] @ theta
        factor, noise = error_bars.stand_in(phi[:100, 14:], sizes[:100], errors, penalised[14:])
        assert np.array_equal(factor, np.tril(factor))
        bar = np.sqrt(np.square(phi[100:, 14:] @ factor).sum(axis=1) + noise * sizes[100:])
        found = evaluation.calibration(error, bar)
        covered.append(found["coverage"])
        gains.append(found["gain"])
    assert np.mean(covered) == pytest.approx(0.683, abs=0.05) and np.mean(gains) > 0


def test_error_bars_cover_new_data():
    covered, scores = [], []
    for seed in range(20):
        phi, y, sizes, penalised = problem(n=400, seed=seed)
        theta, covariance, noise, *_ = fit.regress(phi[:100], y[:100], sizes[:100], np.arange(100), penalised)
        error = y[100:] - phi[100:] @ theta
        sigma = np.sqrt(np.einsum("np,pq,nq->n", phi[100:], covariance, phi[100:]) + noise * sizes[100:])
        covered.append(np.mean(np.abs(error) < sigma))
        constant = np.sqrt(np.mean(error**2))  # the best one sigma there is
        scores.append(np.mean(-np.log(sigma) - error**2 / (2 * sigma**2)) - np.mean(-np.log(constant) - error**2 / (2 * constant**2)))
    assert np.mean(covered) == pytest.approx(0.683, abs=0.03) and np.mean(scores) > 0


@pytest.fixture(scope="module")
def linear():
    """A model whose level `middle` has a linear head with error bars; `high` is relative to it."""
    model = random_model()
    rng = np.random.default_rng(0)
    head = LinearHead(32, model.heads["middle"].e0)
    head.weight.data.copy_(torch.as_tensor(rng.normal(size=head.weight.shape)))
    model.heads["middle"] = head
    sure(model, "middle", rng)
    return model.eval()


def sure(model, level, rng):
    """Give a head error bars of about an eV."""
    phi, alone = fit.design(model, [structure(ethanol())], list(ELEMENTS), collate(model))
    factor = np.tril(rng.normal(size=(phi.shape[1],) * 2)) * 1e-3
    model.heads[level].set_error_bars(factor=factor, isolated=alone, noise=1e-6)


def structure(atoms):
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, {}, "")


def collate(model):
    return lambda structures: batches.collate(structures, [], model.backbone.radial.cutoff, torch.float64)


@pytest.mark.parametrize("head", ["middle", "high"])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_engine_computes_linear_heads(head, precision, linear, tmp_path):
    path = write(linear, tmp_path / "model.pt")
    tolerance = 1e-9 if precision == "double" else 1e-3
    for atoms in (ethanol(), random_cell(1), random_cell(2, small=True)):
        wanted, got = backends.reference(linear, head)(atoms), backends.engine(path, head, precision)(atoms)
        assert got[0] == pytest.approx(wanted[0], abs=tolerance)
        np.testing.assert_allclose(got[1], wanted[1], atol=tolerance)
        np.testing.assert_allclose(got[2], wanted[2], atol=10 * tolerance)


def test_variances_of_a_chain_add_up(linear, tmp_path):
    """Of a head of any kind; and in a file that says so by its format alone, since those before have each head's own."""
    model = copy.deepcopy(linear)
    sure(model, "high", np.random.default_rng(1))
    engine = Engine(write(model, tmp_path / "model.pt"), "double", radial="exact")
    assert engine.metadata["format"] == 4 and Engine(write(linear, tmp_path / "linear.pt")).metadata["format"] == 1
    assert list(engine.with_error_bars) == ["middle", "high"]
    for atoms in (ethanol(), random_cell(1, atoms=9)):
        phi, _ = fit.design(model, [structure(atoms)], list(ELEMENTS), collate(model))
        heads = [model.heads[level] for level in ("middle", "high")]
        own = [np.sum((head.factor.numpy().T @ phi[0]) ** 2) + float(head.noise) * len(atoms) for head in heads]
        terms = [("high", 1.0), ("middle", 1.0)]
        out = engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=terms, error_bars=True)
        np.testing.assert_allclose(out["term_errors"], np.sqrt([sum(own), own[0]]), rtol=1e-9)


def test_files_of_before_have_the_error_bars_they_had(linear, tmp_path):
    """Of a relative head in closed form those of the difference, in hosts' archives too; one is not made anew."""
    model = copy.deepcopy(linear)
    model.heads["high"] = LinearHead(32, linear.heads["high"].e0)
    sure(model, "high", np.random.default_rng(1))
    new = write(model, tmp_path / "new.pt")
    old = backends.rebuilt(new, tmp_path / "old.pt", header=lambda h: h.update(format=1))
    export.write_torchscript(tmp_path / "again.pt", load_model(old))
    assert load_model(tmp_path / "again.pt").bytes == load_model(old).bytes
    found = []
    for path in (new, old, tmp_path / "again.pt"):
        given = ethanol()
        out = Engine(path).compute(given.positions, given.numbers, terms=[("high", 1.0), ("middle", 1.0)], error_bars=True)
        found.append(out["term_errors"] ** 2)
    (whole, middle), (alone, same), again = found
    assert middle == same and whole == pytest.approx(alone + middle, rel=1e-9) and np.array_equal(again, [alone, same])


def test_engine_gives_error_bars(linear, tmp_path):
    path = write(linear, tmp_path / "model.pt")
    head = linear.heads["middle"]
    for atoms in (ethanol(), random_cell(1, atoms=9)):
        phi, _ = fit.design(linear, [structure(atoms)], list(ELEMENTS), collate(linear))
        wanted = np.sqrt(np.sum((head.factor.numpy().T @ phi[0]) ** 2) + float(head.noise) * len(atoms))
        terms = [("middle", 1.0), ("low", 0.0)]
        for precision, tolerance in (("double", 1e-9), ("single", 1e-4)):
            out = Engine(path, precision, radial="exact").compute(
                atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=terms, error_bars=True
            )
            assert out["term_errors"][0] == pytest.approx(wanted, rel=tolerance) and np.isnan(out["term_errors"][1])
        atoms.calc = mfmd.Calculator(path, "middle")
        atoms.get_potential_energy()
        assert atoms.calc.energy_error == pytest.approx(wanted, rel=1e-4)
        atoms.calc = mfmd.Calculator(path, "low")
        atoms.get_potential_energy()
        assert atoms.calc.energy_error is None


@pytest.fixture(scope="module")
def ensemble():
    """A model whose level `middle` is an ensemble of five heads; `high` is relative to it."""
    model = random_model()
    head = MLPHead(32, 60.0, model.heads["middle"].e0, False, members=5)
    head.calibration.fill_(1.7)
    model.heads["middle"] = head
    return model.eval()


@pytest.mark.parametrize("head", ["middle", "high"])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_engine_computes_ensembles(head, precision, ensemble, tmp_path):
    """Energy and forces are those of the mean; the error bar is the calibrated spread of the members."""
    path = write(ensemble, tmp_path / "model.pt")
    tolerance = 1e-9 if precision == "double" else 1e-3
    for atoms in (ethanol(), random_cell(1)):
        wanted, got = backends.reference(ensemble, head)(atoms), backends.engine(path, head, precision)(atoms)
        assert got[0] == pytest.approx(wanted[0], abs=tolerance)
        np.testing.assert_allclose(got[1], wanted[1], atol=tolerance)
        out = Engine(path, precision, radial="exact").compute(
            atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("middle", 1.0), ("high", 0.0)], error_bars=True
        )
        deviations = ensemble(collate(ensemble)([structure(atoms)]))["middle"].deviations
        assert deviations.sum().item() == pytest.approx(0.0, abs=1e-9)
        assert out["term_errors"][0] == pytest.approx(1.7 * deviations.std().item(), rel=1e-6 if precision == "double" else 1e-3)
        assert np.isnan(out["term_errors"][1])
    alone = ase.Atoms("O")
    alone.calc = mfmd.Calculator(path, "middle", precision)
    alone.get_potential_energy()
    assert alone.calc.energy_error == pytest.approx(0.0, abs=1e-4)


@pytest.mark.usefixtures("single")
def test_a_run_with_ensembles(tmp_path):
    """Members differ, their spread is calibrated on the validation set, and the ASE calculator gives it."""
    from mfmd.training import plan
    from mfmd.training.run import train

    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("water", "methanol") and "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
    config = plan.load(small_config(tmp_path), ["strategy=chain", "heads_per_level=4", "train.epochs=10"])
    train(config)
    _, bars = evaluation.compare(config.out / "model.pt", reading.read(config.data, config.levels)["val"])
    assert evaluation.calibration(*bars["cctz"])["coverage"] == pytest.approx(0.68, abs=0.1)
    assert np.std(bars["cctz"][1]) > 0


def test_closed_form_finds_the_head_that_made_the_labels(linear):
    """Labels made with known weights are reproduced, relative to another level or not."""
    frames = [random_cell(seed, atoms=5 + seed % 3) for seed in range(150)]
    structures = [structure(a) for a in frames]
    model = copy.deepcopy(linear)
    for s in structures:
        p = model(collate(model)([s]))
        s.labels = {level: Label(energy=p[level].energy.item()) for level in ("middle", "low")}
    for delta_of in ({}, {"middle": "low"}):
        model = copy.deepcopy(linear)
        model.delta_of = delta_of
        e0 = model.heads["middle"].e0 - (model.heads["low"].e0 if delta_of else 0) + 0.1
        model.heads["middle"] = LinearHead(32, e0)
        found = fit.closed_form(model, "middle", structures[:-10], collate(model))
        assert found["structures"] == 140
        if not delta_of:  # the difference to a non-linear head is not linear
            errors = [model(collate(model)([s]))["middle"].energy.item() - s.labels["middle"].energy for s in structures[-10:]]
            assert np.abs(errors).max() < 0.1 * np.std([s.labels["middle"].energy - s.labels["low"].energy for s in structures])


def test_forces_are_rows_of_the_regression(linear):
    """A head that made energies and forces of a few structures is found from these, and better than from energies alone."""
    frames = [random_cell(seed, atoms=5 + seed % 3) for seed in range(40)]
    structures, left = [structure(a) for a in frames], {}
    for s in structures:
        p = linear(collate(linear)([s]), forces=["middle"])["middle"]
        s.labels = {"middle": Label(energy=p.energy.item(), forces=p.forces.detach().numpy())}
    # -dphi/dR by finite differences.
    phi, _, slopes = fit.design(linear, structures[:2], list(ELEMENTS), collate(linear), True)
    moved = copy.deepcopy(structures[1])
    moved.positions[2, 1] += 1e-5
    difference = -(fit.design(linear, [moved], list(ELEMENTS), collate(linear))[0][0] - phi[1]) / 1e-5
    np.testing.assert_allclose(slopes[1][3 * 2 + 1], difference, atol=1e-3 * np.abs(difference).max())
    for use in (False, True):
        model = copy.deepcopy(linear)
        model.delta_of = {}
        model.heads["middle"] = LinearHead(32, linear.heads["middle"].e0)
        found = fit.closed_form(model, "middle", structures[:25], collate(model), forces=use)
        assert found["forces"] == (25 if use else 0)
        errors = []
        for s in structures[25:]:
            errors.append(
                (model(collate(model)([s]), forces=["middle"])["middle"].forces.detach().numpy() - s.labels["middle"].forces).ravel()
            )
        left[use] = np.abs(np.concatenate(errors)).mean() / np.mean([np.abs(s.labels["middle"].forces).mean() for s in structures])
    assert left[True] < 0.01 and left[True] < 0.2 * left[False]


def test_too_few_energies_are_refused(linear):
    model = copy.deepcopy(linear)
    s = structure(ethanol())
    s.labels = {"middle": Label(energy=-1.0)}
    with pytest.raises(fit.FitError, match="levels.middle: .* ten energies"):
        fit.closed_form(model, "middle", [s] * 3, collate(model))


def test_gauss_newton_finds_a_model_nearby(monkeypatch):
    """Energies of a model whose weights lie near teach the forces too; biases and tables stay to the bit."""
    torch.set_default_dtype(torch.float64)
    model = random_model(1, channels=16, layers=1)
    target = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for p in (*target.backbone.parameters(), *target.heads["low"].parameters()):
        if p.dim() > 1 and len(p) != 119:
            p.data += 0.05 * p.data.square().mean().sqrt() * torch.randn(p.shape, generator=generator)
    target.heads["low"].e0[list(ELEMENTS)] += 0.1
    structures = [structure(random_cell(seed, atoms=4 + seed % 3)) for seed in range(150)]
    for s in structures:
        p = target(collate(target)([s]), forces=["low"])["low"]
        s.labels = {"low": Label(energy=p.energy.item(), forces=p.forces.detach().numpy())}

    def errors():
        predictions = [(s, model(collate(model)([s]), forces=["low"])["low"]) for s in structures[120:]]
        energy = [p.energy.item() - s.labels["low"].energy for s, p in predictions]
        return np.std(energy), np.abs(
            np.concatenate([(p.forces.detach().numpy() - s.labels["low"].forces).ravel() for s, p in predictions])
        ).mean()

    before, state, in_pieces = errors(), copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    found = fit.gauss_newton(model, "low", structures[:120], collate(model))
    after = errors()
    assert found["structures"] == 120 and 1 <= found["steps"] <= fit.STEPS
    assert after[0] < 0.2 * before[0] and after[1] < 0.3 * before[1]
    for name, value in model.state_dict().items():
        if value.dim() < 2 and not name.endswith("low.e0"):
            assert torch.equal(value, state[name]), name
    with pytest.raises(fit.FitError, match="levels.low: Gauss-Newton needs ten energies"):
        fit.gauss_newton(model, "low", structures[:3], collate(model))
    # Gradients that do not fit into memory together are found in pieces, with the same end.
    asked, gradients = [], kernel.gradients
    monkeypatch.setattr(kernel, "gradients", lambda *given: asked.append(given[-2]) or gradients(*given))
    monkeypatch.setattr(kernel, "MOST_GRADIENTS", 2e6)
    again = fit.gauss_newton(in_pieces, "low", structures[:120], collate(model))
    np.testing.assert_allclose(again.pop("errors"), found.pop("errors"), rtol=1e-6, atol=1e-8)
    assert again == pytest.approx(found, rel=1e-6)
    assert len(set(map(str, asked))) > 2
    for name, value in model.state_dict().items():
        torch.testing.assert_close(in_pieces.state_dict()[name], value, rtol=0, atol=1e-6)
    monkeypatch.setattr(kernel, "MOST_GRADIENTS", 1e5)
    with pytest.raises(fit.FitError, match="would take .* GB, and Gauss-Newton holds"):
        fit.gauss_newton(model, "low", structures, collate(model))


@pytest.fixture
def few(tmp_path):
    """The config of a run on a few structures with cctz energies."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in ("water", "methanol") and "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
    return small_config(tmp_path)


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("strategy", ["delta", "chain-newton"])
def test_isolated_atoms_keep_their_energies(few, tmp_path, strategy):
    """Where E0 is that of isolated atoms, no fit moves it."""
    from mfmd.training import plan
    from mfmd.training.run import train

    train(plan.load(few, [f"strategy={strategy}", *(f"levels.{level}.e0=atoms" for level in ("gfn2", "dft", "cctz"))]))
    engine = Engine(tmp_path / "run" / "model.pt", "double")
    atoms = energies.read_atoms(DATA / "atoms.json", engine.levels)
    for level in engine.levels:
        for z in (1, 6, 8):
            assert engine.compute(np.zeros((1, 3)), [z], terms=[(level, 1.0)])["energy"] == pytest.approx(atoms[level][z], abs=1e-6)


def test_error_bars_by_all_gradients():
    """Those of a Gaussian process with the kernel between all energies and forces."""
    torch.set_default_dtype(torch.float64)
    model = random_model(1, channels=16, layers=1)
    learned, others = ([structure(random_cell(seed, atoms=5)) for seed in seeds] for seeds in (range(8), range(8, 11)))
    bars = error_bars.of_gradients(model, "high", 0.01, 2.0, learned, others, ELEMENTS, collate(model))
    weights = kernel.Weights(model, ["high"])
    gram = kernel.gram(weights, [(learned, False), (others, True)], "high", collate(model), ELEMENTS).numpy()
    noise, known = 0.01 * np.trace(gram[:8, :8]) / 8, slice(0, 8)
    for k, bar in enumerate(bars):
        own = slice(8 + 9 * k, 17 + 9 * k)
        left = gram[own, own] - gram[own, known] @ np.linalg.solve(gram[known, known] + noise * np.eye(8), gram[known, own])
        wanted = 2.0 * np.array([5 * (left[0, 0] + noise), kernel.RATIO * np.diag(left)[1:].mean()])
        np.testing.assert_allclose(bar, np.sqrt(wanted), rtol=1e-6)


@pytest.mark.usefixtures("single")
def test_a_run_with_gauss_newton(few, tmp_path, monkeypatch, capsys):
    """Its head has error bars, which a resumed run has again, and one that is taught by it, but none that goes on from it by gradient; `mfmd eval` has
    those by all gradients."""
    from mfmd import cli
    from mfmd.training import plan
    from mfmd.training.run import train

    given = ["strategy=chain-newton", "train.epochs=10"]
    train(plan.load(few, given))
    path = tmp_path / "run" / "model.pt"
    bytes_then, engine = load_model(path).bytes, Engine(path)
    assert engine.metadata["format"] == 4 and list(engine.with_error_bars) == ["cctz"]
    config = plan.load(few, [*given, "resume=true"])
    train(config)
    assert tensors_of(load_model(path).bytes) == tensors_of(bytes_then)
    _, bars = evaluation.compare(path, reading.read(config.data, config.levels)["val"])
    found = evaluation.calibration(*bars["cctz"])
    assert 0.4 < found["coverage"] < 0.9 and found["gain"] > 0
    capsys.readouterr()
    arguments = [str(path), str(DATA / "test.xyz"), "-o", str(tmp_path / "eval"), "--error-bars", str(few), "--json"]
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", *arguments])
    cli.main()
    found = json.loads(capsys.readouterr().out)["by_gradients"]
    assert found["level"] == "cctz" and found["energy"]["count"] > found["forces"]["count"] > 5
    assert found["forces"]["predicted"] > 0 and found["forces"]["rank"] > 0
    assert len((tmp_path / "eval" / "error_bars.csv").read_text().splitlines()) == found["energy"]["count"] + 1
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(few.read_text().replace("cctz: }", "cctz: {keep: 12}}"))
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", *arguments[:-2], str(fewer)])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"--error-bars: {fewer} has 12 energies of level cctz, and Gauss-Newton has fitted it to" in capsys.readouterr().err
    more = [
        {"name": "apart", "start": "gfn2", "levels": {"cctz": {}}, "heads": {"cctz": "gfn2"}, "fit": "gauss-newton"},
        {
            "name": "taught",
            "start": "cctz",
            "levels": {"cctz": {"forces_weight": 1.0}},
            "teachers": ["cctz", "apart"],
            "train": {"epochs": 1},
        },
        {"name": "again", "levels": {"cctz": {}}, "train": {"epochs": 1}},
    ]
    given = [stage.model_dump(mode="json") for stage in config.stages]
    for count, wanted in ((2, ["cctz"]), (3, [])):  # what two teach, and by gradient
        train(plan.load(few, [f"stages={json.dumps(given + more[:count])}", "resume=true"]))
        engine = Engine(path)
        assert list(engine.with_error_bars) == wanted and ("gauss_newton" in engine.metadata["provenance"]) == bool(wanted)


def tensors_of(content):
    """The bytes of a model file behind its header, which has a date."""
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.usefixtures("single")
def test_a_run_with_deltas(few, tmp_path):
    """The strategy `delta`: higher levels in closed form; the model file has every level and error bars."""
    from mfmd.training import plan
    from mfmd.training.run import train

    config = plan.load(few, ["strategy=delta"])
    assert config.stages[2].heads == {"cctz": "delta dft"} and "closed form" in "\n".join(plan.describe(config))
    tables = train(config)
    again = train(plan.load(few, ["strategy=delta", "resume=true"]))
    assert again == tables
    engine = Engine(tmp_path / "run" / "model.pt")
    assert engine.levels == ["gfn2", "dft", "cctz"]
    s = reading.read(config.data, config.levels)["val"][0]
    out = engine.compute(s.positions, s.numbers, terms=[("cctz", 1.0)], error_bars=True)
    assert out["energy"] == pytest.approx(s.labels["cctz"].energy, abs=1.0)
    assert 0 < out["term_errors"][0] < 1.0
