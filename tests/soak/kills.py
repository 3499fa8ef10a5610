"""Commands that are killed, or meet a full disk, at random moments: they leave whole files and go on to what one has that was left alone.

Each runs as a fork of this process, which has loaded all that takes long to load. A disk that is full is a tmpfs of a few pages, which takes root to mount.
"""

import collections
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import mdtraj
import numpy as np
from backends import tensor, tensors
from conftest import DATA

from mfmd.engine import load_model
from mfmd.structures.packed import Packed

LOADED = (
    "distributed", "lightning", "matplotlib.figure", "mfmd.checking.hosts", "mfmd.foreign", "mfmd.labelling.campaign", "mfmd.md", "mfmd.suggest.choice",
    "mfmd.suggest.written", "mfmd.training.run", "openmm.app", "pyscf.gto", "pyscf.scf", "tblite.interface", "torch",
)  # fmt: skip
IN_A_ROW = 6  # kills before a command is left to end
RARER = 4  # kills to one full disk
ORPHANED = 20  # s, in which all processes that a killed one has started must have ended
PAGE = 4096
KILLED, FULL = "killed", "disk full"
NO_SPACE = "No space left on device"


# ------------------------------------------------------------------------------------------------ what is run


def frames(*molecules):
    return [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] in molecules]


def weights(path):
    return {name: tensor(path, name).tobytes() for name in tensors(path)}


class Kind:
    """variants : to be run in turn; stays : a file of which no line may be lost once it was there"""

    variants, stays = ("",), None

    def prepare(self, folder):
        """Write what the command reads."""


class Train(Kind):
    """Strategies with stages of each kind: by gradient, read-out alone, in closed form, by Gauss-Newton, with replay, several taught to one."""

    variants = ("chain", "chain-newton", "delta", "finetune-readout", "replay", "multihead-newton", "auto")

    def prepare(self, folder):
        water = frames("water")
        chosen = [a for a in water if "energy_cctz" in a.info] + [a for a in water if "energy_dft" not in a.info][:30]
        self.write(folder, chosen, "val: 0.2", "gfn2: , dft: , cctz: ", "epochs: 4, batch_size: 8, learning_rate: 0.005")

    def write(self, folder, structures, data, levels, train):
        """A config, and what it reads."""
        ase.io.write(folder / "train.xyz", structures, format="extxyz")
        shutil.copy(DATA / "atoms.json", folder)
        (folder / "config.yaml").write_text(
            f"""
out: out
resume: true
data: {{train: {folder}/train.xyz, atoms: {folder}/atoms.json, {data}}}
levels: {{{levels}}}
backbone: {{channels: 16, layers: 1, radial_functions: 8}}
train: {{{train}}}
"""
        )

    def words(self, folder, variant):
        return ["mfmd-train", f"{folder}/config.yaml", f"strategy={variant}"]

    def found(self, out):
        return weights(out / "model.pt"), (out / "errors.csv").read_text()


class Pack(Train):
    """A set that is packed and read from disk."""

    variants = ("multihead",)

    def prepare(self, folder):
        many = frames("water", "ammonia", "methane", "formaldehyde")
        self.write(folder, many, "val: 0.02, stream: true", "gfn2: {keep: 20}", "epochs: 1, batch_size: 10")

    def found(self, out):
        return *super().found(out), {path.name: path.read_bytes() for path in (out / "data").glob("*.pack*")}


class Label(Kind):
    """By processes of this machine, or by Dask's."""

    variants, stays = ("local", "Dask"), "labels.jsonl"

    def prepare(self, folder):
        atoms = [ase.build.molecule("H2O") for _ in range(16)]
        for k, one in enumerate(atoms):
            one.rattle(0.02, seed=k)
            one.info["id"] = f"m{k}"
        ase.io.write(folder / "in.xyz", atoms, format="extxyz")
        (folder / "config.yaml").write_text(
            f"out: out\nworkers: 2\nstructures: {folder}/in.xyz\nlevels:\n  gfn2: {{method: GFN2-xTB}}\n  hf: {{method: hf, basis: 6-31g}}\n"
        )

    def words(self, folder, variant):
        return ["mfmd", "label", f"{folder}/config.yaml", *(["--scheduler", cluster()] if variant == "Dask" else [])]

    def found(self, out):
        rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
        keys = [(row["id"], row["level"]) for row in rows]
        assert len(set(keys)) == len(keys), "a label is there twice"
        assert not any("error" in row for row in rows), rows
        return {key: (row["energy"], row.get("forces")) for key, row in zip(keys, rows, strict=True)}, (out / "train.xyz").read_text()


