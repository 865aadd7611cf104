"""The activations that are made of straight pieces (and of parabolas: Hardswish)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.activation.elementwise import Activation
from torch_manualbp.rules.arithmetic import times_one_plus
from torch_manualbp.rules.choice import (
    block_beyond,
    chosen,
    pass_above,
    pass_between,
    pass_beyond,
    pass_positive,
    passing,
)
from torch_manualbp.rules.evaluate import are_finite, fits_blocks, formulas_are_compiled
from torch_manualbp.rules.rule import widened

__all__ = [
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "ReLU",
    "ReLU6",
    "Softshrink",
    "Threshold",
]


class ReLU(Activation):
    """The rectified linear unit.

    ::

        a = max(z, 0)
        ⇒
        δ = ∂C/∂a  where a > 0,  else 0

    At the kink z = 0 the derivative is 0; at z = NaN the upstream gradient passes, as in torch. Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.relu(z)

    @staticmethod
    def delta(da: Tensor, a: Tensor) -> Tensor:
        return pass_positive(da, a)


class ReLU6(Activation):
    """The rectified linear unit that saturates at 6.

    ::

        a = min(max(z, 0), 6)
        ⇒
        δ = 0  where z ≤ 0 or z ≥ 6,  else ∂C/∂a

    At both kinks the derivative is 0. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.relu6(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return pass_between(da, z, 0, 6)


class Hardtanh(Activation):
    """The piecewise linear tanh, between ``low`` and ``high``.

    ::

        a = min(max(z, low), high)
        ⇒
        δ = 0  where z ≤ low or z ≥ high,  else ∂C/∂a

    At both kinks the derivative is 0. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, low: float, high: float) -> Tensor:
        return F.hardtanh(z, low, high)

    @staticmethod
    def delta(da: Tensor, z: Tensor, low: float, high: float) -> Tensor:
        return pass_between(da, z, low, high)


class Hardsigmoid(Activation):
    """The piecewise linear sigmoid.

    ::

        a = min(max(z + 3, 0), 6) / 6
        ⇒
        δ = ∂C/∂a / 6  where −3 < z < 3,  else 0

    At both kinks the derivative is 0, and at NaN, as torch's. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # whose forward mode over forward mode ATen's function lacks
            return F.relu6(z + 3) / 6
        return F.hardsigmoid(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return chosen(da, z, _hardsigmoid_delta, lambda da, z: block_beyond(da, z, 3).mul_(1 / 6))


def _hardsigmoid_delta(da: Tensor, z: Tensor, zero: Tensor | int) -> Tensor:
    return torch.where((z > -3) & (z < 3), da * (1 / 6), zero)  # a division takes the time of ten products


class Hardswish(Activation):
    """The SiLU of a piecewise linear sigmoid h.

    ::

        a = z h(z),  h(z) = min(max(z + 3, 0), 6) / 6
        ⇒
        f'(z) = h(z) + z h'(z): 0 where z ≤ −3,  z / 3 + 1/2 where −3 < z < 3,  1 where z ≥ 3

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # ATen's second derivative has 1/6 in float32
            return z * (F.relu6(z + 3) / 6)
        return F.hardswish(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        if fits_blocks(da, z) and not formulas_are_compiled() and da.dtype == z.dtype == widened(z).dtype:
            delta = _hardswish_lean_delta(da, z)
            if are_finite(delta):
                return delta
        return chosen(da, z, _hardswish_delta, _hardswish_product)


def _hardswish_lean_delta(da: Tensor, z: Tensor) -> Tensor:
    """∂C/∂a (1 − y) with y = 1 − f'(z), where that is finite; in one piece of memory.

    y is 1/2 − z / 3 where −3 < z < 3. Below, z is taken for −1.5 before, where that is 1; and above, where it is at
    most −1/2, y for 0 afterwards: torch.threshold is a choice that costs no more than a product.
    """
    y = torch.threshold(z, -3, -1.5)
    torch.add(z.new_full((), 0.5), y, alpha=-1 / 3, out=y)
    torch.threshold_(y, -0.5, 0).nan_to_num_(0)
    return torch.addcmul(da, da, y, value=-1, out=y)


def _hardswish_delta(da: Tensor, z: Tensor, zero: Tensor | int) -> Tensor:
    wide = widened(da)
    inside = torch.where(z < 3, wide * (widened(z) / 3 + 0.5), wide)
    return torch.where(z <= -3, zero, inside).to(da.dtype)


def _hardswish_product(da: Tensor, z: Tensor) -> Tensor:
    """∂C/∂a ⊙ (c + c [c < 3] + 3) / 6 with c = z clamped to ±3; nothing passes where z ≤ −3."""
    c = passing(widened(z)).clamp_(-3, 3)
    derivative = times_one_plus(c, torch.lt(c, 3, out=torch.empty_like(c))).add_(3).div_(6)
    return pass_above(derivative.mul_(da).to(da.dtype), z, -3)


class Threshold(Activation):
    """The identity above a threshold θ, and a constant below.

    ::

        a = z  where z > θ,  else value
        ⇒
        δ = ∂C/∂a  where z > θ,  else 0

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, threshold: float, value: float) -> Tensor:
        return F.threshold(z, threshold, value)

    @staticmethod
    def delta(da: Tensor, z: Tensor, threshold: float, value: float) -> Tensor:
        return pass_above(da, z, threshold)


class Hardshrink(Activation):
    """The identity outside of ±λ, and 0 within.

    ::

        a = z  where |z| > λ,  else 0
        ⇒
        δ = ∂C/∂a  where |z| > λ,  else 0

    At both kinks the derivative is 0. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, lambd: float) -> Tensor:
        return F.hardshrink(z, lambd)

    @staticmethod
    def delta(da: Tensor, z: Tensor, lambd: float) -> Tensor:
        return pass_beyond(da, z, lambd)


class Softshrink(Activation):
    """The identity outside of ±λ, moved towards 0 by λ, and 0 within.

    ::

        a = z − λ where z > λ,  z + λ where z < −λ,  else 0
        ⇒
        δ = ∂C/∂a  where |z| > λ,  else 0

    At both kinks the derivative is 0. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, lambd: float) -> Tensor:
        return F.softshrink(z, lambd)

    @staticmethod
    def delta(da: Tensor, z: Tensor, lambd: float) -> Tensor:
        return pass_beyond(da, z, lambd)
