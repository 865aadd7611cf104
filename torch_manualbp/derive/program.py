"""What a step does, as a list of torch calls on named values.

A :class:`Program` is recorded while its calls run once, on real tensors: what a call views, writes and makes is
read off the tensors themselves. :mod:`~torch_manualbp.derive.plan` then decides in which memory the values live, and
:mod:`~torch_manualbp.derive.source` writes the program out as Python.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import OverloadPacket, without_torch_function
from torch_manualbp.derive.draws import Draws
from torch_manualbp.kernels.products import onednn_linear

__all__ = [
    "Answer",
    "Blocks",
    "Call",
    "Formula",
    "Kernel",
    "Memory",
    "NoMemoryError",
    "Program",
    "Text",
    "Value",
    "leaves_of",
    "mapped",
    "number_name",
    "values_in",
    "words",
]


class NoMemoryError(NotImplementedError):
    """A tensor that no program can hold."""


UNTOUCHED = 1 << 16
"""Numbers in a matrix from which on it has pages of memory to itself."""

PARAMETER, INPUT, HELD, CONSTANT, STATE, MADE = "parameter", "input", "held", "constant", "state", "made"


@dataclass(eq=False)
class Memory:
    """A piece of memory, which several values may view."""

    origin: str
    """Who holds it: the model, the caller, somebody unknown, the program for good, the optimizer, or it is made at each
    step. Numbers that anybody else holds may change from step to step."""


@dataclass(eq=False)
class Value:
    """A tensor of the program."""

    tensor: Tensor
    """The one of the run that was recorded: its shape, strides and dtype are the program's."""

    memory: Memory
    name: str = ""
    is_named: bool = False
    """Whether the name is for good, which the tape gives: the code of a rule has a name of its own for what it gets."""

    number: float | None = None
    """Which Python number it is made of, if it is."""

    @property
    def is_whole(self) -> bool:
        """Whether it covers its memory, each number once, in whatever order."""
        t, step = self.tensor, 1
        for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
            if size != 1 and stride != step:
                return False
            step *= size
        return t.numel() * t.element_size() == t.untyped_storage().nbytes()

    def is_same(self, t: Tensor) -> bool:
        """Whether ``t`` is another tensor object of the very same numbers."""
        same = t.untyped_storage()._cdata == self.tensor.untyped_storage()._cdata
        return same and t.storage_offset() == self.tensor.storage_offset() and self.is_like(Value(t, self.memory))

    def is_like(self, other: Value) -> bool:
        """Whether shape, strides and dtype are the same."""
        a, b = self.tensor, other.tensor
        if a.is_conj() != b.is_conj() or a.is_neg() != b.is_neg():  # lazily conjugated or negated, in the same memory
            return False
        return a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype and a.device == b.device


@dataclass(frozen=True)
class Text:
    """An argument that is an expression of the step's own, such as ``-lr``."""

    text: str


@dataclass(frozen=True)
class Formula(Text):
    """An expression of values, for whose names the text has ``{}``."""

    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Blocks:
    """A loop over the rows of a matrix, some at a time."""

    number: int
    rows: int
    of: int
    """How many rows there are."""

    @property
    def name(self) -> str:
        """The slices of rows."""
        return f"blocks{self.number}"

    @property
    def variable(self) -> str:
        """The slice whose turn it is."""
        return f"rows{self.number}"

    def slices(self) -> list[slice]:
        """All turns."""
        return [slice(i, i + self.rows) for i in range(0, self.of, self.rows)]

    def block_of(self, value: Value) -> Formula:
        """These rows of a value."""
        return Formula(f"{{}}[{self.variable}]", (value,))