class Dynamics(Kind):
    """Each ensemble, and each format."""

    variants = ("nvt dcd", "nve xtc", "npt dcd", "nvt h5")

    def prepare(self, folder):
        ase.build.molecule("CH3CH2OH").write(folder / "nvt.xyz", format="extxyz")
        shutil.copy(folder / "nvt.xyz", folder / "nve.xyz")
        box = next(a for a in ase.io.read(DATA / "train.xyz", ":") if a.pbc.all())
        ase.io.write(folder / "npt.xyz", ase.Atoms(box.numbers, box.positions, cell=box.cell, pbc=True), format="extxyz")

    def words(self, folder, variant):
        ensemble, form = variant.split()
        return [
            "mfmd", "md", "mfmd:chno", f"{folder}/{ensemble}.xyz", "-o", "out", "--ensemble", ensemble, "--head", "gfn2", "--format", form, "--time", "0.4",
            "--every", "0.01", "--checkpoint", "0.1", "--equilibrate", "0.1", "--report-heads",
        ]  # fmt: skip

    def found(self, out):
        arrays = np.load(out / "checkpoint.npz")
        trajectories = sorted(path for path in out.iterdir() if path.stem == "trajectory")
        said = {
            path.name: mdtraj.load(path, **({} if path.suffix == ".h5" else {"top": out / "topology.pdb"})).xyz.tobytes()
            for path in trajectories
        }
        assert said
        for name in ("log.csv", "heads.csv", "domain.csv", "final.pdb", "outside.xyz"):
            if (out / name).exists():
                said[name] = [line for line in (out / name).read_text().splitlines() if not line.startswith("REMARK")]
        return said, {name: arrays[name].tolist() for name in ("positions", "velocities", "box", "step")}


class Suggest(Kind):
    def prepare(self, folder):
        ase.io.write(folder / "pool.xyz", frames("water", "ammonia")[::20][:24], format="extxyz")

    def words(self, folder, variant):
        return [
            "mfmd", "suggest", "mfmd:chno", f"{folder}/pool.xyz", "--count", "8", "--levels", "cctz", "--cost", "cctz=100", "--workers", "1", "-o", "out/chosen.xyz"
        ]  # fmt: skip

    def found(self, out):
        return (out / "chosen.xyz").read_text(), (out / "chosen.json").read_text()


class Export(Kind):
    variants = ("gromacs", "torchscript")

    def words(self, folder, variant):
        return ["mfmd", "export", "mfmd:chno", "--for", variant, "-o", f"out/{variant}.pt"]

    def found(self, out):
        (path,) = out.iterdir()
        return (weights(path),)


class Import(Kind):
    variants = ("matgl_v1_own", "matgl_v2_expnorm")

    def words(self, folder, variant):
        return ["mfmd", "import", str(DATA.parent.parent / "tests" / "foreign" / variant), "-o", "out/model.pt"]

    def found(self, out):
        return (weights(out / "model.pt"),)


KINDS = {
    "train": Train(),
    "label": Label(),
    "md": Dynamics(),
    "suggest": Suggest(),
    "export": Export(),
    "import": Import(),
    "packing": Pack(),
}


_cluster = []


def cluster():
    """Address of a Dask scheduler with two workers, which end with this process."""
    if not _cluster:
        program = "from distributed import LocalCluster; import time\nc = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)\nprint(c.scheduler_address, flush=True)\nwhile True: time.sleep(1)"
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, process_group=0)
        _cluster.append((process, process.stdout.readline().strip()))
    return _cluster[0][1]


# ------------------------------------------------------------------------------------------------ how


def start(words, cwd, log):
    """The process number of a fork that runs a command, what it says in a file."""
    sys.stdout.flush(), sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        from mfmd import cli

        sys.argv = words
        {"mfmd": cli.main, "mfmd-train": cli.train}[words[0]]()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(pid, seconds=300.0):
    """Exit code of a fork, or None where it ran still after so long, and was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def orphans(session):
    """Processes that a fork has started, which are there still."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:100])
    return found


def ends(*how):
    """Of a text file, that it does so."""

    def read(path):
        assert path.read_text().endswith(how), f"its last line is {path.read_text().splitlines()[-1:]}"

    return read


def pairs(path):
    """Records of a set that is read from disk, as many as their index says if there is one yet."""
    index = path.with_name(path.name + ".npz")
    assert path.stat().st_size % 8 == 0
    assert not index.exists() or np.load(index)["ends"][-1:].sum() == path.stat().st_size


READ = {
    ".json": lambda path: json.loads(path.read_text()), ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files], ".npy": np.load,
    ".xyz": lambda path: ase.io.read(path, ":"), ".traj": lambda path: ase.io.read(path, ":"), ".html": ends("</html>", "</html>\n"), ".yaml": ends("\n"), ".csv": ends("\n"),
    ".pdb": ends("END", "END\n"), ".pt": lambda path: load_model(path), ".packed": lambda path: list(Packed(path)), ".h5": mdtraj.load, ".pairs": pairs,
    ".ckpt": lambda path: importlib.import_module("torch").load(path, weights_only=False, map_location="cpu"),
}  # fmt: skip
# A command that goes on cuts these back, or writes others.
GROWING = (
    "outside.xyz", "log.csv", "heads.csv", "domain.csv", "metrics.csv", "hparams.yaml", "labels.jsonl", "trajectory.dcd", "trajectory.xtc"
)  # fmt: skip


