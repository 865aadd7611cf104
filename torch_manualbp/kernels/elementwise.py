"""Kernels of δ of entrywise rules, in fewer and cheaper passes over memory than their formulas take.

On the CPU a choice by a mask of bools (torch.where, masked_fill) costs 8 ms for 512×4096 numbers of random sign, where
the processor guesses wrong every other time; a comparison that writes integers costs 0.5 ms, and a product 0.3.
0 · ∞ is NaN, but the bits of a float, as an integer, times 0 or 1 are those of 0.0 or the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels import blocks
from torch_manualbp.kernels.dispatch import for_large, for_steps
from torch_manualbp.rules.activation.leaky import LeakyReLU, prelu_delta
from torch_manualbp.rules.activation.piecewise import (
    Hardshrink,
    Hardswish,
    Hardtanh,
    ReLU,
    ReLU6,
    Softshrink,
    Threshold,
)
from torch_manualbp.rules.activation.smooth import (
    CELU,
    ELU,
    GELU,
    SELU,
    SELU_ALPHA,
    SELU_LAMBDA,
    GELUTanh,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from torch_manualbp.rules.elementwise import Elementwise

__all__ = ["BITS", "addcmul_rounds_once"]

Factor = Callable[..., Any]
"""It takes z, or what else the rule keeps, in float32 or float64, and the rule's options. It returns a fresh tensor, or
NotImplemented where these options leave it to the formula."""

BITS = {torch.float64: torch.int64, torch.float32: torch.int32}

PREDICTED = 1 << 10
"""Numbers up to which a step's choice by a mask, which is a call less, is no slower than one by a product."""


def derivative_of(rule: type[Elementwise], if_: bool = True, least: int = 0) -> Callable[[Factor], Factor]:
    """Register a kernel of f'(z), if there is one here; in steps from ``least`` numbers on."""
    return _times_upstream(rule, {dtype: dtype for dtype in BITS}, least) if if_ else lambda factor: factor


def choice_of(rule: type[Elementwise]) -> Callable[[Factor], Factor]:
    """Register a kernel of where the gradient passes: an integer of as many bits as z has, 1 there and 0 elsewhere."""
    return _times_upstream(rule, BITS, PREDICTED)


