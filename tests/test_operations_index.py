"""Whatever an index is written with, torch's entries and gradients come out of rules, or a refusal in words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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

    kinds: list[Callable[[], Any]] = [
        lambda: number,
        lambda: draw.choice([np.int64, np.int32, np.uint8])(abs(number)),
        lambda: slice(bound(), bound(), draw.choice([None, None, 1, 2, 3])),
        lambda: slice(None),
        lambda: slice(np.int64(0), bound(), None),
        lambda: None,
        lambda: numbers,
        lambda: numbers.astype(draw.choice([np.int32, np.int16, np.float64])),
        lambda: numbers.tolist(),
        lambda: (*numbers.tolist(),) if shape else numbers.tolist(),
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
