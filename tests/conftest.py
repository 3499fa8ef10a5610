"""Models and structures the tests share."""

import importlib.util
import json
import sys
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

pytest.register_assert_rewrite("host_contract", "model_contract")
ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples" / "data"
ELEMENTS = (1, 6, 7, 8)
LEVELS = ("low", "middle", "high")  # high is relative to middle


def pytest_addoption(parser):
    parser.addoption("--engine", help="folder of another build of the compiled engine, as `make build/emulated/done` makes one")


def pytest_configure(config):
    if folder := config.getoption("--engine"):
        use_engine(folder)


def use_engine(folder):
    """Another build of the compiled engine, before the first import of mfmd.engine."""
    import mfmd

    (library,) = Path(folder).glob("_engine*.so")
    spec = importlib.util.spec_from_file_location("mfmd._engine", library)
    mfmd._engine = sys.modules["mfmd._engine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mfmd._engine)


def need(device):
    """Skips where there is no such device."""
    from mfmd import _engine

    if device == "cuda" and not _engine.cuda_devices():
        pytest.skip("no CUDA device here; `make test-emulated` runs the same kernels on the CPU")
    return device


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    return need(request.param)


def random_model(seed=0, channels=32, layers=2, cutoff=4.0, rank=2, radial_functions=16):
    """A mfmd.training.model.Model in double with random weights and forces of a few eV/Å."""
    import torch

    from mfmd.training.heads import TABLE, MLPHead
    from mfmd.training.model import Model, TensorNet

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    e0 = np.zeros(TABLE)
    heads = {}
    for k, level in enumerate(LEVELS):
        e0[list(ELEMENTS)] = np.array([-13.6, -1029.0, -1485.0, -2042.0]) * (1 if k < 2 else 0.01)
        heads[level] = MLPHead(channels, scale=60.0 + k, e0=e0.copy(), zero_start=False)
    return Model(TensorNet(channels, layers, cutoff, rank, radial_functions), heads, {"high": "middle"}).eval()


def all_at_once(seed=0):
    """A model that has all at once what published TensorNets have and ours have not: a level `high`."""
    import torch

    from mfmd.training.heads import TABLE, GatedHead
    from mfmd.training.model import Model, TensorNet

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    e0 = np.zeros(TABLE)
    e0[list(ELEMENTS)] = [-13.6, -1029.0, -1485.0, -2042.0]
    head = GatedHead(16, [16, 16, 16], 60.0, e0)
    head.constant = 1.5
    backbone = TensorNet(
        16, 2, 4.0, 2, 3, radial_basis="smooth_bessel", self_pair=False, message="own", readout_activation=False, charge_factor=0.1, zbl=2.5
    )
    return Model(backbone, {"high": head}).eval()


def write(model, path, elements=ELEMENTS, domain=None, states=None):
    from mfmd.training import export

    export.write_model(
        path, model, {level: list(elements) for level in model.heads}, {"made": "by the tests"}, domain=domain, states=states
    )
    return path


@pytest.fixture(scope="session")
def model():
    pytest.importorskip("torch")
    return random_model()


@pytest.fixture(scope="session")
def model_file(model, tmp_path_factory):
    return write(model, tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="session", params=["ours", "published"])
def any_model(request, tmp_path_factory):
    """Files of a model as we train them, and of one that has all that published ones have; both with a level `high`."""
    if request.param == "ours":
        return request.getfixturevalue("model_file")
    pytest.importorskip("torch")
    return write(all_at_once(), tmp_path_factory.mktemp("published") / "model.pt")


SEEN = ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (-1, 2))  # by the heads of charged_file


def add_states(model):
    """What charges and spins add, at random."""
    import torch

    model.backbone.add_states()
    torch.nn.init.normal_(model.backbone.embedding.states, std=0.3)
    for head in model.heads.values():
        torch.nn.init.normal_(head.of_states)


@pytest.fixture(scope="session")
def charged_file(tmp_path_factory):
    """A file of a model that knows cations, anions and open shells beside molecules."""
    pytest.importorskip("torch")
    from mfmd.training import export

    model = random_model(4)
    add_states(model)
    path = tmp_path_factory.mktemp("charged") / "model.pt"
    export.write_model(path, model, {level: ELEMENTS for level in LEVELS}, {"made": "by the tests"}, states=dict.fromkeys(LEVELS, SEEN))
    return path


@pytest.fixture(scope="session")
def test_frames():
    return ase.io.read(DATA / "test.xyz", ":")


