"""Exponentials and logarithms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_manualbp.rules.elementwise import Elementwise
from torch_manualbp.rules.rule import widened

__all__ = ["Exp", "Exp2", "Expm1", "Log", "Log1p", "Log2", "Log10"]


class Exp(Elementwise):
    """The exponential.

    ::

        a = exp(z)
        ⇒
        f'(z) = a

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.exp(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a


class Exp2(Elementwise):
    """The power of 2.

    ::

        a = 2^z
        ⇒
        f'(z) = a log 2

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.exp2(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a * math.log(2)


class Expm1(Elementwise):
    """The exponential less 1, with all its digits near 0.

    ::

        a = exp(z) − 1
        ⇒
        f'(z) = a + 1

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.expm1(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a + 1


class Log(Elementwise):
    """The natural logarithm.

    ::

        a = log z
        ⇒
        f'(z) = 1 / z

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.log(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return (widened(da) / widened(z)).to(
            da.dtype
        )  # of subnormal z the quotient may be a number where 1 / z is none


class Log2(Elementwise):
    """The logarithm to base 2.

    ::

        a = log₂ z
        ⇒
        f'(z) = 1 / (z log 2)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.log2(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return (widened(da) / (widened(z) * math.log(2))).to(da.dtype)


class Log10(Elementwise):
    """The logarithm to base 10.

    ::

        a = log₁₀ z
        ⇒
        f'(z) = 1 / (z log 10)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.log10(z)

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return (widened(da) / (widened(z) * math.log(10))).to(da.dtype)


class Log1p(Elementwise):
    """The logarithm of 1 + z, with all its digits near 0.

    ::

        a = log(1 + z)
        ⇒
        f'(z) = 1 / (1 + z)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.log1p(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (1 + z)
