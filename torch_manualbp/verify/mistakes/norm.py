"""Mistakes planted in the normalisations."""

from __future__ import annotations

from typing import Any

from torch_manualbp.rules import LayerNorm, RMSNorm
from torch_manualbp.rules.norm.normalized import normalized
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
