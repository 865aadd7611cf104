"""Attention's rule, its torch twin and sample inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.attention import Attention, bits_of, entries_of

__all__ = ["ATTENTION"]


def _attention(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
) -> Tensor:
    """torch's own where no random numbers are handed in: it draws its own."""
    is_of_torch = bits is None and not (is_causal and M is not None)
    if min(q.dim(), k.dim(), v.dim()) < 2 or (is_of_torch and q.numel() and k.numel() and v.numel()):
        return F.scaled_dot_product_attention(q, k, v, M, is_causal=is_causal, scale=s)
    return _attention_by_softmax(q, k, v, M, bits, s, is_causal, p)


def _attention_by_softmax(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
) -> Tensor:
    """torch's kernel has neither second derivatives nor forward mode."""
    S = q @ k.mT * s
    if M is not None:
        S = S.masked_fill(~M, -math.inf) if M.dtype == torch.bool else S + M
    if is_causal:
        S = S.masked_fill(torch.ones_like(S, dtype=torch.bool).triu(1), -math.inf)
    masked = S.eq(-math.inf).all(-1, keepdim=True)
    P = torch.softmax(S.masked_fill(masked, 0), -1).masked_fill(masked, 0)
    if bits is not None:
        P = P * entries_of(bits, P.shape[-1]) / (1 - p)
    return P @ v


def _attention_samples(make: Make) -> Iterator[Sample]:
    def qkv(*batch: int, L: int = 5, S: int = 6, E: int = 2, F: int = 2) -> tuple[Tensor, Tensor, Tensor]:
        return make(*batch, L, E), make(*batch, S, E), make(*batch, S, F)

    passes = make.indices(2, 2, 3, 5, 6) > 0
    rows = passes.clone()
    rows[0, 1, 2] = False
    bits = bits_of(make.indices(4, 2, 3, 5, 6) > 0)
    yield Sample("heads", (*qkv(2, 3), None, None, 0.5, False, 0.0))
    yield Sample("matrices", (*qkv(F=3, E=1), None, None, 0.7, False, 0.0))
    yield Sample("causal", (*qkv(2, 3), None, None, 0.5, True, 0.0))
    yield Sample("causal, fewer keys", (*qkv(2, L=8), None, None, 0.5, True, 0.0))
    yield Sample("mask", (*qkv(2, 3), passes, None, 0.5, False, 0.0))
    yield Sample("rows wholly masked", (*qkv(2, 3, E=1), rows, None, 0.5, False, 0.0))
    yield Sample("mask of numbers", (*qkv(2, 3, L=7), make(7, 6), None, 0.5, False, 0.0))
    yield Sample("mask of numbers, broadcast", (*qkv(2, 3), make(3, 1, 6), None, 0.5, False, 0.0))
    grouped = make(2, 3, 2, 5, 2), make(2, 3, 1, 6, 2), make(2, 3, 1, 6, 2)
    yield Sample("grouped queries", (*grouped, None, None, 0.5, False, 0.0))
    yield Sample("dropout", (*qkv(2, 3), None, bits, 0.5, False, 0.25))
    yield Sample("dropout, causal, mask of numbers", (*qkv(2, 3), make(6), bits, 0.5, True, 0.25))


KEEPS_ITS_ARGUMENTS = (
    "without its fused kernel torch keeps the probabilities and scaled copies of q and k; ours keeps its arguments: to "
    "change one before backward is an error"
)
AT_NO_NUMBERS = (
    "torch's fused kernel takes a row with NaN for one that is wholly masked, and its softmax has NaN in all of a row "
    "with ∞; ours has NaN where there is one, and where exp(∞ − ∞) is one"
)
ITS_CALLER_CASTS = "no function of torch takes the random numbers: the rule's caller casts"
LOW = "float16", "bfloat16"
WITH_DROPOUT = "dropout", "dropout, causal, mask of numbers"

ATTENTION: tuple[Operation, ...] = (
    Operation(
        Attention,
        _attention,
        _attention_samples,
        functions="multi_head_attention_forward scaled_dot_product_attention",
        layers="MultiheadAttention TransformerEncoderLayer TransformerDecoderLayer TransformerEncoder "
        "TransformerDecoder Transformer",
        twin_for_second=_attention_by_softmax,
        cancels=True,
        exempt={
            **{f"changes in place, argument {i}": KEEPS_ITS_ARGUMENTS for i in range(5)},
            "NaN": AT_NO_NUMBERS,
            "infinities": AT_NO_NUMBERS,
            **{f"autocast, {dtype}, {sample}": ITS_CALLER_CASTS for dtype in LOW for sample in WITH_DROPOUT},
        },
    ),
)
