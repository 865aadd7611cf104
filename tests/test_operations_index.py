"""Whatever an index is written with, torch's entries and gradients come out of rules, or a refusal in words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep
from torch_manualbp.derive import NotDerivableError
from torch_manualbp.derive.operations import OPERATIONS, NoRule

getitem = OPERATIONS[Tensor.__getitem__]
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:indexing with dtype torch.uint8")


def random_item(draw: random.Random, n: int) -> Any:
    """An item for a dimension of this size, now and then one that is too large."""
    number = draw.randrange(-n, n + (draw.random() < 0.02))
    shape = draw.choice([(), (1,), (2,), (3,), (2, 3), (1, 3), (0,)])
    numbers = np.array([draw.randrange(-n, n) for _ in range(int(np.prod(shape)))], dtype=np.int64).reshape(shape)

    def bound() -> Any:
        return draw.choice([None, None, draw.randrange(-n - 1, n + 2)])

    in_lists: Any = numbers.tolist()
    kinds: list[Callable[[], Any]] = [
        lambda: number,
        lambda: draw.choice([np.int64, np.int32, np.uint8])(abs(number)),
        lambda: slice(bound(), bound(), draw.choice([None, None, 1, 2, 3])),
        lambda: slice(None),
        lambda: slice(np.int64(0), bound(), None),
        lambda: None,
        lambda: numbers,
        lambda: numbers.astype(draw.choice([np.int32, np.int16, np.float64])),
        lambda: in_lists,
        lambda: tuple(in_lists) if shape else in_lists,
        lambda: [np.int64(i) for i in numbers.reshape(-1)],
        lambda: torch.from_numpy(numbers.copy()),
        lambda: torch.from_numpy(numbers.astype(np.int32)),
        lambda: torch.from_numpy(numbers.copy()),
        lambda: range(abs(number)),
        lambda: numbers[..., ::-1] if shape else numbers,
        lambda: draw.choice([True, False, np.bool_(True), torch.tensor(True)]),
        lambda: [draw.random() < 0.5 for _ in range(n)],
        lambda: np.array([draw.random() < 0.5 for _ in range(n)]),
        lambda: torch.tensor([draw.random() < 0.5 for _ in range(n)]),
        lambda: [torch.tensor(number), 0],
        lambda: slice(torch.tensor(0), None),
        lambda: draw.choice([1.0, "a", {0}, np.float64(1), 2j]),
    ]
    return draw.choice(kinds[:16] if draw.random() < 0.93 else kinds)()


def random_index(draw: random.Random, shape: tuple[int, ...]) -> Any:
    items = [random_item(draw, n) for n in shape[: draw.randrange(len(shape) + 1)]]
    if draw.random() < 0.3:
        items.insert(draw.randrange(len(items) + 1), ...)
    kind = draw.random()
    if len(items) == 1 and kind < 0.5:
        return items[0]
    return items if kind > 0.95 else tuple(items)


def outcome(function: Any, h: Tensor, index: Any) -> Any:
    """The result and its gradient, or the exception."""
    h = h.clone().requires_grad_()
    try:
        z = function(h, index)
        (g,) = torch.autograd.grad(z, h, torch.arange(1, 1 + z.numel(), dtype=h.dtype).reshape(z.shape) ** 0.5)
        return z.detach(), g
    except Exception as error:
        return error


def fuzz(seed: int, number: int) -> dict[str, int]:
    draw = random.Random(seed)
    counts = {"equal": 0, "refused": 0, "torch raises": 0}
    for _ in range(number):
        shape = tuple(draw.randrange(1, 5) for _ in range(draw.randrange(1, 5)))
        h = torch.randn(shape, dtype=torch.float64)
        index = random_index(draw, shape)
        theirs, ours = outcome(Tensor.__getitem__, h, index), outcome(getitem, h, index)
        if isinstance(theirs, Exception):
            assert isinstance(ours, (NoRule, type(theirs))), (shape, index, theirs, ours)
            counts["torch raises"] += 1
        elif isinstance(ours, NoRule):
            counts["refused"] += 1
        else:
            assert not isinstance(ours, Exception), (shape, index, ours)
            assert ours[0].shape == theirs[0].shape, (shape, index)
            assert torch.equal(ours[0], theirs[0]), (shape, index)
            torch.testing.assert_close(ours[1], theirs[1], rtol=1e-14, atol=1e-14, msg=str((shape, index)))
            counts["equal"] += 1
    return counts


def test_random_indices() -> None:
    counts = fuzz(0, 2000)
    assert counts["equal"] > 1500, counts
    assert counts["refused"] < 200, counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_random_indices(seed: int) -> None:
    fuzz(seed, 10_000)


class Indexing(Module):
    """Takes parts of what learns, and of an input."""

    def __init__(self, shape: tuple[int, ...], index: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, int(np.prod(shape)), dtype=torch.float64)
        self.shape, self.index = shape, (index,)

    def forward(self, x: Tensor) -> Tensor:
        (index,) = self.index
        learnt, given = self.layer(x[0]).reshape(self.shape)[index], x.new_ones(self.shape)[index]
        given = given * (x.flatten()[: int(np.prod(self.shape))].reshape(self.shape) * 2)[index]
        return (learnt * given * torch.linspace(1, 2, learnt.numel(), dtype=x.dtype).reshape(learnt.shape)).sum() + 1


def steps_by_indices(seed: int, number: int) -> int:
    draw, equal = random.Random(seed), 0
    for _ in range(number):
        shape = tuple(draw.randrange(1, 4) for _ in range(draw.randrange(1, 4)))
        index = random_index(draw, shape)
        torch.manual_seed(seed)
        models = [Indexing(shape, index) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
        step = TrainStep(models[0], torch.nn.MSELoss(), optimizers[0])
        for _ in range(2):
            x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn((), dtype=torch.float64)
            try:
                torch.nn.functional.mse_loss(models[1](x), y).backward()
            except (IndexError, TypeError, ValueError):
                break
            optimizers[1].step()
            optimizers[1].zero_grad()
            try:
                step(x, y)
            except NotDerivableError:
                break
            for p, q in zip(*(model.parameters() for model in models), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12, msg=str((shape, index)))
            equal += 1
    return equal


def test_steps_by_random_indices() -> None:
    assert steps_by_indices(0, 30) > 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_steps_by_random_indices(seed: int) -> None:
    steps_by_indices(seed, 250)
