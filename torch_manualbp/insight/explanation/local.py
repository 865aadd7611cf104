"""Local derivatives: how an entry of a rule's output answers to an entry of one of its arguments.

Of a linear layer and a convolution they are its weights, of an elementwise activation f'(z). Of other rules they are
found by the rule's own formulas: rows of the Jacobian by ``backward`` with an upstream of 1 in one place, columns by
its ``jvp`` with such a tangent, whichever are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.insight.trace import Quantity, Stage
from torch_manualbp.rules import Convolved, Diagonal, MatMul, Multiply, Normalization, Product

__all__ = [
    "Edges",
    "TooMuchError",
    "Weighted",
    "column",
    "diagonal",
    "edges",
    "has_slope",
    "other_factor",
    "product_of",
    "wide",
]

MOST_PRODUCTS = 1 << 13
"""Rows or columns of one rule that are computed one by one."""

MOST_NUMBERS = 1 << 28
"""How many numbers these may have together: about a second."""

MOST_DERIVATIVES = 1 << 25
"""Derivatives of a normalisation that are looked at, of half a gigabyte."""

AT_ONCE = 1 << 20
"""Numbers that are computed at once."""

FEW = 64
"""Entries of an output up to which rows are taken: ``backward`` is what the gradients come from."""


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


def has_slope(stage: Stage) -> bool:
    """Whether a number of its own, as f'(z), leads from each entry of the one argument to that of the output in the
    same place."""
    z, a, jacobian = stage.args[0], stage.output, stage.rule.jacobian
    if not isinstance(z, Quantity) or any(arg is z for arg in stage.args[1:]) or len(stage.outputs) > 1:
        return False
    return (
        isinstance(jacobian, Diagonal)
        and jacobian.arguments == (0,)
        and bool(jacobian.slope)
        and z.tensor.shape == a.tensor.shape
    )


@dataclass(frozen=True)
class Weighted:
    """A stage that multiplies its input with weights: a linear layer, or a convolution. Entries are flat indices."""

    stage: Stage
    jacobian: Any
    """A :class:`~torch_manualbp.rules.Product` or :class:`~torch_manualbp.rules.Convolved`."""

    @property
    def input(self) -> Quantity:
        source: Quantity = self.stage.args[self.jacobian.input]
        return source

    @property
    def weight(self) -> Quantity:
        W: Quantity = self.stage.args[self.jacobian.weight]
        return W

    @property
    def bias(self) -> Quantity | None:
        b: Quantity | None = self.stage.args[self.jacobian.bias]
        return b

    @property
    def tensors(self) -> tuple[Any, ...]:
        """a, W, and of a convolution z and its options."""
        a, W = (q.tensor.detach().cpu() for q in (self.input, self.weight))
        return (a, W) if isinstance(self.jacobian, Product) else (a, W, self.stage.output.tensor, self.stage.args[3:])

    def by_input(self, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∂z/∂a for some entries of a: those of a, those of z, and the derivatives."""
        tensors = self.tensors
        if isinstance(self.jacobian, Product):
            tensors = tensors[1:]
        else:
            _refuse_many(self.stage, 0, numbers=len(entries) * self.weight.tensor[:, 0].numel())
        by: tuple[Tensor, Tensor, Tensor] = self.jacobian.by_input(*tensors, entries)
        return by

    def by_weight(self, entry: int) -> tuple[Tensor, Tensor]:
        """∂z/∂W: the entries of z that depend on this entry of W, and the derivatives."""
        by: tuple[Tensor, Tensor] = self.jacobian.by_weight(*self.tensors, entry)
        return by

    def by_bias(self, entry: int) -> tuple[Tensor, Tensor]:
        """∂z/∂b."""
        tensors = self.tensors if isinstance(self.jacobian, Product) else self.tensors[2:]
        by: tuple[Tensor, Tensor] = self.jacobian.by_bias(*tensors, entry)
        return by

    def input_entry(self, q: int, entry: int) -> int:
        """The entry of a that is ∂z/∂W for the entry q of z and this entry of W."""
        return int(self.jacobian.input_entry(*self.tensors, q, entry))

    def weight_entry(self, p: int, q: int) -> int:
        """The entry of W that is ∂z/∂a for the entry p of a and the entry q of z."""
        tensors = self.tensors[1:] if isinstance(self.jacobian, Product) else self.tensors
        return int(self.jacobian.weight_entry(*tensors, p, q))


