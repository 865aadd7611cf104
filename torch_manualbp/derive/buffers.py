"""Buffers that forward updates: running statistics, counters of batches, exponential averages, codebooks.

Forward writes over them where it stands; a step is to be made wholly or not at all. So their new numbers are put in
place together with the update of the parameters:

- ``running_mean.lerp_(mean, 0.1)``, which nobody reads in the same step, moves there as it is;
- of a buffer that is read again after it was changed, or changed in parts, forward works on a copy, and the copy's
  numbers are put in place there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from torch_manualbp.derive.program import MADE, Call, Memory, Program, Value, mapped

__all__ = ["Kept", "changed_buffers", "put_changes_last"]

TITLE = ("what forward has updated",)


class Kept:
    """A block after which tensors have the numbers that they had before it."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = {name: t for name, t in named.items() if not t.requires_grad}
        self.changed: dict[str, Tensor] = {}
        """The numbers at the end of the block, of the tensors that the block has changed."""

    def __enter__(self) -> Kept:
        self._before = {name: t.detach().clone() for name, t in self._named.items()}
        return self

    def __exit__(self, *exception: object) -> None:
        with (
            torch.no_grad(),
            contextlib.suppress(RuntimeError),
        ):  # of a tensor of another shape by now, which is refused
            for name, before in self._before.items():
                t = self._named[name]
                if t.requires_grad:  # by now, since forward has made it of what learns
                    t.detach_()
                t = t.detach()
                if not _are_equal(t, before):
                    self.changed[name] = t.clone()
                    t.copy_(before)


def _are_equal(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    is_nan = (a != a) & (b != b)
    return a.shape == b.shape and bool(((a == b) | is_nan).all())


def changed_buffers(program: Program, named: Iterable[Value]) -> list[Value]:
    """Those of these values that calls of the program have written to."""
    written = {memory for call in program.calls for memory in call.written}
    return [value for value in dict.fromkeys(named) if value.memory in written]


def put_changes_last(program: Program, buffers: list[Value]) -> None:
    """Have the calls that change these be the last ones of the program, in its section of now."""
    last: list[Call] = []
    touching: dict[Memory, list[tuple[int, Call]]] = {value.memory: [] for value in buffers}
    last_write: dict[Memory, int] = {}
    for i, call in enumerate(program.calls):
        last_write.update(dict.fromkeys(call.written, i))
        memories = {value.memory for value in (*call.arguments(), *call.results)} | call.written
        for memory in memories & touching.keys():
            touching[memory].append((i, call))
    copied = [value for value in buffers if not _are_apart(touching[value.memory], last_write, value, buffers)]
    for value in copied:
        program.calls = list(_on_a_copy(program, value))
    moving = {value.memory for value in buffers} - {value.memory for value in copied}
    for call in program.calls:
        if call.written & moving:
            call.section, call.title = program.section, TITLE
            last.append(call)
    ahead = set(last)
    program.calls = [call for call in program.calls if call not in ahead] + last


def _are_apart(
    calls: list[tuple[int, Call]], last_write: dict[Memory, int], buffer: Value, buffers: list[Value]
) -> bool:
    """Whether the calls that change a buffer can wait for the end: nobody reads it after the first of them, each is
    about all of it, and what they read stays as it is.

    Args:
        calls: those that touch its memory, each with its number.
        last_write: by memory the number of the last call that writes to it.
    """
    memory = buffer.memory
    if sum(value.memory is memory for value in buffers) > 1:
        return False
    for i, call in itertools.dropwhile(lambda item: memory not in item[1].written, calls):
        is_it = [value.memory is memory and value.is_like(buffer) for value in call.results]
        if memory not in call.written:
            if not (call.is_view and all(is_it)):
                return False
            continue
        others = (value for value in call.arguments() if value.memory is not memory)
        is_plain = is_it == [True] and len(call.written) == 1 and not call.is_random and not call.is_tuple
        if not is_plain or any(last_write.get(value.memory, -1) > i for value in others):
            return False
    return True


def _on_a_copy(program: Program, buffer: Value) -> Iterator[Call]:
    """The calls, with a copy in the place of the buffer, and last the one that puts the copy's numbers in place."""
    memory, copy = buffer.memory, Memory(MADE)
    twins: dict[Value, Value] = {}

    def twin(value: Value) -> Value:
        if value.memory is not memory:
            return value
        if value not in twins:
            twins[value] = Value(value.tensor, copy, f"{value.name}_new" if value is buffer else value.name)
        return twins[value]

    is_begun = False
    for call in program.calls:
        touches = memory in call.written or any(v.memory is memory for v in (*call.arguments(), *call.results))
        if touches and not is_begun:
            is_begun = True
            made = Call(Tensor.clone, (buffer,), {}, (twin(buffer),), made=frozenset([copy]), section=call.section)
            made.title, made.path = call.title, call.path
            yield made
        if touches:
            call.args, call.kwargs, call.returned, call.results = mapped(
                (call.args, call.kwargs, call.returned, call.results), Value, twin
            )
            call.written = frozenset(copy if m is memory else m for m in call.written)
        yield call
    put = Call(Tensor.copy_, (buffer, twin(buffer)), {}, (buffer,), written=frozenset([memory]))
    put.section, put.title = program.section, TITLE
    yield put
