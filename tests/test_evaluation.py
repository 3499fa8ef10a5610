"""`mfmd eval`: the errors are those of the labels, and error bars are judged fairly."""

import numpy as np
import pytest
from conftest import DATA, LEVELS, ethanol, random_model, write

pytest.importorskip("lightning")
import ase.io

from mfmd import cli, evaluation
from mfmd.engine import Engine


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where reports go."""
    monkeypatch.chdir(tmp_path)


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
    assert "for elements and states that these were trained on (looked for energy_low" in capsys.readouterr().err
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


def evaluate(monkeypatch, capsys, *arguments):
    """What `mfmd eval` prints, and its sentence where it fails."""
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit:
        return capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("factor", [0.1, 0.01, 0.0])
def test_lengths_in_another_unit_are_told_with_evals_own_option(factor, model_file, tmp_path, monkeypatch, capsys):
    """Atoms that overlap: a config's key is none of eval's."""
    atoms = next(a for a in ase.io.read(DATA / "test.xyz", ":") if a.info["molecule"] == "water")
    atoms.positions *= factor
    ase.io.write(tmp_path / "small.xyz", atoms, format="extxyz")
    said = evaluate(monkeypatch, capsys, model_file, tmp_path / "small.xyz", "--energy-key", "low=energy_gfn2")
    assert "small.xyz" in said and "--length-unit" in said and "data." not in said


def labelled(path, engine, keys, molecules=("water", "water", "ethene")):
    """A file of molecules with the engine's own labels under {level: (key of the energy, key of the forces)}; ase.Atoms."""
    frames = [a for a in ase.io.read(DATA / "test.xyz", ":") if not a.pbc.any()]
    frames = [[a for a in frames if a.info["molecule"] == name][k].copy() for k, name in enumerate(molecules)]
    for a in frames:
        molecule, a.calc = a.info["molecule"], None
        a.info, a.arrays = {"molecule": molecule}, {key: a.arrays[key] for key in ("numbers", "positions")}
        for level, (energy, forces) in keys.items():
            out = engine.compute(a.positions, a.numbers, terms=[(level, 1.0)])
            a.info[energy], a.arrays[forces] = out["energy"] + 0.01, out["forces"] - 0.02
    ase.io.write(path, frames, format="extxyz")
    return frames


def errors_of(printed):
    """{(level, label): (count, MAE)} of the groups "all"."""
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if "│ all " in line]
    return {(row[1], row[2]): (int(row[4]), float(row[5])) for row in rows}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options, levels",
    [
        (["--energy-key=high=REF_energy", "--forces-key=high=REF_forces"], ("high",)),
        (["--energy-key", "REF_energy", "--forces-key", "REF_forces", "--level", "high"], ("high",)),
        (["--energy-key=high=REF_energy", "--energy-key=low=cheap", "--forces-key=high=REF_forces", "--forces-key=low=f"], ("low", "high")),
    ],
)
def test_keys_of_the_labels(model_file, tmp_path, monkeypatch, capsys, options, levels):
    """Named on the command line, for the levels they are named for and no other."""
    labelled(tmp_path / "a.xyz", Engine(model_file), {"high": ("REF_energy", "REF_forces"), "low": ("cheap", "f")})
    found = errors_of(evaluate(monkeypatch, capsys, model_file, tmp_path / "a.xyz", *options))
    assert found.keys() == {(level, kind) for level in levels for kind in ("energy", "forces")}
    for (_, kind), (count, mae) in found.items():
        assert (count, mae) == (3, pytest.approx(10.0, abs=0.02)) if kind == "energy" else (36, pytest.approx(20.0, abs=0.02))


@pytest.mark.filterwarnings("ignore")
def test_error_bars_by_gradients_are_of_gauss_newton(model_file, tmp_path, monkeypatch, capsys):
    labelled(tmp_path / "a.xyz", Engine(model_file), {"high": ("energy_high", "forces_high")})
    told = evaluate(monkeypatch, capsys, model_file, tmp_path / "a.xyz", "--error-bars", tmp_path / "config.yaml")
    assert f"--error-bars: {model_file} is as no Gauss-Newton stage has left it" in told


