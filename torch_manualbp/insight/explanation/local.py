"""Local derivatives: how an entry of a rule's output answers to an entry of one of its arguments.

Of a linear layer they are its weights, of an elementwise activation f'(z). Of other rules they are found by the
rule's own formulas: rows of the Jacobian by ``backward`` with an upstream of 1 in one place, columns by its ``jvp``
with such a tangent, whichever are fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp.insight.trace import Quantity, Stage
from torch_manualbp.rules import (
    Activation,
    Add,
    Cast,
    Difference,
    Divide,
    Identity,
    Linear,
    Multiply,
    Negate,
    PReLU,
    Reshape,
)
from torch_manualbp.rules.constant import TimesConstant

__all__ = ["Edges", "TooMuchError", "column", "diagonal", "edges", "is_diagonal", "wide"]

MOST_PRODUCTS = 1 << 13
"""Rows or columns of one rule that are computed one by one."""

MOST_NUMBERS = 1 << 28
"""How many numbers these may have together: about a second."""

FEW = 64
"""Entries of an output up to which rows are taken: ``backward`` is what the gradients come from."""

ENTRY_BY_ENTRY = (Add, Cast, Difference, Divide, Identity, Multiply, Negate, Reshape)
"""Rules of which an entry depends on one entry of an argument of as many, that in the same place."""


class TooMuchError(ValueError):
    """There is more between a weight and C than can be looked at entry by entry."""


@dataclass(eq=False)
class Edges:
    """The derivatives of some entries of ``target`` by some entries of ``source``: ∂target[q] / ∂source[p] = value."""

    stage: Stage
    source: Quantity
    target: Quantity
    p: Tensor
    """Entries of ``source``, counted off."""

    q: Tensor
    value: Tensor
    """In float64. Zeros are among them of a linear layer and of what acts entry by entry, and not of other rules."""


def wide(t: Tensor) -> Tensor:
    """The same numbers in float64, as one row, on the CPU, where they are multiplied without further rounding."""
    return t.detach().reshape(-1).to("cpu", torch.float64)


def is_diagonal(stage: Stage) -> bool:
    """Whether each entry of the output depends on one entry of the first argument, that in the same place."""
    z, a = stage.args[0], stage.output
    if not isinstance(z, Quantity) or any(arg is z for arg in stage.args[1:]) or len(stage.outputs) > 1:
        return False
    return issubclass(stage.rule, Activation | TimesConstant | PReLU) and z.tensor.shape == a.tensor.shape


def diagonal(stage: Stage) -> Tensor:
    """f'(z) of an elementwise rule, of a dropout its mask: what an upstream of ones comes to."""
    return stage.backward(torch.ones_like(stage.output.tensor))[stage.args[0]]


def edges(stage: Stage, source: Quantity, reached: Tensor) -> list[Edges]:
    """The derivatives of the stage's outputs by these entries of ``source``.

    Raises:
        TooMuchError: they would take too many products.
    """
    if stage.rule is Linear and stage.args[1].tensor.dim() == 2 and _is_argument_alone(stage, source, 0):
        return [_through_weights(stage, source, reached)]
    if is_diagonal(stage) and source is stage.args[0]:
        value = wide(diagonal(stage))[reached]
        return [Edges(stage, source, stage.output, reached, reached, value)]
    if stage.rule in ENTRY_BY_ENTRY and source.tensor.numel() == stage.output.tensor.numel():
        value = wide(stage.backward(torch.ones_like(stage.output.tensor))[source])[reached]
        return [Edges(stage, source, stage.output, reached, reached, value)]
    entries = sum(output.tensor.numel() for output in stage.outputs)
    if entries <= max(FEW, len(reached)):
        found = list(_by_rows(stage, source, reached))
    else:
        found = list(_by_columns(stage, source, reached))
    return [_joined(stage, source, output, [e for e in found if e.target is output]) for output in stage.outputs]


def _by_rows(stage: Stage, source: Quantity, reached: Tensor) -> Iterator[Edges]:
    for i, output in enumerate(stage.outputs):
        _refuse_many(stage, output.tensor.numel())
        for q in range(output.tensor.numel()):
            row = wide(_row(stage, i, q)[source])[reached]
            there = row != 0
            p = reached[there]
            yield Edges(stage, source, output, p, torch.full_like(p, q), row[there])


