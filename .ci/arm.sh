#!/usr/bin/env bash
# A Python of 64-bit Arm with what the engine's tests import, run by qemu-user: FOLDER/python.  .ci/arm.sh FOLDER PIP…
set -eu
for program in aarch64-linux-gnu-g++ qemu-aarch64 apt-get dpkg-deb; do
  command -v $program > /dev/null || { echo "$program is missing; make test-arm is for Debian with its packages g++-aarch64-linux-gnu and qemu-user"; exit 1; }
done
folder=$1 clone=$PWD
shift
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/root"
cd "$folder"

# Debian's arm64 packages, unpacked into a folder: no foreign architecture is added to this machine.
touch apt/status
cat > apt/conf <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::State "$folder/apt";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
CONF
export APT_CONFIG=$folder/apt/conf
apt-get --quiet=2 update
apt-get --quiet=2 --yes --download-only install python3 libpython3-dev libstdc++6 > apt/log
for package in apt/archives/*.deb; do dpkg-deb --extract "$package" root; done
version=$(basename "$(readlink root/usr/bin/python3)")
ln -s ../aarch64-linux-gnu "root/usr/include/$version/"
ln -s "$folder/root/usr/include/$version" include

# The last torch whose wheel for Arm has no CUDA, whose dependencies pip would choose for this machine; omegaconf and its parser have no wheels for one.
wheels="--only-binary=:all: --implementation cp --python-version ${version#python} --platform manylinux2014_aarch64"
for glibc in $(seq 36 -1 17); do wheels="$wheels --platform manylinux_2_${glibc}_aarch64"; done
"$@" --target site $wheels ase jinja2 networkx pydantic pytest pyyaml safetensors sympy
"$@" --target site $wheels --no-deps torch==2.9.1 filelock fsspec
"$@" --target site --no-deps omegaconf antlr4-python3-runtime==4.9.3

cat > python <<PYTHON
#!/bin/sh
exec qemu-aarch64 -L $folder/root -E PYTHONHOME=$folder/root/usr -E PYTHONPATH=$folder/site:$clone -E PYTHONDONTWRITEBYTECODE=1 $folder/root/usr/bin/$version "\$@"
PYTHON
chmod +x python
