"""What the normalisations share: the gradients of a = w ẑ + b by z, w and b.

::

    ẑ = (z − μ) r                              μ and r of the entries that are normalised together
    ⇒
    g = w ∂C/∂a
    ∂C/∂z = r (g − mean g − ẑ mean(ẑ g))       the means go over the same entries
    ∂C/∂w = Σ ẑ ∂C/∂a                          over all entries that share a w
    ∂C/∂b = Σ ∂C/∂a

The Jacobian of ẑ is symmetric, so that forward mode has the same formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_manualbp.rules.rule import formula, in_dtype, widened

__all__ = [
    "affine",
    "by_statistics",
    "gradient_in",
    "is_low",
    "jacobian_product",
    "mean",
    "mean_and_deviation",
    "normalized",
    "normalized_gradients",
    "tangent",
    "total",
]

Dims = tuple[int, ...]


@formula(by="whole")
def normalized_gradients(
    da: Tensor,
    z: Tensor,
    mu: Tensor | None,
    r: Tensor,
    w: Tensor | None,
    dims: Dims,
    shared: Dims,
    needs_dz: bool,
    needs_dw: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """∂C/∂z and ∂C/∂w, in widened precision. μ, r and w broadcast against z; without μ nothing is subtracted.

    The entries along ``dims`` are normalised together, those along ``shared`` share a w.
    """
    da, z_hat = widened(da), normalized(z, mu, r)
    dw = total(z_hat * da, shared) if needs_dw else None
    if not needs_dz:
        return None, dw
    g = da if w is None else widened(w) * da
    return jacobian_product(g, z_hat, r, dims, is_centred=mu is not None), dw


def jacobian_product(g: Tensor, z_hat: Tensor, r: Tensor, dims: Dims, is_centred: bool) -> Tensor:
    """r (g − mean g − ẑ mean(ẑ g)): ∂C/∂z of ∂C/∂ẑ = g, and the tangent of ẑ of the tangent g of z."""
    if is_centred:  # first, since what is left of a few entries has no digits to lose
        g = g - mean(g, dims)
    return (g - z_hat * mean(z_hat * g, dims)) * r


def by_statistics(
    dz: Tensor | None, dmu: Tensor | None, dr: Tensor | None, z: Tensor, mu: Tensor | None, r: Tensor, dims: Dims
) -> Tensor | None:
    """∂C/∂z with what comes by μ, ∂C/∂μ / n, and by r, −r² ẑ ∂C/∂r / n: second derivatives have these."""
    n = max(math.prod([z.shape[d] for d in dims]), 1)
    if dmu is not None:
        by_mean = (dmu / n).expand(z.shape)
        dz = by_mean if dz is None else dz + by_mean
    if dr is not None:
        by_deviation = -r * r * normalized(z, mu, r) * dr / n
        dz = by_deviation if dz is None else dz + by_deviation
    return dz


def normalized(z: Tensor, mu: Tensor | None, r: Tensor) -> Tensor:
    """ẑ = (z − μ) r."""
    z = widened(z)
    return (z if mu is None else z - mu) * r


def affine(z_hat: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """w ẑ + b."""
    a = z_hat if w is None else z_hat * widened(w)
    return a if b is None else a + widened(b)


def mean(t: Tensor, dims: Dims) -> Tensor:
    """The mean over dimensions, which stay with size 1; of none t itself."""
    return t.mean(dims, keepdim=True) if dims else t


def total(t: Tensor, dims: Dims) -> Tensor:
    """The sum over dimensions; of none t itself, where torch would sum over all."""
    return t.sum(dims) if dims else t


def is_low(t: Tensor) -> bool:
    """Whether its dtype has too few digits for statistics that a formula goes on from."""
    return t.dtype in (torch.float16, torch.bfloat16)


def mean_and_deviation(z: Tensor, dims: Dims, eps: float) -> tuple[Tensor, Tensor]:
    """μ and r = 1 / √(v + ε)."""
    z = widened(z)
    mu = mean(z, dims)
    return mu, torch.rsqrt(mean((z - mu).square(), dims) + eps)


def tangent(
    dz: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
    z: Tensor,
    mu: Tensor | None,
    r: Tensor,
    w: Tensor | None,
    dims: Dims,
) -> tuple[Tensor, Tensor]:
    """The tangent of a = w ẑ + b, and ẑ."""
    z_hat = normalized(z, mu, r)
    da = z_hat * (0 if dw is None else widened(dw))
    if dz is not None:
        da = da + affine(jacobian_product(widened(dz), z_hat, r, dims, is_centred=mu is not None), w, None)
    return (da if db is None else da + widened(db)).to(z.dtype), z_hat


def gradient_in(dtype: torch.dtype, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else in_dtype(dtype, gradient)
