"""Runs of calls that become one kernel each: entry by entry, along dimensions, and copies in another order.

A matrix product, a random number, a call that writes to what the run has not made, and whatever is not listed here end
a run, if they read what it makes; otherwise they are done before it. So the calls keep the order of their data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from torch_manualbp.derive.passes import ALLOCATIONS, is_random, needed, reads
from torch_manualbp.derive.plan import CASTS, POINTWISE
from torch_manualbp.derive.program import CONSTANT, MADE, Call, Kernel, Memory, Text, Value, leaves_of, words

__all__ = ["in_runs"]

ENTRYWISE = POINTWISE | CASTS
ENTRYWISE |= words(
    "cat where masked_fill relu square rsub clone contiguous erfc lerp exp2 reshape flatten relu6 selu celu"
)
ENTRYWISE |= words("logsigmoid tanhshrink softsign sinh cosh atan floor ceil isnan isfinite logical_or")

IN_PLACE = words("add_ sub_ mul_ div_ neg_ exp_ exp2_ erf_ tanh_ sigmoid_ sqrt_ rsqrt_ addcmul_ square_ clamp_ copy_")
IN_PLACE |= words("clamp_min_ clamp_max_ reciprocal_ log_ log1p_ expm1_ masked_fill_ pow_ zero_ fill_")

ALONG = words("sum mean amax softmax log_softmax logsumexp")
"""Reductions, and what needs some."""

NORMS = words("native_layer_norm")
"""What returns several results, of which each is whole."""

FEW = 1 << 18
"""Numbers up to which a sum over the samples is part of a run: of more, a kernel would go in strides."""

SLOW = words("tanh elu selu celu")
"""What a kernel computes faster than ATen, on its own too: tanh of 256×256 in 100 µs for 177, ELU in 26 for 98."""

WORTH = 1 << 12
"""Numbers from which on it does."""

CALLS = 100
"""Calls of a run: a compiler's time grows with them."""

APART = "update", "gradients", "buffers"
"""The sections that are made line by line, so that an exception finds out where it came."""

DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.int32}


def in_runs(calls: list[Call], roots: list[Value], returned: Iterable[Value]) -> list[Call]:
    """The calls, with a call of a :class:`Kernel` for each run.

    Args:
        roots: the values that are wanted at the end.
        returned: those of them that are made anew at each step, which no kernel writes.
    """
    fresh = {value.memory for value in returned}
    found: list[Call] = []
    run = _Run()
    order = {section: i for i, section in enumerate(dict.fromkeys(call.section for call in calls))}

    def end() -> list[Call]:
        ended = run.end()
        for kernel in (call for call in ended if found and isinstance(call.function, Kernel)):
            kernel.section = max(kernel.section, found[-1].section, key=order.__getitem__)
        return ended

    for call in calls:
        if _fits(call, run, fresh):
            run.add(call)
            if len(run.calls) >= CALLS:
                found += end()
                run = _Run()
            continue
        found += run.allocations(reads(call) | call.written)
        if call.section in APART or call.written & (run.reads | run.made) or reads(call) & run.made:
            found += end()
            run = _Run()
        found.append(call)
    return _narrowed(needed([*found, *end()], roots), roots)


