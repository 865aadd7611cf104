"""How a formula is evaluated on large tensors: as it stands, or in fewer and cheaper passes over memory."""

from __future__ import annotations

import cmath
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import widened

__all__ = [
    "BLOCK",
    "are_finite",
    "blocks",
    "chosen",
    "compile_formulas",
    "exact_sigmoid",
    "fits_blocks",
    "formulas_are_compiled",
    "fused",
    "in_blocks_of_rows",
    "is_above",
    "is_between",
    "larger",
    "logistic",
    "logistic_and_divisor",
    "pass_above",
    "pass_between",
    "pass_beyond",
    "pass_positive",
    "quotient",
    "records_nothing",
    "step",
    "times",
    "times_one_plus",
    "zero_of",
]

BLOCK = 1 << 17
"""Numbers in a block: some intermediates of it fit the cache, and its operations outlast the calls of them."""

BLOCK_OF_ROWS = 1 << 15
"""Numbers in a block of rows, of which a formula makes more intermediates."""

LARGE = 1 << 13
"""Numbers from which on a choice by a product, which is more calls, is faster than one by a mask."""


def records_nothing(*tensors: Any) -> bool:
    """Whether these are plain numbers in the CPU's memory and nobody records what becomes of them."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(_is_plain(t) for t in tensors)


def _is_plain(t: Any) -> bool:
    if type(t) is not Tensor or t.device.type != "cpu" or t.layout is not torch.strided:
        return False
    return not torch._C._functorch.is_legacy_batchedtensor(t)  # as is_grads_batched makes of the upstream gradient


def in_blocks_of_rows(formula: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``formula(*tensors)`` of tensors with a row for each sample, the first of K numbers.

    On large plain tensors in cache-sized blocks, since a pass over fresh memory costs four times what one over the
    cache does: 4096×1000 numbers 0.9 ms.
    """
    rows = tensors[0]
    if rows.numel() < 2 * BLOCK_OF_ROWS or not records_nothing(*tensors):
        return formula(*tensors)
    blocks = zip(*(t.split(max(BLOCK_OF_ROWS // rows.shape[1], 1)) for t in tensors), strict=True)
    first = formula(*next(blocks))
    result = first.new_empty(rows.shape[0], *first.shape[1:])
    into = iter(result.split(first.shape[0]))
    next(into).copy_(first)
    for part, block in zip(into, blocks, strict=True):
        part.copy_(formula(*block))
    return result


def fits_blocks(*tensors: Tensor) -> bool:
    """Whether an elementwise formula of these may, and should, be evaluated in :func:`blocks`."""
    first = tensors[0]
    if first.numel() < LARGE or not records_nothing(*tensors):
        return False
    return all(t.is_contiguous() and t.shape == first.shape for t in tensors)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The corresponding blocks of tensors of one shape.

    What a formula makes on its way is then small, and stays in the cache and in the allocator's hands. Temporary
    tensors of 8 MB go back to the system each time, and their new pages cost more than the arithmetic on them.
    """
    return zip(*[t.view(-1).split(BLOCK) for t in tensors], strict=True)


_compiles_formulas = False


def compile_formulas(enabled: bool = True) -> None:
    """Have the formulas of the activations run on large CPU tensors as one fused kernel each, which ``torch.compile``
    makes of the formula itself when it is first used: some seconds each, and a C++ compiler is needed.

    For training without ``torch.compile``. The numbers are the same to rounding; small tensors are not affected.
    """
    global _compiles_formulas
    _compiles_formulas = enabled


def formulas_are_compiled() -> bool:
    """Whether :func:`compile_formulas` is on."""
    return _compiles_formulas


@functools.cache
def _kernel(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(formula, dynamic=True, fullgraph=True)


def fused(formula: Callable[..., Tensor], first: Tensor, *args: Any) -> Tensor:
    """``formula(first, *args)``, which is elementwise, in one kernel for tensors of all shapes."""
    flat = [arg.view(-1) if isinstance(arg, Tensor) else arg for arg in args]
    return _kernel(formula)(first.view(-1), *flat).view_as(first)


def logistic(t: Tensor) -> Tensor:
    """σ(t) = exp(t) / (1 + exp(t)), where exp(t) is no larger than it need be.

    torch's own is 0 where exp(−t) overflows, of float32 from t = −88.7 down, although the numbers go on to exp(−103).
    """
    if not records_nothing(t):
        return t.sigmoid()
    e = t.clamp(max=40).exp_()
    return e.div_(e + 1)


def exact_sigmoid(t: Tensor) -> Tensor:
    """σ(t) = 1 / (1 + exp(−t)), whose exp torch.sigmoid shortens by a bit, which a sum that cancels then shows."""
    return t.neg().exp_().add_(1).reciprocal_() if records_nothing(t) else t.sigmoid()


def logistic_and_divisor(t: Tensor) -> tuple[Tensor, Tensor]:
    """σ(t) and d = 1 + exp(t): 1 − σ(t) = 1 / d, which loses no digits to σ."""
    e = t.clamp(max=40).exp()
    d = e + 1
    return quotient(e, d), d


def quotient(fresh: Tensor, d: Tensor | float) -> Tensor:
    """fresh / d, written over ``fresh``, which nobody else may hold, where that may be."""
    return fresh.div_(d) if records_nothing(fresh, d) else fresh / d


def times(g: Tensor, fresh: Tensor) -> Tensor:
    """g ⊙ fresh, written over ``fresh``, which nobody else may hold, where that may be."""
    if records_nothing(g, fresh) and g.dtype == fresh.dtype and g.shape == fresh.shape:
        return fresh.mul_(g)
    return g * fresh


def times_one_plus(fresh: Tensor, y: Tensor, sign: int = 1) -> Tensor:
    """fresh ⊙ (1 ± y), written over ``fresh``, which nobody else may hold, where that may be.

    As fresh ± fresh ⊙ y, which is one pass, and rounded once by processors that fuse it, so that no digit cancels.
    """
    if records_nothing(fresh, y):
        return fresh.addcmul_(fresh, y, value=sign)
    return torch.addcmul(fresh, fresh, y, value=sign)


def larger(fresh: Tensor, other: Tensor) -> Tensor:
    """max(fresh, other), written over ``fresh``, which nobody else may hold, where that may be."""
    return torch.maximum(fresh, other, out=fresh if records_nothing(fresh, other) else None)


# Choices. On the CPU a choice by a mask (torch.where, masked_fill) costs 4.5 ms for 512×4096 numbers of random sign,
# where the processor guesses wrong every other time; a comparison written as numbers 0 and 1 costs 0.1 ms, and so does
# a product. But 0 · inf is NaN, so that a product is not a choice where g is infinite or NaN.


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


def are_finite(t: Tensor) -> bool:
    """Whether all are finite, by a sum; if the sum overflows it says no."""
    wide = torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype
    return cmath.isfinite(t.sum(dtype=wide).item())


def _as_numbers(mask: Tensor, z: Tensor) -> Tensor:
    return mask.to(z.dtype) + z.sign() * 0
