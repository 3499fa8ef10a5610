#!/usr/bin/env bash
# Package:  mdtraj 1.11.1.post2 (HDF5TrajectoryFile, Trajectory.save_hdf5), with tables 3.11.1, numpy 2.4.6
#
# Behaviour: what cannot be written of an HDF5 trajectory is dropped without an exception or a message.
#   Wherever the space ends (here at 2 % to 98 % of the file, which ulimit -f allows instead of a full disk; a
#   small tmpfs does the same), writing, flush() and close() return as if all were well, and the file cannot be
#   opened. The same trajectory as DCD raises (a TypeError, after a line that names
#   the error). It is so with PyTables alone, too.
#
# Why it matters: HDF5Reporter, convert.py and save_hdf5() of a long run end with exit code 0 and nothing to read.
#   What is converted is often deleted afterwards.
#
# Expected: an exception, at the latest when the file is closed.
#
# Seen on 2026-11-29:
#   mdtraj 1.11.1.post2, tables 3.11.1, HDF5 1.14.6, numpy 2.4.6
#   by_file          188205 bytes   25 of 25: no exception, unreadable
#   by_trajectory    192357 bytes   25 of 25: no exception, unreadable
#   by_tables        266696 bytes   25 of 25: no exception, unreadable
#   dcd              264276 bytes   25 of 25: TypeError
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check mdtraj==1.11.1.post2 tables==3.11.1 numpy==2.4.6

venv/bin/python - <<'PY'
import collections
import os
import resource
import signal
import sys
import warnings
from importlib.metadata import version

import mdtraj
import numpy as np
import tables

warnings.simplefilter("error")  # a warning would count as "no longer silent"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # what is beyond the limit is an error of write(), not a signal
ATOMS, FRAMES, PART = 9, 2000, 100
topology = mdtraj.Topology()
residue = topology.add_residue("X", topology.add_chain())
for _ in range(ATOMS):
    topology.add_atom("C", mdtraj.element.carbon, residue)
xyz = np.random.default_rng(0).random((FRAMES, ATOMS, 3)).astype("f4")


def by_file(path):
    with mdtraj.formats.HDF5TrajectoryFile(path, "w", force_overwrite=True) as file:
        file.topology = topology
        for first in range(0, FRAMES, PART):
            file.write(xyz[first : first + PART])
            file.flush()


def by_trajectory(path):
    mdtraj.Trajectory(xyz, topology).save_hdf5(path)


def by_tables(path):
    with tables.open_file(path, "w") as file:
        array = file.create_earray(file.root, "xyz", tables.Float32Atom(), (0, ATOMS, 3))
        for first in range(0, FRAMES, PART):
            array.append(xyz[first : first + PART])
            file.flush()


def dcd(path):
    mdtraj.Trajectory(xyz, topology).save_dcd(path)


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def readable(path):
    try:
        with tables.open_file(path) as file:
            return len(file.get_node("/xyz" if "/xyz" in file else "/coordinates")) == FRAMES
    except Exception:
        return False


print(f"mdtraj {version('mdtraj')}, tables {version('tables')}, HDF5 {tables.hdf5_version}, numpy {np.__version__}")
as_recorded = True
for write in (by_file, by_trajectory, by_tables, dcd):
    limit(resource.RLIM_INFINITY)
    write("whole.h5")
    size, said = os.path.getsize("whole.h5"), collections.Counter()
    assert write is dcd or readable("whole.h5")
    for part in np.linspace(0.02, 0.98, 25):
        limit(int(part * size))
        try:
            write("cut.h5")
            what = "no exception"
        except Exception as error:
            what = type(error).__name__
        limit(resource.RLIM_INFINITY)
        if write is not dcd:
            what += ", whole" if readable("cut.h5") else ", unreadable"
        said[what] += 1
    print(f"{write.__name__:14s} {size:8d} bytes   {', '.join(f'{n} of 25: {what}' for what, n in said.items())}")
    as_recorded &= set(said) == ({"TypeError"} if write is dcd else {"no exception, unreadable"})
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
