"""The commands as a shell and a script meet them: what they print and where, what completes, and what the doctor finds."""

import csv
import json
import os
import pty
import re
import subprocess
import sys
import tomllib

import ase.io
import numpy as np
import pytest
from conftest import DATA, ROOT, ethanol, small_config

from mfmd import _engine, cli, progress
from mfmd.commands import doctor, packages
from mfmd.engine import Engine


def command(monkeypatch, *words, program=cli.main):
    monkeypatch.setattr("sys.argv", ["mfmd", *map(str, words)])
    program()


def process(code, *words, **environment):
    """Of a fresh Python, what it ended with."""
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env={**os.environ, **environment})


# ------------------------------------------------------------------------------------------------ --json and --quiet


SAYS = """
import os, subprocess, warnings
from mfmd import Note, cli
from mfmd.commands import info

def run(arguments):
    print("words", flush=True)
    os.write(1, b"of compiled code\\n")
    subprocess.run(["echo", "of another process"], check=True)
    warnings.warn("what was assumed", Note)
    warnings.warn("what is wrong", UserWarning)
    return {"energy": 1.5, "unit": "eV/Å³"}

info.run = run
cli.main()
"""


def test_json_is_all_of_stdout():
    """Whatever else is said there, by Python, by compiled code or by a process that is started."""
    done = process(SAYS, "info", "model.pt")
    assert done.stdout == "words\nof compiled code\nof another process\n"
    assert done.stderr == "note: what was assumed\nwarning: what is wrong\n"
    done = process(SAYS, "info", "model.pt", "--json")
    assert json.loads(done.stdout) == {"energy": 1.5, "unit": "eV/Å³"}
    assert done.stderr == "note: what was assumed\nwarning: what is wrong\n"
    done = process(SAYS, "info", "model.pt", "--quiet")
    assert done.stdout == "" and done.stderr == "warning: what is wrong\n"


def test_json_of_eval(model_file, tmp_path, monkeypatch, capsys):
    """In eV and Å, the errors that labels have which are off by known amounts."""
    atoms = ethanol()
    out = Engine(model_file).compute(atoms.positions, atoms.numbers, terms=[("high", 1.0)])
    atoms.info |= {"molecule": "ethanol", "energy_high": out["energy"] + 0.25}
    atoms.arrays["forces_high"] = out["forces"] + np.where(np.arange(27).reshape(9, 3) == 4, 0.27, 0.0)
    unlabelled = ethanol()
    ase.io.write(tmp_path / "labels.xyz", [atoms, unlabelled], format="extxyz")
    command(monkeypatch, "eval", model_file, tmp_path / "labels.xyz", "-o", tmp_path, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [(row["group"], row["label"], row["count"], row["unit"]) for row in found["errors"]] == [
        ("ethanol", "energy", 1, "eV"), ("all", "energy", 1, "eV"), ("ethanol", "forces", 27, "eV/Å"), ("all", "forces", 27, "eV/Å"),
    ]  # fmt: skip
    assert [row["mae"] for row in found["errors"]] == pytest.approx([0.25, 0.25, 0.01, 0.01], abs=1e-6)
    assert found["errors"][3]["rmse"] == pytest.approx(0.27 / np.sqrt(27), abs=1e-6)
    assert {"level": "high", "elements": [], "states": [], "structures": 1} in found["left_out"] and os.path.exists(found["report"])


def test_json_of_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "water" and "energy_cctz" in a.info]
    ase.io.write(tmp_path / "small.xyz", frames, format="extxyz")
    config = small_config(tmp_path)
    command(monkeypatch, config, "--show-plan", "--json", program=cli.train)
    shown = json.loads(capsys.readouterr().out)["config"]
    assert shown["train"]["epochs"] == 2 and [stage["levels"].keys() for stage in shown["stages"]] == [{"gfn2", "dft", "cctz"}]
    command(monkeypatch, config, "--json", program=cli.train)
    said = capsys.readouterr()
    found = json.loads(said.out)
    with open(tmp_path / "run" / "errors.csv") as file:
        assert [{key: str(row[key]) for key in row if key != "unit"} for row in found["errors"]] == list(csv.DictReader(file))
    assert {row["unit"] for row in found["errors"]} >= {"eV", "eV/atom"} and str(tmp_path / "run" / "model.pt") in found["files"]
    assert "Errors on the validation set" in said.err


