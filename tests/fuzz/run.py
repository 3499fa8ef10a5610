"""Feeds targets with inputs for so long, the one with the fewest executions first, and adds to what counts.json says of them.

python tests/fuzz/run.py build/fuzz --minutes 30 [--targets archive tensors …] [--jobs 2]
python tests/fuzz/run.py build/fuzz --keep      the least inputs that go everywhere the ones found so far do, into tests/fuzz/corpus
python tests/fuzz/run.py build/fuzz --reach     runs all inputs through build/fuzz/coverage
python tests/fuzz/run.py build/fuzz --table     what counts.json says, and how much of csrc the inputs reach where build/fuzz/coverage counts it

Inputs that are found stay in build/fuzz/inputs, so that a later run goes on from them. An input that shows a mistake is kept in build/fuzz/found, named
with its message; the count of that target then begins at zero, and the command ends with 1.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
COUNTS = HERE / "counts.json"
CPP = ("archive", "tensors", "header", "structure", "openmm_force", "lammps_input")
SLICE = 300  # s at most, after which another target has its turn: each begins with all that was found before
PARSERS = ("archive", "tensors")  # for which how near a comparison came is worth knowing; the others would have too many inputs
LONGEST = {"structure": 400}  # bytes of an input
SECONDS = {"cpp": 1, "python": 10}  # after which an input hangs
SANITIZED = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "LSAN_OPTIONS": f"suppressions={HERE / 'leaks.txt'}:print_suppressions=0",
    "OMP_NUM_THREADS": "1",
}


def python_targets():
    return subprocess.run([sys.executable, HERE / "readers.py", "--targets"], capture_output=True, text=True, check=True).stdout.split()


def inputs_of(folder, target):
    """The folder with what was found so far, and what tests/fuzz/corpus has."""
    inputs = folder / "inputs" / target
    inputs.mkdir(parents=True, exist_ok=True)
    kept = HERE / "corpus" / f"{target}.zip"
    if kept.exists():
        zipfile.ZipFile(kept).extractall(inputs)
    return inputs


def start(folder, target, *arguments, build="cpp"):
    """A target, ended: the completed process."""
    program = [folder / build / target] if target in CPP else [sys.executable, HERE / "readers.py", target]
    (folder / "found").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        own = {"MFMD_FUZZ": str(folder), "MFMD_FUZZ_PLUGIN": str(folder / build / "libmfmdplugin.so"), "TMPDIR": scratch}
        return subprocess.run(
            [*program, f"-artifact_prefix={folder / 'found' / target}-", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | SANITIZED | own,
        )


def feed(folder, target, seconds):
    """One turn: executions of new inputs, seconds, and what was found wrong, in words. RuntimeError where it ends without an input that shows why."""
    longest = f"-timeout={SECONDS['cpp' if target in CPP else 'python']}"
    options = [
        f"-max_total_time={seconds:.0f}", longest, "-rss_limit_mb=3000", "-print_final_stats=1", f"-max_len={LONGEST.get(target, 4096)}",
        f"-use_value_profile={int(target in PARSERS)}",
    ]  # fmt: skip
    begin = time.monotonic()
    done = start(folder, target, *options, inputs_of(folder, target), folder / "seeds" / target)
    seconds = time.monotonic() - begin
    known, all_of_them = (re.search(words, done.stderr) for words in (r"#(\d+)\s+INITED", r"stat::number_of_executed_units:\s*(\d+)"))
    executions = int(all_of_them[1]) - int(known[1]) if known and all_of_them else 0
    if not done.returncode:
        return executions, seconds, None
    said, artifact = (
        done.stdout[-4000:] + done.stderr[-4000:],
        re.search(r"Test unit written to (\S+)", done.stderr),
    )  # Python's traceback is in the first
    if not artifact:
        raise RuntimeError(f"{target} ended with {done.returncode}:\n{said}")
    if "timeout" in Path(artifact[1]).name and any(start(folder, target, longest, artifact[1]).returncode == 0 for _ in range(5)):
        Path(artifact[1]).unlink()  # the machine was at other work
        return executions, seconds, None
    Path(f"{artifact[1]}.txt").write_text(said)
    return executions, seconds, said


def run(folder, targets, minutes, jobs):
    """Targets in which something was found."""
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    for target in targets:
        counts.setdefault(target, {"executions": 0, "seconds": 0, "found": 0})
    turns, turn = dict.fromkeys(targets, 0), min(SLICE, 60 * minutes * jobs / len(targets))
    end, busy, bad = time.monotonic() + 60 * minutes, {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while True:
            left = end - time.monotonic()
            free = [t for t in targets if t not in busy.values() and t not in bad]
            while left > 1 and free and len(busy) < jobs:
                target = min(free, key=lambda t: (turns[t], counts[t]["executions"] / (10 if t in CPP else 1)))
                free.remove(target)
                turns[target] += 1
                busy[pool.submit(feed, folder, target, min(turn, max(1, left)))] = target
            if not busy:
                return bad
            for done in concurrent.futures.wait(busy, return_when=concurrent.futures.FIRST_COMPLETED)[0]:
                target, (executions, seconds, wrong) = busy.pop(done), done.result()
                of = counts[target]
                if wrong:
                    of |= {"executions": 0, "seconds": 0, "found": of["found"] + 1}
                    bad.append(target)
                    print(f"{target}: WRONG\n{wrong[-1500:]}", flush=True)
                else:
                    of |= {"executions": of["executions"] + executions, "seconds": round(of["seconds"] + seconds)}
                    print(f"{target}: {executions} executions in {seconds:.0f} s, {of['executions']} in all", flush=True)
                partial = COUNTS.with_suffix(".partial")
                partial.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
                os.replace(partial, COUNTS)


def reach(folder):
    """Every input so far, through the build that counts lines."""
    for target in CPP:
        start(folder, target, "-runs=0", inputs_of(folder, target), folder / "seeds" / target, build="coverage").check_returncode()


def keep(folder):
    """The least inputs that go everywhere the ones so far do; of the targets in C++, since libFuzzer cannot start those in Python anew."""
    (HERE / "corpus").mkdir(exist_ok=True)
    for target in CPP:
        least = folder / "least" / target
        shutil.rmtree(least, ignore_errors=True)
        least.mkdir(parents=True)
        start(folder, target, "-merge=1", least, inputs_of(folder, target)).check_returncode()
        with zipfile.ZipFile(HERE / "corpus" / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(least.iterdir()):
                archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())


def table(folder):
    print("| target | executions since the last find | minutes | found and mended before |\n|---|---|---|---|")
    for target, of in json.loads(COUNTS.read_text()).items():
        print(f"| `{target}` | {of['executions']:,} | {of['seconds'] / 60:.0f} | {of['found']} |")
    coverage = folder / "coverage" / "coverage.json"
    if coverage.exists():
        print("\n| file | lines reached |\n|---|---|")
        for file in json.loads(coverage.read_text())["files"]:
            print(f"| `{file['filename']}` | {file['line_percent']} % of {file['line_total']} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--reach", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    folder, known = arguments.folder.resolve(), [*CPP, *python_targets()]
    targets = arguments.targets or known
    if unknown := set(targets) - set(known):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if arguments.table:
        table(folder)
    elif arguments.reach:
        reach(folder)
    elif arguments.keep:
        keep(folder)
    elif bad := run(folder, targets, arguments.minutes, arguments.jobs):
        sys.exit(f"{', '.join(bad)}: see {folder / 'found'}")


if __name__ == "__main__":
    main()
