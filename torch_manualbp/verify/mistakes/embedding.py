"""Mistakes planted in the rules of tables whose rows integers name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import Embedding, EmbeddingBag, EmbeddingMax
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("padding", "first derivatives")
class PaddingLearns(Embedding):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.padding = -1
        return Embedding.backward(ctx, delta)


@breaks("rows", "first derivatives", "gradcheck")
class LastOfARowAlone(Embedding):
    """What names a row again writes over what was there."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        (i,) = ctx.saved_tensors
        return delta.new_zeros(ctx.rows, delta.shape[-1]).index_copy(0, i, delta), None, None, None


@breaks("by frequency", "first derivatives")
class FrequencyForgotten(Embedding):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.by_frequency = False
        return Embedding.backward(ctx, delta)


@breaks("mean, padding", "first derivatives", "gradcheck")
class MeanOverThePadding(EmbeddingBag):
    """n_b counts the samples that name the padding."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        _, i, begins, _ = ctx.saved_tensors
        ends = torch.cat((begins[1:], begins.new_tensor([i.shape[0]])))
        counted = torch.stack([(i[b:e] != ctx.padding).sum() for b, e in zip(begins, ends, strict=True)])
        delta = delta * (counted.clamp(min=1) / (ends - begins).clamp(min=1)).unsqueeze(1).to(delta.dtype)
        return EmbeddingBag.backward(ctx, delta)


@breaks("weighted", "first derivatives", "gradcheck")
class WeightsOfSamplesForgotten(EmbeddingBag):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        dW, *rest = EmbeddingBag.backward(_Unweighted(ctx), delta)
        return dW, *rest


class _Unweighted:
    """The context without r."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ctx, name)
        return (*found[:3], None) if name == "saved_tensors" else found


@breaks("an empty bag", "first derivatives", "gradcheck")
class EmptyBagLearns(EmbeddingMax):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None]:
        (k,) = ctx.saved_tensors
        return delta.new_zeros(ctx.shape).scatter_add(0, k.clamp(min=0), delta), None
