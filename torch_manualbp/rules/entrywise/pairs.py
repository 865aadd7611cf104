"""Functions of two entries: angles, lengths, and sums in the logarithm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.entrywise.two import OfTwo

__all__ = ["Atan2", "Hypot", "LogAddExp", "LogAddExp2", "XLogY"]


class Atan2(OfTwo):
    """The angle of a point (y, x) in the plane.

    ::

        z = arctan(x / y),  in the quadrant of (y, x)
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ y / (x² + y²)
        ∂C/∂y = −∂C/∂z ⊙ x / (x² + y²),  both 0 at the origin

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.atan2(x, y)

    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        scale, z = _off_origin(x, y)
        return y * scale / z / z * scale

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        scale, z = _off_origin(x, y)
        return -x * scale / z / z * scale


class Hypot(OfTwo):
    """The length of the hypotenuse.

    ::

        z = √(x² + y²)
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ x / z
        ∂C/∂y = ∂C/∂z ⊙ y / z

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.hypot(x, y)

    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        scale, z = _hypotenuse(x, y)
        return x * scale / z

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        scale, z = _hypotenuse(x, y)
        return y * scale / z


class LogAddExp(OfTwo):
    """The logarithm of the sum of two exponentials.

    ::

        z = log(exp(x) + exp(y))
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ σ(x − y)
        ∂C/∂y = ∂C/∂z ⊙ σ(y − x)

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.logaddexp(x, y)

    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return torch.sigmoid(x - y)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return torch.sigmoid(y - x)


class LogAddExp2(OfTwo):
    """The logarithm of the sum of two powers of 2, to base 2.

    ::

        z = log₂(2^x + 2^y)
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ σ((x − y) log 2)
        ∂C/∂y = ∂C/∂z ⊙ σ((y − x) log 2)

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.logaddexp2(x, y)

    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return torch.sigmoid((x - y) * math.log(2))

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return torch.sigmoid((y - x) * math.log(2))


class XLogY(OfTwo):
    """The product of an entry with the logarithm of another, 0 where the first is 0.

    ::

        z = x log y,  where x = 0 always 0
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ log y,  where x = 0 and y ≤ 0 always 0
        ∂C/∂y = ∂C/∂z ⊙ x / y

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.xlogy(x, y)

    @staticmethod
    def to_x(dz: Tensor, x: Any, y: Any) -> Tensor:
        return dz * torch.where((x == 0) & (y <= 0), 0, torch.log(y))

    @staticmethod
    def to_y(dz: Tensor, x: Any, y: Any) -> Tensor:
        return dz * x / y


def _hypotenuse(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A scale s and √(s²x² + s²y²): s is 1, and a quarter next to the largest numbers, where the root overflows."""
    z = torch.hypot(x, y)
    scale = torch.where(z.isinf(), 0.25, torch.ones_like(z))
    return scale, torch.hypot(x * scale, y * scale)


def _off_origin(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and an infinite root at the origin."""
    is_origin = (x == 0) & (y == 0)
    scale, z = _hypotenuse(x, torch.where(is_origin, 1, y))
    return scale, torch.where(is_origin, math.inf, z)
