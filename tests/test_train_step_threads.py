"""Several threads call steps at a time: every number is the one of some order of the calls."""

from __future__ import annotations

import copy
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep, nn

SIZE = 4

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.1),
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr, amsgrad=True),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
}


@pytest.fixture(autouse=True)
def often_switched() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def mlp(seed: int = 0, layers: int = 2) -> Module:
    """Layers of both libraries."""
    torch.manual_seed(seed)
    modules: list[Module] = [nn.Linear(SIZE, SIZE), nn.Tanh()]
    for _ in range(layers - 1):
        modules += [torch.nn.Linear(SIZE, SIZE), torch.nn.GELU()]
    return torch.nn.Sequential(*modules, nn.Linear(SIZE, SIZE)).double()


def data(i: int, batch: int = 5) -> tuple[Tensor, Tensor]:
    """A batch."""
    generator = torch.Generator().manual_seed(i)
    x, y = (torch.randn(batch, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y


def at_once(*bodies: Callable[[], Any]) -> None:
    """Run each in a thread of its own, all from one moment on, and raise the first error of theirs."""
    barrier, errors = threading.Barrier(len(bodies)), []

    def body(run: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(run,), daemon=True) for run in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a thread does not come back"
    if errors:
        raise errors[0]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding."""
    return torch.allclose(a, b, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------- one step


def losses_of_one_step(optimizer: str, threads: int, calls: int, **options: Any) -> int:
    """How many of the losses are wrong that threads get from one step with a learning rate of 0."""
    model = mlp()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS[optimizer](model.parameters(), 0.0), **options)
    batches = [data(i, 3 + i % 4) for i in range(20)]
    with torch.no_grad():
        right = [torch.nn.functional.mse_loss(model(x), y) for x, y in batches]
    found: list[tuple[int, Tensor]] = []

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(calls):
            i = rng.randrange(len(batches))
            found.append((i, step(*batches[i])))

    at_once(*(partial(call, seed) for seed in range(threads)))
    assert len(found) == threads * calls
    return sum(not close(C, right[i]) for i, C in found)


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip_norm": 0.1}, {"keep_output": True}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_loss_is_right(optimizer: str, options: dict[str, Any]) -> None:
    assert losses_of_one_step(optimizer, 4, 25, **options) == 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_threads_and_10_000_steps(optimizer: str) -> None:
    assert losses_of_one_step(optimizer, 10, 1000) == 0


@pytest.mark.parametrize(
    ("threads", "calls"), [(10, 30), pytest.param(10, 1000, marks=pytest.mark.slow)], ids=["300 steps", "10,000 steps"]
)
def test_no_update_is_lost(threads: int, calls: int) -> None:
    """The gradient of a linear model's mean output is the same at all parameters: the order is all the same."""
    model = nn.Linear(SIZE, 2).double()
    W, b = (p.detach().clone() for p in (model.weight, model.bias))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output * target).sum()

    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=1e-3))
    batches = [(data(i)[0], data(100 + i)[1][:, :2]) for i in range(threads)]

    def call(i: int) -> None:
        for _ in range(calls):
            step(*batches[i])

    at_once(*(partial(call, i) for i in range(threads)))
    for x, y in batches:
        W -= 1e-3 * calls * y.T @ x
        b -= 1e-3 * calls * y.sum(0)
    torch.testing.assert_close((model.weight.detach(), model.bias.detach()), (W, b), rtol=1e-9, atol=1e-9)


def orders(calls: int) -> Iterator[tuple[int, ...]]:
    """Which of two threads makes each step, if each makes so many."""
    for first in itertools.combinations(range(2 * calls), calls):
        yield tuple(0 if i in first else 1 for i in range(2 * calls))


