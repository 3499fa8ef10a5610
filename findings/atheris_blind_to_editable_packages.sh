#!/usr/bin/env bash
# Package:  atheris 3.0.0 (instrument_imports), with scikit-build-core 1.1.2 (editable installation)
#
# Behaviour: a package that scikit-build-core 1.1.2 has installed editable is not instrumented by
#   instrument_imports, which says "INFO: Instrumenting" of each of its modules all the same. The
#   fuzzer then runs blind: it sees no coverage, keeps no input, and ends with 0. One line of a
#   warning among the rest ("no interesting inputs were found so far") is all there is. Installed as
#   a wheel, or editable by scikit-build-core 0.11.6, the same package is instrumented.
#
# Why it matters: a package of C++ and Python is built editable for daily work, and fuzzing its
#   readers then counts millions of executions that all went the same way.
#
# Expected: coverage as of the wheel, or no word of instrumenting; instrument_func on the functions
#   themselves sees them in each case.
#
# Seen on 2026-11-28 (Python 3.11):
#   wheel                                cov: 2
#   editable, scikit-build-core 0.11.6   cov: 2
#   editable, scikit-build-core 1.1.2    INFO: Instrumenting reader, and no coverage
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
pip() { venv/bin/python -m pip install -q --disable-pip-version-check "$@"; }
pip atheris==3.0.0

mkdir -p package/reader
cat > package/pyproject.toml <<'TOML'
[build-system]
requires = ["scikit-build-core"]
build-backend = "scikit_build_core.build"

[project]
name = "reader"
version = "1"

[tool.scikit-build]
wheel.cmake = false
TOML
cat > package/reader/__init__.py <<'PY'
def read(content):
    if len(content) > 2 and content[0] == 70:
        return 1
    return 0
PY
cat > target.py <<'PY'
import sys

import atheris

with atheris.instrument_imports(include=["reader"]):
    import reader


def target(content):
    reader.read(content)


atheris.Setup(sys.argv, target)
atheris.Fuzz()
PY

# Whether the fuzzer has seen anything of it.
coverage() {
  pip --no-build-isolation --force-reinstall "$@" ./package
  venv/bin/python target.py -runs=2000 > said 2>&1
  grep -q "INFO: Instrumenting reader" said
  grep -o -m 1 "INITED cov: [0-9]*" said || echo "none"
}
pip scikit-build-core==0.11.6
wheel=$(coverage)
editable_before=$(coverage --editable)
pip scikit-build-core==1.1.2
editable=$(coverage --editable)
printf '%-36s %s\n' wheel "$wheel" "editable, scikit-build-core 0.11.6" "$editable_before" "editable, scikit-build-core 1.1.2" "$editable"
if [[ $wheel != INITED* || $editable_before != INITED* || $editable != none ]]; then
  echo "no longer as recorded"
  exit 1
fi
echo "as recorded"
