"""Numbers on modules that change from step to step are inputs of a derived step, where their code takes them so."""

from __future__ import annotations

from typing import Any

import torch
from step_cases import Pair, data, mlp
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from torch_manualbp.derive.check import differences, is_rounding


class Weighted(Module):
    """Cross-entropy, and a part that is weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.gamma = 0.5, 2.0

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) / self.gamma + self.beta * (output * output).mean()


class Branching(Weighted):
    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        extra = self.beta * (output * output).mean() if self.beta > 0.2 else 0.0
        return F.cross_entropy(output, y) + extra


class Given(Weighted):
    """The number goes where torch takes none but numbers."""

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y, label_smoothing=self.beta)


def train(loss: Module, dtype: torch.dtype = torch.float64) -> Pair:
    torch.manual_seed(0)
    pair: Any = Pair(mlp(), loss)
    for i in range(6):
        for of in (pair.step.loss, pair.stock_loss):
            of.beta = 0.5 / (i + 1)
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        pair.check()
    return pair


def test_a_schedule_takes_two_programs() -> None:
    pair: Any = train(Weighted())
    assert len(pair.step._programs) == 2
    for of in (pair.step.loss, pair.stock_loss):
        of.gamma = 3.0
    torch.testing.assert_close(*pair.advance(*data(9)), rtol=1e-12, atol=1e-12)
    for of in (pair.step.loss, pair.stock_loss):
        of.gamma, of.beta = 4.0, 0.125
    torch.testing.assert_close(*pair.advance(*data(9)), rtol=1e-12, atol=1e-12)
    assert len(pair.step._programs) == 3
    assert type(pair.step.loss.beta) is float
    assert "beta_loss" in pair.step.program
    pair.check()


def test_a_number_that_torch_asks_for_stays_a_constant() -> None:
    pair: Any = train(Given())
    assert len(pair.step._programs) == 6


def test_a_branch_on_a_number_takes_a_program_for_each_way() -> None:
    """One of the first number as a constant, and one a way with the number as an input."""
    pair: Any = train(Branching())
    assert len(pair.step._programs) == 3


def test_another_type_is_seen() -> None:
    pair: Any = train(Weighted())
    for of in (pair.step.loss, pair.stock_loss):
        of.beta = 2
    torch.testing.assert_close(*pair.advance(*data(9)), rtol=1e-12, atol=1e-12)
    for of in (pair.step.loss, pair.stock_loss):
        of.beta = 0.25
    torch.testing.assert_close(*pair.advance(*data(9)), rtol=1e-12, atol=1e-12)
    pair.check()


def test_noise_about_a_gradient_of_zero_is_no_difference() -> None:
    noise = torch.tensor([1e-20, -3e-20])

    def differ(factor: float) -> list[str]:
        moved = iter([{"g": 2e-20}])
        return differences({"g": factor * noise}, {"g": -noise}, 1e-14, moved)

    assert differ(1.0) == []
    assert differ(3.0) != []


def test_a_loss_that_rounding_moves_far_is_no_stale_one() -> None:
    def cancels(t: Tensor) -> Tensor:
        return ((t * 1e9 + 1e9) - 1e9).mean()

    model = torch.nn.Linear(3, 2).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    expected = cancels(model(x)).detach()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cancels(output)

    assert is_rounding(expected * (1 + 1e-13), expected, model, loss, x, y, 1.4e-14)
    assert not is_rounding(expected + 1e6, expected, model, loss, x, y, 1.4e-14)
