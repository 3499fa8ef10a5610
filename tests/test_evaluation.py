"""`mfmd eval`: the errors are those of the labels, and error bars are judged fairly."""

import numpy as np
import pytest
from conftest import DATA, LEVELS, random_model, write

pytest.importorskip("lightning")
import ase.io

from mfmd import cli, evaluation
from mfmd.engine import Engine


def test_errors_per_level_group_and_label(tmp_path, monkeypatch, capsys):
    """Labels off by known amounts have known errors, by molecule and together."""
    path = write(random_model(), tmp_path / "model.pt")
    engine, frames = Engine(path), ase.io.read(DATA / "test.xyz", ":")
    water = [a for a in frames if a.info["molecule"] == "water"][:4]
    ethene = [a for a in frames if a.info["molecule"] == "ethene"][:2]
    for a in water + ethene:
        shift = 0.01 if a in water else -0.04
        molecule = a.info["molecule"]
        a.info, a.calc = {"molecule": molecule}, None
        for level in LEVELS:
            out = engine.compute(a.positions, a.numbers, terms=[(level, 1.0)])
            a.info[f"energy_{level}"] = out["energy"] + shift
            a.arrays[f"forces_{level}"] = out["forces"] + 2 * shift
    ase.io.write(tmp_path / "labels.xyz", water + ethene, format="extxyz")
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", str(path), str(tmp_path / "labels.xyz")])
    cli.main()
    printed = capsys.readouterr().out
    for level in LEVELS:
        for kind, unit in (("energy", 10.0), ("forces", 20.0)):
            rows = {
                line.split("│")[3].strip(): line.split("│") for line in printed.splitlines() if f" {level} " in line and f" {kind} " in line
            }
            assert float(rows["water"][5]) == pytest.approx(unit, abs=0.02) and float(rows["ethene"][5]) == pytest.approx(
                4 * unit, abs=0.02
            )
            count = 4 if kind == "energy" else 4 * 9
            other = 2 if kind == "energy" else 2 * 18
            assert float(rows["all"][5]) == pytest.approx((count + 4 * other) / (count + other) * unit, abs=0.02)
    ase.io.write(
        tmp_path / "bare.xyz", [a[:] for a in ase.io.read(DATA / "test.xyz", ":2")], format="extxyz", columns=["symbols", "positions"]
    )
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", str(path), str(tmp_path / "bare.xyz")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "for elements that these were trained on (looked for energy_low" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", str(path), str(tmp_path / "labels.xyz"), "--energy-unit", "Hartree"])
    with pytest.warns(UserWarning, match="energies of level low are 27.2 times the model's; --energy-unit is Hartree"):
        cli.main()


def test_calibration():
    rng = np.random.default_rng(0)
    bar = rng.uniform(0.1, 2.0, 20000)
    right = evaluation.calibration(bar * rng.normal(size=20000), bar)
    assert right["coverage"] == pytest.approx(0.683, abs=0.01) and right["gain"] > 0.1
    small = evaluation.calibration(bar * rng.normal(size=20000), 0.3 * bar)
    assert small["coverage"] < 0.3 and small["gain"] < 0
    constant = evaluation.calibration(rng.normal(size=20000), np.ones(20000))
    assert constant["gain"] == pytest.approx(0, abs=1e-3)


def test_labels_that_are_none_are_questioned(model_file, tmp_path, monkeypatch, capsys):
    """`mfmd eval` has the care of training: gradients, and forces in another unit than the model's."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":400") if a.info["molecule"] == "water"][:60]
    for factor, words in ((-1.0, "forces_sign: gradient"), (23.06, "kcal/mol/Å\\?")):
        for a in frames:
            a.info["energy_low"], a.arrays["forces_low"] = a.info["energy_gfn2"], factor * a.arrays["forces_gfn2"]
        ase.io.write(tmp_path / "labels.xyz", frames, format="extxyz")
        monkeypatch.setattr("sys.argv", ["mfmd", "eval", str(model_file), str(tmp_path / "labels.xyz")])
        with pytest.warns(UserWarning, match=f"levels.low: .*{words}"):
            cli.main()
    capsys.readouterr()
    plain = [a[:] for a in frames]
    for a, b in zip(frames, plain, strict=True):
        b.info = {"E": a.info["energy_gfn2"]}
    ase.io.write(tmp_path / "plain.xyz", plain, format="extxyz")
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", str(model_file), str(tmp_path / "plain.xyz"), "--level", "low"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "no label of the model's levels" in capsys.readouterr().err
