"""What is read of Python in ways that names do not show, and is another at a later step: equal to torch, or refused."""

from __future__ import annotations

import array
import collections
import contextlib
import copy
import decimal
import enum
import functools
import io
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_train_step_silent import Held, Twins, batch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch_manualbp import TrainStep
from torch_manualbp.derive import NotDerivableError

SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Number(float):
    scale = 1.0


class Text(str):
    scale = 1.0


class Pair(tuple):  # type: ignore[type-arg]
    scale = 1.0


class Doubles(array.array):  # type: ignore[type-arg]
    scale = 1.0

    def __deepcopy__(self, memo: Any) -> Doubles:
        return Doubles(self.typecode, self)


def with_scale(thing: Any, scale: float) -> Any:
    thing.scale = scale
    return thing


def metaclass() -> Any:
    meta = type("Meta", (type,), {"scale": 1.0})
    return meta("C", (), {})()


def member() -> Any:
    return with_scale(enum.IntEnum("Members", "A").A, 1.0)  # type: ignore[attr-defined]


class One:
    __slots__ = ()

    def scale(self) -> float:
        return 1.0


class Two:
    __slots__ = ()

    def scale(self) -> float:
        return 2.0


def operator_of_a_class() -> Any:
    return type("C", (), {"__float__": lambda self: 1.0})()


def asked(name: str) -> Any:
    """An object whose method reads a variable of the function that made it."""
    box = [1]
    return with_box(type("C", (), {name: lambda self, *other: box[0]})(), box)


def with_box(thing: Any, box: list[Any]) -> Any:
    thing.box = box
    return thing


def without_gradients() -> Any:
    box = [1.0]

    @torch.no_grad()
    def read(of: list[float] = box) -> float:
        return of[0]

    return SimpleNamespace(read=read, box=box)


def manager() -> Any:
    box = [1.0]

    @contextlib.contextmanager
    def entered() -> Any:
        yield box[0]

    return SimpleNamespace(entered=entered, box=box)


def by_manager(held: Any) -> float:
    with held.entered() as scale:
        return float(scale)


def dispatched() -> Any:
    @functools.singledispatch
    def scale(of: Any) -> float:
        return 1.0

    scale(1)
    return scale


def trained() -> Any:
    optimizer = SGD([nn.Parameter(torch.zeros(1))])
    return SimpleNamespace(o=optimizer, s=torch.optim.lr_scheduler.StepLR(optimizer, 1))


def method_of_an_array() -> Any:
    a = np.ones(2)
    return SimpleNamespace(a=a, get=a.__getitem__)


def by_key() -> Any:
    inner = SimpleNamespace(scale=1.0, other=1.0)
    return SimpleNamespace(inner=inner, items=vars(inner), key="scale")


GENERATOR = torch.Generator().manual_seed(1)
LOGGER: Any = logging.getLogger("of a test")
THREAD = threading.Thread()