def product_of(stage: Stage) -> Weighted | None:
    """The product of an input and weights that a stage is, if it is one."""
    jacobian = stage.rule.jacobian
    if isinstance(jacobian, Product) and stage.args[jacobian.weight].tensor.dim() == 2:
        return Weighted(stage, jacobian)
    return Weighted(stage, jacobian) if isinstance(jacobian, Convolved) else None


def other_factor(stage: Stage, source: Quantity, p: int, q: int) -> tuple[Quantity, int] | None:
    """The entry that ∂output[q] / ∂source[p] is, where the rule multiplies two quantities: entry by entry, or as
    matrices."""
    quantities = [arg for arg in stage.args if isinstance(arg, Quantity)]
    if stage.rule not in (Multiply, MatMul) or len(quantities) != 2 or quantities[0] is quantities[1]:
        return None
    x, y = quantities
    if stage.rule is Multiply:
        return (y if source is x else x, p) if x.tensor.shape == y.tensor.shape else None
    if x.tensor.dim() < 2 or x.tensor.dim() != y.tensor.dim() or x.tensor.shape[:-2] != y.tensor.shape[:-2]:
        return None
    n, m, k = *x.tensor.shape[-2:], y.tensor.shape[-1]
    batch, i, j = q // (n * k), q // k % n, q % k
    return (y, (batch * m + p % m) * k + j) if source is x else (x, (batch * n + i) * m + p // k % m)


def diagonal(stage: Stage) -> Tensor:
    """f'(z) of an elementwise rule, of a dropout its mask: what an upstream of ones comes to."""
    return stage.backward(torch.ones_like(stage.output.tensor))[stage.args[0]]


def edges(stage: Stage, source: Quantity, reached: Tensor) -> list[Edges]:
    """The derivatives of the stage's outputs by these entries of ``source``.

    Raises:
        TooMuchError: they would take too many products.
    """
    product = product_of(stage)
    if product is not None and _is_argument_alone(stage, source, product.jacobian.input):
        p, q, value = product.by_input(reached)
        return [Edges(stage, source, stage.output, p, q, wide(value))]
    jacobian = stage.rule.jacobian
    if isinstance(jacobian, Normalization) and _is_argument_alone(stage, source, 0):
        shape, w, eps = stage.args[1], getattr(stage.args[2], "tensor", None), stage.args[-1]
        weights = None if w is None else wide(w)
        z, n = source.tensor.detach().to("cpu", torch.float64), math.prod(shape)
        _refuse_many(stage, 0, numbers=len(reached) * n)
        p, q, value = jacobian.by_input(z, n, weights, eps, reached)
        return [Edges(stage, source, stage.output, p, q, value)]
    if has_slope(stage) and source is stage.args[0]:
        value = wide(diagonal(stage))[reached]
        return [Edges(stage, source, stage.output, reached, reached, value)]
    positions = [i for i, arg in enumerate(stage.args) if arg is source]
    is_diagonal = all(map(stage.rule.jacobian.is_diagonal, positions))
    if is_diagonal and source.tensor.numel() == stage.output.tensor.numel():
        value = wide(stage.backward(torch.ones_like(stage.output.tensor))[source])[reached]
        return [Edges(stage, source, stage.output, reached, reached, value)]
    entries = sum(output.tensor.numel() for output in stage.outputs)
    try:
        found = list((_by_rows if entries <= max(FEW, len(reached)) else _by_columns)(stage, source, reached))
    except NotImplementedError:  # there is no jvp
        found = list(_by_rows(stage, source, reached))
    return [_joined(stage, source, output, [e for e in found if e.target is output]) for output in stage.outputs]


def _by_rows(stage: Stage, source: Quantity, reached: Tensor) -> Iterator[Edges]:
    for i, output in enumerate(stage.outputs):
        _refuse_many(stage, output.tensor.numel())
        for some in torch.arange(output.tensor.numel()).split(_at_once(stage, source)):
            (rows,) = _together(partial(_row, stage, i, source), output.tensor, some)
            row, at = rows[:, reached].nonzero(as_tuple=True)
            yield Edges(stage, source, output, reached[at], some[row], rows[row, reached[at]])


def _by_columns(stage: Stage, source: Quantity, reached: Tensor) -> Iterator[Edges]:
    _refuse_many(stage, len(reached))
    for some in reached.split(_at_once(stage, source)):
        of_outputs = _together(partial(_column, stage, source), source.tensor, some)
        for output, columns in zip(stage.outputs, of_outputs, strict=True):
            at, q = columns.nonzero(as_tuple=True)
            yield Edges(stage, source, output, some[at], q, columns[at, q])


def _at_once(stage: Stage, source: Quantity) -> int:
    """How many rows or columns are computed together."""
    size = source.tensor.numel() + sum(output.tensor.numel() for output in stage.outputs)
    return max(1, AT_ONCE // max(size, 1))


def _together(of: Callable[[Tensor], Sequence[Tensor]], like: Tensor, entries: Tensor) -> list[Tensor]:
    """For each of the entries what ``of`` makes of a tensor that is 1 there and 0 elsewhere, as a row each."""
    ones = torch.zeros(len(entries), *like.shape, dtype=like.dtype, device=like.device)
    ones.view(len(entries), -1).scatter_(1, entries.to(like.device)[:, None], 1)
    try:
        found: Any = torch.func.vmap(of)(ones)
    except NotImplementedError:
        raise
    except Exception:  # it asks what no map can answer, such as whether a number is 0
        found = [torch.stack(tensors) for tensors in zip(*map(of, ones), strict=True)]
    return [t.detach().reshape(len(entries), -1).to("cpu", torch.float64) for t in found]


def _is_argument_alone(stage: Stage, quantity: Quantity, position: int) -> bool:
    return [arg is quantity for arg in stage.args] == [i == position for i in range(len(stage.args))]


def _row(stage: Stage, output: int, source: Quantity, one: Tensor) -> list[Tensor]:
    """The row of the Jacobian of the entry of an output where ``one`` is 1."""
    upstream: list[Tensor | None] = [None] * len(stage.outputs)
    upstream[output] = one
    return [stage.backward(*upstream)[source]]


def column(stage: Stage, quantity: Quantity, p: int) -> list[Tensor]:
    """How each output answers to entry p of an argument: one column of the Jacobian.

    Raises:
        TooMuchError: the rule has no jvp, and so many outputs that rows would take too long.
    """
    one = torch.zeros_like(quantity.tensor, memory_format=torch.contiguous_format)
    one.view(-1)[p] = 1
    try:
        return [wide(t) for t in _column(stage, quantity, one)]
    except NotImplementedError as error:
        _refuse_many(stage, sum(output.tensor.numel() for output in stage.outputs), error)
    found = [torch.zeros(output.tensor.numel(), dtype=torch.float64) for output in stage.outputs]
    for e in _by_rows(stage, quantity, torch.tensor([p])):
        found[stage.outputs.index(e.target)][e.q] = e.value
    return found


def _column(stage: Stage, quantity: Quantity, tangent: Tensor) -> list[Tensor]:
    """By the rule's ``jvp`` how each output answers to a tangent of an argument."""

    def result(moved: Tensor) -> tuple[Tensor, ...]:
        learning = stage.inputs
        args = [moved if arg is quantity and arg in learning else getattr(arg, "tensor", arg) for arg in stage.args]
        out = stage.rule.apply(*args)
        return out if isinstance(out, tuple) else (out,)

    with torch.no_grad():
        pair: Any = torch.func.jvp(result, (quantity.tensor.detach(),), (tangent,))
    # A rule with byproducts hands out its own outputs alone; the others take no gradient.
    zeros = [torch.zeros_like(output.tensor) for output in stage.outputs]
    return [*pair[1], *zeros[len(pair[1]) :]]


def _joined(stage: Stage, source: Quantity, target: Quantity, parts: list[Edges]) -> Edges:
    nothing = torch.zeros(0, dtype=torch.int64)
    p = torch.cat([nothing, *(part.p for part in parts)])
    q = torch.cat([nothing, *(part.q for part in parts)])
    return Edges(stage, source, target, p, q, torch.cat([nothing.double(), *(part.value for part in parts)]))


def _refuse_many(stage: Stage, products: int, error: Exception | None = None, numbers: int = 0) -> None:
    size = sum(output.tensor.numel() for output in stage.outputs)
    if numbers > MOST_DERIVATIVES:
        raise TooMuchError(f"{stage.path}: {stage.rule.__name__} has {numbers:,} derivatives on the way")
    if products > MOST_PRODUCTS or products * size > MOST_NUMBERS:
        name = f"{stage.path}: {stage.rule.__name__}" if stage.path else stage.rule.__name__
        raise TooMuchError(f"the Jacobian of {name} would take {products} products of {size} numbers") from error
