"""In which memory the values of a program live, and what of it is done once.

A step as it was recorded makes a new tensor at every call. Here

- what nobody reads is left out, what is computed twice is computed once, and copies that nobody needs are none;
- what does not change from step to step, and every view of memory that stays where it is, is made before the first;
- every other result gets memory of its own before the first step: that of an argument which nobody reads any more where
  the operation goes entry by entry, that of an older value, or new.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import nn_functions
from torch_manualbp.derive.faster import rewritten, without_likeness
from torch_manualbp.derive.passes import (
    ALLOCATIONS,
    FILLED,
    Tenants,
    is_random,
    needed,
    reads,
    without_copies,
    without_repetition,
)
from torch_manualbp.derive.program import CONSTANT, INPUT, MADE, Call, Kernel, Memory, Program, Value, mapped, words

__all__ = ["CASTS", "Plan", "plan"]

POINTWISE = words(
    "add sub mul div neg exp expm1 log log1p tanh sigmoid erf sqrt rsqrt reciprocal abs sign sgn clamp "
    "clamp_min clamp_max maximum minimum gt ge lt le eq ne addcmul pow sin cos xlogy logical_not gelu "
    "silu elu softplus hardswish hardsigmoid hardtanh leaky_relu mish softshrink hardshrink bitwise_and "
    "bitwise_not logical_and where"
)
"""Operations entry by entry that take ``out=``, which may be one of their arguments."""

OTHERS = words("mm addmm bmm baddbmm softmax log_softmax gather cat stack index_select sum linear mse_loss")
"""Other operations that take ``out=``."""

CASTS = words("to float double half bfloat16 type")
COPIES = CASTS | {"contiguous", "clone"}
"""What makes a copy, in another dtype or order."""


@dataclass
class Plan:
    """A program that is ready to be written out."""

    memory: list[Value] = field(default_factory=list)
    """The values that get memory of their own before the first step."""

    once: list[Call | tuple[Value, Value]] = field(default_factory=list)
    """What is made before the first step, in order, after the memory; and which values live in whose memory."""

    steps: list[Call] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        """All calls, those that are made once first."""
        return [*(item for item in self.once if isinstance(item, Call)), *self.steps]

    into: dict[Call, Value] = field(default_factory=dict)
    """The calls of the step whose result is written into memory that is there: the value whose it is."""

    with_out: dict[Call, Any] = field(default_factory=dict)
    """The functions that do so."""

    kernels: dict[Call, str] = field(default_factory=dict)
    """The names of the functions of the text that calls of kernels call."""


def plan(
    program: Program,
    results: Iterable[Value],
    pinned: Iterable[Value] = (),
    lean: bool = True,
    grouped: Callable[..., list[Call]] | None = None,
) -> Plan:
    """Plan the memory of a program.

    Args:
        results: what the step returns, made anew at each step.
        pinned: what must keep its memory to itself after the step.
        lean: whether memory is planned at all; without, each call makes what it returns, as torch.compile likes it.
        grouped: makes calls of kernels of runs of calls, given these, all that is wanted, and what the step returns.
    """
    results, pinned = list(results), list(pinned)
    calls = [without_likeness(call) for call in program.calls]
    calls = needed(calls, [*results, *pinned])
    tenants = Tenants(calls)
    calls = without_repetition(calls, [*results, *pinned], tenants)
    calls = without_copies(calls, [*results, *pinned], tenants)
    if lean and grouped is not None:
        calls = grouped(calls, [*results, *pinned], results)
        tenants = Tenants(calls)
    if lean:
        calls = [rewritten(call, program) for call in calls]
    return _Planner(calls, results, pinned, lean, tenants).plan


class _Planner:
    """Goes through the calls once and says of each result where it lives."""

    def __init__(
        self, calls: list[Call], results: list[Value], pinned: list[Value], lean: bool, tenants: Tenants
    ) -> None:
        self.calls = calls
        self.tenants = tenants
        self.results = {value.memory for value in results}
        self.pinned = {value.memory for value in pinned}
        self.lean = lean
        self.changed = {memory for call in calls for memory in call.written}
        self.plan = Plan()
        self.stays: set[Value] = set()
        """Values whose tensor is the same at each step."""

        self.is_constant: set[Value] = set()
        """Values whose numbers are the same at each step, too."""

        self.fresh: set[Value] = set()
        """Values whose tensor is made anew at each step, and fills its memory."""

        self.owned: dict[Memory, Value] = {}
        """The memory that the program made for itself, and the value that it was made for."""

        self.last_use: dict[Memory, int] = {}
        self._find_last_uses()
        self._ends: dict[int, set[Memory]] = defaultdict(set)
        """What is read for the last time by the call of this number, unless something moves in."""

        self._free: dict[Any, list[tuple[int, Value]]] = defaultdict(list)
        """The memory that nobody reads any more, by what fits in: a heap, in the order in which it was made."""

        self._order: dict[Memory, int] = {}
        for i, call in enumerate(calls):
            for memory in self._ends.pop(i - 1, ()):
                if self.last_use[memory] < i:
                    owner = self.owned[memory]
                    heapq.heappush(self._free[_fit(owner)], (self._order[memory], owner))
            self._place(i, call)

    def _find_last_uses(self) -> None:
        for i, call in enumerate(self.calls):
            for memory in (*reads(call), *(value.memory for value in call.results), *call.written):
                self.last_use[memory] = i
        for memory in self.pinned | self.results:
            self.last_use[memory] = len(self.calls)

    def _stays(self, value: Value) -> bool:
        return value in self.stays or value.memory.origin not in (MADE, INPUT)

    def _is_constant(self, value: Value) -> bool:
        given = value.memory.origin == CONSTANT and value.memory not in self.changed
        return value in self.is_constant or given

    def _place(self, i: int, call: Call) -> None:
        arguments = list(call.arguments())
        if isinstance(call.function, Kernel):
            for value in call.results:
                self._place_anywhere(value)
            self.plan.steps.append(call)
        elif call.is_view and all(self._stays(value) for value in arguments):
            self._once(call, constant=all(self._is_constant(value) for value in arguments))
        elif call.name in ALLOCATIONS and call.made and self.lean and call.results[0].memory not in self.results:
            value = call.results[0]
            if value.is_whole:
                self._place_anywhere(value)
            else:
                self._once(call)
                self._hold(value)
        elif self._is_made_once(call, arguments):
            self._once(call, constant=True)
        elif call.name in FILLED and call.made and self.lean and call.results[0].memory not in self.results:
            value = call.results[0]
            self._own(value)
            method = Tensor.zero_ if FILLED[call.name] == 0 else Tensor.fill_
            args = (value,) if FILLED[call.name] == 0 else (value, FILLED[call.name])
            self._write(call, method, args)
        elif self.lean and self._is_copy(call):
            value = call.results[0]
            self._place_result(i, call)
            del self.plan.into[call]
            self._write(call, Tensor.copy_, (value, call.args[0]))
        elif self.lean and self._takes_out(call):
            self._place_result(i, call)
            self.plan.steps.append(call)
        else:
            self.plan.steps.append(call)
            if self.lean and call.made and len(call.results) == 1 and call.results[0].is_whole:
                self.fresh.add(call.results[0])

    def _write(self, call: Call, method: Any, args: tuple[Any, ...]) -> None:
        """Have the step write the numbers of a call's result where they live."""
        value = call.results[0]
        write = Call(method, args, {}, (value,), written=frozenset({value.memory}))
        write.section, write.title, write.blocks = call.section, call.title, call.blocks
        self.plan.steps.append(write)

    def _is_made_once(self, call: Call, arguments: list[Value]) -> bool:
        if call.written or is_random(call) or not call.made or call.made & (self.changed | self.results):
            return False
        return all(self._is_constant(value) for value in arguments)

    def _once(self, call: Call, constant: bool = False) -> None:
        self.plan.once.append(call)
        self.stays.update(call.results)
        if constant:
            self.is_constant.update(call.results)

    def _takes_out(self, call: Call) -> bool:
        if len(call.results) != 1 or call.is_tuple or call.written or not call.made or "out" in call.kwargs:
            return False
        value = call.results[0]
        if value.memory in self.results or not value.is_whole:
            return False
        if call.name == "linear" and len(call.args[0].tensor.shape) != 2:
            return False
        function = _function_with_out(call) if call.name in OTHERS | POINTWISE else None
        if function is not None:
            self.plan.with_out[call] = function
        return function is not None

    def _is_copy(self, call: Call) -> bool:
        if call.name not in COPIES or not call.made or call.written or not isinstance(call.args[0], Value):
            return False
        return call.results[0].is_whole and call.results[0].memory not in self.results

    def _place_result(self, i: int, call: Call) -> None:
        value = call.results[0]
        self.plan.into[call] = value
        if value.memory not in self.pinned and call.name in POINTWISE:
            for argument in call.arguments():
                is_ours = argument in self.fresh or (argument.memory in self.owned and argument in self.stays)
                is_done = self.last_use[argument.memory] == i and is_ours
                others = [v for v in call.arguments() if v.memory is argument.memory]
                is_alone = all(v.is_whole and v.is_like(value) for v in others)  # and no other view of it
                if is_done and is_alone:
                    self._share(value, argument)
                    if argument in self.fresh:
                        self.plan.into[call] = argument
                    return
        self._place_anywhere(value)

    def _place_anywhere(self, value: Value) -> None:
        """Have a value live in memory that nobody reads any more, or in its own."""
        free = self._free[_fit(value)] if value.memory not in self.pinned else []
        if free:
            self._share(value, heapq.heappop(free)[1])
        else:
            self._own(value)

    def _own(self, value: Value) -> None:
        self._hold(value)
        self.stays.add(value)
        self.plan.memory.append(value)

    def _hold(self, value: Value) -> None:
        self.owned[value.memory] = value
        self._order[value.memory] = len(self._order)
        self._ends[self.last_use[value.memory]].add(value.memory)

    def _share(self, value: Value, other: Value) -> None:
        """Have a value live where another one lived."""
        last = self.last_use[value.memory]
        self.tenants.move(value.memory, other.memory)
        self.last_use[other.memory] = max(last, self.last_use[other.memory])
        if other.memory in self.owned:
            self._ends[self.last_use[other.memory]].add(other.memory)
        if other in self.fresh:
            self.fresh.add(value)
        else:
            self.stays.add(value)
            self.plan.once.append((value, other))


