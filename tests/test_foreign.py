"""Foreign weights: what their own packages, and a port of the equations, compute with them; and what is refused."""

import json
import os
import shutil
from pathlib import Path

import ase.build
import backends
import numpy as np
import pytest
from ase import Atoms
from conftest import ethanol, random_cell

torch = pytest.importorskip("torch")

# matgl_v1_*: random weights and numbers of a port that shares no code with mfmd: dense, double, 3x3 matrices in full, from the equations.
# matgl_v2_*: written by matgl 4.1.2 with torch 2.14.1 (TensorNet(units=16, cutoff=4.5, is_intensive=False, use_warp=False) in a Potential,
# SphericalBessel with use_smooth and max_n=4, or ExpNorm with num_rbf=8; random weights), numbers its own after .double(), stress by 160.21766208.
FROZEN = Path(__file__).parent / "foreign"
REFERENCE = json.loads((FROZEN / "reference.json").read_text())
PUBLISHED = os.environ.get("MFMD_WEIGHTS")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def read(*arguments, **options):
    from mfmd import foreign

    return foreign.read(*arguments, dtype=torch.float64, **options)


def agrees(compute, wanted, energy, forces, stress):
    """Whether a backend gives a reference's numbers, to so many eV an atom, eV/Å and eV/Å³."""
    atoms = Atoms(wanted["numbers"], wanted["positions"], cell=wanted["cell"], pbc=wanted["pbc"])
    e, f, v = compute(atoms)
    assert abs(e - wanted["energy"]) <= energy * len(atoms)
    np.testing.assert_allclose(f, wanted["forces"], rtol=0, atol=forces)
    if wanted["stress"] is not None:
        np.testing.assert_allclose(-v / atoms.get_volume(), wanted["stress"], rtol=0, atol=stress)


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_folders_of_matgl(name):
    model, elements, provenance = read(FROZEN / name, "dft")
    assert elements == {"dft": [1, 6, 7, 8]}
    assert provenance["imported"]["from"] == "matgl" and set(provenance["imported"]["sha256"]) == {"model.json", "state.pt"}
    for wanted in REFERENCE[name].values():
        agrees(backends.reference(model, "dft"), wanted, 1e-10, 1e-9, 1e-10)


def written(name, where):
    """The bytes of the model file of a frozen or published folder."""
    from mfmd import foreign
    from mfmd.training.export import serialize

    return serialize(*foreign.read(where / name))


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_the_engine_computes_what_matgl_does(name):
    content = written(name, FROZEN)
    for wanted in REFERENCE[name].values():
        agrees(backends.engine(content, "imported"), wanted, 1e-9, 1e-8, 1e-9)


@pytest.mark.skipif(not PUBLISHED, reason="MFMD_WEIGHTS names no folder of published weights")
def test_published_folders_of_matgl():
    reference = json.loads((Path(PUBLISHED) / "reference.json").read_text())
    for name, structures in reference.items():
        model, _, provenance = read(Path(PUBLISHED) / name)
        assert provenance["imported"]["licence"] == "BSD 3-Clause License"
        content = written(name, Path(PUBLISHED))
        for wanted in structures.values():
            agrees(backends.reference(model, "imported"), wanted, 1e-9, 1e-8, 1e-9)
            agrees(backends.engine(content, "imported"), wanted, 1e-9, 1e-8, 1e-9)
            agrees(backends.engine(content, "imported", radial="table"), wanted, 1e-6, 1e-6, 1e-7)
            largest = np.abs(wanted["forces"]).max()
            agrees(backends.engine(content, "imported", "single", "table"), wanted, 2e-6, 2e-5 * max(largest, 1.0), 1e-6)


