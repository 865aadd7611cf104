"""The normalisation of the channels of a sample in groups."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.norm.normalized import (
    affine,
    by_statistics,
    is_low,
    mean,
    mean_and_deviation,
    normalized,
    normalized_gradients,
    tangent,
    total,
)
from torch_manualbp.rules.rule import RuleWithByproducts, in_dtype, widened

__all__ = ["GroupNorm"]

TOGETHER, SHARED = (2, 3), (0, 3)
"""Which of samples, groups, channels in it and places: what is normalised together, and what shares a w and a b."""


class GroupNorm(RuleWithByproducts):
    """The channels of a sample in groups, each with mean 0 and variance 1; then each channel scaled and shifted.

    ::

        ẑ = (z − μ) r,  μ = mean z,  v = mean (z − μ)²,  r = 1 / √(v + ε)
        a = w ẑ + b
        ⇒
        g = w ∂C/∂a
        ∂C/∂z = r (g − mean g − ẑ mean(ẑ g))
        ∂C/∂w = Σ ẑ ∂C/∂a
        ∂C/∂b = Σ ∂C/∂a

    Shapes: z and a (samples, channels, *), w and b (channels), or None for 1 and 0; μ, v, r and all means are of a
    group of a sample, the sums of a channel. Kept: z, μ, r where ∂C/∂z or ∂C/∂w is needed, and w where ∂C/∂z is; of
    float16 and bfloat16 z and w alone.
    """

    @staticmethod
    def forward(z: Tensor, groups: int, w: Tensor | None, b: Tensor | None, eps: float) -> Any:
        places = math.prod(z.shape[2:])
        w, b = (None if t is None else t.contiguous() for t in (w, b))
        a, mu, r = torch.native_group_norm(_dense(z), w, b, z.shape[0], z.shape[1], places, groups, eps)
        return a if is_low(z) else (a, mu, r)

    @staticmethod
    def composite(z: Tensor, groups: int, w: Tensor | None, b: Tensor | None, eps: float) -> Any:
        in_groups = _grouped(z, groups)
        mu, r = mean_and_deviation(in_groups, TOGETHER, eps)
        a = affine(normalized(in_groups, mu, r), *(_of_channels(t, groups) for t in (w, b)))
        a = a.to(z.dtype).reshape(z.shape)
        return a if is_low(z) else (a, *(t.reshape(t.shape[:2]) for t in (mu, r)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        z, ctx.groups, w, b, ctx.eps = inputs
        needs_dz, _, needs_dw, _, _ = ctx.needs_input_grad
        statistics = output[1:] if isinstance(output, tuple) else ()
        ctx.save_for_backward(w if needs_dz else None, *((z, *statistics) if needs_dz or needs_dw else (None,)))
        ctx.save_for_forward(w, z, *statistics)
        ctx.shape, ctx.dtypes = z.shape, [None if t is None else t.dtype for t in (z, w, b)]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, da: Tensor | None, dmu: Tensor | None = None, dr: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        w, z, *statistics = ctx.saved_tensors
        needs_dz, _, needs_dw, needs_db, _ = ctx.needs_input_grad
        dz = dw = db = None
        da = None if da is None else _grouped(da, ctx.groups)
        if needs_dz or needs_dw:
            z, mu, r = _statistics(z, statistics, ctx)
            if da is not None:
                w = _of_channels(w, ctx.groups)
                dz, dw = normalized_gradients(da, z, mu, r, w, TOGETHER, SHARED, needs_dz, needs_dw)
            if needs_dz:
                dmu, dr = (None if t is None else t[..., None, None] for t in (dmu, dr))
                dz = by_statistics(dz, dmu, dr, z, mu, r, TOGETHER)
        if needs_db and da is not None:
            db = total(widened(da), SHARED)
        channels = ctx.shape[1:2]
        shaped = zip(ctx.dtypes, (dz, dw, db), (ctx.shape, channels, channels), strict=True)
        dz, dw, db = (None if t is None else in_dtype(dtype, t.reshape(shape)) for dtype, t, shape in shaped)
        return dz, None, dw, db, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _: None, dw: Tensor | None, db: Tensor | None, __: None) -> Any:
        w, z, *statistics = ctx.saved_tensors
        z, mu, r = _statistics(z, statistics, ctx)
        dw, db, w = (_of_channels(t, ctx.groups) for t in (dw, db, w))
        dz = None if dz is None else _grouped(dz, ctx.groups)
        da, z_hat = tangent(dz, dw, db, z, mu, r, w, TOGETHER)
        da = da.reshape(ctx.shape)
        if not statistics:
            return da
        if dz is None:
            return da, *(torch.zeros_like(t) for t in statistics)
        tangents = mean(dz, TOGETHER), -r * r * mean(z_hat * dz, TOGETHER)
        return da, *(t.reshape(t.shape[:2]) for t in tangents)


def _statistics(z: Tensor, statistics: list[Tensor], ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
    """z in groups, and μ and r of each."""
    z = _grouped(z, ctx.groups)
    if not statistics:
        return z, *mean_and_deviation(z, TOGETHER, ctx.eps)
    mu, r = (t[..., None, None] for t in statistics)
    return z, mu, r


def _grouped(z: Tensor, groups: int) -> Tensor:
    """(samples, channels, *) → (samples, groups, channels of a group, places)."""
    samples, channels, *places = z.shape
    return z.reshape(samples, groups, channels // groups, math.prod(places))


def _of_channels(t: Tensor | None, groups: int) -> Tensor | None:
    """(channels) → (groups, channels of a group, 1)."""
    return None if t is None else t.reshape(groups, t.shape[0] // groups, 1)


def _dense(z: Tensor) -> Tensor:
    """The same numbers as ATen's kernel takes them: channels last, or else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(z.dim(), torch.contiguous_format)
    return z if z.is_contiguous(memory_format=last) else z.contiguous()
