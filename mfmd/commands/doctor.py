"""mfmd doctor: what is installed, which hosts load, and what mends those that do not.

Each host is loaded in a process of its own (hosts/apart.py).
"""

import concurrent.futures
import importlib.metadata
import os
import platform

import mfmd
from mfmd import progress
from mfmd.commands.packages import PACKAGES, install
from mfmd.hosts import apart


def engine():
    """The compiled engine: its instruction set, threads, and CUDA."""
    from mfmd.engine import _engine, default_threads

    return {
        "instruction_set": _engine.instruction_set(),
        "threads": default_threads(),
        "cuda": {"compiled": _engine.has_cuda(), "devices": _engine.cuda_devices()},
    }


def openmm_native():
    from mfmd.hosts import openmm

    openmm.load_native()
    return f"{openmm.native_library().name}, with openmm {openmm.openmm.version.short_version}"


def openmm_python():
    import openmm

    if not hasattr(openmm, "PythonForce"):
        raise ImportError(f"openmm {openmm.__version__} has no PythonForce")
    return f"openmm {openmm.__version__}"


def openmm_torch():
    from mfmd.hosts import torchforce

    torchforce.load_torchforce()
    return f"openmmtorch {importlib.metadata.version('openmmtorch')}"


def openmmml():
    from openmmml import MLPotential

    MLPotential("mfmd", modelPath="model.pt")  # which finds the entry point; the file is read when a System is made
    return f"openmmml {importlib.metadata.version('openmmml')}"


def torchscript():
    from mfmd import engine

    engine.load_torch_host()
    return engine.torch_library().name


def archives():
    """What export for GROMACS and TorchForce, and the TorchScript members of a model file, need of torch."""
    import io

    import torch

    torch.jit.save(torch.jit.script(torch.nn.Identity()), io.BytesIO())
    return f"torch.jit of torch {torch.__version__}"


def lammps():
    from mfmd.hosts import lammps

    lammps.run("region box block 0 9 0 9 0 9\ncreate_box 1 box\npair_style mfmd\n")
    return f"pair_style mfmd, in lmp of {importlib.metadata.version('lammps')}"


def torchsim():
    from mfmd.hosts import torchsim

    return f"{torchsim.MfmdModel.__name__}, with torch-sim-atomistic {importlib.metadata.version('torch-sim-atomistic')}"


HOSTS = {  # a probe: what it is called, and what mends it where its package is there
    engine: ("engine", "pip install --force-reinstall --no-deps mfmd"),
    openmm_native: ("OpenMM, native force", "mfmd build-host openmm"),
    openmm_python: ("OpenMM, PythonForce", "pip install 'openmm>=8.5'"),
    openmm_torch: ("OpenMM, TorchForce", "pip install 'mfmd[torchforce]'"),
    openmmml: ("openmm-ml", "pip install --force-reinstall --no-deps mfmd"),
    torchscript: ("TorchScript", "mfmd build-host torch"),
    archives: ("archives for GROMACS", "pip install 'mfmd[torchforce]'"),
    lammps: ("LAMMPS", "mfmd build-host lammps"),
    torchsim: ("TorchSim", "pip install 'mfmd[torchsim]'"),
}


def _asked(host):
    """{"loads": what} or {"fails": why, "mend": command} of a probe."""
    answer = apart.asked(host)
    if "found" in answer:
        return {"loads": answer["found"]}
    return {"fails": answer["fails"], "mend": install(answer.get("lacks")) or HOSTS[host][1]}


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(arguments):
    packages = {"python": platform.python_version(), "mfmd": mfmd.__version__}
    packages |= {package: _version(package) for package, _ in PACKAGES.values()}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(progress.over(pool.map(_asked, HOSTS), "loading the hosts", "hosts", len(HOSTS)))
    hosts = {host.__name__: answer for host, answer in zip(HOSTS, found, strict=True)}
    answer = hosts.pop("engine")
    result = {"packages": packages, "engine": answer.get("loads", answer), "hosts": hosts}
    _say(result)
    return result


def _say(result):
    have = [f"{package} {version}" for package, version in result["packages"].items() if version]
    print(f"installed: {', '.join(have)}")
    lacking = {}
    for module, (package, _) in PACKAGES.items():
        if result["packages"][package] is None:
            lacking.setdefault(install(module), []).append(package)
    for command, names in lacking.items():
        print(f"not installed: {', '.join(names)}; {command}")
    found = result["engine"]
    if "fails" in found:
        print(f"engine: does not load: {_mended(found)}")
    else:
        cuda = f"compiled in, {found['cuda']['devices']} devices here" if found["cuda"]["compiled"] else "not compiled in"
        print(f"engine: loads; instruction set {found['instruction_set']}, {found['threads']} threads, CUDA: {cuda}")
    names = {host.__name__: name for host, (name, _) in HOSTS.items()}
    for host, answer in result["hosts"].items():
        name = names[host]
        print(f"{name}: loads ({answer['loads']})" if "loads" in answer else f"{name}: {_mended(answer)}")


def _mended(answer):
    """What fails, and what mends it, which a sentence of ours may say itself."""
    return answer["fails"] if answer["mend"] in answer["fails"] else f"{answer['fails']}; `{answer['mend']}` mends it"
