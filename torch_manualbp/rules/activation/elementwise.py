"""What the activations share that act on every entry alone: their Jacobian is diagonal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_manualbp.rules.arithmetic import times
from torch_manualbp.rules.evaluate import (
    blocks,
    fits_blocks,
    formulas_are_compiled,
    fused,
    is_free,
    is_written_down,
    records_nothing,
)
from torch_manualbp.rules.rule import Rule, widened

__all__ = ["Activation"]

Derivative = Callable[..., Tensor]
Delta = Callable[..., Tensor]
Write = Callable[..., object]


class Activation(Rule):
    """An activation a = f(z) in every entry.

    ::

        a = f(z)
        ⇒
        δ = ∂C/∂a ⊙ f'(z)

    An activation owes

    - ``forward(z, *options)``;
    - ``derivative(kept, *options)``: f'(z), from z or, where ``keeps_output``, from a. It is computed
      in widened precision and rounded once, with the product;
    - or ``delta(upstream, kept, *options)``, the whole product, where that is a choice and no product: a derivative of
      0 lets nothing pass, not even ∞.

    From these follow ``backward`` and, since the Jacobian is diagonal, ``jvp``: the same product with the tangent of z
    in place of ∂C/∂a. For complex numbers reverse mode takes f' of the conjugate. Kept: z, or a.
    """

    keeps_output: ClassVar[bool] = False
    lean_delta: ClassVar[Delta | None] = None
    """The product ∂C/∂a ⊙ f'(z) of float32 or float64 in fewer calls; for formulas that are written down."""

    write_derivative: ClassVar[Write | None] = None
    """``write_derivative(d, kept, *options)`` writes f' of plain real numbers into ``d``, in fewer and cheaper passes
    over memory than ``derivative`` takes; for large tensors."""

    in_blocks: ClassVar[bool] = False
    """Whether the formula of f' makes more tensors on its way than the one that it returns."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = vars(cls)
        if "derivative" in own or "delta" in own:
            if "delta" not in own:
                delta = _delta_of(cls.derivative, cls.lean_delta, cls.write_derivative, cls.in_blocks)
                cls.delta = staticmethod(delta)  # type: ignore[method-assign]
            for method in _calculus(cls.delta, cls.keeps_output):
                if method.__name__ not in own:
                    setattr(cls, method.__name__, staticmethod(method))
        super().__init_subclass__(**kwargs)

    @staticmethod
    def derivative(kept: Tensor, *options: Any) -> Tensor:
        """f'(z)."""
        raise NotImplementedError("an activation must define derivative(kept, *options) or delta(…)")

    @staticmethod
    def delta(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
        """δ = ∂C/∂a ⊙ f'(z)."""
        raise NotImplementedError("an activation must define derivative(kept, *options) or delta(…)")


def _delta_of(derivative: Derivative, lean_delta: Delta | None, write: Write | None, in_blocks: bool) -> Delta:
    """The function of the product ∂C/∂a ⊙ f'(z), rounded once."""

    def product(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
        wide = widened(kept)
        factor = derivative(wide, *options)
        if records_nothing(factor, wide) and not is_free(factor, wide):
            factor = factor.clone()  # of z² / 2 it is z itself
        return times(widened(upstream), factor).to(upstream.dtype)

    # torch.compile limits how often it compiles one code object, which these functions would share.
    product.__code__ = product.__code__.replace(co_name=derivative.__qualname__)

    def delta(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
        """δ = ∂C/∂a ⊙ f'(z)."""
        is_wide = upstream.dtype == kept.dtype and kept.dtype in (torch.float32, torch.float64)
        if is_written_down() and lean_delta is not None and is_wide and records_nothing(upstream, kept):
            return lean_delta(upstream, kept, *options)
        if not fits_blocks(upstream, kept):
            return product(upstream, kept, *options)
        if formulas_are_compiled():
            return fused(product, upstream, kept, *map(float, options))
        if write is not None and is_wide:
            return _written(write, upstream, kept, options, in_blocks)
        if not in_blocks:
            return product(upstream, kept, *options)
        result = torch.empty_like(upstream)
        for into, upstream_block, kept_block in blocks(result, upstream, kept):
            factor = derivative(widened(kept_block), *options)
            if factor.dtype == upstream.dtype:
                torch.mul(upstream_block, factor, out=into)
            else:
                into.copy_(factor.mul_(upstream_block))
        return result

    return delta


def _written(write: Write, upstream: Tensor, kept: Tensor, options: tuple[Any, ...], in_blocks: bool) -> Tensor:
    """∂C/∂a ⊙ f'(z), in one piece of fresh memory."""
    result = torch.empty_like(upstream)
    parts = blocks(result, upstream, kept) if in_blocks else [(result, upstream, kept)]
    for into, upstream_block, kept_block in parts:
        write(into, kept_block, *options)
        into.mul_(upstream_block)
    return result


def _calculus(delta: Delta, keeps_output: bool) -> tuple[Callable[..., Any], ...]:
    """The methods of an activation with this δ. They are closures, since torch.compile cannot trace a Function's class
    methods."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *options = inputs
        kept = output if keeps_output else z
        ctx.options = tuple(options)
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)

    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        kept = kept.conj() if kept.is_complex() else kept
        return (delta(da, kept, *ctx.options), *[None for _ in ctx.options])

    def jvp(ctx: Any, dz: Tensor, *_: Any) -> Tensor:
        (kept,) = ctx.saved_tensors
        return delta(dz, kept, *ctx.options)

    return setup_context, backward, jvp
