"""A folder is one command's at a time: mfmd-train, mfmd md and mfmd label."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import ase.build
import pytest
from backends import python

import mfmd
from mfmd import lock

HOLD = """
import sys, time
from mfmd import lock
with lock.claim(sys.argv[1], "mfmd md"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def free(folder):
    try:
        with lock.claim(folder, "a test"):
            return True
    except lock.FolderInUse:
        return False


def test_the_second_is_refused_and_told_by_whom(tmp_path, holder):
    with (
        pytest.raises(mfmd.Error, match=rf"{tmp_path} is in use by mfmd md, process {holder.pid} on {os.uname().nodename}; wait until"),
        lock.claim(tmp_path, "mfmd-train"),
    ):
        pass
    with (
        pytest.raises(lock.FolderInUse, match=f"process {holder.pid} "),
        lock.claim(tmp_path, "mfmd-train"),
    ):  # the refused one has changed nothing
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert free(tmp_path)


def test_within_one_process_too(tmp_path):
    with lock.claim(tmp_path, "mfmd label"):
        assert not free(tmp_path) and free(tmp_path / "another")
    assert free(tmp_path)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_do_not_hold_it(tmp_path, method):
    """A worker that outlives the run keeps nobody out."""
    import multiprocessing

    with lock.claim(tmp_path, "mfmd label"):
        child = multiprocessing.get_context(method).Process(target=time.sleep, args=(60,))
        child.start()
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        time.sleep(1.0 if method == "spawn" else 0.2)
        assert not free(tmp_path)
    assert free(tmp_path) and child.is_alive() and program.poll() is None
    for process in (child, program):
        process.kill()
    child.join()
    program.wait()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with (
        pytest.warns(mfmd.Note, match=f"{tmp_path}: its file system has no locks \\(No locks available\\); see to it yourself"),
        lock.claim(tmp_path, "mfmd md"),
    ):
        pass
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError), lock.claim(tmp_path, "mfmd md"):
        pass


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_was_removed_is_no_more_the_runs(tmp_path, again):
    """Nor where another run has made it anew: neither writes into the other's."""
    import shutil

    folder = tmp_path / "run"
    with lock.claim(folder, "mfmd md"):
        lock.check(folder)
        shutil.rmtree(folder)
        other = lock.claim(folder, "another") if again else contextlib.nullcontext()
        with other, pytest.raises(lock.FolderInUse, match=f"{folder} was removed or replaced while this run used it"):
            lock.check(tmp_path / "another")  # which nobody has claimed
            lock.check(folder)


def test_mfmd_md_ends_where_its_folder_was_removed(tmp_path, model_file, monkeypatch):
    import shutil

    from mfmd import md, progress

    ase.build.molecule("H2O").write(tmp_path / "water.xyz")

    def remove(task, step, words=None):
        if (tmp_path / "run").exists() and step > 3:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(progress.Task, "reach", remove)

    with pytest.raises(mfmd.Error, match="was removed or replaced while this run used it"):
        md.run(md.Settings(str(model_file), str(tmp_path / "water.xyz"), str(tmp_path / "run"), time=0.01, every=0.001, checkpoint=0.005, minimize=False, threads=1))  # fmt: skip
    assert not (tmp_path / "run").exists()


TRAIN = """
out: OUT
data: {train: FOLDER/frames.xyz, val: 0.2}
levels: {gfn2: }
backbone: {channels: 16, layers: 0, radial_functions: 8}
train: {epochs: 1}
"""
LABEL = "{out: OUT, structures: [H2O], levels: {hf: {method: hf, basis: sto-3g}}, workers: 1}"


@pytest.mark.parametrize("command", ["train", "md", "label"])
def test_every_command_claims_its_folder(command, tmp_path, model_file):
    """While another process has the folder, each is refused with exit code 1, and nothing is written."""
    out = tmp_path / "out"
    ase.build.molecule("H2O").write(tmp_path / "water.xyz")
    (tmp_path / "frames.xyz").write_text("")
    for name, text in (("train.yaml", TRAIN), ("label.yaml", LABEL)):
        (tmp_path / name).write_text(text.replace("OUT", str(out)).replace("FOLDER", str(tmp_path)))
    arguments = {
        "train": ["cli.train()", tmp_path / "train.yaml"], "label": ["cli.main()", "label", tmp_path / "label.yaml"],
        "md": ["cli.main()", "md", model_file, tmp_path / "water.xyz", "-o", out],
    }[command]  # fmt: skip
    with lock.claim(out, "a test"):
        done = python(f"from mfmd import cli; {arguments[0]}", *arguments[1:])
    assert done.returncode == 1, done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and re.search(rf"{out} is in use by a test, process {os.getpid()} on ", sentences[0]), done.stderr
    assert os.listdir(out) == [lock.NAME]
