"""The tools of `make soak`: that they would find what they look for."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import random
import time

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
from soak import dynamics, kills, metamorphic, run

from mfmd.checking.numbers import Check


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
    ramp, jump = np.linspace(0.7, 1.3, 20_000), np.where(np.arange(20_000) < 14_000, 1.0, 1.6)
    for one, samples in [
        *((nvt, canonical(nvt) * by[:, None]) for by in (ramp / ramp.mean(), jump)),
        (nvt, canonical(nvt, 1.05)), (nve, canonical(nve, drift=3e-4)), (nvt, canonical(nvt) * [[np.nan, 1, 1]]),
        (nvt, np.stack([np.full(20_000, canonical(nvt)[:, 0].mean()), np.zeros(20_000), np.ones(20_000)], 1)),
    ]:  # fmt: skip
        with pytest.raises(AssertionError):
            dynamics.figures(one, samples)


class Said(dynamics.Run):
    """A run whose samples are given."""

    def __init__(self, *of, samples):
        super().__init__(*of)
        self.samples = samples

    def block(self, folder, picoseconds, number):
        new, self.samples = np.split(self.samples, [round(picoseconds / dynamics.EVERY)])
        return new


def test_short_runs_are_judged_at_their_end(tmp_path):
    calm, drifting = (canonical(dynamics.RUNS["64 waters, NVE, ASE"], drift=drift)[:200] for drift in (0.0, 1e-2))
    first, later = (Said(dynamics.waters, "nve", 10.0, samples=samples) for samples in (calm, drifting))
    assert dynamics.gone_on(first, tmp_path, time.monotonic() + 60)["latest"]["drift"] == pytest.approx(0, abs=1e-9)
    assert dynamics.gone_on(first, tmp_path, time.monotonic() + 60)["total"] == 10.0  # which its files say
    with pytest.raises(AssertionError, match="the total energy drifts"):
        dynamics.gone_on(later, tmp_path / "later", time.monotonic() + 60)
    calm[100, 2] = np.inf
    with pytest.raises(AssertionError, match="is no number"):
        dynamics.gone_on(Said(dynamics.waters, "nve", 10.0, samples=calm), tmp_path / "infinite", time.monotonic() + 60)


def test_turns_add_up():
    begun = {"count": 0, "seconds": 0, "turns": 1, "found": 0}
    once = run.added(begun, {"count": 5, "sum": {"a": 5}, "most": {"turned": 1.0}}, 10.0)
    twice = run.added(once, {"count": 2, "sum": {"a": 1, "b": 1}, "most": {"turned": 0.5, "threads": 0.0}}, 10.0)
    assert (
        twice["count"] == 7
        and twice["sum"] == {"a": 6, "b": 1}
        and twice["most"] == {"turned": 1.0, "threads": 0.0}
        and twice["seconds"] == 20
    )
    assert (
        run.added({**begun, "count": 30.0}, {"total": 20.0, "latest": {"drift": 0.1}}, 1.0).items() >= {"count": 20.0, "drift": 0.1}.items()
    )


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


def test_a_host_that_is_there_is_not_left_out(case, monkeypatch):
    given = [metamorphic.record(case.level, case.given)]
    for check, fine in (
        (Check("ASE", {"energy": 0.0}, {"energy": 0.0}, 1), True), (Check("ASE", {"energy": 1.0}, {"energy": 0.0}, 1), False), (Check("ASE", left_out=metamorphic.hosts.NONE), True),
        (Check("ASE", left_out="it did not begin"), False), (Check("ASE", fails="it ended"), False),
    ):  # fmt: skip
        monkeypatch.setattr(metamorphic.hosts, "checks", lambda numbers, check=check: [check])
        with contextlib.nullcontext() if fine else pytest.raises(AssertionError):
            assert metamorphic.hosts_agree(case.path, given) == ({"ASE": 1} if check.structures else {})


def test_a_command_is_killed_and_goes_on(tmp_path, monkeypatch):
    for name, value in run.VARIABLES.items():
        monkeypatch.setenv(name, value)
    # In a process of its own, as in run.py: a fork of one in which OpenMP has begun threads waits for them for ever.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(killed_and_gone_on, tmp_path).result()


def killed_and_gone_on(folder):
    work = kills.Work(folder, "import", "matgl_v1_own")
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
    for name, text in (("errors.csv", "level,energy\ngfn2,0.1"), ("report.html", "<html></html"), ("model.unheard-of", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(AssertionError, match=f"{name} has .* is not whole"):
            kills.whole(tmp_path)
        (tmp_path / name).unlink()
