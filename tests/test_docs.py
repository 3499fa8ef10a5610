"""The pages: every block of code in README.md and docs/ runs as it stands there, or the page says beneath it why it does not.

A block whose first line is a comment with a file's name is that file. Beneath a block may stand "<!-- Not run in the tests: why. -->", or
"<!-- Run by `make docs-test`: why. -->" for what takes longer than a test should.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
from conftest import DATA, ROOT, ethanol

from mfmd.config import load
from mfmd.labelling import schema as label
from mfmd.training import plan

pytest.importorskip("openmm")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)(`{3,})(.*)$")
FILE = re.compile(r"(?:#|//|;) ([\w./-]+\.\w+)$")
NOTE = re.compile(r" *<!-- (Not run in the tests|Run by `make docs-test`): (.+)\. -->")
SHOWN = ("text", "ini")  # files, output and excerpts
RUN = ("python", "sh", "yaml")


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code of a page: line, where it begins; left_out, why it is not run, or None; long, whether it takes minutes."""

    page: str
    line: int
    language: str
    code: str
    left_out: str | None
    long: bool

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks_of(path):
    """The blocks of code of a page."""
    lines, found, k = path.read_text().splitlines(), [], 0
    while k < len(lines):
        fence = FENCE.match(lines[k])
        if fence is None:
            k += 1
            continue
        end = next(n for n in range(k + 1, len(lines)) if lines[n].strip() == fence[2])
        beneath = next((line for line in lines[end + 1 :] if line.strip()), "")
        note = NOTE.fullmatch(beneath)
        why = note[2] if note and note[1].startswith("Not") else None
        code = "\n".join(line.removeprefix(fence[1]) for line in lines[k + 1 : end])
        if not fence[3].startswith("{"):  # a directive of Sphinx
            found.append(Block(path.name, k + 1, fence[3].strip(), code, why, bool(note) and why is None))
        k = end + 1
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]


@pytest.fixture(scope="session")
def reader(trained, tmp_path_factory):
    """What a reader of a page has: a model, labels, a molecule, a folder that others have published, the examples."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "runs/demo").mkdir(parents=True)
    for name in ("model.pt", "runs/demo/model.pt"):
        shutil.copy(trained[0], folder / name)
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "ethanol" and "energy_cctz" in a.info]
    ase.io.write(folder / "mine.xyz", frames, format="extxyz")
    ase.io.write(folder / "test.xyz", [a for a in ase.io.read(DATA / "test.xyz", ":") if a.info["molecule"] == "ethanol"], format="extxyz")
    ase.io.write(folder / "molecule.xyz", ethanol())
    shutil.copy(DATA / "atoms.json", folder)
    shutil.copytree(ROOT / "tests/foreign/matgl_v1_neighbours", folder / "TensorNet-ANI-1x-Subset-PES")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("study", "data"))
    return folder


@pytest.fixture
def folder(reader, tmp_path, monkeypatch):
    """A copy of it, and the commands."""
    shutil.copytree(reader, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(blocks):
    """The blocks of a page, one after the other, the Python ones in one namespace."""
    names = {"__name__": "__main__"}
    for block in blocks:
        if file := FILE.match(block.code.partition("\n")[0]):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(block.code + "\n")
        if block.language == "yaml":
            load(file[1], label.Config if "\nstructures:" in block.code else plan.Config)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + block.code, block.page, "exec"), names)
        elif block.language == "sh":
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{block}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_every_block_is_known():
    """So that none is left out for being called something else; a config is a whole file, which the blocks beneath it read. None is wider than a page."""
    for block in BLOCKS:
        assert block.language in RUN + SHOWN, f"{block}: {block.language or 'no language'}"
        assert block.language != "yaml" or block.left_out or FILE.match(block.code.partition("\n")[0]), f"{block}: which file is it?"
        assert block.language not in ("python", "sh") or max(map(len, block.code.splitlines())) <= 92, f"{block}: too wide"


def test_readme_leads_to_pages():
    """Links of the pages among themselves are checked where they are built, `make docs`."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_example_is_shown():
    shown = re.findall(r"\.\./examples/(\w+)\.py", (ROOT / "docs/examples.md").read_text())
    assert sorted(shown) == sorted(p.stem for p in (ROOT / "examples").glob("[0-9]*_*.py"))


def of(path, **what):
    return [b for b in BLOCKS if b.page == path.name and all(getattr(b, key) == value for key, value in what.items())]


@pytest.mark.parametrize("path", [p for p in PAGES if of(p, left_out=None, long=False)], ids=lambda p: p.stem)
def test_page(path, folder, single):
    run(of(path, left_out=None, long=False))


@pytest.mark.long
@pytest.mark.parametrize("path", [p for p in PAGES if of(p, long=True)], ids=lambda p: p.stem)
def test_whole_page(path, folder, single):
    run(of(path, left_out=None))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.left_out], ids=str)
def test_block_is_not_run(block):
    pytest.skip(block.left_out)
