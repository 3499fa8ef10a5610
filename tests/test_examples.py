"""Every numbered example runs, in its short form."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("openmm")
NEEDS = {"2_water_box": ["mdtraj"], "3_mixed": ["openmmml"], "5_lambda": ["pymbar"], "6_active_learning": ["lightning", "tblite"], "7_multiple_time_steps": ["lightning"]}  # fmt: skip
EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("[0-9]_*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, trained, tmp_path):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("study"))
    arguments = [] if name == "6_active_learning" else [trained[0]]
    run = subprocess.run(
        [sys.executable, f"examples/{name}.py", *map(str, arguments), "--short"], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr[-3000:]
