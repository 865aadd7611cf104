"""Attention in blocks of queries: of no two blocks the pairs are in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import flash_attention
from torch_manualbp.kernels.attention_steps import suits_flash
from torch_manualbp.kernels.dispatch import for_large, plain
from torch_manualbp.rules.attention import attended, attention_gradients, entries_of
from torch_manualbp.rules.rule import widened

__all__ = ["BLOCK_PAIRS", "FEW_PAIRS"]

FEW_PAIRS = 1 << 20
"""Up to so many pairs of a query and a key all are made at once."""

BLOCK_PAIRS = 1 << 18
"""Pairs of one block, of one head: one megabyte in float32."""


class _Heads:
    """Each head's q, k, v, mask and bits, whatever the dimensions in front, as matrices."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor | None, M: Tensor | None, bits: Tensor | None, s: float) -> None:
        self.batch = _batch(q, k, v)
        self.L, self.S, self.count = q.shape[-2], k.shape[-2], math.prod(self.batch)
        self.q, self.k, self.v = (
            self.flat(widened(q) * s),
            self.flat(widened(k)),
            self.flat(widened(k if v is None else v)),
        )
        self.M = None if M is None else M.reshape((1,) * (len(self.batch) + 2 - M.dim()) + M.shape)
        self.bits = None if bits is None else self.flat(bits)
        self.entries: Tensor | None = None
        """The eight entries of R of each byte."""
        self.spaces: dict[str, Tensor] = {}

    def space(self, name: str, rows: int, columns: int) -> Tensor:
        """A matrix of a block, in memory that the next block takes again: its pages are mapped once."""
        size = rows * columns
        if name not in self.spaces or self.spaces[name].numel() < size:
            self.spaces[name] = self.q.new_empty(size)
        return self.spaces[name][:size].view(rows, columns)

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
        q = self.q[h, rows]
        S = torch.mm(q, self.k[h, :n].t(), out=self.space("S", len(q), n))
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
        if self.entries is None:
            bytes_ = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
            self.entries = entries_of(bytes_, 8).to(self.q.dtype).mul_(1 / (1 - p) if p < 1 else 0.0)
        bits = self.bits[h, rows, : (n + 7) // 8]
        R = self.space("R", bits.numel(), 8)
        return torch.index_select(self.entries, 0, bits.flatten().int(), out=R).view(len(bits), -1)[:, :n]


def _part(mask: Tensor, rows: slice, n: int) -> Tensor:
    """These rows and the first n columns of a head's mask, which broadcasts."""
    mask = mask[rows] if mask.shape[0] > 1 else mask
    return mask[:, :n] if mask.shape[1] > 1 else mask


def _suits_flash_as_mask(M: Tensor, q: Tensor, k: Tensor) -> bool:
    """Whether ATen's kernel takes it, and no query is left without a key."""
    is_whole = M.dtype == q.dtype and M.is_contiguous() and M.shape[-2:] == (q.shape[-2], k.shape[-2]) and M.dim() == 2
    return is_whole and bool((M.amax(-1) > -math.inf).all())


def _batch(q: Tensor, k: Tensor, v: Tensor | None) -> torch.Size:
    return torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], () if v is None else v.shape[:-2])


def _is_small(q: Tensor, k: Tensor, v: Tensor | None) -> bool:
    return math.prod(_batch(q, k, v)) * q.shape[-2] * k.shape[-2] <= FEW_PAIRS


def _without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would cast one factor of a product that adds to a tensor, and not the tensor."""

    @functools.wraps(kernel)
    def in_its_own_precision(*args: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return kernel(*args)

    return in_its_own_precision


@for_large(attended)
@_without_autocast
def attended_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
) -> Any:
    if _is_small(q, k, v):
        return plain(attended)(q, k, v, M, bits, s, is_causal, p)
    if bits is None and suits_flash(q, k, v, is_causal) and (M is None or _suits_flash_as_mask(M, q, k)):
        return flash_attention(q, k, v, 0.0, is_causal, attn_mask=M, scale=s)[:2]
    heads = _Heads(q, k, v, M, bits, s)
    results = heads.q.new_empty(*heads.batch, heads.L, v.shape[-1]), heads.q.new_empty(*heads.batch, heads.L)
    o, lse = results[0].view(heads.count, heads.L, v.shape[-1]), results[1].view(heads.count, heads.L)
    for h, rows, n in heads.blocks(is_causal):
        S = heads.scores(h, rows, n, is_causal)
        largest = S.amax(-1, keepdim=True)
        P = torch.softmax(S, -1, out=S)
        lse_rows = largest - P.amax(-1, keepdim=True).log_()
        is_masked = None if M is None else largest == -math.inf
        if is_masked is not None and is_masked.any():
            P.masked_fill_(is_masked, 0)
            lse_rows.masked_fill_(is_masked, 0)
        lse[h, rows] = lse_rows.squeeze(-1)
        R = heads.passed(h, rows, n, p)
        torch.mm(P if R is None else P.mul_(R), heads.v[h, :n], out=o[h, rows])
    return results[0].to(v.dtype), results[1]


@for_large(attention_gradients)
@_without_autocast
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
    if do is None or dlse is not None:
        return NotImplemented
    if _is_small(q, k, v):
        return plain(attention_gradients)(do, dlse, q, k, v, M, bits, lse, s, is_causal, p, needs)
    needs_dq, needs_dk, needs_dv, needs_dM = needs
    heads = _Heads(q, k, v, M, bits, s)
    if heads.batch != lse.shape[:-1] or heads.batch != do.shape[:-2]:
        return NotImplemented
    do = heads.flat(widened(do))
    dq = torch.zeros_like(heads.q) if needs_dq else None
    # Transposed, for the product that adds to them.
    dk = heads.k.new_zeros(heads.count, heads.k.shape[-1], heads.S) if needs_dk else None
    dv = heads.k.new_zeros(heads.count, do.shape[-1], heads.S) if needs_dv else None
    dM = torch.zeros_like(heads.M, dtype=do.dtype) if needs_dM and heads.M is not None else None
    for h, rows, n in heads.blocks(is_causal):
        S = heads.scores(h, rows, n, is_causal)
        is_masked = None if M is None else S.amax(-1, keepdim=True) == -math.inf
        P = torch.softmax(S, -1, out=S)
        if is_masked is not None and is_masked.any():
            P.masked_fill_(is_masked, 0)
        R = heads.passed(h, rows, n, p)
        passed = P if R is None else R.mul_(P)
        if dv is not None:
            dv[h, :, :n].addmm_(do[h, rows].t(), passed)
        if dq is None and dk is None and dM is None:
            continue
        dS = torch.mm(do[h, rows], heads.v[h, :n].t(), out=heads.space("dS", len(P), n)).mul_(passed)
        dS.addcmul_(P, dS.sum(-1, keepdim=True), value=-1)
        if dq is not None:
            torch.mm(dS, heads.k[h, :n], out=dq[h, rows])
        if dk is not None:
            dk[h, :, :n].addmm_(heads.q[h, rows].t(), dS)
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
        dv = dv.mT.reshape(*heads.batch, heads.S, do.shape[-1])
    return like(dq, q, s), like(None if dk is None else dk.mT, k), dv, dM
