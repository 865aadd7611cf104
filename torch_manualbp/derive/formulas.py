"""The calls of a program as formulas: operators for functions, and what is used once where it is used."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.derive.passes import is_random
from torch_manualbp.derive.program import Call, Formula, Memory, Text, Value, values_in, words
from torch_manualbp.derive.runner import identifier
from torch_manualbp.derive.source import (
    Given,
    Names,
    argument_text,
    function_text,
    index_text,
    is_method,
    question_text,
    targets_text,
    uses_functional,
)
from torch_manualbp.derive.textbook import APPLY

__all__ = ["Formulas"]

WIDTH = 60
"""Letters up to which a quantity without a name stands where it is used."""

SHAPES = words("reshape view flatten unflatten transpose permute")
WIDTH_OF_SHAPES = 84
"""What has the same numbers in another shape stands where it is used, once, up to so many letters."""

ATOM, POWER, SIGN, PRODUCT, SUM, AND, OR, COMPARISON = 100, 14, 13, 12, 11, 9, 7, 6
"""How closely the operators of Python bind."""

BINARY = {
    **{"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT), "pow": ("**", POWER)},
    **{"matmul": ("@", PRODUCT), "mm": ("@", PRODUCT), "bmm": ("@", PRODUCT), "mv": ("@", PRODUCT)},
    **{"bitwise_and": ("&", AND), "and": ("&", AND), "bitwise_or": ("|", OR), "or": ("|", OR)},
    **{name: (sign, COMPARISON) for name, sign in
       (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))},
    **{"subtract": ("-", SUM), "multiply": ("*", PRODUCT), "divide": ("/", PRODUCT)},
}  # fmt: skip
REVERSED = {"rsub": ("-", SUM), "rdiv": ("/", PRODUCT), "rtruediv": ("/", PRODUCT), "rpow": ("**", POWER)}
REVERSED |= {"radd": ("+", SUM), "rmul": ("*", PRODUCT), "rmatmul": ("@", PRODUCT)}
UNARY = {"neg": "-", "negative": "-", "invert": "~", "bitwise_not": "~", "logical_not": "~"}
ASSIGNED = {"iadd": "+=", "isub": "-=", "imul": "*=", "itruediv": "/="}


class Formulas:
    """The statements of a step.

    Args:
        calls: the calls, of which every one is wanted.
        given: what the step takes and returns.
    """

    def __init__(self, calls: list[Call], given: Given) -> None:
        self.calls = calls
        self.use_functional = any(uses_functional(call.function) for call in calls)
        self._uses = Counter(value for call in calls for value in call.arguments())
        self._uses.update(dict.fromkeys(given.returns, 2))
        self._last_use = {value: i for i, call in enumerate(calls) for value in call.arguments()}
        self._writes: dict[Memory, list[int]] = defaultdict(list)
        for i, call in enumerate(calls):
            for memory in call.written:
                self._writes[memory].append(i)
        self._names = Names(given.settings)
        self.names = {value: self._names(value.name) for value in given.values()}
        """The names of values that have one."""

        self._texts: dict[Value, tuple[str, int]] = {}
        """What stands for a value, and how closely it binds."""

        self._reads: dict[Value, frozenset[Memory]] = {}
        """The memory that the text of a value reads."""

        named = [
            value
            for call in calls
            for value in call.results
            if value.is_named and not self._knows(value) and not self._is_shape(call)
        ]
        for value in dict.fromkeys(named):
            self.names[value] = self._names(value.name)
        self._statements = list(self._written())

    def statements(self) -> Iterator[tuple[Call, str]]:
        """Each line with the call that it ends in."""
        return iter(self._statements)

    def _knows(self, value: Value) -> bool:
        return value in self.names

    def _written(self) -> Iterator[tuple[Call, str]]:
        for i, call in enumerate(self.calls):
            if not isinstance(call.function, str) and self._may_stand_inside(i, call):
                text, level = self._expression(call)
                if len(text) <= (WIDTH_OF_SHAPES if self._is_shape(call) else WIDTH):
                    (value,) = call.results
                    self._texts[value] = text, level
                    self._reads[value] = self._memory_of(call)
                    continue
            yield call, self._statement(call)

    def _may_stand_inside(self, i: int, call: Call) -> bool:
        """Whether a call's result may be written where it is used: it has no name, and nothing changes meanwhile."""
        if len(call.results) != 1 or call.is_tuple or call.written or is_random(call):
            return False
        (value,) = call.results
        if value in self.names or (value.name and not self._is_shape(call)):
            return False
        if self._uses[value] != 1 and not (call.is_view and not value.name):
            return False
        end = self._last_use.get(value, i)
        if self.calls[end].section != call.section:
            return False
        return not any(i < at < end for memory in self._memory_of(call) for at in self._writes[memory])

    def _is_shape(self, call: Call) -> bool:
        """Whether it only gives numbers that are used once another shape."""
        if call.name not in SHAPES or len(call.results) != 1 or call.written or self._uses[call.results[0]] != 1:
            return False
        end = self._last_use.get(call.results[0])
        return end is not None and self.calls[end].name not in ("cat", "stack")  # where there is no room for several

    def _memory_of(self, call: Call) -> frozenset[Memory]:
        own = {value.memory for value in (*call.arguments(), *call.results)}
        return frozenset(own.union(*(self._reads.get(value, frozenset()) for value in call.arguments())))

    def _statement(self, call: Call) -> str:
        function, name = call.function, call.name
        if isinstance(function, str):
            return self._assignment(call)
        if name in ASSIGNED:
            return f"{self._text(call.args[0])} {ASSIGNED[name]} {self._text(call.args[1])}"
        if name == "setitem":
            target, index, item = call.args
            return f"{self._text(target, ATOM)}[{index_text(index, self._text)}] = {self._text(item)}"
        if call.answer is not None:
            return f"expect({question_text(call, self._text)}, {self._text(call.answer.value)})"
        expression, _ = self._expression(call)
        if call.written and not call.made:
            return expression
        for value in call.results:
            if value not in self.names:
                self.names[value] = self._names(value.name or f"{name}_{identifier(call.path or '')}".rstrip("_"))
        if call.returned is not None:
            return f"{targets_text(call.returned, self.names)} = {expression}"
        targets = ", ".join(self.names[value] for value in call.results)
        return f"{targets}{',' if call.is_tuple and len(call.results) == 1 else ''} = {expression}"

    def _assignment(self, call: Call) -> str:
        """A line of the update."""
        if call.function == APPLY:
            name, *args = call.args
            return f"{self._text(name)}({', '.join(map(self._text, args))})"
        target, formula = call.args
        text = self._text(formula)
        if target is None:
            (value,) = call.results
            return f"{self.names[value]} = {text}"
        return f"{self.names[target]}{'[...]' if call.function == '=' else ''} {call.function} {text}"

    def _text(self, arg: Any, level: int = 0) -> str:
        """An argument, in parentheses where it binds less closely than this."""
        if isinstance(arg, Value):
            text, own = (self.names[arg], ATOM) if arg in self.names else self._texts[arg]
            return text if own >= level else f"({text})"
        if type(arg) is Text:
            return arg.text
        if isinstance(arg, Formula):
            return arg.text.format(*(self._text(value, POWER) for value in arg.values))
        if isinstance(arg, int | float) and not isinstance(arg, bool) and level > SIGN and arg < 0:
            return f"({argument_text(arg, self._text)})"
        return argument_text(arg, self._text)

    def _expression(self, call: Call) -> tuple[str, int]:
        function, name, args = call.function, call.name, call.args
        form = getattr(function, "__name__", "")
        if form == "__get__":
            return f"{self._text(args[0], ATOM)}.{name}", ATOM
        if form == "__getitem__":
            return f"{self._text(args[0], ATOM)}[{index_text(args[1], self._text)}]", ATOM
        if function is torch.ops.aten.index and not call.kwargs:
            indices = [":" if index is None else self._text(index) for index in args[1]]
            return f"{self._text(args[0], ATOM)}[{', '.join(indices)}]", ATOM
        operator = None if call.written else self._operator(call)
        if operator is not None:
            return operator
        given = {key: arg for key, arg in call.kwargs.items() if not _is_default(function, key, arg)}
        keywords = [f"{key}={self._text(arg)}" for key, arg in given.items()]
        if getattr(Tensor, form, None) is function or is_method(function, form):
            arguments = [*map(self._text, args[1:]), *keywords]
            return f"{self._text(args[0], ATOM)}.{form}({', '.join(arguments)})", ATOM
        return f"{function_text(function, form)}({', '.join([*map(self._text, args), *keywords])})", ATOM

    def _operator(self, call: Call) -> tuple[str, int] | None:
        """The call as Python's operators, if there are any for it."""
        name, args, kwargs = call.name, call.args, call.kwargs
        if call.function is torch.nn.functional.linear:
            return self._linear(*args, **kwargs)
        if name in UNARY and len(args) == 1 and not kwargs and (name != "logical_not" or _is_bool(args[0])):
            return f"{UNARY[name]}{self._text(args[0], SIGN)}", SIGN
        if name == "t" and len(args) == 1 and args[0].tensor.dim() == 2:
            return f"{self._text(args[0], ATOM)}.T", ATOM
        if len(args) != 2:
            return None
        left, right = args
        if name in ("add", "sub") and set(kwargs) == {"alpha"}:
            sign, level = BINARY[name]
            factor = self._text(kwargs["alpha"], PRODUCT)
            return f"{self._text(left, level)} {sign} {factor} * {self._text(right, PRODUCT + 1)}", level
        if kwargs:
            return None
        if name in REVERSED:
            left, right = right, left
        sign, level = BINARY.get(name) or REVERSED.get(name) or ("", 0)
        if not sign:
            return None
        if level == POWER:
            return f"{self._text(left, POWER + 1)} ** {self._text(right, POWER)}", level
        closely = level + (level == COMPARISON)
        return f"{self._text(left, closely)} {sign} {self._text(right, level + 1)}", level

    def _linear(self, a: Value, W: Value, bias: Value | None = None) -> tuple[str, int] | None:
        """z = a Wᵀ + b."""
        if W.tensor.dim() != 2:
            return None
        product = f"{self._text(a, PRODUCT)} @ {self._text(W, ATOM)}.T"
        return (product, PRODUCT) if bias is None else (f"{product} + {self._text(bias, SUM + 1)}", SUM)


def _is_default(function: Any, key: str, arg: Any) -> bool:
    """Whether a function in Python has this for the argument anyway: torch's own name all of them to a mode."""
    if not isinstance(function, FunctionType) or isinstance(arg, Value):
        return False
    parameter = inspect.signature(function).parameters.get(key)
    return parameter is not None and type(parameter.default) is type(arg) and parameter.default == arg


def _is_bool(arg: Any) -> bool:
    return all(value.tensor.dtype == torch.bool for value in values_in(arg))