def _fit(value: Value) -> Any:
    """What two values have in common of which one can live in the memory that was made for the other."""
    t = value.tensor
    shape: Any = t.numel() if t.is_contiguous() else (t.shape, t.stride())
    return shape, t.dtype, t.device, t.is_conj(), t.is_neg()


def _function_with_out(call: Call) -> Any:
    """torch's function, for a method or an operator too, that takes the arguments of the call and ``out=``."""
    function, name = call.function, call.name
    if function == getattr(torch.nn.functional, name, None) and isinstance(function, FunctionType):
        function = getattr(nn_functions, name, None) if len(call.args) == 1 else None
    elif getattr(Tensor, getattr(function, "__name__", ""), None) is function or isinstance(function, _METHOD):
        function = getattr(torch, name, None)
    elif function not in (getattr(torch, name, None), getattr(nn_functions, name, None), torch.nn.functional.linear):
        function = None
    if function is None:
        return None
    key = function, _kind(call.args), _kind(call.kwargs)
    if key not in _takes_out:
        _takes_out[key] = _runs_with_out(function, call)
    return function if _takes_out[key] else None


_METHOD = type(Tensor.add)
_takes_out: dict[Any, bool] = {}


def _runs_with_out(function: Any, call: Call) -> bool:
    """Whether torch makes the call with ``out=``: it says so of itself only when it is called."""
    result = call.results[0].tensor
    args, kwargs = mapped((call.args, call.kwargs), Value, lambda value: value.tensor)
    try:
        with torch.no_grad():
            made = function(*args, **kwargs, out=torch.empty_like(result))
    except (TypeError, RuntimeError, ValueError):
        return False
    return isinstance(made, Tensor) and made.shape == result.shape


def _kind(tree: Any) -> Any:
    """What of arguments decides about whether a function takes them."""
    if isinstance(tree, Value):
        return tree.tensor.dim(), tree.tensor.dtype, tree.tensor.device.type
    if isinstance(tree, tuple | list):
        return tuple([_kind(item) for item in tree])
    if isinstance(tree, dict):
        return tuple([(key, _kind(item)) for key, item in tree.items()])
    return type(tree)
