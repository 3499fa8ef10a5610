"""Hosts are found by the version of what they were compiled against, and refused by one sentence where they do not fit."""

import os
import shutil
import subprocess
import sys

import pytest

import mfmd
from mfmd import engine
from mfmd.hosts import build


def test_names():
    """What is compiled for the installed torch and OpenMM is what is looked for."""
    pytest.importorskip("torch")
    assert engine.torch_library().name == f"libmfmd_torch-{build.torch()[0]}.so"
    pytest.importorskip("openmm")
    assert mfmd.openmm.native_library().name == f"libmfmd_openmm-{build.openmm()[0]}.so"


def test_releases_of_openmm(monkeypatch):
    """A patch release has the host of its minor version; another minor version has none."""
    version = pytest.importorskip("openmm").version
    major, minor, _ = version.short_version.split(".")
    monkeypatch.setattr(version, "short_version", f"{major}.{minor}.99")
    mfmd.openmm.load_native()
    monkeypatch.setattr(version, "short_version", f"{major}.99.0")
    with pytest.raises(engine.HostError, match=f"not compiled for openmm {major}.99.0; run `mfmd build-host openmm`"):
        mfmd.openmm.load_native()


def test_releases_of_torch(monkeypatch):
    """The same, whatever torch was built for."""
    torch = pytest.importorskip("torch")
    major, minor = torch.__version__.split(".")[:2]
    monkeypatch.setattr(torch, "__version__", f"{major}.{minor}.99+rocm9")
    engine.load_torch_host()
    monkeypatch.setattr(torch, "__version__", f"{major}.99.0")
    with pytest.raises(
        engine.HostError, match=f"against torch .*{major}.{minor}.*, and torch {major}.99.0 is installed; run `mfmd build-host torch`"
    ):
        engine.load_torch_host()


def test_host_of_another_mfmd(tmp_path):
    """A host that stayed behind when mfmd was upgraded does not load."""
    pytest.importorskip("openmm")
    content, name = (engine.LIBRARY_DIR / "libmfmd.so").read_bytes(), f"MFMD_{mfmd.__version__}\0".encode()
    assert content.count(name) == 1
    (tmp_path / "libmfmd.so").write_bytes(content.replace(name, name[:-2] + b"x\0"))
    library = shutil.copy(mfmd.openmm.native_library(), tmp_path)
    load = "import openmm, sys; openmm.Platform.loadPluginLibrary(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", load, library], capture_output=True, text=True)
    assert f"version `MFMD_{mfmd.__version__}' not found" in done.stderr


@pytest.mark.parametrize("host", ["openmm", "torch"])
def test_host_that_does_not_load(host, tmp_path, monkeypatch):
    pytest.importorskip(host)
    (tmp_path / "host.so").write_text("damaged")
    if host == "openmm":
        monkeypatch.setattr(mfmd.openmm, "native_library", lambda: tmp_path / "host.so")
    else:
        monkeypatch.setattr(engine, "torch_library", lambda: tmp_path / "host.so")
    with pytest.raises(engine.HostError, match=f"does not load .*; run `mfmd build-host {host}`"):
        mfmd.openmm.load_native() if host == "openmm" else engine.load_torch_host()


def test_folder_of_someone_else(tmp_path, monkeypatch):
    pytest.importorskip("openmm")
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(PermissionError, match="cannot be written to, and libmfmd_openmm-.*; install mfmd into an environment of your own"):
        build.compile_host("openmm", engine.LIBRARY_DIR / "csrc", tmp_path)


def test_hosts_of_the_build(tmp_path, monkeypatch, capsys):
    """What lies beside libmfmd.so from a build before goes; what is not installed, or does not compile, is said, and ends nothing."""
    (tmp_path / "libmfmd_openmm-1.0.so").write_text("of a build before")

    def absent():
        raise ImportError("No module named 'absent'")

    monkeypatch.setattr(build, "HOSTS", {"absent": absent, "torch": lambda: ("1.0", [], [], [], [])})
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(sys, "argv", ["build.py", str(engine.LIBRARY_DIR / "csrc"), str(tmp_path)])
    build.main()
    said = capsys.readouterr().out
    assert (
        "absent is not built (No module named 'absent'); `mfmd build-host absent`" in said
        and "torch is not built (the compiler ends with 1" in said
    )
    assert not list(tmp_path.iterdir())
