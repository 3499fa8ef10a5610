"""The torch model against torchmd-net's TensorNet with the same weights (double), and its derivatives."""

import numpy as np
import pytest
from conftest import ethanol, need, random_cell

torch = pytest.importorskip("torch")


def features(backbone, atoms, weights, states=None):
    """Features, and the gradient of their weighted sum with respect to positions."""
    from mfmd.structures.record import Structure
    from mfmd.training.records import half_pairs

    i, j, shifts = half_pairs(Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, {}, ""), backbone.radial.cutoff)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    x = backbone(torch.tensor(atoms.numbers), positions, torch.tensor(i).long(), torch.tensor(j).long(), torch.tensor(shifts), states)
    return x, torch.autograd.grad((x * weights).sum(), positions, create_graph=True)[0], positions


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("structure", ["molecule", "box", "cation", "dianion"])
def test_equals_torchmdnet(layers, structure):
    """Of ions, the factor 1 + 0.1 Q."""
    pytest.importorskip("torchmdnet", reason="the oracle torchmd-net is not installed")
    from torchmdnet_oracle import peer_of

    from mfmd.structures.state import state_terms
    from mfmd.training.model import TensorNet

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(layers)
    charge = {"cation": 1, "dianion": -2}.get(structure, 0)
    ours = TensorNet(32, layers, 4.0, 2, 16, charge_factor=0.1)
    peer = peer_of(ours)
    if structure != "box":
        atoms, box = ethanol(), None
    else:
        atoms = random_cell(1, atoms=20)
        atoms.set_cell(np.diag(atoms.cell.lengths()) + [[0, 0, 0], [0.8, 0, 0], [-0.5, 0.6, 0]], scale_atoms=True)
        box = torch.tensor(atoms.cell.array)
    weights = torch.randn(len(atoms), 32)
    terms = torch.tensor(np.repeat(state_terms([(charge, 1)]), len(atoms), axis=0))
    x, gradient, _ = features(ours, atoms, weights, terms)
    positions, one = torch.tensor(atoms.positions, requires_grad=True), torch.zeros(len(atoms), dtype=torch.long)
    y = peer(torch.tensor(atoms.numbers), positions, one, box=box, q=torch.tensor([float(charge)]))[0]
    other = torch.autograd.grad((y * weights).sum(), positions)[0]
    np.testing.assert_allclose(x.detach(), y.detach(), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(gradient.detach(), other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_forces_can_be_trained(rank):
    """Second derivatives, through the compiled maps: gradient of a force loss against finite differences in a weight."""
    from mfmd.training.model import TensorNet

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    backbone = TensorNet(16, 2, 4.0, rank, 8)
    atoms, weights = ethanol(), torch.randn(9, 16)

    def loss():
        return (features(backbone, atoms, weights)[1] ** 2).sum()

    loss().backward()
    for parameter in (backbone.layers[0].mixing_in, backbone.layers[1].radial[1].weight, backbone.embedding.pair.weight):
        flat, gradient, h = parameter.data.view(-1), parameter.grad.view(-1), 1e-5
        k = int(gradient.abs().argmax())
        ends = []
        for sign in (1, -1):
            flat[k] += sign * h
            ends.append(float(loss().detach()))
            flat[k] -= sign * h
        assert float(gradient[k]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_batch_equals_its_parts(model):
    """Structures do not see each other: molecules and boxes in one batch give what each gives alone."""
    from mfmd.structures.record import Structure
    from mfmd.training.batches import collate

    frames = [ethanol(), random_cell(2, small=True), random_cell(3)]
    structures = [Structure(a.numbers, a.positions, a.cell.array, a.pbc, {}, "") for a in frames]
    cutoff = model.backbone.radial.cutoff
    together = model(collate(structures, [], cutoff, torch.float64), forces=["high"])["high"]
    alone = [model(collate([s], [], cutoff, torch.float64), forces=["high"])["high"] for s in structures]
    np.testing.assert_allclose(together.energy.detach(), torch.cat([p.energy for p in alone]).detach(), rtol=1e-14)
    np.testing.assert_allclose(together.forces.detach(), torch.cat([p.forces for p in alone]).detach(), atol=1e-11)


def _on_the_device(monkeypatch, request):
    """From here on the compiled maps are those of the emulated device, which takes tensors of the host."""
    from mfmd.training import maps

    if not request.config.getoption("--engine"):
        pytest.skip("on a GPU, test_training_on_the_device has them")
    monkeypatch.setattr(maps, "stream_of", lambda t: 0)
    monkeypatch.setattr(maps, "multiplies", lambda x: False)


@pytest.fixture(params=["cpu", "cuda"])
def _maps_on(request, monkeypatch):
    if need(request.param) == "cuda":
        _on_the_device(monkeypatch, request)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_training_on_the_device_is_training_on_the_cpu(device, rank, monkeypatch, request):
    """Energies, forces, and the gradient of a force loss in all weights."""
    from mfmd.training.model import TensorNet

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    backbone, atoms, weights = TensorNet(48, 2, 4.0, rank, 8), ethanol(), torch.randn(9, 48)

    def everything():
        x, gradient, _ = features(backbone, atoms, weights)
        return [x, gradient, *torch.autograd.grad((gradient**2).sum() + x.sum(), list(backbone.parameters()), allow_unused=True)]

    wanted = everything()
    _on_the_device(monkeypatch, request)
    for got, want in zip(everything(), wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * max(1.0, float(want.abs().max())))


@pytest.mark.usefixtures("_maps_on")
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_compiled_functions_are_twice_differentiable(rank):
    """Each against finite differences, in all of its arguments; one pair is an atom's own image."""
    from types import SimpleNamespace

    from mfmd.training import maps
    from mfmd.training.model import Graph
    from mfmd.training.radial import ExpNormal

    torch.manual_seed(0)
    parts, size = rank + 1, (rank + 1) ** 2
    i, j = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 2, 2])
    graph = Graph(ExpNormal(4.0, 4).double(), torch.rand(3, 3, dtype=torch.float64), i, j, torch.ones(4, 3, dtype=torch.float64))
    graph = SimpleNamespace(**{k: getattr(graph, k) for k in ("first", "neighbor", "pair", "i32", "j32")})
    knots = SimpleNamespace(
        **{
            key: torch.tensor(v, dtype=torch.int32)
            for key, v in {"knot": [1, 0, 1, 2], "first": [0, 1, 3, 4, 4], "pair": [1, 0, 2, 3]}.items()
        }
    )
    rand = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    w, d, a, b, x, y = rand(4, parts, 16), rand(4, size), rand(3, 16), rand(3, 16), rand(3, size, 16), rand(3, size, 16)
    for function, arguments in {
        "silu": (maps.Silu.apply, (x,)),
        "normalize": (maps.Normalize.apply, (x,)),
        "gather": (lambda w, y: maps.Gather.apply(w, y, graph), (w, y)),
        **{
            f"anticommutator {s}{t}": (lambda x, y, s=s, t=t: maps.Anticommutator.apply(x, y, s, t), (x, y))
            for s in (False, True)
            for t in (False, True)
        },
        "square": (maps.Square.apply, (x,)),
        "scale": (maps.Scale.apply, (rand(3, parts, 16), x)),
        "dots": (maps.Dots.apply, (x, y)),
        "norms": (maps.Norms.apply, (x,)),
        "mix": (maps.Mix.apply, (x, rand(parts, 16, 16))),
        "interpolate": (lambda c, t: maps.Interpolate.apply(c, t, knots), (rand(4, 4), rand(8, 32))),
        "embed": (lambda *v: maps.Embed.apply(*v, graph), (w, d, a, b)),
    }.values():
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("channels, atoms", [(16, 1), (48, 7), (112, 70)])
def test_mixing_is_a_product_of_matrices(channels, atoms):
    from mfmd.training import maps

    x, g, m = torch.randn(atoms, 9, channels), torch.randn(atoms, 9, channels), torch.randn(3, channels, channels)
    of_components = m[[0, 1, 1, 1, 2, 2, 2, 2, 2]]
    torch.testing.assert_close(maps.mix(x, m), torch.einsum("akf,kfg->akg", x, of_components))
    each = torch.einsum("akf,akg->kfg", x, g)
    torch.testing.assert_close(maps.mix_weights(x, g), torch.stack([each[:1].sum(0), each[1:4].sum(0), each[4:].sum(0)]))


@pytest.mark.parametrize("basis", ["expnorm", "smooth_bessel"])
def test_between_knots_functions_are_what_they_are(basis):
    """Values, slopes and second ones in the weights, against the networks themselves, in single precision."""
    from mfmd.training.radial import RADIAL, Exact, Knots, Tabulated

    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    radial = RADIAL[basis](5.0, 32)
    linears = torch.nn.ModuleList([torch.nn.Linear(32, 64), torch.nn.Linear(64, 96)])
    d = torch.cat([torch.rand(500) * 4.3 + 0.7, torch.tensor([5.0 - 1e-6, 0.7])]).requires_grad_()
    probe = torch.randn(len(d), 96)
    found = []
    for functions in (Exact(radial, d), Tabulated(Knots(radial), d)):
        w, at_zero = functions(linears, True)
        slope = torch.autograd.grad((w * probe).sum(), d, create_graph=True)[0]
        weights = torch.autograd.grad((slope**2).sum() + at_zero.sum(), list(linears.parameters()))
        found.append([w.detach(), slope.detach(), at_zero.detach(), *weights])
    torch.set_default_dtype(torch.float64)
    for exact, tabulated in zip(*found, strict=True):
        assert (tabulated - exact).abs().max() < 1e-4 * exact.abs().max()


def test_knots_are_of_the_basis_that_was_loaded():
    """A radial basis with other widths, as published models have them."""
    from mfmd.training.model import TensorNet
    from mfmd.training.radial import Knots

    one, other = TensorNet(16, 1, 4.0, 1, 8), TensorNet(16, 1, 4.0, 1, 8)
    one.radial.betas *= 1.5
    torch.nn.ModuleDict({"backbone": other}).load_state_dict({f"backbone.{name}": value for name, value in one.state_dict().items()})
    torch.testing.assert_close(other.knots.basis, Knots(one.radial).basis)
    torch.testing.assert_close(other.knots.basis_slope, Knots(one.radial).basis_slope)
    assert (other.knots.basis - TensorNet(16, 1, 4.0, 1, 8).knots.basis).abs().max() > 0.01
