"""Choices between a gradient and 0, and steps.

On the CPU a choice by a mask (torch.where, masked_fill) costs 4.5 ms for 512×4096 numbers of random sign, where the
processor guesses wrong every other time; a comparison written as numbers 0 and 1 costs 0.1 ms, and so does a product.
0 · ∞ is NaN, but a shift of the bits of g is a choice, whatever g is: by the bits of 0.0, which are the integer 0, it
changes nothing; by those of 1.0, which are more places than there are, it leaves 0.

At z = NaN, of either sign, the gradient passes, as torch has it number by number, on the GPU and compiled. (Its vectors
on the CPU block it, or make NaN of it.) Only Hardsigmoid's is blocked there, by all of torch's kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_manualbp.rules.evaluate import (
    fits_blocks,
    formulas_are_compiled,
    fused,
    is_written_down,
    records_nothing,
)
from torch_manualbp.rules.rule import widened

__all__ = [
    "block_beyond",
    "blocked_bits",
    "chosen",
    "is_above",
    "pass_above",
    "pass_between",
    "pass_beyond",
    "pass_positive",
    "passing",
    "step",
    "zero",
]


def is_above(z: Tensor, bound: float) -> Tensor:
    """[z > bound] as numbers 0 and 1, a step function of z whose derivative is 0 and not missing."""
    if records_nothing(z):
        return torch.gt(z, bound, out=torch.empty_like(z))
    return _as_numbers(z > bound, z)


def step(z: Tensor, below: float, above: float) -> Tensor:
    """``above`` where z > 0, ``below`` elsewhere, and where z is NaN."""
    if records_nothing(z) and min(below, above) >= 0:  # the larger of the two is written, then both are clamped
        is_larger = torch.gt(z, 0, out=torch.empty_like(z))
        is_larger = is_larger if above >= below else is_larger.eq_(0)
        scaled = is_larger if max(below, above) == 1 else is_larger.mul_(max(below, above))
        return scaled.clamp_(min=min(below, above))
    if _is_compiled_for_cpu(z):
        return torch.where(z > 0, zero(z) + above, zero(z) + below)  # with plain numbers there is a kernel for each
    positive = is_above(z, 0)
    return (1 - positive).mul_(below).add_(positive, alpha=above)


def pass_above(g: Tensor, z: Tensor, bound: float) -> Tensor:
    """0 where z ≤ bound, else g."""
    return chosen(g, z, _choose_above, _mask_above, bound)


def _choose_above(g: Tensor, z: Tensor, zero: Tensor | int, bound: float) -> Tensor:
    return torch.where(widened(z) <= bound, zero, g)


def _mask_above(g: Tensor, z: Tensor, bound: float) -> Tensor:
    return blocked_bits(g, torch.le(z, _largest_up_to(bound, z.dtype), out=torch.empty_like(z)))


def pass_positive(g: Tensor, a: Tensor) -> Tensor:
    """0 where a = 0, else g, for an a ≥ 0."""
    return chosen(g, a, _choose_positive, _mask_positive)


def _choose_positive(g: Tensor, a: Tensor, zero: Tensor | int) -> Tensor:
    return torch.where(a <= 0, zero, g)


def _mask_positive(g: Tensor, a: Tensor) -> Tensor:
    return blocked_bits(g, torch.eq(a, 0, out=torch.empty_like(a)))


def pass_between(g: Tensor, z: Tensor, low: float, high: float) -> Tensor:
    """0 where z ≤ low or z ≥ high, else g."""
    return chosen(g, z, _choose_between, _mask_between, low, high)


def _choose_between(g: Tensor, z: Tensor, zero: Tensor | int, low: float, high: float) -> Tensor:
    wide = widened(z)
    return torch.where((wide <= low) | (wide >= high), zero, g)


def _mask_between(g: Tensor, z: Tensor, low: float, high: float) -> Tensor:
    below = _largest_below(high, z.dtype)
    if -high <= low and below >= torch.finfo(z.dtype).smallest_normal:
        # What is too low becomes ∞, as far beyond as what is too high; and torch.hardshrink, a choice that costs no
        # more than a product, leaves 0 within, and beyond the number.
        beyond = z if low == -high else torch.threshold(z, _largest_up_to(low, z.dtype), math.inf)
        beyond = torch.hardshrink(beyond, below, out=None if beyond is z else beyond)
        return blocked_bits(g, beyond.nan_to_num_(0, math.inf, -math.inf))
    blocked = torch.le(z, _largest_up_to(low, z.dtype), out=torch.empty_like(z))
    return blocked_bits(g, blocked.add_(torch.ge(z, -_largest_up_to(-high, z.dtype), out=torch.empty_like(z))))


def block_beyond(g: Tensor, z: Tensor, bound: float) -> Tensor:
    """g where |z| < bound, else 0, also where z is NaN; of plain numbers, for a bound that is no subnormal.

    What torch.hardshrink leaves is 0 within, and beyond the number.
    """
    return blocked_bits(g, torch.hardshrink(z, _largest_below(bound, z.dtype)))


def pass_beyond(g: Tensor, z: Tensor, bound: float) -> Tensor:
    """0 where |z| ≤ bound, else g."""
    if formulas_are_compiled() and not torch.compiler.is_compiling():
        bound = _rounded(bound, z.dtype)  # as torch does; a kernel of one formula compares in float32
    return chosen(g, z, _choose_beyond, _mask_beyond, bound)


def _choose_beyond(g: Tensor, z: Tensor, zero: Tensor | int, bound: float) -> Tensor:
    return torch.where(z.abs() <= bound, zero, g)  # torch, too, rounds this bound to the dtype of z


def _mask_beyond(g: Tensor, z: Tensor, bound: float) -> Tensor:
    return blocked_bits(g, z.abs().le_(bound))


def passing(z: Tensor, out: Tensor | None = None) -> Tensor:
    """z with ∞ in place of NaN, for a formula of f' that lets the gradient pass above 0."""
    return torch.nan_to_num(z, math.inf, math.inf, -math.inf, out=out)


