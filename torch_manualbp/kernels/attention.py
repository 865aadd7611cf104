"""Attention in blocks of queries: of no two blocks the pairs are in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large, plain
from torch_manualbp.rules.attention import attended, attention_gradients, entries_of
from torch_manualbp.rules.rule import widened

__all__ = ["BLOCK_PAIRS", "FEW_PAIRS"]

FEW_PAIRS = 1 << 20
"""Up to so many pairs of a query and a key all are made at once."""

BLOCK_PAIRS = 1 << 18
"""Pairs of one block, of one head: a megabyte in float32."""


class _Heads:
    """Each head's q, k, v, mask and bits, whatever the dimensions in front, as matrices."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float) -> None:
        self.batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        self.L, self.S, self.count = q.shape[-2], k.shape[-2], math.prod(self.batch)
        self.q, self.k, self.v = self.flat(widened(q) * s), self.flat(widened(k)), self.flat(widened(v))
        self.M = None if M is None else M.reshape((1,) * (len(self.batch) + 2 - M.dim()) + M.shape)
        self.bits = None if bits is None else self.flat(bits)

    def flat(self, t: Tensor) -> Tensor:
        return t.expand(*self.batch, *t.shape[-2:]).reshape(self.count, *t.shape[-2:])

    def of_mask(self, mask: Tensor, h: int) -> Tensor:
        """A head's part of a tensor of the mask's shape."""
        place = []
        for size, of_mask in zip(reversed(self.batch), reversed(mask.shape[:-2]), strict=True):
            h, i = divmod(h, size)
            place.append(i if of_mask > 1 else 0)
        return mask[tuple(reversed(place))]

    def blocks(self, is_causal: bool) -> Iterator[tuple[int, slice, int]]:
        """A head, some of its queries, and how many keys these see."""
        rows = max(BLOCK_PAIRS // max(self.S, 1), 16)
        for h in range(self.count):
            for begin in range(0, self.L, rows):
                end = min(begin + rows, self.L)
                yield h, slice(begin, end), min(end, self.S) if is_causal else self.S

    def scores(self, h: int, rows: slice, n: int, is_causal: bool) -> Tensor:
        S = torch.mm(self.q[h, rows], self.k[h, :n].t())
        if self.M is not None:
            M = _part(self.of_mask(self.M, h), rows, n)
            S = S.masked_fill_(~M, -math.inf) if M.dtype == torch.bool else S.add_(M)
        if is_causal and rows.start < n:
            late = S[:, rows.start :]
            late.masked_fill_(torch.ones_like(late, dtype=torch.bool).triu_(1), -math.inf)
        return S

    def passed(self, h: int, rows: slice, n: int, p: float) -> Tensor | None:
        """R."""
        if self.bits is None:
            return None
        R = entries_of(self.bits[h, rows, : (n + 7) // 8], n).to(self.q.dtype)
        return R.mul_(1 / (1 - p) if p < 1 else 0.0)


def _part(mask: Tensor, rows: slice, n: int) -> Tensor:
    """Of a head's mask, which broadcasts, these rows and the first n columns."""
    mask = mask[rows] if mask.shape[0] > 1 else mask
    return mask[:, :n] if mask.shape[1] > 1 else mask


def _is_small(q: Tensor, k: Tensor, v: Tensor) -> bool:
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    return math.prod(batch) * q.shape[-2] * k.shape[-2] <= FEW_PAIRS


@for_large(attended)
def attended_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
) -> Any:
    if _is_small(q, k, v):
        return plain(attended)(q, k, v, M, bits, s, is_causal, p)
    heads = _Heads(q, k, v, M, bits, s)
    o = heads.q.new_empty(heads.count, heads.L, v.shape[-1])
    lse = heads.q.new_empty(heads.count, heads.L)
    for h, rows, n in heads.blocks(is_causal):
        S = heads.scores(h, rows, n, is_causal)
        largest = S.amax(-1, keepdim=True)
        largest.masked_fill_(largest == -math.inf, 0)
        P = S.sub_(largest).exp_()
        total = P.sum(-1, keepdim=True)
        total.masked_fill_(total == 0, 1)
        lse[h, rows] = (largest + total.log()).squeeze(-1)
        R = heads.passed(h, rows, n, p)
        torch.mm(P if R is None else P.mul_(R), heads.v[h, :n], out=o[h, rows])
        o[h, rows].div_(total)
    return o.reshape(*heads.batch, heads.L, v.shape[-1]).to(v.dtype), lse.reshape(*heads.batch, heads.L)


@for_large(attention_gradients)
def attention_gradients_in_blocks(
    do: Tensor | None,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    M: Tensor | None,
    bits: Tensor | None,
    lse: Tensor,
    s: float,
    is_causal: bool,
    p: float,
    needs: tuple[bool, ...],
) -> Any:
    if do is None or dlse is not None or v is None:
        return NotImplemented
    if _is_small(q, k, v):
        return plain(attention_gradients)(do, dlse, q, k, v, M, bits, lse, s, is_causal, p, needs)
    needs_dq, needs_dk, needs_dv, needs_dM = needs
    heads = _Heads(q, k, v, M, bits, s)
    if heads.batch != lse.shape[:-1]:
        return NotImplemented
    do, lse = heads.flat(widened(do)), lse.reshape(heads.count, heads.L, 1)
    dq = torch.zeros_like(heads.q) if needs_dq else None
    dk = torch.zeros_like(heads.k) if needs_dk else None
    dv = torch.zeros_like(heads.v) if needs_dv else None
    dM = torch.zeros_like(heads.M, dtype=lse.dtype) if needs_dM and heads.M is not None else None
    for h, rows, n in heads.blocks(is_causal):
        P = heads.scores(h, rows, n, is_causal).sub_(lse[h, rows]).exp_()
        total = P.sum(-1, keepdim=True)
        P.div_(total.masked_fill_(total == 0, 1))
        R = heads.passed(h, rows, n, p)
        if dv is not None:
            dv[h, :n].addmm_((P if R is None else P * R).t(), do[h, rows])
        if dq is None and dk is None and dM is None:
            continue
        dP = torch.mm(do[h, rows], heads.v[h, :n].t())
        dS = (dP if R is None else dP.mul_(R)).mul_(P)
        dS.addcmul_(P, dS.sum(-1, keepdim=True), value=-1)
        if dq is not None:
            torch.mm(dS, heads.k[h, :n], out=dq[h, rows])
        if dk is not None:
            dk[h, :n].addmm_(dS.t(), heads.q[h, rows])
        if dM is not None:
            part = _part(heads.of_mask(dM, h), rows, n)
            part.add_(dS.sum_to_size(part.shape))

    def like(t: Tensor | None, given: Tensor, factor: float = 1) -> Tensor | None:
        if t is None:
            return None
        t = t.mul_(factor) if factor != 1 else t
        return t.reshape(*heads.batch, *given.shape[-2:]).sum_to_size(given.shape).to(given.dtype)

    if dM is not None and M is not None:
        dM = dM.reshape(M.shape).to(M.dtype)
    if dv is not None:
        dv = dv.reshape(*heads.batch, *v.shape[-2:])
    return like(dq, q, s), like(dk, k), dv, dM