def test_a_level_of_some_elements():
    """It computes what the whole level does; the weights of the others are not in it; isolated atoms have their energies."""
    name = "matgl_v2_bessel"
    whole, _, _ = read(FROZEN / name)
    model, elements, _ = read(FROZEN / name, elements=["N", "H", "C"])
    assert elements == {"imported": [1, 6, 7]}
    atoms = ase.build.molecule("HCN")
    (e, f, _), (e2, f2, _) = (backends.reference(m, "imported")(atoms) for m in (model, whole))
    assert e == e2 and (f == f2).all()
    assert not model.backbone.embedding.elements.weight[8].any() and whole.backbone.embedding.elements.weight[8].any()
    alone = [backends.reference(model, "imported")(Atoms([z]))[0] - 1.25 for z in (1, 6, 7)]  # less data_mean, which each structure has
    np.testing.assert_allclose(alone, model.heads["imported"].e0[[1, 6, 7]], rtol=1e-14)


def test_weights_keep_the_type_of_the_file():
    from mfmd import foreign

    model, _, _ = foreign.read(FROZEN / "matgl_v2_bessel")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.heads["imported"].e0.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float64


def test_the_three_projections_as_gpu_kernels_keep_them(tmp_path):
    """matgl 4 keeps them as one tensor where its kernels run: distance_proj, the three below each other."""
    name, embedding = "matgl_v2_bessel", "model.tensor_embedding.distance_proj"
    folder = copied(name, tmp_path)
    state = torch.load(folder / "state.pt")
    for kind in ("weight", "bias"):
        state[f"{embedding}.{kind}"] = torch.cat([state.pop(f"{embedding}{k}.{kind}") for k in (1, 2, 3)])
    torch.save(state, folder / "state.pt")
    agrees(backends.reference(read(folder)[0], "imported"), REFERENCE[name]["ethanol"], 1e-10, 1e-9, 1e-10)


def test_what_files_say_travels(tmp_path):
    """Licence, metadata, and the errors their README gives; nothing where they say nothing."""
    silent = read(FROZEN / "matgl_v2_bessel")[2]["imported"]
    assert silent.keys() == {"from", "source", "sha256", "code"} and silent["source"] == "matgl_v2_bessel"
    folder = copied("matgl_v2_bessel", tmp_path, metadata={"data": "MD"})
    (tmp_path / "LICENSE").write_text("\n  BSD 3-Clause License\n\nCopyright\n")
    (folder / "README.md").write_text(
        "# Data\n- Test: none\n\n# Performance metrics\n\n## Errors\n\nMAEs of energies\n- Test: 42 meV/atom\n\n# References\nx\n"
    )
    said = read(folder)[2]["imported"]
    assert said["licence"] == "BSD 3-Clause License" and said["metadata"] == {"data": "MD"}
    assert said["authors_errors"] == ["MAEs of energies", "Test: 42 meV/atom"]