def turns(optimizer: str, times: int, **options: Any) -> int:
    """How often losses and parameters are those of no order, when two threads make three steps each."""
    calls, n = 3, options.get("accumulate", 1)

    def training(like: Module) -> tuple[Module, TrainStep]:
        model = copy.deepcopy(like)
        return model, TrainStep(model, nn.MSELoss(), OPTIMIZERS[optimizer](model.parameters(), 0.05), **options)

    like, (x, y) = mlp(), data(0)
    expected = []
    for order in orders(calls):
        model, optimizer_ = copy.deepcopy(like), None
        optimizer_ = OPTIMIZERS[optimizer](model.parameters(), 0.05)
        done, losses = [0, 0], []
        for i, who in enumerate(order):
            C = torch.nn.functional.mse_loss(model(x + who), y * (1 + done[who]))
            if i % n == 0:
                optimizer_.zero_grad()
            (C / n).backward()
            if options.get("clip_norm"):
                torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
            if i % n == n - 1:
                optimizer_.step()
            done[who] += 1
            losses.append((who, C.detach()))
        of_each = [C for who in (0, 1) for w, C in losses if w == who]
        expected.append(torch.cat([torch.stack(of_each), *(p.detach().flatten() for p in model.parameters())]))
    wrong = 0
    for _ in range(times):
        model, step = training(like)
        found: list[list[Tensor]] = [[], []]

        def call(who: int, step: TrainStep = step, found: list[list[Tensor]] = found) -> None:
            for k in range(calls):
                found[who].append(step(x + who, y * (1 + k)))

        at_once(lambda: call(0), lambda: call(1))
        ours = torch.cat([torch.stack(found[0] + found[1]), *(p.detach().flatten() for p in model.parameters())])
        wrong += not any(close(ours, order) for order in expected)
    return wrong


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_threads_take_turns(optimizer: str, options: dict[str, Any]) -> None:
    assert turns(optimizer, 4, **options) == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_threads_take_turns_for_long(optimizer: str, options: dict[str, Any]) -> None:
    assert turns(optimizer, 100, **options) == 0


def test_an_error_in_one_thread_stops_no_other() -> None:
    model = mlp()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = data(0)
    right = torch.nn.functional.mse_loss(model(x), y).detach()
    losses: list[Tensor] = []

    def wrong() -> None:
        for _ in range(20):
            with pytest.raises(RuntimeError):
                step(x[:, :-1], y)

    def fine() -> None:
        losses.extend(step(x, y) for _ in range(20))

    at_once(wrong, fine, fine)
    assert len(losses) == 40
    assert all(close(C, right) for C in losses)


# ------------------------------------------------------------------------------------------------- several steps


def training(seed: int, optimizer: str, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and parameters of a training that derives at its beginning and twice later."""
    model = mlp(seed % 3, 1 + seed % 3)
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS[optimizer](model.parameters(), 0.02))
    losses = []
    for i in range(steps):
        if i == steps // 2:
            step.reset()
        losses.append(step(*data(seed + i, 3 + 3 * i // steps)))
    return losses, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("threads", "steps"), [(4, 12), pytest.param(10, 300, marks=pytest.mark.slow)], ids=["4 threads", "10 threads"]
)
def test_trainings_of_their_own(threads: int, steps: int) -> None:
    names = list(OPTIMIZERS)
    with torch.random.fork_rng(devices=[]):
        expected = [training(i, names[i % 4], steps) for i in range(threads)]
    found: dict[int, Any] = {}
    lock = threading.Lock()

    def train(i: int) -> None:
        with lock:  # layers are made from torch's random numbers
            torch.manual_seed(0)
            model = mlp(i % 3, 1 + i % 3)
        step = TrainStep(model, nn.MSELoss(), OPTIMIZERS[names[i % 4]](model.parameters(), 0.02))
        losses = []
        for k in range(steps):
            if k == steps // 2:
                step.reset()
            losses.append(step(*data(i + k, 3 + 3 * k // steps)))
        found[i] = losses, [p.detach() for p in model.parameters()]

    at_once(*(partial(train, i) for i in range(threads)))
    for i in range(threads):
        torch.testing.assert_close(found[i], expected[i], rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------- deriving


class Noisy(Module):
    """Layers that draw random numbers in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, SIZE)
        self.dropout, self.rrelu = torch.nn.Dropout(0.5), torch.nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.rrelu(self.a(x)))
        out: Tensor = self.b(h + torch.rand_like(h) + torch.randn(SIZE, dtype=h.dtype))
        return out


