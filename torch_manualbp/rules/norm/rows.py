"""The normalisations of the last dimensions, each sample by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.jacobian import Normalization
from torch_manualbp.rules.norm.normalized import (
    affine,
    by_statistics,
    gradient_in,
    is_low,
    mean,
    mean_and_deviation,
    normalized,
    normalized_gradients,
    tangent,
    total,
)
from torch_manualbp.rules.rule import RuleWithByproducts, widened

__all__ = ["LayerNorm", "RMSNorm"]

Shape = tuple[int, ...]


class LayerNorm(RuleWithByproducts):
    """The entries of a sample with mean 0 and variance 1, then scaled and shifted.

    ::

        ẑ = (z − μ) r,  μ = mean z,  v = mean (z − μ)²,  r = 1 / √(v + ε)
        a = w ẑ + b
        ⇒
        g = w ∂C/∂a
        ∂C/∂z = r (g − mean g − ẑ mean(ẑ g))
        ∂C/∂w = Σ_samples ẑ ∂C/∂a
        ∂C/∂b = Σ_samples ∂C/∂a

    Shapes: z and a (samples, *shape), w and b (*shape), or None for 1 and 0; μ, v, r and all means are of a sample.
    Kept: z, μ, r where ∂C/∂z or ∂C/∂w is needed, and w where ∂C/∂z is; of float16 and bfloat16, in which μ and r would
    lose the digits of ẑ, z and w alone.
    """

    jacobian = Normalization()

    @staticmethod
    def forward(z: Tensor, shape: Shape, w: Tensor | None, b: Tensor | None, eps: float) -> Any:
        a, mu, r = torch.native_layer_norm(z, shape, w, b, eps)
        return a if is_low(z) else (a, mu, r)

    @staticmethod
    def composite(z: Tensor, shape: Shape, w: Tensor | None, b: Tensor | None, eps: float) -> Any:
        mu, r = mean_and_deviation(z, _last(shape), eps)
        a = affine(normalized(z, mu, r), w, b).to(z.dtype)
        return a if is_low(z) else (a, mu, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        z, shape, w, b, ctx.eps = inputs
        _keep(ctx, z, shape, (w, b), output, with_weight_alone=True)

    @staticmethod
    def backward(
        ctx: Any, da: Tensor | None, dmu: Tensor | None = None, dr: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        w, z, *statistics = ctx.saved_tensors
        needs_dz, _, needs_dw, needs_db, _ = ctx.needs_input_grad
        dz = dw = db = None
        if needs_dz or needs_dw:
            mu, r = statistics or mean_and_deviation(z, ctx.dims, ctx.eps)
            if da is not None:
                dz, dw = normalized_gradients(da, z, mu, r, w, ctx.dims, ctx.shared, needs_dz, needs_dw)
            dz = by_statistics(dz, dmu, dr, z, mu, r, ctx.dims) if needs_dz else None
        if needs_db and da is not None:
            db = total(widened(da), ctx.shared)
        return (
            gradient_in(ctx.dtypes[0], dz),
            None,
            gradient_in(ctx.dtypes[1], dw),
            gradient_in(ctx.dtypes[2], db),
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _: None, dw: Tensor | None, db: Tensor | None, __: None) -> Any:
        w, z, *statistics = ctx.saved_tensors
        mu, r = statistics or mean_and_deviation(z, ctx.dims, ctx.eps)
        da, z_hat = tangent(dz, dw, db, z, mu, r, w, ctx.dims)
        if not statistics:
            return da
        if dz is None:
            return da, torch.zeros_like(mu), torch.zeros_like(r)
        return da, mean(dz, ctx.dims), -r * r * mean(z_hat * dz, ctx.dims)


class RMSNorm(RuleWithByproducts):
    """The entries of a sample with mean square 1, then scaled.

    ::

        ẑ = z r,  r = 1 / √(mean z² + ε)
        a = w ẑ
        ⇒
        g = w ∂C/∂a
        ∂C/∂z = r (g − ẑ mean(ẑ g))
        ∂C/∂w = Σ_samples ẑ ∂C/∂a

    Shapes: z and a (samples, *shape), w (*shape), or None for 1; r and the means are of a sample. For complex numbers
    z, w and r are conjugated. Kept: z where ∂C/∂z or ∂C/∂w is needed, w and r where ∂C/∂z is; of float16 and bfloat16
    z and w alone.
    """

    jacobian = Normalization(is_centred=False)

    @staticmethod
    def forward(z: Tensor, shape: Shape, w: Tensor | None, eps: float) -> Any:
        r = _root_mean_square(z, _last(shape), eps)
        a = affine(normalized(z, None, r), w, None).to(z.dtype)
        return a if is_low(z) else (a, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        z, shape, w, ctx.eps = inputs
        _keep(ctx, z, shape, (w,), output, with_weight_alone=False)  # as torch, which keeps n numbers then

    @staticmethod
    def backward(ctx: Any, da: Tensor | None, dr: Tensor | None = None) -> tuple[Tensor | None, ...]:
        w, z, *statistics = map(_conjugate, ctx.saved_tensors)
        needs_dz, _, needs_dw, _ = ctx.needs_input_grad
        dz = dw = None
        (r,) = statistics or (_root_mean_square(z, ctx.dims, ctx.eps),)
        if da is not None:
            dz, dw = normalized_gradients(da, z, None, r, w, ctx.dims, ctx.shared, needs_dz, needs_dw)
        dz = by_statistics(dz, None, dr, z, None, r, ctx.dims) if needs_dz else None
        return gradient_in(ctx.dtypes[0], dz), None, gradient_in(ctx.dtypes[1], dw), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _: None, dw: Tensor | None, __: None) -> Any:
        w, z, *statistics = ctx.saved_tensors
        (r,) = statistics or (_root_mean_square(z, ctx.dims, ctx.eps),)
        da, z_hat = tangent(dz, dw, None, z, None, r, w, ctx.dims)
        if not statistics:
            return da
        return da, torch.zeros_like(r) if dz is None else -r * r * mean(z_hat * dz, ctx.dims)


def _last(shape: Shape) -> tuple[int, ...]:
    """The dimensions that are normalised."""
    return tuple(range(-len(shape), 0))


def _root_mean_square(z: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """r = 1 / √(mean z² + ε)."""
    return torch.rsqrt(mean(widened(z).square(), dims) + eps)


def _keep(
    ctx: Any, z: Tensor, shape: Shape, parameters: tuple[Tensor | None, ...], output: Any, with_weight_alone: bool
) -> None:
    """Keep z and w, and the statistics where ∂C/∂z is needed, or ``with_weight_alone`` ∂C/∂w."""
    w, statistics = parameters[0], output[1:] if isinstance(output, tuple) else ()
    needs_dz, _, needs_dw, *_ = ctx.needs_input_grad
    ctx.save_for_backward(
        w if needs_dz else None,
        z if needs_dz or needs_dw else None,
        *(statistics if needs_dz or (needs_dw and with_weight_alone) else ()),
    )
    ctx.save_for_forward(w, z, *statistics)
    ctx.dims, ctx.shared = _last(shape), tuple(range(z.dim() - len(shape)))
    ctx.dtypes = [None if t is None else t.dtype for t in (z, *parameters)]
    ctx.set_materialize_grads(False)


def _conjugate(t: Any) -> Any:
    return t.conj() if t is not None and t.is_complex() else t
