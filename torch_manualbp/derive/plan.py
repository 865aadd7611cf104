"""In which memory the values of a program live, and what of it is done once.

A step as it was written down makes a new tensor at every call. Here

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

from torch_manualbp.derive.program import CONSTANT, INPUT, MADE, Call, Memory, Program, Value, mapped, words

__all__ = ["CASTS", "LITERAL", "Plan", "plan"]

LITERAL = 1 << 14
"""Numbers of a NumPy array up to which it is written out."""

POINTWISE = words(
    "add sub mul div neg exp expm1 log log1p tanh sigmoid erf sqrt rsqrt reciprocal abs sign sgn clamp "
    "clamp_min clamp_max maximum minimum gt ge lt le eq ne addcmul pow sin cos xlogy logical_not gelu "
    "silu elu softplus hardswish hardsigmoid hardtanh leaky_relu mish softshrink hardshrink bitwise_and "
    "bitwise_not logical_and"
)
"""Operations entry by entry that take ``out=``, which may be one of their arguments."""

OTHERS = words("mm addmm bmm baddbmm softmax log_softmax gather cat stack index_select sum linear mse_loss")
"""Other operations that take ``out=``."""

ALLOCATIONS = words("empty empty_like new_empty empty_strided")
FILLED = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}
RANDOM = words(
    "bernoulli bernoulli_ rand randn rand_like randn_like randint normal normal_ uniform_ dropout "
    "randperm exponential_ multinomial rrelu random_ native_dropout log_normal_ geometric_ cauchy_"
)
CASTS = words("to float double half bfloat16 type")
COPIES = CASTS | {"contiguous", "clone"}
"""What makes a copy, in another dtype or order."""

NUMBERS = words("add sub mul div add_ sub_ mul_ div_ gt ge lt le eq ne")
"""Operations whose Python number is a tensor of no dimension in disguise: made once, it saves 1.7 of 2.7 µs a call."""


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
    """And the functions that do so."""


def plan(program: Program, results: Iterable[Value], pinned: Iterable[Value] = (), lean: bool = True) -> Plan:
    """Plan the memory of a program.

    Args:
        results: what the step returns, made anew at each step.
        pinned: what must keep its memory to itself after the step.
        lean: whether memory is planned at all; without, each call makes what it returns, as torch.compile likes it.
    """
    results, pinned = list(results), list(pinned)
    calls = [_without_likeness(call) for call in program.calls]
    calls = _needed(calls, [*results, *pinned])
    tenants = _Tenants(calls)
    calls = _without_repetition(calls, [*results, *pinned], tenants)
    calls = _without_copies(calls, [*results, *pinned], tenants)
    if lean:
        calls = [_rewritten(call, program) for call in calls]
    return _Planner(calls, results, pinned, lean, tenants).plan


class _Tenants:
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


def _is_random(call: Call) -> bool:
    return call.is_random or call.name in RANDOM


def _reads(call: Call) -> set[Memory]:
    return {value.memory for value in call.arguments()}


def _writes(call: Call) -> set[Memory]:
    """What a call changes or makes."""
    return {*call.written, *(value.memory for value in call.results if value.memory in call.made)}


def _needed(calls: list[Call], roots: list[Value]) -> list[Call]:
    """Without the calls whose results nobody reads; what changes a parameter or a state is always read, and a random
    number drawn, after which others come."""
    live = {value.memory for value in roots}
    kept = []
    for call in reversed(calls):
        changes_what_stays = any(memory.origin not in (MADE, CONSTANT) for memory in call.written)
        if (
            changes_what_stays
            or _is_random(call)
            or any(value.memory in live for value in call.results)
            or call.written & live
        ):
            live |= _reads(call)
            kept.append(call)
    return kept[::-1]


def _without_likeness(call: Call) -> Call:
    """``torch.zeros(shape)`` for ``torch.zeros_like(t)``: of t it takes the shape alone."""
    name = call.name
    t = call.results[0].tensor if call.results and not call.written else None
    if t is not None and call.function in (torch.tensor, torch.as_tensor, torch.asarray):
        data = next(iter((*call.args, *call.kwargs.values())))
        if type(data).__module__ == "numpy" and data.size <= LITERAL:
            call.function, call.args, call.kwargs = torch.tensor, (data.tolist(),), _options(t)
        return call
    number = call.args[-1] if name in ("full", "new_full", "full_like") and call.args else None
    if t is not None and t.is_contiguous() and type(number) in (bool, int, float):
        call.function, call.args, call.kwargs = torch.full, (tuple(t.shape), number), _options(t)
        return call
    if t is None or (name not in ALLOCATIONS and name not in FILLED):
        return call
    if not t.is_contiguous():
        if name in ALLOCATIONS:
            call.function, call.args, call.kwargs = torch.empty_strided, (tuple(t.shape), t.stride()), _options(t)
        return call
    function = torch.empty if name in ALLOCATIONS else torch.zeros if FILLED[name] == 0 else torch.ones
    call.function, call.args, call.kwargs = function, (tuple(t.shape),), _options(t)
    return call


def _options(t: Tensor) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": t.dtype}  # always: torch.set_default_dtype may say anything later
    return options if t.device.type == "cpu" else {**options, "device": t.device}


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


def _without_repetition(calls: list[Call], results: list[Value], tenants: _Tenants) -> list[Call]:
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
        is_pure = not call.written and call.results and not _is_random(call) and call.name not in ALLOCATIONS
        unchanged = is_pure and (call.is_view or all(last_write.get(value.memory, -1) < i for value in call.results))
        if not unchanged or not wanted.isdisjoint(call.results):
            kept.append(call)
            continue
        key = _key(call)
        at, first = seen.get(key, (-1, None))
        if first is not None and (call.is_view or all(last_write.get(m, -1) < at for m in _reads(call))):
            _merge(tenants, call.results, first.results, instead)
            continue
        seen[key] = (i, call)
        kept.append(call)
    return kept


def _without_copies(calls: list[Call], roots: list[Value], tenants: _Tenants) -> list[Call]:
    """Without the copies that are only made so that a rule returns a tensor of its own."""
    wanted, live = set(roots), {value.memory for value in roots}
    kept: list[Call] = []
    instead: dict[Value, Value] = {}
    last_read: dict[Memory, int] = defaultdict(int)
    last_write: dict[Memory, int] = defaultdict(int)
    for i, call in enumerate(calls):
        last_read.update(dict.fromkeys(_reads(call), i))
        last_write.update(dict.fromkeys(call.written, i))
    for i, call in enumerate(calls):
        _substitute(call, instead)
        if call.name == "clone" and call.made and isinstance(call.args[0], Value) and call.results[0] not in wanted:
            source, copy = call.args[0], call.results[0]
            a, b = source.memory, copy.memory
            is_read = a in live or a.origin != MADE or last_read[a] > i
            if source.is_like(copy) and last_write[a] <= i and not (last_write[b] > i and is_read):
                for last in (last_read, last_write):
                    last[a] = max(last[a], last[b])
                _merge(tenants, (copy,), (source,), instead)
                continue
        kept.append(call)
    return kept


def _substitute(call: Call, instead: dict[Value, Value]) -> None:
    if instead and any(value in instead for value in call.arguments()):
        call.args, call.kwargs = mapped((call.args, call.kwargs), Value, lambda value: instead.get(value, value))


def _merge(
    tenants: _Tenants, values: tuple[Value, ...], others: tuple[Value, ...], instead: dict[Value, Value]
) -> None:
    """Have ``others`` stand for ``values``, and their memory for the memory of these and of all views of it."""
    for value, other in zip(values, others, strict=True):
        instead[value] = other
        if value.is_named and not other.is_named:
            other.name, other.is_named = value.name, True
        tenants.move(value.memory, other.memory)
        value.memory = other.memory


def _rewritten(call: Call, program: Program) -> Call:
    """The same in a form that is called faster, or that takes ``out=``."""
    name, args = call.name, call.args
    if call.kwargs.get("inplace") is False:
        call.kwargs = {key: value for key, value in call.kwargs.items() if key != "inplace"}
    if name == "relu" and not call.kwargs and not call.written:
        call.function, call.args = torch.clamp_min, (args[0], 0)
    elif name in ("rsub",) and len(args) == 2 and not call.kwargs and isinstance(args[1], int | float):
        call.function, call.args = torch.sub, (args[1], args[0])
    if call.name in NUMBERS and len(args) == 2 and not {*call.kwargs} - {"out"}:
        numbers = [i for i, arg in enumerate(call.args) if type(arg) in (int, float)]
        others = [arg.tensor for arg in call.args if isinstance(arg, Value)]
        if len(numbers) == len(others) == 1 and _keeps_digits(call.args[numbers[0]], others[0].dtype):
            number = program.number(call.args[numbers[0]], others[0])
            call.args = tuple(number if i == numbers[0] else arg for i, arg in enumerate(call.args))
            if "out" not in call.kwargs and not call.written:
                call.function = getattr(torch, call.name)
    direct = _DIRECT.get(call.function)
    if direct is not None:
        direct(call)
    return call


def _keeps_digits(number: float, dtype: torch.dtype) -> bool:
    """Whether the operation does the same with the number as a tensor of this dtype: those of fewer digits compute in
    float32, and integers would be made of a float."""
    return dtype in (torch.float32, torch.float64) or (dtype == torch.int64 and isinstance(number, int))


def _directly(function: Any, *names: str, **defaults: Any) -> Callable[[Call], None]:
    """Call ``function``, which is written in C++, where torch.nn.functional's checks take longer than the sum."""

    def rewrite(call: Call) -> None:
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        given = {name: value for name, value in given.items() if name in defaults or value is not None}
        if not set(given) <= {*names, *defaults}:
            return
        values = [given.get(name, defaults.get(name)) for name in defaults]
        tensors = [given[name] for name in names]
        if tensors[0].tensor.shape != tensors[1].tensor.shape and function is torch._C._nn.mse_loss:
            return
        values = [_REDUCTION[v] if isinstance(v, str) else v for v in values]
        call.function, call.args, call.kwargs = function, (*tensors, *values), {}

    return rewrite