def test_surety():
    """Ranks, and errors with their error bars, of those structures that have the label."""
    rng = np.random.default_rng(0)
    bars = np.exp(rng.normal(size=(500, 2)))
    errors = bars * rng.normal(size=(500, 2))
    errors[:, 1] = np.where(np.arange(500) < 100, np.abs(errors[:, 1]), np.nan)
    found = evaluation.surety([("", *error, *bar) for error, bar in zip(errors, bars, strict=True)])
    assert found["energy"]["count"] == 500 and found["energy"]["coverage"] == pytest.approx(0.683, abs=0.05)
    assert found["forces"]["count"] == 100 and found["forces"]["rms"] == pytest.approx(np.sqrt(np.mean(errors[:100, 1] ** 2)))
    assert 0.3 < found["forces"]["rank"] < 0.9 and found["energy"]["rank"] > 0.3
    assert evaluation.surety([("", 0.1, np.nan, 0.2, 0.1)]) == {"energy": None, "forces": None}


@pytest.mark.filterwarnings("ignore")
def test_the_page_and_its_folder(model_file, tmp_path, monkeypatch, capsys):
    file = tmp_path / "a.xyz"
    labelled(file, Engine(model_file), {"high": ("energy_high", "forces_high")})
    assert "report: mfmd-eval/report.html" in evaluate(monkeypatch, capsys, model_file, file)
    written = (tmp_path / "mfmd-eval" / "report.html").read_text()
    assert "note: " in written and str(file) in written and "left out of low: 3 structures without a label" in written
    assert "a.xyz is a file; name a folder" in evaluate(monkeypatch, capsys, model_file, file, "-o", file)


@pytest.mark.filterwarnings("ignore")
def test_key_without_a_level(tmp_path, monkeypatch, capsys):
    """It is that of the one level there is; of levels that were trained on files of their own it says which is meant."""
    from mfmd.training import export

    frames = tmp_path / "a.xyz"
    for name, levels, config in (
        ("one", ("low",), {}),
        ("apart", ("low", "middle"), {"data": {"train": {"low": ["l.xyz"], "middle": ["m.xyz"]}}}),
    ):
        model = random_model()
        model.heads, model.delta_of = type(model.heads)({level: model.heads[level] for level in levels}), {}
        path = tmp_path / f"{name}.pt"
        export.write_model(path, model, {level: [1, 6, 7, 8] for level in levels}, {"config": config})
        labelled(frames, Engine(path), {"low": ("E", "F")})
        said = evaluate(monkeypatch, capsys, path, frames, "--energy-key=E")
        if name == "one":
            assert errors_of(said)["low", "energy"] == (3, pytest.approx(10.0, abs=0.02))
        else:
            assert "say whose key it is, such as middle=E" in said
            assert "--level: each level was trained on files of its own" in evaluate(monkeypatch, capsys, path, frames)
        assert errors_of(evaluate(monkeypatch, capsys, path, frames, "--energy-key=low=E"))["low", "energy"][0] == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "option, sentence",
    [
        ("--energy-key=best=REF_energy", "there is no level 'best' here; there are low, middle, high"),
        ("--energy-key=REF_energy", "the model has the levels low, middle, high; say whose key it is, such as high=REF_energy"),
        ("--forces-key=high=gradients", "no structure in {file} has this key"),
        ("--stress-key=high=", "the key is missing behind high="),
        ("--energy-key=high=other", "level high has the key REF_energy already"),
    ],
)
def test_keys_that_cannot_be(model_file, tmp_path, monkeypatch, capsys, option, sentence):
    file = tmp_path / "a.xyz"
    labelled(file, Engine(model_file), {"high": ("REF_energy", "REF_forces")})
    options = ["--energy-key=high=REF_energy", option] if "=high=" in option else [option]
    assert sentence.format(file=file) in evaluate(monkeypatch, capsys, model_file, file, *options)


