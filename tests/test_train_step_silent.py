"""Uses in which a derived step once trained with other numbers than torch, and said nothing: now equal, or refused."""

from __future__ import annotations

import builtins
import collections
import contextvars
import copy
import enum
import functools
import io
import itertools
import pickle
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import torch_manualbp
from torch_manualbp import TrainStep
from torch_manualbp.derive import NotDerivableError
from torch_manualbp.derive import check as checking

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def batch(i: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + i)
    return torch.randn(6, 4, dtype=dtype, generator=generator), torch.randn(6, 3, dtype=dtype, generator=generator)


def cast_any(model: Any) -> Any:
    """A model whose attributes a type checker knows nothing of."""
    return model


class Twins:
    """A model in two copies, one trained by torch and one by a derived step, from the same random numbers."""

    def __init__(self, model: nn.Module, loss: Any = None, optimizer: str = "SGD", **options: Any) -> None:
        self.ours, self.theirs = model, copy.deepcopy(model)
        self.loss = nn.MSELoss() if loss is None else loss
        self.optimizers = [OPTIMIZERS[optimizer](m.parameters()) for m in (self.ours, self.theirs)]
        self.step = TrainStep(self.ours, self.loss, self.optimizers[0], **options)

    def advance(self, i: int, dtype: torch.dtype = torch.float64) -> None:
        """A step of both, which must come to the same."""
        x, y = batch(i, dtype)
        torch.manual_seed(i)
        self.optimizers[1].zero_grad()
        expected = self.loss(self.theirs(x), y)
        expected.backward()
        self.optimizers[1].step()
        torch.manual_seed(i)
        found = self.step(x, y)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-11, atol=1e-13)
        self.are_equal()

    def are_equal(self) -> None:
        """Parameters and buffers are the same."""
        torch.testing.assert_close(self.ours.state_dict(), self.theirs.state_dict(), rtol=1e-11, atol=1e-13)


class Gate(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.w = nn.Parameter(torch.rand(5) + 0.5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x), self.w))


class Held(nn.Module):
    """A layer whose output is multiplied by a number that is read from what it holds."""

    def __init__(self, held: Any, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.l, self.held, self.read = nn.Linear(4, 3), held, read

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * self.read(self.held)


# ---------------------------------------------------------------------------------------------- in place


def assigned(h: Tensor, w: Tensor) -> Tensor:
    h *= w
    return h


IN_PLACE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "*=": assigned,
    "pow_": lambda h, w: h.pow_(2),
    "mul_ of a gelu": lambda h, w: F.gelu(h).mul_(w),
    "add_ after a sum": lambda h, w: (h + 1) * h.add_(1),
    "silu": lambda h, w: F.silu(h, inplace=True) * w,
    "elu": lambda h, w: F.elu(h, inplace=True) * w,
    "a chain": lambda h, w: h.mul_(w).add_(0.1).neg_().sub_(w).div_(2),
    "a residual": lambda h, w: h.clone().mul_(w).add_(h),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", IN_PLACE)
def test_what_is_changed_in_place_stays_what_it_was_for_the_gradient(case: str, optimizer: str) -> None:
    twins = Twins(Gate(IN_PLACE[case]).double(), optimizer=optimizer)
    for i in range(3):
        twins.advance(i)


@pytest.mark.parametrize(
    "name",
    [
        "SiLU",
        "Hardswish",
        "Mish",
        "ELU",
        "CELU",
        "SELU",
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "Hardtanh",
        "Threshold",
        "RReLU",
    ],
)
def test_activations_in_place(name: str) -> None:
    options = {"threshold": 0.1, "value": 0.2} if name == "Threshold" else {}
    twins = Twins(nn.Sequential(nn.Linear(4, 5), getattr(nn, name)(inplace=True, **options), nn.Linear(5, 3)).double())
    for i in range(3):
        twins.advance(i)


AUTOGRAD_RAISES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a square": lambda h, w: (lambda s: (h.add_(1), s)[1])(h * h),
    "a result that is kept": lambda h, w: (lambda e: (e * w, e.mul_(2))[0])(h.sigmoid()),
    "a factor that is kept": lambda h, w: (h * w).tanh() + h.mul_(w),
    "a kink that is kept": lambda h, w: F.relu_(h.mul_(w)).neg_(),
    "a constant that is kept": lambda h, w: (lambda m: (h * m, m.add_(1))[0])(torch.ones(5, dtype=h.dtype)),
}


