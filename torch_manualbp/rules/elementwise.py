"""What the operations share that act on every entry alone: their Jacobian is diagonal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_manualbp._torch import is_compiling
from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["Elementwise", "logistic", "zero"]


class Elementwise(Rule):
    """An operation a = f(z) in every entry.

    ::

        a = f(z)
        ⇒
        δ = ∂C/∂a ⊙ f'(z)

    It owes

    - ``forward(z, *options)``;
    - ``derivative(kept, *options)``: f'(z), from z or, where ``keeps_output``, from a. It is computed in widened
      precision and rounded once, with the product;
    - or ``delta(upstream, kept, *options)``, the whole product, where that is a choice and no product: a derivative of
      0 lets nothing pass, not even ∞;
    - ``is_piecewise_linear``, if f' has no derivative but 0.

    From these follow ``backward`` and, since the Jacobian is diagonal, ``jvp``: the same product with the tangent of z
    in place of ∂C/∂a. For complex numbers reverse mode takes f' of the conjugate. Kept: z, or a.
    """

    jacobian = Diagonal()
    keeps_output: ClassVar[bool] = False
    is_piecewise_linear: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = vars(cls)
        if "derivative" in own or "delta" in own:
            delta = own["delta"].__func__ if "delta" in own else _product_with(cls.derivative)
            cls.delta = staticmethod(formula(by="entries")(delta))  # type: ignore[method-assign]
            for method in _calculus(cls.delta, cls.keeps_output, cls.is_piecewise_linear):
                if method.__name__ not in own:
                    setattr(cls, method.__name__, staticmethod(method))
        super().__init_subclass__(**kwargs)

    @staticmethod
    def derivative(kept: Tensor, *options: Any) -> Tensor:
        """f'(z)."""
        raise NotImplementedError("an elementwise rule must define derivative(kept, *options) or delta(…)")

    @staticmethod
    def delta(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
        """δ = ∂C/∂a ⊙ f'(z)."""
        raise NotImplementedError("an elementwise rule must define derivative(kept, *options) or delta(…)")


def _product_with(derivative: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def delta(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
        """δ = ∂C/∂a ⊙ f'(z), rounded once."""
        return (widened(upstream) * derivative(widened(kept), *options)).to(upstream.dtype)

    # torch.compile limits how often it compiles one code object, which these functions would share.
    delta.__code__ = delta.__code__.replace(co_name=derivative.__qualname__)
    delta.__qualname__ = derivative.__qualname__.replace("derivative", "delta")
    return delta


def _calculus(
    delta: Callable[..., Tensor], keeps_output: bool, is_piecewise_linear: bool
) -> tuple[Callable[..., Any], ...]:
    """The methods of an operation with this δ. They are closures, since torch.compile cannot trace a Function's class
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
        dz = delta(da, kept, *ctx.options)
        if is_piecewise_linear and (torch.is_grad_enabled() or is_compiling()):
            dz = dz + zero(kept).to(dz.dtype)
        return (dz, *[None for _ in ctx.options])

    def jvp(ctx: Any, dz: Tensor, *_: Any) -> Tensor:
        (kept,) = ctx.saved_tensors
        return delta(dz, kept, *ctx.options)

    return setup_context, backward, jvp


def zero(z: Tensor) -> Tensor:
    """0, also of NaN, as a function of z whose derivative is 0 and not missing.

    torch.compile makes C++ on the CPU that keeps for backward what is smallest, a mask before z, and writes masks
    number by number: at 512×4096 10 ms for 1. A 0 that it cannot fold makes it keep z, as ATen does.
    """
    return z.sign().clamp(0, 0) if is_compiling() and z.device.type == "cpu" else z.sign() * 0


def logistic(t: Tensor) -> Tensor:
    """σ(t) = e / (1 + e), e = exp(t), which is 1 in every dtype from t = 40 on.

    torch.sigmoid is 0 where exp(−t) overflows, of float32 from t = −88.7 down, although the numbers go on to exp(−103).
    """
    e = torch.exp(t.clamp(max=40))
    return e / (1 + e)
