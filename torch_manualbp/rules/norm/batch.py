"""The normalisations of each channel: over the batch, over each sample, or by statistics that are given."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.norm.normalized import (
    affine,
    gradient_in,
    mean,
    normalized,
    normalized_gradients,
    tangent,
    total,
)
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, formula, widened

__all__ = ["BatchNorm", "InstanceNorm", "RunningBatchNorm"]


class BatchNorm(RuleWithByproducts):
    """Each channel with mean 0 and variance 1 over the batch, then scaled and shifted.

    ::

        ẑ = (z − μ) r,  μ = mean z,  v = mean (z − μ)²,  r = 1 / √(v + ε)
        a = w ẑ + b
        ⇒
        g = w ∂C/∂a
        ∂C/∂z = r (g − mean g − ẑ mean(ẑ g))
        ∂C/∂w = Σ ẑ ∂C/∂a
        ∂C/∂b = Σ ∂C/∂a

    Shapes: z and a (samples, channels, *), w and b (channels), or None for 1 and 0; μ, v, r, the means and the sums are
    of a channel, over all samples and places. μ and v are byproducts, of shape (1, channels, 1, …), of which running
    statistics are made. Kept: z, μ, v where ∂C/∂z or ∂C/∂w is needed, and w where ∂C/∂z is.
    """

    @staticmethod
    def forward(z: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(z, w, b, eps, _over_batch(z))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output, _over_batch(inputs[0]))

    @staticmethod
    def backward(
        ctx: Any, da: Tensor | None, dmu: Tensor | None = None, dv: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        return _backward(ctx, da, dmu, dv)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dw: Tensor | None, db: Tensor | None, _: None) -> tuple[Tensor, ...]:
        return _jvp(ctx, dz, dw, db)


class InstanceNorm(RuleWithByproducts):
    """Each channel of a sample with mean 0 and variance 1, then scaled and shifted.

    ::

        ẑ = (z − μ) r,  μ = mean z,  v = mean (z − μ)²,  r = 1 / √(v + ε)
        a = w ẑ + b
        ⇒
        g = w ∂C/∂a
        ∂C/∂z = r (g − mean g − ẑ mean(ẑ g))
        ∂C/∂w = Σ ẑ ∂C/∂a
        ∂C/∂b = Σ ∂C/∂a

    Shapes: z and a (samples, channels, *), w and b (channels), or None for 1 and 0; μ, v, r and all means are of a
    channel of a sample, the sums of a channel. μ and v are byproducts, of shape (samples, channels, 1, …).
    Kept: z, μ, v where ∂C/∂z or ∂C/∂w is needed, and w where ∂C/∂z is.
    """

    @staticmethod
    def forward(z: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(z, w, b, eps, _over_places(z))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output, _over_places(inputs[0]))

    @staticmethod
    def backward(
        ctx: Any, da: Tensor | None, dmu: Tensor | None = None, dv: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        return _backward(ctx, da, dmu, dv)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dw: Tensor | None, db: Tensor | None, _: None) -> tuple[Tensor, ...]:
        return _jvp(ctx, dz, dw, db)


class RunningBatchNorm(Rule):
    """Each channel by a mean and a variance that are given, then scaled and shifted: a batch norm in evaluation.

    ::

        ẑ = (z − μ) r,  r = 1 / √(v + ε)
        a = w ẑ + b
        ⇒
        ∂C/∂z = w r ∂C/∂a
        ∂C/∂w = Σ ẑ ∂C/∂a
        ∂C/∂b = Σ ∂C/∂a

    Shapes: z and a (samples, channels, *), the others (channels), w and b None for 1 and 0; the sums are of a channel.
    As in torch, μ and v take no gradient. Kept: v, z and μ where ∂C/∂w is needed, w where ∂C/∂z is.
    """

    jacobian = Diagonal(slope="w r")

    @staticmethod
    def forward(z: Tensor, mu: Tensor, v: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        return F.batch_norm(z, mu, v, w, b, eps=eps)

    @staticmethod
    def composite(z: Tensor, mu: Tensor, v: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        z_hat = normalized(z, _of_channels(mu, z), _deviation(v, z, eps))
        return affine(z_hat, _of_channels(w, z), _of_channels(b, z)).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, mu, v, w, b, ctx.eps = inputs
        needs_dz, _, _, needs_dw, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            z if needs_dw else None,
            mu if needs_dw else None,
            v if needs_dz or needs_dw else None,
            w if needs_dz else None,
        )
        ctx.save_for_forward(z, mu, v, w)
        ctx.dtypes = [None if t is None else t.dtype for t in (z, w, b)]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, mu, v, w = ctx.saved_tensors
        needs_dz, _, _, needs_dw, needs_db, _ = ctx.needs_input_grad
        wide, dims = widened(da), _over_batch(da)
        r: Any = _deviation(v, da, ctx.eps) if needs_dz or needs_dw else None
        dz = wide * (r if w is None else r * _of_channels(widened(w), da)) if needs_dz else None
        dw = total((widened(z) - _of_channels(mu, da)) * wide, dims) * r.flatten() if needs_dw else None
        db = total(wide, dims) if needs_db else None
        dz, dw, db = (gradient_in(dtype, t) for dtype, t in zip(ctx.dtypes, (dz, dw, db), strict=True))
        return dz, None, None, dw, db, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _: None, __: None, dw: Tensor | None, db: Tensor | None, ___: None) -> Tensor:
        z, mu, v, w = ctx.saved_tensors
        r = _deviation(v, z, ctx.eps)
        da = torch.zeros_like(widened(z)) if dw is None else normalized(z, _of_channels(mu, z), r)
        if dw is not None:
            da = da * _of_channels(widened(dw), z)
        if dz is not None:
            da = da + affine(widened(dz) * r, _of_channels(w, z), None)
        return affine(da, None, _of_channels(db, z)).to(z.dtype)


def _forward(
    z: Tensor, w: Tensor | None, b: Tensor | None, eps: float, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """a, μ and v, each of the entries along ``dims``."""
    wide = widened(z)
    d, mu, v = centred(wide, dims)
    r = torch.rsqrt(v + eps)
    return affine(d, r if w is None else r * _of_channels(widened(w), z), _of_channels(b, z)).to(z.dtype), mu, v


@formula(by="whole")
def centred(z: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """z − μ, μ and v, each of the entries along ``dims``."""
    mu = mean(z, dims)
    mu = mu + mean(z - mu, dims)  # of large numbers the first mean has the rounding of each sum in it
    d = z - mu
    return d, mu, mean(d.square(), dims)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor], dims: tuple[int, ...]) -> None:
    z, w, b, ctx.eps = inputs
    _, mu, v = output
    needs_dz, needs_dw, _, _ = ctx.needs_input_grad
    ctx.save_for_backward(w if needs_dz else None, *((z, mu, v) if needs_dz or needs_dw else (None, None, None)))
    ctx.save_for_forward(w, z, mu, v)
    ctx.dims, ctx.dtypes = dims, [None if t is None else t.dtype for t in (z, w, b)]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, da: Tensor | None, dmu: Tensor | None, dv: Tensor | None) -> tuple[Tensor | None, ...]:
    w, z, mu, v = ctx.saved_tensors
    needs_dz, needs_dw, needs_db, _ = ctx.needs_input_grad
    dz = dw = db = None
    if da is not None and (needs_dz or needs_dw):
        r, w = torch.rsqrt(v + ctx.eps), _of_channels(w, z)
        dz, dw = normalized_gradients(da, z, mu, r, w, ctx.dims, _over_batch(z), needs_dz, needs_dw)
    if da is not None and needs_db:
        db = total(widened(da), _over_batch(da))
    if needs_dz:
        dz = _by_statistics(dz, dmu, dv, z, mu, ctx.dims)
    return *(gradient_in(dtype, t) for dtype, t in zip(ctx.dtypes, (dz, dw, db), strict=True)), None


def _jvp(ctx: Any, dz: Tensor | None, dw: Tensor | None, db: Tensor | None) -> tuple[Tensor, ...]:
    w, z, mu, v = ctx.saved_tensors
    dw, db, w = (_of_channels(t, z) for t in (dw, db, w))
    da, _ = tangent(dz, dw, db, z, mu, torch.rsqrt(v + ctx.eps), w, ctx.dims)
    if dz is None:
        return da, torch.zeros_like(mu), torch.zeros_like(v)
    return da, mean(widened(dz), ctx.dims), 2 * mean((widened(z) - mu) * dz, ctx.dims)


def _by_statistics(
    dz: Tensor | None, dmu: Tensor | None, dv: Tensor | None, z: Tensor, mu: Tensor, dims: tuple[int, ...]
) -> Tensor | None:
    """∂C/∂z with what comes by μ, ∂C/∂μ / n, and by v, 2 (z − μ) ∂C/∂v / n."""
    n = max(math.prod([z.shape[d] for d in dims]), 1)
    if dmu is not None:
        by_mean = (dmu / n).expand(z.shape)
        dz = by_mean if dz is None else dz + by_mean
    if dv is not None:
        by_variance = (widened(z) - mu) * (2 / n) * dv
        dz = by_variance if dz is None else dz + by_variance
    return dz


def _over_batch(z: Tensor) -> tuple[int, ...]:
    """All dimensions but the channels."""
    return (0, *range(2, z.dim()))


def _over_places(z: Tensor) -> tuple[int, ...]:
    """All dimensions but the samples and the channels."""
    return tuple(range(2, z.dim()))


def _of_channels(t: Any, z: Tensor) -> Any:
    """(channels) → (channels, 1, …), which broadcasts against z."""
    return None if t is None else t.reshape(t.shape[0], *[1] * (z.dim() - 2))


def _deviation(v: Tensor, z: Tensor, eps: float) -> Tensor:
    """r = 1 / √(v + ε)."""
    return torch.rsqrt(_of_channels(widened(v), z) + eps)
