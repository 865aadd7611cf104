"""What changes between two steps, a derived step sees, or says that it cannot."""

from __future__ import annotations

import copy
import gc
import linecache
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from step_cases import CLASSES, FEATURES, Pair, data, mlp, stock_of
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from torch_manualbp import TrainStep, nn

Change = Callable[[int, Any, Optimizer], None]


def momentum(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def adam(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=0.01, amsgrad=True)


def rmsprop(parameters: Any) -> Optimizer:
    return RMSprop(parameters, lr=0.01)


def dampened(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.05, momentum=0.9, dampening=0.5)


def same(pair: Pair, change: Change, steps: int = 10, batch: Callable[[int], int] = lambda i: 9) -> None:
    """Train both with the same changes before each step."""
    for i in range(steps):
        change(i, pair.ours, pair.optimizer)
        change(i, pair.stock, pair.stock_optimizer)
        ours, expected = pair.advance(*data(i, batch=batch(i)))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12, msg=f"loss of step {i}")
        pair.check()


def nothing(i: int, model: Module, optimizer: Optimizer) -> None:
    """No change."""


class Scaled(Module):
    """fc(x) times a buffer, an attribute, and a parameter of no dimension."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.gain = torch.nn.Parameter(torch.tensor(2.0))
        self.factor: Any = 1.0
        self.register_buffer("scale", torch.linspace(0.5, 2, CLASSES, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) * self.scale * self.factor * self.gain
        return out


def with_dropout() -> Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), torch.nn.Dropout(0.5), nn.LeakyReLU(), nn.Linear(8, CLASSES))


def _set(i: int, group: dict[str, Any], at: int, **settings: Any) -> None:
    if i == at:
        group.update(settings)


def _sgd_settings(i: int, model: Module, optimizer: Optimizer) -> None:
    group = optimizer.param_groups[0]
    group["lr"] = 0.0 if i == 4 else 0.1 / (i + 1)
    _set(i, group, 2, momentum=0.9)
    _set(i, group, 5, nesterov=True, weight_decay=0.1)
    _set(i, group, 7, maximize=True)
    _set(i, group, 9, nesterov=False, dampening=0.3)
    _set(i, group, 11, momentum=0.0)
    _set(i, group, 13, momentum=0.5, dampening=0.0)


def _adam_settings(i: int, model: Module, optimizer: Optimizer) -> None:
    group = optimizer.param_groups[0]
    _set(i, group, 3, weight_decay=0.1, lr=0.02)
    _set(i, group, 6, betas=(0.5, 0.7), eps=1e-3)
    _set(i, group, 9, maximize=True)


@pytest.mark.parametrize(
    ("optimizer", "change"),
    [
        (lambda p: SGD(p, lr=0.1), _sgd_settings),
        (lambda p: torch.optim.Adam(p, lr=0.1), _adam_settings),
    ],
    ids=["SGD", "Adam"],
)
def test_hyperparameters(optimizer: Any, change: Change) -> None:
    same(Pair(mlp(), optimizer=optimizer), change, 15)


@pytest.mark.parametrize("optimizer", [momentum, dampened, adam, rmsprop])
def test_what_learns(optimizer: Any) -> None:
    def change(i: int, model: Any, optimizer: Optimizer) -> None:
        model.fc1.requires_grad_(i % 5 != 1)
        model.fc2.requires_grad_(i >= 3)

    same(Pair(mlp(), optimizer=optimizer), change)


@pytest.mark.parametrize("optimizer", [momentum, dampened, adam, rmsprop])
def test_state_that_is_lost_or_loaded(optimizer: Any) -> None:
    saved: dict[int, Any] = {}

    def change(i: int, model: Any, optimizer: Optimizer) -> None:
        if i == 2:
            saved[id(model)] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if i == 4:
            optimizer.state.pop(model.fc1.weight)
        if i == 6:
            optimizer.state.clear()
        if i == 8:
            model.load_state_dict(saved[id(model)][0])
            optimizer.load_state_dict(saved[id(model)][1])
        if i == 9:  # whose groups are other objects by now
            optimizer.param_groups[0]["lr"] = 0.003

    same(Pair(mlp(), optimizer=optimizer), change)


def test_tensors_of_the_model() -> None:
    def change(i: int, model: Any, optimizer: Optimizer) -> None:
        if i == 1:
            model.scale.mul_(1.5)
        if i == 2:
            model.scale = model.scale * 0.5
        if i == 3:
            model.register_buffer("scale", torch.ones(CLASSES, dtype=torch.float64))
        if i == 4:
            model.fc.weight.data = model.fc.weight.data * 2
        if i == 5:
            model.fc.weight.data.mul_(0.5)
        if i == 6:
            model.factor = torch.linspace(1, 2, CLASSES, dtype=torch.float64)
        if i == 7:
            model.factor.mul_(0.5)

    same(Pair(Scaled(), optimizer=momentum), change)


def test_modules_and_their_attributes() -> None:
    def change(i: int, model: Any, optimizer: Optimizer) -> None:
        model[1].p = 0.1 * i
        if i == 2:
            model[2].negative_slope = 0.5
        if i == 4:
            model[2] = nn.Tanh()
        if i == 6:
            model.append(nn.Tanh())
        if i == 7:
            model[0].forward = lambda x: F.linear(x, model[0].weight)
        model.train(i != 8)

    same(Pair(with_dropout(), optimizer=momentum), change)


def test_attributes_of_the_loss() -> None:
    loss = nn.CrossEntropyLoss()
    model = mlp().double()
    step = TrainStep(model, loss, SGD(model.parameters(), lr=0.1))
    for i in range(3):
        loss.label_smoothing = 0.1 * i
        x, y = data(i)
        expected = F.cross_entropy(stock_of(model)(x), y, label_smoothing=0.1 * i)
        torch.testing.assert_close(step(x, y), expected.detach(), rtol=1e-11, atol=1e-12)


def test_groups_get_parameters_and_exchange_them() -> None:
    def two(parameters: Any) -> Optimizer:
        first, *others = parameters
        groups = [{"params": [first], "lr": 0.1}, {"params": others[:-2], "momentum": 0.9}]
        return SGD(groups, lr=0.02)

    def change(i: int, model: Any, optimizer: Optimizer) -> None:
        one, other = (group["params"] for group in optimizer.param_groups[:2])
        if i < 3:
            model.fc3.requires_grad_(False)
        if i == 3:
            model.fc3.requires_grad_(True)
            optimizer.add_param_group({"params": [*model.fc3.parameters()], "nesterov": True, "momentum": 0.5})
        if i == 5:
            one[0], other[1] = other[1], one[0]
        if i == 7:
            one.append(other.pop())

    same(Pair(mlp(), optimizer=two), change)


@pytest.mark.parametrize("optimizer", [momentum, adam, rmsprop])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["-", "accumulate"])
def test_a_layer_that_only_some_batches_use(optimizer: Any, options: dict[str, Any]) -> None:
    class Sometimes(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.first(x)
            return out + self.second(x) if len(x) > 5 else out

    sizes = [4, 9, 9, 4, 4, 4, 9]
    same(Pair(Sometimes(), optimizer=optimizer, **options), nothing, 14, lambda i: sizes[i % 7])


def test_gradients_that_are_there_already_are_added_to() -> None:
    model = mlp().double()
    stock = stock_of(model)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    (x, y), (x2, y2) = data(0), data(1)
    F.cross_entropy(model(x), y).backward()
    step.backward(x2, y2, 0.5)
    (F.cross_entropy(stock(x), y) + 0.5 * F.cross_entropy(stock(x2), y2)).backward()
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("optimizer", [momentum, adam, rmsprop])
def test_stock_steps_between_derived_ones(optimizer: Any) -> None:
    pair = Pair(mlp(), optimizer=optimizer)

    def change(i: int, model: Module, optimizer: Optimizer) -> None:
        if i % 3 == 1:
            optimizer.zero_grad()
            x, y = data(100 + i)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    same(pair, change)


def test_layouts_and_sizes_of_the_batch() -> None:
    model = mlp().double()
    stock = stock_of(model)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    optimizer = SGD(stock.parameters(), lr=0.1)
    x, y = data(0)
    layouts = (x, x.t().contiguous().t(), torch.cat([x, x], 1)[:, ::2], x[:1].expand_as(x), x[:4], x[:1], x)
    for z in layouts:
        C = step(z, y[: len(z)])
        optimizer.zero_grad()
        expected = F.cross_entropy(stock(z), y[: len(z)])
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(C, expected.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close([*model.parameters()], [*stock.parameters()], rtol=1e-11, atol=1e-12)


def test_numbers_among_the_inputs() -> None:
    class Times(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor, k: Any) -> Tensor:
            out: Tensor = self.fc(x) * k
            return out

    model = Times().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.0))
    x, y = data(0)
    for k in (1, 2, 2.5, -0.0, torch.tensor(3.0), torch.tensor(4)):
        expected = F.cross_entropy(F.linear(x, model.fc.weight, model.fc.bias) * k, y)
        torch.testing.assert_close(step((x, k), y), expected.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("of", ["input", "target"])
def test_a_batch_in_the_memory_of_a_parameter(which: int, of: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    stock = stock_of(model)
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    step = TrainStep(model, nn.MSELoss(), SGD(model.parameters(), **settings))
    optimizer = SGD(stock.parameters(), **settings)
    for i in range(4):
        other = data(i, batch=6)[0]
        ours, theirs = (m.get_submodule(str(which)).get_parameter("weight").detach() for m in (model, stock))
        step(*((ours, other) if of == "input" else (other, ours)))
        optimizer.zero_grad()
        x, y = (theirs, other) if of == "input" else (other, theirs)
        F.mse_loss(stock(x), y).backward()
        optimizer.step()
    torch.testing.assert_close([*model.parameters()], [*stock.parameters()], rtol=1e-11, atol=1e-12)


def test_autoencoders_take_one_tensor_twice() -> None:
    model = mlp(sizes=(FEATURES, 4, FEATURES)).double()
    stock = stock_of(model)
    step = TrainStep(model, nn.MSELoss(), SGD(model.parameters(), lr=0.1))
    optimizer = SGD(stock.parameters(), lr=0.1)
    for i in range(4):
        x = data(i)[0]
        step(x, x)
        optimizer.zero_grad()
        F.mse_loss(stock(x), x).backward()
        optimizer.step()
    torch.testing.assert_close([*model.parameters()], [*stock.parameters()], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_models_of_a_dtype_that_is_not_the_default(dtype: torch.dtype) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = mlp().to(dtype)
        stock = stock_of(model)
        step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.05))
        optimizer = SGD(stock.parameters(), lr=0.05)
        eps = torch.finfo(dtype).eps
        for i in range(3):
            torch.set_default_dtype([torch.float64, torch.float32][i % 2])
            x, y = data(i, dtype)
            C = step(x, y)
            optimizer.zero_grad()
            expected = F.cross_entropy(stock(x), y)
            expected.backward()
            optimizer.step()
            torch.testing.assert_close(C, expected.detach(), rtol=8 * eps, atol=0)
        for p, q in zip(model.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=4 * eps)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("fused", [None, True], ids=["", "fused"])
@pytest.mark.parametrize("defaults", [(torch.float64,), (torch.float32, torch.float64)], ids=["double", "then double"])
def test_adams_steps_are_counted_in_torchs_dtype(defaults: tuple[torch.dtype, ...], fused: bool | None) -> None:
    model = mlp().double()
    stock = stock_of(model)
    ours, theirs = (Adam(m.parameters(), lr=0.1, fused=fused) for m in (model, stock))
    step = TrainStep(model, nn.CrossEntropyLoss(), ours)
    try:
        for default in defaults:
            torch.set_default_dtype(default)
            for i in range(3):
                x, y = data(i, torch.float64)
                step(x, y)
                theirs.zero_grad()
                F.cross_entropy(stock(x), y).backward()
                theirs.step()
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
        assert ours.state[p]["step"].dtype == theirs.state[q]["step"].dtype
        assert ours.state[p]["step"] == theirs.state[q]["step"]


def _replace_a_group(optimizer: Optimizer) -> None:
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "momentum": 0.9}


def _replace_all_groups(optimizer: Optimizer) -> None:
    optimizer.param_groups = [{**group, "weight_decay": 0.1} for group in optimizer.param_groups]


def _add_a_group(optimizer: Optimizer) -> None:
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [moved], "lr": 0.5, "weight_decay": 0.1})


def _replace_attributes(optimizer: Optimizer) -> None:
    optimizer.__dict__ = {**vars(optimizer), "param_groups": [{**optimizer.param_groups[0], "maximize": True}]}


@pytest.mark.parametrize("change", [_replace_a_group, _replace_all_groups, _add_a_group, _replace_attributes])
def test_groups_of_an_optimizer_may_be_others(change: Callable[[Optimizer], None]) -> None:
    model = mlp().double()
    stock = stock_of(model)
    ours, theirs = (SGD(m.parameters(), lr=0.1) for m in (model, stock))
    step = TrainStep(model, nn.CrossEntropyLoss(), ours)
    for i in range(6):
        if i == 3:
            change(ours)
            change(theirs)
        x, y = data(i, torch.float64)
        step(x, y)
        theirs.zero_grad()
        F.cross_entropy(stock(x), y).backward()
        theirs.step()
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Threads of OpenMP's, which a forked child lacks."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _steps(step: Any, stock: Any, theirs: Any, batches: range) -> float:
    """The largest difference of a parameter from stock's after these."""
    for i in batches:
        x = data(i, torch.float64)[0]
        step(x, x)
        theirs.zero_grad()
        F.mse_loss(stock(x), x).backward()
        theirs.step()
    pairs = zip(step.model.parameters(), stock.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.usefixtures("two_threads")
def test_a_forked_child_goes_on() -> None:
    size = data(0)[0].shape[1]
    model = nn.Sequential(nn.Linear(size, size), nn.Linear(size, size)).double()
    stock = stock_of(model)
    step = TrainStep(model, nn.MSELoss(), Adam(model.parameters(), lr=0.1))
    theirs = Adam(stock.parameters(), lr=0.1, foreach=False)
    assert _steps(step, stock, theirs, range(2)) < 1e-12
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    child = context.Process(target=lambda: told.put(_steps(step, stock, theirs, range(2, 5))))
    child.start()
    child.join(20)
    hangs = child.is_alive()
    child.kill()
    assert not hangs
    assert child.exitcode == 0
    assert told.get() < 1e-12


@pytest.mark.parametrize("optimizer", [momentum, adam, rmsprop])
def test_parameters_of_any_layout(optimizer: Any) -> None:
    class Strided(Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(FEATURES, CLASSES).t())
            self.b = torch.nn.Parameter(torch.randn(2 * CLASSES)[::2])
            self.none = torch.nn.Parameter(torch.zeros(0, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([F.linear(x, self.w, self.b), self.none])

    pair = Pair(Strided(), optimizer=optimizer)
    for a, b in zip(pair.ours.parameters(), pair.stock.parameters(), strict=True):
        assert a.stride() == b.stride()
    same(pair, nothing, 5)


def test_parameters_that_view_one_tensor() -> None:
    pair = Pair(mlp(), optimizer=adam)
    for model in (pair.ours, pair.stock):
        flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.nn.utils.vector_to_parameters(flat, model.parameters())
    same(pair, nothing, 5)


def test_the_loss_is_the_caller_s_own() -> None:
    class Constant(Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.p

    model = Constant()
    step = TrainStep(model, lambda output, target: output, SGD(model.parameters(), lr=0.5))
    assert [step(torch.zeros(1), None) for _ in range(3)] == [2, 1.5, 1]
    layers = mlp().double()
    for loss in (
        lambda o, y: F.cross_entropy(o, y).reshape(1),
        lambda o, y: F.cross_entropy(o, y).clone(),
        lambda o, y: F.cross_entropy(o, y)[None, None],
        lambda o, y: (o * o)[0, 0],
    ):
        step = TrainStep(layers, loss, SGD(layers.parameters(), lr=0.1))
        losses = [step(*data(0)) for _ in range(3)]
        assert len({C.item() for C in losses}) == 3


def test_the_mode_of_autograd_around_a_step_does_not_matter() -> None:
    pair = Pair(mlp(), optimizer=momentum)
    modes = (torch.inference_mode, torch.no_grad, torch.enable_grad)
    for i in range(6):
        x, y = data(i)
        ours, expected = pair.step, pair.stock_loss(pair.stock(x), y)
        pair.stock_optimizer.zero_grad()
        expected.backward()
        pair.stock_optimizer.step()
        with modes[i % 3]():
            C = ours(x.clone(), y)
        torch.testing.assert_close(C.item(), expected.item(), rtol=1e-11, atol=1e-12)
    pair.check()


def test_a_copied_and_a_pickled_step_go_on_by_themselves() -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), momentum(model.parameters()))
    step(*data(0))
    copies = [copy.deepcopy(step), pickle.loads(pickle.dumps(step))]
    before = copy.deepcopy([*model.parameters()])
    losses = [s(*data(1)) for s in copies]
    torch.testing.assert_close([*model.parameters()], before, rtol=0, atol=0)
    C = step(*data(1))
    for s, loss in zip(copies, losses, strict=True):
        torch.testing.assert_close(loss, C, rtol=0, atol=0)
        torch.testing.assert_close([*s.model.parameters()], [*model.parameters()], rtol=1e-14, atol=0)


def test_two_steps_of_one_model() -> None:
    model = mlp().double()
    stock = stock_of(model)
    optimizer, stock_optimizer = momentum(model.parameters()), momentum(stock.parameters())
    losses = [F.cross_entropy, lambda o, y: 2 * F.cross_entropy(o, y)]
    steps = [TrainStep(model, loss, optimizer) for loss in losses]
    for i in range(6):
        x, y = data(i)
        steps[i % 2](x, y)
        stock_optimizer.zero_grad()
        losses[i % 2](stock(x), y).backward()
        stock_optimizer.step()
    torch.testing.assert_close([*model.parameters()], [*stock.parameters()], rtol=1e-11, atol=1e-12)


def test_whoever_watches_the_optimizer_s_step_is_called() -> None:
    seen: list[str] = []

    def hooked(optimizer: Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: seen.append("hook"))

    def patched(optimizer: Any) -> None:
        own = optimizer.step

        def patch(*args: Any) -> Any:
            seen.append("patch")
            return own(*args)

        optimizer.step = patch

    for prepare, expected in ((hooked, "hook"), (patched, "patch")):
        seen.clear()
        model = mlp().double()
        optimizer = momentum(model.parameters())
        prepare(optimizer)
        TrainStep(model, nn.CrossEntropyLoss(), optimizer)(*data(0))
        assert seen == [expected]


def test_a_scheduler_does_not_keep_the_update_from_being_folded() -> None:
    model = mlp().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    step(*data(0))
    scheduler.step()  # which warns, if no step was made before
    assert "# ---- update" in step.source


def test_a_step_left_out_is_no_first_step() -> None:
    pair = Pair(mlp(), optimizer=dampened, skip_nonfinite=True)
    x, y = data(0)
    pair.step(x * torch.nan, y)
    assert not pair.optimizer.state
    same(pair, nothing, 3)


def test_random_numbers_are_torch_s_with_samples_as_columns_too() -> None:
    features, samples = 264, 128  # from 2²⁰ products on

    class Noisy(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(features, features), nn.Linear(features, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(self.fc(x), 0.3)
            F.dropout(h, 0.3)  # nobody reads it, and others are drawn after it
            h = h + torch.randn_like(h) * h.detach().view(-1).abs().mean()
            h = F.dropout(h.t(), 0.3).t() * torch.poisson(torch.full((features,), 2.0, dtype=h.dtype))
            out: Tensor = self.head(F.rrelu(h.contiguous(), training=True))
            return out

    pair = Pair(Noisy())
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(samples, features, generator=generator, dtype=torch.float64)
        ours, expected = pair.advance(x, torch.randint(CLASSES, (samples,), generator=generator))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)
    pair.check()


def test_a_dropout_of_what_no_memory_is_planned_for() -> None:
    class Turned(Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x).t().contiguous().t() + 0.0
            out: Tensor = self.head(F.dropout(F.hardtanh(h), 0.3))
            return out

    same(Pair(Turned()), nothing, 3)


def test_other_threads_train_while_a_step_is_derived() -> None:
    failed: list[str] = []

    def train(seed: int) -> None:
        try:
            model = mlp().double()
            stock = stock_of(model)
            step = TrainStep(model, nn.CrossEntropyLoss(), momentum(model.parameters()))
            optimizer = momentum(stock.parameters())
            for n in range(1, 15):
                x, y = data(seed + n, batch=n)
                C = step(x, y)
                optimizer.zero_grad()
                expected = nn.functional.cross_entropy(stock(x), y)  # a rule, under autograd
                expected.backward()
                optimizer.step()
                torch.testing.assert_close(C, expected.detach(), rtol=1e-11, atol=1e-12)
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=train, args=(seed,)) for seed in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_programs_that_are_forgotten_leave_nothing() -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), momentum(model.parameters()))
    gc.collect()
    before = sum(name.startswith("<derived step") for name in linecache.cache)
    for n in range(1, 6):
        step(*data(0, batch=n))
    buffers = {id(state["momentum_buffer"]) for state in step.optimizer.state.values()}
    assert len(buffers) == len(step.optimizer.state)  # one of each parameter for all programs
    step.reset()
    gc.collect()
    assert sum(name.startswith("<derived step") for name in linecache.cache) == before


