"""Rules that hold a whole network of neurons, written as the operations that they are made of: for a reader of chains.

Attention, an LSTM and a GRU are one rule each, so that they run fast and keep little. An explanation goes through them
neuron by neuron: a score, its weight, the mean of the values; a gate and its f'(z) at each time. The operations are the
torch calls that a reader would write, and each has a rule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp import rules
from torch_manualbp.rules.attention import entries_of
from torch_manualbp.rules.recurrent.times import Sizes, final, in_order, resized
from torch_manualbp.rules.rule import Rule

__all__ = ["Named", "opened"]

PLAIN = (torch.float32, torch.float64)
"""In lower precision a rule rounds once, and its parts would do so each."""

MOST_NUMBERS = 1 << 22
"""Numbers that an opened rule may make; one that makes more stays closed, and its Jacobian is that of the whole."""

Named = Callable[[str, Tensor, str], Tensor]
"""Gives a tensor the letter of the textbook, and where there are several of it a mark: ``"t=3"``."""


def opened(rule: type[Rule], args: tuple[Any, ...]) -> Callable[[Named], tuple[Tensor, ...]] | None:
    """What makes the outputs of a rule by smaller ones, or None where it is to stay as it is."""
    of_rule = OPENED.get(rule)
    if of_rule is None or any(isinstance(t, Tensor) and t.dtype not in PLAIN for t in args[:3]):
        return None
    if _count(rule, args) > MOST_NUMBERS:
        return None
    if rule is rules.Attention and args[3] is not None and _has_empty_rows(args[3]):
        return None
    return lambda named: of_rule(named, *args)


def _count(rule: type[Rule], args: tuple[Any, ...]) -> int:
    q, k = args[:2]
    if rule is rules.Attention:
        return int(math.prod(torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]))) * q.shape[-2] * k.shape[-2]
    return int(q.shape[0]) * int(k.shape[-1]) * 12  # the gates of each row, and what is made of them


def _has_empty_rows(M: Tensor) -> bool:
    """Whether a query sees no key at all: its weights are 0 then, and no softmax."""
    sees = M if M.dtype == torch.bool else M.ne(-math.inf)
    return not bool(sees.any(-1).all())


def _attention(
    named: Named,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    M: Tensor | None,
    bits: Tensor | None,
    s: float,
    is_causal: bool,
    p: float,
) -> tuple[Tensor, ...]:
    S = named("S", torch.matmul(named("q", q, ""), named("k", k, "").transpose(-2, -1)) * s, "")
    if M is not None:
        S = named("S", S.masked_fill(~M, -math.inf) if M.dtype == torch.bool else S + M, "")
    if is_causal:
        unseen = torch.ones(S.shape[-2:], dtype=torch.bool, device=S.device).tril().logical_not()
        S = named("S", S.masked_fill(unseen, -math.inf), "")
    P = named("P", torch.softmax(S, -1), "")
    if bits is not None:
        R = entries_of(bits, P.shape[-1]).to(P.dtype) * (1 / (1 - p) if p < 1 else 0.0)
        P = named("RP", P * R, "")
    o = named("o", torch.matmul(P, named("v", v, "")), "")
    with torch.no_grad():
        return o, torch.logsumexp(S.detach(), -1)


def _lstm(
    named: Named,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor | None,
    V: Tensor | None,
    sizes: Sizes,
    reverse: bool,
) -> tuple[Tensor, ...]:
    hs, cs = [h0] * len(sizes), [c0] * len(sizes)
    h, c, xs = h0, c0, x.split(sizes)
    for t in in_order(sizes, reverse):
        at = f"t={t + 1}"
        h, c = resized(h, sizes[t], h0), resized(c, sizes[t], c0)
        z = named("z", named("Wx", F.linear(named("x", xs[t], at), W, b), at) + named("Uh", F.linear(h, U), at), at)
        z_i, z_f, z_g, z_o = (named(f"z_{g}", part, at) for g, part in zip("ifgo", z.chunk(4, 1), strict=True))
        i, f = named("i", torch.sigmoid(z_i), at), named("f", torch.sigmoid(z_f), at)
        g, o = named("g", torch.tanh(z_g), at), named("o", torch.sigmoid(z_o), at)
        c = cs[t] = named("c", named("fc", f * c, at) + named("ig", i * g, at), at)
        h = named("h", o * named("tanh(c)", torch.tanh(c), at), at)
        h = hs[t] = h if V is None else named("Vh", F.linear(h, V), at)
    return torch.cat(hs), final(hs, sizes, reverse), final(cs, sizes, reverse)


def _gru(
    named: Named,
    x: Tensor,
    h0: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor | None,
    beta: Tensor | None,
    sizes: Sizes,
    reverse: bool,
) -> tuple[Tensor, ...]:
    h, hs, xs = h0, [h0] * len(sizes), x.split(sizes)
    for t in in_order(sizes, reverse):
        at = f"t={t + 1}"
        h = resized(h, sizes[t], h0)
        z, y = named("Wx", F.linear(named("x", xs[t], at), W, b), at), named("Uh", F.linear(h, U, beta), at)
        (z_r, z_u, z_n), (y_r, y_u, y_n) = z.chunk(3, 1), y.chunk(3, 1)
        r = named("r", torch.sigmoid(named("z_r", z_r + y_r, at)), at)
        u = named("u", torch.sigmoid(named("z_u", z_u + y_u, at)), at)
        n = named("n", torch.tanh(named("z_n", z_n + named("ry", r * y_n, at), at)), at)
        h = hs[t] = named("h", named("un", (1 - u) * n, at) + named("uh", u * h, at), at)
    return torch.cat(hs), final(hs, sizes, reverse)


def _rnn(
    f: Callable[[Tensor], Tensor],
) -> Callable[..., tuple[Tensor, ...]]:
    def opened_rnn(
        named: Named, x: Tensor, h0: Tensor, W: Tensor, U: Tensor, b: Tensor | None, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, ...]:
        h, hs, xs = h0, [h0] * len(sizes), x.split(sizes)
        for t in in_order(sizes, reverse):
            at = f"t={t + 1}"
            h = resized(h, sizes[t], h0)
            z = named("Wx", F.linear(named("x", xs[t], at), W, b), at) + named("Uh", F.linear(h, U), at)
            h = hs[t] = named("h", f(named("z", z, at)), at)
        return torch.cat(hs), final(hs, sizes, reverse)

    return opened_rnn


OPENED: dict[type[Rule], Callable[..., tuple[Tensor, ...]]] = {
    rules.Attention: _attention,
    rules.GRU: _gru,
    rules.LSTM: _lstm,
    rules.RNN: _rnn(torch.tanh),
    rules.RNNReLU: _rnn(torch.relu),
}
