"""What the losses of single entries share: broadcasting, dtypes, the reduction, and what to keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_manualbp.rules import evaluate
from torch_manualbp.rules.evaluate import is_free, is_written_down, keeps_arguments, records_nothing
from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = [
    "PointwiseLoss",
    "fits_blocks",
    "in_blocks",
    "product_with",
    "reduced",
    "reduced_in_blocks",
    "share_of_each",
    "with_copies",
]

Partial = Callable[..., Tensor]
Reads = Callable[..., tuple[tuple[int, ...], ...]]
Positions = Callable[..., tuple[int, ...]]


class PointwiseLoss(Rule):
    """A loss whose C_i is a function of entry i of each of its tensors, after these are broadcast to one shape.

    ::

        C = Σ C_i / n
        ⇒
        ∂C/∂x_i = ∂C_i/∂x_i g / n           for each tensor x, summed over the entries that it was broadcast to

    Its arguments are the tensors, the options and, last, the reduction: ``"mean"`` has n = the number of entries,
    ``"batchmean"`` n = the number of rows of the first tensor, ``"sum"`` and ``"none"`` have n = 1. A loss owes

    - ``forward(*tensors, *options, reduction)``;
    - ``partials``: for each tensor x the function ``partial(*tensors, *options)`` that is ∂C_i/∂x_i, or None for a
      tensor that takes no gradient;
    - ``reads(*options)``, if some partial does with fewer tensors: the positions of those that each partial uses;
    - ``factor``, if it is not 1: what all partials have in common;
    - ``copied(*options)``, if torch lets the caller change an argument before backward that a partial reads: the
      positions of such. The loss is a :class:`RuleWithByproducts` then, and its forward ends :func:`with_copies`.

    From these follow ``backward`` and, since ∂C_i/∂x_i times a tangent is the tangent of C_i, ``jvp``.
    Kept: the tensors that the needed gradients read.
    """

    partials: ClassVar[tuple[Partial | None, ...]] = ()
    reads: ClassVar[Reads | None] = None
    factor: ClassVar[float] = 1
    copied: ClassVar[Positions | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "partials" in vars(cls):
            for method in _calculus(cls.partials, cls.reads, cls.factor, cls.copied):
                if method.__name__ not in vars(cls):
                    setattr(cls, method.__name__, staticmethod(method))
        super().__init_subclass__(**kwargs)


def _calculus(
    partials: tuple[Partial | None, ...], reads: Reads | None, factor: float, copied: Positions | None
) -> tuple[Callable[..., Any], ...]:
    """The methods of a loss with these partial derivatives. They are closures, since torch.compile cannot trace a
    Function's class methods."""
    tensors_of_loss = tuple(range(len(partials)))  # as a range torch.compile cannot read it
    all_of_them = (tensors_of_loss,) * len(partials)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = list(inputs[: len(partials)])
        ctx.options = inputs[len(partials) : -1]
        ctx.reduction = inputs[-1]
        ctx.shapes = tuple([None if t is None else t.shape for t in tensors])
        ctx.dtypes = tuple([None if t is None else t.dtype for t in tensors])
        read = all_of_them if reads is None else reads(*ctx.options)
        kept = [j for i in tensors_of_loss if ctx.needs_input_grad[i] for j in read[i]]
        ctx.copies = ()
        if copied is not None and isinstance(output, tuple):
            ctx.copies = copied(*ctx.options)
            for i, copy in zip(ctx.copies, output[1:], strict=True):
                tensors[i] = copy
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[t if i in kept else None for i, t in enumerate(tensors)])
        ctx.save_for_forward(*tensors)

    def backward(ctx: Any, g: Tensor | None, *of_copies: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = [t.conj() if t is not None and t.is_complex() else t for t in ctx.saved_tensors]
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, dx in zip(ctx.copies, of_copies, strict=False):  # none, where C alone has a gradient
            gradients[i] = dx if ctx.needs_input_grad[i] else None
        if g is None:
            return tuple(gradients)
        if factor != 1:
            g = widened(g) * factor
        if ctx.reduction not in ("none", "sum"):
            g = widened(g) / max(_entries(ctx.shapes, ctx.reduction), 1)  # of an empty batch 0, and not 0 / 0
        if ctx.reduction != "none":
            g = g.expand(_shape(ctx.shapes)) if _broadcasts(ctx.shapes) else g
        for i, partial in enumerate(partials):
            if partial is not None and ctx.needs_input_grad[i]:
                dx = product_with(g, partial, tensors, ctx.options, ctx.dtypes[i]).sum_to_size(ctx.shapes[i])
                of_copy = gradients[i]
                gradients[i] = dx if of_copy is None else dx + of_copy
        return tuple(gradients)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        tensors = _in_one_dtype(ctx.saved_tensors)
        dC: Any = 0
        for partial, dx in zip(partials, tangents[: len(partials)], strict=True):
            if partial is not None and dx is not None:
                dC = dC + partial(*tensors, *ctx.options) * (widened(dx) * factor)
        if not isinstance(dC, Tensor):  # tangents of tensors that take no gradient, alone
            dC = next(dx for dx in tangents if dx is not None).new_zeros(()).expand(_shape(ctx.shapes))
        if ctx.reduction != "none":
            dC = dC.sum()
        if ctx.reduction not in ("none", "sum"):
            dC = dC / max(_entries(ctx.shapes, ctx.reduction), 1)
        dC = dC.to(_promoted([t.dtype for t in ctx.saved_tensors if t is not None]))
        if not ctx.copies:
            return dC
        of_copies = [(i, tangents[i]) for i in ctx.copies]
        return (dC, *[torch.zeros_like(ctx.saved_tensors[i]) if dx is None else dx.clone() for i, dx in of_copies])

    return setup_context, backward, jvp


def reduced(C: Tensor, reduction: str) -> Tensor:
    """C of the C_i, for ``"none"``, ``"sum"`` and ``"mean"``."""
    if reduction == "none":
        return C
    return C.sum() if reduction == "sum" else C.mean()


def with_copies(C: Tensor, tensors: Sequence[Tensor], read: Sequence[Sequence[int]], copied: Sequence[int]) -> Any:
    """What the forward of a loss returns that has ``copied``: C, and copies of those if a needed gradient reads some.

    torch keeps a tensor computed from such an argument, as large as the copy, so that the argument may change. It is
    all of them or none, since under torch.func's transforms ``setup_context`` has other needed gradients to go by.
    """
    if keeps_arguments(*tensors) or torch._C._are_functorch_transforms_active():
        return C
    kept = [j for t, of_t in zip(tensors, read, strict=True) if t.requires_grad for j in of_t]
    return (C, *[tensors[i].clone() for i in copied]) if any(i in kept for i in copied) else C


def share_of_each(g: Tensor, reduction: str, n: int) -> Tensor:
    """∂C/∂C_i: g / n of a mean; and of the empty mean g, so that no derivative is the empty sum's 0 times 1 / 0."""
    return g / max(n, 1) if reduction == "mean" else g


def reduced_in_blocks(loss: Callable[..., Tensor], *tensors: Tensor | None, reduction: str) -> Tensor:
    """``loss(*tensors, reduction=reduction)``, its sums in cache-sized blocks where that is faster: ATen writes the
    C_i, and for most losses several intermediates, before it adds them up."""
    if reduction not in ("sum", "mean") or not fits_blocks(*tensors) or not _sums_exactly(*tensors):
        return loss(*tensors, reduction=reduction)
    shape = _shape([None if t is None else t.shape for t in tensors])
    C = torch.stack([loss(*block, reduction="sum") for block in _blocks(shape, *tensors)]).sum()
    return C / math.prod(shape) if reduction == "mean" else C


def product_with(
    g: Tensor, partial: Partial, tensors: Sequence[Tensor | None], options: tuple[Any, ...], dtype: torch.dtype
) -> Tensor:
    """∂C_i/∂x_i g, computed in widened precision and rounded once, to ``dtype``."""
    derivative = partial(*_in_one_dtype(tensors), *options)
    fits = derivative.dtype == g.dtype == dtype and (g.dim() == 0 or g.shape == derivative.shape)
    if fits and records_nothing(derivative, g) and is_free(derivative, *tensors):
        return derivative.mul_(g)  # at 4096×1000 a pass over fresh memory takes twice as long as one in place
    return in_dtype(dtype, derivative * widened(g))


def in_blocks(
    formula: Callable[..., Tensor], tensors: Sequence[Tensor], options: tuple[Any, ...], dtype: torch.dtype
) -> Tensor:
    """``formula(*tensors, *options)``, which is of ``dtype``, in cache-sized blocks where that is faster."""
    if not fits_blocks(*tensors):
        return formula(*tensors, *options)
    shape = _shape([t.shape for t in tensors])
    result = torch.empty(shape, dtype=dtype)
    for into, *block in _blocks(shape, result, *tensors):
        into.copy_(formula(*block, *options))
    return result


def fits_blocks(*tensors: Tensor | None) -> bool:
    """Whether a formula of these may, and should, be evaluated in blocks."""
    given = [t for t in tensors if t is not None]
    return records_nothing(*given) and not is_written_down() and any(t.numel() >= 2 * evaluate.BLOCK for t in given)


def _sums_exactly(*tensors: Tensor | None) -> bool:
    """Whether no sum of a block would be rounded to fewer digits than the sum of all is."""
    dtypes = {t.dtype for t in tensors if t is not None}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}


