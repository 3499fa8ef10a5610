"""Every kind of model, through the body of model_contract.py."""

import numpy as np
import pytest
from conftest import ELEMENTS, all_at_once, random_model
from model_contract import STRUCTURES, Kind, in_state

pytest.importorskip("torch")
import torch

from mfmd.training.heads import GatedHead, LinearHead, MLPHead
from mfmd.training.model import Model, TensorNet

E0 = np.array([-13.6, -1029.0, -1485.0, -2042.0])


def reference_energies(factor=1.0):
    from mfmd.training.heads import TABLE

    e0 = np.zeros(TABLE)
    e0[list(ELEMENTS)] = factor * E0
    return e0


class TestMLP(Kind):
    """Three levels, the last relative to the one before it."""

    def make(self, seed):
        return random_model(seed)


class TestNoLayers(Kind):
    def make(self, seed):
        return random_model(seed, channels=16, layers=0)


class TestRank1(Kind):
    def make(self, seed):
        return random_model(seed, channels=16, layers=1, rank=1)


class TestRank0(Kind):
    def make(self, seed):
        return random_model(seed, channels=16, layers=1, rank=0)


class TestEnsemble(Kind):
    error_bars = ("low",)

    def make(self, seed):
        torch.manual_seed(seed)
        head = MLPHead(16, 60.0, reference_energies(), False, members=4)
        head.calibration.fill_(1.7)
        return Model(TensorNet(16, 1, 4.0, 2, 8), {"low": head})


class TestLinear(Kind):
    """A head in closed form beside one by gradient, to which it is relative."""

    error_bars = ("high",)
    optional = ("heads.high.factor",)  # without which it has no error bars

    def make(self, seed):
        torch.manual_seed(seed)
        backbone = TensorNet(16, 1, 4.0, 2, 8)
        head = LinearHead(16, reference_energies(0.01))
        with torch.no_grad():
            head.weight[list(ELEMENTS)] = 3.0 * torch.randn(len(ELEMENTS), 16)
        sure(head, backbone)
        return Model(backbone, {"low": MLPHead(16, 60.0, reference_energies(), False), "high": head}, {"high": "low"})


class TestSure(Kind):
    """Heads that are not linear with error bars, as Gauss-Newton gives them; that of a level relative to another has the other's added."""

    format = 4
    error_bars = ("low", "high")
    optional = ("heads.low.factor", "heads.high.factor")

    def make(self, seed):
        model = published(seed)
        heads = {"low": model.heads["low"], "high": GatedHead(16, [16], 60.0, reference_energies(0.01))}
        for head in heads.values():
            sure(head, model.backbone)
        return Model(model.backbone, heads, {"high": "low"})


def sure(head, backbone):
    """Give a head error bars."""
    kinds, none = torch.tensor(ELEMENTS), torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        isolated = backbone(kinds, torch.zeros(len(kinds), 3), none, none, torch.zeros(0, 3))
    head.set_error_bars(factor=1e-3 * torch.randn(17 * len(kinds), 17 * len(kinds)).tril(), isolated=isolated, noise=1e-4)


# What published models need, one by one, and all at once.


def published(seed, head=None, **variants):
    """Two layers of 16 channels; a head of its own, or of the usual kind."""
    torch.manual_seed(seed)
    backbone = TensorNet(**{"channels": 16, "layers": 2, "cutoff": 4.0, "rank": 2, "radial_functions": 8} | variants)
    return Model(backbone, {"low": head or MLPHead(16, 60.0, reference_energies(), False)})


class TestSmoothBessel(Kind):
    format = 2

    def make(self, seed):
        return published(seed, radial_basis="smooth_bessel", radial_functions=3)


class TestNoSelfPair(Kind):
    format = 2

    def make(self, seed):
        return published(seed, self_pair=False)


class TestOwnMessage(Kind):
    format = 2

    def make(self, seed):
        return published(seed, message="own")


class TestOwnMessageRank1(Kind):
    format = 2

    def make(self, seed):
        return published(seed, message="own", rank=1)


class TestNoActivation(Kind):
    format = 2

    def make(self, seed):
        return published(seed, readout_activation=False)


class TestGated(Kind):
    format = 2

    def make(self, seed):
        torch.manual_seed(seed)
        return published(seed, GatedHead(16, [16, 12, 5], 60.0, reference_energies()))


class TestRepulsion(Kind):
    """Of the nuclei; once only in the energy of a level that is relative to another."""

    format = 2

    def make(self, seed):
        model = published(seed, zbl=3.5)
        high = MLPHead(16, 20.0, reference_energies(0.01), False)
        return Model(model.backbone, {**model.heads, "high": high}, {"high": "low"})


class TestConstant(Kind):
    format = 2

    def make(self, seed):
        model = published(seed)
        model.heads["low"].constant = -3.25
        high = MLPHead(16, 20.0, reference_energies(0.01), False)
        return Model(model.backbone, {**model.heads, "high": high}, {"high": "low"})


STATES = [(0, 1), (1, 1), (-1, 1), (1, 2), (0, 3), (2, 1)]


class TestStates(Kind):
    """Charge and multiplicity in the embedding, and in the energy of a structure; a level relative to another, each with its own."""

    format = 3
    states = STATES
    structures = (
        in_state(STRUCTURES[0], 1, 2), *STRUCTURES, in_state(STRUCTURES[0], 0, 3), in_state(STRUCTURES[1], -1, 1), in_state(STRUCTURES[2], 2, 1),
    )  # fmt: skip

    def make(self, seed):
        return with_states(published(seed))


class TestStatesOfPublished(TestStates):
    """In a backbone without a self pair, and beside the factor of a charge."""

    def make(self, seed):
        return with_states(all_at_once(seed))


class TestChargeFactor(Kind):
    """The factor of a charge alone, as torchmd-net has it."""

    format = 3  # of its files: they say which states it has seen
    states = STATES
    structures = (in_state(STRUCTURES[0], 2, 1), *STRUCTURES, in_state(STRUCTURES[1], -1, 1), in_state(STRUCTURES[2], 1, 1))

    def make(self, seed):
        return published(seed, charge_factor=0.1)


def with_states(model):
    """The same, with a state embedding and a level relative to the first."""
    model.backbone.add_states()
    with torch.no_grad():
        model.backbone.embedding.states.normal_()
    (level, head), *_ = model.heads.items()
    head.of_states.copy_(torch.tensor([9.0, -2.0, 0.5]))
    high = MLPHead(16, 20.0, reference_energies(0.01), False)
    high.of_states.copy_(torch.tensor([0.3, 0.2, 0.1]))
    return Model(model.backbone, {level: head, "top": high}, {"top": level})


class TestPublished(Kind):
    """All at once."""

    format = 2

    def make(self, seed):
        return all_at_once(seed)
