#!/bin/sh
# A machine without network, whose Python has torch and the tools of a build: an environment .venv of that Python's packages and of the wheels that
# `make gpu-wheels` has collected, and mfmd in it, compiled for the card at hand. Afterwards `make gpu-first` and `make gpu` do as everywhere.
#   .ci/bare.sh [PYTHON]
set -e
python=${1:-python3}
"$python" -m venv --without-pip .venv
site=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
machine=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)')
echo "$machine" > "$site/machine.pth"
ln -sfn "$machine/nvidia" "$site/nvidia" # the parts of the CUDA toolkit, which wheels look for beside themselves
pip="$PWD/.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps"
$pip --no-compile build/gpu/wheels/*/*.whl
touch .venv/tools .venv/torch
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=${capability:?nvidia-smi names no card}" $pip --no-build-isolation --editable . \
  --config-settings=build-dir=build/newest --config-settings=cmake.define.MFMD_CUDA=on
touch .venv/built .venv/tested