@pytest.mark.parametrize("case", AUTOGRAD_RAISES)
def test_what_autograd_refuses_is_refused(case: str) -> None:
    twins = Twins(Gate(AUTOGRAD_RAISES[case]).double())
    x, y = batch(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        twins.loss(twins.theirs(x), y).backward()
    before = copy.deepcopy(twins.ours.state_dict())
    with pytest.raises(NotDerivableError, match="modified by an inplace operation"):
        twins.step(x, y)
    torch.testing.assert_close(twins.ours.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["mul_", "add_", "copy_"])
@pytest.mark.parametrize("way", ["data", "detach"])
def test_changes_through_another_view_are_refused(way: str, change: str) -> None:
    def between(h: Tensor, w: Tensor) -> Tensor:
        view = h.data if way == "data" else h.detach()
        getattr(view, change)(torch.full_like(view, 0.5))
        return h * w

    with pytest.raises(NotDerivableError, match="through another view"):
        Twins(Gate(between).double()).step(*batch(0))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_complex_parameters(optimizer: str) -> None:
    complexes = torch.complex128
    model = nn.Sequential(nn.Linear(4, 5, dtype=complexes), nn.Linear(5, 3, dtype=complexes))
    twins = Twins(model, nn.L1Loss(), optimizer)
    for i in range(3):
        twins.advance(i, complexes)


# ---------------------------------------------------------------------------------- what is read from Python


def counted(state: Any) -> float:
    state.n += 1
    return 1 / float(state.n)


def filled(a: Any) -> float:
    a[0] += 1
    return 1 / float(a[0])


CHANGES_ITSELF: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "NumPy's generator": (lambda: np.random.default_rng(0), lambda g: float(g.random())),
    "NumPy's old generator": (lambda: np.random.RandomState(0), lambda g: float(g.rand())),
    "Python's generator": (lambda: random.Random(0), lambda g: g.random()),
    "a namespace": (lambda: SimpleNamespace(n=0), counted),
    "an array": (lambda: np.zeros(1), filled),
    "a list": (lambda: [0], filled),
    "a dict": (lambda: {0: 0}, filled),
    "a bytearray": (lambda: bytearray(1), filled),
    "a deque": (lambda: deque([1, 2, 3]), lambda d: (d.rotate(), d[0])[1]),
    "a counter": (lambda: itertools.count(1), lambda c: 1 / next(c)),
    "a nested list": (lambda: SimpleNamespace(a={"b": [0]}), lambda s: filled(s.a["b"])),
}


@pytest.mark.parametrize("case", CHANGES_ITSELF)
def test_what_forward_changes_is_refused_by_name(case: str) -> None:
    make, read = CHANGES_ITSELF[case]
    model = Held(make(), read).double()
    with pytest.raises(NotDerivableError, match=r"forward changes self\.held"):
        TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))


def test_an_iterator_that_cannot_be_copied_is_seen_by_its_numbers() -> None:
    model = Held((1 / n for n in itertools.count(1)), next).double()
    with pytest.raises(NotDerivableError, match=r"forward changes self\.held|not autograd's"):
        TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))


@dataclass
class Config:
    scale: float = 1.0


class Slots:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1.0


class Answers:
    """An object whose attributes have other names than its items."""

    def __init__(self) -> None:
        self.items = {"scale": 1.0}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["items"][name]


GAIN = 1.0
CONTEXT = contextvars.ContextVar("CONTEXT", default=1.0)


def by_global(value: float) -> None:
    globals()["GAIN"] = value


def with_cell() -> tuple[Callable[[Any], float], Callable[[float], None]]:
    gain = 1.0

    def read(held: Any) -> float:
        return gain

    def change(value: float) -> None:
        nonlocal gain
        gain = value

    return read, change


CELL, CHANGE_CELL = with_cell()


class Base:
    scale = 1.0


class One:
    scale = 1.0


class Two:
    scale = 2.0


TABLE = {"scale": 1.0}


@functools.cache
def cached() -> float:
    return TABLE["scale"]


def by_table(value: float) -> None:
    TABLE["scale"] = value
    cached.cache_clear()


cached()
EVERYBODYS = {
    *("a class", "a class behind an instance", "a global", "a closure", "a context variable"),
    *("a function that is cached", "a global by its text", "a built-in name"),
}

