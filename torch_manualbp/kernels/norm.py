"""The gradients of the normalisations of rows, in blocks of them that stay in the caches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large
from torch_manualbp.rules.norm.normalized import normalized_gradients

__all__: list[str] = []

BLOCK_ELEMENTS = 1 << 17
"""Numbers of a block, of which three lie in a cache that is one core's own; fewer cost more in calls: at 2048×768
6.1 ms of blocks of 2¹⁵, 5.0 of 2¹⁶, 4.3 of 2¹⁷ and 4.5 of 2¹⁹, and 8.3 of the formula as it stands."""

Dims = tuple[int, ...]


@for_large(normalized_gradients)
def of_rows(
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
    """Of LayerNorm and RMSNorm, whose last dimensions are normalised and have a w for each entry."""
    tensors = [t for t in (da, z, mu, r, w) if t is not None]
    is_plain = all(t.is_contiguous() and t.dtype == z.dtype for t in tensors)
    is_of_rows = dims == tuple(range(-len(dims), 0)) and shared == tuple(range(z.dim() - len(dims))) and shared
    if not is_plain or not is_of_rows or z.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    n = math.prod(z.shape[len(shared) :])
    rows = z.numel() // max(n, 1)
    dz = torch.empty_like(z) if needs_dz else None
    dw: Tensor | None = None
    size = max(BLOCK_ELEMENTS // max(n, 1), 1)
    da_rows, z_rows, r_rows = da.view(rows, n), z.view(rows, n), r.view(rows, 1)
    for at in range(0, rows, size):
        part = slice(at, at + size)
        z_hat = torch.sub(z_rows[part], mu.view(rows, 1)[part]) if mu is not None else z_rows[part] * r_rows[part]
        if mu is not None:
            z_hat.mul_(r_rows[part])
        if needs_dw:
            more = (z_hat * da_rows[part]).sum(0)
            dw = more if dw is None else dw.add_(more)
        if dz is not None:
            g = dz.view(rows, n)[part]
            g.copy_(da_rows[part]) if w is None else torch.mul(da_rows[part], w.view(n), out=g)
            if mu is not None:
                g.sub_(g.mean(1, keepdim=True))
            along = torch.linalg.vecdot(z_hat, g).unsqueeze(1).div_(n)
            g.addcmul_(z_hat, along, value=-1).mul_(r_rows[part])
    return dz, None if dw is None else dw.view(z.shape[len(shared) :])