@pytest.mark.parametrize("threads", [2, 4])
def test_steps_of_one_model_are_derived_at_once(threads: int) -> None:
    for i in range(6):
        model = mlp(i)
        x, y = data(i)
        right = torch.nn.functional.mse_loss(model(x), y).detach()
        steps = [TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.0)) for _ in range(threads)]
        at_once(*(partial(step.derive, x, y) for step in steps))
        assert all(close(step(x, y), right) for step in steps)


def test_models_that_share_layers_are_derived_at_once() -> None:
    shared = mlp()
    models = [torch.nn.Sequential(shared, nn.Tanh()), torch.nn.Sequential(shared, torch.nn.Sigmoid())]
    for i in range(5):
        x, y = data(i)
        steps = [TrainStep(model, nn.MSELoss(), torch.optim.SGD(shared.parameters(), lr=0.0)) for model in models]
        at_once(*(partial(step.derive, x, y) for step in steps))
        for model, step in zip(models, steps, strict=True):
            right = torch.nn.functional.mse_loss(model(x), y).detach()
            assert close(step(x, y), right)


@pytest.mark.parametrize("how", ["evaluates", "differentiates", "copies", "lists"])
def test_another_thread_uses_the_model_while_its_step_is_derived(how: str) -> None:
    model = mlp()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    (x, y), (z, _) = data(0), data(1)
    right, output = torch.nn.functional.mse_loss(model(x), y).detach(), model(z).detach()
    slopes = [g.detach() for g in torch.autograd.grad(model(z).sum(), list(model.parameters()))]
    done = threading.Event()

    def other() -> None:
        while not done.is_set():
            if how == "evaluates":
                with torch.no_grad():
                    assert close(model(z), output)
            elif how == "differentiates":
                found = torch.autograd.grad(model(z).sum(), list(model.parameters()))
                assert all(close(a, b) for a, b in zip(found, slopes, strict=True))
            elif how == "copies":
                copied = copy.deepcopy(model)
                hooks = [x for m in copied.modules() for name, x in vars(m).items() if name.endswith("_hooks")]
                assert not any(isinstance(x, dict) and x for x in hooks)
                assert close(copied(z), output)
            else:
                assert len(list(model.named_parameters())) == len(slopes)
                assert len(model.state_dict()) == len(slopes)

    def derive() -> None:
        try:
            for _ in range(15):
                step.reset()
                step.derive(x, y)
        finally:
            done.set()

    at_once(derive, other)
    assert close(step(x, y), right)


@pytest.mark.parametrize("model", [Noisy, lambda: torch.nn.Sequential(nn.Linear(SIZE, SIZE), torch.nn.Dropout(0.5))])
def test_random_numbers_of_another_thread_are_neither_repeated_nor_lost(model: Callable[[], Module]) -> None:
    noisy = model().double()
    step = TrainStep(noisy, nn.MSELoss(), torch.optim.SGD(noisy.parameters(), lr=0.0))
    x, y = data(0)
    drawn: list[float] = []
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            drawn.extend(torch.rand(16).tolist())

    def derive() -> None:
        try:
            for _ in range(15):
                step.reset()
                step.derive(x, y)
        finally:
            done.set()

    torch.manual_seed(5)
    at_once(derive, draw)
    torch.manual_seed(5)
    expected: list[float] = []
    while len(expected) < len(drawn):
        expected.extend(torch.rand(16).tolist())
    assert drawn == expected


def test_python_s_and_numpy_s_random_numbers_of_another_thread() -> None:
    model = mlp()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = data(0)
    right = torch.nn.functional.mse_loss(model(x), y).detach()
    done = threading.Event()
    random.seed(1)
    np.random.seed(1)
    drawn: list[tuple[float, float]] = []

    def draw() -> None:
        while not done.is_set():
            drawn.append((random.random(), float(np.random.rand())))

    def derive() -> None:
        try:
            for _ in range(15):
                step.reset()
                assert close(step(x, y), right)
        finally:
            done.set()

    at_once(derive, draw)
    random.seed(1)
    np.random.seed(1)
    assert drawn == [(random.random(), float(np.random.rand())) for _ in drawn]


def test_deriving_draws_nothing() -> None:
    noisy = Noisy().double()
    step = TrainStep(noisy, nn.MSELoss(), torch.optim.SGD(noisy.parameters(), lr=0.0))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    step.derive(*data(0))
    assert torch.equal(torch.get_rng_state(), before)