@pytest.mark.filterwarnings("ignore")
def test_what_is_left_out_is_counted(model_file, tmp_path, monkeypatch, capsys):
    """Structures without labels of a level, and those with elements that it was not trained on."""
    file = tmp_path / "a.xyz"
    keys = {level: (f"energy_{level}", f"forces_{level}") for level in LEVELS}
    frames = labelled(file, Engine(model_file), keys, ("water", "water", "ethene", "ethene", "ammonia", "ammonia"))
    assert "left out" not in evaluate(monkeypatch, capsys, model_file, file)
    frames[0].numbers[0], frames[1].numbers[:2], frames[2].numbers[0] = 16, (17, 16), 16
    del frames[3].info["energy_low"], frames[3].arrays["forces_low"]
    ase.io.write(file, frames, format="extxyz")
    printed = evaluate(monkeypatch, capsys, model_file, file)
    strange = "2 structures with S, which it was not trained on, 1 structure with S, Cl, which it was not trained on"
    assert f"left out of low: 1 structure without a label, {strange}\n" in printed
    assert f"left out of high: {strange}\n" in printed
    assert errors_of(printed)["low", "energy"][0] == 2 and errors_of(printed)["high", "energy"][0] == 3
    for a in frames:
        a.numbers[:] = 18
    ase.io.write(file, frames[:3], format="extxyz")
    monkeypatch.setattr("sys.argv", ["mfmd", "eval", str(model_file), str(file)])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr()
    assert "left out of high: 3 structures with Ar" in told.out and "no label of the model's levels for elements" in told.err


def test_home_in_an_option(model_file, tmp_path, monkeypatch, capsys):
    """A shell leaves the ~ of --option=~/file as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in ("--output=~/out.pt", "-o~/short.pt"):
        monkeypatch.setattr("sys.argv", ["mfmd", "export", str(model_file), "--for=gromacs", option])
        cli.main()
        assert (tmp_path / option.rpartition("/")[2]).is_file()
    monkeypatch.setattr("sys.argv", ["mfmd", "export", str(model_file), "--for=openmm", "--topology=~/none.pdb", "--output=~/a.pt"])
    with pytest.raises(SystemExit):
        cli.main()
    assert str(tmp_path / "none.pdb") in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_structures_in_their_states(charged_file, tmp_path, monkeypatch, capsys):
    """Each against the engine in its state, grouped by charge; what no head has seen is left out by name, unless it is asked for."""
    engine, frames = Engine(charged_file, allow_unseen_state=True), []
    for k, (charge, multiplicity) in enumerate([(0, 1), (1, 2), (-1, 2), (0, 3), (2, 1), (0, 5)]):
        atoms = ethanol()
        atoms.rattle(0.01, seed=k)
        atoms.info = {"charge": charge, "multiplicity": multiplicity}
        out = engine.compute(atoms.positions, atoms.numbers, charge=charge, multiplicity=multiplicity, terms=[("high", 1.0)])
        atoms.info["energy_high"], atoms.arrays["forces_high"] = out["energy"] + 0.01, out["forces"]
        frames.append(atoms)
    pair = ethanol()
    pair.info, pair.arrays["fragment"] = {"fragments": [(-1, 2), (1, 2)]}, np.array([0] * 2 + [1] * 7)
    parts = [(np.arange(2), -1, 2), (np.arange(2, 9), 1, 2)]
    pair.info["energy_high"] = engine.compute(pair.positions, pair.numbers, fragments=parts, terms=[("high", 1.0)])["energy"] + 0.01
    ase.io.write(tmp_path / "a.xyz", [*frames, pair], format="extxyz")
    printed = evaluate(monkeypatch, capsys, charged_file, tmp_path / "a.xyz", "--by", "charge")
    assert errors_of(printed)["high", "energy"] == (5, pytest.approx(10.0, abs=0.02))
    assert [f" {charge} " in printed for charge in ("-1", "0", "1", "2")] == [True, True, True, False]
    for state in ("charge +0, multiplicity 5", "charge +2, multiplicity 1"):
        assert f"1 structure with {state}, which it was not trained on (--allow-unseen-state" in printed
    printed = evaluate(monkeypatch, capsys, charged_file, tmp_path / "a.xyz", "--allow-unseen-state")
    assert errors_of(printed)["high", "energy"] == (7, pytest.approx(10.0, abs=0.02)) and "not trained on" not in printed
    frames[0].info["spin"] = frames[0].info.pop("multiplicity") + 2
    ase.io.write(tmp_path / "b.xyz", frames[:1], format="extxyz")
    assert "say which (--spin), or the multiplicity" in evaluate(monkeypatch, capsys, charged_file, tmp_path / "b.xyz")
    assert "energy" in evaluate(monkeypatch, capsys, charged_file, tmp_path / "b.xyz", "--spin", "2S+1")
