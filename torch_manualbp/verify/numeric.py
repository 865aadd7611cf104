"""Derivatives from values of the forward alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_manualbp.verify.subject import Setting, is_number

__all__ = ["contraction", "directions", "inner", "numeric_gradients", "ridders", "slope_along"]

FIRST_STEP = 1 / 16
"""Relative to the size of the numbers of each leaf."""

LEVELS = 14


def inner(a: Tensor, b: Tensor) -> float:
    """Re Σ a* b."""
    return torch.sum(a.conj() * b).real.item()


def ridders(
    f: Callable[[float], float],
    step: float = FIRST_STEP,
    levels: int = LEVELS,
    enough: float = 1e-12,
    noise: float = 0.0,
) -> tuple[float, float]:
    """f′(0) and an estimate of its error, by central differences extrapolated to a step of 0.

    ::

        D(h) = (f(h) − f(−h)) / 2h,   extrapolated:  D₀(h/2) + (D₀(h/2) − D₀(h)) / (4ᵏ − 1), k = 1, 2, …

    The step is the one at which the extrapolations differ least (Ridders 1982, Advances in Engineering Software 4): a
    larger one leaves terms of higher order, or crosses a kink, and a smaller one is all rounding. The error is NaN's
    counterpart ∞ where no two steps agree, or f is not a number near 0. It stops at a relative error of ``enough``.
    It is no smaller than what ``noise``, the rounding of f, makes of a difference.
    """
    best, error = math.nan, math.inf
    before: list[float] = []
    for level in range(levels):
        h = step / 2**level
        row = [(f(h) - f(-h)) / (2 * h)]
        for k, coarse in enumerate(before[:4]):
            row.append(row[k] + (row[k] - coarse) / (4.0 ** (k + 1) - 1))
            doubt = max(abs(row[k + 1] - row[k]), abs(row[k + 1] - coarse), noise / h)
            if doubt <= error:  # False of NaN
                best, error = row[k + 1], doubt
        before = row
        if error <= enough * abs(best):
            break
    return best, error


def contraction(at: Setting, upstream: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], float]:
    """C = Re ⟨upstream, outputs⟩ as a function of the leaves: its gradient is what backward returns. The leaves ask for
    one, as a forward may see."""

    def cost(leaves: Sequence[Tensor]) -> float:
        asking = [t.detach().requires_grad_() for t in leaves]
        try:
            with torch.no_grad():
                return sum(inner(u, o) for u, o in zip(upstream, at.run(asking), strict=True))
        except (RuntimeError, ValueError):  # such as of a probability above 1
            return math.nan

    return cost


def directions(leaves: Sequence[Tensor], seed: int) -> list[Tensor]:
    """A random direction of each leaf, as long as its numbers are large."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for leaf in leaves:
        numbers = leaf.detach()
        size = numbers[numbers.isfinite()].abs().square().mean().sqrt().item() if numbers.numel() else 0.0
        wide = torch.complex128 if leaf.is_complex() else torch.float64
        drawn = torch.randn(leaf.shape, dtype=wide, generator=generator)
        if leaf.dim() > 1 and leaf.shape[-1] == leaf.shape[-2] and torch.equal(numbers, numbers.mH):
            drawn = (drawn + drawn.mH) / 2  # what is symmetric may have to stay so
        found.append((drawn * (size if 0 < size < math.inf else 1.0)).to(leaf.device, leaf.dtype))
    return found


def slope_along(
    cost: Callable[[Sequence[Tensor]], float],
    leaves: Sequence[Tensor],
    along: Sequence[Tensor | None],
    levels: int = LEVELS,
    enough: float = 1e-12,
    noise: float = 0.0,
) -> tuple[float, float]:
    """dC/dt of ``cost(leaves + t along)`` at t = 0, and its error; ``noise`` is the cost's own rounding."""
    start = [leaf.detach() for leaf in leaves]

    def moved(t: float) -> float:
        return cost([s if v is None else s + t * v for s, v in zip(start, along, strict=True)])

    return ridders(moved, FIRST_STEP, levels, enough, noise)


def numeric_gradients(at: Setting, leaves: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Every entry of every gradient by finite differences: some twenty runs of the forward for each entry."""
    cost = contraction(at, upstream)
    start = [leaf.detach().clone() for leaf in leaves]
    gradients = []
    for leaf in start:
        gradient = torch.zeros_like(leaf)
        flat, found = leaf.view(-1) if leaf.is_contiguous() else leaf.reshape(-1), gradient.view(-1)
        assert flat.data_ptr() == leaf.data_ptr() or not leaf.numel()
        for i in range(flat.numel()):
            value = flat[i].clone()
            size = max(abs(value.item()), 1e-3) if is_number(value) else 1.0
            for unit in (1.0, 1j) if leaf.is_complex() else (1.0,):

                def moved(
                    t: float, i: int = i, unit: complex = unit, flat: Tensor = flat, value: Tensor = value
                ) -> float:
                    flat[i] = value + t * unit
                    return cost(start)

                slope, _ = ridders(moved, FIRST_STEP * size)
                flat[i] = value
                found[i] += slope * unit
        gradients.append(gradient)
    return gradients
