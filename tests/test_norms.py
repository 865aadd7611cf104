"""A derived step of networks with normalisations is autograd's, step after step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_manualbp
from torch_manualbp import nn
from torch_manualbp.kernels.dispatch import LARGE, plain
from torch_manualbp.rules import LayerNorm, RMSNorm
from torch_manualbp.rules.norm.normalized import normalized_gradients

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
    hold_statistics(*(WITH_STATISTICS[kind](library) for library in (torch.nn, nn)))


class UpdatedTwice(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            super().forward(input)
        return super().forward(input)


class UpdatedInEvaluation(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training and self.running_mean is not None:
            self.running_mean.lerp_(input.mean((0, 2, 3)), 0.1)
        return super().forward(input)


class OfTheBiasedVariance(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input)
        if self.training and self.running_var is not None:
            n = input.numel() // input.shape[1]
            self.running_var -= 0.1 / n * input.var((0, 2, 3)).detach()
        return output


@pytest.mark.parametrize("planted", [UpdatedTwice, UpdatedInEvaluation, OfTheBiasedVariance])
def test_statistics_that_are_wrong_are_found(planted: type[torch.nn.BatchNorm2d]) -> None:
    with pytest.raises(AssertionError, match=r"not close|not equal"):
        hold_statistics(torch.nn.BatchNorm2d(4), planted(4))


def hold_statistics(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    torch.manual_seed(0)
    theirs, ours = theirs.double(), ours.double()
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


LARGE_CALLS: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...], tuple[int, ...]]] = {
    "rows": ((700, 300), (300,), (-1,), (0,)),
    "rows without weights": ((700, 300), None, (-1,), (0,)),
    "planes": ((70, 4, 20, 30), (20, 30), (-2, -1), (0, 1)),
    "channels of a batch": ((50, 8, 20, 30), (8, 1, 1), (0, 2, 3), (0, 2, 3)),
    "channels of a batch without weights": ((50, 8, 600), None, (0, 2), (0, 2)),
    "channels of a sample": ((50, 8, 20, 30), (8, 1, 1), (2, 3), (0, 2, 3)),
    "groups": ((50, 4, 2, 600), (4, 2, 1), (2, 3), (0, 3)),
}
"""The shape of z, that of w, what is normalised together, and what shares a w."""


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "not centred"])
@pytest.mark.parametrize("call", LARGE_CALLS)
def test_the_kernel_is_the_formula(call: str, centred: bool) -> None:
    shape, of_weight, dims, shared = LARGE_CALLS[call]
    torch.manual_seed(0)
    formula = plain(normalized_gradients)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 5e-6)):
        z, da = torch.randn(shape, dtype=torch.float64) + 2, torch.randn(shape, dtype=torch.float64)
        w = None if of_weight is None else torch.randn(of_weight, dtype=torch.float64)
        mu = z.mean(dims, keepdim=True) if centred else None
        r = torch.rsqrt((z if mu is None else z - mu).square().mean(dims, keepdim=True) + 1e-5)
        expected = formula(da, z, mu, r, w, dims, shared, True, True)
        given = [None if t is None else t.to(dtype) for t in (da, z, mu, r, w)]
        before = [None if t is None else t.clone() for t in given]
        for needs in ((True, False),) if w is None else ((True, True), (True, False), (False, True)):
            found = LARGE[formula](*given, dims, shared, *needs)
            for t, right, is_needed in zip(found, expected, needs, strict=True):
                assert (t is not None) == is_needed
                if is_needed:
                    assert t.dtype == dtype
                    torch.testing.assert_close(t.double(), right, rtol=0, atol=tolerance * right.abs().max().item())
        for t, was in zip(given, before, strict=True):
            assert (t is None and was is None) or torch.equal(t, was)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
def test_an_explanation_adds_up_through_rows(norm: str) -> None:
    """Every path through the Jacobian of a norm of rows, r ([i = j] − 1 / n − ẑ_i ẑ_j / n), is in ∂C/∂w."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), getattr(nn, norm)(3), nn.Tanh(), nn.Linear(3, 2)).double()
    torch.nn.init.normal_(model.get_parameter("1.weight"))
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randint(2, (3,))
    for name, index in (("0.weight", (1, 2)), ("0.bias", (0,)), ("1.weight", (2,))):
        explained = torch_manualbp.explain(model, nn.CrossEntropyLoss(), x, y, name, index)
        assert abs(explained.difference) <= 1e-15


def test_the_jacobian_of_rows_is_autograds() -> None:
    torch.manual_seed(0)
    z, w, entries = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64), torch.tensor([1, 5])
    for rule, args in ((LayerNorm, ((3,), w, None, 0.1)), (RMSNorm, ((3,), None, 0.1))):
        full = torch.autograd.functional.jacobian(lambda z, rule=rule, args=args: rule.apply(z, *args), z).reshape(6, 6)
        p, q, value = rule.jacobian.by_input(z, 3, args[1], 0.1, entries)
        found = torch.zeros(6, 6, dtype=torch.float64)
        found[q, p] = value
        assert_same(found[:, entries], full[:, entries])
