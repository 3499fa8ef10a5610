"""Bad input: each kind gives one clear sentence and exit code 1 (or a typed error in Python); none a silent number."""

import re
import shutil
import sys
import zipfile

import ase.io
import backends
import numpy as np
import pytest
from conftest import DATA, ELEMENTS, changed, ethanol, random_model

import mfmd
from mfmd import cli
from mfmd.engine import Engine, load_model

HARTREE, KCAL = 1 / 27.211386, 23.0605


def command(main, arguments, monkeypatch, capsys):
    """What a command prints to standard error; asserts that it is one sentence and that the exit code is 1."""
    monkeypatch.setattr(sys, "argv", ["mfmd", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1, error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


# ------------------------------------------------------------------------------------------------ training


def scale(factor, atoms=True):
    def change(frames, config):
        for a in frames:
            for key in [k for k in a.info if k.startswith("energy_")]:
                a.info[key] *= factor
        if not atoms:
            config["data"].pop("atoms")

    return change


def edit(path, value):
    """Set (or, for None, leave out) one key of the config."""

    def change(_, config):
        section = config
        *parents, last = path.split(".")
        for part in parents:
            section = section.setdefault(part, {})
        section[last] = value

    return change


def label(key, value, frame=3):
    def change(frames, _):
        frames[frame].info[key] = value

    return change


def nan_force(frames, _):
    frames[2].arrays["forces_gfn2"][1, 2] = np.nan


def nan_position(frames, _):
    frames[5].positions[0, 0] = np.inf


def no_atoms(_, config):
    config["levels"]["gfn2"]["e0"] = "atoms"
    config["data"].pop("atoms")


def coincide(frames, _):
    frames[4].positions[1] = frames[4].positions[2] + 0.05


def flatten(frames, _):
    frames[4].set_cell([[5, 0, 0], [0, 5, 0], [5, 5, 0]])
    frames[4].pbc = True


TRAINING = {
    "coincident atoms": (coincide, "frame 4: atoms 1 and 2 are 0.09 Å apart"),
    "flat cell": (flatten, "frame 4: the cell is flat"),
    "infinite setting": (edit("train.clip", float("inf")), "train.clip: found inf"),
    "a name torch keeps": (edit("levels", {"type": {"energy": "energy_gfn2"}}), "levels.type: torch keeps this name"),
    "never validated": (edit("train.validate_every", 500), "train.validate_every: 500 is more than train.epochs"),
    "charge that is a word": (label("charge", "neutral"), "frame 3: charge is 'neutral', which is not a number"),
    "unknown key": (edit("train.lerning_rate", 1e-3), "train.lerning_rate: unknown key; did you mean learning_rate"),
    "unknown section": (edit("modle", {}), "modle: unknown key"),
    "unknown key of a level": (edit("levels.gfn2.weight", 1), "levels.gfn2.weight: unknown key.*energy_weight"),
    "not a number": (edit("train.epochs", "many"), "train.epochs: found 'many'; input should be a valid integer"),
    "channels not a multiple of 16": (edit("backbone.channels", 20), "backbone.channels: found 20; .*multiple of 16"),
    "rank 3": (edit("backbone.rank", 3), "backbone.rank: found 3; .*less than or equal to 2"),
    "no training data named": (edit("data", {}), "data.train: this key is required"),
    "delta of an unknown level": (edit("levels.dft.delta_of", "b3lyp"), "levels.dft.delta_of: 'b3lyp' is not a level"),
    "delta of a later level": (edit("levels.gfn2.delta_of", "dft"), "levels.gfn2.delta_of: 'dft' is not a level listed before"),
    "monitor of an unknown level": (edit("train.monitor", "ccsd.energy"), "train.monitor: 'ccsd.energy' is not one of"),
    "monitor without a label": (edit("train.monitor", "gfn2.stress"), "train.monitor: gfn2.stress has no label"),
    "level name with a dot": (edit("levels", {"a.b": {}}), "levels.a.b: found 'a.b'"),
    "unit that is none": (edit("data.energy_unit", "Rydberg"), "data.energy_unit: found 'Rydberg'"),
    "level without labels": (edit("levels.mp2", {}), "levels.mp2: no training structure .* energy_mp2"),
    "data file missing": (edit("data.train", "nowhere.xyz"), "nowhere.xyz: no such file"),
    "atoms file missing": (edit("data.atoms", "nowhere.json"), "nowhere.json: no such file"),
    "E0 from atoms that are not given": (no_atoms, "levels.gfn2.e0 is atoms, but .* for H, O"),
    "NaN energy": (label("energy_gfn2", np.nan), "frame 3: energy of level gfn2 is not finite"),
    "NaN force": (nan_force, "frame 2: forces of level gfn2 is not finite"),
    "infinite position": (nan_position, "frame 5: a position is not finite"),
    "label that is a word": (label("energy_dft", "failed"), "frame 3: a label of level dft is not a number"),
    "Hartree taken for eV": (scale(HARTREE), "levels.gfn2: .* energies in Hartree\\? then levels.gfn2.energy_unit: Hartree"),
    "kcal/mol taken for eV": (scale(KCAL), "energies in kcal/mol\\? then levels.gfn2.energy_unit: kcal/mol"),
    "Hartree, no atoms given": (scale(HARTREE, atoms=False), "energies in Hartree\\?"),
    "kcal/mol, no atoms given": (scale(KCAL, atoms=False), "energies in kcal/mol\\?"),
    "charges beyond all bounds": (
        lambda frames, _: frames[3].set_initial_charges([1e15, 0, 0]),
        "frame 3: the charges of the atoms add up to 1e[+]15, which no molecule has",
    ),
    "the home of nobody": (
        edit("data.atoms", "~no-such-user/atoms.json"),
        "data.atoms: found '~no-such-user/atoms.json'; there is no such user",
    ),
    "a charge that is a word": (label("charge", "cation"), "frame 3: charge is 'cation', which is not a number; correct it, or remove"),
    "a multiplicity that cannot be": (label("multiplicity", 2), "frame 3: multiplicity is 2, which 10 electrons cannot have"),
    "a spin of two meanings": (label("spin", 2), "frame 3: spin is 2, which may be 2S or 2S \\+ 1; say which .data.spin"),
    "a meaning of spin that is none": (edit("data.spin", "S"), "data.spin: found 'S'"),
    "unknown split": (edit("data.split_key", "molecule"), "info key 'molecule' is 'water'; it must be train, val or test"),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":400") if a.info["molecule"] == "water"]

    def start(change, *overrides):
        import yaml

        config = {
            "out": str(tmp_path / "run"),
            "data": {"train": str(tmp_path / "water.xyz"), "atoms": str(DATA / "atoms.json")},
            "levels": {"gfn2": {}, "dft": {}},
        }
        change(frames, config)
        if config.get("data", {}).get("train") == "TRAIN":
            config["data"]["train"] = str(tmp_path / "water.xyz")
        ase.io.write(tmp_path / "water.xyz", frames, format="extxyz")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return command(cli.train, [tmp_path / "config.yaml", *overrides], monkeypatch, capsys)

    return start


@pytest.mark.parametrize("kind", TRAINING)
def test_training_refuses(kind, run):
    change, message = TRAINING[kind]
    assert re.search(message, run(change))


def test_training_refuses_overrides_and_files(run, tmp_path, monkeypatch, capsys):
    def nothing(*_):
        pass

    assert "is not an override" in run(nothing, "train.epochs")
    assert run(nothing, "train.epochs=0").count("train.epochs: found 0") == 1  # though every stage has it
    assert run(nothing, "train.epoch=5").count("unknown key; did you mean epochs?") == 1
    assert "data.val: found 0" in run(nothing, "data.val=0")
    assert "backbone.size: found 'huge'" in run(nothing, "backbone=huge") and "required" not in run(nothing, "backbone=huge")
    assert "no such config file" in command(cli.train, [tmp_path / "none.yaml"], monkeypatch, capsys)
    assert "no such config file" in command(cli.main, ["label", tmp_path / "none.yaml", "--retry", "workers=1"], monkeypatch, capsys)
    demo = DATA.parent / "demo.yaml"
    assert "no stage 'top' in the config; there are gfn2" in command(cli.train, [demo, "stages.top.train.epochs=7"], monkeypatch, capsys)
    monkeypatch.setattr(sys, "argv", ["mfmd-train", str(demo), "--show-plan", "stages.dft.train.epochs=7"])
    cli.train()
    assert capsys.readouterr().out.count(" 7 epochs") == 1
    (tmp_path / "bad.yaml").write_text("out: [unclosed\n")
    assert "not a readable YAML config" in command(cli.train, [tmp_path / "bad.yaml"], monkeypatch, capsys)
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    assert "a config is a mapping" in command(cli.train, [tmp_path / "list.yaml"], monkeypatch, capsys)
    for content, message in (
        ("", "holds no structure"),
        ("3\nbroken\nO 0 0", "a frame is to have 3 atoms, and the file ends 2 lines later"),
        ("two\n\n", "cannot be read"),
    ):
        (tmp_path / "broken.xyz").write_text(content)
        assert message in run(nothing, f"data.train={tmp_path}/broken.xyz")
    (tmp_path / "atoms.json").write_text('{"H": -13.6}')
    assert "not a table of isolated atoms" in run(nothing, f"data.atoms={tmp_path}/atoms.json")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "plan.json").write_text("{}")
    assert "holds a run already" in run(nothing)
    for damaged in ("{}", "[" * 3000, "[]", '{"data": ', '{"data": 1, "levels": {}, "backbone": {}, "stages": [], "seed": 0}'):
        (tmp_path / "run" / "plan.json").write_text(damaged)
        assert "plan.json: what the run began with is damaged" in run(nothing, "resume=true")