def copied(name, where, *, top=(), potential=(), network=(), init=(), metadata=None):
    """A copy of a frozen folder whose model.json says something else."""
    folder = where / name
    shutil.copytree(FROZEN / name, folder)
    described = json.loads((folder / "model.json").read_text()) | dict(top)
    described["metadata"] = metadata
    described["kwargs"] |= dict(potential)
    described["kwargs"]["model"] |= dict(network)
    described["kwargs"]["model"]["init_args"] |= dict(init)
    (folder / "model.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"init": {"activation_type": "tanh"}}, "activation_type is 'tanh'; only 'swish' can be imported"),
        ({"init": {"equivariance_invariance_group": "SO(3)"}}, r"equivariance_invariance_group is 'SO\(3\)'; only 'O\(3\)'"),
        ({"init": {"is_intensive": True}}, "is_intensive is True; only False"),
        ({"init": {"include_state": True}}, "include_state is True; only False"),
        ({"init": {"ntargets": 2}}, "ntargets is 2; only 1"),
        ({"init": {"task_type": "classification"}}, "task_type is 'classification'; only 'regression'"),
        ({"init": {"rbf_type": "Gaussian"}}, "rbf_type is 'Gaussian'; 'SphericalBessel' with use_smooth and 'ExpNorm' can be imported"),
        ({"init": {"use_smooth": False}}, "use_smooth is False"),
        ({"init": {"max_n": 2}}, "max_n is 2; 3 to 512 can be imported"),
        ({"init": {"units": 24}}, "units is 24; a multiple of 16 up to 256"),
        ({"init": {"units": "16"}}, "units is '16'; a multiple of 16"),
        ({"init": {"nblocks": 9}}, "nblocks is 9; 0 to 8"),
        ({"init": {"cutoff": -1.0}}, "cutoff is -1.0"),
        ({"init": {"element_types": ["H", "C", "N", "D"]}}, "element_types is .* symbols of elements are needed, each once"),
        ({"init": {"element_types": ["H", "C", "N"]}}, r"emb.weight has the shape \(4, 16\), and \(3, 16\) is needed"),
        ({"init": {"attention": 4}}, r"attention \(4\) is not known here"),
        ({"network": {"@class": "QET"}}, "holds a QET of matgl; only its TensorNet can be imported"),
        ({"network": {"@class": "M3GNet"}}, "holds a M3GNet"),
        ({"network": {"@model_version": 3}}, "a TensorNet of matgl.models._tensornet, version 3; known here are"),
        ({"network": {"@module": "matgl.models._tensornet_new"}}, "a TensorNet of matgl.models._tensornet_new, version 2"),
        ({"potential": {"calc_repuls": True}}, "calc_repuls is True; only False"),
        ({"potential": {"calc_charge": True}}, "calc_charge is True; only models without charges"),
        ({"potential": {"dispersion": True}}, r"dispersion \(True\) is not known here"),
        ({"top": {"@model_version": 4}}, "a Potential of version 4; version 3 is known here"),
        ({"top": {"@class": "TensorNet"}}, "holds a TensorNet without scale and reference energies"),
        ({"top": {"@class": "CHGNet"}}, "holds a CHGNet"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path, changes, sentence):
    from mfmd.foreign.source import SourceError

    folder = copied("matgl_v2_bessel", tmp_path, **changes)
    with pytest.raises(SourceError, match=sentence) as refused:
        read(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def spoil(state, name, change):
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name])


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("model.linear.bias", None, "the tensor model.linear.bias is missing"),
        ("data_std", None, "the tensor data_std is missing"),
        ("data_mean", lambda t: torch.zeros(3), r"data_mean has the shape \(3,\), and \(\) is needed"),
        ("model.linear.weight", lambda t: t[:8], r"model.linear.weight has the shape \(8, 48\), and \(16, 48\) is needed"),
        ("model.out_norm.bias", lambda t: t / 0, "model.out_norm.bias holds a number that is not finite"),
        ("model.out_norm.bias", lambda t: t.half(), "model.out_norm.bias is of torch.float16"),
        ("model.linear.weight", lambda t: t.to_sparse(), "torch.sparse_coo; dense torch.float32 and torch.float64 can be imported"),
        ("element_refs.property_offset", lambda t: torch.stack([t, t]), r"property_offset has the shape \(2, 4\), and \(4,\) is needed"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(tmp_path, name, change, sentence):
    from mfmd.foreign.source import SourceError

    folder = copied("matgl_v2_bessel", tmp_path)
    state = torch.load(folder / "state.pt")
    spoil(state, name, change)
    torch.save(state, folder / "state.pt")
    with pytest.raises(SourceError, match=sentence):
        read(folder)


def test_files_that_are_refused(tmp_path):
    """Damaged, surplus, missing, or more than tensors; an element without weights."""
    from mfmd.foreign.source import SourceError

    folder = copied("matgl_v2_bessel", tmp_path)
    whole = (folder / "state.pt").read_bytes()
    state = torch.load(folder / "state.pt")
    for content, sentence in (
        (whole[: len(whole) // 2], "state.pt: damaged, or no file of torch"), (b"weights", "state.pt: damaged, or no file of torch"),
        (b"", "state.pt: damaged, or no file of torch"),
    ):  # fmt: skip
        (folder / "state.pt").write_bytes(content)
        with pytest.raises(SourceError, match=sentence):
            read(folder)
    for content, sentence in (
        (state | {"model.more.weight": torch.zeros(2)}, "the tensor model.more.weight has no place"),
        (state | {"model.layers.2.linears_scalar.0.bias": torch.zeros(16)}, "the tensor model.layers.2.linears_scalar.0.bias has no place"),
        (state | {"path": Path("x")}, r"holds pathlib\S*Path, for which code would have to be run"),
        ([1, 2], "holds no table of tensors by name"), (state | {"data_mean": 0.0}, "holds no table of tensors by name"),
    ):  # fmt: skip
        torch.save(content, folder / "state.pt")
        with pytest.raises(SourceError, match=sentence):
            read(folder)
    torch.save(state, folder / "state.pt")
    for elements, sentence in ((["H", "Fe"], "has no weights for Fe; it has for H C N O"), (["Q"], "--elements: 'Q' is no symbol")):
        with pytest.raises(SourceError, match=sentence):
            read(folder, elements=elements)
    with pytest.raises(SourceError, match="--level: 'a b' is no name of a level"):
        read(folder, "a b")
    with pytest.raises(SourceError, match="matgl's energies are in eV"):
        read(folder, energy_unit="Hartree")
    (folder / "state.pt").unlink()
    with pytest.raises(SourceError, match="state.pt: there is no such file"):
        read(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(SourceError, match="model.json: damaged, or not written by matgl"):
        read(folder)
    (folder / "model.json").unlink()
    with pytest.raises(SourceError, match="no model.json in it"):
        read(folder)
    with pytest.raises(SourceError, match="there is no such file or folder"):
        read(tmp_path / "nothing")


def test_the_command(tmp_path, monkeypatch, capsys):
    """It writes a model file that gives the same numbers, and prints what the files say of themselves; a refusal is one sentence."""
    from mfmd import cli

    (tmp_path / "LICENSE").write_text("BSD 3-Clause License\n")
    folder, out = copied("matgl_v1_own", tmp_path), tmp_path / "model.pt"
    monkeypatch.setattr("sys.argv", ["mfmd", "import", str(folder), "-o", str(out), "--level", "dft", "--elements", "O,H,C"])
    cli.main()
    said = capsys.readouterr().out
    for words in (
        "level dft: gated head; elements H C O", "message own", "licence: BSD 3-Clause License", "model.json: sha256 ", "state.pt: sha256 ",
        "imported from matgl: matgl_v1_own (matgl.models._tensornet_dgl, version 1)",
    ):  # fmt: skip
        assert words in said
    agrees(backends.engine(out, "dft"), REFERENCE["matgl_v1_own"]["ethanol"], 1e-9, 1e-8, 1e-9)
    for source, words, sentence in (
        (folder, ["--elements", "Fe"], "error: --elements: "),
        (folder, ["--elements", ""], "error: --elements: names none"),
        (folder, ["--level", "values"], "error: --level: torch keeps the name values for itself"),
        (folder, ["-o", str(tmp_path)], f"error: --output: {tmp_path} is a folder"),
        (out, [], f"error: {out}: is a model file of mfmd already"),
    ):
        monkeypatch.setattr("sys.argv", ["mfmd", "import", str(source), "-o", str(tmp_path / "other.pt"), *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        refused = capsys.readouterr().err
        assert end.value.code == 1 and refused.startswith(sentence) and refused.count("\n") == 1


# torchmd-net: checkpoints as its own training writes them

JOULE = 1.602176634e-19  # in an eV
ZBL = {"cutoff_distance": 4.0, "max_num_neighbors": 100, "atomic_number": list(range(20)), "distance_scale": 1e-10, "energy_scale": JOULE}
PRIORS = {"prior_model": [{"Atomref": {"max_z": 20}}, "ZBL"], "prior_args": [{"max_z": 20, "trainable": False, "enable": True}, ZBL]}
SETTINGS = {
    "model": "tensornet", "embedding_dimension": 16, "num_layers": 2, "num_rbf": 8, "rbf_type": "expnorm", "trainable_rbf": False,
    "activation": "silu", "cutoff_lower": 0.0, "cutoff_upper": 4.5, "max_z": 20, "max_num_neighbors": 100, "aggr": "add",
    "equivariance_invariance_group": "O(3)", "derivative": True, "output_model": "Scalar", "reduce_op": "add", "precision": 32,
    "prior_model": None, "atom_filter": -1, "box_vecs": None, "static_shapes": False, "vector_cutoff": False, "charge": False, "lr": 1e-3,
}  # fmt: skip


def network(changes=None):
    """A network of torchmd-net 3.1.0 with random weights and its settings."""
    pytest.importorskip("torchmdnet", reason="the oracle torchmd-net is not installed")
    from torchmdnet import priors
    from torchmdnet.models.model import create_model

    settings = SETTINGS | (changes or {})
    names = [next(iter(prior)) if isinstance(prior, dict) else prior for prior in settings["prior_model"] or []]
    made = [getattr(priors, name)(**arguments) for name, arguments in zip(names, settings.get("prior_args", ()), strict=True)]
    torch.manual_seed(5)
    net = create_model(dict(settings), made, torch.tensor(1.5), torch.tensor(40.0))
    for name, tensor in net.state_dict().items():
        if name.endswith("atomref.weight"):
            tensor[[1, 6, 7, 8], 0] = torch.tensor([-13.6, -1029.1, -1485.2, -2042.3], dtype=tensor.dtype)
    return net, settings


def write(path, net, settings, state=None):
    state = state or {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": settings, "pytorch-lightning_version": "2.6.0"}, path)
    return path


def its_own(net, atoms, energy=1.0, length=1.0):
    """Energy and forces in double, in eV and Å."""
    net = net.double().eval()
    positions = torch.tensor(atoms.positions / length, dtype=torch.float64)
    e, f = net(torch.tensor(atoms.numbers), positions, box=torch.tensor(atoms.cell.array / length) if atoms.pbc.all() else None)
    return float(e.detach()) * energy, f.detach().numpy() * energy / length


def same(path, net, frames, energy=1.0, length=1.0, **options):
    model, _, _ = read(path, **options)
    for atoms in frames:
        (e, f, _), (e2, f2) = backends.reference(model, "imported")(atoms), its_own(net, atoms, energy, length)
        assert e == pytest.approx(e2, rel=1e-6)
        np.testing.assert_allclose(f, f2, rtol=0, atol=1e-5)
    return model


def rattled(scale=0.1):
    atoms = ethanol()
    atoms.positions += np.random.default_rng(3).normal(0, scale, (9, 3))
    return atoms


def box():
    atoms = random_cell(1, atoms=20)
    atoms.set_cell(np.diag([9.5, 9.2, 10.0]) + [[0, 0, 0], [0.8, 0, 0], [-0.5, 0.6, 0]], scale_atoms=True)
    return atoms


def test_checkpoints_of_torchmdnet(tmp_path):
    """With Atomref, ZBL, std and mean: its own energies and forces; as 3.x names the head and as older ones did."""
    net, settings = network(PRIORS)
    path = write(tmp_path / "epoch=1.ckpt", net, settings)
    frames = [rattled(), box()]
    model = same(path, net, frames)
    assert (model.backbone.architecture["zbl"], model.backbone.architecture["charge_factor"]) == (4.0, 0.1)
    assert model.heads["imported"].constant == 1.5
    close = ase.Atoms("HO", [[0, 0, 0], [0, 0, 0.6]])  # where the repulsion is tens of eV
    same(path, net, [close])
    older = {
        f"model.{name}".replace("output_network.layers.", "output_network."): tensor for name, tensor in net.float().state_dict().items()
    }
    same(write(path, net, settings, older), net, frames[:1])


def test_the_older_layout_of_torchmdnet(tmp_path):
    """Files before 3.0, told by check_errors or by the lack of a box among the tensors: torchmd-net's own loader reads them alike."""
    net, settings = network()
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    for name in ("tensor_embedding.linears_scalar.1", "layers.0.linears_scalar.2", "layers.1.linears_scalar.2"):
        for kind in ("weight", "bias"):
            key = f"model.representation_model.{name}.{kind}"
            state[key] = state[key].unflatten(0, (3, 16)).transpose(0, 1).flatten(0, 1)
    path = write(tmp_path / "2.ckpt", net, settings | {"check_errors": True}, state)
    from torchmdnet.models.model import load_model

    with pytest.warns(UserWarning, match="Old-format checkpoint"):
        loaded = load_model(str(path))
    options = {"elements": ["H", "C", "O"], "energy_unit": "eV", "length_unit": "Å"}
    same(path, loaded, [rattled()], **options)
    before = {name: tensor for name, tensor in state.items() if not name.endswith("distance.box")}
    same(write(path, net, {key: value for key, value in settings.items() if key != "static_shapes"}, before), net, [rattled()], **options)


@pytest.mark.parametrize("energy, length", [("kcal/mol", "Å"), ("Hartree", "Bohr")])
def test_units_of_torchmdnet(tmp_path, energy, length):
    """As the user says them, or as the ZBL prior does; nothing is assumed in silence."""
    from mfmd import Note, units
    from mfmd.foreign.source import SourceError

    factors = units.energy(energy), units.length(length)
    cutoff = {"cutoff_upper": 4.5 / factors[1]}
    net, settings = network(cutoff)
    path = write(tmp_path / "a.ckpt", net, settings)
    options = {"elements": ["H", "C", "O"]}
    same(path, net, [rattled()], *factors, energy_unit=energy, length_unit=length, **options)
    with pytest.warns(Note, match="does not say its units; taken is eV for --energy-unit, and Å for --length-unit"):
        read(path, **options)
    zbl = ZBL | {"cutoff_distance": 4.0 / factors[1], "energy_scale": JOULE * factors[0], "distance_scale": 1e-10 * factors[1]}
    priors = {"prior_model": ["ZBL", "LearnableAtomref"], "prior_args": [zbl, {"max_z": 20}]}
    net, settings = network(cutoff | priors)
    path = write(tmp_path / "b.ckpt", net, settings)
    model = same(path, net, [rattled()], *factors)
    assert model.backbone.architecture["zbl"] == pytest.approx(4.0, rel=1e-14)
    rounded = settings | {"prior_args": [zbl | {"energy_scale": zbl["energy_scale"] * (1 + 2e-6)}, {"max_z": 20}]}
    assert read(write(tmp_path / "c.ckpt", net, rounded))[0].heads["imported"].scale == model.heads["imported"].scale
    with pytest.raises(SourceError, match="ZBL's energy_scale is .* in SI units, which is not meV; leave --energy-unit out"):
        read(path, energy_unit="meV")
    with pytest.raises(SourceError, match="--energy-unit: 'gallon' is no unit of energy"):
        read(path, energy_unit="gallon")


def test_reference_energies_that_are_switched_off(tmp_path):
    """As remove_ref_energy leaves them: they are not added, and this is said."""
    from mfmd import Note

    net, settings = network({"prior_model": [{"Atomref": {"enable": False}}], "prior_args": [{"max_z": 20, "enable": False}]})
    path = write(tmp_path / "a.ckpt", net, settings)
    with pytest.warns(Note, match="its Atomref is switched off"):
        same(path, net, [rattled()], energy_unit="eV", length_unit="Å")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"model": "equivariant-transformer"}, "model is 'equivariant-transformer'; only 'tensornet'"),
        ({"model": "tensornet2"}, "model is 'tensornet2'"),
        ({"activation": "tanh"}, "activation is 'tanh'; only 'silu'"),
        ({"rbf_type": "gauss"}, "rbf_type is 'gauss'; only 'expnorm'"),
        ({"cutoff_lower": 1.0}, "cutoff_lower is 1.0; only 0.0"),
        ({"equivariance_invariance_group": "SO(3)"}, r"group is 'SO\(3\)'; only 'O\(3\)'"),
        ({"output_model": "DipoleMoment"}, "output_model is 'DipoleMoment'; only 'Scalar'"),
        ({"reduce_op": "mean"}, "reduce_op is 'mean'; only sums over atoms"),
        ({"atom_filter": 1}, "atom_filter is 1; only -1"),
        ({"box_vecs": [[9, 0, 0], [0, 9, 0], [0, 0, 9]]}, "box_vecs is .* only None"),
        ({"num_layers": 3}, "the tensor representation_model.layers.2.linears_scalar.0.weight is missing"),
        ({"num_layers": 1}, "the tensor representation_model.layers.1.linears_scalar.0.bias .and 11 more. has no place"),
        ({"embedding_dimension": 20}, "embedding_dimension is 20; a multiple of 16"),
        ({"cutoff_upper": "5"}, "cutoff_upper is '5'; a number is needed"),
        ({"long_range": True}, r"long_range \(True\) is not known here"),
        ({"prior_model": "D2"}, "prior_model has 'D2'; Atomref, LearnableAtomref, ZBL can be imported"),
        ({"prior_model": ["Atomref", {"Coulomb": {}}]}, "prior_model has 'Coulomb'"),
        ({"prior_model": ["ZBL", "ZBL"], "prior_args": [ZBL, ZBL]}, "prior_model has ZBL twice"),
        ({"prior_model": ["ZBL"], "prior_args": [ZBL | {"energy_scale": None}]}, "ZBL need the numbers"),
        ({"prior_model": ["ZBL"], "prior_args": [ZBL | {"energy_scale": 2 * JOULE}]}, "ZBL's energy_scale is .* none of eV"),
        ({"prior_model": ["Atomref"], "prior_args": [20]}, "the arguments of the prior 'Atomref' are 20"),
        ({"prior_model": ["Atomref"], "prior_args": [{"max_z": 20, "enable": 1}]}, "enable of the prior Atomref is 1; true or false"),
        ({"prior_model": ["ZBL"], "prior_args": [ZBL | {"sharpness": 2}]}, "sharpness of the prior ZBL is not known here"),
        ({"prior_model": ["ZBL"], "prior_args": [ZBL, {}]}, "prior_args are of 2 priors, and prior_model of 1"),
    ],
)  # fmt: skip
def test_checkpoints_that_are_refused(tmp_path, changes, sentence):
    from mfmd.foreign.source import SourceError

    net, settings = network()
    path = write(tmp_path / "a.ckpt", net, settings | changes)
    with pytest.raises(SourceError, match=sentence) as refused:
        read(path, elements=["H"], energy_unit="eV", length_unit="Å") if "prior_args" not in changes else read(path, elements=["H"])
    assert "\n" not in str(refused.value)


def test_checkpoints_whose_content_is_refused(tmp_path):
    from mfmd.foreign.source import SourceError

    units = {"energy_unit": "eV", "length_unit": "Å"}
    net, settings = network()
    path = write(tmp_path / "a.ckpt", net, settings)
    with pytest.raises(SourceError, match="does not say which elements it was trained on; name them, such as --elements H,C,N,O"):
        read(path, **units)
    with pytest.raises(SourceError, match="has no weights for Fe"):
        read(path, elements=["H", "Fe"], **units)
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    for change, sentence in (
        ({"model.output_model.output_network.layers.4.weight": torch.zeros(1, 8)}, "output_network.layers.4.weight has no place"),
        ({"model.representation_model.distance.box": torch.eye(3)}, "distance.box holds a box"),
    ):  # fmt: skip
        write(path, net, settings, state | change)
        with pytest.raises(SourceError, match=sentence):
            read(path, elements=["H"], **units)
    for content, sentence in (
        ({"state_dict": {}}, "not a checkpoint of torchmd-net"),
        ({"state_dict": state, "hyper_parameters": settings, "callbacks": Path("x")}, r"holds pathlib\S*Path, for which code"),
    ):
        torch.save(content, path)
        with pytest.raises(SourceError, match=sentence):
            read(path, elements=["H"], **units)
    net, settings = network(PRIORS)
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    write(path, net, settings)
    with pytest.raises(SourceError, match="has no weights for Na; it has for H C N O"):
        read(path, elements=["Na"])
    types = torch.arange(20)
    types[6] = 14
    write(path, net, settings, state | {"model.prior_model.1.atomic_number": types})
    with pytest.raises(SourceError, match="ZBL's atomic_number is not 6 for C"):
        read(path)
    write(path, net, settings | {"prior_args": [{"max_z": 20}, ZBL | {"cutoff_distance": 5.0}]})
    with pytest.raises(SourceError, match="ZBL's cutoff_distance is 5.0; it must not be larger than cutoff_upper, 4.5"):
        read(path)