def _blocks(shape: torch.Size, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The tensors, which broadcast to ``shape``, in blocks of corresponding entries."""
    if all(t is None or not t.dim() or (t.shape == shape and t.is_contiguous()) for t in tensors):
        tensors = tuple([t.view(-1) if t is not None and t.dim() else t for t in tensors])
        shape = torch.Size([math.prod(shape)])
    rows = max(evaluate.BLOCK * shape[0] // math.prod(shape), 1)
    parts = [
        t.split(rows) if t is not None and t.dim() == len(shape) and t.shape[0] == shape[0] else itertools.repeat(t)
        for t in tensors
    ]
    return zip(*parts, strict=False) if shape[0] > 1 else iter([tensors])


def _entries(shapes: Sequence[Any], reduction: str) -> int:
    """n: the number of entries or, for ``"batchmean"``, of rows."""
    if reduction == "batchmean":
        return shapes[0][0] if len(shapes[0]) else 1
    return math.prod(_shape(shapes))


def _broadcasts(shapes: Sequence[Any]) -> bool:
    return any(shape is not None and shape != shapes[0] for shape in shapes)


def _shape(shapes: Sequence[Any]) -> torch.Size:
    """The shape of the C_i."""
    if not _broadcasts(shapes):
        return shapes[0]
    return torch.broadcast_shapes(*[shape for shape in shapes if shape is not None])


def _in_one_dtype(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """As the forward does, also for a target of bools, which have no minus."""
    given = [t for t in tensors if t is not None]
    if not given:
        return list(tensors)
    dtype = _promoted([t.dtype for t in given])
    return [None if t is None else widened(t.to(dtype)) for t in tensors]


def _promoted(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    promoted = dtypes[0]
    for dtype in dtypes[1:]:
        if dtype != promoted:
            promoted = torch.promote_types(promoted, dtype)
    return promoted