def move(held: Any, value: float) -> None:
    if held[0]:
        held[1].insert(0, held[0].pop())


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any, float], Any]]] = {
    "an item of the list before": (lambda: ([1.0, 2.0, 4.0], [8.0]), lambda h: len(h[0]) + h[1][0], move),
    "an attribute of a float": (lambda: with_scale(Number(), 1.0), lambda h: h.scale, with_scale),
    "an equal text": (
        lambda: SimpleNamespace(t=Text()),
        lambda h: h.t.scale,
        lambda h, v: setattr(h, "t", with_scale(Text(), v)),
    ),
    "an equal tuple": (
        lambda: SimpleNamespace(t=Pair()),
        lambda h: h.t.scale,
        lambda h, v: setattr(h, "t", with_scale(Pair(), v)),
    ),
    "a range of the same numbers": (
        lambda: SimpleNamespace(r=range(0, 3, 2)),
        lambda h: float(h.r.stop),
        lambda h, v: setattr(h, "r", range(0, 4, 2)),
    ),
    "a list in a slice": (lambda: slice([1.0]), lambda h: h.stop[0], lambda h, v: h.stop.__setitem__(0, v)),
    "a method of an array": (method_of_an_array, lambda h: float(h.get(0)), lambda h, v: h.a.fill(v)),
    "a metaclass": (metaclass, lambda h: type(h).scale, lambda h, v: setattr(type(type(h)), "scale", v)),
    "a member of an enumeration of numbers": (member, lambda h: h.scale, with_scale),
    "another base": (
        lambda: type("C", (type("A", (), {"scale": 1.0}),), {})(),
        lambda h: h.scale,
        lambda h, v: setattr(type(h), "__bases__", (type("B", (), {"scale": v}),)),
    ),
    "another class without attributes": (One, lambda h: h.scale(), lambda h, v: setattr(h, "__class__", Two)),
    "another dict in a UserDict": (
        lambda: collections.UserDict(scale=1.0),
        lambda h: h["scale"],
        lambda h, v: setattr(h, "data", {"scale": v}),
    ),
    "what float calls": (
        operator_of_a_class,
        float,
        lambda h, v: setattr(type(h), "__float__", lambda self: v),
    ),
    "what len calls": (lambda: asked("__len__"), len, lambda h, v: h.box.__setitem__(0, int(v))),
    "what an index calls": (lambda: asked("__getitem__"), lambda h: h[0], lambda h, v: h.box.__setitem__(0, v)),
    "the dict behind attributes": (
        by_key,
        lambda h: h.inner.other * h.items[h.key],
        lambda h, v: (vars(h.inner).update(scale=v), h.items.update(scale=v)),
    ),
    "a generator that is looked at": (
        lambda: random.Random(0),
        lambda h: copy.deepcopy(h).random(),
        lambda h, v: h.seed(v),
    ),
    "an attribute of an array": (lambda: Doubles("d", [1.0]), lambda h: h.scale, with_scale),
    "where a stream is": (lambda: io.StringIO("123"), lambda h: h.tell() + 1.0, lambda h, v: h.seek(int(v))),
    "objects in an array": (
        lambda: np.array([1.0], dtype=object),
        lambda h: float(h[0]),
        lambda h, v: h.__setitem__(0, h[0] * 1.5),
    ),
    "a default behind a decorator": (without_gradients, lambda h: h.read(), lambda h, v: h.box.__setitem__(0, v)),
    "a variable behind a context": (manager, by_manager, lambda h, v: h.box.__setitem__(0, v)),
    "a function for another type": (dispatched, lambda h: h(1), lambda h, v: h.register(int, lambda of: v)),
    "an optimizer's defaults": (
        trained,
        lambda h: h.o.defaults["lr"],
        lambda h, v: h.o.defaults.update(lr=v),
    ),
    "an attribute of a scheduler": (trained, lambda h: h.s.gamma, lambda h, v: setattr(h.s, "gamma", v)),
    "an attribute of a function that does not run": (
        lambda: with_scale(lambda: None, 1.0),
        lambda h: h.scale,
        with_scale,
    ),
    "an attribute that a tensor has not": (
        lambda: torch.ones(2, dtype=torch.float64),
        lambda h: getattr(h, "scale", 3.0),
        with_scale,
    ),
    "an attribute of a thread": (
        lambda: None,
        lambda h: getattr(THREAD, "scale", 1.0),
        lambda h, v: with_scale(THREAD, v),
    ),
    "an attribute of a logger": (lambda: with_scale(LOGGER, 1.0), lambda h: LOGGER.scale, with_scale),
    "the seed of a generator": (
        lambda: None,
        lambda h: float(GENERATOR.initial_seed()),
        lambda h, v: GENERATOR.manual_seed(int(v)),
    ),
    "bytes of a storage": (
        lambda: torch.ones(1, dtype=torch.uint8).untyped_storage(),
        lambda h: float(h[0]),
        lambda h, v: h.__setitem__(0, int(v)),
    ),
    "the precision of decimals": (
        lambda: None,
        lambda h: float(decimal.Decimal(1) / 3),
        lambda h, v: setattr(decimal.getcontext(), "prec", 3 if v == 2.0 else 28),
    ),
    "a setting of torch's": (
        lambda: None,
        lambda h: 2.0 if torch.get_float32_matmul_precision() == "high" else 1.0,
        lambda h, v: torch.set_float32_matmul_precision("high" if v == 2.0 else "highest"),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_changed_out_of_sight_counts(case: str) -> None:
    make, read, change = CHANGES[case]
    twins = Twins(Held(make(), read).double())
    for i, value in enumerate((1.0, 1.0, 2.0, 2.0, 0.0)):
        if i >= 2:
            change(twins.ours.held, value)
            if twins.theirs.held is not twins.ours.held:
                change(twins.theirs.held, value)
        twins.advance(i)


@pytest.mark.parametrize("make", [lambda: map(float, iter([1] * 9)), lambda: (1.0 for _ in range(9))])
def test_what_moves_on_unseen_is_refused(make: Callable[[], Any]) -> None:
    held = make()
    next(held)
    model = Held(held, next).double()
    with pytest.raises(NotDerivableError, match=r"forward changes self\.held"):
        TrainStep(model, nn.MSELoss(), SGD(model.parameters()))(*batch(0))


@pytest.mark.parametrize("of", [weakref.ref, lambda thing: weakref.WeakSet([thing])])
def test_what_may_vanish_is_refused(of: Callable[[Any], Any]) -> None:
    thing: Any = type("C", (One,), {})()
    model = Held(of(thing), lambda held: 1.0 if held else 2.0).double()
    with pytest.raises(NotDerivableError, match="a weak reference"):
        TrainStep(model, nn.MSELoss(), SGD(model.parameters()))(*batch(0))


def test_what_is_let_go_is_gone() -> None:
    thing: Any = type("C", (One,), {"scale": 1.0})()
    held = SimpleNamespace(thing=thing, weak=weakref.ref(thing))
    model = Held(held, lambda h: 2.0 if h.weak() is None or h.thing is None else h.weak().scale).double()
    twins = Twins(model)
    cast: Any = twins.theirs
    cast.held.weak = held.weak
    del thing
    twins.advance(0)
    held.thing = cast.held.thing = None
    twins.advance(1)
    assert held.weak() is None


def test_what_each_thread_has_of_its_own_counts() -> None:
    local = threading.local()
    local.scale = 1.0
    twins = Twins(Held(None, lambda held: getattr(local, "scale", 2.0)).double())
    twins.advance(0)
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            twins.advance(1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not errors
    twins.advance(2)


@pytest.mark.parametrize("how", ["from .numbers_of import SCALE", "from . import numbers_of"])
def test_what_forward_imports_from_beside_it_counts(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"beside_{len(how)}"
    (tmp_path / name).mkdir()
    what = "SCALE" if "SCALE" in how else "numbers_of.SCALE"
    (tmp_path / name / "__init__.py").write_text(f"def read(held):\n    {how}\n    return {what}\n")
    (tmp_path / name / "numbers_of.py").write_text("SCALE = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    package: Any = __import__(f"{name}.numbers_of")
    twins = Twins(Held(None, package.read).double())
    twins.advance(0)
    package.numbers_of.SCALE = 2.0
    twins.advance(1)
    del sys.modules[name], sys.modules[f"{name}.numbers_of"]


def test_hooks_of_kept_tensors_that_come_later_are_held_against_autograd() -> None:
    twins = Twins(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    twins.advance(0)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.double()),
        pytest.raises(NotDerivableError, match="not autograd's"),
    ):
        twins.advance(1)
    model = nn.Linear(4, 3).double()
    twins = Twins(model)
    twins.advance(0)
    with torch.autograd.graph.save_on_cpu():
        twins.advance(1)


class DoublesProducts(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result * 2 if function is F.linear else result


class DoublesTanh(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result * 2 if function is torch.ops.aten.tanh.default else result


@pytest.mark.parametrize("mode", [DoublesProducts, DoublesTanh])
def test_a_mode_that_comes_later_is_held_against_autograd(mode: Any) -> None:
    twins = Twins(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    twins.advance(0)
    with mode(), pytest.raises(NotDerivableError):
        twins.advance(1)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_another_step_of_the_optimizer_s_class_is_called(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(nn.Linear(4, 3).double(), optimizer=optimizer)
    twins.advance(0)
    cls = type(twins.optimizers[0])
    usual: Any = cls.step

    def halved(self: Any, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(0.5)
        usual(self)

    monkeypatch.setattr(cls, "step", halved)
    twins.advance(1)
    monkeypatch.undo()
    twins.advance(2)
    assert twins.step.folds


def test_state_whose_memory_is_laid_out_otherwise_counts() -> None:
    twins = Twins(nn.Linear(4, 3).double(), optimizer="AdamW")
    for i in range(4):
        if i == 2:
            for optimizer in twins.optimizers:
                for state in optimizer.state.values():
                    m = state["exp_avg"]
                    m.data = m.data.t().contiguous().t()
        twins.advance(i)


def test_decay_rates_in_a_list_may_become_tensors() -> None:
    twins = Twins(nn.Linear(4, 3).double(), optimizer="AdamW")
    for i in range(4):
        for optimizer in twins.optimizers:
            if i == 1:
                optimizer.param_groups[0].update(betas=[0.9, 0.99])
            elif i == 2:
                optimizer.param_groups[0]["betas"][0] = torch.tensor(0.7)
        twins.advance(i)


def test_an_infinite_rate_leaves_no_other_numbers() -> None:
    ours, theirs = (nn.Linear(4, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer, other = SGD(ours.parameters(), lr=float("inf")), SGD(theirs.parameters(), lr=float("inf"))
    nn.MSELoss()(theirs(batch(0)[0]), batch(0)[1]).backward()
    other.step()
    TrainStep(ours, nn.MSELoss(), optimizer)(*batch(0))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), equal_nan=True)
