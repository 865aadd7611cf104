"""Models put together at random: where a plan keeps values, nobody still reads the old ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from step_cases import CLASSES, FEATURES, Pair, data, mlp
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import SGD, AdamW, RMSprop

from torch_manualbp import nn, rules
from torch_manualbp.derive import NotDerivableError, passes
from torch_manualbp.derive import plan as planning

Operation = Callable[[Any, Tensor, Tensor], Tensor]


def _added_in_place(m: Any, a: Tensor, b: Tensor) -> Tensor:
    z = a.clone()
    z += b
    z.mul_(0.5)
    return z


def _swapped(m: Any, a: Tensor, b: Tensor) -> Tensor:
    u, v = a.chunk(2, 1)
    return torch.cat([v, u * 2], 1)


def _without_gradient(m: Any, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        t = a.softmax(1)
    return b * t


OPERATIONS: Sequence[Operation] = (
    *[lambda m, a, b, k=k: m.layers[k](a) for k in range(3)] * 2,
    *[lambda m, a, b, k=k: m.activations[k](a) for k in range(9)],
    lambda m, a, b: a + b,
    lambda m, a, b: a - b * 0.5,
    lambda m, a, b: a * torch.tanh(b),
    lambda m, a, b: a / (1 + b * b),
    lambda m, a, b: a @ m.square,
    lambda m, a, b: a * m.gain + m.shift,
    lambda m, a, b: a * m.number,
    lambda m, a, b: a.view(-1, 2, FEATURES // 2).transpose(1, 2).reshape(a.shape),
    lambda m, a, b: a - a.mean(1, keepdim=True),
    lambda m, a, b: a + b.sum(0) * 0.1,
    lambda m, a, b: F.dropout(a, 0.3, m.training),
    lambda m, a, b: a.detach() * b,
    lambda m, a, b: torch.stack([a, b], 1).mean(1),
    lambda m, a, b: a[:, [5, 4, 3, 2, 1, 0]],
    lambda m, a, b: torch.cat([a[:, ::2], b[:, 1::2]], 1),
    lambda m, a, b: a + a[0],
    lambda m, a, b: -a,
    lambda m, a, b: (a.unsqueeze(2) @ b.unsqueeze(1)).sum(2) * 0.1,
    lambda m, a, b: F.relu(a.clone(), inplace=True) + a,
    lambda m, a, b: a.t().contiguous().t() + 0.0,
    lambda m, a, b: a / (1 + a.detach().abs().mean()),
    _added_in_place,
    _swapped,
    _without_gradient,
)

ACTIVATIONS = (nn.GELU, nn.ReLU, nn.Tanh, nn.SiLU, nn.ELU, nn.Sigmoid, nn.Softplus, nn.Hardtanh, lambda: nn.Softmax(-1))


class Random(Module):
    """``length`` operations on earlier values, as a seed picks them."""

    shift: Tensor

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        self.seed, self.length = seed, length
        self.layers = torch.nn.ModuleList([nn.Linear(FEATURES, FEATURES) for _ in range(3)])
        self.activations = torch.nn.ModuleList([make() for make in ACTIVATIONS])
        self.gain = torch.nn.Parameter(torch.randn(FEATURES))
        self.square = torch.nn.Parameter(torch.rand(FEATURES, FEATURES))
        self.number = torch.nn.Parameter(torch.tensor(0.7))
        self.register_buffer("shift", torch.randn(FEATURES))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pick = random.Random(self.seed)
        values = [x]
        for _ in range(self.length):
            operation = pick.choice(OPERATIONS)
            values.append(operation(self, pick.choice(values[-4:]), pick.choice(values)))
        out: Tensor = self.head(torch.tanh(values[-1]) + torch.tanh(pick.choice(values)))
        return out


OPTIMIZERS: Sequence[Callable[[Any], torch.optim.Optimizer]] = (
    lambda p: SGD(p, lr=0.02),
    lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda p: AdamW(p, lr=0.01),
    lambda p: RMSprop(p, lr=0.001),
)

OPTIONS: Sequence[dict[str, Any]] = ({}, {}, {"keep_deltas": True}, {"accumulate": 2})


def train_some(length: int) -> int:
    """How many of the first seeds could be trained."""
    return sum(train(seed, length) for seed in range(24))


def train(seed: int, length: int) -> bool:
    """Both from the seed on for some steps. Returns whether stock PyTorch could: it may refuse what is in place."""
    torch.manual_seed(seed)
    model = Random(seed, length)
    pair = Pair(model, optimizer=OPTIMIZERS[seed % 4], **OPTIONS[seed // 4 % 4])
    for i in range(4):
        try:
            ours, expected = pair.advance(*data(i, batch=4 if i == 2 else 9))
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                return False
            raise
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10, msg=f"loss of seed {seed}, step {i}")
    for (name, p), q in zip(pair.ours.named_parameters(), pair.stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9, msg=f"{name} of seed {seed}")
    return True


@pytest.mark.parametrize("length", [2, 6, 14])
def test_models_at_random_train_as_stock(length: int) -> None:
    assert train_some(length) > 20


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_many_models_at_random_train_as_stock(first: int) -> None:
    assert sum(train(seed, 3 + seed % 18) for seed in range(first, first + 100)) > 90


def test_a_value_kept_too_short_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: Any) -> None:
        for i, call in enumerate(self.calls):
            for memory in {value.memory for value in (*call.arguments(), *call.results)}:
                self.last_use.setdefault(memory, i + 3)  # of the first use, and not of the last

    monkeypatch.setattr(planning._Planner, "_find_last_uses", short)
    with pytest.raises((AssertionError, RuntimeError)):
        train_some(14)


def test_a_random_number_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x)
            F.dropout(h, 0.3)
            return F.dropout(h, 0.3)

    ours, expected = Pair(Unread()).advance(*data(0))
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=0)
    monkeypatch.setattr(passes, "is_random", lambda call: False)
    with pytest.raises(NotDerivableError, match="not autograd's"):
        Pair(Unread()).advance(*data(0))


def test_a_gradient_that_is_off_by_a_millionth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = rules.Tanh.backward
    monkeypatch.setattr(rules.Tanh, "backward", staticmethod(lambda ctx, da: backward(ctx, da * (1 + 1e-6))))
    pair = Pair(mlp())
    for i in range(5):
        pair.advance(*data(i))
    with pytest.raises(AssertionError):
        pair.check()
