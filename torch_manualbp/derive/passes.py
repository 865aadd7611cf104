"""A program without what nobody reads, without what is computed twice, and without copies that nobody needs."""

from __future__ import annotations

from collections import defaultdict
from types import FunctionType
from typing import Any

import torch

from torch_manualbp.derive.program import CONSTANT, MADE, Call, Memory, Value, mapped, words

__all__ = ["ALLOCATIONS", "FILLED", "Tenants", "is_random", "needed", "reads", "without_copies", "without_repetition"]

ALLOCATIONS = words("empty empty_like new_empty empty_strided")
FILLED = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}
RANDOM = words(
    "bernoulli bernoulli_ rand randn rand_like randn_like randint normal normal_ uniform_ dropout "
    "randperm exponential_ multinomial rrelu random_ native_dropout log_normal_ geometric_ cauchy_"
)


class Tenants:
    """Who lives in which memory, so that a whole memory can move without a look at every call."""

    def __init__(self, calls: list[Call]) -> None:
        self._values: dict[Memory, set[Value]] = defaultdict(set)
        self._calls: dict[Memory, set[Call]] = defaultdict(set)
        """Those that make or change it."""

        for call in calls:
            for value in (*call.arguments(), *call.results):
                self._values[value.memory].add(value)
            for memory in call.written | call.made:
                self._calls[memory].add(call)

    def move(self, memory: Memory, into: Memory) -> None:
        """Have all values in one memory live in another."""
        if memory is into:
            return
        for value in self._values.pop(memory, ()):
            value.memory = into
            self._values[into].add(value)
        for call in self._calls.pop(memory, ()):
            if memory in call.written:
                call.written = (call.written - {memory}) | {into}
                self._calls[into].add(call)
            call.made = call.made - {memory}


def is_random(call: Call) -> bool:
    return call.is_random or call.name in RANDOM


def reads(call: Call) -> set[Memory]:
    return {value.memory for value in call.arguments()}


def needed(calls: list[Call], roots: list[Value]) -> list[Call]:
    """Without the calls whose results nobody reads; what changes a parameter or a state is always read, and a random
    number drawn, after which others come; what a program expects is always asked."""
    live = {value.memory for value in roots}
    kept = []
    for call in reversed(calls):
        changes_what_stays = any(memory.origin not in (MADE, CONSTANT) for memory in call.written)
        if (
            changes_what_stays
            or call.answer is not None
            or is_random(call)
            or any(value.memory in live for value in call.results)
            or call.written & live
        ):
            live |= reads(call)
            kept.append(call)
    return kept[::-1]


def _key(call: Call) -> Any:
    # Of functions that are written in Python several have one name.
    return call.name, isinstance(call.function, FunctionType) and call.function, _frozen((call.args, call.kwargs))


def _frozen(tree: Any) -> Any:
    if isinstance(tree, Value):
        return id(tree)
    if isinstance(tree, tuple | list):
        return tuple([_frozen(item) for item in tree])
    if isinstance(tree, dict):
        return tuple([(key, _frozen(item)) for key, item in tree.items()])
    if isinstance(tree, slice):
        return slice, _frozen((tree.start, tree.stop, tree.step))
    return (type(tree), repr(tree)) if isinstance(tree, _ALL_IN_REPR) else id(tree)


_ALL_IN_REPR = (
    bool | int | float | complex | str | torch.dtype | torch.device | torch.layout | torch.memory_format | None
)


def without_repetition(calls: list[Call], results: list[Value], tenants: Tenants) -> list[Call]:
    """Each thing once: of two equal calls between which nothing changes that they read, and whose results nothing
    changes, the second takes the first's results."""
    wanted = set(results)
    last_write: dict[Memory, int] = {}
    for i, call in enumerate(calls):
        for memory in call.written:
            last_write[memory] = i
    seen: dict[Any, tuple[int, Call]] = {}
    instead: dict[Value, Value] = {}
    kept = []
    for i, call in enumerate(calls):
        _substitute(call, instead)
        is_pure = not call.written and call.results and not is_random(call) and call.name not in ALLOCATIONS
        unchanged = is_pure and (call.is_view or all(last_write.get(value.memory, -1) < i for value in call.results))
        if not unchanged or not wanted.isdisjoint(call.results):
            kept.append(call)
            continue
        key = _key(call)
        at, first = seen.get(key, (-1, None))
        if first is not None and (call.is_view or all(last_write.get(m, -1) < at for m in reads(call))):
            _merge(tenants, call.results, first.results, instead)
            continue
        seen[key] = (i, call)
        kept.append(call)
    return kept


def without_copies(calls: list[Call], roots: list[Value], tenants: Tenants, in_any_order: bool = False) -> list[Call]:
    """Without the copies that are only made so that a rule returns a tensor of its own; also without those that have
    their numbers in another order, where that does not matter."""
    wanted, live = set(roots), {value.memory for value in roots}
    kept: list[Call] = []
    instead: dict[Value, Value] = {}
    last_read: dict[Memory, int] = defaultdict(int)
    last_write: dict[Memory, int] = defaultdict(int)
    for i, call in enumerate(calls):
        last_read.update(dict.fromkeys(reads(call), i))
        last_write.update(dict.fromkeys(call.written, i))
    for i, call in enumerate(calls):
        _substitute(call, instead)
        if call.name == "clone" and call.made and isinstance(call.args[0], Value) and call.results[0] not in wanted:
            source, copy = call.args[0], call.results[0]
            a, b = source.memory, copy.memory
            is_read = a in live or a.origin != MADE or last_read[a] > i
            is_like = source.is_like(copy) or (in_any_order and source.tensor.dtype == copy.tensor.dtype)
            if is_like and last_write[a] <= i and not (last_write[b] > i and is_read):
                for last in (last_read, last_write):
                    last[a] = max(last[a], last[b])
                _merge(tenants, (copy,), (source,), instead)
                continue
        kept.append(call)
    return kept


def _substitute(call: Call, instead: dict[Value, Value]) -> None:
    if instead and any(value in instead for value in call.arguments()):
        call.args, call.kwargs = mapped((call.args, call.kwargs), Value, lambda value: instead.get(value, value))


def _merge(tenants: Tenants, values: tuple[Value, ...], others: tuple[Value, ...], instead: dict[Value, Value]) -> None:
    """Have ``others`` stand for ``values``, and their memory for the memory of these and of all views of it."""
    for value, other in zip(values, others, strict=True):
        instead[value] = other
        if value.is_named and not other.is_named:
            other.name, other.is_named = value.name, True
        tenants.move(value.memory, other.memory)
        value.memory = other.memory
