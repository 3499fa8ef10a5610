"""Every kind of model, through the body of model_contract.py."""

import numpy as np
import pytest
from conftest import ELEMENTS, random_model
from model_contract import Kind

pytest.importorskip("torch")
import torch

from mfmd.training.heads import LinearHead, MLPHead
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
        head = LinearHead(16, reference_energies(0.01), ELEMENTS)
        kinds, none = torch.tensor(ELEMENTS), torch.zeros(0, dtype=torch.long)
        with torch.no_grad():
            head.weight[list(ELEMENTS)] = 3.0 * torch.randn(len(ELEMENTS), 16)
            head.factor.copy_(1e-3 * torch.randn(head.factor.shape).tril())
            head.isolated.copy_(backbone(kinds, torch.zeros(len(kinds), 3), none, none, torch.zeros(0, 3)))
            head.noise.fill_(1e-4)
        return Model(backbone, {"low": MLPHead(16, 60.0, reference_energies(), False), "high": head}, {"high": "low"})
