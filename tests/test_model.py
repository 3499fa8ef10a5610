"""The torch model against torchmd-net's TensorNet with the same weights (double), and its derivatives."""

import numpy as np
import pytest
from conftest import ethanol, random_cell

torch = pytest.importorskip("torch")


def features(backbone, atoms, weights, states=None):
    """Features, and the gradient of their weighted sum with respect to positions."""
    from mfmd.structures.record import Structure
    from mfmd.training.batches import half_pairs

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


def test_compiled_functions_are_twice_differentiable():
    """Each against finite differences, in all of its arguments; one pair is an atom's own image."""
    from types import SimpleNamespace

    from mfmd.training import maps
    from mfmd.training.model import Graph, Tensors
    from mfmd.training.radial import ExpNormal

    torch.manual_seed(0)
    i, j = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 2, 2])
    graph = Graph(ExpNormal(4.0, 4).double(), torch.rand(3, 3, dtype=torch.float64), i, j, torch.ones(4, 3, dtype=torch.float64))
    graph = SimpleNamespace(**{k: getattr(graph, k) for k in ("first", "neighbor", "pair", "i32", "j32")})
    rand = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    w, d, a, b, x, y = rand(4, 3, 16), rand(4, 9), rand(3, 16), rand(3, 16), rand(3, 9, 16), rand(3, 9, 16)
    sign = Tensors(2).sign.double()
    for function, arguments in {
        "silu": (maps.Silu.apply, (x,)),
        "normalize": (maps.Normalize.apply, (x,)),
        "gather": (lambda w, y: maps.Gather.apply(w, y, graph), (w, y)),
        "anticommutator": (lambda x, y: maps.Anticommutator.apply(x, y, sign), (x, y)),
        "embed": (lambda *v: maps.Embed.apply(*v, graph), (w, d, a, b)),
    }.values():
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
