"""The model that comes along: what its card says, and that its name stands for it wherever a model file may."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, ethanol

import mfmd
from mfmd.engine import ModelFileError, load_model, model_path

CARD = model_path("mfmd:chno").with_suffix(".md")


def test_the_cards_errors_are_those_of_the_test_set():
    """Recomputed here by the engine, from the labels; meV and meV/Å, to the last digit that the card gives."""
    from mfmd import evaluation
    from mfmd.structures.reading import read_file
    from mfmd.training import plan

    pytest.importorskip("torch")
    config = plan.load(ROOT / "examples/chno.yaml")
    structures = list(read_file(ROOT / "examples/data/test.xyz", config.data, config.levels))
    points, _ = evaluation.compare(load_model("mfmd:chno"), structures, "molecule")
    errors = evaluation.errors(points)
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\d+) \| ([\d.]+) \|", CARD.read_text(), re.M)
    assert {(level, kind) for level, kind, *_ in rows} == {(level, kind) for level, group, kind in errors if kind in ("energy", "forces")}
    for level, kind, count, mae in rows:
        row = errors[level, "all", kind]
        assert row["count"] == int(count) and 1e3 * row["mae"] == pytest.approx(float(mae), abs=0.051)


def test_what_it_is():
    header = json.loads(load_model("mfmd:chno").metadata)
    assert [(level["name"], level["delta_of"], level["elements"]) for level in header["levels"]] == [
        ("gfn2", None, [1, 6, 7, 8]), ("dft", "gfn2", [1, 6, 7, 8]), ("cctz", "dft", [1, 6, 7, 8]),
    ]  # fmt: skip
    assert "domain" in header and model_path("mfmd:chno").stat().st_size < 1.5e6
    assert load_model("mfmd:chno").sha256[:16] in CARD.read_text()


def test_its_name_in_every_place(tmp_path):
    atoms = ethanol()
    atoms.calc = mfmd.Calculator("mfmd:chno", report_heads=True)
    assert np.abs(atoms.get_forces()).max() < 2.0 and set(atoms.calc.heads) == {"gfn2", "dft", "cctz"}
    with pytest.raises(ModelFileError, match=r"mfmd:water: no model of this name comes along; there are mfmd:chno"):
        mfmd.Calculator("mfmd:water")


def test_training_goes_on_from_it(tmp_path):
    pytest.importorskip("lightning")
    from mfmd.config import ConfigError
    from mfmd.training import plan

    text = "out: {out}\ndata: {{train: a.xyz, val: 0.1}}\nlevels: {{gfn2: {{from: gfn2}}, mine: {{}}}}\nbackbone: {{checkpoint: '{name}'}}\nstrategy: finetune\n"
    path = tmp_path / "c.yaml"
    path.write_text(text.format(out=tmp_path, name="mfmd:chno"))
    assert "mfmd:chno" in "\n".join(plan.describe(plan.load(path)))
    path.write_text(text.format(out=tmp_path, name="mfmd:water"))
    with pytest.raises(ConfigError, match="mfmd:water: no model of this name comes along"):
        plan.load(path)