def _times_upstream(
    rule: type[Elementwise], number: dict[torch.dtype, torch.dtype], least: int
) -> Callable[[Factor], Factor]:
    """Register the product with ∂C/∂a as a kernel; numbers are taken for those of another dtype."""
    plain: Callable[..., Tensor] = rule.delta.__wrapped__  # type: ignore[attr-defined]

    def register(factor: Factor) -> Factor:
        @for_large(rule.delta)
        def large(upstream: Tensor, kept: Tensor, *options: Any) -> Any:
            if upstream.dtype != kept.dtype or kept.dtype not in BITS or not blocks.is_flat(upstream, kept):
                return NotImplemented
            dtype = number[kept.dtype]
            delta = torch.empty_like(upstream)
            flat = [t.view(-1).split(blocks.BLOCK_ELEMENTS) for t in (delta.view(dtype), upstream.view(dtype), kept)]
            for into, upstream_block, kept_block in zip(*flat, strict=True):
                f = factor(kept_block, *options)
                if f is NotImplemented:
                    return f
                torch.mul(f, upstream_block, out=into)
            return delta

        @for_steps(rule.delta)
        def step(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
            fits = upstream.dtype == kept.dtype and kept.dtype in BITS and kept.numel() >= least
            f = factor(kept, *options) if fits else NotImplemented
            if f is NotImplemented:
                return plain(upstream, kept, *options)
            return torch.mul(f, upstream.view(f.dtype), out=f).view(kept.dtype) if number is BITS else f * upstream

        return factor

    return register


def bits(comparison: Callable[..., Tensor], z: Tensor, bound: float) -> Tensor:
    """Whether ``comparison(z, bound)`` holds, 1 or 0."""
    return comparison(z, bound, out=torch.empty_like(z, dtype=BITS[z.dtype]))


@choice_of(ReLU)
def relu(a: Tensor) -> Tensor:
    """a ≠ 0: where a > 0, and where it is NaN."""
    return bits(torch.ne, a, 0)


@choice_of(Threshold)
def threshold(z: Tensor, threshold: float, value: float) -> Tensor:
    return bits(torch.le, z, threshold).bitwise_xor_(1)


@choice_of(Hardtanh)
def hardtanh(z: Tensor, low: float, high: float) -> Tensor:
    return bits(torch.le, z, low).bitwise_or_(bits(torch.ge, z, high)).bitwise_xor_(1)


@choice_of(ReLU6)
def relu6(z: Tensor) -> Tensor:
    return hardtanh(z, 0, 6)


@choice_of(Softshrink)
@choice_of(Hardshrink)
def hardshrink(z: Tensor, lambd: float) -> Tensor:
    return bits(torch.le, z.abs(), lambd).bitwise_xor_(1)


@derivative_of(LeakyReLU, least=PREDICTED)
def leaky_relu(z: Tensor, slope: float) -> Any:
    return slopes(z, slope)


def slopes(z: Tensor, below: float) -> Any:
    """1 where z > 0, exactly, and ``below`` elsewhere and where z is NaN. Beyond 1 the sum would be rounded."""
    if not 0 < below <= 1:
        return NotImplemented
    return torch.gt(z, 0, out=torch.empty_like(z)).mul_(1 - below).add_(below)


def passing(z: Tensor) -> Tensor:
    """z with ∞ in place of NaN, for a formula of f' that lets the gradient pass above 0."""
    return torch.nan_to_num(z, math.inf, math.inf, -math.inf)


@derivative_of(ELU)
def elu(z: Tensor, alpha: float) -> Any:
    """exp(z), at most 1, with α where z ≤ 0."""
    z = passing(z)
    slope = None if alpha == 1 else slopes(z, alpha)
    if slope is NotImplemented:
        return slope
    d = z.exp_().clamp_(max=1)
    return d if slope is None else d.mul_(slope)


@derivative_of(CELU)
def celu(z: Tensor, alpha: float) -> Tensor:
    """exp(z / α), at most 1."""
    d = passing(z)
    return d.exp_().clamp_(max=1) if alpha == 1 else d.clamp_(max=0).div_(alpha).exp_()


@derivative_of(SELU)
def selu(z: Tensor) -> Tensor:
    """λ α exp(−x) with x = −z, but log α where z > 0: torch.threshold is a choice that costs no more than a product,
    and keeps what is above a number, here the largest below 0."""
    below_0 = -torch.finfo(z.dtype).smallest_normal * torch.finfo(z.dtype).eps
    x = torch.threshold_(passing(z).neg_(), below_0, math.log(SELU_ALPHA))
    return x.neg_().exp_().mul_(SELU_LAMBDA * SELU_ALPHA)


@derivative_of(Softplus)
def softplus(z: Tensor, beta: float, threshold: float) -> Any:
    """σ(β z), which is 1 from a large threshold on."""
    if not math.exp(-threshold) < torch.finfo(z.dtype).eps / 4:
        return NotImplemented
    return torch.sigmoid(z) if beta == 1 else torch.mul(z, beta).sigmoid_()


@functools.cache
def addcmul_rounds_once() -> bool:
    """Whether x + y z is rounded once here, in vectors and in what is left over, which torch does not promise: a − a²
    has all its digits then, also where a is close to 1."""
    for dtype in BITS:
        a = torch.full((67,), 1 - 3 * torch.finfo(dtype).eps, dtype=dtype)
        if not torch.equal(torch.addcmul(a, a, a, value=-1), a * (1 - a)):
            return False
    return True


@derivative_of(Sigmoid, if_=addcmul_rounds_once())
def sigmoid(a: Tensor) -> Tensor:
    """a − a²."""
    return torch.addcmul(a, a, a, value=-1)


@derivative_of(Tanh, if_=addcmul_rounds_once())
def tanh(a: Tensor) -> Tensor:
    """1 − a²."""
    return torch.addcmul(a.new_ones(()), a, a, value=-1)


@derivative_of(SiLU)
def silu(z: Tensor) -> Tensor:
    """σ + a (1 − σ), from σ to 1 by a."""
    sigma = torch.sigmoid(z)
    return torch.lerp(sigma, z.new_ones(()), z * sigma)


@derivative_of(GELU)
def gelu(z: Tensor) -> Tensor:
    """Φ(z) + z φ(z), with √2π φ as a power of 2: MKL's exp takes four times as long, and z² is rounded in any case."""
    Phi = torch.add(z.new_full((), 0.5), torch.mul(z, math.sqrt(0.5)).erf_(), alpha=0.5)
    phi = torch.square(z).mul_(-0.5 * math.log2(math.e)).exp2_()
    return Phi.addcmul_(z, phi, value=1 / math.sqrt(2 * math.pi))


@derivative_of(GELUTanh)
def gelu_tanh(z: Tensor) -> Tensor:
    """σ (1 + κ z (1 + 3c z²) / d) with σ = e / d, e = exp(2u), d = 1 + e, where e is a power of 2."""
    kappa, c = math.sqrt(8 / math.pi), 0.044715
    z = z.clamp(-30, 9)  # from there on f' is 1 in float64 too, and exp(2u) is finite
    square = z * z
    log2 = kappa * math.log2(math.e)
    e = torch.add(z.new_full((), log2), square, alpha=log2 * c).mul_(z).exp2_()
    slope = torch.add(z.new_full((), kappa), square, alpha=3 * kappa * c).mul_(z)
    d = e + 1
    sigma = e.div_(d)
    return sigma.addcmul_(sigma, slope.div_(d))


@for_large(Hardswish.delta)
def hardswish(da: Tensor, z: Tensor) -> Any:
    """∂C/∂a (1 − y) with y = 1 − f'(z), where that is finite; in one piece of memory.

    y is 1/2 − z / 3 where −3 < z < 3. Below, z is taken for −1.5 before, where that is 1; and above, where it is at
    most −1/2, y for 0 afterwards: torch.threshold is a choice that costs no more than a product.
    """
    if da.dtype != z.dtype or z.dtype not in BITS or not blocks.is_flat(da, z):
        return NotImplemented
    y = torch.threshold(z, -3, -1.5)
    torch.add(z.new_full((), 0.5), y, alpha=-1 / 3, out=y)
    torch.threshold_(y, -0.5, 0).nan_to_num_(0)
    delta = torch.addcmul(da, da, y, value=-1, out=y)
    return delta if math.isfinite(delta.sum().item()) else NotImplemented


@for_large(prelu_delta)
def prelu(da: Tensor, z: Tensor, w: Tensor) -> Any:
    """∂C/∂a times slopes, which must be finite."""
    if not w.isfinite().all():
        return NotImplemented
    positive = torch.gt(z, 0, out=torch.empty_like(z))
    return torch.lerp(w.expand_as(z), torch.ones((), dtype=w.dtype), positive).mul_(da)
