"""Labels made with tblite and PySCF: against the shipped ones, against finite differences, resumed, and failing."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ase
import ase.build
import ase.db
import ase.io
import numpy as np
import pytest
from conftest import DATA

pytest.importorskip("tblite", reason="tblite is not installed")
pytest.importorskip("pyscf", reason="PySCF is not installed")

import pyscf.lib

from mfmd.config import ConfigError, parse
from mfmd.labelling import campaign, checks, methods, schema, workers
from mfmd.labelling import journal as journals
from mfmd.structures.record import SPLITS
from mfmd.training import plan

pyscf.lib.num_threads(1)  # as a worker has them
SMALL_AND_LARGE = [
    {"method": "mp2", "basis": "cc-pvtz", "density_fitting": True},
    {"method": "mp2", "basis": "cc-pvdz", "density_fitting": True, "coefficient": -1},
]
LEVELS = {  # of the shipped data
    "gfn2": schema.Level(method="GFN2-xTB"),
    "dft": schema.Level(method="wb97x", basis="6-31g(d)", cartesian=True, density_fitting=True),
    "cc": schema.Level(method="ccsd(t)", basis="cc-pvdz"),
    "cctz": schema.Level(method="ccsd(t)", basis="cc-pvdz", corrections=SMALL_AND_LARGE, forces="none"),
}


def shipped(molecule):
    return next(a for a in ase.io.read(DATA / "test.xyz", ":") if a.info["molecule"] == molecule)


@pytest.mark.parametrize("level", LEVELS)
def test_reproduces_shipped_labels(level):
    atoms = shipped("water")
    made = methods.label(LEVELS[level], atoms, LEVELS[level].forces != "none")
    assert made["energy"] == pytest.approx(atoms.info[f"energy_{level}"], abs=1e-4)
    if level in ("gfn2", "cc"):  # the shipped dft forces have no response of the grid
        np.testing.assert_allclose(made["forces"], atoms.arrays[f"forces_{level}"], atol=1e-4)
    atoms = json.loads((DATA / "atoms.json").read_text())["energies"]["O"]
    # How oxygen's open shell lies in the grid of a functional is left to rounding, and moves its energy by 0.1 meV.
    assert methods.isolated(LEVELS[level], "O")["energy"] == pytest.approx(atoms[level], abs=5e-4 if level == "dft" else 1e-4)


def test_reproduces_shipped_labels_of_a_box():
    atoms = shipped("water_box_8")
    made = methods.label(LEVELS["gfn2"], atoms)
    assert made["energy"] == pytest.approx(atoms.info["energy_gfn2"], abs=1e-4)
    np.testing.assert_allclose(made["forces"], atoms.arrays["forces_gfn2"], atol=1e-4)
    np.testing.assert_allclose(made["stress"], atoms.info["stress_gfn2"], atol=1e-6)


@pytest.mark.parametrize("method", ["GFN1-xTB", "hf", "wb97x", "mp2", "ccsd", "ccsd(t)"])
def test_forces_are_the_slope_of_the_energy(method):
    level = schema.Level(method=method, basis=None if method in schema.XTB else "6-31g")
    atoms, h, ends = shipped("water"), 2e-3, []
    forces = methods.label(level, atoms)["forces"]
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 0] += sign * h
        ends.append(methods.label(level, moved, forces=False)["energy"])
    assert forces[1, 0] == pytest.approx((ends[1] - ends[0]) / (2 * h), abs=2e-3)


@pytest.mark.parametrize(
    ("level", "atoms", "message"),
    [
        (
            LEVELS["dft"],
            ase.Atoms("HeHe", [[0, 0, 0], [0, 0, 3]], cell=[9, 9, 9], pbc=True),
            "for molecules, and the structure is periodic",
        ),
        (
            LEVELS["gfn2"],
            ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"multiplicity": 1}),
            "multiplicity is 1, which 9 electrons cannot have",
        ),
        (LEVELS["gfn2"], ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"charge": 10}), "charge is 10, and there are 9 electrons"),
        (LEVELS["gfn2"], ase.Atoms("O", info={"multiplicity": 1}), "multiplicity is 1, and the ground state of the atom, .* has 3"),
        (schema.Level(method="mp2", basis="6-31g", density_fitting=True), ase.build.molecule("H2O"), "set forces: none"),
    ],
)
def test_what_cannot_be_labelled(level, atoms, message):
    with pytest.raises(schema.LabelError, match=message):
        methods.label(level, atoms)


@pytest.mark.parametrize(
    ("state", "atom", "words"),
    [
        ({"charge": 1}, [0, 2], "charge \\+1 and multiplicity 2"),
        ({"charge": -1}, [2, 2], "charge -1 and multiplicity 2"),
        ({"multiplicity": 3}, [0, 2], "charge \\+0 and multiplicity 3"),
    ],
)
def test_states_beyond_the_valence_of_tight_binding(monkeypatch, state, atom, words):
    """They are refused before tblite sees them; what it would see here does it no harm."""
    monkeypatch.setattr(methods, "_valence", lambda method, number: np.array(atom))
    with pytest.raises(schema.LabelError, match=f"GFN2-xTB has valence electrons alone, and not those for {words}"):
        methods.label(LEVELS["gfn2"], ase.Atoms("NaH", [[0, 0, 0], [0, 0, 1.9]], info=state))


def test_no_sampling_beyond_the_valence(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "_valence", lambda method, number: np.array([0, 2]))
    with pytest.raises(schema.LabelError, match="sampling: GFN2-xTB has valence electrons alone, .*: H2O"):
        campaign.run(config(tmp_path, structures=[{"structure": "H2O", "charge": 1}]))


def test_valence_of_tight_binding():
    assert [methods._valence("GFN2-xTB", number).tolist() for number in (1, 11, 29, 64)] == [[1, 2], [1, 8], [11, 18], [3, 18]]
    with pytest.raises(schema.LabelError, match="GFN2-xTB: No support for elements"):
        methods._valence("GFN2-xTB", 87)


def config(tmp_path, **more):
    levels = {"gfn2": {"method": "GFN2-xTB"}, "hf": {"method": "hf", "basis": "sto-3g", "keep": 0.5, "forces": "test"}}
    sampling = {"temperatures": [300.0], "train": 4, "val": 2, "test": 1, "interval": 5.0, "equilibration": 5.0}
    tree = {"out": tmp_path / "labels", "structures": ["H2O", "NH3"], "sampling": sampling, "levels": levels, "workers": 2}
    return parse({**tree, **more}, "config.yaml", schema.Config)


def test_sampled_labelled_resumed(tmp_path):
    c = config(tmp_path)
    assert campaign.run(c) == {"gfn2": (14, 0), "hf": (8, 0)}
    frames = {split: ase.io.read(c.out / f"{split}.xyz", ":") for split in SPLITS}
    assert [len(frames[split]) for split in SPLITS] == [8, 4, 2]
    assert all("forces_hf" in a.arrays for a in frames["test"]) and not any("forces_hf" in a.arrays for a in frames["train"])
    journal = (c.out / "labels.jsonl").read_text()
    # A kill in the middle of a line and of a trajectory: the same command makes up what is missing.
    (c.out / "labels.jsonl").write_text(journal[: len(journal) // 2])
    (c.out / "trajectories" / "NH3-test-300.xyz").unlink()
    assert campaign.run(c) == {"gfn2": (14, 0), "hf": (8, 0)}
    again = (c.out / "labels.jsonl").read_text()
    rows = [{(r["id"], r["level"]): r["energy"] for r in map(json.loads, text.splitlines())} for text in (journal, again)]
    assert rows[0].keys() == rows[1].keys()
    assert all(rows[0][k] == pytest.approx(rows[1][k], abs=1e-6) for k in rows[0])
    # More of it may be asked for, but nothing that would mix.
    assert campaign.run(parse(c.model_dump() | {"workers": 1}, "config.yaml", schema.Config)) == {"gfn2": (14, 0), "hf": (8, 0)}
    for change, words in (
        ({"seed": 7}, "seed: what there is in .* was made with 0, and now it is 7"),
        ({"sampling": c.sampling.model_dump() | {"interval": 30.0}}, "sampling.interval: .* and now it is 30.0"),
        ({"levels": {"hf": {"method": "hf", "basis": "6-31g"}}}, "levels.hf.basis: .* and now it is 6-31g"),
    ):
        with pytest.raises(schema.LabelError, match=words):
            campaign.run(parse(c.model_dump() | change, "config.yaml", schema.Config))
    # And mfmd-train reads it.
    pytest.importorskip("lightning")
    from mfmd.structures import reading
    from mfmd.training import energies

    levels = {"gfn2": None, "hf": None}
    files = {f"{split}": str(c.out / f"{split}.xyz") for split in SPLITS}
    t = plan.parse({"out": tmp_path, "data": {**files, "atoms": c.out / "atoms.json"}, "levels": levels}, "config.yaml")
    assert {k: len(v) for k, v in reading.read(t.data, t.levels).items()} == {"train": 8, "val": 4, "test": 2}
    assert set(energies.read_atoms(t.data.atoms, t.levels)["hf"]) == {1, 7, 8}


def test_a_failed_label_is_recorded_and_not_fatal(tmp_path, inline):
    ase.io.write(tmp_path / "mixed.xyz", [ase.build.molecule("H2O"), ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.3]])], format="extxyz")
    c = config(tmp_path, structures=str(tmp_path / "mixed.xyz"), sampling=None, levels={"gfn2": {"method": "GFN2-xTB"}})
    for retry in (False, False, True):
        assert campaign.run(c, retry) == {"gfn2": (1, 1)}
    rows = [json.loads(line) for line in (c.out / "labels.jsonl").read_text().splitlines()]
    failed = [r for r in rows if "error" in r]
    assert len(failed) == 2 and "0.30 Å apart" in failed[0]["error"] and len(rows) == 1 + 2 + 2
    assert "energy_gfn2" not in ase.io.read(c.out / "train.xyz", 1).info


def test_a_cluster_loses_a_worker(tmp_path):
    """Nothing is lost and nothing there twice; the labels are those of this machine."""
    distributed = pytest.importorskip("distributed")
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(12):
        atoms = shipped("water")
        frames.append(ase.Atoms(atoms.numbers, atoms.positions + 0.03 * rng.normal(size=(3, 3))))
    ase.io.write(tmp_path / "waters.xyz", frames, format="extxyz")
    config = parse(
        {"out": tmp_path / "out", "structures": [str(tmp_path / "waters.xyz")], "levels": {"hf": {"method": "hf", "basis": "cc-pvtz"}}},
        "the test",
        schema.Config,
    )
    journal, killed = config.out / "labels.jsonl", []
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:

        def kill_one():
            while not journal.exists() or journal.read_text().count("\n") < 3:
                time.sleep(0.01)
            killed.append(cluster.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        assert campaign.run(config, scheduler=cluster.scheduler_address) == {"hf": (12, 0)}
        killer.join()
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert killed and sorted(row["id"] for row in rows) == sorted([f"waters-{k}" for k in range(12)] + ["isolated H", "isolated O"])
    alone = methods.label(config.levels["hf"], frames[5])
    found = next(row for row in rows if row["id"] == "waters-5")
    assert found["energy"] == pytest.approx(alone["energy"], abs=1e-6)
    np.testing.assert_allclose(found["forces"], alone["forces"], atol=1e-5)


def test_a_process_that_dies_takes_only_its_own_label():
    tasks = [(k, os._exit if k == 3 else abs, (k,)) for k in range(8)]
    found = {key: (result, error) for key, result, error in workers.in_parallel(tasks, 2)}
    assert set(found) == set(range(8)) and "died" in found[3][1]
    assert all(found[k] == (k, None) for k in range(8) if k != 3)


THREADED = """
import ctypes, os, sys
{loads}
from mfmd.labelling import workers

