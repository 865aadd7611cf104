"""The error function, the gamma function, and what is like them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_manualbp.rules.elementwise import Elementwise

__all__ = ["I0", "Digamma", "Erf", "Erfc", "Erfinv", "Lgamma"]


class Erf(Elementwise):
    """The error function.

    ::

        a = 2 / √π ∫₀ᶻ exp(−t²) dt
        ⇒
        f'(z) = 2 / √π exp(−z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.erf(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.exp(-z * z) * (2 / math.sqrt(math.pi))


class Erfc(Elementwise):
    """One less the error function, with all its digits where that is near 1.

    ::

        a = 1 − erf z
        ⇒
        f'(z) = −2 / √π exp(−z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.erfc(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.exp(-z * z) * (-2 / math.sqrt(math.pi))


class Erfinv(Elementwise):
    """The inverse of the error function.

    ::

        a = erf⁻¹ z
        ⇒
        f'(z) = √π / 2 exp(a²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.erfinv(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.exp(torch.square(torch.erfinv(z))) * (math.sqrt(math.pi) / 2)


class Lgamma(Elementwise):
    """The logarithm of the gamma function.

    ::

        a = log |Γ(z)|
        ⇒
        f'(z) = ψ(z)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.lgamma(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.digamma(z)


class Digamma(Elementwise):
    """The derivative ψ of the logarithm of the gamma function.

    ::

        a = ψ(z)
        ⇒
        f'(z) = ψ⁽¹⁾(z)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.digamma(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.polygamma(1, z)


class I0(Elementwise):
    """The modified Bessel function of order 0.

    ::

        a = I₀(z)
        ⇒
        f'(z) = I₁(z)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.special.i0(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.special.i1(z)
