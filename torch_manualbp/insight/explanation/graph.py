"""All that lies between one entry and C: which entries it reaches, and the derivatives between them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torch_manualbp._progress import Progress
from torch_manualbp.insight.explanation.local import Edges, TooMuchError, edges, wide
from torch_manualbp.insight.network import is_of_loss
from torch_manualbp.insight.trace import Quantity, Trace

__all__ = ["Graph", "graph_from", "through_the_loss"]

MOST_EDGES = 1 << 23
"""Derivatives between entries that are kept, of 24 bytes each."""


@dataclass(eq=False)
class Graph:
    """From the entry ``start`` of ``source`` to C."""

    source: Quantity
    start: int
    edges: tuple[Edges, ...]
    """In the order of the forward."""

    reached: dict[Quantity, Tensor]
    """Which entries of each quantity depend on the start, in order."""

    ends: dict[Quantity, Tensor]
    """∂C/∂(each entry) by way of the loss alone, of the quantities that the loss takes."""

    @cached_property
    def leaving(self) -> dict[Quantity, list[int]]:
        """Which of the edges begin at each quantity."""
        leaving: dict[Quantity, list[int]] = defaultdict(list)
        for number, part in enumerate(self.edges):
            leaving[part.source].append(number)
        return leaving


def graph_from(
    trace: Trace, source: Quantity, start: int, through_loss: bool, progress: Progress | None = None
) -> Graph:
    """What ``start`` reaches.

    Args:
        through_loss: go through the single operations of the loss, too, up to C.
        progress: what is told of the operations.

    Raises:
        TooMuchError: that is too much to be looked at entry by entry.
    """
    reached: dict[Quantity, Tensor] = {source: torch.tensor([start])}
    found: list[Edges] = []
    count = 0
    for n, stage in enumerate(trace.stages):
        if progress is not None:
            progress.at(f"operation {n} of {len(trace.stages)}")
        if is_of_loss(trace, stage) and not through_loss:
            continue
        if all(output.gradient is None for output in stage.outputs):
            continue
        for argument in dict.fromkeys(stage.inputs):
            if argument not in reached:
                continue
            for part in edges(stage, argument, reached[argument]):
                count += len(part.value)
                if count > MOST_EDGES:
                    raise TooMuchError(f"more than {MOST_EDGES} derivatives lie between {source.name} and C")
                if len(part.value) and part.target.gradient is not None:
                    found.append(part)
                    reached[part.target] = _entries(part.target, reached.get(part.target), part.q)
    ends = {trace.C: torch.ones(1, dtype=torch.float64)} if trace.C in reached else {}
    if not through_loss:
        ends |= {q: g for q in reached if (g := through_the_loss(trace, q)) is not None}
    return Graph(source, start, tuple(found), reached, ends)


def _entries(quantity: Quantity, before: Tensor | None, more: Tensor) -> Tensor:
    """Both together, each once and in order."""
    is_there = torch.zeros(quantity.tensor.numel(), dtype=torch.bool)
    is_there[more] = True
    if before is not None:
        is_there[before] = True
    return is_there.nonzero().view(-1)


def through_the_loss(trace: Trace, quantity: Quantity) -> Tensor | None:
    """∂C/∂(quantity) as far as the loss takes it itself."""
    total: Tensor | None = None
    for stage in quantity.used_by:
        if is_of_loss(trace, stage):
            upstream = [output.gradient for output in stage.outputs]
            if any(g is not None for g in upstream) and quantity in (back := stage.backward(*upstream)):
                g = wide(back[quantity])
                total = g if total is None else total + g
    return total