@dataclass(eq=False)
class Call:
    """A call of torch: ``results = function(*args, **kwargs)``, with values in place of tensors."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value, ...]
    """The tensors that it returns, in order."""

    is_tuple: bool = False
    returned: Any = None
    """What it returns, with values in place of tensors, where these are not all."""

    made: frozenset[Memory] = frozenset()
    written: frozenset[Memory] = frozenset()
    section: str = ""
    title: tuple[str, ...] = ()
    """What the reader is told where calls with another title end: the layer and its formula."""

    blocks: Blocks | None = None
    """The loop that it stands in."""

    is_random: bool = False
    """Whether it draws random numbers."""

    path: str | None = None
    """The module that it is part of, where that is known."""

    answer: Answer | None = None
    """What it has to return for the program to be the right one, of a call that only asks."""

    _values: tuple[Any, Any, list[Value]] | None = field(default=None, init=False, repr=False)
    """Args and kwargs, and the values among them."""

    _named: tuple[Any, str] | None = field(default=None, init=False, repr=False)
    """The function, and the name of the operation."""

    @property
    def name(self) -> str:
        """The name of the operation, without the marks of operators: ``mul`` of ``torch.mul``, ``*`` and ``.mul``."""
        known = self._named  # since every pass asks for it
        if known is None or known[0] is not self.function:
            self._named = known = self.function, _name_of(self.function)
        return known[1]

    @property
    def is_view(self) -> bool:
        """Whether it only looks at memory in another way."""
        return bool(self.results) and not self.made and not self.written

    def arguments(self) -> list[Value]:
        """The values among the arguments, each time that they stand there."""
        known = self._values  # since every pass asks for them
        if known is None or known[0] is not self.args or known[1] is not self.kwargs:
            self._values = known = self.args, self.kwargs, values_in((self.args, self.kwargs))
        return known[2]


def _name_of(function: Any) -> str:
    name: str = getattr(function, "__name__", "")
    if name == "__get__":
        name = function.__self__.__name__
    name = name.strip("_") if name.startswith("__") else name
    return {"truediv": "div", "true_divide": "div"}.get(name, name)


@dataclass(eq=False)
class Kernel:
    """Calls that are one: the function of a call whose arguments are what they read, and whose results what they
    write that others read."""

    calls: list[Call]
    inputs: list[Value]
    outputs: list[Value]
    __name__ = "kernel"


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


def leaves_of(tree: Any, kinds: Any) -> list[Any]:
    """The items of these kinds in nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    left = [tree]
    while left:  # for every argument of every call, several times: recursion takes twice as long
        item = left.pop()
        kind = type(item)
        if kind in _ATOMS:
            continue
        if kind is tuple or kind is list:
            left.extend(reversed(item))
        elif kind is dict:
            left.extend(reversed(item.values()))
        elif isinstance(item, kinds):
            found.append(item)
        elif kind is slice:
            left += (item.step, item.stop, item.start)
        elif isinstance(item, _SEQUENCES):
            left.extend(reversed(item))
        elif isinstance(item, dict):
            left.extend(reversed(item.values()))
    return found


_SEQUENCES = tuple, list
_ATOMS = {int, float, bool, str, type(None), torch.dtype}


def values_in(tree: Any) -> list[Value]:
    """The values there, also in formulas."""
    leaves = leaves_of(tree, _HOLDS_VALUES)
    return [value for leaf in leaves for value in (leaf.values if isinstance(leaf, Formula) else (leaf,))]


_HOLDS_VALUES = Value, Formula