CHANGED_FROM_OUTSIDE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any, float], Any]]] = {
    "a namespace": (lambda: SimpleNamespace(scale=1.0), lambda h: h.scale, lambda h, v: setattr(h, "scale", v)),
    "a data class": (Config, lambda h: h.scale, lambda h, v: setattr(h, "scale", v)),
    "an object with slots": (Slots, lambda h: h.scale, lambda h, v: setattr(h, "scale", v)),
    "an object that answers itself": (Answers, lambda h: h.scale, lambda h, v: h.items.update(scale=v)),
    "a dict": (lambda: {"scale": 1.0}, lambda h: h["scale"], lambda h, v: h.update(scale=v)),
    "a list": (lambda: [1.0], lambda h: h[0], lambda h, v: h.__setitem__(0, v)),
    "a tuple of lists": (lambda: ([1.0],), lambda h: h[0][0], lambda h, v: h[0].__setitem__(0, v)),
    "an array": (lambda: np.ones(2), lambda h: float(h[1]), lambda h, v: h.fill(v)),
    "an array that becomes a tensor": (
        lambda: np.ones(3),
        lambda h: torch.from_numpy(h) * 2,
        lambda h, v: h.fill(v),
    ),
    "an attribute by a computed name": (
        lambda: SimpleNamespace(scale=1.0),
        lambda h: getattr(h, "sca" + "le"),
        lambda h, v: setattr(h, "scale", v),
    ),
    "a class": (Base, lambda h: type(h).scale, lambda h, v: setattr(Base, "scale", v)),
    "a class behind an instance": (Base, lambda h: h.scale, lambda h, v: setattr(Base, "scale", v)),
    "a global": (lambda: None, lambda h: GAIN, lambda h, v: by_global(v)),
    "a closure": (lambda: None, CELL, lambda h, v: CHANGE_CELL(v)),
    "a context variable": (lambda: None, lambda h: CONTEXT.get(), lambda h, v: CONTEXT.set(v)),
    "a partial function": (
        lambda: SimpleNamespace(f=partial(float, 1.0)),
        lambda h: h.f(),
        lambda h, v: setattr(h, "f", partial(float, v)),
    ),
    "a tensor in place": (
        lambda: torch.ones((), dtype=torch.float64),
        lambda h: 1 - 0.5 * h,
        lambda h, v: h.fill_(v),
    ),
    "a tensor in a list": (
        lambda: [torch.ones(3, dtype=torch.float64)],
        lambda h: h[0].sin(),
        lambda h, v: h[0].mul_(v),
    ),
    "another tensor": (
        lambda: SimpleNamespace(t=torch.ones(3, dtype=torch.float64)),
        lambda h: h.t * 2,
        lambda h, v: setattr(h, "t", torch.full((3,), v, dtype=torch.float64)),
    ),
    "an array under a tensor": (
        lambda: torch.from_numpy(np.ones(3)),
        lambda h: h * 2,
        lambda h, v: h.numpy().fill(v),
    ),
    "a chain of maps": (
        lambda: collections.ChainMap({"b": 2.0}, {"scale": 1.0}),
        lambda h: h["scale"],
        lambda h, v: h.maps[1].update(scale=v),
    ),
    "a view of a dict": (
        lambda: SimpleNamespace(d={"scale": 1.0}),
        lambda h: next(iter(h.d.values())),
        lambda h, v: h.d.update(scale=v),
    ),
    "the order of a dict": (
        lambda: collections.OrderedDict(a=1.0, b=2.0),
        lambda h: next(iter(h.values())),
        lambda h, v: h.move_to_end("a", last=v == 2.0),
    ),
    "the default of a dict": (
        lambda: collections.defaultdict(One),
        lambda h: h.default_factory().scale,
        lambda h, v: setattr(h, "default_factory", Two if v == 2.0 else One),
    ),
    "a stream": (
        lambda: io.StringIO("1.0"),
        lambda h: float(h.getvalue()),
        lambda h, v: (h.seek(0), h.write(str(v)), h.truncate()),
    ),
    "a record": (
        lambda: np.array([(1.0, 2)], dtype=[("scale", float), ("n", int)])[0],
        lambda h: float(h["scale"]),
        lambda h, v: h.__setitem__("scale", v),
    ),
    "a function that is cached": (
        lambda: None,
        lambda h: cached(),
        lambda h, v: by_table(v),
    ),
    "a global by its text": (
        lambda: None,
        lambda h: globals().get("GAIN_BY_TEXT", 1.0),
        lambda h, v: globals().update(GAIN_BY_TEXT=v),
    ),
    "a built-in name": (
        lambda: setattr(builtins, "GAIN_BUILT_IN", 1.0),
        lambda h: GAIN_BUILT_IN,  # type: ignore[name-defined] # noqa: F821
        lambda h, v: setattr(builtins, "GAIN_BUILT_IN", v),
    ),
    "an attribute far down by a computed name": (
        lambda: SimpleNamespace(a=SimpleNamespace(b=SimpleNamespace(c=SimpleNamespace(f=1.0)))),
        lambda h: getattr(h.a.b.c, chr(102)),
        lambda h, v: setattr(h.a.b.c, "f", v),
    ),
    "1, 1.0 and True": (lambda: SimpleNamespace(n=2), lambda h: h.n / 2, lambda h, v: setattr(h, "n", float(h.n) * v)),
}


@pytest.mark.parametrize("case", CHANGED_FROM_OUTSIDE)
def test_what_is_changed_from_outside_counts(case: str) -> None:
    make, read, change = CHANGED_FROM_OUTSIDE[case]
    twins = Twins(Held(make(), read).double())
    try:
        for i, value in enumerate((1.0, 1.0, 2.0, 2.0, 0.5)):
            if i >= 2:
                change(twins.ours.held, value)
                if case not in EVERYBODYS:
                    change(twins.theirs.held, value)
            twins.advance(i)
    finally:
        Base.scale = TABLE["scale"] = 1.0
        cached.cache_clear()
        by_global(1.0)
        CHANGE_CELL(1.0)
        CONTEXT.set(1.0)


@pytest.mark.parametrize(("before", "after"), [(2, 2.0), (0.0, -0.0), (1, True), (1.0, 1)])
def test_equal_numbers_of_other_kinds_are_others(before: Any, after: Any) -> None:
    seen: list[Any] = []

    def read(held: Any) -> Any:
        return {int: 2.0, float: 3.0, bool: 4.0}[type(held.n)] * (1 if str(held.n)[0] != "-" else -1)

    twins = Twins(Held(SimpleNamespace(n=before), read).double())
    twins.advance(0)
    for model in map(cast_any, (twins.ours, twins.theirs)):
        model.held.n = after
    twins.advance(1)
    assert not seen


