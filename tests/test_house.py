"""The house: imports run downward, no two rooms import each other in a circle, what is light stays light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

FLOORS = [  # each uses what stands before it, and itself
    {"mfmd", "mfmd.progress", "mfmd.units", "mfmd.whole"},
    {"mfmd.config", "mfmd.engine", "mfmd.lock"},
    {"mfmd.structures"},
    {"mfmd.evaluation", "mfmd.reports"},
    {"mfmd.training"},
    {"mfmd.foreign", "mfmd.hosts", "mfmd.labelling"},
    {"mfmd.suggest", "mfmd.checking"},
    {"mfmd.md"},
    {"mfmd.commands"},
    {"mfmd.cli"},
]


def modules(folder):
    """{name: path} of the Python files below a folder."""
    out = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT if folder == "mfmd" else ROOT / folder).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def imports(path, known):
    """Those of the known modules that a file imports, wherever in it."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            out |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return out & known.keys()


@pytest.mark.parametrize("folder", ["mfmd", "benchmarks", "tests", "examples/study"])
def test_no_circle_of_imports(folder):
    known = modules(folder)
    graph = {name: imports(path, known) - {"mfmd", name} for name, path in known.items()}
    assert any(graph.values()) or folder == "examples/study"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


def test_imports_run_downward():
    known = modules("mfmd")

    def floor(name):
        return next(k for k, rooms in enumerate(FLOORS) if ".".join(name.split(".")[:2]) in rooms)

    for name, path in known.items():
        for other in imports(path, known):
            assert floor(other) <= floor(name), f"{name} imports {other}, which stands above it"


def test_packages_import_nothing():
    """When they are imported; a function of theirs may."""
    for path in (ROOT / "mfmd").glob("*/**/__init__.py"):
        assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(path.read_text()).body), path


def test_no_room_is_too_large():
    for path in modules("mfmd").values():
        assert len(path.read_text().splitlines()) <= 550, path


@pytest.mark.parametrize(
    "names", ["mfmd.labelling", "mfmd.structures", "mfmd.training.schema", "mfmd.training.plan", "mfmd.evaluation", "mfmd.reports"]
)
def test_what_needs_no_torch_loads_none(names):
    """A package: with every module in it."""
    every = [name for name in modules("mfmd") if name == names or name.startswith(names + ".")]
    code = f"import sys, {', '.join(every)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
