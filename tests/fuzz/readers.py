"""Everything that is read in Python, on any content: what cannot be used is refused in one sentence, and nothing else is raised.

python tests/fuzz/readers.py TARGET [options of libFuzzer] [folders of inputs]; --targets prints their names, --seeds FOLDER writes right inputs of each.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path

import ase.io
import atheris
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mfmd import Error
from mfmd.config import load
from mfmd.hosts.topology import read_start
from mfmd.labelling.journal import Journal
from mfmd.labelling.schema import Config as Labels
from mfmd.structures.formats import registry
from mfmd.structures.reading import fingerprints, read_file
from mfmd.training import plan, schema
from mfmd.training.run import check_same

FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)  # which libFuzzer passes by; run.py gives it a place that goes with it
DEMO = Path(__file__).parents[2] / "examples" / "demo.yaml"
LABELLED = FOLDER / "labelled.xyz"  # of the run that target `plan` goes on with
LABELLED.write_text("2\nProperties=species:S:1:pos:R:3 energy_gfn2=-1.0\nO 0 0 0\nH 0 0 0.96\n")
CONFIG = load(
    DEMO,
    plan.Config,
    [f"out={FOLDER}", f"data.train={LABELLED}", f"data.val={LABELLED}", f"data.test={LABELLED}", f"data.atoms={LABELLED}"],
)
LEVELS = {"dft": schema.Level(energy="energy", forces="forces", stress="stress")}
KEYS = [
    "Z",
    "R",
    "energy",
    "forces",
    "stress",
    "charge",
    "spin",
    "multiplicity",
    "cell",
    "pbc",
    "N",
    "e_unit",
    "r_unit",
    "charges",
    "fragment",
    "smiles",
]


def _data(path, **more):
    return schema.Data(train=str(path), val=0.5, **more)


def _structures(path, **more):
    for structure in read_file(path, _data(path, **more), LEVELS):
        for label in structure.labels.values():
            for kind in ("energy", "forces", "stress"):
                value = getattr(label, kind)
                assert value is None or np.isfinite(value).all(), f"{kind} is not finite"
        assert np.isfinite(structure.positions).all(), "a position is not finite"


def _file(name, use, content):
    path = FOLDER / name
    path.write_bytes(content)
    use(path)


def _array(data):
    """Any array of any shape and type, with numbers that are mostly small."""
    shape = tuple(data.ConsumeIntInRange(0, 4) for _ in range(data.ConsumeIntInRange(0, 3)))
    kind = data.PickValueInList(["<f8", "<i8", "<f4", "u1", "S4", "?"])
    count = int(np.prod(shape))
    if kind == "S4":
        return np.array([data.ConsumeBytes(4) for _ in range(count)], "S4").reshape(shape)
    if data.ConsumeBool():
        return np.array([data.ConsumeIntInRange(-2, 9) for _ in range(count)]).reshape(shape).astype(kind)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array([data.ConsumeFloat() for _ in range(count)], float).reshape(shape).astype(kind)


def _arrays(content):
    data = atheris.FuzzedDataProvider(content)
    return {data.PickValueInList(KEYS): _array(data) for _ in range(data.ConsumeIntInRange(1, 8))}


def _npz(content):
    """Raw bytes as a .npz, or arrays of any kind in one that is right."""
    if content[:1] == b"P":
        return _file("a.npz", _structures, content)
    np.savez(FOLDER / "a.npz", **_arrays(content))
    _structures(FOLDER / "a.npz")


def _hdf5(content):
    import h5py

    path = FOLDER / "a.h5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for k, (key, value) in enumerate(_arrays(content).items()):
            file[f"{'mol/' * (len(content) % 3)}{key}"] = value
            if k % 4 == 3:
                file.attrs[key] = value
    _structures(path)


def _deepmd(content):
    folder = FOLDER / "system"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "set.000").mkdir(parents=True)
    data = atheris.FuzzedDataProvider(content)
    for name in ("type.raw", "type_map.raw", "nopbc"):
        if data.ConsumeBool():
            (folder / name).write_bytes(data.ConsumeBytes(data.ConsumeIntInRange(0, 12)))
    for name in ("coord", "box", "energy", "force", "virial", "charge", "real_atom_types"):
        if (kind := data.ConsumeIntInRange(0, 3)) > 1:
            np.save(folder / "set.000" / f"{name}.npy", _array(data))
        elif kind:
            (folder / "set.000" / f"{name}.npy").write_bytes(data.ConsumeBytes(data.ConsumeIntInRange(0, 200)))
    _structures(folder)


def _multifidelity(content):
    """A record of the set, of right metadata."""
    import lmdb
    import pyarrow
    import pyarrow.parquet

    folder = FOLDER / "set"
    if not folder.exists():
        folder.mkdir()
        row = {
            "formula": "OH2",
            "conformation_idx": 0,
            "method": "dft",
            "energy": 1.0,
            "energy_unit": "eV",
            "forces_present": True,
            "forces_unit": "eV/Å",
            "idx": 7,
        }
        pyarrow.parquet.write_table(pyarrow.table({key: [value] for key, value in row.items()}), folder / "metadata.parquet")
    with lmdb.open(str(folder / "data.lmdb"), subdir=False, map_size=1 << 20) as records, records.begin(write=True) as transaction:
        transaction.put(b"7", content or b" ")
    levels = {"dft": schema.Level(energy="dft.energy", forces="dft.forces", stress="-")}
    list(read_file(folder / "metadata.parquet", _data(folder), levels))


def _journal(path):
    journal = Journal(path)
    journal.isolated()
    with contextlib.suppress(StopIteration):
        journal.first_failure("dft")


def _began(path):
    """What a run began with that is to go on."""
    check_same(CONFIG, path)


TARGETS = {
    "extxyz": functools.partial(_file, "a.xyz", _structures),
    "trajectory": functools.partial(_file, "a.traj", _structures),
    "asedb": functools.partial(_file, "a.json", _structures),
    "npz": _npz,
    "hdf5": _hdf5,
    "deepmd": _deepmd,
    "n2p2": functools.partial(_file, "input.data", _structures),
    "qcschema": functools.partial(_file, "q.json", functools.partial(_structures, format="qcschema")),
    "multifidelity": _multifidelity,
    "config": functools.partial(_file, "a.yaml", functools.partial(load, schema=plan.Config)),
    "label_config": functools.partial(_file, "l.yaml", functools.partial(load, schema=Labels)),
    "plan": functools.partial(_file, "plan.json", _began),
    "journal": functools.partial(_file, "labels.jsonl", _journal),
    "pdb": functools.partial(_file, "a.pdb", read_start),
    "mmcif": functools.partial(_file, "a.cif", read_start),
}


def seeds(folder):
    """Right inputs of each target that reads a file's bytes."""
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[8, 8, 8], pbc=True, info={"charge": 0, "spin": 1})
    water.calc = SinglePointCalculator(water, energy=-1.5, forces=np.full((3, 3), 0.25), stress=np.full(6, 0.01))
    written = {"trajectory": "a.traj", "asedb": "a.json", "pdb": "a.pdb", "mmcif": "a.cif"}
    content = {name: [] for name in TARGETS}
    for comment in (
        "",
        'Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 charge=1 multiplicity=2 pbc="T T F" Lattice="8 0 0 0 8 0 0 0 8"',
    ):
        row = " 0.1 0.2 0.3" if comment else ""
        content["extxyz"].append(f"2\n{comment}\nO 0 0 0{row}\nH 0 0 0.96{row}\n".encode())
    for target, name in written.items():
        path = FOLDER / name
        if target == "trajectory":
            ase.io.write(path, [water, water])
        elif target == "pdb":
            ase.io.write(path, water, format="proteindatabank")
        elif target == "mmcif":
            path.write_text(
                "data_a\n_cell.length_a 8\nloop_\n_atom_site.group_PDB\n_atom_site.id\n_atom_site.type_symbol\n_atom_site.label_atom_id\n"
                "_atom_site.label_comp_id\n_atom_site.label_asym_id\n_atom_site.label_seq_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\n"
                "HETATM 1 O O HOH A 1 0.0 0.0 0.0\nHETATM 2 H H1 HOH A 1 0.96 0.0 0.0\nHETATM 3 H H2 HOH A 1 -0.24 0.93 0.0\n"
            )
        else:
            ase.io.write(path, water)
        content[target].append(path.read_bytes())
    file = io.BytesIO()
    np.savez(file, Z=water.numbers, R=water.positions[None], energy=[-1.5], forces=np.ones((1, 3, 3)), charge=0)
    content["npz"].append(file.getvalue())
    atom = "atom 0 0 {z} {s} 0 0 0.1 0.2 0.3\n"
    content["n2p2"].append(
        f"begin\nlattice 9 0 0\nlattice 0 9 0\nlattice 0 0 9\n{atom.format(z=0, s='O')}{atom.format(z=1.8, s='H')}energy -1.5\ncharge 0\nend\n".encode()
    )
    result = {"schema_name": "qcschema_output", "schema_version": 1, "driver": "gradient", "return_result": [0.1] * 9, "success": True,
              "molecule": {"symbols": ["O", "H", "H"], "geometry": [0, 0, 0, 1.8, 0, 0, -0.4, 1.7, 0], "molecular_charge": 0, "molecular_multiplicity": 1},
              "properties": {"return_energy": -76.0}}  # fmt: skip
    content["qcschema"] += [json.dumps(result).encode(), json.dumps([result]).encode()]
    content["multifidelity"].append(
        json.dumps({"positions": water.positions.tolist(), "atomic_numbers": [8, 1, 1], "forces": [[0.1] * 3] * 3}).encode()
    )
    content["config"].append(DEMO.read_bytes())
    content["label_config"].append(DEMO.with_name("label.yaml").read_bytes())
    rows = [
        {"id": "a", "level": "dft", "energy": -1.0, "forces": [[0.0] * 3]},
        {"id": "isolated O", "level": "dft", "energy": -1.0},
        {"id": "b", "level": "dft", "error": "no convergence"},
    ]
    content["journal"].append("".join(json.dumps(row) + "\n" for row in rows).encode())
    for files in (fingerprints(CONFIG.data), None):
        content["plan"].append(json.dumps(CONFIG.model_dump(mode="json") | {"files": files, "checkpoint": None}).encode())
    for name in ("hdf5", "deepmd", "npz"):
        content[name] += [np.random.default_rng(k).integers(0, 256, 200, np.uint8).tobytes() for k in range(4)]
    for target, inputs in content.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for k, one in enumerate(inputs):
            (folder / target / str(k)).write_bytes(one)


def instrument():
    """What libFuzzer is to see of: our functions, and ASE's of its formats. (Its import hook sees nothing of an editable installation: findings/.)"""
    for name in registry.NAMES:
        importlib.import_module(f"mfmd.structures.formats.{name}")
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType) and (function.__module__ or "").startswith(("mfmd.", "ase.io.", "ase.db.")):
            atheris.instrument_func(function)


def main():
    if sys.argv[1] == "--targets":
        print(*TARGETS)
    elif sys.argv[1] == "--seeds":
        seeds(Path(sys.argv[2]))
    else:
        use = TARGETS[sys.argv[1]]
        instrument()

        def target(content):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    use(content)
                except Error as error:
                    assert "\n" not in str(error), "more than one line"

        atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
