"""Trajectories: what OpenMM's and mdtraj's writers leave out is an error here."""

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import openmm.app


class DCD(openmm.app.DCDReporter):
    def __del__(self):
        with contextlib.suppress(OSError):  # a full disk has been met before, when the frame was written
            super().__del__()


class XTC(openmm.app.XTCReporter):
    """OpenMM's writer does not look whether a frame has come onto the disk."""

    def __init__(self, file, interval, **options):
        super().__init__(file, interval, **options)
        self.path = Path(file)

    def report(self, simulation, state):
        before = self.path.stat().st_size if self.path.exists() else 0
        super().report(simulation, state)
        with open(self.path, "rb") as file:
            file.seek(before)
            head = file.read(100)
            atoms = int.from_bytes(head[4:8], "big")
            wanted = 56 + 12 * atoms if atoms <= 9 else 92 + (int.from_bytes(head[88:92], "big") + 3) // 4 * 4
            if not head or os.path.getsize(self.path) != before + wanted:
                raise _no_room(self.path)


def _no_room(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def write_hdf5(out, topology, timestep, step, every):
    """trajectory.h5 of mdtraj from trajectory.dcd: an HDF5 file that a killed run left open could not be gone on with.

    Parameters
    ----------
    out : the folder
    timestep : fs
    step, every : the steps before the first frame, and from frame to frame

    Raises
    ------
    OSError : where it could not be written whole
    """
    import mdtraj

    path, partial, atoms = out / "trajectory.h5", out / "trajectory.partial.h5", mdtraj.Topology.from_openmm(topology)

    def frames():
        return mdtraj.iterload(str(out / "trajectory.dcd"), top=atoms, chunk=1000)

    with mdtraj.formats.HDF5TrajectoryFile(str(partial), "w", force_overwrite=True) as file:
        file.topology = atoms
        for part in frames():
            steps = step + every * np.arange(1, part.n_frames + 1)
            file.write(part.xyz, time=1e-3 * timestep * steps, cell_lengths=part.unitcell_lengths, cell_angles=part.unitcell_angles)
            step = steps[-1]
    try:  # PyTables does not say that a disk is full
        for written, part in zip(mdtraj.iterload(str(partial), chunk=1000), frames(), strict=True):
            if not np.array_equal(written.xyz, part.xyz):
                raise ValueError("other positions")
    except Exception as error:
        partial.unlink()
        raise _no_room(path) from error
    os.replace(partial, path)
