"""A function in a process of its own, since a library that does not fit may end the process that loads it."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module

PATIENCE = 300  # s, after which nothing more is waited for
CODE = "import sys; from mfmd.hosts import apart; apart.answer(*sys.argv[1:])"


def asked(function, *given):
    """Call function(*given) of a module there.

    Returns
    -------
    dict: found, what it returned; or fails, why in words, and of an ImportError lacks, the name of the module that is not there, or None
    """
    try:
        line = [
            sys.executable,
            "-P",
            "-c",
            CODE,  # nothing is imported from the folder at hand
            function.__module__,
            function.__name__,
        ]
        done = subprocess.run(line, input=json.dumps(given), capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"fails": f"it has not answered after {PATIENCE} s"}
    if done.returncode < 0:
        return {"fails": f"it ends the process ({signal.Signals(-done.returncode).name})"}
    if done.returncode or not done.stdout:
        return {"fails": (done.stderr.strip().splitlines() or ["it says nothing"])[-1]}
    return json.loads(done.stdout)


def answer(module, name):
    """Of that process: one JSON line on stdout."""
    kept = os.dup(1)
    os.dup2(2, 1)  # a library may say something
    try:
        found = {"found": getattr(import_module(module), name)(*json.load(sys.stdin))}
    except Exception as error:  # whatever a broken package raises is what is asked for here
        found = {"fails": " ".join(str(error).split()) or type(error).__name__}
        if isinstance(error, ImportError):
            found["lacks"] = error.name if isinstance(error, ModuleNotFoundError) else None
    os.write(kept, json.dumps(found).encode())
    os._exit(0)  # without what loaded libraries do at the end
