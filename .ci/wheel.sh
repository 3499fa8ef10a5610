#!/usr/bin/env bash
# The wheel of one Python: built around the core and the hosts in build/wheels/prebuilt, and run, with each OpenMM, where there is neither torch
# nor a compiler.  .ci/wheel.sh python3.11 8.5.2 8.6.1
set -eu
python=$1
shift
folder=$PWD/build/wheels
if ! "$python" -c "" 2> /dev/null; then
  echo "no wheel for $python: there is no such interpreter"
  exit
fi
tag=$("$python" -c 'import sys; print("cp{}{}".format(*sys.version_info))')
echo "wheel: $tag"
rm -rf "$folder/$tag"
"$python" -m venv "$folder/$tag"
quietly() { "$@" > "$folder/$tag.log" 2>&1 || { cat "$folder/$tag.log"; exit 1; }; }
quietly "$folder/$tag/bin/python" -m pip wheel --no-deps --wheel-dir "$folder/$tag" --config-settings=cmake.define.MFMD_PREBUILT="$folder/prebuilt" .
PATH=$folder/tools/bin:$PATH quietly auditwheel repair --strip --plat "manylinux_2_34_$(uname -m)" --only-plat --wheel-dir dist \
  --exclude 'libOpenMM*' --exclude 'libtorch*' --exclude 'libc10*' "$folder/$tag"/*.whl
wheel=$(echo dist/mfmd-*-"$tag"-*.whl)
size=$(stat -c %s "$wheel")
echo "$wheel: $size bytes"
[ "$size" -lt 12000000 ]

cd "$folder/$tag"
for openmm in "$@"; do
  quietly bin/python -m pip install --quiet --disable-pip-version-check "$OLDPWD/$wheel" "openmm==$openmm"
  quietly bin/python -c "import ase.build; ase.build.molecule('CH3CH2OH').write('ethanol.xyz')"
  begin=$SECONDS
  quietly timeout 60 env -i PATH="$PWD/bin" mfmd md mfmd:chno ethanol.xyz -o "openmm-$openmm" --time 1 --host native
  echo "openmm $openmm: mfmd md, 1 ps of ethanol in $((SECONDS - begin)) s"
done
if bin/python -c "import torch" 2> /dev/null; then
  echo "torch came along with the wheel"
  exit 1
fi
