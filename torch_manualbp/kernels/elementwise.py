"""Kernels of δ of entrywise rules, in fewer and cheaper passes over memory than their formulas take.

On the CPU a choice by a mask of bools (torch.where, masked_fill) costs 8 ms for 512×4096 numbers of random sign, where
the processor guesses wrong every other time; a comparison that writes numbers costs 0.3 ms, and a product as much. But
0 · ∞ is NaN. So what was chosen by a product is summed, and computed by the formula where the sum is no number; a step
that is recorded, where no number may decide, takes the product of the bits, as integers, with 0 or 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels import blocks
from torch_manualbp.kernels.dispatch import for_large, for_steps, plain
from torch_manualbp.rules.activation.leaky import LeakyReLU, prelu_delta
from torch_manualbp.rules.activation.piecewise import (
    Hardshrink,
    Hardsigmoid,
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

Kernel = Callable[..., Any]

BITS = {torch.float64: torch.int64, torch.float32: torch.int32}

PREDICTED = 1 << 10
"""Numbers up to which a step's choice by a mask, which is a call less, is no slower than one by a product."""


def derivative_of(
    rule: type[Elementwise], if_: bool = True, chooses: bool = False, least: int = 0
) -> Callable[[Kernel], Kernel]:
    """Register a kernel of f'(z), if there is one here, for steps from ``least`` numbers on.

    It takes a tensor to write to, then z, or what else the rule keeps, in float32 or float64, and the rule's options.
    It returns that tensor, or NotImplemented where these options leave it to the formula. If it ``chooses``, nothing
    passes where it is 0.
    """

    def register(derivative: Kernel) -> Kernel:
        def times(upstream: Tensor, kept: Tensor, *options: Any, out: Tensor) -> Any:
            f = derivative(out, kept, *options)
            return f if f is NotImplemented else f.mul_(upstream)

        def step(upstream: Tensor, kept: Tensor, *options: Any) -> Any:
            return (
                times(upstream, kept, *options, out=torch.empty_like(kept)) if kept.numel() >= least else NotImplemented
            )

        if if_:
            for_large(rule.delta)(_in_blocks(times, chooses))
            if not chooses:
                for_steps(rule.delta)(_or_formula(step, rule))
        return derivative

    return register


def choice_of(rule: type[Elementwise]) -> Callable[[Kernel], Kernel]:
    """Register a kernel of where the gradient is blocked: it writes 1 there, and 0 elsewhere."""

    def register(block: Kernel) -> Kernel:
        def unless(upstream: Tensor, kept: Tensor, *options: Any, out: Tensor) -> Tensor:
            return torch.addcmul(upstream, upstream, block(out, kept, *options), value=-1, out=out)

        def step(upstream: Tensor, kept: Tensor, *options: Any) -> Any:
            if kept.numel() < PREDICTED:
                return NotImplemented
            blocked = block(torch.empty_like(kept, dtype=BITS[kept.dtype]), kept, *options)
            bits = upstream.view(blocked.dtype)
            return torch.sub(bits, blocked.mul_(bits), out=blocked).view(kept.dtype)

        for_large(rule.delta)(_in_blocks(unless, chooses=True))
        for_steps(rule.delta)(_or_formula(step, rule))
        return block

    return register


def _in_blocks(delta: Kernel, chooses: bool) -> Kernel:
    """``delta(upstream, kept, *options, out)`` block by block. Of a choice that met ∞ or NaN, NotImplemented."""

    def large(upstream: Tensor, kept: Tensor, *options: Any) -> Any:
        if not _fits(upstream, kept) or not blocks.is_flat(upstream, kept):
            return NotImplemented
        result = torch.empty_like(upstream)
        flat = [blocks.flat(t).split(blocks.BLOCK_ELEMENTS) for t in (result, upstream, kept)]
        for into, upstream_block, kept_block in zip(*flat, strict=True):
            part = delta(upstream_block, kept_block, *options, out=into)
            if part is NotImplemented or (chooses and not math.isfinite(part.sum().item())):
                return NotImplemented
        return result

    return large


