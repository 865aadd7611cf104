"""What a forward does besides computing, which no program repeats, and what else would be called beside it."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module

__all__ = ["DRAWS", "has_global_hooks", "has_hooks", "watched"]

DRAWS = ("", "forward draws Python's or NumPy's random numbers, or sets torch's seed", "draw with torch.rand")

Refuse = Callable[[str, str, str], None]


@contextlib.contextmanager
def watched(modules: Iterable[tuple[str, Module]], refuse: Refuse, suspect: Callable[[], None]) -> Iterator[None]:
    """Refuse what changes of the modules and of Python's random numbers while the body runs; where other threads may
    have drawn the numbers, suspect it."""
    before = [(path, module, _contents(module)) for path, module in modules]
    drawn = _random_states()
    yield
    for path, module, contents in before:
        now = _contents(module)
        for name in dict.fromkeys([*contents, *now]):
            if not _is_same(contents.get(name, ()), now.get(name, ())):
                refuse(path, f"forward changes self.{name}", "keep such state out of a derived step")
    if not _is_same(drawn, _random_states()):
        if threading.active_count() == 1:
            refuse(*DRAWS)
        else:
            suspect()


def _contents(module: Module) -> dict[str, list[Any]]:
    """Each attribute, and what is in it if it is a list, a set or a dict."""
    contents = {}
    for name, value in vars(module).items():
        items: Iterable[Any] = ()
        if isinstance(value, dict):
            items = [*value.keys(), *value.values()]
        elif isinstance(value, list | set):
            items = value
        contents[name] = [value, *items]
    return contents


def _is_same(before: Iterable[Any], now: Iterable[Any]) -> bool:
    """Whether all are the same objects, or equal numbers and texts, or tuples of them."""
    before, now = list(before), list(now)
    return len(before) == len(now) and all(map(_is_equal, before, now))


def _is_equal(a: Any, b: Any) -> bool:
    if a is b or type(a) is not type(b):
        return a is b
    return _is_same(a, b) if isinstance(a, tuple) else isinstance(a, int | float | str | bytes) and a == b


def _random_states() -> list[Any]:
    numpy = sys.modules.get("numpy")
    seed = torch.initial_seed()
    if numpy is None:
        return [seed, random.getstate()]
    _, keys, *rest = numpy.random.get_state()
    return [seed, random.getstate(), keys.tobytes(), *rest]


def has_hooks(parameter: Tensor) -> bool:
    """Whether autograd calls somebody with the gradient of a parameter."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def has_global_hooks() -> bool:
    """Whether torch calls somebody at each module."""
    return torch_module._has_any_global_hook()
