"""The gradient noise scale of linear layers, from per-sample gradient norms, which δ and the layer's inputs give.

McCandlish et al., "An Empirical Model of Large-Batch Training" (2018), appendix A.1: with the gradient g_i of sample i
and G = Σ g_i / n::

    B = tr Σ / |G|²            the batch size at which noise and gradient are equal in size
    tr Σ = (Σ ‖g_i‖² / n − ‖G‖²) n / (n − 1)        without bias, as is
    |G|² = (n ‖G‖² − Σ ‖g_i‖² / n) / (n − 1)

Of a linear layer g_i = δ_iᵀ x_i, so that ‖g_i‖² = ‖δ_i‖² ‖x_i‖² without a product of matrices. With T rows a sample it
is Σ_tu (δ_t · δ_u) (x_t · x_u), or the norm of the product, whichever takes fewer multiplications.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["noise", "per_sample_norms", "product_norm"]

LARGE = 1 << 23
"""Numbers that a product of many samples may have at a time."""


def noise(delta: Tensor, x: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    """(tr Σ, |G|²) of the weight and the bias of a linear layer, as tensors of no dimension.

    Args:
        delta: ∂C/∂z of shape (n, …, out), for a C that is the mean over n > 1 samples; of a sum both are n² times as
            large.
        x: what went in, of shape (n, …, in).
    """
    n = delta.shape[0]
    squares = per_sample_norms(delta, x, has_bias).sum() * n  # of g_i = n δ_iᵀ x_i, over n
    G = product_norm(delta, x, has_bias)
    return (squares - G) * n / (n - 1), (n * G - squares) / (n - 1)


def per_sample_norms(delta: Tensor, x: Tensor, has_bias: bool) -> Tensor:
    """‖δ_iᵀ x_i‖² of every sample, with ‖Σ δ_i‖² of the bias; of shape (n,)."""
    delta, x = _rows(delta, 3), _rows(x, 3)
    T, out, into = delta.shape[1], delta.shape[2], x.shape[2]
    if T == 1:
        return delta.square().sum((1, 2)) * (x.square().sum((1, 2)) + has_bias)
    by_rows = T * (out + into) < out * into
    size = max(LARGE // (T * T if by_rows else out * into), 1)
    parts = []
    for d, a in zip(delta.split(size), x.split(size), strict=True):
        if by_rows:
            parts.append(((d @ d.mT) * (a @ a.mT + has_bias)).sum((1, 2)))
        else:
            parts.append((d.mT @ a).square().sum((1, 2)) + d.sum(1).square().sum(1) * has_bias)
    return torch.cat(parts)


def product_norm(delta: Tensor, x: Tensor, has_bias: bool = False) -> Tensor:
    """‖δᵀ x‖² over all rows, with ‖Σ δ‖² of the bias, the product made only if that is less work."""
    delta, x = _rows(delta, 2), _rows(x, 2)
    rows, out, into = delta.shape[0], delta.shape[1], x.shape[1]
    if rows * (out + into) < out * into:
        return ((delta @ delta.T) * (x @ x.T + has_bias)).sum()
    return (delta.T @ x).square().sum() + delta.sum(0).square().sum() * has_bias


def _rows(t: Tensor, dims: int) -> Tensor:
    """As (rows, features), or as (samples, rows of each, features)."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    if dims == 2:
        return t.reshape(t.shape[:-1].numel(), t.shape[-1])
    return t.reshape(t.shape[0], t.shape[1:-1].numel(), t.shape[-1])
