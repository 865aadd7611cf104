"""Mistakes planted in the rules of margins and distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import (
    CosineEmbedding,
    MarginRanking,
    MultiLabelMargin,
    MultiLabelSoftMargin,
    MultiMargin,
    Rule,
    SoftMargin,
    TripletMargin,
    VectorNorm,
    multi_margin_gradient,
)
from torch_manualbp.rules.loss import embedding
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("p=3", "first derivatives", "forward mode", "Jacobians")
class PowerOffByOne(VectorNorm):
    """|d|^p for |d|^(p−1)."""

    @staticmethod
    def backward(ctx: Any, dD: Tensor) -> Any:
        d, _ = ctx.saved_tensors
        return VectorNorm.backward(ctx, dD)[0] * d.abs(), None


@breaks("matrix", "second derivatives", "gradgradcheck")
class LengthTakenForConstant(VectorNorm):
    @staticmethod
    def backward(ctx: Any, dD: Tensor) -> Any:
        d, D = ctx.saved_tensors
        return embedding.vector_norm_gradient(d, D.detach(), ctx.p, dD), None


@breaks("targets of integers", "first derivatives", "gradcheck")
class WrongSideOfTheHinge(MarginRanking):
    """The gradient passes where nothing is owed."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dminus_y: Tensor | None = None) -> Any:
        _, minus_y, passes = ctx.saved_tensors
        assert g is not None
        return minus_y * ~passes * g / (passes.numel() if ctx.reduction == "mean" else 1), None, None, None


@breaks("mean", "raw backward")
class TargetWithoutGradient(MarginRanking):
    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dminus_y: Tensor | None = None) -> Any:
        return MarginRanking.backward(ctx, g, dminus_y)[0], None, None, None


@breaks("sum", "first derivatives")
class MarginForgotten(MarginRanking):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        d, y, _, reduction = inputs
        MarginRanking.setup_context(ctx, (d, y, 0.0, reduction), output)


@breaks("mean", "first derivatives", "forward mode", "Jacobians")
class NotDividedByK(MultiMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, *_ = ctx.saved_tensors
        return MultiMargin.backward(ctx, g * s.shape[-1])


@breaks("mean, p=2", "first derivatives", "gradcheck")
class FactorOfTheSquare(MultiMargin):
    """r for 2 r."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return MultiMargin.backward(ctx, g / ctx.p)


@breaks("sum, p=2", "first derivatives")
class WeightOfAnotherClass(MultiMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y, w = ctx.saved_tensors
        right = multi_margin_gradient(s, y, torch.ones_like(y), ctx.p, ctx.margin, w)
        wrong = multi_margin_gradient(s, y, torch.ones_like(y), ctx.p, ctx.margin, w.roll(1))
        raw = MultiMargin.backward(ctx, g)[0]
        return torch.where(right == 0, raw, raw * wrong / right), None, None, None, None, None


@breaks("mean", "first derivatives", "gradcheck")
class TrueClassGetsNothing(MultiMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _, y, _ = ctx.saved_tensors
        ds, *rest = MultiMargin.backward(ctx, g)
        return ds.scatter(1, y.unsqueeze(1), 0), *rest


@breaks("none, p=2", "gradgradcheck")
class SquareTakenForConstant(MultiMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y, w = ctx.saved_tensors
        share = g / y.numel() if ctx.reduction == "mean" else g
        return multi_margin_gradient(s.detach(), y, share, ctx.p, ctx.margin, w), None, None, None, None, None


@breaks("mean", "first derivatives")
class RepeatedLabelsCountOnce(MultiLabelMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y = ctx.saved_tensors
        ends = torch.where((y[..., 1:] == y[..., :-1]).cumsum(-1) > 0, -1, y[..., 1:])
        args = s.detach().requires_grad_(), torch.cat([y[..., :1], ends], -1), ctx.reduction
        return _gradient_of(MultiLabelMargin, args, g), None, None


@breaks("none", "first derivatives")
class ReadsPastTheEndOfTheList(MultiLabelMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y = ctx.saved_tensors
        args = s.detach().requires_grad_(), y.abs(), ctx.reduction
        return _gradient_of(MultiLabelMargin, args, g), None, None


@breaks("mean", "vmap", "torch.compile")
class BranchesOnTheList(MultiLabelMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _, y = ctx.saved_tensors
        return MultiLabelMargin.backward(ctx, g if (y >= 0).any() else g * 0)


@breaks("mean", "first derivatives")
class TargetsSwapped(MultiLabelSoftMargin):
    """The gradient of 1 − y."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y, w = ctx.saved_tensors
        args = s.detach().requires_grad_(), 1 - y, w, ctx.reduction
        return _gradient_of(MultiLabelSoftMargin, args, g), *MultiLabelSoftMargin.backward(ctx, g)[1:]


@breaks("none", "accuracy, float32")
class DigitsCancelled(MultiLabelSoftMargin):
    """σ(s) − y, which rounds to 0 where σ(s) is near y."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y, w = ctx.saved_tensors
        assert w is None
        g = g.unsqueeze(-1) if g.dim() else g
        n = {"mean": s.numel(), "sum": s.shape[-1], "none": s.shape[-1]}[ctx.reduction]
        return (torch.sigmoid(s) - y) * g / n, *MultiLabelSoftMargin.backward(ctx, g.sum())[1:]


@breaks("sum", "first derivatives")
class FarTakenForNear(CosineEmbedding):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        u, v, y = ctx.saved_tensors
        args = u.detach().requires_grad_(), v.detach(), -y, ctx.margin, ctx.reduction
        return _gradient_of(CosineEmbedding, args, g), *CosineEmbedding.backward(ctx, g)[1:]


@breaks("none", "first derivatives")
class LengthsNotDifferentiated(CosineEmbedding):
    """The cosine as if both vectors were of fixed length."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _, v, _ = ctx.saved_tensors
        du, dv, *rest = CosineEmbedding.backward(ctx, g)
        along = (du * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True)
        return along * v, dv, *rest


@breaks("none, swap", "first derivatives")
class SwapIgnored(TripletMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        dpos, _, dswap, *rest = TripletMargin.backward(ctx, g)
        assert dpos is not None
        assert dswap is not None
        return dpos, -dpos, 0 * dswap, *rest


@breaks("mean", "first derivatives", "gradcheck")
class MeanForgotten(TripletMargin):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ctx.reduction = "sum"
        return TripletMargin.backward(ctx, g)


def _gradient_of(rule: type[Rule], args: tuple[Any, ...], g: Tensor) -> Tensor:
    with torch.enable_grad():
        return torch.autograd.grad(rule.apply(*args), args[0], g)[0]


@breaks("none", "first derivatives", "gradcheck")
class SignOfTheLabelForgotten(SoftMargin):
    """∂C/∂s of y = 1, whichever y is."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *of_copies: Tensor | None) -> tuple[Tensor | None, ...]:
        ds, *others = SoftMargin.backward(ctx, g, *of_copies)
        return None if ds is None else -ds.abs(), *others
