"""The gradients of the normalisations, in blocks of rows that stay in the caches.

With d = z − μ, which loses no digits of z, a sum of ẑ ∂C/∂a is one of d ∂C/∂a times r, and is a product of a matrix
with a vector, or a dot product of two rows: these read numbers once, and write none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large, for_steps, plain
from torch_manualbp.rules.norm.batch import centred
from torch_manualbp.rules.norm.normalized import normalized_gradients, total

__all__: list[str] = []

BLOCK_ELEMENTS = 1 << 18
"""Numbers of a block; fewer cost more in calls: at 2048×768 3.5 ms of 2¹⁶, 2.6 of 2¹⁷, 2.4 of 2¹⁸ and 3.6 of all."""

SHORT_ROW = 8
"""Numbers of a row up to which calls, and the last digit of a mean, weigh more than passes over memory."""

LARGEST_R = 1e6
"""1 / √ε, and more: beyond it d ∂C/∂a may be too small a number where ẑ ∂C/∂a is none."""

FEW_NUMBERS = 1 << 14
"""Numbers up to which a mean and a variance by one call, number by number, are faster than in vectors: 4×8×4×4 take
4 µs for 30, 32×16×32×32 0.9 ms for 0.3."""

Dims = tuple[int, ...]
Gradients = tuple[Tensor | None, Tensor | None]


@for_large(normalized_gradients)
def by_blocks(
    da: Tensor,
    z: Tensor,
    mu: Tensor | None,
    r: Tensor,
    w: Tensor | None,
    dims: Dims,
    shared: Dims,
    needs_dz: bool,
    needs_dw: bool,
) -> Any:
    """Rows that are normalised by themselves and have a w for each entry, or one w for all of a row."""
    tensors = [t for t in (da, z, mu, r, w) if t is not None]
    is_plain = all(t.is_contiguous() and t.dtype == z.dtype for t in tensors)
    if not is_plain or z.dtype not in (torch.float32, torch.float64) or not r.amax() <= LARGEST_R:
        return NotImplemented
    together, of_w = {d % z.dim() for d in dims}, {d % z.dim() for d in shared}
    is_of_entries = of_w and not together & of_w and of_w == set(range(len(of_w)))
    row = len(of_w)
    if not is_of_entries:
        row = next(d for d in range(z.dim() + 1) if {*range(d, z.dim())} <= together & of_w)
    if math.prod(z.shape[row:]) <= SHORT_ROW:
        return NotImplemented
    kernel = _with_weights_of_entries if is_of_entries else _with_weights_of_rows
    return kernel(da, z, mu, r, w, row, tuple(together), tuple(of_w), needs_dz, needs_dw)


def _with_weights_of_entries(
    da: Tensor,
    z: Tensor,
    mu: Tensor | None,
    r: Tensor,
    w: Tensor | None,
    row: int,
    dims: Dims,
    shared: Dims,
    needs_dz: bool,
    needs_dw: bool,
) -> Gradients:
    """LayerNorm's and RMSNorm's: ∂C/∂z = r (g − mean g − d r² mean(d g)), ∂C/∂w = Σ r d ∂C/∂a."""
    of_row = z.shape[row:]
    n = math.prod(of_row)
    da, rows, r = da.view(-1, n), z.view(-1, n), r.view(-1, 1)
    mu, w = None if mu is None else mu.view(-1, 1), None if w is None else w.reshape(n)
    dz, dw = torch.empty_like(rows) if needs_dz else None, z.new_zeros(n) if needs_dw else None
    ds, products = (z.new_empty(_rows_of_block(rows), n) for _ in range(2))
    for part in _blocks(rows):
        da_part, r_part = da[part], r[part]
        d = rows[part] if mu is None else torch.sub(rows[part], mu[part], out=ds[: len(r_part)])
        product = torch.mul(d, da_part, out=products[: len(r_part)])
        if dw is not None:
            dw.addmv_(product.t(), r_part.squeeze(1))
        if dz is None:
            continue
        g, minus_mean = dz[part], None
        if mu is not None:
            minus_mean = (da_part.sum(1) if w is None else da_part @ w).unsqueeze(1).div_(-n)
        if w is None:
            g.copy_(da_part) if minus_mean is None else torch.add(da_part, minus_mean, out=g)
        else:
            torch.mul(da_part, w, out=g) if minus_mean is None else torch.addcmul(minus_mean, da_part, w, out=g)
        along = (product.sum(1) if w is None else product @ w).unsqueeze(1)
        if minus_mean is not None:
            along.addcmul_(minus_mean, d.sum(1, keepdim=True))
        g.addcmul_(d, along.mul_(r_part).mul_(r_part), value=-1 / n).mul_(r_part)
    return None if dz is None else dz.view(z.shape), None if dw is None else dw.view(of_row)


def _with_weights_of_rows(
    da: Tensor,
    z: Tensor,
    mu: Tensor | None,
    r: Tensor,
    w: Tensor | None,
    row: int,
    dims: Dims,
    shared: Dims,
    needs_dz: bool,
    needs_dw: bool,
) -> Gradients:
    """BatchNorm's, GroupNorm's and InstanceNorm's: ∂C/∂z = r w ∂C/∂a − r mean g − d r³ mean(d g).

    Σ ∂C/∂a, Σ d and Σ d ∂C/∂a of each row make all the other sums. Where every μ is well below 1 / r, nothing is lost
    if μ is subtracted of these sums, and not of z.
    """
    n = math.prod(z.shape[row:])
    of_rows = torch.Size((*z.shape[:row], *[1] * (z.dim() - row)))
    da_rows, rows = da.view(-1, n), z.view(-1, n)
    is_near_0 = mu is None or bool(mu.mul(r).abs_().amax() <= 0.25)
    mus = None if mu is None or is_near_0 else _for_rows(mu, of_rows)
    sum_da, sum_d, sum_product = (z.new_empty(len(rows)) for _ in range(3))
    ds = z.new_empty(0 if is_near_0 else min(_rows_of_block(rows), len(rows)), n)
    for part in _blocks(rows):
        d = rows[part] if mus is None else torch.sub(rows[part], mus[part], out=ds[: part.stop - part.start])
        sum_product[part] = torch.linalg.vecdot(d, da_rows[part])
        if mu is not None:
            torch.sum(da_rows[part], 1, out=sum_da[part])
            torch.sum(d, 1, out=sum_d[part])
    sum_da, sum_d, sum_product = (t.view(of_rows) for t in (sum_da, sum_d, sum_product))
    if mu is not None and is_near_0:
        sum_product.addcmul_(sum_da, mu, value=-1)
        sum_d.sub_(mu, alpha=n)
    dw = total(sum_product * r, shared) if needs_dw else None
    if not needs_dz:
        return None, dw
    entries = math.prod(z.shape[d] for d in dims)
    along = (sum_product if w is None else sum_product * w).sum(dims, keepdim=True).div_(-entries)
    c = None
    if mu is not None:
        minus_mean = (sum_da if w is None else sum_da * w).sum(dims, keepdim=True).div_(-entries)
        along.addcmul_(minus_mean, sum_d.sum(dims, keepdim=True), value=-1 / entries)
        c = minus_mean * r
    k = along.mul_(r).mul_(r).mul_(r)
    if c is not None and mu is not None and is_near_0:
        c.addcmul_(k, mu, value=-1)
    a, k = (_for_rows(t, of_rows) for t in (r if w is None else r * w, k))
    c = None if c is None else _for_rows(c, of_rows)
    dz = torch.empty_like(rows)
    for part in _blocks(rows):
        d = rows[part] if mus is None else torch.sub(rows[part], mus[part], out=ds[: part.stop - part.start])
        g = torch.mul(da_rows[part], a[part], out=dz[part])
        if c is not None:
            g.add_(c[part])
        g.addcmul_(d, k[part])
    return dz.view(z.shape), dw


def _for_rows(t: Tensor, of_rows: torch.Size) -> Tensor:
    """A number for each row: (rows, 1)."""
    return t.expand(of_rows).reshape(-1, 1)


def _rows_of_block(rows: Tensor) -> int:
    return max(BLOCK_ELEMENTS // rows.shape[1], 1)


def _blocks(rows: Tensor) -> Iterator[slice]:
    size = _rows_of_block(rows)
    for begin in range(0, len(rows), size):
        yield slice(begin, min(begin + size, len(rows)))


@for_steps(centred)
def centred_in_a_step(z: Tensor, dims: Dims) -> tuple[Tensor, Tensor, Tensor]:
    """Of few numbers in float32 by one call, which sums them in float64."""
    if z.dtype != torch.float32 or not _is_over_batch(z, dims) or z.numel() > FEW_NUMBERS:
        return plain(centred)(z, dims)
    mu, v = (t.view(-1, *[1] * (z.dim() - 2)).unsqueeze(0) for t in torch.batch_norm_update_stats(z, None, None, 0.0))
    return z - mu, mu, v


@for_steps(normalized_gradients)
def over_batch(
    da: Tensor,
    z: Tensor,
    mu: Tensor | None,
    r: Tensor,
    w: Tensor | None,
    dims: Dims,
    shared: Dims,
    needs_dz: bool,
    needs_dw: bool,
) -> Gradients:
    """Of channels over the batch, where w is one number for all that has the same means: with w left to the end these
    are the sums for w and b."""
    is_usual = needs_dz and dims == shared and _is_over_batch(z, dims) and da.dtype == z.dtype
    if mu is None or not is_usual or (w is not None and w.dtype != z.dtype):
        return plain(normalized_gradients)(da, z, mu, r, w, dims, shared, needs_dz, needs_dw)
    n = z.numel() / z.shape[1]
    of_channels = (1, -1, *[1] * (z.dim() - 2))
    z_hat, mean_da = (z - mu) * r, total(da, dims) / n
    g = da - mean_da.view(of_channels)
    by_g = total(z_hat * g, dims)
    dz = torch.addcmul(g, z_hat, (by_g / n).view(of_channels), value=-1) * (r if w is None else r * w)
    return dz, by_g + mean_da * total(z_hat, dims) if needs_dw else None  # of large numbers ẑ may sum to more than 0


def _is_over_batch(z: Tensor, dims: Dims) -> bool:
    is_plain = z.device.type == "cpu" and z.dtype in (torch.float32, torch.float64)
    return is_plain and z.dim() >= 2 and dims == (0, *range(2, z.dim())) and z.numel() > 0