class Equal:
    """An object that says it is equal to every other."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def test_objects_that_say_they_are_equal_are_others() -> None:
    twins = Twins(Held(Equal(1.0), lambda h: h.scale).double())
    twins.advance(0)
    for model in map(cast_any, (twins.ours, twins.theirs)):
        model.held = Equal(2.0)
    twins.advance(1)


def test_attributes_that_forward_does_not_read_derive_nothing() -> None:
    twins = Twins(Held(SimpleNamespace(scale=2.0), lambda h: h.scale).double())
    twins.advance(0)
    twins.advance(1)
    derived = twins.step._programs[-1].derived
    ours = cast_any(twins.ours)
    ours.epoch = 7
    ours.held.note = "of nobody"
    ours.held.scale = 1.0 + 1.0  # another object of the same number
    twins.advance(2)
    assert twins.step._programs[-1].derived is derived


class Members(enum.Enum):
    A = 1

    def __init__(self, _: int) -> None:
        self.scale = 1.0


def test_members_of_an_enumeration_with_state_count() -> None:
    twins = Twins(Held(None, lambda h: Members.A.scale).double())
    for i, value in enumerate((1.0, 1.0, 2.0)):
        Members.A.scale = value
        twins.advance(i)
    Members.A.scale = 1.0


def test_functions_of_torch_that_somebody_replaces_count(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = F.relu
    twins = Twins(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Gate(lambda h, w: F.relu(h) * w)).double())
    cast_any(twins.ours)[2].a = nn.Linear(5, 5).double()
    twins = Twins(twins.ours)
    twins.advance(0)
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: relu(x, inplace) * 2)
    with pytest.raises(NotDerivableError, match="has no rule"):
        twins.step(*batch(1))
    monkeypatch.setattr(F, "relu", relu)
    call = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *args: 2 * call(self, *args))
    twins.advance(2)


def test_classes_that_change_count() -> None:
    class First(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Second(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 3

    twins = Twins(nn.Sequential(First(4, 3)).double())
    twins.advance(0)
    for model in (twins.ours, twins.theirs):
        model[0].__class__ = Second  # type: ignore[index]
    twins.advance(1)
    Second.forward = lambda self, x: nn.Linear.forward(self, x) * 5  # type: ignore[method-assign]
    twins.advance(2)
    code = (lambda self, x: nn.Linear.forward(self, x) * 7).__code__
    Second.forward.__code__ = code  # as IPython's autoreload does it
    twins.advance(3)


def in_a_file(path: Path) -> float:
    return float(path.read_text(encoding="utf-8"))


def test_what_nobody_can_see_is_seen_by_its_numbers_later(tmp_path: Path) -> None:
    (tmp_path / "gain").write_text("1.0")
    model = Held(tmp_path / "gain", in_a_file).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))
    step(*batch(0))
    (tmp_path / "gain").write_text("2.0")
    with pytest.raises(NotDerivableError, match="at run 2: forward or loss read what changes and cannot be seen"):
        step(*batch(1))


def test_every_so_many_runs_the_program_is_derived_anew(tmp_path: Path) -> None:
    (tmp_path / "gain").write_text("1.0")
    model = Held(tmp_path / "gain", in_a_file).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()), check="every", check_every=3)
    for i in range(5):
        step(*batch(i))
    (tmp_path / "gain").write_text("2.0")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotDerivableError, match="derived anew at run 6, the program has"):
        step(*batch(5))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# --------------------------------------------------------------------------------------- held against autograd


class Wrong(torch_manualbp.Rule):
    """A product whose program is another than its autograd."""

    factor = 1.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        # autograd records the upstream gradient's history, the tape does not
        return da * (2.0 if type(ctx).__name__ != "Context" else 2.0 + 1e-9)


def test_a_program_that_differs_from_autograd_moves_no_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Gate(lambda h, w: Wrong.apply(h) * w)).double()
    model[2].a = nn.Linear(5, 5).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["momentum"](model.parameters()))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotDerivableError, match=r"∂C/∂0\.weight: off by .*the first .* is 2\.a's"):
        step(*batch(0))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not step.optimizer.state
    unchecked = TrainStep(model, nn.MSELoss(), OPTIMIZERS["momentum"](model.parameters()), check=False)
    unchecked(*batch(0))


def test_rounding_is_no_difference() -> None:
    """Gradients of which the sums leave a millionth, and numbers next to a kink."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 2000), nn.ReLU(), nn.Linear(2000, 3))
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.2))
    x, y = torch.randn(200, 64), torch.randint(0, 3, (200,))
    for _ in range(10):
        for _ in range(20):
            step(x, y)
        step.reset()


def test_tolerances_follow_the_lowest_precision() -> None:
    assert checking.rounding([torch.float64]) == 64 * 2**-52
    assert checking.rounding([torch.float64, torch.int64, torch.float32]) == 64 * 2**-23
    assert checking.rounding([torch.float32, torch.bfloat16]) == 8 * 2**-7