_REDUCTION = {"none": 0, "mean": 1, "sum": 2}
_F = torch.nn.functional
_DIRECT: dict[Any, Callable[[Call], None]] = {
    _F.mse_loss: _directly(torch._C._nn.mse_loss, "input", "target", reduction="mean"),
    _F.cross_entropy: _directly(
        torch._C._nn.cross_entropy_loss,
        "input",
        "target",
        weight=None,
        reduction="mean",
        ignore_index=-100,
        label_smoothing=0.0,
    ),
    _F.nll_loss: _directly(
        torch._C._nn.nll_loss_nd, "input", "target", weight=None, reduction="mean", ignore_index=-100
    ),
    _F.binary_cross_entropy: _directly(
        torch._C._nn.binary_cross_entropy, "input", "target", weight=None, reduction="mean"
    ),
}


class _Planner:
    """Goes through the calls once and says of each result where it lives."""

    def __init__(
        self, calls: list[Call], results: list[Value], pinned: list[Value], lean: bool, tenants: _Tenants
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
        """And whose numbers are, too."""

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
            for memory in (*_reads(call), *(value.memory for value in call.results), *call.written):
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
        if call.is_view and all(self._stays(value) for value in arguments):
            self._once(call, constant=all(self._is_constant(value) for value in arguments))
        elif call.name in ALLOCATIONS and call.made and self.lean and call.results[0].memory not in self.results:
            self._once(call)
            self._hold(call.results[0])
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
        if call.written or _is_random(call) or not call.made or call.made & (self.changed | self.results):
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
        if value.memory not in self.pinned:
            if call.name in POINTWISE:
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
            if free := self._free[_fit(value)]:
                self._share(value, heapq.heappop(free)[1])
                return
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
        function = getattr(torch._C._nn, name, None) if len(call.args) == 1 else None
    elif getattr(Tensor, getattr(function, "__name__", ""), None) is function or isinstance(function, _METHOD):
        function = getattr(torch, name, None)
    elif function not in (getattr(torch, name, None), getattr(torch._C._nn, name, None), torch.nn.functional.linear):
        function = None
    if function is None:
        return None
    key = function, _kind(call.args), _kind(call.kwargs)
    if key not in _takes_out:
        _takes_out[key] = _runs_with_out(function, call)
    return function if _takes_out[key] else None


_METHOD = type(torch._C.TensorBase.add)
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
