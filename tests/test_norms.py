"""A derived step of networks with normalisations is autograd's, step after step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_manualbp
from torch_manualbp import nn

LIBRARIES = {"torch": torch.nn, "ours": nn}
NETWORKS: dict[str, Callable[[Any], torch.nn.Module]] = {
    "LayerNorm": lambda nn: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    "BatchNorm1d": lambda nn: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)),
    "GroupNorm": lambda nn: nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 3)),
    "InstanceNorm1d": lambda nn: nn.Sequential(
        nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(8, 3)
    ),
    "BatchNorm1d in evaluation": lambda nn: nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8).eval(), nn.Tanh(), nn.Linear(8, 3)
    ),
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
    theirs, ours = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (stock, model))
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


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


IMAGES = (5, 4, 3, 2)
WITH_STATISTICS: dict[str, Callable[[Any], torch.nn.Module]] = {
    "by default": lambda nn: nn.BatchNorm2d(4),
    "the mean of all batches": lambda nn: nn.BatchNorm2d(4, momentum=None),
    "of momentum 1": lambda nn: nn.BatchNorm2d(4, momentum=1.0),
    "not tracked": lambda nn: nn.BatchNorm2d(4, track_running_stats=False),
    "not affine": lambda nn: nn.BatchNorm2d(4, affine=False),
    "frozen": lambda nn: nn.BatchNorm2d(4).requires_grad_(False),
    "synchronized": lambda nn: nn.SyncBatchNorm(4),
    "lazy": lambda nn: nn.LazyBatchNorm2d(),
    "of instances": lambda nn: nn.InstanceNorm2d(4, track_running_stats=True, affine=True),
    "of instances, by default": lambda nn: nn.InstanceNorm2d(4),
}


@pytest.mark.parametrize("kind", WITH_STATISTICS)
def test_running_statistics_are_torchs(kind: str) -> None:
    """Three batches in training, then one in evaluation."""
    torch.manual_seed(0)
    theirs, ours = (WITH_STATISTICS[kind](library).double() for library in (torch.nn, nn))
    batches = [3 * torch.randn(n, *IMAGES[1:], dtype=torch.float64) + 5 for n in (5, 1, 2, 5)]
    for i, x in enumerate(batches):
        results = []
        for layer in (theirs, ours):
            layer.train(i < 3)
            leaf = x.clone().requires_grad_()
            output = layer(leaf)
            output.square().sum().backward()
            results.append([output.detach(), leaf.grad, *layer.state_dict().values()])
        for t, expected in zip(*reversed(results), strict=True):
            assert_same(t, expected)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert_same(p.grad, q.grad)


def test_an_empty_batch_moves_no_statistics() -> None:
    layer = nn.BatchNorm1d(4)
    layer(torch.randn(0, 4))
    assert layer.num_batches_tracked == 1
    assert_same(layer.running_mean, torch.zeros(4))
    assert_same(layer.running_var, torch.ones(4))