def _or_formula(step: Kernel, rule: type[Elementwise]) -> Kernel:
    formula = plain(rule.delta)

    def step_or_formula(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
        result = step(upstream, kept, *options) if _fits(upstream, kept) else NotImplemented
        return formula(upstream, kept, *options) if result is NotImplemented else result

    return step_or_formula


def _fits(upstream: Tensor, kept: Tensor) -> bool:
    return upstream.dtype == kept.dtype and kept.dtype in BITS


@choice_of(ReLU)
def relu(into: Tensor, a: Tensor) -> Tensor:
    return torch.le(a, 0, out=into)


@for_steps(ReLU.delta)
def relu_step(da: Tensor, a: Tensor) -> Tensor:
    """The bits of ∂C/∂a where a ≠ 0: where it is above, and where it is NaN."""
    if not _fits(da, a) or a.numel() < PREDICTED:
        return plain(ReLU.delta)(da, a)
    passes = torch.ne(a, 0, out=torch.empty_like(a, dtype=BITS[a.dtype]))
    return torch.mul(da.view(passes.dtype), passes, out=passes).view(a.dtype)


@choice_of(Threshold)
def threshold(into: Tensor, z: Tensor, threshold: float, value: float) -> Tensor:
    return torch.le(z, threshold, out=into)


@choice_of(Hardtanh)
def hardtanh(into: Tensor, z: Tensor, low: float, high: float) -> Tensor:
    if low == -high:
        return torch.ge(z.abs(), high, out=into)
    return torch.maximum(torch.le(z, low, out=into), torch.ge(z, high, out=torch.empty_like(into)), out=into)


@choice_of(ReLU6)
def relu6(into: Tensor, z: Tensor) -> Tensor:
    return hardtanh(into, z, 0, 6)


@choice_of(Softshrink)
@choice_of(Hardshrink)
def hardshrink(into: Tensor, z: Tensor, lambd: float) -> Tensor:
    return torch.le(z.abs(), lambd, out=into)


@derivative_of(Hardsigmoid, chooses=True)
def hardsigmoid(into: Tensor, z: Tensor) -> Tensor:
    return torch.abs(z, out=into).lt_(3).mul_(1 / 6)


@derivative_of(LeakyReLU, least=PREDICTED)
def slopes(into: Tensor, z: Tensor, slope: float) -> Any:
    """1 where z > 0, and the slope, which is at most 1, elsewhere and where z is NaN."""
    return torch.gt(z, 0, out=into).clamp_(min=slope) if 0 <= slope <= 1 else NotImplemented


def passing(into: Tensor, z: Tensor) -> Tensor:
    """z with ∞ in place of NaN, for a formula of f' that lets the gradient pass above 0."""
    return torch.nan_to_num(z, math.inf, math.inf, -math.inf, out=into)


@derivative_of(ELU)
def elu(into: Tensor, z: Tensor, alpha: float) -> Any:
    """exp(z), at most 1, with α where z ≤ 0."""
    d = passing(into, z)
    slope = None if alpha == 1 else slopes(torch.empty_like(d), d, alpha)
    if slope is NotImplemented:
        return slope
    d.exp_().clamp_(max=1)
    return d if slope is None else d.mul_(slope)


@derivative_of(CELU)
def celu(into: Tensor, z: Tensor, alpha: float) -> Tensor:
    """exp(z / α), at most 1."""
    d = passing(into, z)
    return d.exp_().clamp_(max=1) if alpha == 1 else d.clamp_(max=0).div_(alpha).exp_()


@derivative_of(SELU)
def selu(into: Tensor, z: Tensor) -> Tensor:
    """λ α exp(−x) with x = −z, but log α where z > 0: torch.threshold is a choice that costs no more than a product,
    and keeps what is above a number, here the largest below 0."""
    below_0 = -torch.finfo(z.dtype).smallest_normal * torch.finfo(z.dtype).eps
    x = torch.threshold_(passing(into, z).neg_(), below_0, math.log(SELU_ALPHA))
    return x.neg_().exp_().mul_(SELU_LAMBDA * SELU_ALPHA)


@derivative_of(Softplus)
def softplus(into: Tensor, z: Tensor, beta: float, threshold: float) -> Any:
    """σ(β z), which is 1 from a large threshold on."""
    if not math.exp(-threshold) < torch.finfo(z.dtype).eps / 4:
        return NotImplemented
    e = torch.clamp(z if beta == 1 else z * beta, max=40, out=into).exp_()
    return e.div_(e + 1)


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
def sigmoid(into: Tensor, a: Tensor) -> Tensor:
    """a − a²."""
    return torch.addcmul(a, a, a, value=-1, out=into)


@derivative_of(Tanh, if_=addcmul_rounds_once())
def tanh(into: Tensor, a: Tensor) -> Tensor:
    """1 − a²."""
    return torch.addcmul(a.new_ones(()), a, a, value=-1, out=into)


@derivative_of(SiLU)
def silu(into: Tensor, z: Tensor) -> Tensor:
    """σ + a (1 − σ), from σ to 1 by a."""
    sigma = torch.sigmoid(z)
    return torch.lerp(sigma, z.new_ones(()), torch.mul(z, sigma, out=into), out=into)


@derivative_of(GELU)
def gelu(into: Tensor, z: Tensor) -> Tensor:
    """Φ(z) + z φ(z), with √2π φ as a power of 2: MKL's exp takes four times as long, and z² is rounded in any case."""
    Phi = torch.mul(z, math.sqrt(0.5), out=into).erf_()
    torch.add(z.new_full((), 0.5), Phi, alpha=0.5, out=Phi)
    phi = torch.square(z).mul_(-0.5 * math.log2(math.e)).exp2_()
    return Phi.addcmul_(z, phi, value=1 / math.sqrt(2 * math.pi))


@derivative_of(GELUTanh)
def gelu_tanh(into: Tensor, z: Tensor) -> Tensor:
    """σ (1 + κ z (1 + 3c z²) / d) with σ = e / d, e = exp(2u), d = 1 + e, where e is a power of 2."""
    kappa, c = math.sqrt(8 / math.pi), 0.044715
    z = z.clamp(-30, 9)  # from there on f' is 1 in float64 too, and exp(2u) is finite
    square = z * z
    log2 = kappa * math.log2(math.e)
    e = torch.add(z.new_full((), log2), square, alpha=log2 * c, out=into).mul_(z).exp2_()
    slope = torch.add(z.new_full((), kappa), square, alpha=3 * kappa * c, out=square).mul_(z)
    d = torch.add(e, 1, out=z)
    sigma = e.div_(d)
    return sigma.addcmul_(sigma, slope.div_(d))


@derivative_of(Hardswish, chooses=True)
def hardswish(into: Tensor, z: Tensor) -> Tensor:
    """1/2 − x with x = −z / 3. Below −3, z is taken for −1.5, where that is 0; and above, x for −1/2, where it is 1:
    torch.threshold is a choice that costs no more than a product."""
    x = torch.threshold(z, -3, -1.5, out=into).div_(-3)
    return torch.sub(z.new_full((), 0.5), torch.threshold_(x, -1, -0.5), out=x).nan_to_num_(1)


@for_large(prelu_delta)
def prelu(da: Tensor, z: Tensor, w: Tensor) -> Any:
    """∂C/∂a times slopes, which must be finite."""
    if not w.isfinite().all():
        return NotImplemented
    positive = torch.gt(z, 0, out=torch.empty_like(z))
    return torch.lerp(w.expand_as(z), torch.ones((), dtype=w.dtype), positive).mul_(da)