# ------------------------------------------------------------------------------------------------ model files


DAMAGE = {
    "missing": (lambda p, t: t, "no such model file"),
    "a folder": (lambda p, t: t.mkdir() or t, "cannot be read|no such model file|not a model file"),
    "no archive": (lambda p, t: t.write_text("weights") and t, "not a model file"),
    "truncated": (lambda p, t: t.write_bytes(p.read_bytes()[:-5000]) and t, "truncated|damaged"),
    "cut in half": (lambda p, t: t.write_bytes(p.read_bytes()[: p.stat().st_size // 2]) and t, "truncated"),
    "another archive": (lambda p, t: zipfile.ZipFile(t, "w").writestr("hello", "world") or t, "no entry|no mfmd model"),
    "a newer format": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(format=5)),
        "model format 5, and this mfmd reads up to 4; install a newer",
    ),
    "an unknown head": (lambda p, t: backends.rebuilt(p, t, header=lambda h: h["levels"][0].update(kind="tree")), "head of kind tree"),
    **{
        f"a header with {name}": (lambda p, t, change=change: backends.rebuilt(p, t, header=change), words)
        for name, (change, words) in {
            "fewer layers": (lambda h: h["backbone"].update(layers=1), r"backbone.layers.1.\S+ has no place in what its header describes"),
            "another backbone": (lambda h: h["backbone"].update(kind="painn"), "backbone is a painn, which this mfmd does not know"),
            "other units": (lambda h: h["units"].update(energy="kcal/mol"), "its units are not eV and Å"),
            "a key of no format": (lambda h: h["backbone"].update(spin=1), "`backbone` has a `spin`, which this mfmd does not know"),
            "a key of a newer format": (lambda h: h["backbone"].update(zbl=1.0), "`zbl`, which this mfmd does not know in model format 1"),
            "a level twice": (lambda h: h["levels"].append(h["levels"][0]), "two levels of the name low"),
            "no element": (lambda h: h["levels"][0].update(elements=[]), "level low lists no element"),
            "an element twice": (lambda h: h["levels"][0].update(elements=[1, 1]), "or one twice"),
            "a fraction of an element": (lambda h: h["levels"][0].update(elements=[1.5]), "level low lists an element that is none"),
        }.items()
    },
    "an unknown message": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(format=2) or h["backbone"].update(message="both")),
        "`message` is both, which this mfmd does not know; install a newer one",
    ),
    "a repulsion that reaches too far": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(format=2) or h["backbone"].update(zbl=6.0)),
        "`zbl` is 6.0+ Å, and it can be no more than the cutoff",
    ),
    "no level": (lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(levels=[])), "no level"),
    "channels that do not fit": (lambda p, t: backends.rebuilt(p, t, header=lambda h: h["backbone"].update(channels=48)), "has shape"),
    "a head too wide": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h["levels"][0].update(hidden=225)),
        "`hidden` .* from 1 to 224",
    ),
    "an ensemble of uneven members": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h["levels"][0].update(members=3)),
        "level low has a hidden layer that its members cannot share evenly",
    ),
    "a cutoff that cannot be": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h["backbone"].update(cutoff=82.5)),
        "`cutoff` of 82.5.* it is from 0.5 to 20 Å",
    ),
    "a header key missing": (lambda p, t: backends.rebuilt(p, t, header=lambda h: h["backbone"].pop("cutoff")), "no `cutoff`"),
    "a tensor missing": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.without("backbone.layers.0.mixing_in")),
        "backbone.layers.0.mixing_in is missing",
    ),
    "a tensor of another shape": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.reshaped("backbone.embedding.norm.weight")),
        "has shape \\(1, 32\\) where its header asks for \\(32\\)",
    ),
    "half a surrogate pair": (lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(made="\ud800")), "its JSON header is damaged"),
    "the second half of one": (lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(made="\ude00")), "its JSON header is damaged"),
    "bytes that are no UTF-8": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h.update(made="QQ"), raw=(b"QQ", b"\xff\xfe")),
        "its JSON header is damaged",
    ),
    "members that are not an ensemble's": (
        lambda p, t: backends.rebuilt(p, t, header=lambda h: h["levels"][0].update(kind="linear", members=2)),
        "level low has members, and a head of kind linear is no ensemble",
    ),
    "a place that no file has": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.replaced("heads.low.e0", shape=[0], data_offsets=[1e300, 1e300])),
        "heads.low.e0 has extents that do not fit its shape",
    ),
    "a place in words": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.replaced("heads.low.e0", shape=[0], data_offsets=["0", "0"])),
        "heads.low.e0 has extents that do not fit its shape",
    ),
    "radial functions that no table follows": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.filled("backbone.radial.betas", 1e7)),
        "its radial functions are too steep to tabulate",
    ),
    "radial functions beyond every number": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.filled("backbone.layers.0.radial.2.bias", 1.7e308)),
        "its radial functions are not finite",
    ),
    "a weight that is not finite": (
        lambda p, t: backends.rebuilt(p, t, tensors=backends.poisoned("backbone.readout.linear.bias")),
        "backbone.readout.linear.bias holds a non-finite number",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_model_files(kind, model_file, tmp_path, monkeypatch, capsys):
    make, message = DAMAGE[kind]
    path = make(model_file, tmp_path / "bad.pt")
    assert re.search(message, command(cli.main, ["info", path], monkeypatch, capsys))


def test_a_weight_beyond_single_precision_is_none(model_file, tmp_path):
    path = backends.rebuilt(model_file, tmp_path / "large.pt", tensors=backends.filled("heads.low.out.bias", 1e39))
    with pytest.raises(mfmd.Error, match="a weight of the model is too large for single precision; use double"):
        Engine(path)
    assert Engine(path, "double").levels


def test_renamed_model_file_is_read(model_file, tmp_path):
    assert load_model(shutil.copy(model_file, tmp_path / "other name.pt")).sha256 == load_model(model_file).sha256


def test_every_flipped_bit_is_found_or_harmless(model_file, tmp_path):
    """A flip inside the weights' entry is refused; one elsewhere in the archive leaves the energy bitwise what it was."""
    atoms, content = ethanol(), model_file.read_bytes()
    wanted = Engine(model_file).compute(atoms.positions, atoms.numbers, terms=[("high", 1.0)])["energy"]
    rng, refused = np.random.default_rng(0), 0
    for position in [*rng.integers(0, len(content), 150), *range(len(content) - 120, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        (tmp_path / "flipped.pt").write_bytes(flipped)
        try:
            got = Engine(tmp_path / "flipped.pt").compute(atoms.positions, atoms.numbers, terms=[("high", 1.0)])["energy"]
        except mfmd.Error:
            refused += 1
        else:
            assert got == wanted, position
    assert refused > 30


def test_archive_is_one_source_of_weights(model_file):
    """The TorchScript state and the extra file hold the same bytes, and the hash says so."""
    torch = pytest.importorskip("torch")
    from mfmd.engine import load_torch_host

    load_torch_host()
    extra = {"mfmd.safetensors": ""}
    module = torch.jit.load(str(model_file), _extra_files=extra)
    model = load_model(model_file)
    assert module.engine.sha256() == model.sha256 == load_model(extra["mfmd.safetensors"]).sha256


def test_export_refuses_tables_that_err_too_much(tmp_path):
    """A model a million times as steep as it should be."""
    pytest.importorskip("torch")
    from mfmd.structures.record import Structure
    from mfmd.training import export

    model, atoms = random_model(), ethanol()
    structures = [Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, {}, "ethanol")]
    elements = {level: list(ELEMENTS) for level in model.heads}
    export.write_model(tmp_path / "model.pt", model, elements, {}, structures)
    (tmp_path / "model.pt").unlink()
    for head in model.heads.values():
        head.scale *= 1e6
    with pytest.raises(export.ExportError, match="radial tables err by .* is allowed; .* train with"):
        export.write_model(tmp_path / "model.pt", model, elements, {}, structures)
    assert not (tmp_path / "model.pt").exists()


# ------------------------------------------------------------------------------------------------ at run time


RUNTIME = {
    "untrained element": (dict(numbers=26), "atom 0 is Fe, and head middle was trained on H C N O only"),
    "no element": (dict(numbers=0), "atom 0 is element 0"),
    "overlapping atoms": (dict(positions=ethanol().positions[1] + 0.1), "atoms 0 and 1 overlap"),
    "position not finite": (dict(positions=np.nan), "position of atom 0 is not finite"),
    "cell of no height": (dict(cell=np.eye(3) * 1e-3), "the cell is flat"),
    "flat cell": (dict(cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]]), "the cell is flat"),
    "cell in another unit": (dict(cell=np.eye(3) * 0.2), "the cell is flat, or not in Å: [0-9.e+]+ cells like it are within"),
    "charged": (
        dict(info={"charge": -1}),
        "it has charge -1, multiplicity 2, and head [a-z]+ was trained on neutral structures of the lowest",
    ),
    "charged by its atoms": (dict(charges=[1] + [0] * 8), "it has charge \\+1"),
    "a triplet": (dict(info={"multiplicity": 3}), "multiplicity 3, and head"),
    "a doublet that cannot be": (dict(info={"multiplicity": 2}), "multiplicity is 2, which 26 electrons cannot have"),
    "magnetic": (dict(moments=[2] + [0] * 8), "multiplicity 3, and head"),
    "a charge that its atoms contradict": (dict(info={"charge": 1}, charges=[-1] + [0] * 8), "correct one of them"),
}