def threads(_):  # of every OpenMP there is in this process
    import {package}
    paths = {{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}}
    return sorted(ctypes.CDLL(path).omp_get_max_threads() for path in paths)

if __name__ == "__main__":
    print([found for _, found, _ in workers.in_parallel([(k, threads, (k,)) for k in range(3)], 2)], os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.parametrize(
    ("loads", "package"), [("import torch", "pyscf.lib"), ("import pyscf.lib", "tblite.interface"), ("", "tblite.interface")]
)
def test_a_worker_has_one_thread_whatever_the_script_loads_first(tmp_path, loads, package):
    (tmp_path / "script.py").write_text(THREADED.format(loads=loads, package=package))
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "3"}
    )
    found, _, after = done.stdout.strip().rpartition(" ")
    assert after == "3", done.stderr
    assert len(json.loads(found)) == 3 and all(row and set(row) == {1} for row in json.loads(found)), found


def test_threads_are_the_callers_again_where_it_stops_in_between(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    running = workers.in_parallel([(k, abs, (k,)) for k in range(4)], 2)
    next(running)
    assert os.environ["OMP_NUM_THREADS"] == "3" and "MKL_NUM_THREADS" not in os.environ
    running.close()
    assert os.environ["OMP_NUM_THREADS"] == "3" and "MKL_NUM_THREADS" not in os.environ


def slab(*pbc, height=20.0):
    return ase.build.molecule("H2O", cell=[6.0, 6.0, height], pbc=pbc)


@pytest.mark.parametrize(
    ("atoms", "more", "message"),
    [
        (slab(1, 1, 0), {}, "levels.gfn2.method: GFN2-xTB is periodic in three directions or in none, .* pbc T T F.*: a-1"),
        (slab(1, 0, 0, height=0.0), {"levels": {"x": {"method": "gfn1-xtb"}}}, "levels.x.method: GFN1-xTB is periodic in three directions"),
        (slab(1, 1, 1, height=0.0), {}, "levels.gfn2.method: the structure is periodic .*, and its cell has no volume: a-1"),
        (slab(1, 1, 1), {"levels": {"hf": {"method": "hf", "basis": "sto-3g"}}}, "levels.hf.method: hf/sto-3g is for molecules.*periodic"),
        (slab(0, 0, 1), {"sampling": {}, "levels": {}}, "sampling: GFN2-xTB is periodic in three directions"),
        (ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.2]]), {"sampling": {}}, "sampling: atoms 0 and 1 of H2 are 0.20 Å apart: a-1"),
    ],
)
def test_what_a_method_is_not_for_is_refused_before_anything_is_computed(tmp_path, atoms, more, message):
    ase.io.write(tmp_path / "a.xyz", [ase.build.molecule("H2O"), atoms], format="extxyz")
    c = config(tmp_path, **({"sampling": None, "levels": {"gfn2": {"method": "GFN2-xTB"}}} | more), structures=str(tmp_path / "a.xyz"))
    with pytest.raises(schema.LabelError, match=message):
        campaign.run(c)
    assert not (c.out / "labels.jsonl").exists() and not list(c.out.rglob("*.xyz"))