@pytest.mark.parametrize("check", ["always", 2, None])
def test_other_values_of_check_are_refused(check: Any) -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="check is"):
        TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()), check=check)


LEARNS_NOTHING: dict[str, Any] = {
    "detach": lambda s, y: F.mse_loss(s.detach(), y),
    "no_grad": lambda s, y: torch.no_grad()(F.mse_loss)(s, y),
    "the target alone": lambda s, y: y.square().mean(),
}


@pytest.mark.parametrize("case", LEARNS_NOTHING)
def test_a_loss_that_no_parameter_has_a_part_in_is_refused(case: str) -> None:
    model = nn.Linear(4, 3).double()
    with pytest.raises(NotDerivableError, match="the loss depends on no parameter that requires grad"):
        TrainStep(model, LEARNS_NOTHING[case], OPTIMIZERS["SGD"](model.parameters()))(*batch(0))


# --------------------------------------------------------------------------------- gradients and accumulation


def test_a_window_that_is_cut_short_begins_anew() -> None:
    twins = Twins(nn.Linear(4, 3).double(), accumulate=4)
    for window in (range(2), range(2, 6)):
        twins.optimizers[1].zero_grad()
        for i in window:
            x, y = batch(i)
            (twins.loss(twins.theirs(x), y) / 4).backward()
            twins.step(x, y)
        twins.optimizers[1].step()
        if len(window) < 4:
            twins.step.update()
        twins.are_equal()


def test_a_loss_that_is_not_finite_leaves_the_rest_of_its_window() -> None:
    twins = Twins(nn.Linear(4, 3).double(), accumulate=3, skip_nonfinite=True)
    twins.optimizers[1].zero_grad()
    for i in range(4):
        x, y = batch(i)
        if i == 1:
            twins.step(x * torch.nan, y)
            continue
        (twins.loss(twins.theirs(x), y) / 3).backward()
        twins.step(x, y)
    twins.optimizers[1].step()
    assert twins.step.skipped == 1
    twins.are_equal()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_copy_within_a_window_has_its_gradients(optimizer: str, way: Callable[[TrainStep], TrainStep]) -> None:
    model = nn.Linear(4, 3)
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS[optimizer](model.parameters()), accumulate=2)
    step(*batch(0, torch.float32))
    twin = way(step)
    for i in range(1, 4):
        step(*batch(i, torch.float32))
        twin(*batch(i, torch.float32))
    torch.testing.assert_close(twin.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    ours, theirs = twin.optimizer.state_dict(), step.optimizer.state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_gradients_are_new_tensors_at_each_window() -> None:
    model = nn.Linear(4, 3).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["RMSprop"](model.parameters()))
    found = []
    for i in range(3):
        expected = torch.autograd.grad(nn.MSELoss()(model(batch(i)[0]), batch(i)[1]), model.weight)[0]
        step(*batch(i))
        assert model.weight.grad is not None
        found.append((model.weight.grad, expected))
    for gradient, expected in found:
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_a_gradient_and_a_delta_may_be_the_next_input() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    for optimizer, options in (("SGD", {"keep_deltas": True}), ("RMSprop", {"keep_deltas": True})):
        twins = Twins(copy.deepcopy(model), optimizer=optimizer, **options)
        x, y = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
        for _ in range(4):
            given, target = x.clone(), y.clone()
            twins.optimizers[1].zero_grad()
            twins.loss(twins.theirs(given), target).backward()
            twins.optimizers[1].step()
            twins.step(x, y)
            twins.are_equal()
            x = twins.step.deltas["0"]
            y = twins.ours[0].weight.grad if optimizer == "RMSprop" else twins.step.deltas["2"]  # type: ignore[index]


def test_options_and_losses_that_are_set_between_steps_count() -> None:
    twins = Twins(nn.Linear(4, 3).double())
    twins.advance(0)
    twins.loss = twins.step.loss = nn.L1Loss()
    twins.advance(1)
    twins.step.skip_nonfinite = True
    x, y = batch(2)
    twins.step(x * torch.nan, y)
    twins.advance(3)
    assert twins.step.skipped == 1


ASKS_FOR_LAYOUT: dict[str, Callable[[Tensor], Any]] = {
    "is_contiguous": lambda x: 1 + x.is_contiguous(),
    "stride": lambda x: x.stride(0),
    "view": lambda x: x.view(-1)[0],
}


@pytest.mark.parametrize("case", ASKS_FOR_LAYOUT)
def test_how_a_batch_with_gaps_lies_is_refused(case: str) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) * ASKS_FOR_LAYOUT[case](x)

    x, y = batch(0)
    for given in (torch.cat([x, x], 1)[:, :4], x[:1].expand(6, 4)):
        model = Asks().double()
        with pytest.raises((NotDerivableError, RuntimeError), match=r"lies that has gaps|not compatible"):
            TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(given, y)


# ------------------------------------------------------------------------------------------ optimizer and state