def random_cell(seed, pbc=(True, True, True), small=False, atoms=6):
    """A random triclinic structure; `small`: narrower than twice a cutoff of 4 Å, often than one."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(2.5, 5.0, 3) if small else rng.uniform(8.5, 11.0, 3)
    cell = np.diag(size) + np.tril(rng.uniform(-1.2, 1.2, (3, 3)), -1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    numbers = rng.choice(ELEMENTS, atoms)
    structure = Atoms(cell=cell @ rotation, pbc=pbc)
    while len(structure) < atoms:  # no two images closer than the engine's 0.5 Å, with room to move
        candidate = structure + Atoms(numbers[len(structure) : len(structure) + 1], rng.uniform(-0.5, 1.5, (1, 3)) @ structure.cell.array)
        if len(neighbor_list("i", candidate, 0.8)) == 0:
            structure = candidate
    return structure


def ethanol():
    return ase.build.molecule("CH3CH2OH")


def stretched(length=2.2):
    """Ethanol, its OH taken away from the carbon."""
    atoms = ethanol()
    carbon = int(np.argmin(np.where(atoms.numbers == 6, atoms.get_distances(2, range(9)), 9)))
    along = atoms.positions[2] - atoms.positions[carbon]
    atoms.positions[[2, 3]] += along / np.linalg.norm(along) * (length - np.linalg.norm(along))
    return atoms


def ice(volume, edge=2):
    """Cubic ice whose protons are ordered, `volume` Å³ a molecule, `edge` cells along each edge."""
    a = (8 * volume) ** (1 / 3)
    bonds = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    positions = []
    for corner in a * np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]):
        for oxygen, (one, other) in ((corner, bonds[:2]), (corner + a / 4, -bonds[2:])):
            positions += [oxygen, oxygen + 0.99 * one, oxygen + 0.99 * other]
    return Atoms("OHH" * (len(positions) // 3), positions, cell=[a] * 3, pbc=True).repeat(edge)


def changed(**changes):
    """Ethanol with something other: info, cell (periodic), charges or moments of its atoms, or the number or position of its first atom."""
    atoms = ethanol()
    for key, value in changes.items():
        if key == "info":
            atoms.info |= value
        elif key == "moments":
            atoms.set_initial_magnetic_moments(value)
        elif key == "charges":
            atoms.set_initial_charges(value)
        elif key == "cell":
            atoms.set_cell(value)
            atoms.pbc = True
        else:
            getattr(atoms, key)[0] = value
    return atoms


def dimer(distance, elements="OH"):
    return Atoms(elements, [[0, 0, 0], [0, 0, distance]])


@pytest.fixture
def inline(monkeypatch):
    """Tasks of a labelling campaign in this process, where it is not the processes that are tested."""
    from mfmd.labelling import campaign, workers

    monkeypatch.setattr(campaign, "in_parallel", lambda tasks, _: ((key, *workers._guarded(*task)) for key, *task in tasks))


@pytest.fixture
def single():
    """Training in single precision; what default the process had comes back."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def small_config(folder):
    """The config of a run of seconds on three levels, whose data is folder/small.xyz."""
    path = folder / "config.yaml"
    path.write_text(
        f"""
out: {folder}/run
data: {{train: {folder}/small.xyz, val: 0.3, atoms: {DATA}/atoms.json}}
levels: {{gfn2: , dft: , cctz: }}
backbone: {{channels: 16, layers: 1, radial_functions: 8}}
train: {{epochs: 2, batch_size: 8, learning_rate: 0.01}}
"""
    )
    return path


def train_once(folder, frames, **config):
    """The model file of a run on frames of the shipped labels, and the errors that the run returned."""
    pytest.importorskip("lightning")
    import torch

    from mfmd.training import plan
    from mfmd.training.run import train

    ase.io.write(folder / "frames.xyz", frames, format="extxyz")
    data = {"train": str(folder / "frames.xyz"), "val": 0.1, "atoms": str(DATA / "atoms.json")} | config.pop("data", {})
    (folder / "config.yaml").write_text(json.dumps({"out": str(folder / "run"), "data": data, **config}))  # which is YAML too
    before = torch.get_default_dtype()
    tables = train(plan.load(folder / "config.yaml"))
    torch.set_default_dtype(before)
    return folder / "run" / "model.pt", tables


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small model of ethanol with gfn2 forces, dft and cctz energies: a smooth surface molecules stay together on."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.info["molecule"] == "ethanol"]
    return train_once(
        tmp_path_factory.mktemp("trained"), frames, data={"test": 0.1},
        levels={"gfn2": {}, "dft": {"delta_of": "gfn2"}, "cctz": {"delta_of": "dft", "energy_weight": 10}},
        backbone={"channels": 32, "layers": 1}, train={"epochs": 25, "batch_size": 8, "monitor": "gfn2.forces"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def water_model(tmp_path_factory):
    """A small model of liquid water at gfn2."""
    frames = [a for a in ase.io.read(DATA / "train.xyz", ":") if a.pbc.all()]
    return train_once(
        tmp_path_factory.mktemp("water"), frames, levels={"gfn2": {}},
        backbone={"channels": 16, "layers": 1, "cutoff": 4.0, "radial_functions": 12},
        train={"epochs": 12, "batch_size": 2, "learning_rate": 3e-3, "monitor": "gfn2.forces"},
    )[0]  # fmt: skip
