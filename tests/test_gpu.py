"""benchmarks/gpu.py, what `make gpu` runs: whatever a part does, the others run, and all is told."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("torch")
sys.path.append(str(ROOT / "benchmarks"))
import gpu


def test_each_part_says_what_came_of_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").mkdir()
    benchmark = tmp_path / "benchmarks" / "speed.py"
    benchmark.write_text(
        "import json, sys\nprint('| ms |\\n|---|\\n| 7.5 |')\nopen(sys.argv[sys.argv.index('--json') + 1], 'w').write('{\"ms\": 7.5}')\n"
    )
    tests = tmp_path / "test_it.py"
    tests.write_text("import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no card')\n")
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    sleeper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parts = [
        gpu.Part("a benchmark", (str(benchmark),), 60, alone=True),
        gpu.Part("tests", (str(tests),), 60),
        gpu.Part("tests that are skipped", (str(tests), "-k", "test_b"), 60),
        gpu.Part("memcheck", (str(tests),), 60, (gpu.SANITIZER,), tool="memcheck"),
        gpu.Part("broken", ("-c", "raise SystemExit('it is broken')"), 60),
        gpu.Part("too long", ("-c", sleeper), 1.5),
        gpu.Part("beside a peer", ("-c", "print('?')"), 60, ("a package that is not",)),
    ]
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text("#!/bin/sh\nshift 4\n\"$@\" || exit\necho '========= ERROR SUMMARY: 2 errors'\nexit 9\n")
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(gpu.NEEDS, "a package that is not", lambda _: False)
    assert not gpu.drive(parts, "whole", tmp_path / "out")
    assert gpu.drive(parts[1:2], "first", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "whole.json").read_text())
    assert {"card", "driver", "CUDA of torch", "torch", "date", "commit"} <= set(told["made"])
    found = {part["name"]: part for part in told["parts"]}
    assert {name: part["outcome"] for name, part in found.items()} == {
        "a benchmark": "passed",
        "tests": "passed",
        "tests that are skipped": "failed: no test ran",
        "memcheck": "failed: exit code 9",
        "broken": "failed: exit code 1",
        "too long": "failed: over its limit of 1.5 s",
        "beside a peer": "left out: needs a package that is not",
    }
    assert found["a benchmark"]["numbers"] == {"ms": 7.5} and re.match("1 passed, 1 skipped", found["tests"]["found"])
    assert re.match("1 passed, 1 skipped in .*; ERROR SUMMARY: 2 errors$", found["memcheck"]["found"])
    page = (tmp_path / "out" / "whole.md").read_text()
    assert "| 7.5 |" in page and "it is broken" in page and "| beside a peer | left out: needs a package that is not |" in page
    assert "failed: tests that are skipped, memcheck, broken, too long" in capsys.readouterr().out
    assert not (tmp_path / "alive").exists()


def test_every_part_has_tests():
    """Those that it names, and those that its -k chooses."""
    chosen = [part for part in gpu.PARTS if part.tests]
    files = sorted({word.partition("::")[0] for part in chosen for word in part.command if word.startswith("tests/")})
    done = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", *files], cwd=ROOT, capture_output=True, text=True, check=True)
    every = [line for line in done.stdout.splitlines() if "::" in line]
    for part in chosen:
        named = [word for word in part.command if word.startswith("tests/")]
        if "-k" in part.command:
            choice = re.sub(r"\b(?!and\b|or\b|not\b)\w+", lambda word: f"({word[0]!r} in name)", part.command[-1])
            assert any(eval(choice, {"name": name}) for name in every if name.startswith(tuple(named))), part.name
        else:
            assert set(named) <= set(every), part.name


def test_what_a_part_needs_is_known():
    assert {need for part in gpu.PARTS for need in part.needs} <= gpu.NEEDS.keys()
    assert len({part.slug for part in gpu.PARTS}) == len(gpu.PARTS)
    assert all(part.first or part.whole for part in gpu.PARTS)