def test_plain_descent_leaves_no_state() -> None:
    model = nn.Linear(4, 3).double()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    step = TrainStep(model, nn.MSELoss(), optimizer)
    step(*batch(0))
    assert optimizer.state_dict()["state"] == {}
    model.weight = nn.Parameter(model.weight.data)
    optimizer.param_groups[0]["params"][0] = model.weight
    step(*batch(1))
    assert optimizer.state_dict()["state"] == {}


def test_a_group_that_comes_later_leaves_the_dampening_of_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m[0].parameters(), lr=0.1, momentum=0.9, dampening=0.5) for m in (model, twin)]
    model[1].requires_grad_(False)
    twin[1].requires_grad_(False)
    step = TrainStep(model, nn.MSELoss(), optimizers[0])
    for i in range(4):
        if i == 2:
            for m, optimizer in zip((model, twin), optimizers, strict=True):
                m[1].requires_grad_(True)
                optimizer.add_param_group({"params": list(m[1].parameters())})
        optimizers[1].zero_grad()
        x, y = batch(i)
        nn.MSELoss()(twin(x), y).backward()
        optimizers[1].step()
        step(x, y)
        torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("between", ["a step is skipped", "a step is derived and not made"])
def test_state_that_is_cleared_before_a_program_has_written_to_it(between: str) -> None:
    """A program is derived while there is state, does nothing with it, and finds it gone."""
    twins = Twins(nn.Linear(4, 3).double(), optimizer="momentum")
    twins.advance(0)
    twins.step.skip_nonfinite = True
    x, y = batch(1)
    if between == "a step is skipped":
        assert twins.step(x * torch.nan, y).isnan()
    else:
        twins.step.derive(x, y)
    for optimizer in twins.optimizers:
        optimizer.state.clear()
    twins.advance(2)
    twins.advance(3)


def test_state_that_is_put_aside_stays_as_it_was() -> None:
    twins = Twins(nn.Linear(4, 3).double(), optimizer="momentum")
    twins.advance(0)
    aside = [dict(o.state) for o in twins.optimizers]
    for optimizer in twins.optimizers:
        optimizer.state.clear()
    twins.advance(1)
    for optimizer, state in zip(twins.optimizers, aside, strict=True):
        optimizer.state.update(state)
    twins.advance(2)


# ------------------------------------------------------------------------------------- parameters and memory


RELAID: dict[str, Callable[[Any], None]] = {
    "a transpose": lambda m: setattr(m.weight, "data", m.weight.data.t()),
    "in place": lambda m: m.weight.data.t_(),
    "another parameter of the same memory": lambda m: setattr(m, "weight", nn.Parameter(m.weight.data)),
    "new memory": lambda m: setattr(m.weight, "data", m.weight.data.clone()),
    "strides": lambda m: setattr(m.weight, "data", m.weight.data.t().contiguous().t()),
    "by DLPack": lambda m: setattr(m.weight, "data", torch.utils.dlpack.from_dlpack(m.weight.data.clone())),
}


@pytest.mark.parametrize("case", RELAID)
def test_parameters_that_are_laid_out_otherwise_count(case: str) -> None:
    twins = Twins(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    twins.advance(0)
    for model, optimizer in zip((twins.ours, twins.theirs), twins.optimizers, strict=True):
        RELAID[case](model[0])  # type: ignore[index]
        optimizer.param_groups[0]["params"] = list(model.parameters())
    twins.advance(1)
    twins.advance(2)


def test_parts_that_are_cut_off_count() -> None:
    twins = Twins(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double())
    twins.advance(0)
    for model in (twins.ours, twins.theirs):
        first: Any = model[0]  # type: ignore[index]
        second: Any = model[2]  # type: ignore[index]
        first.weight.data, first.bias.data = first.weight.data[:4], first.bias.data[:4]
        second.weight.data = second.weight.data[:, :4]
    twins.advance(1)


# ----------------------------------------------------------------------------------------------------- hooks


HOOKS: dict[str, Callable[[Any], Any]] = {
    "of a parameter": lambda m: m.weight.register_hook(lambda g: 2 * g),
    "after accumulation": lambda m: m.weight.register_post_accumulate_grad_hook(print),
    "of a module": lambda m: m.register_full_backward_hook(lambda *a: None),
    "of all modules": lambda m: nn.modules.module.register_module_forward_hook(lambda *a: None),
    "of the node that accumulates": lambda m: accumulator(m.weight).register_hook(lambda *a: None),
    "before the node that accumulates": lambda m: accumulator(m.weight).register_prehook(lambda *a: None),
}
NODES: list[Any] = []


def accumulator(p: Any) -> Any:
    NODES.append(p.view_as(p).grad_fn.next_functions[0][0])
    return NODES[-1]


@pytest.mark.parametrize("when", ["before", "later", "again", "once removed"])
@pytest.mark.parametrize("case", HOOKS)
def test_hooks_are_refused_whenever_they_come(case: str, when: str) -> None:
    model = nn.Linear(4, 3).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))
    if when == "once removed":  # which leaves an empty dict of hooks behind
        HOOKS[case](model).remove()
    if when != "before":
        if "node that accumulates" in case:
            pytest.skip("autograd's node is looked at when a program is derived, and at its runs 2, 10, 100, …")
        step(*batch(0))
    for _ in range(2 if when == "again" else 1):
        handle = HOOKS[case](model)
        try:
            with pytest.raises(NotDerivableError, match="hook"):
                step(*batch(1))
        finally:
            handle.remove()
    step(*batch(2))