def mapped(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The tree with ``function`` of each item of ``kind`` in its place."""
    if type(tree) in _ATOMS:
        return tree
    if type(tree) is tuple:  # as most are
        return tuple([item if type(item) in _ATOMS else mapped(item, kind, function) for item in tree])
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, Formula):
        return Formula(tree.text, tuple(mapped(value, kind, function) for value in tree.values))
    if isinstance(tree, torch.Size):
        return tuple(tree)
    if isinstance(tree, tuple | list):
        return type(tree)([mapped(item, kind, function) for item in tree])
    if isinstance(tree, dict):
        return {key: mapped(item, kind, function) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*[mapped(item, kind, function) for item in (tree.start, tree.stop, tree.step)])
    return tree


@dataclass(frozen=True)
class Answer:
    """What a call of a program is to return."""

    value: Any
    where: str
    """Where forward asks."""


class Program:
    """The calls of a step, in order, and the tensors that they are about."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.section = ""
        self.title: tuple[str, ...] = ()
        self.blocks: Blocks | None = None
        """The loop that what is appended stands in."""

        self.draws = Draws()
        """What random numbers are drawn with while the calls run."""

        self.draws_into_layout = False
        """Whether random numbers were drawn for a tensor, whose layout decides about their order."""

        self.at_call: Callable[[], None] | None = None
        """What is to be done before a call is written down."""

        self._values: dict[int, Value] = {}
        self._producers: dict[Value, Call] = {}
        self._memories: dict[int, Memory] = {}
        self._numbers: dict[Any, Value] = {}
        self._number_names: dict[str, Any] = {}
        self._read: set[Memory] = set()
        self._loops = 0
        self._alive: list[Any] = []  # so that no id comes twice

    def add(self, tensor: Tensor, origin: str, name: str) -> Value:
        """Make a tensor known that the program is given."""
        value = self._new(tensor, origin)
        value.name, value.is_named = name, True
        return value

    def number(self, number: float, like: Tensor) -> Value:
        """A Python number as a tensor of no dimension, one for all calls that have it."""
        key = (number, repr(number)[0], like.dtype, like.device)  # since 0.0 == -0.0
        if key not in self._numbers:
            value = self._new(torch.tensor(number, dtype=like.dtype, device=like.device), CONSTANT)
            name = number_name(number)
            while self._number_names.setdefault(name, key[:2]) != key[:2]:
                name += "_"  # of another with the same first digits
            value.name, value.is_named, value.number = name, True, number
            self._numbers[key] = value
        return self._numbers[key]

    def numbers(self) -> list[Value]:
        """The Python numbers that are tensors, in the order in which they came."""
        return list(self._numbers.values())

    def alias(self, tensor: Tensor, of: Tensor) -> Value:
        """Make known a view of all of a tensor, which is a value of its own nevertheless."""
        known = self.value(of)
        value = Value(tensor, known.memory, f"{known.name}_detached", is_named=True)
        self.stands_for(tensor, value)
        self._add(Call(Tensor.detach, (known,), {}, (value,), section=self.section, title=self.title))
        return value

    def value(self, tensor: Tensor) -> Value:
        """The value that this tensor is; what nobody made here is somebody else's."""
        found = self._values.get(id(tensor))
        return self._new(tensor, HELD) if found is None else found

    def same(self, tensor: Tensor) -> Tensor:
        """Another tensor object of the same value, which stays when the first comes to mean another."""
        with without_torch_function():
            alias = tensor.detach()
        self.stands_for(alias, self.value(tensor))
        return alias

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor is one of the program's."""
        return id(tensor) in self._values

    def stands_for(self, tensor: Tensor, value: Value) -> None:
        """From now on the tensor means this value."""
        self._alive += [tensor, self._values.get(id(tensor))]
        self._values[id(tensor)] = value

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call torch, and write it down if it returns tensors."""
        given = list(leaves_of((args, kwargs), Tensor))
        versions = [t._version for t in given]
        drawn = self.draws.count
        output = self._run(function, args, kwargs)
        is_random = self.draws.count != drawn
        outputs = [output] if isinstance(output, Tensor) else list(leaves_of(output, Tensor))
        if any(t.layout is not torch.strided for t in outputs):
            raise NoMemoryError("it makes a tensor that is sparse, which no program holds; make it dense beforehand")
        written = [t for t, version in zip(given, versions, strict=True) if t._version != version]
        written += _written_by_schema(function, args)
        written += leaves_of(kwargs.get("out"), Tensor)  # of which composite functions do not count the version up
        if not outputs and not written:
            return output
        arguments = mapped((args, kwargs), Tensor, self.value)
        if not written:
            self._recognise(outputs, arguments)
            if all(self.knows(t) for t in outputs):
                return output  # what was given, as it was
        if self.at_call is not None:
            self.at_call()
        made: set[Memory] = set()
        results = []
        for t in outputs:
            is_new = t.untyped_storage()._cdata not in self._memories
            results.append(self._values[id(t)] if self.knows(t) else self._new(t, MADE))
            if is_new:
                made.add(results[-1].memory)
        self._add(
            Call(
                function,
                arguments[0],
                arguments[1],
                tuple(results),
                is_tuple=not isinstance(output, Tensor),
                returned=mapped(output, Tensor, self.value),
                made=frozenset(made),
                written=frozenset(self.value(t).memory for t in written),
                section=self.section,
                title=self.title,
                is_random=is_random,
            )
        )
        self.draws_into_layout |= is_random and bool(given)
        return output

    def _run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the call returns. The numbers of a large product on the way back are left out: nobody looks at them when
        it is recorded, and memory that nobody touches takes none."""
        if self.section == "backward" and function in (torch.mm, onednn_linear) and not kwargs:
            a, b = args[0], args[1] if function is torch.mm else args[1].t()
            if a.shape[0] * b.shape[1] >= UNTOUCHED:
                return a.new_empty(a.shape[0], b.shape[1])
        return function(*args, **kwargs)

    def copied(self) -> tuple[Program, Callable[[Value], Value]]:
        """The same calls on values of their own with the same tensors, and which value stands for which."""
        memories: dict[Memory, Memory] = {}
        values: dict[Value, Value] = {}

        def memory(of: Memory) -> Memory:
            if of not in memories:
                memories[of] = Memory(of.origin)
            return memories[of]

        def twin(of: Value) -> Value:
            if of not in values:
                values[of] = Value(of.tensor, memory(of.memory), of.name, of.is_named, of.number)
            return values[of]

        other = Program()
        for call in self.calls:
            args, kwargs, returned, results = mapped((call.args, call.kwargs, call.returned, call.results), Value, twin)
            made, written = (frozenset(map(memory, of)) for of in (call.made, call.written))
            asked = call.blocks, call.is_random, call.path, call.answer
            about = call.is_tuple, returned, made, written, call.section, call.title, *asked
            other._add(Call(call.function, args, kwargs, results, *about))
        for key, tensor_value in self._values.items():
            other._values[key] = twin(tensor_value)
        other._memories = {key: memory(of) for key, of in self._memories.items()}
        other._numbers = {key: twin(number) for key, number in self._numbers.items()}
        other._alive, other.section, other.title = list(self._alive), self.section, self.title
        return other, twin

    def ask(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Answer) -> None:
        """Write a call down that the step depends on the answer of."""
        given, by_name = mapped((args, kwargs), Tensor, self.value)
        self._add(Call(function, given, by_name, (), section=self.section, title=self.title, answer=answer))

    def append(self, function: Any, *args: Any, writes: Iterable[Value] = (), **kwargs: Any) -> None:
        """Write a call down that is not made now, and that returns nothing new."""
        written = frozenset(value.memory for value in writes)
        results = tuple(writes)
        where = {"section": self.section, "title": self.title, "blocks": self.blocks}
        self._add(Call(function, args, kwargs, results, written=written, **where))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def loop(self, rows: int, of: int) -> Iterator[Blocks]:
        """What is appended within is done for so many rows at a time."""
        self._loops += 1
        self.blocks = Blocks(self._loops, rows, of)
        try:
            yield self.blocks
        finally:
            self.blocks = None

    def _add(self, call: Call) -> None:
        self.calls.append(call)
        self._producers.update(dict.fromkeys(call.results, call))
        self._read.update(value.memory for value in call.arguments())

    def is_read(self, value: Value) -> bool:
        """Whether a call has an argument in the memory of this value."""
        return value.memory in self._read

    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of all values."""
        return {value.tensor.dtype for call in self.calls for value in call.results}

    def producer(self, value: Value) -> Call | None:
        """The call that made this value."""
        return self._producers.get(value)

    def _recognise(self, outputs: list[Tensor], arguments: Any) -> None:
        """Take a view of all of an argument, in its shape, for the argument itself."""
        for t in outputs:
            for value in values_in(arguments):
                if not self.knows(t) and value.is_same(t):
                    self.stands_for(t, value)

    def _new(self, tensor: Tensor, origin: str) -> Value:
        with without_torch_function():  # or the tape would take the question for the model's
            storage = tensor.untyped_storage()
        self._alive += [tensor, storage]
        memory = self._memories.setdefault(storage._cdata, Memory(origin))
        value = Value(tensor, memory)
        self._values[id(tensor)] = value
        return value


def _written_by_schema(function: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """What an operator of ``torch.ops`` says that it writes to: not each of them counts the version up."""
    if not isinstance(function, OverloadPacket):
        return []
    arguments = getattr(function, function.overloads()[0])._schema.arguments
    is_written = [argument.alias_info is not None and argument.alias_info.is_write for argument in arguments]
    return [arg for arg, is_w in zip(args, is_written, strict=False) if is_w and isinstance(arg, Tensor)]


def number_name(number: float) -> str:
    words = {1: "one", 2: "two", 0: "zero", 0.5: "half", 3: "three", 6: "six"}
    if abs(number) in words:
        return ("minus_" if repr(number)[0] == "-" else "") + words[abs(number)]
    return "c_" + re.sub(r"\W", "_", f"{number:.6g}".replace("-", "minus_").replace("+", ""))