def test_json_of_dynamics(model_file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openmm")
    ethanol().write(tmp_path / "start.xyz")
    words = [model_file, tmp_path / "start.xyz", "-o", tmp_path / "run", "--host", "python", "--time", "0.05", "--checkpoint", "0.05"]
    command(monkeypatch, "md", *words, "--no-minimize", "--timestep", "0.1", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 500 and found["ns_per_day"] > 0 and found["far"] == 0
    assert str(tmp_path / "run" / "trajectory.dcd") in found["files"]


# ------------------------------------------------------------------------------------------------ progress


def test_a_library_says_nothing(capfd):
    assert list(progress.over(range(3), "waiting", "steps")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_log_has_lines_now_and_then(monkeypatch, capsys):
    """One a minute in the beginning, then one each time it has lasted a tenth longer; with the time that is left."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.told(), progress.task("stage dft", "epochs", 1000, done=100) as waited:
        for k in range(101, 1001):
            now[0] += 10.0
            waited.reach(k, "loss 0.5")
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0] == "stage dft: 106/1,000 epochs, 2 h 29 min left, loss 0.5" and said.out == ""
    assert lines[1].startswith("stage dft: 112/1,000") and 25 < len(lines) < 40
    assert not list(progress.over([], "nothing", "steps")) and capsys.readouterr().err == ""


def test_a_terminal_has_bars_that_go(tmp_path):
    code = """
import sys, time
from mfmd import progress
progress.PATIENCE = 0.3
with progress.told():
    for k in progress.over(range(10), "labelling", "labels"):
        time.sleep(0.1)
    print("a result")
"""
    terminal, other = pty.openpty()
    with open(tmp_path / "out", "w") as out:
        running = subprocess.Popen(
            [sys.executable, "-c", code], stdout=out, stderr=other, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        )
    os.close(other)
    said = b""
    while running.poll() is None or not said.endswith(b"\x1b[?25h"):
        try:
            said += os.read(terminal, 4096)
        except OSError:  # its end, on Linux
            break
    os.close(terminal)
    assert (tmp_path / "out").read_text() == "a result\n"
    drawn = said.decode()
    assert "labelling" in drawn and re.search(r"\d/10 labels, \d s left", drawn)
    assert not re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn[drawn.rindex("\x1b[2K") :]).strip()  # the line is empty in the end


# ------------------------------------------------------------------------------------------------ help, completion


def test_help_loads_nothing_heavy():
    code = "import sys; from mfmd import cli; cli.mfmd_parser().format_help(); print([m for m in sys.argv[1:] if m in sys.modules])"
    done = process(code, "numpy", "ase", "torch", "rich", "openmm", "shtab", "jinja2", "mfmd.engine")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "line, expected",
    [
        ("mfmd ", {"label", "suggest", "import", "info", "eval", "md", "export", "check", "build-host", "doctor", "completion"}),
        ("mfmd md --ens", {"--ensemble"}),
        ("mfmd md --ensemble ", {"nve", "nvt", "npt"}),
        ("mfmd export --for ", {"openmm", "gromacs", "torchscript"}),
        ("mfmd eval mod", {"model.pt"}),
        ("mfmd md model.pt start.pdb -o ", {"runs"}),
        ("mfmd-train --show", {"--show-plan"}),
        ("mfmd-train con", {"config.yaml"}),
    ],
)
def test_bash_completes(line, expected, tmp_path, bash_script):
    for name in ("model.pt", "config.yaml", "start.pdb"):
        (tmp_path / name).touch()
    (tmp_path / "runs").mkdir()
    words = line.split(" ")
    code = f"""
source {bash_script}
COMP_WORDS=({" ".join(word or '""' for word in words)}); COMP_CWORD={len(words) - 1}
$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\) .*/\\1/') {words[0]} "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    found = {word.rstrip("/") for word in done.stdout.split()}
    assert expected <= found and ("model.pt" in expected or "model.pt" not in found), done.stderr


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    done = process("from mfmd import cli; cli.main()", "completion", "bash")
    path = tmp_path_factory.mktemp("completion") / "mfmd.bash"
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_scripts_of_both_programs(shell, monkeypatch, capsys):
    command(monkeypatch, "completion", shell)
    said = capsys.readouterr().out
    assert "build-host" in said and "show-plan" in said


# ------------------------------------------------------------------------------------------------ packages, doctor


def test_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for name, (package, extra) in packages.PACKAGES.items():
        named = [re.match(r"[\w-]+", line)[0] for line in extras["torchforce" if extra is None else extra]]
        assert package in named, name
    told = {package for package, _ in packages.PACKAGES.values()} | {"mpich"}  # of which nothing is imported
    for extra in extras.keys() - {"test", "fuzz", "docs"}:
        assert {re.match(r"[\w-]+", line)[0] for line in extras[extra]} <= told, extra


def test_every_dependency_is_accounted_for():
    """In SECURITY.md: all that users install, and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra, own in project["optional-dependencies"].items() if extra not in ("test", "fuzz", "docs") for line in own]
    wanted = {re.match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *lines]}
    rows = re.findall(r"^\| ([\w, -]+) \|", (ROOT / "SECURITY.md").read_text().partition("## Dependencies")[2], re.M)
    assert {name for row in rows if row != "package" for name in row.split(", ")} == wanted


def test_what_is_missing_is_named_with_what_installs_it(model_file, tmp_path):
    code = "import sys; sys.modules['openmm'] = None; from mfmd import cli; cli.main()"
    done = process(code, "md", model_file, "start.pdb", "-o", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"error: [^\n]*openmm[^\n]*; `pip install 'mfmd\[openmm\]'` installs it\n", done.stderr)


def asked(host, folder, monkeypatch, name, source):
    """What the doctor finds of a host where a package is this."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return doctor._asked(host)


@pytest.mark.parametrize(
    "source, fails",
    [
        ("import os; os.abort()", "it ends the process (SIGABRT)"),
        ("raise OSError('libsomething.so: wrong ELF class')", "libsomething.so: wrong ELF class"),
        ("import sys; sys.exit(3)", "it says nothing"),
        ("__version__ = '8.4.0'", "openmm 8.4.0 has no PythonForce"),
    ],
)
def test_doctor_of_what_is_broken(source, fails, tmp_path, monkeypatch):
    found = asked(doctor.openmm_python, tmp_path, monkeypatch, "openmm", source)
    assert found == {"fails": fails, "mend": "pip install 'openmm>=8.5'"}


def test_doctor_of_what_is_missing(tmp_path, monkeypatch):
    found = asked(doctor.openmm_python, tmp_path, monkeypatch, "openmm", "import nothing_of_this_name as openmm")
    assert found["fails"] == "No module named 'nothing_of_this_name'" and found["mend"] == "pip install 'openmm>=8.5'"
    found = asked(doctor.openmm_python, tmp_path, monkeypatch, "openmm", "raise ModuleNotFoundError('gone', name='openmm')")
    assert found == {"fails": "gone", "mend": "pip install 'mfmd[openmm]'"}


def test_doctor_where_the_engine_does_not_load(tmp_path, monkeypatch, capsys):
    """One sentence, exit code 1, and all the rest."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Broken:\n    def find_spec(self, name, *_):\n        if name == 'mfmd._engine': raise ImportError('libmfmd.so is gone')\n"
        "sys.meta_path.insert(0, Broken())\n"
    )
    monkeypatch.setattr(doctor, "HOSTS", {host: doctor.HOSTS[host] for host in (doctor.engine, doctor.openmmml)})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "doctor")
    said = capsys.readouterr().out
    assert end.value.code == 1 and f"numpy {np.__version__}" in said
    (line,) = [line for line in said.splitlines() if line.startswith("engine: ")]
    assert "the compiled engine does not load (libmfmd.so is gone)" in line and "pip install" in line
    with pytest.raises(SystemExit):
        command(monkeypatch, "doctor", "--json")
    assert "libmfmd.so is gone" in json.loads(capsys.readouterr().out)["engine"]["fails"]


def test_doctor_of_the_engine(monkeypatch, capsys):
    """It has the instruction set that the environment names: here the least of this machine's."""
    monkeypatch.setattr(doctor, "HOSTS", {doctor.engine: doctor.HOSTS[doctor.engine]})
    least = _engine.instruction_sets()[-1]
    monkeypatch.setenv("MFMD_SIMD", least)
    command(monkeypatch, "doctor", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["engine"]["instruction_set"] == least and found["engine"]["threads"] == len(os.sched_getaffinity(0))
    assert found["packages"]["numpy"] == np.__version__ and set(found["engine"]["cuda"]) == {"compiled", "devices"}
