"""The activations that are made of straight pieces (and of parabolas: Hardswish)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.elementwise import Elementwise
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


class ReLU(Elementwise):
    """The rectified linear unit.

    ::

        a = max(z, 0)
        ⇒
        δ = ∂C/∂a  where a > 0,  else 0

    At the kink z = 0 the derivative is 0; at z = NaN the upstream gradient passes, as in torch. Kept: a.
    """

    keeps_output = True
    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.relu(z)

    @staticmethod
    def delta(da: Tensor, a: Tensor) -> Tensor:
        return torch.where(a <= 0, 0, da)


class ReLU6(Elementwise):
    """The rectified linear unit that saturates at 6.

    ::

        a = min(max(z, 0), 6)
        ⇒
        δ = 0  where z ≤ 0 or z ≥ 6,  else ∂C/∂a

    At both kinks the derivative is 0. Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.relu6(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return torch.where((z <= 0) | (z >= 6), 0, da)


class Hardtanh(Elementwise):
    """The piecewise linear tanh, between ``low`` and ``high``.

    ::

        a = min(max(z, low), high)
        ⇒
        δ = 0  where z ≤ low or z ≥ high,  else ∂C/∂a

    At both kinks the derivative is 0. Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor, low: float, high: float) -> Tensor:
        return F.hardtanh(z, low, high)

    @staticmethod
    def delta(da: Tensor, z: Tensor, low: float, high: float) -> Tensor:
        wide = widened(z)  # a bound is no rounded one, as in torch
        return torch.where((wide <= low) | (wide >= high), 0, da)


class Hardsigmoid(Elementwise):
    """The piecewise linear sigmoid.

    ::

        a = min(max(z + 3, 0), 6) / 6
        ⇒
        δ = ∂C/∂a / 6  where −3 < z < 3,  else 0

    At both kinks the derivative is 0, and at NaN, as torch's. Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.hardsigmoid(z)

    @staticmethod
    def composite(z: Tensor) -> Tensor:
        return F.relu6(z + 3) / 6  # forward mode over forward mode, which ATen's function lacks

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return torch.where((z > -3) & (z < 3), da / 6, 0)


class Hardswish(Elementwise):
    """The SiLU of a piecewise linear sigmoid h.

    ::

        a = z h(z),  h(z) = min(max(z + 3, 0), 6) / 6
        ⇒
        f'(z) = h(z) + z h'(z): 0 where z ≤ −3,  z / 3 + 1/2 where −3 < z < 3,  1 where z ≥ 3

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.hardswish(z)

    @staticmethod
    def composite(z: Tensor) -> Tensor:
        return z * (F.relu6(z + 3) / 6)  # ATen's second derivative has 1/6 in float32

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        wide, da_wide = widened(z), widened(da)
        inside = torch.where(wide < 3, da_wide * (wide / 3 + 0.5), da_wide)
        return torch.where(wide <= -3, 0, inside).to(da.dtype)


class Threshold(Elementwise):
    """The identity above a threshold θ, and a constant below.

    ::

        a = z  where z > θ,  else value
        ⇒
        δ = ∂C/∂a  where z > θ,  else 0

    Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor, threshold: float, value: float) -> Tensor:
        return F.threshold(z, threshold, value)

    @staticmethod
    def delta(da: Tensor, z: Tensor, threshold: float, value: float) -> Tensor:
        return torch.where(widened(z) <= threshold, 0, da)


class Hardshrink(Elementwise):
    """The identity outside of ±λ, and 0 within.

    ::

        a = z  where |z| > λ,  else 0
        ⇒
        δ = ∂C/∂a  where |z| > λ,  else 0

    At both kinks the derivative is 0. Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor, lambd: float) -> Tensor:
        return F.hardshrink(z, lambd)

    @staticmethod
    def delta(da: Tensor, z: Tensor, lambd: float) -> Tensor:
        return torch.where(z.abs() <= lambd, 0, da)


class Softshrink(Elementwise):
    """The identity outside of ±λ, moved towards 0 by λ, and 0 within.

    ::

        a = z − λ where z > λ,  z + λ where z < −λ,  else 0
        ⇒
        δ = ∂C/∂a  where |z| > λ,  else 0

    At both kinks the derivative is 0. Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor, lambd: float) -> Tensor:
        return F.softshrink(z, lambd)

    @staticmethod
    def delta(da: Tensor, z: Tensor, lambd: float) -> Tensor:
        return torch.where(z.abs() <= lambd, 0, da)
