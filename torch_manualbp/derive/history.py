"""What was done on the way forward, rule by rule: of it the article of a step is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.derive.program import CONSTANT, HELD, Call, Memory, Value, mapped
from torch_manualbp.rules.rule import Rule

__all__ = ["Application", "History"]


@dataclass(frozen=True)
class Application:
    """A rule that was applied to arguments."""

    rule: type[Rule]
    args: tuple[Any, ...]
    """What ``forward`` got, with values in the place of tensors."""

    learns: tuple[bool, ...]
    """Which of them need a gradient."""

    outputs: tuple[Value, ...]
    path: str
    """The module that it is part of."""

    section: str
    calls: tuple[int, int]
    """From which to before which call of the program it went."""


class History:
    """The forward of a program as rules and the calls beside them, on values without numbers.

    It outlives the recording, and holds none of its tensors but those that the program is given for good.

    Args:
        calls: those of the program up to the loss.
        applications: the rules that were applied meanwhile.
    """

    def __init__(self, calls: Sequence[Call], applications: Iterable[Application]) -> None:
        self._values: dict[Value, Value] = {}
        self._memories: dict[Memory, Memory] = {}
        self.tensors: dict[Value, Tensor] = {}
        """Those that are neither parameters nor data, of the values that they are."""

        self.default_dtype = torch.get_default_dtype()
        self.items: list[Call | Application] = []
        at = 0
        for application in applications:
            begin, end = application.calls
            self.items += map(self._call, calls[at:begin])
            outputs = tuple(map(self.value, application.outputs))
            args = mapped(application.args, Value, self.value)
            self.items.append(replace(application, args=args, outputs=outputs))
            at = end
        self.items += map(self._call, calls[at:])

    def value(self, of: Value) -> Value:
        """The value without numbers that stands for one of the program."""
        found = self._values.get(of)
        if found is None:
            t = of.tensor
            empty = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            found = Value(empty, self._memory(of.memory), of.name, of.is_named, of.number)
            self._values[of] = found
            if of.memory.origin in (CONSTANT, HELD):
                self.tensors[found] = t
        return found

    def _memory(self, of: Memory) -> Memory:
        return self._memories.setdefault(of, Memory(of.origin))

    def _call(self, call: Call) -> Call:
        args, kwargs, returned, results = mapped(
            (call.args, call.kwargs, call.returned, call.results), Value, self.value
        )
        made, written = (frozenset(map(self._memory, of)) for of in (call.made, call.written))
        twin = replace(call, args=args, kwargs=kwargs, results=results, made=made, written=written)
        twin.returned = returned
        return twin
