"""A derived step of networks with normalisations is autograd's, step after step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_manualbp
from torch_manualbp import nn

LIBRARIES = {"torch": torch.nn, "ours": nn}
NETWORKS: dict[str, Callable[[Any], torch.nn.Module]] = {
    "LayerNorm": lambda nn: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    "RMSNorm": lambda nn: nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.SiLU(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_derived_step_is_stock(network: str, library: str) -> None:
    torch.manual_seed(0)
    stock = NETWORKS[network](torch.nn).double()
    model = NETWORKS[network](LIBRARIES[library]).double()
    model.load_state_dict(stock.state_dict())
    loss = torch.nn.CrossEntropyLoss()
    theirs, ours = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (stock, model))
    step = torch_manualbp.TrainStep(model, loss, ours)
    for _ in range(4):
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
        theirs.zero_grad()
        expected = loss(stock(x), y)
        expected.backward()
        theirs.step()
        assert_same(step(x, y), expected)
    for name, t in stock.state_dict().items():
        assert_same(model.state_dict()[name], t)
    copies = copy.deepcopy(stock).eval(), copy.deepcopy(model).eval()
    assert_same(copies[1](x), copies[0](x))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
