"""What the losses of single entries share: broadcasting, dtypes, the reduction, and what to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, formula, in_dtype, learning, widened

__all__ = ["EntrywiseLoss"]

Partial = Callable[..., Tensor]
Reads = Callable[..., tuple[tuple[int, ...], ...]]
Positions = Callable[..., tuple[int, ...]]


class EntrywiseLoss(Rule):
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
      positions of such. The loss is a :class:`RuleWithByproducts` then, which owes ``alone`` in place of ``forward``
      and keeps copies of them.

    From these follow ``backward`` and, since ∂C_i/∂x_i times a tangent is the tangent of C_i, ``jvp``.
    Kept: the tensors that the needed gradients read.
    """

    partials: ClassVar[tuple[Partial | None, ...]] = ()
    reads: ClassVar[Reads | None] = None
    factor: ClassVar[float] = 1
    copied: ClassVar[Positions | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = vars(cls)
        if "partials" in own:
            for method in _calculus(cls.partials, cls.reads, cls.factor, cls.copied):
                if method.__name__ not in own:
                    setattr(cls, method.__name__, staticmethod(method))
        if "copied" in own and cls.copied is not None:
            cls.forward = staticmethod(  # type: ignore[method-assign]
                _with_copies(own["alone"], len(cls.partials), cls.reads, cls.copied)
            )
        super().__init_subclass__(**kwargs)


def _calculus(
    partials: tuple[Partial | None, ...], reads: Reads | None, factor: float, copied: Positions | None
) -> tuple[Callable[..., Any], ...]:
    """The methods of a loss with these partial derivatives. They are closures, since torch.compile cannot trace a
    Function's class methods."""
    tensors_of_loss = tuple(range(len(partials)))  # as a range torch.compile cannot read it
    all_of_them = (tensors_of_loss,) * len(partials)
    products = [None if partial is None else _product_with(partial, len(partials)) for partial in partials]

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
        for i, product in enumerate(products):
            if product is not None and ctx.needs_input_grad[i]:
                dx = product(*tensors, *ctx.options, g, ctx.dtypes[i]).sum_to_size(ctx.shapes[i])
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


def _product_with(partial: Partial, tensors: int) -> Callable[..., Tensor]:
    """``product(*tensors, *options, g, dtype)`` = ∂C_i/∂x_i g, computed in widened precision and rounded once, to
    ``dtype``."""

    @formula(by="entries")
    def product(*args: Any) -> Tensor:
        *options, g, dtype = args[tensors:]
        return in_dtype(dtype, partial(*_in_one_dtype(args[:tensors]), *options) * widened(g))

    return product


def _with_copies(alone: Any, tensors: int, reads: Reads | None, copied: Positions) -> Callable[..., Any]:
    """A forward that returns C, and copies of the arguments at the positions ``copied`` if a needed gradient reads one.

    torch keeps a tensor computed from such an argument, as large as the copy, so that the argument may change. It is
    all of them or none, and none under torch.func's transforms, where ``setup_context`` sees other needed gradients.
    """
    cost = alone.__func__

    def forward(*args: Any) -> Any:
        C = cost(*args)
        options = args[tensors:-1]
        read = [range(tensors)] * tensors if reads is None else reads(*options)
        kept = [j for learns, of_t in zip(learning(args[:tensors]), read, strict=False) if learns for j in of_t]
        needed = any(i in kept for i in copied(*options))
        return (C, *[args[i].clone() for i in copied(*options)]) if needed else C

    return forward


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
