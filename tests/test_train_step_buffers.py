"""What forward writes to buffers, a derived step writes, too; and nothing where it fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sources import assert_alike
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import SGD, AdamW, RMSprop

from torch_manualbp import TrainStep, nn
from torch_manualbp.derive import NotDerivableError, assembled, tape

Forward = Callable[[Any, Tensor, Tensor], Tensor]


class Model(Module):
    """A function of (the module, the output of a layer, the input), and another layer."""

    count: Tensor
    mean: Tensor
    total: Tensor
    queue: Tensor

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.fc, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("total", torch.zeros(5))
        self.register_buffer("queue", torch.linspace(-1, 1, 60).reshape(12, 5))
        self.key = nn.Linear(6, 5).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.head(self.function(self, self.fc(x), x))
        return h


def _statistics(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.count.add_(1)
    with torch.no_grad():
        m.mean.lerp_(h.mean(0), 0.1)
    return h


def _average_that_is_read(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.count += 1
    with torch.no_grad():
        m.mean.mul_(0.9).add_(h.abs().mean(0) * 0.1)
    return h / (m.mean + m.count)


def _one_of_another(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.mean.add_(1)
    m.total.add_(m.mean)
    m.mean.mul_(0.5)
    return h * m.total


def _momentum_encoder_and_queue(m: Any, h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        for key, query in zip(m.key.parameters(), m.fc.parameters(), strict=True):
            key.data.mul_(0.9).add_(query.data, alpha=0.1)
    out = h + (h.detach() @ m.queue.t()).softmax(-1) @ m.queue
    with torch.no_grad():
        m.queue[: len(x)] = m.key(x)
        m.queue.copy_(m.queue.roll(len(x), 0))
    return out


def _parts(m: Any, h: Tensor, x: Tensor) -> Tensor:
    part = m.queue[2:4]
    before = part.sum(0)
    with torch.no_grad():
        part.fill_(0.5)
        m.queue.view(-1)[:5].add_(h[0])
    return h * before + m.queue.mean(0)


def _random(m: Any, h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.mean.bernoulli_(0.5)
    return h * (1 + m.mean) * torch.rand_like(h)


def _of_weights(m: Any, h: Tensor, x: Tensor) -> Tensor:
    m.mean.lerp_(m.fc.bias.detach(), 0.5)
    return h


UPDATES: dict[str, Forward] = {
    "statistics": _statistics,
    "an average that is read": _average_that_is_read,
    "one of another": _one_of_another,
    "a momentum encoder and a queue": _momentum_encoder_and_queue,
    "parts": _parts,
    "random numbers": _random,
    "of weights that are updated": _of_weights,
}


def batch(i: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(7, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (7,), generator=generator)


def trained(model: Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("optimizer", [SGD, AdamW, RMSprop])
@pytest.mark.parametrize("case", UPDATES)
def test_updates_are_stock_s(case: str, optimizer: Any) -> None:
    torch.manual_seed(0)
    stock = Model(UPDATES[case]).double()
    ours = copy.deepcopy(stock)
    stock_optimizer = optimizer(trained(stock), lr=0.01)
    step = TrainStep(ours, nn.CrossEntropyLoss(), optimizer(trained(ours), lr=0.01))
    step.derive(*batch(0))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=0, atol=0)
    for i in range(11):  # at the second and the tenth the model itself runs, too
        x, y = batch(i)
        torch.manual_seed(i)
        stock_optimizer.zero_grad()
        C = F.cross_entropy(stock(x), y)
        C.backward()
        stock_optimizer.step()
        torch.manual_seed(i)
        torch.testing.assert_close(step(x, y), C.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-9, atol=1e-11)
    assert len(step._programs) == 1
    assert_alike(step._programs[0].derived, ours, step.loss, list(batch(0)))


@pytest.mark.parametrize("case", ["statistics", "parts"])
def test_each_batch_of_an_accumulation_updates_them(case: str) -> None:
    torch.manual_seed(0)
    stock = Model(UPDATES[case]).double()
    ours = copy.deepcopy(stock)
    optimizer = SGD(trained(stock), lr=0.1)
    step = TrainStep(ours, nn.CrossEntropyLoss(), SGD(trained(ours), lr=0.1), accumulate=3)
    for i in range(6):
        x, y = batch(i)
        (F.cross_entropy(stock(x), y) / 3).backward()
        step(x, y)
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", UPDATES)
@pytest.mark.parametrize("folded", [True, False])
def test_a_step_that_fails_changes_nothing(case: str, folded: bool) -> None:
    torch.manual_seed(0)
    model = Model(UPDATES[case]).double()
    optimizer = (SGD if folded else RMSprop)(trained(model), lr=0.1)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, skip_nonfinite=True)
    step(*batch(0))
    before = copy.deepcopy(model.state_dict())
    x, y = batch(1)
    with pytest.raises(IndexError):
        step(x, y + 4)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    step(x / 0, y)
    assert step.skipped == 1
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


class Standardized(Module):
    """A batch norm of the data, by which nothing is learnt, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x))
        return out


NORMS: dict[str, Callable[[], Module]] = {
    "BatchNorm1d": lambda: torch.nn.Sequential(nn.Linear(6, 4), torch.nn.BatchNorm1d(4), nn.Tanh()),
    "ours": lambda: torch.nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Tanh()),
    "InstanceNorm1d": lambda: torch.nn.Sequential(
        nn.Linear(6, 12),
        torch.nn.Unflatten(1, (3, 4)),
        torch.nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        torch.nn.Flatten(),
        nn.Linear(12, 4),
    ),
    "of the data": Standardized,
}


@pytest.mark.parametrize("case", NORMS)
def test_norms_keep_their_statistics(case: str) -> None:
    torch.manual_seed(0)
    stock = NORMS[case]().double()
    ours = copy.deepcopy(stock)
    optimizer = SGD(stock.parameters(), lr=0.1, momentum=0.9)
    step = TrainStep(ours, nn.CrossEntropyLoss(), SGD(ours.parameters(), lr=0.1, momentum=0.9))
    for i in range(8):
        for model in (ours, stock):
            model.train(i not in (4, 5))
        x, y = batch(i)
        optimizer.zero_grad()
        C = F.cross_entropy(stock(x), y)
        C.backward()
        optimizer.step()
        torch.testing.assert_close(step(x, y), C.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-10, atol=1e-12)
    assert len(step._programs) == 2


def test_an_update_that_nobody_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "UPDATING", frozenset())
    model = Standardized()
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    x, y = batch(0)
    with pytest.raises(NotDerivableError, match=r"norm: changes the buffer norm\.running_mean in a way that cannot"):
        step(x.float(), y)


def test_another_update_than_stock_s_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_count(program: Any, buffers: Any) -> None:
        program.calls = [call for call in program.calls if call.name != "add_"]

    monkeypatch.setattr(assembled, "put_changes_last", forgets_the_count)
    model = Model(_statistics)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(trained(model), lr=0.1))
    x, y = batch(0)
    with pytest.raises(NotDerivableError, match="the buffer count: other numbers"):
        step(x.float(), y)