class _OfTwo(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.fc(y)


def _of_two(output: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return ((output - target[0]) * target[1]).square().mean()


def test_tuples_of_tensors_are_served_by_the_last_program() -> None:
    """As tensors are, until one is of another shape, or two are one tensor that were two."""
    torch.manual_seed(0)
    model, stock = _OfTwo(), _OfTwo()
    stock.load_state_dict(model.state_dict())
    step = TrainStep(model, _of_two, torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(stock.parameters(), lr=0.1)
    x = torch.randn(4, 3)
    calls: list[tuple[Any, Any]] = [((torch.randn(4, 3), torch.randn(4, 3)), (torch.randn(4, 2), torch.randn(4, 2)))]
    calls += [((x, x), calls[0][1]), calls[0], ((x[:2], x[2:]), (torch.randn(2, 2), torch.randn(2, 2)))]
    for inputs, target in calls:
        served = []
        for _ in range(4):
            last = step._programs[-1].last if step._programs else None
            served.append(last is not None and last.serves(step, inputs, target, [*inputs, *target]))
            optimizer.zero_grad()
            C = _of_two(stock(*inputs), target)
            C.backward()
            optimizer.step()
            torch.testing.assert_close(step(inputs, target), C.detach())
        is_one = inputs[0] is inputs[1]  # then each tensor is asked, each time
        assert (served[0], served[-1]) == (False, not is_one)
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q)


size_of_script = 0
"""A global of the name that an attribute of the model has, as a script's loops leave behind."""


class _OfAttributes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.size_of_script = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.size_of_script(x)
        return out


def test_a_global_of_an_attributes_name_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _OfAttributes()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    for i in range(3):
        monkeypatch.setitem(globals(), "size_of_script", i + 1)
        step(torch.randn(4, 3), torch.randn(4, 2))
    assert len(step._programs) == 1