def test_labels_of_the_input_never_pass_for_those_of_the_run(tmp_path, inline):
    frames = [ase.build.molecule(name) for name in ("H2O", "NH3", "CH4")]
    frames.append(ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.3]]))  # whose label fails
    for k, atoms in enumerate(frames):
        atoms.set_initial_magnetic_moments(None)
        atoms.info |= {"id": f"f{k}", "energy_gfn2": 999.0, "stress_gfn2": np.full(6, 9.0), "energy_other": 1.5}
        atoms.arrays["forces_gfn2"] = np.full((len(atoms), 3), 9.0)
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    c = config(
        tmp_path, structures=str(tmp_path / "a.xyz"), sampling=None, levels={"gfn2": {"method": "gfn2", "keep": 2, "forces": "none"}}
    )
    c = c.model_copy(update={"seed": 1})
    assert {"f3"} < campaign.chosen(frames_of(c), "gfn2", c.levels["gfn2"], 1)
    with pytest.warns(match="energy_gfn2, forces_gfn2, stress_gfn2 of the file are left out"):
        assert campaign.run(c) == {"gfn2": (1, 1)}
    found = ase.io.read(c.out / "train.xyz", ":")
    energies = [a.info["energy_gfn2"] for a in found if "energy_gfn2" in a.info]
    assert len(found) == 4 and len(energies) == 1 and energies[0] < 0
    assert not any("forces_gfn2" in a.arrays or "stress_gfn2" in a.info for a in found) and all(
        a.info["energy_other"] == 1.5 for a in found
    )


def frames_of(c):
    from mfmd.labelling.sampling import read_structures

    with pytest.warns():
        return read_structures(c)


@pytest.mark.parametrize(
    "atoms",
    [
        ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.3]]),
        ase.Atoms("O2", [[0, 0, 0], [0, 0, 0]]),
        ase.Atoms("O2", [[0, 0, 0.1], [0, 0, 4.8]], cell=[5, 5, 5], pbc=True),
        ase.Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]),
    ],
)
def test_atoms_that_overlap_have_no_label(atoms):
    with pytest.raises(schema.LabelError, match=r"atoms 0 and 1 of .* are 0\.\d\d Å apart|is not finite"):
        methods.label(LEVELS["gfn2"], atoms)


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_shipped_label_is_absurd(split):
    isolated = json.loads((DATA / "atoms.json").read_text())["energies"]
    for name in LEVELS:
        own = {symbol: levels[name] for symbol, levels in isolated.items()}
        for atoms in ase.io.read(DATA / f"{split}.xyz", ":"):
            if f"energy_{name}" in atoms.info:
                energy = atoms.info[f"energy_{name}"]
                assert checks.absurd(energy, atoms, own) is None
                for wrong in (energy - 12.5 * len(atoms), energy + 30.0 * len(atoms), np.nan):
                    assert checks.absurd(wrong, atoms, own)


def test_an_absurd_energy_is_no_label(tmp_path, inline):
    """Tantalum as GFN2-xTB has it: converged, and 1.7 keV an atom below its atoms. What the journal holds of it from before is sorted out too."""
    frames = [ase.build.bulk("Ta").repeat((2, 1, 1)), ase.build.molecule("H2O")]
    for k, atoms in enumerate(frames):
        atoms.info["id"] = f"f{k}"
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    c = config(tmp_path, structures=str(tmp_path / "a.xyz"), sampling=None, levels={"gfn2": {"method": "gfn2"}})
    for _ in range(2):
        assert campaign.run(c) == {"gfn2": (1, 1)}
    rows = [json.loads(line) for line in (c.out / "labels.jsonl").read_text().splitlines()]
    (reason,) = [row["error"] for row in rows if "error" in row]
    assert "eV an atom from that of its isolated atoms, which no bonding is" in reason
    assert ["energy_gfn2" in a.info for a in ase.io.read(c.out / "train.xyz", ":")] == [False, True]


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("test", "val"), ("val", "train")])
def test_a_structure_in_two_splits_is_refused(tmp_path, first, second):
    frames = [ase.build.molecule(name) for name in ("H2O", "CH4", "H2O")]
    for k, (atoms, split) in enumerate(zip(frames, (first, first, second), strict=True)):
        atoms.info |= {"id": f"f{k}", "split": split}
    frames[2].positions[0] += 1e-5
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    c = config(tmp_path, structures=str(tmp_path / "a.xyz"), sampling=None, levels={"gfn2": {"method": "gfn2"}})
    with pytest.raises(schema.LabelError, match=rf"f2 \({second}\) is the same structure as f0 \({first}\)"):
        campaign.run(c)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    c = config(Path("~"), structures=["~/a.xyz", "H2O"])
    assert c.out == tmp_path / "labels" and [named.structure for named in c.structures] == [str(tmp_path / "a.xyz"), "H2O"]


