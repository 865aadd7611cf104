"""The derivatives of smooth activations in fewer and cheaper passes over memory than their formulas take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.kernels.blocks import BLOCK_ELEMENTS, is_flat
from torch_manualbp.kernels.choice import passing, step
from torch_manualbp.kernels.dispatch import for_large, for_steps
from torch_manualbp.rules.activation.smooth import (
    CELU,
    ELU,
    GELU,
    SELU,
    SELU_ALPHA,
    SELU_LAMBDA,
    GELUTanh,
    LogSigmoid,
    Mish,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from torch_manualbp.rules.elementwise import Elementwise

__all__: list[str] = []

Derivative = Callable[..., Tensor]

WIDE = (torch.float32, torch.float64)

SIGMOID_IS_POSITIVE = 87
"""torch.sigmoid(−t) is no 0 up to here. It is where exp(t) overflows, although σ is a number yet."""


def derivative_of(rule: type[Elementwise], steps: bool = True) -> Callable[[Derivative], Derivative]:
    """Register a kernel of f'(z): of float32 or float64, fresh."""

    def register(derivative: Derivative) -> Derivative:
        @for_large(rule.delta)
        def large(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
            if upstream.dtype != kept.dtype or kept.dtype not in WIDE or not is_flat(upstream, kept):
                return NotImplemented
            result = torch.empty_like(upstream)
            parts = zip(*[t.view(-1).split(BLOCK_ELEMENTS) for t in (result, upstream, kept)], strict=True)
            for into, upstream_block, kept_block in parts:
                torch.mul(derivative(kept_block, *options), upstream_block, out=into)
            return result

        if steps:

            @for_steps(rule.delta)
            def step(upstream: Tensor, kept: Tensor, *options: Any) -> Tensor:
                if upstream.dtype != kept.dtype or kept.dtype not in WIDE:
                    return rule.delta.__wrapped__(upstream, kept, *options)
                return derivative(kept, *options) * upstream

        return derivative

    return register


@derivative_of(Sigmoid)
def sigmoid(a: Tensor) -> Tensor:
    """a − a², rounded once by processors that fuse it."""
    return torch.addcmul(a, a, a, value=-1)


@derivative_of(Tanh)
def tanh(a: Tensor) -> Tensor:
    """1 − a², rounded once by processors that fuse it."""
    return torch.addcmul(a.new_ones(()), a, a, value=-1)


@derivative_of(LogSigmoid, steps=False)
def log_sigmoid(z: Tensor) -> Tensor:
    """σ(−z) by torch's sigmoid, where that is no 0."""
    return z.neg().sigmoid_() if z.amax() < SIGMOID_IS_POSITIVE else LogSigmoid.derivative(z)


@derivative_of(Softplus, steps=False)
def softplus(z: Tensor, beta: float, threshold: float) -> Tensor:
    """σ(β z), which is 1 from a large threshold on."""
    is_1_from_threshold_on = math.exp(-threshold) < torch.finfo(z.dtype).eps / 4
    if is_1_from_threshold_on and beta > 0 and z.amin() * beta > -SIGMOID_IS_POSITIVE:
        return torch.sigmoid(z) if beta == 1 else torch.mul(z, beta).sigmoid_()
    return Softplus.derivative(z, beta, threshold)


@derivative_of(ELU)
def elu(z: Tensor, alpha: float) -> Tensor:
    """exp(z), at most 1, with α where z ≤ 0."""
    d = passing(z)
    slope = None if alpha == 1 else step(d, alpha, 1)
    d.exp_().clamp_(max=1)
    return d if slope is None else d.mul_(slope)


@derivative_of(CELU)
def celu(z: Tensor, alpha: float) -> Tensor:
    """exp(z / α), at most 1."""
    d = passing(z)
    return d.exp_().clamp_(max=1) if alpha == 1 else d.clamp_(max=0).div_(alpha).exp_()


@derivative_of(SELU)
def selu(z: Tensor) -> Tensor:
    """λ α exp(−x) with x = −z, but log α where z > 0: torch.threshold is a choice that costs no more than a product, and
    keeps what is above a number, here the largest below 0."""
    below_0 = -torch.finfo(z.dtype).smallest_normal * torch.finfo(z.dtype).eps
    x = torch.threshold_(passing(z).neg_(), below_0, math.log(SELU_ALPHA))
    return x.neg_().exp_().mul_(SELU_LAMBDA * SELU_ALPHA)


@derivative_of(SiLU)
def silu(z: Tensor) -> Tensor:
    """σ + a (1 − σ), from σ to 1 by a."""
    sigma = torch.sigmoid(z)
    return torch.lerp(sigma, z.new_ones(()), z * sigma)


@derivative_of(Mish)
def mish(z: Tensor) -> Tensor:
    """w + z σ (1 − w) (1 + w), the last product with one rounding."""
    w = F.softplus(z).tanh_()
    return torch.addcmul(w, torch.sigmoid(z).mul_(z), (1 - w).mul_(1 + w))


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