def test_a_hook_of_the_node_that_accumulates_is_found_at_the_next_look() -> None:
    model = nn.Linear(4, 3).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))
    for seed in range(3):
        step(*batch(seed))
    handle = accumulator(model.weight).register_hook(lambda *a: None)
    for seed in range(3, 9):
        step(*batch(seed))
    with pytest.raises(NotDerivableError, match=r"hook of the node that accumulates .* has not where it came after"):
        step(*batch(9))
    handle.remove()
    step(*batch(10))


def test_wrappers_that_reduce_gradients_are_refused_by_name() -> None:
    class DistributedDataParallel(nn.Module):
        """Of the name alone, which needs no process group."""

        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    model = DistributedDataParallel().double()
    with pytest.raises(NotDerivableError, match="DistributedDataParallel, whose gradients are reduced"):
        TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))


def test_forward_is_told_what_autograd_says() -> None:
    seen: list[tuple[bool, bool]] = []
    monkey: Any = torch
    monkey.seen_by_nobody = seen

    def between(h: Tensor, w: Tensor) -> Tensor:
        monkey.seen_by_nobody.append((h.requires_grad, h.is_leaf, w.requires_grad, w.is_leaf, h.detach().requires_grad))
        return h * (w if h.requires_grad else 1)

    twins = Twins(Gate(between).double())
    twins.advance(0)
    assert len(set(seen)) == 1
    del monkey.seen_by_nobody
    hooked = Gate(lambda h, w: (h.register_hook(lambda g: 2 * g) if h.requires_grad else None, h * w)[1]).double()
    with pytest.raises(NotDerivableError, match="register_hook is autograd's"):
        TrainStep(hooked, nn.MSELoss(), OPTIMIZERS["SGD"](hooked.parameters()))(*batch(0))
    asked = Gate(lambda h, w: h * w if h.grad_fn is not None else h).double()
    with pytest.raises(NotDerivableError, match="grad_fn"):
        TrainStep(asked, nn.MSELoss(), OPTIMIZERS["SGD"](asked.parameters()))(*batch(0))


# ------------------------------------------------------------------------------------------ random numbers


def seeded(h: Tensor, w: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return h * torch.rand_like(h)


def forked(h: Tensor, w: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return F.dropout(h)


def stated(h: Tensor, w: Tensor) -> Tensor:
    torch.default_generator.manual_seed(3)
    return F.dropout(h)


@pytest.mark.parametrize("between", [seeded, forked, stated])
def test_seeds_of_forward_s_own_are_refused(between: Any) -> None:
    state = torch.get_rng_state()
    model = Gate(between).double()
    try:
        with pytest.raises(NotDerivableError, match="sets torch's seed"):
            TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))
    finally:
        torch.set_rng_state(state)


def test_deriving_draws_no_random_numbers_of_torch() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.RReLU(), nn.Linear(8, 3)).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    step.derive(*batch(0))
    assert torch.equal(torch.rand(3), expected)


def test_a_refused_step_leaves_statistics_and_vectors_as_they_were() -> None:
    class Refused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum())

    for model in (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), Refused()),
        nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3), Refused()),
    ):
        model = model.double()
        before = copy.deepcopy(model.state_dict())
        step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))
        for call in (step, step.derive):
            with pytest.raises(NotDerivableError):
                call(*batch(0))
            torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_refused_step_leaves_attributes_as_they_were() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.n, self.seen = nn.Linear(4, 3), 0, ["first"]

        def forward(self, x: Tensor) -> Tensor:
            self.n += 1
            self.seen.append("again")
            self.new = self.n
            return self.l(x) / self.n

    model = Counts().double()
    with pytest.raises(NotDerivableError, match=r"forward changes self\.n"):
        TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))
    assert model.n == 0
    assert model.seen == ["first"]
    assert not hasattr(model, "new")


CHANGES_PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: torch.no_grad()(m.l.weight.mul_)(0.5),
    "behind autograd's back": lambda m: m.l.weight.data.mul_(0.5),
    "another memory": lambda m: setattr(m.l.weight, "data", m.l.weight.data * 2),
    "its gradient": lambda m: setattr(m.l.weight, "grad", torch.ones_like(m.l.weight)),
    "what learns": lambda m: m.l.weight.requires_grad_(False),
}


