"""Which likely mistake a wrong gradient is: corrections are tried until one makes it right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["hint_for"]

ALIKE = 1e-6
"""To which a corrected gradient must agree, relatively to the largest entry."""

WORTH_NAMING = 1e-3
"""Wrong entries of which this fraction, or less, is named by count."""


def hint_for(gradient: Tensor, expected: Tensor) -> str:
    """What would make a gradient right, in words, or what is known about where it is wrong."""
    if not expected.numel():
        return ""
    wide = torch.complex128 if expected.is_complex() or gradient.is_complex() else torch.float64
    g, r = gradient.detach().to(wide), expected.detach().to(wide)
    finite = g.isfinite() & r.isfinite()
    if not finite.all():
        odd = (g.isnan() != r.isnan()).sum().item()
        if odd:
            return f"{odd} of {g.numel()} entries are {'NaN' if g.isnan().any() else 'finite'} and should not be"
        return "infinite where it should not be, or the other way round"
    if not g.abs().any():
        return "all zero: a term, or the whole path, is missing"
    for words, corrected in _corrections(g, r):
        if corrected.shape == r.shape and _alike(corrected, r):
            return words
    return _where(g, r)


def _alike(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= ALIKE * b.abs().max())


def _corrections(g: Tensor, r: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "the sign is wrong", -g
    if g.is_complex():
        yield "conj: it is the conjugate of the right one", g.conj()
    if g.dim() >= 2 and g.shape[-1] == g.shape[-2]:
        yield "transpose: the last two dimensions are swapped", g.transpose(-1, -2)
        yield "transpose and sign: the last two dimensions are swapped, and the sign is wrong", -g.transpose(-1, -2)
    factor = _factor(g, r)
    if factor is not None:
        yield _of_factor(factor, r), g * factor
    for dim in range(g.dim()):
        if g.shape[dim] > 1:
            total = g.sum(dim, keepdim=True)
            yield f"missing sum over dimension {dim}", total.expand_as(g)
            yield f"missing mean over dimension {dim}", (total / g.shape[dim]).expand_as(g)
            yield f"flipped along dimension {dim}", g.flip(dim)


def _factor(g: Tensor, r: Tensor) -> float | complex | None:
    """The c with r ≈ c g in the least squares."""
    square = (g.conj() * g).sum()
    c: Any = ((g.conj() * r).sum() / square).item()
    if not c:
        return None
    return c if g.is_complex() and abs(c.imag) > 1e-9 * abs(c) else c.real


def _of_factor(factor: float | complex, r: Tensor) -> str:
    """In words what a factor is likely to be."""
    if isinstance(factor, complex):
        return f"factor: {factor:.6g} times this is right"
    sizes = {f"dimension {i} ({n})": float(n) for i, n in enumerate(r.shape) if n > 1}
    sizes["the number of entries"] = float(r.numel())
    for words, n in sizes.items():
        is_batch = ", off by the batch size" if words.startswith("dimension 0") else ""
        if n > 2 and abs(factor * n - 1) < 1e-6:
            return f"missing mean: it must be divided by {words}{is_batch}"
        if n > 2 and abs(factor / n - 1) < 1e-6:
            return f"one mean too many: it is divided by {words}{is_batch}"
    return f"factor: it is {1 / factor:.7g} times the right one" if abs(factor) < 1e12 else "a factor of nearly 0"


def _where(g: Tensor, r: Tensor) -> str:
    off = (g - r).abs() > 1e-9 * r.abs().max()
    count, total = int(off.sum()), off.numel()
    if not count:
        return ""
    if count < total:
        slices = [
            f"index {int(hit.nonzero()[0])} of dimension {dim}"
            for dim in range(off.dim())
            if off.shape[dim] > 1
            for hit in [off.movedim(dim, 0).flatten(1).any(1) if off.dim() > 1 else off]
            if int(hit.sum()) == 1
        ]
        return f"{count} of {total} entries are wrong" + (f", all at {' and '.join(slices)}" if slices else "")
    difference = g - r
    if torch.allclose(
        difference, difference.reshape(-1)[:1].expand_as(difference.reshape(-1)).reshape(difference.shape)
    ):
        return f"{difference.reshape(-1)[0].item():.3g} too much everywhere"
    return "a term is wrong or missing: no single sign, factor, transpose, sum or mean makes it right"
