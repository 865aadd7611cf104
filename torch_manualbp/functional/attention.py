"""Attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp._torch import canonical_mask, multi_head_shapes_fit
from torch_manualbp.functional.activation import softmax
from torch_manualbp.functional.call import in_low_precision, overridable, run
from torch_manualbp.functional.dropouts import dropout
from torch_manualbp.functional.linear import linear
from torch_manualbp.rules.attention import bits_of

__all__ = ["multi_head_attention_forward", "scaled_dot_product_attention"]


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


@overridable
def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`torch.nn.functional.multi_head_attention_forward`: :func:`linear` of the inputs,
    :func:`scaled_dot_product_attention` of each head, :func:`linear` of the heads side by side.

    Where the weights are asked for they are a tensor of all pairs, of :func:`softmax`, and a product that keeps them.
    """
    given: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "embed_dim_to_check": embed_dim_to_check,
        "num_heads": num_heads,
        "in_proj_weight": in_proj_weight,
        "in_proj_bias": in_proj_bias,
        "bias_k": bias_k,
        "bias_v": bias_v,
        "add_zero_attn": add_zero_attn,
        "dropout_p": dropout_p,
        "out_proj_weight": out_proj_weight,
        "out_proj_bias": out_proj_bias,
        "training": training,
        "key_padding_mask": key_padding_mask,
        "need_weights": need_weights,
        "attn_mask": attn_mask,
        "use_separate_proj_weight": use_separate_proj_weight,
        "q_proj_weight": q_proj_weight,
        "k_proj_weight": k_proj_weight,
        "v_proj_weight": v_proj_weight,
        "static_k": static_k,
        "static_v": static_v,
        "average_attn_weights": average_attn_weights,
        "is_causal": is_causal,
    }
    if not _are_projected(**given):
        return torch_functional.multi_head_attention_forward(**given)  # says what is wrong
    is_batched = multi_head_shapes_fit(query, key, value, key_padding_mask, attn_mask, num_heads)
    if not is_batched:
        same = key is query and value is query
        query = query.unsqueeze(1)
        key, value = (query, query) if same else (key.unsqueeze(1), value.unsqueeze(1))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    _, batch, n = query.shape
    dtype_of_mask = None if attn_mask is None else attn_mask.dtype
    padding = canonical_mask(key_padding_mask, "key_padding_mask", dtype_of_mask, "attn_mask", query.dtype)
    if is_causal and padding is None and not need_weights:
        M = None
    else:
        M = canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, False)
        is_causal = False
    if use_separate_proj_weight:
        weights: Sequence[Any] = (q_proj_weight, k_proj_weight, v_proj_weight)
        biases: Sequence[Any] = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (linear(x, W, b) for x, W, b in zip((query, key, value), weights, biases, strict=True))
    else:
        q, k, v = _projected(query, key, value, in_proj_weight, in_proj_bias)
    if bias_k is not None and bias_v is not None:
        k = torch.cat((k, bias_k.expand(1, batch, n)))
        v = torch.cat((v, bias_v.expand(1, batch, n)))
        M, padding = _with_a_key(M), _with_a_key(padding)
    q, k, v = (t.unflatten(-1, (num_heads, n // num_heads)).permute(1, 2, 0, 3) for t in (q, k, v))
    if static_k is not None:
        k = static_k.unflatten(0, (batch, num_heads))
    if static_v is not None:
        v = static_v.unflatten(0, (batch, num_heads))
    if add_zero_attn:
        k, v = (torch.cat((t, t.new_zeros(*t.shape[:2], 1, t.shape[-1])), 2) for t in (k, v))
        M, padding = _with_a_key(M), _with_a_key(padding)
    if M is not None and M.dim() == 3:
        M = M.unflatten(0, (batch, num_heads))
    if padding is not None:
        padding = padding.unsqueeze(1).unsqueeze(1)
        M = padding if M is None else M + padding
    p = dropout_p if training else 0.0
    if need_weights:
        o, P = _with_weights(q, k, v, M, p)
    else:
        o = scaled_dot_product_attention(q, k, v, M, p, is_causal)
    o = linear(o.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return o if is_batched else o.squeeze(1), None
    P = P.mean(1) if average_attn_weights else P
    return (o, P) if is_batched else (o.squeeze(1), P.squeeze(0))


def _projected(query: Tensor, key: Tensor, value: Tensor, W: Any, b: Tensor | None) -> Sequence[Tensor]:
    """The inputs times their parts of one weight, in as few products as there are inputs."""
    if key is value and query is key:
        return linear(query, W, b).chunk(3, -1)
    if key is not value:
        biases: Sequence[Any] = (None,) * 3 if b is None else b.chunk(3)
        return [linear(x, w, c) for x, w, c in zip((query, key, value), W.chunk(3), biases, strict=True)]
    n = query.shape[-1]
    (w_q, w_kv), (b_q, b_kv) = W.split((n, 2 * n)), (None, None) if b is None else b.split((n, 2 * n))
    return [linear(query, w_q, b_q), *linear(key, w_kv, b_kv).chunk(2, -1)]


def _with_weights(q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
    """Attention and its weights, after their dropout."""
    S = run(rules.MatMul, q * math.sqrt(1 / q.shape[-1]), k.mT)
    P = softmax(S if M is None else S + M, -1)
    P = dropout(P, p) if p > 0 else P
    return run(rules.MatMul, P, v), P


def _with_a_key(mask: Tensor | None) -> Tensor | None:
    """A mask that lets one more key pass."""
    return None if mask is None else torch.cat((mask, mask.new_zeros(*mask.shape[:-1], 1)), -1)


def _are_projected(**given: Any) -> bool:
    """Whether the arguments of multi-head attention fit each other, as far as torch looks at them itself."""
    query, key, value, heads = (given[name] for name in ("query", "key", "value", "num_heads"))
    n = query.shape[-1]
    if query.is_nested or n != given["embed_dim_to_check"] or n % heads or not n:
        return False
    if given["is_causal"] and given["attn_mask"] is None:
        return False
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if not given["use_separate_proj_weight"]:
        names = ("in_proj_weight",)  # type: ignore[assignment]
        if key.shape != value.shape:
            return False
    if any(given[name] is None for name in names) or key.shape[:-1] != value.shape[:-1]:
        return False
    if (given["bias_k"] is None) != (given["bias_v"] is None) or query.dim() not in (2, 3):
        return False
    M, padding = given["attn_mask"], given["key_padding_mask"]
    batch, keys = (query.shape[1] if query.dim() == 3 else 1), key.shape[0]
    if M is not None and M.shape not in ((query.shape[0], keys), (batch * heads, query.shape[0], keys)):
        return False
    if padding is not None and padding.shape != ((batch, keys) if query.dim() == 3 else (keys,)):
        return False
    statics = [given[name] for name in ("static_k", "static_v") if given[name] is not None]
    if statics and given["bias_k"] is not None:
        return False
    return all(t.dim() == 3 and t.shape[0] == batch * heads and t.shape[2] == n // heads for t in statics)