def command(tmp_path, tree, **more):
    (tmp_path / "config.json").write_text(json.dumps(tree))  # which YAML can read
    line = [sys.executable, "-c", "from mfmd.cli import main; main()", "label", str(tmp_path / "config.json")]
    return subprocess.run(line, capture_output=True, text=True, **more)


def test_a_level_without_one_label_is_an_error(tmp_path):
    ase.io.write(tmp_path / "oh.xyz", ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.3]]), format="extxyz")
    tree = {"out": str(tmp_path / "out"), "structures": str(tmp_path / "oh.xyz"), "levels": {"gfn2": {"method": "gfn2"}}, "workers": 1}
    done = command(tmp_path, tree)
    assert (
        done.returncode == 1 and "error: gfn2: not one label; the first failed: oh-0: atoms 0 and 1 of HO are 0.30 Å apart" in done.stderr
    )
    assert (tmp_path / "out" / "train.xyz").exists()
    done = command(tmp_path, tree | {"levels": {"dft": {"method": "b3lpy", "basis": "sto-3g"}}})
    assert done.returncode == 1 and "error: levels.dft.method: b3lpy is no method" in done.stderr and len(done.stderr.splitlines()) == 1


def wordless(kind):
    raise kind()


def test_a_failure_is_never_without_words():
    tasks = [(kind, wordless, (kind,)) for kind in (AssertionError, KeyError, schema.LabelError)]
    found = {key: error for key, _, error in workers.in_parallel(tasks, 2)}
    assert found == {AssertionError: "AssertionError", KeyError: "KeyError", schema.LabelError: "LabelError"}


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "x"), RuntimeError("write failed: No space left on device")],
)
def test_a_worker_without_room_ends_the_run(error):
    with pytest.raises(schema.LabelError, match="a worker could not write its files .*; free some space"):
        list(workers.in_parallel([(0, raising, (error,)), (1, abs, (1,))], 1))


def raising(error):
    raise error


def test_a_script_whose_lines_its_workers_run_too(tmp_path):
    """No structure is blamed where the processes die before they have anything to compute."""
    script = tmp_path / "unguarded.py"
    script.write_text("from mfmd.labelling import workers\nprint(list(workers.in_parallel([(0, abs, (1,))], 1)))\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 1 and "LabelError: the processes that are to compute die as they start" in run.stderr
    script.write_text(script.read_text().replace("print", 'if __name__ == "__main__":\n    print'))
    assert subprocess.run([sys.executable, script], capture_output=True, text=True).stdout == "[(0, 1, None)]\n"


def test_a_full_disk_fails_no_label(tmp_path):
    """Files may have 4 kB here: the labels that fit are kept, whole and none marked as failed, and the same command makes up the others."""
    frames = [shipped("water") for _ in range(12)]
    for k, atoms in enumerate(frames):
        atoms.positions[0, 0] += 0.01 * k
        atoms.info = {"id": f"f{k:02d}"}
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    tree = {"out": str(tmp_path / "out"), "structures": str(tmp_path / "a.xyz"), "levels": {"gfn2": {"method": "gfn2"}}, "workers": 1}
    journal = tmp_path / "out" / "labels.jsonl"
    done = command(tmp_path, tree, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert done.returncode == 1 and "labels.jsonl: the label of f" in done.stderr and "those before it are kept" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    before = journal.read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    assert before.endswith("\n") and 2 < len(rows) < 14 and not any("error" in row for row in rows)
    done = command(tmp_path, tree)
    assert done.returncode == 0 and "gfn2: 12 labels\n" in done.stdout and journal.read_text().startswith(before)


@pytest.mark.parametrize("broken", ["write", "write_json"])
def test_files_are_whole_or_as_they_were(tmp_path, monkeypatch, broken):
    c = config(tmp_path, structures=["H2O"], sampling=None, levels={"gfn2": {"method": "gfn2"}})
    campaign.run(c)
    files = {path: path.read_bytes() for path in c.out.glob("*.xyz")} | {c.out / "atoms.json": (c.out / "atoms.json").read_bytes()}

    def full(file, *arguments, **more):
        if broken == "write":
            file.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ase.io if broken == "write" else campaign, broken, full)
    journal = journals.Journal(c.out / "labels.jsonl")
    with pytest.raises(schema.LabelError, match="could not be written .No space left on device.; the labels are kept"):
        campaign.write(c, campaign.read_structures(c), journal)
    assert all(path.read_bytes() == content for path, content in files.items()) and not list(c.out.glob("*.partial"))


def test_a_line_that_was_cut_short_is_none(tmp_path):
    """And the lines before it stay as they are, without a second copy of the file, for which a full disk has no room."""
    path = tmp_path / "labels.jsonl"
    journals.Journal(path).add("a", "x", {"energy": 1.0}, None)
    whole = path.read_bytes()
    for cut in (b'{"id": "b", "lev', b"{", "Å".encode()[:1]):
        path.write_bytes(whole + cut)
        assert journals.Journal(path).labels.keys() == {("a", "x")} and path.read_bytes() == whole


def test_labels_of_other_versions_or_definitions_are_not_mixed(tmp_path, inline):
    """But what is whole may stay, and what is written of it."""
    ase.io.write(tmp_path / "a.xyz", [shipped("water"), ase.build.molecule("H2O")], format="extxyz")
    levels = {"hf": {"method": "hf", "basis": "sto-3g", "forces": "none"}}
    c = config(tmp_path, structures=str(tmp_path / "a.xyz"), sampling=None, levels=levels, workers=1)
    assert campaign.run(c) == {"hf": (2, 0)}
    path = c.out / "labels.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for change, message in (
        ({"versions": {"pyscf": "2.13.0"}}, "levels.hf: labels in .* were made with pyscf 2.13.0, and now it is pyscf 2"),
        ({"versions": {"tblite": "0.8.0"} | rows[0]["versions"]}, "were made with tblite 0.8.0, and now it is tblite .none."),
        ({"ecp": {"H": None, "O": 2}}, "were made with ecp .*'O': 2"),
        ({"basis": "sto-6g"}, "were made with basis sto-6g, and now it is basis sto-3g"),
    ):
        own = [row | (change if "versions" in change else {"definition": [row["definition"][0] | change]}) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
        assert campaign.run(c) == {"hf": (2, 0)}
        path.write_text("".join(json.dumps(row) + "\n" for row in own[:-1]))
        with pytest.raises(schema.LabelError, match=message):
            campaign.run(c)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert campaign.run(c) == {"hf": (2, 0)}
    assert path.read_text().count("\n") == len(rows)


def test_warnings_of_the_packages_reach_the_user_once(tmp_path, inline):
    levels = {"hf": {"method": "hf", "basis": "lanl2dz", "density_fitting": True, "forces": "none"}}
    c = config(tmp_path, structures=["HCl", "H2O", "H2"], sampling=None, levels=levels)
    with pytest.warns() as told:
        assert campaign.run(c) == {"hf": (3, 0)}
    found = [str(w.message) for w in told if "Even tempered" in str(w.message)]
    assert len(found) == len({text.partition("for ")[2] for text in found}) and all(text.startswith("levels.hf, ") for text in found)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"structures": ["no_such_thing"]}, "neither a file nor a molecule"),
        (
            {"levels": {"hf": {"method": "hf", "basis": "sto-3g", "keep": 500}}},
            "levels.hf.keep: 500 structures are to be labelled, and there are",
        ),
        ({"levels": {"hf": {"method": "hf", "basis": "sto-3g", "keep": 0.2}}}, "levels.hf.keep: 0.2 of 2 structures is none"),
    ],
)
def test_configs_that_cannot_be(tmp_path, more, message):
    with pytest.raises(schema.LabelError, match=message):
        campaign.run(config(tmp_path, **more, sampling=None) if "structures" not in more else config(tmp_path, **more))


