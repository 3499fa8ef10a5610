#!/usr/bin/env bash
# Package:  openmm 8.6.1 (openmm.app.XTCReporter), with numpy 2.4.6
#
# Behaviour: an XTC frame that cannot be written is dropped without an exception or
#   a message. On a full device (/dev/full) every frame is lost and the run ends as
#   if all were well; DCDReporter raises OSError there. If space runs out only for
#   a while, the frame in which it ran out stays in the file half written and later
#   frames are appended behind it: what was saved after the shortage is in
#   the file, but a reader stops at the torn frame.
#
# Why it matters: a full disk or quota is the usual end of a long run. With DCD the
#   job stops and can be continued; with XTC it goes on for days without
#   keeping anything, and a short shortage costs all frames after it as well.
#
# Expected: an exception, as from DCDReporter, and no frames behind a torn one.
#
# Seen on 2026-11-27 (Linux; frames of 4 atoms take 104 bytes each):
#   openmm 8.6.1, numpy 2.4.6
#   full device: XTCReporter 30 steps done, no exception
#   full device: DCDReporter stopped at step 1: OSError [Errno 28] No space left on device
#   no shortage:             30 reports, 30 frames found, 3120 bytes
#   shortage, steps 11-20:   30 reports, 10 frames found, 2132 bytes (20 frames and 52 bytes)
#   Requested to decompress 4 coords, file contains 1995
#   openmm's own XTC reader on the second file: XTC file is corrupt
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check openmm==8.6.1 numpy==2.4.6

venv/bin/python - <<'PY'
import resource
import signal
import struct
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openmm as mm
from openmm import app
from openmm.app.internal import xtc_utils

FRAME = 104  # bytes: fixed, because XTC does not compress nine atoms or fewer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # beyond the limit: an error, not the end
sys.unraisablehook = lambda _: None  # DCDReporter fails once more when its file is closed


def size_limit(size):
    """Files cannot grow beyond this many bytes; stands in for a disk that is full for a while."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def simulation(reporter):
    topology, system = app.Topology(), mm.System()
    chain = topology.addChain()
    for _ in range(4):
        topology.addAtom("Ar", app.element.argon, topology.addResidue("AR", chain))
        system.addParticle(40.0)
    sim = app.Simulation(topology, system, mm.VerletIntegrator(0.001),
                         mm.Platform.getPlatformByName("Reference"))
    sim.context.setPositions(np.arange(12.0).reshape(4, 3))
    sim.reporters.append(reporter)
    return sim


def on_full_device(kind):
    sim = simulation(getattr(app, kind)("/dev/full", 1))
    try:
        sim.step(30)
        return f"{sim.currentStep} steps done, no exception"
    except OSError as error:
        return f"stopped at step {sim.currentStep}: OSError {error}"


def frames_found(name, shortage):
    sim = simulation(app.XTCReporter(name, 1))
    sim.step(10)
    size_limit(FRAME * 10 + FRAME // 2 if shortage else None)
    sim.step(10)
    size_limit(None)
    sim.step(10)
    data, found = Path(name).read_bytes(), 0
    starts = struct.pack(">i", 1995)
    # A frame counts if it is all there: behind it the next one starts, or the file ends.
    while (len(data) >= (found + 1) * FRAME and data[found * FRAME:].startswith(starts)
           and data[(found + 1) * FRAME:][:4] in (starts, b"")):
        found += 1
    return found, len(data)


print(f"openmm {version('openmm')}, numpy {np.__version__}")
full = {kind: on_full_device(kind) for kind in ("XTCReporter", "DCDReporter")}
for kind, what in full.items():
    print(f"full device: {kind} {what}")
plain = frames_found("plain.xtc", shortage=False)
torn = frames_found("torn.xtc", shortage=True)
print(f"no shortage:             30 reports, {plain[0]} frames found, {plain[1]} bytes")
print(f"shortage, steps 11-20:   30 reports, {torn[0]} frames found, {torn[1]} bytes "
      f"({torn[1] // FRAME} frames and {torn[1] % FRAME} bytes)")
try:
    reader = f"{xtc_utils.get_xtc_nframes(b'torn.xtc')} frames"
except RuntimeError as error:
    reader = str(error).strip().removeprefix("xtc_read(): ")
print(f"openmm's own XTC reader on the second file: {reader}")
sys.stdout.flush()
as_recorded = (full["XTCReporter"].endswith("no exception") and "OSError" in full["DCDReporter"]
               and plain == (30, 30 * FRAME) and torn == (10, 20 * FRAME + FRAME // 2)
               and "corrupt" in reader)
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
