"""Powers and roots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.elementwise import Elementwise
from torch_manualbp.rules.entrywise.two import OfTwo
from torch_manualbp.rules.rule import widened

__all__ = ["Power", "PowerOf", "Reciprocal", "Rsqrt", "Sqrt"]


class Power(Elementwise):
    """A power whose exponent is a number.

    ::

        a = z^p
        ⇒
        f'(z) = p z^(p−1)

    p is not 0, of which a is 1 and no function of z. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, p: float) -> Tensor:
        return torch.pow(z, p)

    @staticmethod
    def derivative(z: Tensor, p: float) -> Tensor:
        return p * (z if p == 2 else torch.pow(z, p - 1))


class PowerOf(OfTwo):
    """A power whose exponent is a tensor, and whose base is a tensor or a number.

    ::

        z = x^y
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ y x^(y−1),  where y = 0 always 0
        ∂C/∂y = ∂C/∂z ⊙ z log x,    where x = 0 ≤ y always 0

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. For complex
    numbers the factors are conjugated. Kept: x and y.
    """

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.pow(x, y)

    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return torch.where(y == 0, 0, y * torch.pow(x, y - 1))

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return torch.where((x == 0) & (y.real >= 0), 0, torch.pow(x, y) * torch.log(x))


class Sqrt(Elementwise):
    """The square root.

    ::

        a = √z
        ⇒
        f'(z) = 1 / 2a

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sqrt(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return 1 / (2 * a)


class Rsqrt(Elementwise):
    """One over the square root.

    ::

        a = 1 / √z
        ⇒
        f'(z) = −a³ / 2

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.rsqrt(z)

    @staticmethod
    def delta(da: Tensor, a: Tensor) -> Tensor:
        a = widened(a)
        return (widened(da) * a * a * a * -0.5).to(da.dtype)  # a³ alone may be subnormal


class Reciprocal(Elementwise):
    """One over z.

    ::

        a = 1 / z
        ⇒
        f'(z) = −a²

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.reciprocal(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return -a * a
