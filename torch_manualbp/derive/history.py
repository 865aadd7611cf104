"""What was done on the way forward, rule by rule: of it the article of a step is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_manualbp._torch import pytree
from torch_manualbp.derive.program import CONSTANT, HELD, Call, Memory, Value, mapped
from torch_manualbp.rules.rule import Rule

if TYPE_CHECKING:
    from torch_manualbp.derive.recording import Past

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
    """The way forward as rules and the calls beside them, on values without numbers.

    It outlives the recording, and holds none of its tensors but those that the program is given for good.
    """

    def __init__(self, past: Past) -> None:
        self._values: dict[Value, Value] = {}
        self._memories: dict[Memory, Memory] = {}
        self.tensors: dict[Value, Tensor] = {}
        """Those that are neither parameters nor data, of the values that they are."""

        self.items: list[Call | Application] = []
        tape, program = past.tape, past.tape.program
        at = 0
        for application in tape.applications:
            begin, end = application.calls
            self.items += map(self._call, program.calls[at:begin])
            outputs = tuple(map(self.value, application.outputs))
            args = mapped(application.args, Value, self.value)
            self.items.append(replace(application, args=args, outputs=outputs))
            at = end
        self.items += map(self._call, program.calls[at : past.calls])
        self.named = {name: self.value(program.value(t)) for name, t in past.named.items()}
        self.inputs = tuple(map(self.value, past.inputs))
        self.C = self.value(program.value(past.C))
        self.output = pytree.tree_map_only(Tensor, lambda t: self.value(program.value(t)), past.output)
        self.activations = {self.value(z): (self.value(a), f) for z, (a, f) in tape.activations.items()}
        self.path_of_loss, self.share, self.device = past.path, past.share, tape.device
        self.default_dtype = torch.get_default_dtype()
        self._values, self._memories = {}, {}  # which hold the tensors of the recording

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