def _by_columns(stage: Stage, source: Quantity, reached: Tensor) -> Iterator[Edges]:
    _refuse_many(stage, len(reached))
    for p in reached.tolist():
        for output, of_output in zip(stage.outputs, column(stage, source, p), strict=True):
            q = of_output.ne(0).nonzero().view(-1)
            yield Edges(stage, source, output, torch.full_like(q, p), q, of_output[q])


def _is_argument_alone(stage: Stage, quantity: Quantity, position: int) -> bool:
    return [arg is quantity for arg in stage.args] == [i == position for i in range(len(stage.args))]


def _through_weights(stage: Stage, a: Quantity, reached: Tensor) -> Edges:
    """z_j = Σ_k w_jk a_k  ⇒  ∂z_j/∂a_k = w_jk, of every sample alone."""
    W = stage.args[1].tensor.detach().to("cpu", torch.float64)
    out, into = W.shape
    samples, k = reached // into, reached % into
    q = samples[:, None] * out + torch.arange(out)
    return Edges(stage, a, stage.output, reached.repeat_interleave(out), q.reshape(-1), W.t()[k].reshape(-1))


def _row(stage: Stage, output: int, q: int) -> dict[Quantity, Tensor]:
    """The row of the Jacobian of entry q of an output."""
    upstream: list[Tensor | None] = [None] * len(stage.outputs)
    one = torch.zeros_like(stage.outputs[output].tensor, memory_format=torch.contiguous_format)
    one.view(-1)[q] = 1
    upstream[output] = one
    return stage.backward(*upstream)


def column(stage: Stage, quantity: Quantity, p: int) -> list[Tensor]:
    """How each output answers to entry p of an argument: one column of the Jacobian, by the rule's ``jvp``.

    Raises:
        TooMuchError: the rule has no jvp, and so many outputs that rows would take too long.
    """
    one = torch.zeros_like(quantity.tensor, memory_format=torch.contiguous_format)
    one.view(-1)[p] = 1
    try:
        with torch.no_grad(), forward_ad.dual_level():
            tangents = _tangents(stage, quantity, one)
    except NotImplementedError as error:
        _refuse_many(stage, sum(output.tensor.numel() for output in stage.outputs), error)
        return [
            torch.stack([wide(_row(stage, i, q)[quantity])[p] for q in range(output.tensor.numel())])
            for i, output in enumerate(stage.outputs)
        ]
    zeros = [torch.zeros(output.tensor.numel(), dtype=torch.float64) for output in stage.outputs]
    # A rule with byproducts hands out its first output alone; the others take no gradient.
    return [zero if t is None else wide(t) for zero, t in zip(zeros, [*tangents, *zeros][: len(zeros)], strict=True)]


def _tangents(stage: Stage, quantity: Quantity, tangent: Tensor) -> list[Tensor | None]:
    learning = stage.inputs
    args: list[Any] = []
    for arg in stage.args:
        t = arg.tensor.detach() if isinstance(arg, Quantity) else arg
        args.append(forward_ad.make_dual(t, tangent) if arg is quantity and arg in learning else t)
    result = stage.rule.apply(*args)
    return [forward_ad.unpack_dual(t).tangent for t in (result if isinstance(result, tuple) else (result,))]


def _joined(stage: Stage, source: Quantity, target: Quantity, parts: list[Edges]) -> Edges:
    nothing = torch.zeros(0, dtype=torch.int64)
    p = torch.cat([nothing, *(part.p for part in parts)])
    q = torch.cat([nothing, *(part.q for part in parts)])
    return Edges(stage, source, target, p, q, torch.cat([nothing.double(), *(part.value for part in parts)]))


def _refuse_many(stage: Stage, products: int, error: Exception | None = None) -> None:
    size = sum(output.tensor.numel() for output in stage.outputs)
    if products > MOST_PRODUCTS or products * size > MOST_NUMBERS:
        name = f"{stage.path}: {stage.rule.__name__}" if stage.path else stage.rule.__name__
        raise TooMuchError(f"the Jacobian of {name} would take {products} products of {size} numbers") from error
