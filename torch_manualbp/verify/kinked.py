"""Kinks: where a derivative jumps, any value between those of both sides is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_manualbp.verify.subject import gradients_of, with_zeros

__all__ = ["beside", "is_between"]

STEP = 2.0**-30
"""By which numbers are moved off a kink, relatively to their size; in float32, 2⁻¹²."""

JUMP = 1e-4
"""A share of the largest entry: by as much one-sided derivatives differ on a kink, and no smooth function's."""

DRAWS = 6

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def beside(run: Run, leaves: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradients of a run at points beside the leaves: all numbers a little larger, all smaller, and some draws of
    both."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for draw in range(2 + DRAWS):
        moved = []
        for leaf in leaves:
            t = leaf.detach()
            signs = torch.randint(2, t.shape, generator=generator).to(t.device) * 2 - 1
            signs = signs * torch.rand(t.shape, generator=generator).add(0.5).to(t.device)
            by = (signs if draw > 1 else (1.0, -1.0)[draw]) * (STEP if t.dtype.itemsize >= 8 else 2.0**-12)
            size = t.abs().nan_to_num(0, 0, 0)
            if size.numel():
                size = size + size.square().mean().sqrt() + 1e-30
            moved.append((t + by * size).to(t.dtype).requires_grad_(leaf.requires_grad))
        try:
            outputs = run(moved)
            found.append(with_zeros(gradients_of(outputs, moved, upstream), moved))
        except (RuntimeError, ValueError, ArithmeticError):  # it takes no such numbers
            continue
    return found


def is_between(gradient: Tensor, expected: Tensor, tolerance: Tensor | float, sides: Sequence[Tensor]) -> bool:
    """Whether every entry that is off by more than the tolerance stands on a kink, between the derivatives of its
    sides."""
    if gradient.is_complex() or len(sides) < 2:
        return False
    wide = gradient.double()
    off = ~((wide - expected.double()).abs() <= tolerance)
    several = torch.stack([expected.double(), *(s.double() for s in sides)])
    low, high = several.amin(0), several.amax(0)
    width = high - low
    size = several.abs().nan_to_num(0, 0, 0).max() if several.numel() else torch.zeros(())
    inside = (width > JUMP * size) & (wide >= low - 1e-3 * width) & (wide <= high + 1e-3 * width)
    return bool((inside | ~off).all())