def whole(out):
    """Every file that has its final name can be read to its end."""
    for path in out.rglob("*"):
        if path.is_file() and path.name not in GROWING and ".partial" not in path.name and not path.name.startswith("."):
            try:
                READ[path.suffix](path)
            except Exception as error:
                raise AssertionError(f"{path} has {path.stat().st_size} bytes, and is not whole: {error!r}") from error


class Work:
    """A variant of a kind, in a folder of its own."""

    def __init__(self, folder, name, variant):
        self.kind, self.variant = KINDS[name], variant
        self.inputs = folder / "inputs" / name
        self.folder = folder / "runs" / f"{name} {variant}".strip().replace(" ", "-")
        self.log, self.out = self.folder / "log", self.folder / "out"
        if not self.inputs.exists():
            self.inputs.mkdir(parents=True)
            self.kind.prepare(self.inputs)
        self.clear()
        self.kind.words(self.inputs, variant)  # which may start what it needs
        begin = time.monotonic()
        self.finish()
        self.seconds, self.wanted = time.monotonic() - begin, self.kind.found(self.out)
        self.bytes = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        assert self.seconds > 0.05, "the command has done nothing"

    def clear(self):
        if self.out.is_mount():  # of a turn that was ended
            subprocess.run(["umount", self.out], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.out.mkdir(parents=True)

    def start(self):
        return start(self.kind.words(self.inputs, self.variant), self.folder, self.log)

    def finish(self):
        code = ended(self.start())
        assert code == 0, f"{self.folder}: exit code {code}\n{self.log.read_text()[-3000:]}"

    def compare(self):
        for got, wanted in zip(self.kind.found(self.out), self.wanted, strict=True):
            assert got == wanted, f"{self.folder}: another result than that of a command that was left alone"

    def alone(self, pid):
        """Nothing that a command had started runs on."""
        begin = time.monotonic()
        while left := orphans(pid):
            assert time.monotonic() - begin < ORPHANED, f"{self.folder}: still there: {left}"
            time.sleep(0.05)

    def lines(self, before):
        """Those that must stay; all that were there before are."""
        path = self.kind.stays and self.out / self.kind.stays
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path and path.exists() else []
        assert lines[: len(before)] == before, f"{path}: lines that were there are there no more"
        return lines

    def killed(self, rng):
        """How often it was, until it had done its work."""
        self.clear()
        kills, there = 0, []
        while kills < IN_A_ROW:
            pid = self.start()
            if (code := ended(pid, rng.uniform(0, self.seconds))) is not None:
                assert code == 0, f"{self.folder}: exit code {code} after {kills} kills\n{self.log.read_text()[-3000:]}"
                break
            kills += 1
            whole(self.out)
            self.alone(pid)
            there = self.lines(there)
        self.finish()
        self.lines(there)
        self.compare()
        return kills

    def full(self, rng):
        """Whether a disk of fewer pages than it needs was full, and the command went on when it was larger."""
        self.clear()
        pages = rng.randrange(1, max(2, self.bytes // PAGE))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", self.out], check=True)
        try:
            pid = self.start()
            code, said = ended(pid), self.log.read_text()
            there = self.lines([])
            if code != 0:
                told = code == 1 and "Traceback" not in said and "error: " in said.splitlines()[-1] and NO_SPACE in said.splitlines()[-1]
                assert told, f"{self.folder}: exit code {code}\n{said[-3000:]}"
                whole(self.out)
                self.alone(pid)
            subprocess.run(["mount", "-o", f"remount,size={self.bytes * 4 + 2**24}", self.out], check=True)
            self.finish()
            self.lines(there)
            self.compare()
        finally:
            subprocess.run(["umount", self.out], check=True)
        return bool(code)


def said(variant, how):
    """A variant and what became of it, as figures.json has them."""
    return f"{variant}, {how}" if variant else how


def turn(folder, name, seed, seconds):
    """Kills and full disks of a kind, in turn, for so long: what run.py adds up."""
    for module in LOADED:
        importlib.import_module(module)
    rng, end = random.Random(f"{name} {seed}"), time.monotonic() + seconds
    sums, works, variants = collections.Counter(), {}, KINDS[name].variants
    variants = rng.sample(variants, len(variants))
    try:
        while time.monotonic() < end:
            variant = min(variants, key=lambda one: sums[one, KILLED])
            if variant not in works:
                works[variant] = Work(folder, name, variant)
            sums[variant, KILLED] += works[variant].killed(rng)
            if RARER * sums[variant, FULL] < sums[variant, KILLED]:
                sums[variant, FULL] += works[variant].full(rng)
    finally:
        for process, _ in _cluster:
            os.killpg(process.pid, signal.SIGKILL)
    count = sum(kills for (_, how), kills in sums.items() if how == KILLED)
    return {"count": count, "sum": {said(*key): of for key, of in sums.items()}}