def test_a_method_without_its_basis_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="basis: hf needs one"):
        config(tmp_path, levels={"hf": {"method": "hf"}})
    with pytest.raises(ConfigError, match="levels.hf.bassis: unknown key; did you mean basis"):
        config(tmp_path, levels={"hf": {"method": "hf", "bassis": "sto-3g"}})


@pytest.mark.parametrize("method", ["ccsd", "CCSD(T)"])
def test_forces_that_are_no_slope_are_refused(method):
    """Of a density-fitted field PySCF's coupled-cluster gradients are another energy's."""
    fitted = {"method": method, "basis": "6-31g", "density_fitting": True}
    for level in (fitted, {"method": "hf", "basis": "6-31g", "corrections": [fitted]}):
        with pytest.raises(
            ConfigError, match=r"levels.x.*PySCF's gradients of ccsd.* are not its slope; set forces: none, or leave density_fitting out"
        ):
            parse({"out": "x", "structures": ["H2O"], "levels": {"x": level}}, "here", schema.Config)
        parse({"out": "x", "structures": ["H2O"], "levels": {"x": level | {"forces": "none"}}}, "here", schema.Config)


def campaign_of(tmp_path, frames, **more):
    """A run at GFN2-xTB over frames; other frames may be put under the same ids."""
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    levels = {"gfn2": {"method": "gfn2", "forces": "none"}}
    return config(tmp_path, **({"structures": str(tmp_path / "a.xyz"), "sampling": None, "levels": levels} | more))


def three():
    return [ase.Atoms(name, [[0, 0, 0], [0, 0, z]], cell=[9, 9, 9]) for name, z in (("H2", 0.74), ("N2", 1.1), ("HF", 0.92))]


@pytest.mark.parametrize("what", ["frame in front", "moved", "element", "periodic", "atoms of an older row"])
def test_labels_stay_with_their_geometry(tmp_path, inline, what):
    frames = three()
    c = campaign_of(tmp_path, frames, levels={"gfn2": {"method": "gfn2"}})
    assert campaign.run(c) == {"gfn2": (3, 0)}
    path = c.out / "labels.jsonl"
    if what in ("frame in front", "atoms of an older row"):
        frames.insert(0, ase.build.molecule("H2O"))
    if what == "atoms of an older row":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "structure"}) + "\n" for row in rows))
    elif what == "moved":
        frames[1].positions[1, 2] += 1e-4
    elif what == "element":
        frames[2].numbers[:] = 17, 1
    elif what == "periodic":
        frames[0].pbc = True
    before = path.read_bytes()
    with pytest.raises(
        schema.LabelError, match=r"the label of a-\d at level gfn2 was made of another geometry or state than a-\d has now; .*info key id"
    ):
        campaign.run(campaign_of(tmp_path, frames, levels={"gfn2": {"method": "gfn2"}}))
    assert path.read_bytes() == before


def test_what_is_no_other_geometry(tmp_path, inline):
    """An unused cell, a number's last digits, labels of before, which are told; a failed structure that was mended is labelled."""
    frames = [*three(), ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.3]])]
    c = campaign_of(tmp_path, frames)
    assert campaign.run(c) == {"gfn2": (3, 1)}
    frames[0].cell[:] = 0
    frames[1].positions[0, 0] = -1e-8
    frames[3] = ase.build.molecule("H2O")
    assert campaign.run(campaign_of(tmp_path, frames)) == {"gfn2": (4, 0)}
    path = c.out / "labels.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["id"] for row in rows if "structure" not in row} == {"isolated H", "isolated N", "isolated F", "isolated O"}
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "structure"}) + "\n" for row in rows))
    with pytest.warns(match="levels.gfn2: which geometries the labels in .* are of is not recorded"):
        assert campaign.run(c) == {"gfn2": (4, 0)}


def test_a_trajectory_is_of_its_start(tmp_path, inline):
    sampling = {"temperatures": [300.0], "train": 1, "val": 0, "test": 1, "interval": 1.0, "equilibration": 1.0}
    frames = [shipped("water")]
    frames[0].info = {"id": "w"}
    c = campaign_of(tmp_path, frames, sampling=sampling)
    assert campaign.run(c) == campaign.run(c) == {"gfn2": (2, 0)}
    assert "start" not in ase.io.read(c.out / "train.xyz").info
    path = c.out / "trajectories" / "w-train-300.xyz"
    frames[0].positions[0, 0] += 0.01
    with pytest.raises(
        schema.LabelError, match=r"w-train-300.xyz was sampled from another geometry or state than w has now; give that another id"
    ):
        campaign.run(campaign_of(tmp_path, frames, sampling=sampling))
    frames[0].positions[0, 0] -= 0.01
    c = campaign_of(tmp_path, frames, sampling=sampling)
    path.write_text(path.read_text().replace(" start=", " begin="))
    with pytest.warns(match="trajectories: from which geometries these were sampled is not recorded"):
        assert campaign.run(c) == {"gfn2": (2, 0)}
    path.write_text("3\nhalf")
    with pytest.raises(schema.LabelError, match="w-train-300.xyz cannot be read .*; delete it"):
        campaign.run(c)


