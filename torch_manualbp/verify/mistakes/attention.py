"""Mistakes planted in attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import Attention
from torch_manualbp.verify.mistakes.mistake import breaks


class _With:
    """A rule's context in which some of what was kept is another."""

    def __init__(self, ctx: Any, **changed: Any) -> None:
        self._ctx = ctx
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


@breaks("causal", "first derivatives", "gradcheck")
class CausalMaskOffByOne(Attention):
    """The gradient goes to keys j < i alone."""

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, _, bits, lse = ctx.saved_tensors
        before = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(-1)
        return Attention.backward(_With(ctx, saved_tensors=(q, k, v, before, bits, lse)), do, dlse)


@breaks("heads", "first derivatives", "gradcheck")
class ScaleForgotten(Attention):
    """∂C/∂q and ∂C/∂k without s."""

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        dq, dk, *rest = Attention.backward(ctx, do, dlse)
        return None if dq is None else dq / ctx.s, None if dk is None else dk / ctx.s, *rest


@breaks("heads", "first derivatives", "gradcheck")
class RowSumForgotten(Attention):
    """∂C/∂S = P ⊙ ∂C/∂P: as if the probabilities of a row did not add up to 1."""

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, _, _, lse = ctx.saved_tensors
        P = torch.exp(q @ k.mT * ctx.s - lse.unsqueeze(-1))
        D = ((do @ v.mT) * P).sum(-1)
        return Attention.backward(ctx, do, D if dlse is None else D + dlse)


@breaks("dropout", "first derivatives", "gradcheck")
class DropoutForgottenInTheScores(Attention):
    """∂C/∂v has R, and ∂C/∂P has not."""

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, M, _, lse = ctx.saved_tensors
        without = _With(ctx, saved_tensors=(q, k, v, M, None, lse))
        dq, dk, _, dM, *rest = Attention.backward(without, do, dlse)
        return dq, dk, Attention.backward(ctx, do, dlse)[2], dM, *rest


@breaks("grouped queries", "raw backward")
class GroupNotSummed(Attention):
    """A key that a group of queries shares has a gradient for each."""

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, *_ = ctx.saved_tensors
        dq, dk, *rest = Attention.backward(ctx, do, dlse)
        return dq, None if dk is None else dk.expand(*q.shape[:-2], *dk.shape[-2:]), *rest
