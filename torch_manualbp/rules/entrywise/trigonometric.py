"""Trigonometric and hyperbolic functions, and their inverses."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp.rules.elementwise import Elementwise

__all__ = ["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan"]


class Sin(Elementwise):
    """The sine.

    ::

        a = sin z
        ⇒
        f'(z) = cos z

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sin(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.cos(z)


class Cos(Elementwise):
    """The cosine.

    ::

        a = cos z
        ⇒
        f'(z) = −sin z

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.cos(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return -torch.sin(z)


class Tan(Elementwise):
    """The tangent.

    ::

        a = tan z
        ⇒
        f'(z) = 1 + a²

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tan(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return 1 + a * a


class Asin(Elementwise):
    """The inverse of the sine.

    ::

        a = arcsin z
        ⇒
        f'(z) = 1 / √(1 − z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.asin(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.rsqrt(_one_minus_square(z))


class Acos(Elementwise):
    """The inverse of the cosine.

    ::

        a = arccos z
        ⇒
        f'(z) = −1 / √(1 − z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.acos(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return -torch.rsqrt(_one_minus_square(z))


class Atan(Elementwise):
    """The inverse of the tangent.

    ::

        a = arctan z
        ⇒
        f'(z) = 1 / (1 + z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.atan(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (1 + z * z)


class Sinh(Elementwise):
    """The hyperbolic sine.

    ::

        a = sinh z
        ⇒
        f'(z) = cosh z

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sinh(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.cosh(z)


class Cosh(Elementwise):
    """The hyperbolic cosine.

    ::

        a = cosh z
        ⇒
        f'(z) = sinh z

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.cosh(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.sinh(z)


class Asinh(Elementwise):
    """The inverse of the hyperbolic sine.

    ::

        a = arsinh z
        ⇒
        f'(z) = 1 / √(1 + z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.asinh(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.rsqrt(1 + z * z)


class Acosh(Elementwise):
    """The inverse of the hyperbolic cosine.

    ::

        a = arcosh z
        ⇒
        f'(z) = 1 / √(z² − 1)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.acosh(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (torch.sqrt(z - 1) * torch.sqrt(z + 1))


class Atanh(Elementwise):
    """The inverse of the hyperbolic tangent.

    ::

        a = artanh z
        ⇒
        f'(z) = 1 / (1 − z²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.atanh(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / _one_minus_square(z)


def _one_minus_square(z: Tensor) -> Tensor:
    """1 − z². Far from 0 the square loses the digits of what is left of 1, near 0 the factors those of z."""
    return torch.where(z.abs() < 0.5, 1 - z * z, (1 - z) * (1 + z))
