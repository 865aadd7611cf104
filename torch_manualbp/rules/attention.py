"""Attention: means of values, weighted by how well their keys fit a query."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import RuleWithByproducts, formula, widened

__all__ = ["Attention", "attended", "attention_gradients", "bits_of", "entries_of"]


class Attention(RuleWithByproducts):
    """For each query the mean of the values, weighted by how well their keys fit it.

    ::

        S_ij = s q_i·k_j + M_ij                      or −∞ where M_ij is False, and in a causal one where j > i
        P_ij = exp(S_ij − ℓ_i),  ℓ_i = log Σ_j exp(S_ij)
        o_i = Σ_j R_ij P_ij v_j
        ⇒
        ∂C/∂v_j = Σ_i R_ij P_ij ∂C/∂o_i
        ∂C/∂P_ij = R_ij v_j·∂C/∂o_i
        ∂C/∂S_ij = P_ij (∂C/∂P_ij − D_i),  D_i = Σ_j P_ij ∂C/∂P_ij
        ∂C/∂q_i = s Σ_j ∂C/∂S_ij k_j
        ∂C/∂k_j = s Σ_i ∂C/∂S_ij q_i
        ∂C/∂M_ij = ∂C/∂S_ij                          summed over what M was broadcast to

    R is 1, or with dropout 1 / (1 − p) where an entry passes, else 0; which do is drawn by the caller, and handed in as
    ``bits``. Where all of a row is −∞ its P and o are 0.

    Shapes: q (*, L, E), k (*, S, E), v (*, S, F), M (*, L, S) of numbers or booleans, bits (*, L, ⌈S/8⌉) of bytes,
    o (*, L, F), ℓ and D (*, L). The dimensions in front broadcast, M's and the bits' to those of q and k: in k and v
    one is 1 where a group of queries shares them.
    Kept: q, k, M, bits, ℓ; v, if others than it learn. D is o_i·∂C/∂o_i, too; o is not kept for it.
    """

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
    ) -> tuple[Tensor, Tensor]:
        return attended(q, k, v, M, bits, s, is_causal, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        q, k, v, M, bits, ctx.s, ctx.is_causal, ctx.p = inputs
        lse = output[1]
        needs_dq, needs_dk, _, needs_dM, *_ = ctx.needs_input_grad
        by_scores = needs_dq or needs_dk or needs_dM
        ctx.shape, ctx.dtype = v.shape, v.dtype
        ctx.save_for_backward(q, k, v if by_scores else None, M, bits, lse)
        ctx.save_for_forward(q, k, v, M, bits, lse)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, M, bits, lse = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        dq, dk, dv, dM = attention_gradients(do, dlse, q, k, v, M, bits, lse, ctx.s, ctx.is_causal, ctx.p, needs)
        if dv is not None:
            dv = dv.sum_to_size(ctx.shape).to(ctx.dtype)
        return dq, dk, dv, dM, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, dM: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        q, k, v, M, bits, lse = ctx.saved_tensors
        P = _weights(_scores(q, k, M, ctx.s, ctx.is_causal), lse)
        dS = torch.zeros_like(P)
        for a, b in ((dq, k), (q, dk)):
            if a is not None and b is not None:
                dS = dS + torch.matmul(widened(a) * ctx.s, widened(b).mT)
        if dM is not None:
            dS = dS + dM
        dlse = (P * dS).sum(-1)
        R = 1 if bits is None else _passed(bits, P.shape[-1], ctx.p, P.dtype)
        do = torch.matmul(R * P * (dS - dlse.unsqueeze(-1)), widened(v))
        if dv is not None:
            do = do + torch.matmul(R * P, widened(dv))
        return do.to(v.dtype), dlse


@formula(by="whole")
def attended(
    q: Tensor, k: Tensor, v: Tensor, M: Tensor | None, bits: Tensor | None, s: float, is_causal: bool, p: float
) -> tuple[Tensor, Tensor]:
    """o and ℓ."""
    S = _scores(q, k, M, s, is_causal)
    masked = None if M is None else S.eq(-math.inf).all(-1, keepdim=True)
    S = S if masked is None else S.masked_fill(masked, 0)
    P, lse = torch.softmax(S, -1), torch.logsumexp(S, -1, keepdim=True)
    if masked is not None:
        P, lse = P.masked_fill(masked, 0), lse.masked_fill(masked, 0)
    if bits is not None:
        P = P * _passed(bits, P.shape[-1], p, P.dtype)
    return torch.matmul(P, widened(v)).to(v.dtype), lse.squeeze(-1)


@formula(by="whole")
def attention_gradients(
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
    """∂C/∂q, ∂C/∂k, ∂C/∂v and ∂C/∂M, those that are needed, from ∂C/∂o, ∂C/∂ℓ, or both."""
    needs_dq, needs_dk, needs_dv, needs_dM = needs
    P = _weights(_scores(q, k, M, s, is_causal), lse)
    R = None if bits is None else _passed(bits, P.shape[-1], p, P.dtype)
    dq = dk = dv = dM = None
    if needs_dv and do is not None:
        dv = torch.matmul((P if R is None else R * P).mT, widened(do))
    if do is not None and v is not None:
        dP = torch.matmul(widened(do), widened(v).mT)
        dP = dP if R is None else R * dP
        D = (P * dP).sum(-1)
        D = D if dlse is None else D - dlse
        dS = P * (dP - D.unsqueeze(-1))
    elif dlse is not None:
        dS = P * dlse.unsqueeze(-1)
    else:
        return dq, dk, dv, dM
    if needs_dq:
        dq = (torch.matmul(dS, widened(k)) * s).sum_to_size(q.shape).to(q.dtype)
    if needs_dk:
        dk = (torch.matmul(dS.mT, widened(q)) * s).sum_to_size(k.shape).to(k.dtype)
    if needs_dM and M is not None:
        dM = dS.sum_to_size(M.shape).to(M.dtype)
    return dq, dk, dv, dM


def _scores(q: Tensor, k: Tensor, M: Tensor | None, s: float, is_causal: bool) -> Tensor:
    """S, in widened precision."""
    S = torch.matmul(widened(q) * s, widened(k).mT)
    if M is not None:
        S = torch.where(M, S, -math.inf) if M.dtype == torch.bool else S + M
    if is_causal:
        S = torch.where(_seen(S.shape[-2], S.shape[-1], S.device), S, -math.inf)
    return S


def _weights(S: Tensor, lse: Tensor) -> Tensor:
    """P = exp(S − ℓ). A large ℓ is rounded by more than P: the sum of a row, which is 1 but for that, takes it out."""
    P = torch.exp(S - lse.unsqueeze(-1))
    total = P.sum(-1, keepdim=True)
    return P / torch.where(total == 0, 1, total)


def _seen(L: int, S: int, device: torch.device) -> Tensor:
    """Where j ≤ i: (L, S)."""
    return torch.ones(L, S, dtype=torch.bool, device=device).tril()


def bits_of(passes: Tensor) -> Tensor:
    """Booleans as bits, eight in a byte: (*, S) → (*, ⌈S/8⌉)."""
    S = passes.shape[-1]
    bytes_ = torch.nn.functional.pad(passes.to(torch.uint8), (0, -S % 8)).unflatten(-1, ((S + 7) // 8, 8))
    return (bytes_ << _places(passes.device)).sum(-1, dtype=torch.uint8)


def entries_of(bits: Tensor, S: int) -> Tensor:
    """0 or 1 for each bit: (*, ⌈S/8⌉) of bytes → (*, S) of bytes."""
    return ((bits.unsqueeze(-1) >> _places(bits.device)) & 1).flatten(-2)[..., :S]


def _passed(bits: Tensor, S: int, p: float, dtype: torch.dtype) -> Tensor:
    """R."""
    return entries_of(bits, S).to(dtype) * (1 / (1 - p) if p < 1 else 0.0)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
