"""The tools of `make soak`: that they would find what they look for."""

import dataclasses
import random

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
from soak import dynamics, kills, metamorphic


def remembering(count, memory, seed=0):
    """A series of mean 0 and variance 1 that forgets with exp(-t / memory)."""
    rng, keep, out = np.random.default_rng(seed), np.exp(-1 / memory), np.zeros(count)
    for k in range(1, count):
        out[k] = keep * out[k - 1] + np.sqrt(1 - keep**2) * rng.normal()
    return out


def test_errors_of_means_know_of_memory():
    means, errors = zip(*(dynamics.with_error(remembering(20_000, 30.0, seed)) for seed in range(12)), strict=True)
    assert np.mean(errors) == pytest.approx(np.sqrt(2 * 30 / 20_000), rel=0.2)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.6)


def canonical(run, factor=1.0, drift=0.0):
    """Samples as a thermostat at 300 K gives them, (kinetic energy, total energy, volume)."""
    free, kT = 3 * len(run.structure()) - 3, factor * dynamics.KELVIN * dynamics.ase.units.kB
    kinetic = np.random.default_rng(1).gamma(free / 2, kT, 20_000)
    return np.stack([kinetic, drift * np.arange(20_000), np.ones(20_000)], 1)


def test_what_physics_forbids_is_found():
    nvt, nve = (dynamics.RUNS[f"{of}, OpenMM, native force"] for of in ("ethanol, NVT", "64 waters, NVE"))
    assert dynamics.figures(nvt, canonical(nvt))["temperature"][0] == pytest.approx(300, abs=2)
    assert abs(dynamics.figures(nve, canonical(nve))["drift"]) < 1e-9
    for run, samples in [
        (nvt, canonical(nvt, 1.05)), (nve, canonical(nve, drift=3e-4)), (nvt, canonical(nvt) * [[np.nan, 1, 1]]),
        (nvt, np.stack([np.full(20_000, canonical(nvt)[:, 0].mean()), np.zeros(20_000), np.ones(20_000)], 1)),
    ]:  # fmt: skip
        with pytest.raises(AssertionError):
            dynamics.figures(run, samples)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Of 40 atoms, in single precision."""
    path, rng = metamorphic.model_file(tmp_path_factory.mktemp("models"), "two layers"), np.random.default_rng(0)
    pbc = np.array([True, True, False])
    positions, cell = metamorphic.placed(rng, 40, 0.05, 0.8, pbc)
    given = metamorphic.Given(positions, rng.choice([1, 6, 8], 40), cell, pbc)
    return metamorphic.Case(path, "high", given, rng, "single", "table", metamorphic._engine.instruction_set())


def test_a_force_that_is_off_is_found(case, monkeypatch):
    assert metamorphic.differences(dataclasses.replace(case))
    compute = metamorphic.Engine.compute_batch

    def wrong(engine, structures, **more):
        found = compute(engine, structures, **more)
        for one, (positions, *_) in zip(found, structures, strict=True):
            if one.get("forces") is not None and len(positions) > 2:
                one["forces"][2, 0] += 1e-2 * np.abs(one["forces"]).max()
        return found

    monkeypatch.setattr(metamorphic.Engine, "compute_batch", wrong)
    with pytest.raises(AssertionError, match="turned: off by"):
        metamorphic.differences(dataclasses.replace(case))


def test_a_command_is_killed_and_goes_on(tmp_path, monkeypatch):
    work = kills.Work(tmp_path, "import", "matgl_v1_own")
    rng = random.Random(0)
    assert sum(work.killed(rng) for _ in range(4))
    work.wanted = ({},)
    with pytest.raises(AssertionError, match="another result"):
        work.killed(rng)


def test_half_a_file_is_found(tmp_path):
    (tmp_path / "plan.json").write_text('{"levels": ')
    with pytest.raises(AssertionError, match="plan.json has 11 bytes, and is not whole"):
        kills.whole(tmp_path)
    (tmp_path / "plan.json").rename(tmp_path / "plan.json.partial")
    kills.whole(tmp_path)