class _Run:
    """Calls that may become one kernel."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.made: set[Memory] = set()
        self.reads: set[Memory] = set()
        self.written: set[Memory] = set()

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self.made |= call.made
        self.reads |= reads(call)
        self.written |= call.written

    def allocations(self, memories: set[Memory] | None = None) -> list[Call]:
        """Those of this memory, or all, that the run has not written to, which it gives up."""
        unwritten = self.made - self.written
        found = [c for c in self.calls if c.name in ALLOCATIONS and c.made <= unwritten]
        if memories is not None:
            found = [c for c in found if c.made <= memories]
        for call in found:
            self.made -= call.made
        views = [c for c in self.calls if c.is_view and any(reads(c) <= call.made for call in found)]
        self.calls = [c for c in self.calls if c not in found and c not in views]
        return [*found, *views]

    def end(self) -> list[Call]:
        """The call of the kernel, and the views of what it makes; or the calls as they are, if they are few."""
        before = self.allocations()
        calls = self.calls
        done = [call for call in calls if not call.is_view and call.name not in ALLOCATIONS]
        is_slow = any(call.name in SLOW and call.results[0].tensor.numel() >= WORTH for call in done)
        if len(done) < 2 and not is_slow:
            return [*before, *calls]
        produced = {value for call in calls for value in call.results}
        inputs = dict.fromkeys(value for call in calls for value in call.arguments() if value not in produced)
        outputs = dict.fromkeys(v for call in calls if call.made for v in call.results)
        kernel = Kernel([*calls], [*inputs], [*outputs])
        whole = Call(kernel, tuple(inputs), {}, tuple(outputs), is_tuple=True, made=frozenset(self.made))
        last = calls[-1]
        heads = dict.fromkeys(call.title[0].split(":   ")[0] for call in calls if call.title)
        whole.section, whole.title = last.section, (", ".join(heads),) if heads else ()
        return [*before, whole, *(call for call in calls if call.is_view)]


def _narrowed(calls: list[Call], roots: list[Value]) -> list[Call]:
    """The same with kernels that write what others read, and nothing else."""
    wanted = {value.memory for value in roots}
    found: list[Call] = []
    for call in reversed(calls):
        kernel = call.function
        if isinstance(kernel, Kernel):
            results = tuple(value for value in call.results if value.memory in wanted)
            kernel.calls = needed(kernel.calls, [*results])
            kernel.outputs = [*results]
            read = {value for inner in kernel.calls for value in inner.arguments()}
            kernel.inputs = [value for value in kernel.inputs if value in read]
            call.args, call.results = tuple(kernel.inputs), results
            call.made = frozenset(value.memory for value in results)
            if not results:
                continue
        wanted |= reads(call) | call.written
        found.append(call)
    return found[::-1]


def _fits(call: Call, run: _Run, fresh: set[Memory]) -> bool:
    """Whether a call may be part of the run."""
    if call.section in APART or call.blocks is not None or is_random(call):
        return False
    if call.is_view:
        return bool(reads(call) & run.made)
    if not call.results or any(v.memory in fresh or v.memory.origin not in (MADE, CONSTANT) for v in call.results):
        return False
    if not _is_plain(call):
        return False
    if call.name in NORMS:
        return all(v.is_whole and v.tensor.numel() <= FEW for v in call.results)
    if len(call.results) != 1 or call.is_tuple or isinstance(call.returned, tuple | list):
        return False
    value = call.results[0]
    if call.written:
        written = call.name in IN_PLACE or ("out" in call.kwargs and call.name in ENTRYWISE)
        return written and call.written <= run.made and value.is_whole
    if not call.made or "out" in call.kwargs or not value.is_whole:
        return False
    if call.name in ALLOCATIONS:
        return True
    return call.name in ENTRYWISE or (call.name in ALONG and _is_along(call))


def _is_plain(call: Call) -> bool:
    """Whether all that the call takes and makes is on the CPU, of a dtype that kernels have, and known before."""
    values = [*call.arguments(), *call.results]
    if not all(v.tensor.device.type == "cpu" and v.tensor.dtype in DTYPES and v.tensor.numel() for v in values):
        return False
    return not leaves_of((call.args, call.kwargs), Text)


def _is_along(call: Call) -> bool:
    """Whether a reduction goes along the last dimension, or is small."""
    t = call.args[0].tensor if isinstance(call.args[0], Value) else None
    if t is None:
        return False
    dims: Any = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    dims = [dims] if isinstance(dims, int) else dims
    along = isinstance(dims, tuple | list) and [d % max(t.dim(), 1) for d in dims] == [t.dim() - 1]
    return along or t.numel() <= FEW
