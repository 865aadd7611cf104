"""Choices between a gradient and 0, and steps.

On the CPU a choice by a mask (torch.where, masked_fill) costs 4.5 ms for 512×4096 numbers of random sign, where the
processor guesses wrong every other time; a comparison written as numbers 0 and 1 costs 0.1 ms, and so does a product.
But 0 · inf is NaN, so that a product is not a choice where g is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_manualbp.rules.evaluate import are_finite, fits_blocks, formulas_are_compiled, fused, records_nothing
from torch_manualbp.rules.rule import widened

__all__ = [
    "chosen",
    "is_above",
    "is_between",
    "pass_above",
    "pass_between",
    "pass_beyond",
    "pass_positive",
    "step",
    "zero_of",
]


def is_above(z: Tensor, bound: float) -> Tensor:
    """[z > bound] as numbers 0 and 1, a step function of z whose derivative is 0 and not missing."""
    if records_nothing(z):
        return torch.gt(z, bound, out=torch.empty_like(z))
    return _as_numbers(z > bound, z)


def is_between(z: Tensor, low: float, high: float) -> Tensor:
    """[low < z < high] as numbers 0 and 1, a step function of z whose derivative is 0 and not missing."""
    if not records_nothing(z):
        return _as_numbers((z > low) & (z < high), z)
    bounds = z.new_tensor([low, high])
    above, below = torch.nextafter(bounds, bounds.flip(0)).tolist()
    return z.clamp(above, below).eq_(z)  # to the numbers next to the bounds: two passes and not three


def step(z: Tensor, below: float, above: float) -> Tensor:
    """``above`` where z > 0, ``below`` elsewhere."""
    if records_nothing(z) and min(below, above) >= 0:  # the larger of the two is written, then both are clamped
        is_larger = (torch.gt if above >= below else torch.le)(z, 0, out=torch.empty_like(z))
        scaled = is_larger if max(below, above) == 1 else is_larger.mul_(max(below, above))
        return scaled.clamp_(min=min(below, above))
    positive = is_above(z, 0)
    return (1 - positive).mul_(below).add_(positive, alpha=above)


def pass_above(g: Tensor, z: Tensor, bound: float) -> Tensor:
    """g where z > bound, else 0. Where z is NaN g passes, as in torch."""
    return chosen(g, z, _choose_above, lambda: torch.gt(z, bound, out=torch.empty_like(z)), bound, passes_nan=True)


def _choose_above(g: Tensor, z: Tensor, bound: float) -> Tensor:
    return torch.where(widened(z) <= bound, zero_of(g, z), g)


def pass_positive(g: Tensor, a: Tensor) -> Tensor:
    """g where a > 0, else 0, for an a ≥ 0. Where a is NaN g passes, as in torch."""
    return chosen(g, a, _choose_positive, lambda: torch.ne(a, 0, out=torch.empty_like(a)))


def _choose_positive(g: Tensor, a: Tensor) -> Tensor:
    return torch.where(a <= 0, a, g)  # a, and no other 0, has the derivative by z that is 0 and not missing


def pass_between(g: Tensor, z: Tensor, low: float, high: float) -> Tensor:
    """g where low < z < high, else 0."""
    return chosen(g, z, _choose_between, lambda: is_between(z, low, high), low, high)


def _choose_between(g: Tensor, z: Tensor, low: float, high: float) -> Tensor:
    wide = widened(z)
    return torch.where((wide > low) & (wide < high), g, zero_of(g, z))


def pass_beyond(g: Tensor, z: Tensor, bound: float) -> Tensor:
    """g where |z| > bound, else 0."""
    return chosen(g, z, _choose_beyond, lambda: z.abs().gt_(bound), bound)


def _choose_beyond(g: Tensor, z: Tensor, bound: float) -> Tensor:
    return torch.where(z.abs() > bound, g, zero_of(g, z))  # torch, too, rounds this bound to the dtype of z


def chosen(
    g: Tensor,
    z: Tensor,
    choose: Callable[..., Tensor],
    numbers: Callable[[], Tensor],
    *bounds: float,
    passes_nan: bool = False,
) -> Tensor:
    """``choose(g, z, *bounds)``, by a product of g with the fresh factors of ``numbers()`` where that is the same and
    faster."""
    if not fits_blocks(g, z) or g.dtype != z.dtype:
        return choose(g, z, *bounds)
    if formulas_are_compiled():
        return fused(choose, g, z, *bounds)
    if widened(z) is not z:  # a comparison in low precision rounds its bound, as torch's kernels do not
        return choose(g, z, *bounds)
    result = numbers().mul_(g)
    if are_finite(result) and (not passes_nan or are_finite(z)):
        return result
    return choose(g, z, *bounds)


def zero_of(g: Tensor, z: Tensor) -> Tensor | int:
    """0 in the dtype of g, as a function of z whose derivative is 0 and not missing where somebody may ask for it."""
    return (z.sign() * 0).to(g.dtype) if torch.is_grad_enabled() else 0


def _as_numbers(mask: Tensor, z: Tensor) -> Tensor:
    return mask.to(z.dtype) + z.sign() * 0
