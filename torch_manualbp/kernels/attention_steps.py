"""Attention in a recorded step: all heads at once, some queries at a time, and of a causal one the keys that they see.

No S and no P outlives its block: backward multiplies q kᵀ once more. With 4 × 6 heads of 256 queries in blocks of 32
backward takes 0.85 of the time of ATen's kernel, and 0.63 of that of all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torch_manualbp._torch import flash_attention
from torch_manualbp.kernels.dispatch import for_steps, plain
from torch_manualbp.rules.attention import attended, attention_gradients, entries_of
from torch_manualbp.rules.rule import widened

__all__ = ["FEW_PAIRS_OF_STEPS", "suits_flash"]

FEW_PAIRS_OF_STEPS = 1 << 12
"""Up to so many pairs of a query and a key P is kept, and each call is worth more than its arithmetic."""

BLOCKS, ROWS = 8, 32
"""Blocks at most, and queries of one at least: what is left out of a causal one outweighs the calls."""

BLOCK_NUMBERS = 1 << 20
"""Numbers of S of all heads in a block, 4 MB, where no half is left out."""


class _Heads:
    """Heads as matrices (count, length, size), whatever the dimensions in front."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, p: float) -> None:
        self.batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        self.L, self.S, self.count = q.shape[-2], k.shape[-2], math.prod(self.batch)
        self.M, self.bits, self.p = M, bits, p

    @property
    def is_few(self) -> bool:
        """Whether all pairs are made at once, or there are none."""
        return self.count * self.L * self.S <= FEW_PAIRS_OF_STEPS

    def flat(self, t: Tensor) -> Tensor:
        return widened(t).expand(*self.batch, *t.shape[-2:]).reshape(self.count, *t.shape[-2:])

    def unflat(self, t: Tensor, like: Tensor) -> Tensor:
        t = t.view(*self.batch, *t.shape[-2:])
        return (t if t.shape == like.shape else t.sum_to_size(like.shape)).to(like.dtype)

    def blocks(self, is_causal: bool) -> Iterator[tuple[int, int, int]]:
        """The first query, the one after the last, and how many keys they see. The last, which see all, first."""
        if is_causal:
            rows = max(ROWS, -(-self.L // BLOCKS)) if self.L >= 3 * ROWS else self.L
        else:
            rows = max(ROWS, -(-self.L // (2 * BLOCKS)), BLOCK_NUMBERS // (self.count * self.S))
        for begin in reversed(range(0, self.L, rows)):
            end = min(begin + rows, self.L)
            yield begin, end, self.S if not is_causal or end == self.L else min(end, self.S)

    def weights(self, q: Tensor, k: Tensor, begin: int, n: int, is_causal: bool) -> tuple[Tensor, Tensor]:
        """P and ℓ of these queries, which are scaled, and the first n keys."""
        S = torch.bmm(q, k.mT)
        rows = slice(begin, begin + q.shape[1])
        masked = None
        if self.M is not None:
            of_heads = S.view(*self.batch, *S.shape[1:])
            M = self.M[..., rows, :] if self.M.dim() > 1 and self.M.shape[-2] > 1 else self.M
            M = M[..., :n] if M.shape[-1] > 1 else M
            if M.dtype == torch.bool:
                of_heads.masked_fill_(~M, -math.inf)
            else:
                of_heads.add_(M)
        if is_causal and begin < n:
            late = torch.ones(q.shape[1], n - begin, dtype=torch.bool, device=q.device).triu(1)
            S[:, :, begin:].masked_fill_(late, -math.inf)
        if self.M is not None:
            masked = S.eq(-math.inf).all(-1, keepdim=True)
            S.masked_fill_(masked, 0)
        P, lse = torch.softmax(S, -1), torch.logsumexp(S, -1)
        return (P, lse) if masked is None else (P.masked_fill_(masked, 0), lse.masked_fill_(masked.squeeze(-1), 0))

    def passed(self, begin: int, end: int, n: int, dtype: torch.dtype) -> Tensor | None:
        """R."""
        if self.bits is None:
            return None
        bits = self.bits[..., begin:end, : (n + 7) // 8]
        R = entries_of(bits, n).to(dtype) * (1 / (1 - self.p) if self.p < 1 else 0.0)
        return R.expand(*self.batch, end - begin, n).reshape(self.count, end - begin, n)


@for_steps(attended)
def attended_in_a_step(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
) -> tuple[Tensor, Tensor]:
    heads = _Heads(q, k, v, M, bits, p)
    if heads.is_few:
        return plain(attended)(q, k, v, M, bits, s, is_causal, p)
    if M is None and bits is None and suits_flash(q, k, v, is_causal):
        o, lse = flash_attention(q, k, v, 0.0, is_causal, scale=s)[:2]
        return o, lse
    q_s, keys, values = heads.flat(q) * s, heads.flat(k), heads.flat(v)
    o = q_s.new_empty(heads.count, heads.L, v.shape[-1])
    lse = q_s.new_empty(heads.count, heads.L)
    for begin, end, n in heads.blocks(is_causal):
        P, lse_b = heads.weights(q_s[:, begin:end], keys[:, :n], begin, n, is_causal)
        lse[:, begin:end] = lse_b  # the program leaves out what nobody reads
        R = heads.passed(begin, end, n, P.dtype)
        torch.bmm(P if R is None else P.mul_(R), values[:, :n], out=o[:, begin:end])
    return o.view(*heads.batch, heads.L, v.shape[-1]).to(v.dtype), lse.view(*heads.batch, heads.L)


@for_steps(attention_gradients)
def attention_gradients_in_a_step(
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
) -> tuple[Tensor | None, ...]:
    needs_dq, needs_dk, needs_dv, needs_dM = needs
    if do is None or dlse is not None or v is None or needs_dM:
        return plain(attention_gradients)(do, dlse, q, k, v, M, bits, lse, s, is_causal, p, needs)
    heads = _Heads(q, k, v, M, bits, p)
    if heads.is_few or heads.batch != lse.shape[:-1]:
        return plain(attention_gradients)(do, dlse, q, k, v, M, bits, lse, s, is_causal, p, needs)
    q_s, keys, values, dos = heads.flat(q) * s, heads.flat(k), heads.flat(v), heads.flat(do)
    dq = torch.empty_like(q_s) if needs_dq else None
    dk: Tensor | None = None
    dv: Tensor | None = None
    for begin, end, n in heads.blocks(is_causal):
        q_b, do_b = q_s[:, begin:end], dos[:, begin:end]
        P, _ = heads.weights(q_b, keys[:, :n], begin, n, is_causal)
        R = heads.passed(begin, end, n, P.dtype)
        if needs_dv:
            dv = _added(dv, (P if R is None else P * R).mT, do_b, n)
        if not (needs_dq or needs_dk):
            continue
        dP = torch.bmm(do_b, values[:, :n].mT)
        dS = (dP if R is None else dP.mul_(R)).mul_(P)
        dS.addcmul_(P, dS.sum(-1, keepdim=True), value=-1)
        if dq is not None:
            torch.bmm(dS, keys[:, :n], out=dq[:, begin:end])
        if needs_dk:
            dk = _added(dk, dS.mT, q_b, n)
    return (
        None if dq is None else heads.unflat(dq.mul_(s), q),
        None if dk is None else heads.unflat(dk, k),
        None if dv is None else dv.view(*heads.batch, *dv.shape[-2:]),
        None,
    )


def _added(total: Tensor | None, a: Tensor, b: Tensor, n: int) -> Tensor:
    """Their product, added to the first n rows of what is there: the first one is of all rows."""
    if total is None:
        return torch.bmm(a, b)
    total[:, :n].baddbmm_(a, b)
    return total


def suits_flash(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> bool:
    """Whether ATen's kernel takes them as they lie: matrices of as many heads of one size."""
    if q.dim() != 4 or q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64):
        return False
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[-1] != v.shape[-1]:
        return False
    return all(t.stride(-1) == 1 for t in (q, k, v)) and (not is_causal or q.shape[-2] == k.shape[-2])
