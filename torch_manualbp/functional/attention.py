"""Attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_low_precision, overridable
from torch_manualbp.rules.attention import bits_of

__all__ = ["scaled_dot_product_attention"]


@overridable
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As :func:`torch.nn.functional.scaled_dot_product_attention`, with :class:`~torch_manualbp.rules.Attention`.

    o = P v, P = softmax(s q kᵀ + M) ⇒ ∂C/∂v = Pᵀ ∂C/∂o, δ = P ⊙ (∂C/∂P − Σ_j P ∂C/∂P), ∂C/∂q = s δ k, ∂C/∂k = s δᵀ q.
    Kept: q, k, v, M, one number a query; with dropout a bit a pair.

    The random numbers are those of torch's dropout, which its CPU draws. Nested tensors are left to torch's own.
    """
    q, k, v, M = query, key, value, attn_mask
    if not _fits(q, k, v, M, dropout_p, is_causal, enable_gqa):
        return torch_functional.scaled_dot_product_attention(
            q, k, v, M, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )  # says what is wrong
    is_grouped = enable_gqa and q.shape[-3] != k.shape[-3]
    if is_grouped:  # a dimension for the queries of a group, which k and v are the same for
        heads = k.shape[-3]
        q, k, v = q.unflatten(-3, (heads, q.shape[-3] // heads)), k.unsqueeze(-3), v.unsqueeze(-3)
        if M is not None and M.dim() > 2:
            M = M.unsqueeze(-3) if M.shape[-3] == 1 else M.unflatten(-3, (heads, M.shape[-3] // heads))
    s = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    bits = None
    if dropout_p > 0:
        batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        bits = _drawn(q, (*batch, q.shape[-2], k.shape[-2]), dropout_p)
    o: Tensor = in_low_precision(rules.Attention, q, k, v, M, bits, s, is_causal, dropout_p)
    return o.flatten(-4, -3) if is_grouped else o


def _drawn(q: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """Which entries pass: those that torch's dropout of the probabilities lets pass."""
    if p == 1:
        return bits_of(torch.zeros(shape, dtype=torch.bool, device=q.device))
    return bits_of(torch.bernoulli(q.new_empty((), dtype=torch.bool).expand(shape), 1 - p))


def _fits(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, dropout_p: float, is_causal: bool, is_grouped: bool
) -> bool:
    """Whether torch takes the call, and it is one of plain tensors."""
    given = [q, k, v] if M is None else [q, k, v, M]
    if any(not isinstance(t, Tensor) or t.is_nested or t.layout is not torch.strided for t in given):
        return False
    if any(t.dim() < 2 or not t.is_floating_point() or t.dtype != q.dtype for t in (q, k, v)):
        return False
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or not q.shape[-1] or not 0 <= dropout_p <= 1:
        return False
    heads: list[tuple[int, ...]] = [q.shape, k.shape, v.shape]
    if is_grouped:
        if any(len(shape) < 3 for shape in heads) or k.shape[-3] != v.shape[-3] or q.shape[-3] % (k.shape[-3] or 1):
            return False
        heads[1:] = [(*shape[:-3], q.shape[-3], *shape[-2:]) for shape in heads[1:]]
    batch = _broadcast(*(shape[:-2] for shape in heads))
    if batch is None or M is None:
        return batch is not None
    if is_causal or not (M.dtype in (torch.bool, q.dtype) or M.is_floating_point()):
        return False
    scores = (*batch, q.shape[-2], k.shape[-2])
    return _broadcast(M.shape, scores) == scores


def _broadcast(*shapes: Sequence[int]) -> tuple[int, ...] | None:
    """What shapes broadcast to, or None."""
    try:
        return tuple(torch.broadcast_shapes(*map(tuple, shapes)))
    except RuntimeError:
        return None