@pytest.mark.parametrize("kind", RUNTIME)
def test_calculator_refuses(kind, model_file):
    changes, message = RUNTIME[kind]
    atoms = changed(**changes)
    atoms.calc = mfmd.Calculator(model_file)
    with pytest.raises(mfmd.Error, match=message):
        atoms.get_potential_energy()


def test_atoms_in_another_unit_are_refused_before_memory_ends(model_file):
    """In metres, say: all atoms are where one is."""
    some = np.random.default_rng(0).uniform(-1, 1, (25_000, 3))
    with pytest.raises(mfmd.Error, match="atom [0-9]+ has more than 20000 neighbours; are positions and cell in Å"):
        Engine(model_file).compute(some, np.ones(len(some), int), terms=[("high", 1.0)])
    crowd = np.random.default_rng(0).uniform(0, 0.5, (1500, 3))
    with pytest.raises(mfmd.Error, match="there may be [0-9]+ atoms near one; are positions and cell in Å"):
        Engine(model_file).compute(crowd, np.ones(1500, int), 0.5 * np.eye(3), [True] * 3, terms=[("high", 1.0)])


def test_options_are_checked(model_file):
    for options, message in (
        (dict(head="ccsd"), "no head `ccsd`; it has low, middle, high"),
        (dict(precision="half"), "precision is 'half'"),
        (dict(device="gpu"), "device is 'gpu'"),
        (dict(device="cuda:99"), "CUDA"),
        (dict(threads=-1), "threads must be"),
    ):
        with pytest.raises(mfmd.Error, match=message):
            mfmd.Calculator(model_file, **options)
    with pytest.raises(mfmd.Error, match="radial is 'spline'"):
        Engine(model_file, radial="spline")
    with pytest.raises(mfmd.Error, match="no cell"):
        Engine(model_file).compute(np.zeros((1, 3)), [1], pbc=(True, True, True), terms=[("low", 1.0)])
    with pytest.raises(mfmd.Error, match="one atomic number"):
        Engine(model_file).compute(np.zeros((2, 3)), [1], terms=[("low", 1.0)])
    with pytest.raises(mfmd.Error, match="weight"):
        Engine(model_file).compute(np.zeros((1, 3)), [1], terms=[("low", np.inf)])


def test_openmm_refuses(model_file):
    pytest.importorskip("openmm")
    topology = backends.topology(changed(numbers=26))
    with pytest.raises(mfmd.Error, match="no head `ccsd`"):
        mfmd.openmm.create_force(model_file, topology, head="ccsd", host="python")
    with pytest.raises(mfmd.Error, match="threads is 0; it must be at least 1"):
        mfmd.openmm.create_force(model_file, topology, threads=0)