def chosen(g: Tensor, z: Tensor, choose: Callable[..., Tensor], lean: Callable[..., Tensor], *bounds: float) -> Tensor:
    """``choose(g, z, zero, *bounds)``, or of large tensors ``lean(g, z, *bounds)``, the same in fewer passes.

    ``zero`` is 0, as a function of z where somebody may ask for its derivative or keep z for it.
    """
    if is_written_down() and records_nothing(g, z) and g.dtype == z.dtype:
        return lean(g, z, *bounds)  # of small tensors it is as fast
    if not fits_blocks(g, z) or g.dtype != z.dtype:
        return choose(g, z, _zero_of(g, z), *bounds)
    if formulas_are_compiled():
        return fused(choose, g, z, 0, *map(float, bounds))
    return lean(g, z, *bounds)


_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def blocked_bits(g: Tensor, fresh: Tensor) -> Tensor:
    """g where ``fresh`` is 0.0, and 0 where it is negative (as −0.0 is) or a positive number that is no subnormal,
    written over ``fresh``, which has the dtype of g.

    As an integer it is negative or large: in torch, on the CPU, a shift by either leaves 0 (pytorch#96659).
    """
    bits = _BITS[g.dtype]
    places = fresh.view(bits)
    torch.bitwise_left_shift(g.view(bits), places, out=places)
    return fresh


@functools.cache
def _rounded(bound: float, dtype: torch.dtype) -> float:
    return torch.tensor(bound, dtype=dtype).item()


@functools.cache  # the bounds of a layer stay, and to look for the next number takes the time of a pass
def _largest_below(bound: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is smaller than the bound."""
    from_bound_on = torch.tensor(-_largest_up_to(-bound, dtype), dtype=dtype)
    return torch.nextafter(from_bound_on, from_bound_on.new_tensor(-math.inf)).item()


@functools.cache
def _largest_up_to(bound: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is no larger than the bound.

    z > bound is z > this; but a comparison in low precision rounds its bound to the nearest. torch's kernels do not.
    """
    exact = torch.tensor(bound, dtype=torch.promote_types(dtype, torch.float32))
    near = exact.to(dtype)
    return (near if near <= exact else torch.nextafter(near, near.new_tensor(-math.inf))).item()


def _zero_of(g: Tensor, z: Tensor) -> Tensor | int:
    return zero(z).to(g.dtype) if torch.is_grad_enabled() or _is_compiled_for_cpu(z) else 0


def _as_numbers(mask: Tensor, z: Tensor) -> Tensor:
    return mask.to(z.dtype) + zero(z)


def zero(z: Tensor) -> Tensor:
    """0, also of NaN, as a function of z whose derivative is 0 and not missing."""
    return z.sign().clamp(0, 0) if _is_compiled_for_cpu(z) else z.sign() * 0


def _is_compiled_for_cpu(z: Tensor) -> bool:
    """Whether torch.compile makes C++ of this. It then keeps for backward what is smallest, a mask before z, and writes
    masks number by number: at 512×4096 10 ms for 1. A 0 that it cannot fold makes it keep z, as ATen does."""
    return torch.compiler.is_compiling() and z.device.type == "cpu"
