"""What forward asks of autograd is part of a derived step: gradients, checkpoints, and Functions that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sources import assert_alike
from step_cases import CLASSES, FEATURES, Pair, data
from torch import Tensor
from torch.autograd import grad
from torch.nn import Module
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torch_manualbp import TrainStep, nn
from torch_manualbp.derive import NotDerivableError

Forward = Callable[[Any, Tensor], Tensor]


class Through(Module):
    """A function of two layers, and of the input."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Scaled(torch.autograd.Function):
    """s x², in the older style."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.s = s
        return x * x * s

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * g * ctx.s, None


class Both(torch.autograd.Function):
    """x y and x + y, with setup_context."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y, x + y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return g * y + h, g * x + h


class Reversed(torch.autograd.Function):
    """x, with a gradient that is another's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


def _penalty(m: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out: Tensor = m.head(torch.tanh(m.fc(x)))
    (g,) = grad(out.sum(), x, create_graph=True)
    return out + (g * g).sum()


def _second_derivatives(m: Any, x: Tensor) -> Tensor:
    x = x.detach()
    x.requires_grad = True
    out: Tensor = m.head(torch.tanh(m.fc(x)))
    g = grad(out, x, torch.ones_like(out), create_graph=True)[0]
    h = grad(g[:, 0].sum(), x, create_graph=True)[0]
    return out + (g * g).mean() + h.mean()


def _without_a_graph(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.fc(x))
    (g,) = grad(h.sum(), m.fc.weight, retain_graph=True)
    out: Tensor = m.head(h) * (g * g).mean()
    return out


def _by_what_was_made(m: Any, x: Tensor) -> Tensor:
    h = torch.sigmoid(m.fc(x))
    z = m.head(h)
    (g,) = grad((z * z).sum(), h, create_graph=True)
    out: Tensor = m.head(h - 0.1 * g)
    return out


def _by_steps(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x)
    out: Tensor = m.head(h * torch.sign(h) + torch.floor(h))
    return out


def _by_what_is_unused(m: Any, x: Tensor) -> Tensor:
    z = torch.zeros(3, requires_grad=True)
    out: Tensor = m.head(m.fc(x))
    weight, none = grad(out.sum(), [m.fc.weight, z], allow_unused=True, create_graph=True)
    return out + weight.sum() if none is None else out


def _checkpointed(use_reentrant: bool) -> Forward:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = checkpoint(lambda t: F.dropout(torch.tanh(t), 0.3), m.fc(x), use_reentrant=use_reentrant)
        out: Tensor = m.head(h)
        return out

    return forward


def _two_outputs(m: Any, x: Tensor) -> Tensor:
    a, b = Both.apply(m.fc(x), torch.tanh(m.fc(x)))  # type: ignore[no-untyped-call]
    out: Tensor = m.head(a * b)
    return out


def _scaled(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.head(Scaled.apply(m.fc(x), 0.5))  # type: ignore[no-untyped-call]
    return out


FORWARD: dict[str, Forward] = {
    "a gradient penalty": _penalty,
    "second derivatives": _second_derivatives,
    "a gradient without a graph": _without_a_graph,
    "a gradient by what was made": _by_what_was_made,
    "a gradient by what is unused": _by_what_is_unused,
    "steps": _by_steps,
    "a reentrant checkpoint": _checkpointed(True),
    "a checkpoint": _checkpointed(False),
    "a Function": _scaled,
    "a Function of two outputs": _two_outputs,
}


@pytest.mark.parametrize("case", FORWARD)
def test_it_is_stock_s(case: str) -> None:
    torch.manual_seed(0)
    pair = Pair(Through(FORWARD[case]))
    for i in range(3):
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
        pair.check()
    assert_alike(pair.step._programs[0].derived, pair.ours, pair.step.loss, list(data(0)))


def _what_does_not_ask(m: Any, x: Tensor) -> Tensor:
    return x + grad(m.head(m.fc(x)).sum(), x)[0].sum()


def test_torch_s_errors_are_torch_s() -> None:
    model = Through(_what_does_not_ask).double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="does not require grad"):
        step(*data(0))


def test_a_function_whose_backward_is_another_s_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.head(Reversed.apply(m.fc(x)))  # type: ignore[no-untyped-call]
        return out

    model = Through(forward).double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NotDerivableError, match=r"the Function Reversed .* finds it wrong .*sign is wrong"):
        step(*data(0))
