"""Heads in closed form: the regression, what the engine makes of it, and a run that ends with one."""

import copy

import numpy as np
import pytest
from conftest import DATA, ELEMENTS, ethanol, random_cell, random_model, small_config, write

pytest.importorskip("lightning")
import ase.io
import backends
import torch

import mfmd
from mfmd.engine import Engine
from mfmd.structures import reading
from mfmd.structures.record import Label, Structure
from mfmd.training import batches, energies, fit
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
    head = LinearHead(32, model.heads["middle"].e0, ELEMENTS)
    head.weight.data.copy_(torch.as_tensor(rng.normal(size=head.weight.shape)))
    head.factor.copy_(torch.as_tensor(np.tril(rng.normal(size=head.factor.shape)) * 1e-3))
    head.noise.fill_(1e-6)
    model.heads["middle"] = head
    _, alone = fit.design(model, [structure(ethanol())], list(ELEMENTS), collate(model))
    head.isolated.copy_(torch.as_tensor(alone))
    return model.eval()


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
    from mfmd import evaluation
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
        model.heads["middle"] = LinearHead(32, e0, ELEMENTS)
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
        model.heads["middle"] = LinearHead(32, linear.heads["middle"].e0, ELEMENTS)
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

    before, state = errors(), copy.deepcopy(model.state_dict())
    found = fit.gauss_newton(model, "low", structures[:120], collate(model))
    after = errors()
    assert found["structures"] == 120 and 1 <= found["steps"] <= fit.STEPS
    assert after[0] < 0.2 * before[0] and after[1] < 0.3 * before[1]
    for name, value in model.state_dict().items():
        if value.dim() < 2 and not name.endswith("low.e0"):
            assert torch.equal(value, state[name]), name
    with pytest.raises(fit.FitError, match="levels.low: Gauss-Newton needs ten energies"):
        fit.gauss_newton(model, "low", structures[:3], collate(model))
    monkeypatch.setattr(fit, "MOST_GRADIENTS", 1e6)
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
