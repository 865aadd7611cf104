"""The rules of a step run once more, each as its formula stands in the book, on tensors without numbers.

What runs was recorded with its kernels chosen. Here the same rules are applied to the same arguments on the device
``meta``, where a tensor has a shape and a dtype alone, and there is nothing to choose.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._text import one_line
from torch_manualbp._torch import pytree, without_torch_function
from torch_manualbp.derive.faster import without_likeness
from torch_manualbp.derive.history import Application, History
from torch_manualbp.derive.program import MADE, Call, Memory, Program, Value, leaves_of, mapped
from torch_manualbp.derive.recording import Recording, own_loss, recording_of
from torch_manualbp.derive.runner import RuleRunner
from torch_manualbp.derive.tape import READS, NotDerivableError
from torch_manualbp.rules.rule import Rule

__all__ = ["Replay", "replayed"]

SAY_IT_THEMSELVES = tuple(f"torch_manualbp.rules.{name}" for name in ("structure", "arithmetic"))


def replayed(history: History) -> tuple[Recording, Replay]:
    """The step forward and back as plain formulas.

    Raises:
        NotDerivableError: a rule asks for numbers.
    """
    replay = Replay(history, "meta")
    try:
        return _recording(replay), replay
    except Exception as error:  # an operator that has no kernel there
        with contextlib.suppress(Exception):
            zeros = Replay(history, history.device)
            return _recording(zeros), zeros
        path, _, rule = next(iter(replay.program.title), "").rpartition(": ")
        what = f"the formulas of {rule or 'the step'} cannot be written down without its numbers ({one_line(error)})"
        raise NotDerivableError([(path, what, "read step.program, which is what runs")]) from error


def _recording(replay: Replay) -> Recording:
    history = replay.history
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(history.default_dtype)
    try:
        with torch.no_grad(), replay.program.draws, replay:  # watched by a mode, a formula runs as it stands
            for item in history.items:
                replay.again(item)
            if history.share is not None:
                replay.program.section, replay.program.title = "backward", ()
                replay.backward(replay.tensor(history.C), history.share)
        C = own_loss(replay, replay.tensor(history.C))
    finally:
        torch.set_default_dtype(dtype)
    inputs = tuple(map(replay.value, history.inputs))
    parameters = map(replay.value, history.named.values())
    output = pytree.tree_map_only(Value, replay.value, history.output)
    for z, (a, f) in history.activations.items():
        replay.activations[replay.value(z)] = replay.value(a), f
    return recording_of(replay, C, inputs, parameters, output, history.path_of_loss, history.device)


class Replay(RuleRunner):
    """Applies the rules of a history again.

    Args:
        history: what was done on the way forward.
        device: where: ``"meta"``, or where zeros are to stand for the numbers.
    """

    def __init__(self, history: History, device: str) -> None:
        super().__init__()
        self.history = history
        self.device = device
        self.device_type = history.device
        self.program: _OnDevice = _OnDevice(history.device, device)
        self._twins: dict[Value, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.device != "meta" and getattr(function, "__name__", "") in READS:
            raise RuntimeError(f"{function.__name__} reads numbers, for which zeros stand here")
        return self.program.call(function, args, kwargs or {})

    def tensor(self, value: Value) -> Tensor:
        """What stands here for a value of the history."""
        if value not in self._twins:
            t = value.tensor
            if self.device != "meta":
                with without_torch_function():
                    t = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=self.device).zero_()
            twin = self.program.adopt(t, value.memory, value.name, value.is_named)
            if value in self.history.tensors:
                self.program.given[twin] = self.history.tensors[value]
            self._twins[value] = t
        return self._twins[value]

    def value(self, value: Value) -> Value:
        """The value here of one of the history."""
        return self.program.value(self.tensor(value))

    def again(self, item: Call | Application) -> None:
        """Do once more what was done."""
        self.program.section = item.section
        if isinstance(item, Application):
            self._apply(item)
        elif item.is_view:
            self.program.title = ()
            begin = len(self.program.calls)
            args, kwargs = mapped((item.args, item.kwargs), Value, self.tensor)
            self._bind(item.results, self.program.call(item.function, args, kwargs))
            for call in self.program.calls[begin:]:
                call.path = item.path
        else:
            self.program.title = ()
            self._copy(item)

    def _apply(self, item: Application) -> None:
        args = mapped(item.args, Value, self.tensor)
        with self.within(item.path):
            output = self.run(item.rule, args, item.learns)
        self._bind(item.outputs, output)

    def _heading(self, rule: type[Rule], title: tuple[str, ...]) -> tuple[str, ...]:
        """The line itself says what arithmetic is, and what lays entries out in another shape."""
        if not rule.__module__.startswith(SAY_IT_THEMSELVES):
            return title
        return (self._paths[-1],) if self._paths[-1] else ()

    def _accumulate(self, gradients: dict[Value, Tensor], value: Value, g: Tensor) -> None:
        if value in gradients and not self.program.value(g).is_named:
            self.program.value(g).name = ""  # a term of a sum, and no quantity of its own
        super()._accumulate(gradients, value, g)

    def _bind(self, values: tuple[Value, ...], output: Any) -> None:
        """Have what came out now stand for what came out then."""
        for value, t in zip(values, leaves_of(output, Tensor), strict=False):  # byproducts are now, and were not then
            if t.shape != value.tensor.shape or t.dtype != value.tensor.dtype:
                raise RuntimeError(f"{t.shape} of {t.dtype} came out, where {value.tensor.shape} was")
            self._twins[value] = t
            twin = self.program.value(t)
            self.program.memories[value.memory] = twin.memory
            if value.is_named and twin.memory.origin == MADE:
                twin.name, twin.is_named = value.name, True

    def _copy(self, call: Call) -> None:
        """Record a call beside the rules, without making it."""
        for value in (*call.arguments(), *call.results):
            self.tensor(value)
        args, kwargs, returned, results = mapped(
            (call.args, call.kwargs, call.returned, call.results), Value, self.value
        )
        made, written = (frozenset(map(self.program.memory, of)) for of in (call.made, call.written))
        twin = Call(call.function, args, kwargs, results, call.is_tuple, returned, made, written, call.section)
        twin.is_random, twin.path, twin.answer = call.is_random, call.path, call.answer
        if call.function in (torch.tensor, torch.as_tensor, torch.asarray):
            without_likeness(twin)  # an array is written out
        self.program.add_call(twin)


class _OnDevice(Program):
    """A program of one device that is recorded on another."""

    def __init__(self, device: str, recorded_on: str) -> None:
        super().__init__()
        self._device, self._recorded_on = device, recorded_on
        self.memories: dict[Memory, Memory] = {}
        """By the memory of a value of the history that of its twin."""

        self.given: dict[Value, Tensor] = {}
        """Tensors that are neither parameters nor data, of the values that they are."""

    def memory(self, of: Memory) -> Memory:
        return self.memories.setdefault(of, Memory(of.origin))

    def adopt(self, tensor: Tensor, memory: Memory, name: str, is_named: bool) -> Value:
        """Make a tensor known as a value in the twin of this memory."""
        with without_torch_function():
            storage = tensor.untyped_storage()
        self._memories[storage._cdata] = self.memory(memory)
        value = self._new(tensor, memory.origin)
        value.name, value.is_named = name, is_named
        return value

    def add_call(self, call: Call) -> None:
        """Record a call as it is."""
        self._add(call)

    def _add(self, call: Call) -> None:
        if self._device != self._recorded_on:
            call.args, call.kwargs = mapped((call.args, call.kwargs), torch.device, self._rightly)
            if call.kwargs.get("device") == torch.device("cpu"):  # as somebody would write it
                call.kwargs = {key: arg for key, arg in call.kwargs.items() if key != "device"}
        super()._add(call)

    def _rightly(self, device: torch.device) -> torch.device:
        return torch.device(self._device) if device.type == self._recorded_on else device