def test_atoms_of_no_element_are_refused(tmp_path, inline):
    ghost = ase.Atoms("H2X", [[0, 0, 0], [0, 0, 0.74], [0, 0, 3]])
    for more in ({}, {"sampling": {}}, {"levels": {"hf": {"method": "hf", "basis": "sto-3g"}}}):
        c = campaign_of(tmp_path, [*three(), ghost], **more)
        with pytest.raises(schema.LabelError, match="structures: atom 2 of H2X has no element .X, number 0.: a-3"):
            campaign.run(c)
        assert not (c.out / "labels.jsonl").exists()
    with pytest.raises(schema.LabelError, match="atom 2 of H2X has no element"):
        methods.label(LEVELS["gfn2"], ghost)


@pytest.mark.parametrize("kind", ["energy", "forces", "stress"])
def test_what_is_not_finite_is_no_label(tmp_path, inline, monkeypatch, kind):
    def broken(*arguments, of=methods._xtb):
        out = of(*arguments)
        return out | {"stress": np.zeros(6)} | {kind: np.asarray(out.get(kind, np.zeros(6))) * np.nan}

    monkeypatch.setattr(methods, "_xtb", broken)
    c = campaign_of(tmp_path, three(), levels={"gfn2": {"method": "gfn2"}})
    if kind == "energy":
        with pytest.warns(match="atom has no energy .the energy is nan"):
            assert campaign.run(c) == {"gfn2": (0, 3)}
    else:
        assert campaign.run(c) == {"gfn2": (0, 3)}
    text = (c.out / "labels.jsonl").read_text()
    assert f"the {kind} of H2 is not finite" in text and "NaN" not in text


def test_ids_are_words(tmp_path, inline):
    frames = three()
    for atoms, key in zip(frames, (7, True, 1.5), strict=True):
        atoms.info["id"] = key
    for _ in range(2):
        assert campaign.run(campaign_of(tmp_path, frames)) == {"gfn2": (3, 0)}
    rows = [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]
    assert {"7", "True", "1.5"} < {row["id"] for row in rows}


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        (("a b", "a_b", "c"), {"sampling": {}}, "the ids 'a b' and 'a_b' make one trajectory's name, a_b-train-300"),
        (("å", "ß", "c"), {"sampling": {}}, "the ids 'å' and 'ß' make one trajectory's name"),
        (("a", "b", "c"), {"sampling": {"temperatures": [300, 400, 300]}}, "sampling.temperatures: two that are 300 make one"),
        (("a", "b", "a"), {"sampling": {}}, "structures: two of them have the id a"),
        (("1", "b", 1), {}, "structures: two of them have the id 1"),
        (("a", "isolated H", "c"), {}, "the id 'isolated H' is an isolated atom's"),
    ],
)
def test_ids_that_cannot_be(tmp_path, ids, more, message):
    frames = three()
    for atoms, key in zip(frames, ids, strict=True):
        atoms.info["id"] = key
    c = campaign_of(tmp_path, frames, **more)
    with pytest.raises(schema.LabelError, match=message):
        campaign.run(c)
    assert not (c.out / "labels.jsonl").exists() and not list(c.out.rglob("*.xyz"))


def test_what_is_asked_for_no_longer_is_not_written(tmp_path, inline):
    frames = three()
    frames[0].info["split"] = "test"

    def run(**level):
        c = campaign_of(tmp_path, frames, levels={"gfn2": {"method": "gfn2"} | level})
        counts = campaign.run(c)
        written = [a for split in ("train", "test") for a in ase.io.read(c.out / f"{split}.xyz", ":")]
        return counts["gfn2"][0], sum("energy_gfn2" in a.info for a in written), sum("forces_gfn2" in a.arrays for a in written)

    assert run() == (3, 3, 3)
    with pytest.warns(match="levels.gfn2.keep: 1 labels in .* have more than it asks for now, which is left out"):
        assert run(keep=1) == (2, 2, 2)
    with pytest.warns(match="levels.gfn2.forces: 2 labels"):
        assert run(forces="test") == (3, 3, 1)
    with pytest.warns(match="levels.gfn2.forces: 2 labels"):
        assert run(keep=0.5, forces="none") == (2, 2, 0)
    assert run() == (3, 3, 3)


def test_structures_may_say_their_levels(tmp_path, inline):
    frames = three()
    for atoms, said in zip(frames, ("gfn2", "gfn1 gfn2", None), strict=True):
        atoms.info |= {"levels": said} if said else {}
    levels = {"gfn1": {"method": "gfn1"}, "gfn2": {"method": "gfn2", "keep": 1}}
    c = campaign_of(tmp_path, frames, levels=levels)
    assert campaign.run(c) == {"gfn1": (2, 0), "gfn2": (3, 0)}
    labelled = [{key for key in a.info if key.startswith("energy_")} for a in ase.io.read(c.out / "train.xyz", ":")]
    assert labelled == [{"energy_gfn2"}, {"energy_gfn1", "energy_gfn2"}, {"energy_gfn1", "energy_gfn2"}]
    for more, message in (
        ({"levels": {"gfn2": {"method": "gfn2"}}}, "is to be labelled at gfn1 .info key levels., and the config's levels are gfn2$"),
        ({"levels": levels, "sampling": {}}, "says at which levels .* goes without sampling"),
    ):
        with pytest.raises(schema.LabelError, match=message):
            campaign.run(campaign_of(tmp_path, frames, **more))


def test_labels_say_how_far_what_was_predicted_of_them_is_off(tmp_path, inline):
    frames, levels = three(), {"gfn1": {"method": "gfn1"}, "gfn2": {"method": "gfn2"}}
    c = campaign_of(tmp_path, frames, levels=levels)
    campaign.run(c)
    energies = [a.info["energy_gfn2"] for a in ase.io.read(c.out / "train.xyz", ":")]
    for atoms, energy, off in zip(frames, energies, (0.01, -0.03, None), strict=True):
        atoms.info |= {"predicted_gfn2": energy - off, "predicted_error_gfn2": 0.02} if off else {"predicted_gfn2": energy}
    c = campaign_of(tmp_path, frames, levels=levels, out=tmp_path / "again")
    with pytest.warns(match="^gfn2: 2 labels that mfmd suggest chose are 22.4 meV .* error bars said 20.0 meV, and 50 % are within one"):
        campaign.run(c)
    assert "22.4 meV" in (c.out / "report.html").read_text()


