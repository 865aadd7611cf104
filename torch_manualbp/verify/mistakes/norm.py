"""Mistakes planted in the normalisations."""

from __future__ import annotations

from typing import Any

import torch

from torch_manualbp.rules import (
    BatchNorm,
    CosineSimilarity,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    Normalize,
    PairwiseDistances,
    RMSNorm,
    RunningBatchNorm,
)
from torch_manualbp.rules.norm.normalized import normalized
from torch_manualbp.rules.norm.response import around, sum_of_channels
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("matrix", "first derivatives", "gradcheck")
class MeanTermMissing(LayerNorm):
    """r (g − ẑ mean(ẑ g)): the mean is taken for a constant."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dr: Any = None) -> Any:
        w, _, _, r = ctx.saved_tensors
        dz, *others = LayerNorm.backward(ctx, da, dmu, dr)
        return dz + r * (w * da).mean(-1, keepdim=True), *others


@breaks("matrix", "first derivatives")
class UnbiasedVariance(LayerNorm):
    """n − 1 in place of n."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dr: Any = None) -> Any:
        w, z, mu, r = ctx.saved_tensors
        g, z_hat, n = w * da, normalized(z, mu, r), z.shape[-1]
        dz, *others = LayerNorm.backward(ctx, da, dmu, dr)
        return dz - r * z_hat * (z_hat * g).sum(-1, keepdim=True) * (1 / (n - 1) - 1 / n), *others


@breaks("sequence", "first derivatives")
class EpsilonOutsideOfTheRoot(LayerNorm):
    """1 / (√v + ε), which is another number than 1 / √(v + ε)."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dr: Any = None) -> Any:
        _, _, _, r = ctx.saved_tensors
        other = 1 / ((1 / r**2 - ctx.eps).sqrt() + ctx.eps)
        dz, *others = LayerNorm.backward(ctx, da, dmu, dr)
        return dz / r * other, *others


@breaks("matrix", "second derivatives", "Hessian-vector products")
class DeviationTakenForAConstant(LayerNorm):
    """The gradient is right, and its own derivative by r is left away."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dr: Any = None) -> Any:
        return LayerNorm.backward(ctx, da, dmu, None)


@breaks("without weights", "first derivatives", "gradcheck")
class CentredAllTheSame(RMSNorm):
    """A LayerNorm's mean term, where nothing was subtracted."""

    @staticmethod
    def backward(ctx: Any, da: Any, dr: Any = None) -> Any:
        _, _, r = ctx.saved_tensors
        dz, *others = RMSNorm.backward(ctx, da, dr)
        return dz - r * da.mean(-1, keepdim=True), *others


@breaks("matrix", "raw backward")
class ScaleNotSummed(RMSNorm):
    """∂C/∂w of each sample."""

    @staticmethod
    def backward(ctx: Any, da: Any, dr: Any = None) -> Any:
        dz, shape, dw, eps = RMSNorm.backward(ctx, da, dr)
        return dz, shape, None if dw is None else da * dw, eps


@breaks("matrix", "first derivatives", "gradcheck")
class StatisticsTakenForConstants(BatchNorm):
    """A batch norm's gradient in evaluation, w r ∂C/∂a."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dv: Any = None) -> Any:
        w, _, _, v = ctx.saved_tensors
        _, *others = BatchNorm.backward(ctx, da, dmu, dv)
        return None if v is None else da * torch.rsqrt(v + ctx.eps) * w, *others


@breaks("images", "first derivatives")
class OverSamplesAlone(BatchNorm):
    """The means of an image's channel go over its places, too."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dv: Any = None) -> Any:
        dims, ctx.dims = ctx.dims, (0,)
        try:
            return BatchNorm.backward(ctx, da, dmu, dv)
        finally:
            ctx.dims = dims


