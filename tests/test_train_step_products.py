"""Large products of a derived step are oneDNN's where that is faster, and the step is the same to rounding."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from step_cases import CLASSES, FEATURES, MODELS, data, mlp
from test_train_step_random import Random
from torch import Tensor
from torch.nn import Module
from torch.optim import SGD, Adam, AdamW, RMSprop

from torch_manualbp import TrainStep, kernels, nn
from torch_manualbp.derive import update
from torch_manualbp.kernels import products

pytestmark = pytest.mark.skipif(products.onednn_linear is None, reason="this torch was built without oneDNN")

Make = Callable[[Any], torch.optim.Optimizer]

# Under a small ε Adam makes whole steps of what is rounding and nothing else, such as the gradient of the bias of keys.
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: SGD(p, lr=0.05),
    "SGD, weight decay": lambda p: SGD(p, lr=0.05, weight_decay=0.1, maximize=True),
    "SGD, momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "SGD, Nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: Adam(p, lr=1e-3, eps=1e-3, weight_decay=0.1),
    "AdamW": lambda p: AdamW(p, lr=1e-3, eps=1e-3, maximize=True),
    "RMSprop": lambda p: RMSprop(p, lr=1e-3),
}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """oneDNN for the smallest products, and gradients of W a few rows at a time."""
    monkeypatch.setattr(products, "LARGE_PRODUCT", 1)
    monkeypatch.setattr(products, "WIDE", 1)
    monkeypatch.setattr(products, "SAMPLES", 1)
    monkeypatch.setattr(update, "BLOCK", 20)
    monkeypatch.setattr(update, "ROWS", 1)
    kernels.use_onednn()
    yield
    kernels.use_onednn(None)


def trained(model: Module, make: Make, uses_onednn: bool, **options: Any) -> tuple[TrainStep, list[Tensor]]:
    """A copy of the model after some steps, and its losses."""
    kernels.use_onednn(uses_onednn)
    model = copy.deepcopy(model).float()
    step = TrainStep(model, nn.CrossEntropyLoss(), make([p for p in model.parameters() if p.requires_grad]), **options)
    losses = []
    for i in range(4):
        torch.manual_seed(i)
        losses.append(step(*data(i, torch.float32)))
    return step, losses


def check(model: Module, make: Make, **options: Any) -> TrainStep:
    """Assert that it trains the same with either kind of product."""
    (ours, losses), (others, expected) = (trained(model, make, uses, **options) for uses in (True, False))
    assert "onednn_linear" not in others.program
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    pairs = zip(ours.model.state_dict().items(), others.model.state_dict().values(), strict=True)
    for (name, p), q in pairs:
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=f"{name} is {p}, and with BLAS {q}")
    return ours


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"keep_deltas": True}], ids=str)
def test_each_optimizer_trains_the_same(make: Make, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    step = check(mlp(nn.GELU), make, **options)
    assert 'onednn_linear(x, W_fc1, b_fc1, "none", [], "")' in step.program
    assert ("for rows1 in blocks1:" in step.program) == step.folds


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("optimizer", ["SGD, Nesterov", "AdamW"])
def test_each_model_trains_the_same(make: Callable[[], Module], optimizer: str) -> None:
    torch.manual_seed(0)
    check(make(), OPTIMIZERS[optimizer])


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("first", one_of_each(range(4), lambda first: ["models at random"]))
def test_models_at_random_train_the_same(first: int) -> None:
    for seed in range(first, 60, 4):
        torch.manual_seed(seed)
        model = Random(seed, 3 + seed % 12)
        try:
            torch.nn.functional.cross_entropy(model(data(0, torch.float32)[0]), data(0)[1]).backward()
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                continue
            raise
        model.zero_grad()
        check(model, [*OPTIMIZERS.values()][seed % len(OPTIMIZERS)])


@pytest.mark.parametrize("n_out", [300, 1100])
def test_a_large_layer_is_updated_some_rows_at_a_time(n_out: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1030, n_out), nn.Tanh(), nn.Linear(n_out, CLASSES))
    stock = copy.deepcopy(model)
    optimizer, stock_optimizer = (SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, stock))
    kernels.use_onednn()
    try:
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        for _ in range(3):
            x, y = torch.randn(64, 1030), torch.randint(CLASSES, (64,))
            stock_optimizer.zero_grad()
            expected = torch.nn.functional.cross_entropy(stock(x), y)
            expected.backward()
            stock_optimizer.step()
            torch.testing.assert_close(step(x, y), expected.detach())
    finally:
        kernels.use_onednn(None)
    torch.testing.assert_close(model.state_dict(), stock.state_dict(), rtol=1e-4, atol=1e-6)
    rows = max(update.BLOCK // 1030, 64)
    assert f"for i in range(0, {n_out}, {rows})]" in step.program


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("make", [OPTIMIZERS["SGD, Nesterov"], OPTIMIZERS["AdamW"]], ids=["SGD", "AdamW"])
def test_an_exception_at_any_line_of_any_turn_leaves_no_parameter_half_updated(make: Make) -> None:
    torch.manual_seed(0)
    model = mlp()
    step = TrainStep(model, nn.CrossEntropyLoss(), make(model.parameters()))
    x, y = data(0, torch.float32)
    step(x, y)
    state = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    step(x, y)
    done = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    first, last = (step.program[: step.program.index(text)].count("\n") + 1 for text in ("---- update", "return C"))
    events = 0
    while True:
        events += 1
        model.load_state_dict(state[0])
        step.optimizer.load_state_dict(copy.deepcopy(state[1]))
        line = _interrupted(step, events, x, y)
        if line is None:
            break
        after = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
        began = line > first
        torch.testing.assert_close(after, done if began else state, rtol=0, atol=0, msg=f"line {line}, event {events}")
    assert events > last - first > 10


def _interrupted(step: TrainStep, nth: int, x: Tensor, y: Tensor) -> int | None:
    """Do a step, with an exception before the nth line that it comes to. Returns the line, or None at the end."""
    count, at = 0, None

    def lines(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count, at
        if event == "line":
            count += 1
            if count == nth:
                at = frame.f_lineno
                raise KeyboardInterrupt
        return lines

    def tracer(frame: FrameType, event: str, arg: Any) -> Any:
        is_step = frame.f_code.co_name == "step" and frame.f_code.co_filename.startswith("<derived step")
        return lines if is_step else None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        step(x, y)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return at


@pytest.mark.usefixtures("everywhere")
def test_only_plain_float32_matrices_are_multiplied_by_onednn() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(nn.Linear(FEATURES, CLASSES)).to(dtype)
        step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
        step(*data(0, dtype))
        assert "onednn_linear" not in step.program


class Laid(Module):
    """A linear layer of these tensors, in whatever order their numbers lie."""

    def __init__(self, W: Tensor, b: Tensor) -> None:
        super().__init__()
        self.W, self.b = torch.nn.Parameter(W), torch.nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.W, self.b)


LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "transposed": lambda n, m: torch.randn(m, n).t(),
    "part of rows": lambda n, m: torch.randn(n, 2 * m)[:, :m],
    "every other": lambda n, m: torch.randn(n, 2 * m)[:, ::2],
    "one row": lambda n, m: torch.randn(1, m).expand(n, m),
    "one column": lambda n, m: torch.randn(n, 1).expand(n, m),
    "overlapping": lambda n, m: torch.randn(n + m).as_strided((n, m), (1, 1)),
}


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["x", "W", "b"])
def test_numbers_may_lie_in_any_order(layout: str, of: str) -> None:
    torch.manual_seed(0)
    make = {which: LAYOUTS[layout] if which == of else torch.randn for which in "xWb"}
    if of == "W" and layout in ("one row", "one column", "overlapping"):
        pytest.skip("no parameter is updated in place whose entries share memory")
    x, W = make["x"](9, FEATURES), make["W"](CLASSES, FEATURES)
    b = make["b"](2, CLASSES)[0] if layout != "transposed" else make["b"](CLASSES, 2)[:, 0]
    if of == "b" and layout == "one column":
        pytest.skip("no parameter is updated in place whose entries share memory")
    model = Laid(W, b)
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, W, b), data(0)[1])
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(step(x, data(0)[1]), expected)


def test_the_processor_decides_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products.uses_onednn() == products._is_left_out_by_mkl()
    for vendor, capability, uses in (
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
        ("vendor_id\t: AuthenticAMD", "AVX2", False),
    ):
        monkeypatch.setattr(products, "_processor", lambda vendor=vendor: vendor)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        assert products._is_left_out_by_mkl.__wrapped__() == uses
    try:
        kernels.use_onednn(True)
        assert products.uses_onednn()
        monkeypatch.setattr(products, "uses_mkldnn", lambda: False)
        assert not products.uses_onednn()
        monkeypatch.undo()
        kernels.use_onednn(False)
        assert not products.uses_onednn()
        monkeypatch.setattr(products, "onednn_linear", None)
        with pytest.raises(RuntimeError, match="built without oneDNN"):
            kernels.use_onednn()
    finally:
        kernels.use_onednn(None)
