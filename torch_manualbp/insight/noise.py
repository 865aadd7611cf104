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

from torch_manualbp.kernels.products import times_transposed

__all__ = ["noise", "per_sample_norms", "product_norm"]

ROWS = 256
"""In a block of a product of rows with each other."""

LARGE = 1 << 23
"""Numbers that the products of many samples may have at a time."""


def noise(delta: Tensor, x: Tensor, has_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(tr Σ, |G|², ‖∂C/∂W‖²) of a linear layer, as tensors of no dimension; the first two of weight and bias.

    Args:
        delta: ∂C/∂z of shape (n, …, out), for a C that is the mean over n > 1 samples; of a sum both are n² times as
            large, and their ratio is the same.
        x: what went in, of shape (n, …, in).
    """
    n = delta.shape[0]
    delta, x = (t.reshape(n, t.shape[1:-1].numel(), t.shape[-1]) for t in (delta, x))
    if delta.shape[1] == 1 and _is_less_by_rows(delta, x):
        delta, x = delta[:, 0], x[:, 0]
        of_delta, of_x = times_transposed(delta, delta), times_transposed(x, x)
        products = of_delta * of_x
        squares = products.trace() + of_delta.trace() * has_bias
        of_weight, of_bias = products.sum(), of_delta.sum()
    else:
        squares = per_sample_norms(delta, x, has_bias).sum()
        of_weight, of_bias = product_norm(delta, x), delta.sum((0, 1)).square().sum()
    squares = squares * n  # Σ ‖g_i‖² / n, as g_i = n δ_iᵀ x_i
    G = of_weight + of_bias * has_bias
    return (squares - G) * n / (n - 1), (n * G - squares) / (n - 1), of_weight


def per_sample_norms(delta: Tensor, x: Tensor, has_bias: bool) -> Tensor:
    """‖δ_iᵀ x_i‖² of every sample, with ‖Σ δ_i‖² of the bias; of shape (n,)."""
    delta, x = (t.reshape(t.shape[0], t.shape[1:-1].numel(), t.shape[-1]) for t in (delta, x))
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


def product_norm(delta: Tensor, x: Tensor) -> Tensor:
    """‖δᵀ x‖² over all rows: of the product, or Σ (δ δᵀ) ⊙ (x xᵀ) if that is less work."""
    delta, x = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (delta, x))
    if not _is_less_by_rows(delta, x):
        return (delta.T @ x).square().sum()
    parts = list(zip(delta.split(ROWS), x.split(ROWS), strict=True))
    total = delta.new_zeros(())
    for i, (d, a) in enumerate(parts):
        for j, (e, b) in enumerate(parts[: i + 1]):  # both products are symmetric
            total += (1 if i == j else 2) * (times_transposed(d, e).flatten() @ times_transposed(a, b).flatten())
    return total


def _is_less_by_rows(delta: Tensor, x: Tensor) -> bool:
    """Whether half of δ δᵀ and of x xᵀ takes fewer multiplications than δᵀ x."""
    out, into = delta.shape[-1], x.shape[-1]
    return delta.shape[:-1].numel() * (out + into) / 2 < out * into