@breaks("matrix", "second derivatives", "Hessian-vector products")
class VarianceTakenForAConstant(BatchNorm):
    """The gradient is right, and its own derivative by v is left away."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dv: Any = None) -> Any:
        return BatchNorm.backward(ctx, da, dmu, None)


@breaks("matrix", "first derivatives")
class EpsilonForgotten(RunningBatchNorm):
    """1 / √v: of a variance of 1 a difference of 5e-6."""

    @staticmethod
    def backward(ctx: Any, da: Any) -> Any:
        eps, ctx.eps = ctx.eps, 0.0
        try:
            return RunningBatchNorm.backward(ctx, da)
        finally:
            ctx.eps = eps


@breaks("images", "first derivatives")
class AllChannelsInOneGroup(GroupNorm):
    """The means go over all groups."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dr: Any = None) -> Any:
        w, z, mu, r = ctx.saved_tensors
        _, *others = GroupNorm.backward(ctx, da, dmu, dr)
        z_hat = (z.unflatten(1, (ctx.groups, -1)) - mu[:, :, None, None, None]) * r[:, :, None, None, None]
        g = da * w[:, None, None]
        along = (z_hat.flatten(1, 2) * g).mean((1, 2, 3), keepdim=True)
        centred = (g - g.mean((1, 2, 3), keepdim=True) - z_hat.flatten(1, 2) * along).unflatten(1, (ctx.groups, -1))
        return (centred * r[:, :, None, None, None]).flatten(1, 2), *others


@breaks("images", "first derivatives")
class OverTheBatch(InstanceNorm):
    """A batch norm's means."""

    @staticmethod
    def backward(ctx: Any, da: Any, dmu: Any = None, dv: Any = None) -> Any:
        dims, ctx.dims = ctx.dims, (0, *ctx.dims)
        try:
            return InstanceNorm.backward(ctx, da, dmu, dv)
        finally:
            ctx.dims = dims


@breaks("sequence", "first derivatives", "gradcheck")
class TheSameWindow(LocalResponseNorm):
    """The channels around j in place of those around which j is: of an even n others."""

    @staticmethod
    def backward(ctx: Any, da: Any) -> Any:
        (z,) = ctx.saved_tensors
        n, alpha, beta, k = ctx.options
        s = around(z, n, alpha, k)
        along = sum_of_channels(z * da / s ** (beta + 1), n // 2, (n - 1) // 2)
        return da / s**beta - z * along * (2 * alpha * beta / n), None, None, None, None


@breaks("matrix", "first derivatives")
class LengthTakenForAConstant(Normalize):
    """∂C/∂a / m."""

    @staticmethod
    def backward(ctx: Any, da: Any) -> Any:
        (z,) = ctx.saved_tensors
        return da / z.norm(ctx.p, ctx.dims, keepdim=True), None, None, None


@breaks("shorter than ε", "first derivatives", "gradcheck")
class LengthOfAShortVector(Normalize):
    """The length has a derivative where ε is in its place."""

    @staticmethod
    def backward(ctx: Any, da: Any) -> Any:
        (z,) = ctx.saved_tensors
        D = z.norm(ctx.p, ctx.dims, keepdim=True)
        along = (z * da).sum(ctx.dims, keepdim=True) / ctx.eps**2
        return da / ctx.eps - z / D * along, None, None, None


@breaks("matrix", "first derivatives")
class OneLengthForBoth(CosineSimilarity):
    """‖u‖ ‖v‖ in place of ‖v‖²."""

    @staticmethod
    def backward(ctx: Any, dc: Any) -> Any:
        u, v = ctx.saved_tensors
        du, dv, *others = CosineSimilarity.backward(ctx, dc)
        m, n = (t.norm(2, ctx.dim, keepdim=True) for t in (u, v))
        c = (u * v).sum(ctx.dim, keepdim=True) / m / n
        return du, None if dv is None else dv + dc.unsqueeze(ctx.dim) * c * v * (1 / n / n - 1 / m / n), *others


@breaks("matrix", "first derivatives", "gradcheck")
class OneOfThePairAlone(PairwiseDistances):
    """What the second of a pair has of a distance is left away."""

    @staticmethod
    def backward(ctx: Any, dD: Any) -> Any:
        z, D = ctx.saved_tensors
        i, j = torch.triu_indices(len(z), len(z), 1).unbind(0)
        h = (z[i] - z[j]) * (dD / D).unsqueeze(-1)
        return torch.zeros_like(z).index_add(0, i, h), None
