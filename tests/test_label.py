"""Labels made with tblite and PySCF: against the shipped ones, against finite differences, resumed, and failing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from conftest import DATA

pytest.importorskip("tblite", reason="tblite is not installed")
pytest.importorskip("pyscf", reason="PySCF is not installed")

import pyscf.lib

from mfmd.config import ConfigError, parse
from mfmd.labelling import campaign, methods, schema, workers
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
        (LEVELS["gfn2"], ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]]), "odd number of electrons"),
        (LEVELS["gfn2"], ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1], [0, 1, 0]], info={"charge": 2}), "charge is"),
        (schema.Level(method="mp2", basis="6-31g", density_fitting=True), ase.build.molecule("H2O"), "set forces: none"),
    ],
)
def test_what_cannot_be_labelled(level, atoms, message):
    with pytest.raises(schema.LabelError, match=message):
        methods.label(level, atoms)


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


def test_a_failed_label_is_recorded_and_not_fatal(tmp_path):
    ase.io.write(tmp_path / "mixed.xyz", [ase.build.molecule("H2O"), ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]])], format="extxyz")
    c = config(tmp_path, structures=str(tmp_path / "mixed.xyz"), sampling=None, levels={"gfn2": {"method": "GFN2-xTB"}})
    for retry in (False, False, True):
        assert campaign.run(c, retry) == {"gfn2": (1, 1)}
    rows = [json.loads(line) for line in (c.out / "labels.jsonl").read_text().splitlines()]
    failed = [r for r in rows if "error" in r]
    assert len(failed) == 2 and "odd number of electrons" in failed[0]["error"] and len(rows) == 1 + 2 + 2
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


@pytest.mark.parametrize(("loads", "package"), [("import torch", "pyscf.lib"), ("import pyscf.lib", "torch"), ("", "tblite.interface")])
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"structures": ["no_such_thing"]}, "neither a file nor a molecule"),
        ({"levels": {"hf": {"method": "hf", "basis": "sto-3g", "keep": 500}}}, "500 structures are to be labelled, and there are"),
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