@pytest.mark.parametrize("case", CHANGES_PARAMETERS)
def test_a_refused_step_leaves_parameters_as_they_were(case: str) -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            CHANGES_PARAMETERS[case](self)
            return self.l(x)

    model = Changes().double()
    p, before, state = model.l.weight, model.l.weight.detach().clone(), torch.get_rng_state()
    address = p.data_ptr()
    with pytest.raises(NotDerivableError):
        TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))
    assert torch.equal(p, before)
    assert (p.data_ptr(), p.grad, p.requires_grad) == (address, None, True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_learning_rate_that_forward_reads_counts() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 3)
            self.rate: Any = [1.0]

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) * self.rate[0].param_groups[0]["lr"]

    twins = Twins(Scaled().double())
    for model, optimizer in zip(map(cast_any, (twins.ours, twins.theirs)), twins.optimizers, strict=True):
        model.rate = [optimizer]
    for i, lr in enumerate((0.1, 0.1, 0.2, 0.2)):
        for optimizer in twins.optimizers:
            optimizer.param_groups[0]["lr"] = lr
        twins.advance(i)


# ------------------------------------------------------------------------------------------------ saved programs


class Teaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 3)
        self.mask = [torch.arange(3.0, dtype=torch.float64)]
        self.large = torch.randn(40, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * self.mask[0] + self.large.mean(0)


def test_a_saved_program_holds_the_tensors_of_its_model(tmp_path: Path) -> None:
    model = Teaches().double()
    target = torch.tensor([0.5, float("inf"), 1], dtype=torch.float64).clamp(max=2)

    def loss(s: Tensor, y: Tensor) -> Tensor:
        return (s - y * target).square().mean()

    step = TrainStep(model, loss, OPTIMIZERS["SGD"](model.parameters()))
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    step.derive(*batch(0))
    step.save(tmp_path / "step.py")
    namespace: dict[str, Any] = {}
    exec((tmp_path / "step.py").read_text(encoding="utf-8"), namespace)
    saved = namespace["build"](parameters, {})
    for i in range(3):
        torch.testing.assert_close(saved(*batch(i), 0.1), step(*batch(i)), rtol=1e-13, atol=0)


# ---------------------------------------------------------------------------------------------------------- data


def test_a_tensor_that_is_given_twice_is_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.l(a) if a is b else self.l(a) * 2

    model = Two().double()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = batch(0)
    for inputs in ((x, x), (x, x.clone()), (x, x)):
        torch.testing.assert_close(step(inputs, y), nn.MSELoss()(model(*inputs), y).detach(), rtol=1e-12, atol=0)


def test_data_that_are_no_plain_tensors_are_refused() -> None:
    model = nn.Linear(4, 3).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))
    x, y = batch(0)
    marked: Any = x.clone()
    marked.scale = 2.0
    for given, said in ((nn.Parameter(x, False), "a Parameter"), (marked, "scale"), (x.to_sparse(), "sparse_coo")):
        with pytest.raises(ValueError, match=said):
            step(given, y)


def test_an_accumulation_that_is_shortened_in_a_window_ends() -> None:
    model = nn.Linear(4, 3).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()), accumulate=4)
    for i in range(3):
        step(*batch(i))
    before = model.weight.detach().clone()
    step.accumulate = 2
    step(*batch(3))
    assert not torch.equal(model.weight, before)


def test_checkpoints_in_forward_set_no_seed() -> None:
    twins = Twins(Gate(lambda h, w: checkpoint(torch.tanh, h, use_reentrant=False) * w).double())
    for i in range(3):
        twins.advance(i)


# -------------------------------------------------------------------------------------------------- environments


@pytest.fixture
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_default_dtype")
def test_another_default_dtype_counts() -> None:
    twins = Twins(Gate(lambda h, w: h * w + torch.full((5,), 0.1)).double())
    twins.advance(0)
    torch.set_default_dtype(torch.float64)
    twins.advance(1)


def test_a_first_call_under_another_default_device_breaks_nothing() -> None:
    twins = Twins(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    x, y = batch(0)
    twins.optimizers[1].zero_grad()
    twins.loss(twins.theirs(x), y).backward()
    twins.optimizers[1].step()
    with torch.device("meta"):
        twins.step(x, y)
    twins.are_equal()
    twins.advance(1)


def test_inference_mode_and_questions_about_memory_are_refused_by_name() -> None:
    def inferred(h: Tensor, w: Tensor) -> Tensor:
        with torch.inference_mode():
            m = w * 2
        return h * w + m.clone()

    for between, said in (
        (inferred, "inference_mode"),
        (lambda h, w: h * w * (h.untyped_storage().nbytes() // 8), "asks where the numbers lie"),
        (lambda h, w: h * w * (h.data_ptr() % 2 + 1), "asks where the numbers lie"),
    ):
        model = Gate(between).double()
        with pytest.raises(NotDerivableError, match=said):
            TrainStep(model, nn.MSELoss(), OPTIMIZERS["SGD"](model.parameters()))(*batch(0))


def test_two_threads_derive_from_one_model() -> None:
    model = nn.Sequential(*[layer for _ in range(10) for layer in (nn.Linear(4, 4), nn.Tanh())]).double()
    errors: list[BaseException] = []

    def derive() -> None:
        try:
            optimizer = OPTIMIZERS["SGD"](model.parameters())
            TrainStep(model, nn.MSELoss(), optimizer).derive(batch(0)[0], batch(0)[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=derive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