@pytest.mark.parametrize(
    "damaged",
    [b'{"id": "b", "lev', b"[1, 2]", b'{"id": "b", "level": "x"}', b"\xff\xfe", b"", b"7", b'{"id": 7, "level": "x", "energy": 0}'],
)
def test_a_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / "labels.jsonl"
    journal = journals.Journal(path)
    journal.add("a", "x", {"energy": 1.0}, None)
    journal.add("c", "x", None, "no label")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damaged + b"\n" + second)
    with pytest.raises(schema.LabelError, match="labels.jsonl: line 2 is damaged; delete it"):
        journals.Journal(path)
    path.write_bytes(first + second)
    assert journals.Journal(path).labels.keys() == {("a", "x"), ("c", "x")}


ORPHANS = """
import os, signal, sys, time
from mfmd.labelling import workers

def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    running = workers.in_parallel([(k, work, (0 if k < 2 else {seconds},)) for k in range({n})], 2)
    next(running), next(running)
    if {n} > 2:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("n", "seconds"), [(3, 600), (4, 600), (2, 0)])
def test_workers_end_with_a_run_that_is_killed(tmp_path, n, seconds):
    """Whether they compute or wait; their output, a pipe, is at its end when the last of them is."""
    (tmp_path / "script.py").write_text(ORPHANS.format(n=n, seconds=seconds))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL and len(set(done.stdout.split())) in (1, 2)


METHYL = ase.Atoms("CH3", [[0, 0, 0.05], [0, 1.08, 0], [0.935, -0.54, 0], [-0.935, -0.54, 0]])
HF = {"hf": {"method": "hf", "basis": "sto-3g"}}


def written(c):
    return {a.info["id"]: a for split in SPLITS if (c.out / f"{split}.xyz").exists() for a in ase.io.read(c.out / f"{split}.xyz", ":")}


@pytest.mark.parametrize("kind", ["db", "json"])
def test_states_of_the_rows_of_a_database(tmp_path, kind):
    path = tmp_path / f"methyl.{kind}"
    with ase.db.connect(path, type=kind) as file:
        file.write(METHYL)
        file.write(METHYL, charge=1, data={"multiplicity": 3})
    found = campaign.read_structures(config(tmp_path, structures=[str(path)], sampling=None, levels=HF))
    assert [(a.info["charge"], a.info["multiplicity"]) for a in found] == [(0, 2), (1, 3)]


def test_a_geometry_in_several_states(tmp_path, inline):
    """They have ids of their own and labels of their own; a neutral closed shell is written as it always was."""
    path = tmp_path / "methyl.xyz"
    ase.io.write(path, METHYL, format="extxyz")
    entries = [str(path), {"structure": str(path), "charge": 1}, {"structure": str(path), "charge": -1, "multiplicity": 1}]
    c = config(tmp_path, structures=[*entries, "H2O", "O2", {"structure": "H", "charge": 1}, "O"], sampling=None, levels=HF)
    assert campaign.run(c) == campaign.run(c) == {"hf": (7, 0)}
    found = written(c)
    states = {key: (a.info.get("charge"), a.info.get("multiplicity")) for key, a in found.items()}
    assert states == {
        "methyl-0": (0, 2), "methyl-0+1": (1, 1), "methyl-0-1m1": (-1, 1), "H2O": (None, None), "O2": (0, 3), "H+1": (1, 1), "O": (None, None),
    }  # fmt: skip
    energies = {key: a.info["energy_hf"] for key, a in found.items()}
    assert energies["methyl-0+1"] - energies["methyl-0"] == pytest.approx(7.8, abs=1) and energies["H+1"] == 0
    assert energies["O"] == json.loads((c.out / "atoms.json").read_text())["energies"]["O"]["hf"]
    assert found["methyl-0+1"].info["molecule"] == "methyl+1"
    page = (c.out / "report.html").read_text()
    assert "of them charged" in page and "of them open shells" in page
    # and mfmd-train reads them
    pytest.importorskip("lightning")
    from mfmd.structures import reading

    t = plan.parse(
        {"out": tmp_path, "data": {"train": str(c.out / "train.xyz"), "atoms": c.out / "atoms.json"}, "levels": {"hf": None}}, "x"
    )
    del states["O"]  # whose energy is in atoms.json
    read = {s.info["id"]: tuple(s.states[0]) for part in reading.read(t.data, t.levels).values() for s in part}
    assert read == {key: (0, 1) if None in pair else pair for key, pair in states.items()}


def test_fingerprints_of_before_stay():
    """Of a neutral structure in its lowest multiplicity, however it says so; others have one of their own."""

    def of(atoms, **info):
        atoms = atoms.copy()
        atoms.info |= info
        return checks.fingerprint(atoms)

    lengths = METHYL.positions.round(6) + 0.0
    content = METHYL.numbers.astype("<i8").tobytes() + bytes(3) + lengths.astype("<f8").tobytes()
    before = "sha256-" + hashlib.sha256(content).hexdigest()[:32]
    assert before == of(METHYL) == of(METHYL, charge=0, multiplicity=2) == of(METHYL, total_charge=0, uhf=1)
    assert len({before, of(METHYL, charge=1), of(METHYL, charge=-1), of(METHYL, charge=1, multiplicity=3), of(METHYL, multiplicity=4)}) == 5


@pytest.mark.parametrize(
    ("info", "more", "message"),
    [
        ({"charge": 0}, {"charge": 1}, "structures: a-0: charge says the charge 0, and the config says 1; correct one of them"),
        (
            {"uhf": 1},
            {"charge": 0, "multiplicity": 4},
            "the config says the multiplicity 4, and uhf says 2|uhf says .* 2, and the config says 4",
        ),
        ({}, {"charge": 1, "multiplicity": 2}, "structures: a-0: multiplicity is 2, which 8 electrons cannot have"),
        ({"spin": 1}, {}, "structures: a-0: spin is 1, which may be 2S or 2S . 1; say which .spin in the config."),
        ({"fragments": [(0, 2)]}, {}, "fragments have states, and a label is of the whole; say its charge and multiplicity too"),
        ({"fragments": [(1, 1)], "charge": 0, "multiplicity": 2}, {}, "the charges of the fragments add up to .1, and the charge is .0"),
    ],
)
def test_states_that_cannot_be(tmp_path, info, more, message):
    atoms = METHYL.copy()
    atoms.info |= info
    c = campaign_of(tmp_path, [atoms], structures=[{"structure": str(tmp_path / "a.xyz")} | more])
    with pytest.raises(schema.LabelError, match=message):
        campaign.run(c)
    assert not (c.out / "labels.jsonl").exists()


def test_structures_of_the_config_have_these_keys(tmp_path):
    for entry, message in (
        ({"structure": "H2O", "chrage": 1}, "structures.0.chrage: unknown key; did you mean charge"),
        ({"charge": 1}, "structures.0.structure: this key is required"),
        ({"structure": "H2O", "multiplicity": 0}, "structures.0.multiplicity: found 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(tmp_path, structures=[entry])
    c = config(tmp_path, structures=["H2O", {"structure": "CH3", "charge": 1}])
    assert c.model_dump()["structures"] == ["H2O", {"structure": "CH3", "charge": 1}]


@pytest.mark.parametrize(("spin", "value"), [("2S", 3), ("2S+1", 4)])
def test_what_spin_is_says_the_config(tmp_path, inline, spin, value):
    atoms = METHYL.copy()
    atoms.info["spin"] = value
    c = campaign_of(tmp_path, [atoms], spin=spin)
    assert campaign.run(c) == {"gfn2": (1, 0)}
    (found,) = written(c).values()
    assert found.info["multiplicity"] == 4 and "spin" not in found.info


def test_fragments_stay_with_their_structure(tmp_path, inline):
    atoms = METHYL + ase.Atoms("He", [[0, 0, 4.0]])
    atoms.arrays["fragment"] = np.array([0, 0, 0, 0, 1])
    atoms.info |= {"charge": 1, "multiplicity": 1, "fragments": [(1, 1), (0, 1)]}
    sampling = {"temperatures": [300.0], "train": 1, "val": 0, "test": 0, "interval": 1.0, "equilibration": 0.0}
    for k, more in enumerate(({}, {"sampling": sampling})):
        c = campaign_of(tmp_path, [atoms], out=tmp_path / str(k), **more)
        assert campaign.run(c) == {"gfn2": (1, 0)}
        (found,) = written(c).values()
        assert (found.info["charge"], found.info["multiplicity"]) == (1, 1)
        assert np.array_equal(found.info["fragments"], [(1, 1), (0, 1)]) and found.arrays["fragment"].tolist() == [0, 0, 0, 0, 1]


def test_ions_are_sampled_as_ions(tmp_path, inline):
    """From one geometry in two states trajectories differ, and their labels are of the state."""
    from tblite.ase import TBLite

    sampling = {"temperatures": [300.0], "train": 2, "val": 0, "test": 1, "interval": 5.0, "equilibration": 5.0}
    c = config(tmp_path, structures=["CH3", {"structure": "CH3", "charge": 1}], sampling=sampling, levels={"gfn2": {"method": "gfn2"}})
    assert campaign.run(c) == campaign.run(c) == {"gfn2": (6, 0)}
    found = written(c)
    for key, (charge, multiplicity) in {"CH3-test-300-0000": (0, 2), "CH3_1-test-300-0000": (1, 1)}.items():
        atoms = found[key]
        assert (atoms.info["charge"], atoms.info["multiplicity"]) == (charge, multiplicity)
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, charge=charge, multiplicity=multiplicity)
        assert atoms.info["energy_gfn2"] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)


def test_states_of_one_geometry_may_be_in_two_splits(tmp_path, inline):
    frames = [METHYL.copy(), METHYL.copy()]
    for atoms, charge, split in zip(frames, (0, 1), ("train", "test"), strict=True):
        atoms.info |= {"charge": charge, "split": split}
    assert campaign.run(campaign_of(tmp_path, frames)) == {"gfn2": (2, 0)}
    frames[1].info["charge"] = 0
    with pytest.raises(schema.LabelError, match=r"a-1 .test. is the same structure as a-0 .train."):
        campaign.run(campaign_of(tmp_path, frames, out=tmp_path / "other"))


def test_a_label_of_another_state_is_no_label_of_this_one(tmp_path, inline):
    assert campaign.run(campaign_of(tmp_path, [METHYL])) == {"gfn2": (1, 0)}
    ion = METHYL.copy()
    ion.info["charge"] = 1
    with pytest.raises(schema.LabelError, match="the label of a-0 at level gfn2 was made of another geometry or state than a-0 has now"):
        campaign.run(campaign_of(tmp_path, [ion]))


def test_the_limit_of_spin_contamination_may_move(tmp_path, inline):
    """Labels beyond it fail, whenever they were made; with a wider one `--retry` makes them."""

    def run(retry=False, **more):
        c = campaign_of(tmp_path, [METHYL], levels={"hf": {"method": "hf", "basis": "6-31g"} | more})
        return campaign.run(c, retry)["hf"]

    assert run() == (1, 0)
    rows = [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]
    assert [row["spin_contamination"] for row in rows if row["id"] == "a-0"] == pytest.approx([0.013], abs=0.01)
    assert run(max_spin_contamination=0.001) == run(retry=True, max_spin_contamination=0.001) == (0, 1)
    assert run() == (0, 1) and run(retry=True) == (1, 0)


@pytest.mark.parametrize(
    ("symbols", "positions", "charge"),
    [
        ("H", [[0, 0, 0]], 1),
        ("He", [[0, 0, 0]], 1),
        ("Na", [[0, 0, 0]], 1),
        ("Mg", [[0, 0, 0]], 2),
        ("Al", [[0, 0, 0]], 3),
        ("F", [[0, 0, 0]], -1),
        ("OH", [[0, 0, 0], [0, 0, 0.97]], -1),
        ("OH3", [[0, 0, 0.1], [0, 0.95, -0.2], [0.82, -0.47, -0.2], [-0.82, -0.47, -0.2]], 1),
        ("CH3", METHYL.positions, 1),
    ],
)
@pytest.mark.parametrize("of", [{"method": "hf", "basis": "6-31g"}, {"method": "gfn2"}])
def test_ions_are_not_absurd(symbols, positions, charge, of):
    atoms = ase.Atoms(symbols, positions, info={"charge": charge})
    of = schema.Level(**of)
    energy = methods.label(of, atoms, False)["energy"]
    isolated = {symbol: methods.isolated(of, symbol)["energy"] for symbol in set(atoms.get_chemical_symbols())}
    assert checks.absurd(energy, atoms, isolated) is None
    assert checks.absurd(energy + 300 * len(atoms), atoms, isolated) and checks.absurd(energy - 100 * len(atoms), atoms, isolated)
