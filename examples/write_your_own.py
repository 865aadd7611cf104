"""A rule of your own: an activation that torch lacks, held to everything that this package's own rules are held to.

    python examples/write_your_own.py

Snake (Ziyin, Hartwig, Ueda 2020, https://arxiv.org/abs/2006.08195) is an identity with ripples, whose frequency β is
learned; networks of it can continue a periodic function. The program derives its gradients by hand, prints what the
contract finds of them, and then lets a small network learn a wave. It ends with status 1 if anything fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp import Rule, nn
from torch_manualbp.catalogue import Make, Operation, Sample
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify import contract_matrix


class Snake(Rule):
    """a = z + sin²(βz) / β  ⇒  ∂C/∂z = ∂C/∂a (1 + sin 2βz),  ∂C/∂β = Σ ∂C/∂a (z sin 2βz − sin²(βz) / β) / β."""

    @staticmethod
    def forward(z: Tensor, beta: Tensor) -> Tensor:
        return snake(z, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        args = ctx.saved_tensors
        by = slopes(*(x.conj() for x in args))
        gradients = [(widened(da) * d).sum_to_size(x.shape).to(x.dtype) for d, x in zip(by, args, strict=True)]
        return tuple([g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True)])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        moved = [d * t for d, t in zip(slopes(*ctx.saved_tensors), tangents, strict=True) if t is not None]
        return sum(moved[1:], start=moved[0])


def slopes(z: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """∂a/∂z and ∂a/∂β, of which float16 and bfloat16 see no intermediate result."""
    z, beta = widened(z), widened(beta)
    ripple = (2 * beta * z).sin()
    return 1 + ripple, (z * ripple - (beta * z).sin().square() / beta) / beta


def snake(z: Tensor, beta: Tensor) -> Tensor:
    """The same in torch operations, which autograd can differentiate: what the rule is held against."""
    return z + (beta * z).sin().square() / beta


def samples(make: Make) -> Iterator[Sample]:
    """Arguments that take every branch, the awkward shapes among them."""
    yield Sample("matrix", (make(5, 4), make.positive(4)))
    yield Sample("number", (make(), make.positive()))
    yield Sample("images", (3 * make(2, 3, 2, 2), make.positive(3, 1, 1)))
    yield Sample("empty batch", (make(0, 4), make.positive(4)))


CATALOGUE = (Operation(Snake, snake, samples, cancels=True),)


class SnakeLayer(nn.Module):
    """Snake with a β for each feature."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(features))

    def forward(self, z: Tensor) -> Tensor:
        a: Tensor = Snake.apply(z, self.beta)
        return a


def learn_a_wave(steps: int = 200) -> tuple[float, float]:
    """Mean squared error on sin 2x before and after some steps of Adam."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), SnakeLayer(16), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x = torch.linspace(-3, 3, 256).unsqueeze(1)
    first = last = float("nan")
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.MSELoss()(model(x), (2 * x).sin())
        loss.backward()
        optimizer.step()
        last = loss.item()
        first = last if step == 0 else first
    return first, last


def main() -> int:
    matrix = contract_matrix(CATALOGUE)
    print(matrix)
    if not matrix.ok:
        return 1
    first, last = learn_a_wave()
    print(f"\nA network of 16 Snakes on sin 2x: mean squared error {first:.3f} → {last:.5f} in 200 steps")
    return 0 if last < first / 100 else 1


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
