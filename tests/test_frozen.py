"""Model files of every format version there has been: what they computed when they were written, they compute now."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import need

import mfmd
from mfmd.engine import Engine, load_model

FOLDER = Path(__file__).parent / "frozen"
FILES = sorted(FOLDER.glob("*.pt"))
FORMATS = {1, 2, 3, 4}  # that there have been


def frames(path):
    return json.loads(path.with_suffix(".json").read_text()).values()


def given(frame):
    return np.array(frame["positions"]), frame["numbers"], np.array(frame["cell"]), frame["pbc"]


def state(frame):
    return {key: frame[key] for key in ("charge", "multiplicity") if key in frame}


def test_every_format_and_kind_of_head_is_there():
    headers = [json.loads(load_model(path).metadata) for path in FILES]
    assert {header["format"] for header in headers} == FORMATS
    levels = [level for header in headers for level in header["levels"]]
    assert {level["kind"] for level in levels} == {"mlp", "linear", "gated"}
    assert any(level.get("members", 1) > 1 for level in levels) and any(level["delta_of"] for level in levels)
    assert {header["backbone"]["rank"] for header in headers} == {0, 1, 2}


@pytest.mark.parametrize("way", ["exact", "table", "table-cuda"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_engine_computes_what_was_computed(path, way):
    radial, _, device = way.partition("-")
    engine = Engine(path, "double", need(device or "cpu"), radial=radial)
    bound = 1e-9 if radial == "exact" else 1e-5
    for frame in frames(path):
        for level, wanted in frame["levels"].items():
            got = engine.compute(*given(frame), terms=[(level, 1.0)], virial=True, error_bars=True, **state(frame))
            assert got["energy"] == pytest.approx(wanted["energy"], abs=bound * len(frame["numbers"]))
            np.testing.assert_allclose(got["forces"], wanted["forces"], rtol=0, atol=bound)
            if "virial" in wanted:
                np.testing.assert_allclose(got["virial"], wanted["virial"], rtol=0, atol=10 * bound)
            if "error_bar" in wanted:
                assert got["term_errors"][0] == pytest.approx(wanted["error_bar"], rel=1e-6)
            else:
                assert np.isnan(got["term_errors"][0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_archive_and_the_calculator_open_it(path):
    """The TorchScript archive names classes where they stood when it was written."""
    torch = pytest.importorskip("torch")
    from ase import Atoms

    from mfmd.engine import load_torch_host

    load_torch_host()
    module = torch.jit.load(str(path))
    for frame in frames(path):
        positions, numbers, cell, pbc = given(frame)
        level = list(frame["levels"])[-1]
        wanted = frame["levels"][level]
        arguments = (torch.tensor(positions), torch.tensor(numbers), torch.tensor(cell), torch.tensor(pbc))
        assert float(module(*arguments, **state(frame))[0]) == pytest.approx(wanted["energy"], abs=1e-5 * len(numbers))
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc, info=state(frame), calculator=mfmd.Calculator(path, level, "double"))
        np.testing.assert_allclose(atoms.get_forces(), wanted["forces"], rtol=0, atol=1e-5)
