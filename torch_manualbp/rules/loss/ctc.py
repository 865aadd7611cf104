"""The loss of a sequence of labels whose times are not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.loss.reduction import reduced
from torch_manualbp.rules.rule import RuleWithByproducts, formula, widened

__all__ = ["NOTHING", "ConnectionistTemporalClassification", "along_paths", "back_along_paths"]

NOTHING = -1e30
"""log 0, of which differences can be taken."""


class ConnectionistTemporalClassification(RuleWithByproducts):
    """The cost of labels y, of which nobody knows at which times they are, by log-probabilities s of each time.

    A path takes at each time a step of l = (blank, y₁, blank, y₂, …, blank), and stays, goes to the next, or passes
    over a blank between two labels that differ. α_t(u) is the probability of all paths to step u at time t, times those
    of what they say, and β_t(u) that of all from there to the end, which is at one of the last two steps at time T::

        α_t(u) = (α_t−1(u) + α_t−1(u − 1) + [l_u ≠ blank, l_u ≠ l_u−2] α_t−1(u − 2)) exp s_t(l_u)
        C_n = −log P,  P = α_T(2S) + α_T(2S − 1)
        ⇒
        β_t(u) = Σ_v β_t+1(v) exp s_t+1(l_v), of the v that u may go to
        γ_t(u) = α_t(u) β_t(u) / P = Σ_v γ_t+1(v) α_t(u) exp s_t+1(l_v) / α_t+1(v)
        ∂C_n/∂s_t(k) = −Σ_u [l_u = k] γ_t(u)

    γ_t(u) is the probability that a path with these labels is at u at time t. All is computed in logarithms.
    ``"mean"`` divides each C_n by S, the number of its labels or 1, before the mean of the samples. ``zero_infinity``
    makes a C_n that no path can have, and its gradient, 0.

    Shapes: s (times, samples, classes), y (samples, labels), T and S (samples) of integers. Kept: s, y, T, S, log α,
    which is a byproduct.
    """

    @staticmethod
    def forward(
        s: Tensor, y: Tensor, T: Tensor, S: Tensor, blank: int, reduction: str, zero_infinity: bool
    ) -> tuple[Tensor, Tensor]:
        labels = with_blanks(y, blank)
        made = along_paths(what_is_said(widened(s), labels), skips(labels, blank))
        C = _costs(made, T, S)
        C = torch.where(C.isinf(), 0, C) if zero_infinity else C
        return reduced(C / S.clamp(min=1) if reduction == "mean" else C, reduction).to(s.dtype), made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        s, y, T, S, ctx.blank, ctx.reduction, ctx.zero_infinity = inputs
        ctx.save_for_backward(s, y, T, S, output[1])
        ctx.save_for_forward(s, y, T, S, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dlog_alpha: Tensor | None = None) -> tuple[Tensor | None, ...]:
        s, y, T, S, log_alpha = ctx.saved_tensors
        labels = with_blanks(y, ctx.blank)
        ways = to_where(_ways(widened(s), labels, log_alpha, ctx.blank))
        added = torch.zeros_like(log_alpha) if dlog_alpha is None else dlog_alpha
        if g is not None:
            at_end = -_share(ctx, g, log_alpha, T, S) * _last(log_alpha, T, S)
            times = torch.arange(1, len(s) + 1, device=s.device).reshape(-1, 1, 1)
            added = added + torch.where(times == T.reshape(1, -1, 1), at_end, 0)
        gammas = back_along_paths(added, *ways)  # γ times −∂C/∂C_n, and what comes by log α
        index = labels.expand(log_alpha.shape)
        ds = torch.zeros_like(widened(s)).scatter_add(2, index, gammas)
        return ds.to(s.dtype), None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        s, y, T, S, log_alpha = ctx.saved_tensors
        labels = with_blanks(y, ctx.blank)
        ways = _ways(widened(s), labels, log_alpha, ctx.blank)
        dsaid = what_is_said(widened(ds), labels)
        first = torch.arange(labels.shape[1], device=s.device) < 2
        dalpha = torch.where(first, dsaid[0], 0)
        of_time = [dalpha]
        for t in range(1, len(s)):
            moved = from_where(dalpha, None, 0.0)
            dalpha = dsaid[t] + sum(
                (way[t - 1] * d for way, d in zip(ways, moved, strict=True)), start=torch.zeros_like(dalpha)
            )
            of_time.append(dalpha)
        made = torch.stack(of_time)
        ones = log_alpha.new_ones(())
        dC = -(_share(ctx, ones, log_alpha, T, S) * _last(log_alpha, T, S) * _at_end(made, T)).sum(1)
        dC = torch.where(T > 0, dC, 0)
        return (dC if ctx.reduction == "none" else dC.sum()).to(s.dtype), made


@formula(by="whole")
def along_paths(said: Tensor, may_skip: Tensor) -> Tensor:
    """log α of all times: (times, samples, steps), (samples, steps) → (times, samples, steps)."""
    log_alpha = said.new_full(said.shape[1:], NOTHING)
    log_alpha = torch.cat([said[0, :, :2], log_alpha[:, 2:]], 1) if len(said) else log_alpha
    of_time = [log_alpha]
    for t in range(1, len(said)):
        log_alpha = torch.logsumexp(torch.stack(from_where(log_alpha, may_skip)), 0) + said[t]
        of_time.append(log_alpha)
    return torch.stack(of_time)


@formula(by="whole")
def back_along_paths(added: Tensor, stay: Tensor, go: Tensor, skip: Tensor) -> Tensor:
    """γ of all times, what is added to each and what the next one's brings, times the ways to u, u + 1 and u + 2:
    (times, samples, steps), (times − 1, samples, steps) thrice → (times, samples, steps)."""
    gamma = added[-1]
    gammas = [gamma]
    for t in range(len(added) - 2, -1, -1):
        _, one, two = to_where([gamma] * 3)
        gamma = added[t] + gamma * stay[t] + one * go[t] + two * skip[t]
        gammas.append(gamma)
    return torch.stack(gammas[::-1])


def with_blanks(y: Tensor, blank: int) -> Tensor:
    """l = (blank, y₁, blank, …, blank): (samples, S) → (samples, 2 S + 1)."""
    blanks = torch.full_like(y, blank)
    pairs = torch.stack([blanks, y], 2).reshape(y.shape[0], 2 * y.shape[1])
    return torch.cat([pairs, y.new_full((y.shape[0], 1), blank)], 1).long()


def what_is_said(s: Tensor, labels: Tensor) -> Tensor:
    """s_t(l_u): (times, samples, classes), (samples, steps) → (times, samples, steps)."""
    return s.gather(2, labels.expand(s.shape[0], *labels.shape)).clamp(min=NOTHING)


def skips(labels: Tensor, blank: int) -> Tensor:
    """Whether a path may come to a step from that before the last: (samples, steps)."""
    before = torch.cat([torch.full_like(labels[:, :2], blank), labels], 1)[:, : labels.shape[1]]
    return (labels != blank) & (labels != before)


def from_where(state: Tensor, may_skip: Tensor | None, nothing: float = NOTHING) -> list[Tensor]:
    """For each step the state of those that lead to it: of itself, of the last, and of that before: (*, steps)."""
    n = state.shape[-1]
    padded = torch.cat([state.new_full((*state.shape[:-1], 2), nothing), state], -1)
    far = padded[..., :n]
    return [state, padded[..., 1 : n + 1], far if may_skip is None else torch.where(may_skip, far, nothing)]


def to_where(states: Sequence[Tensor]) -> list[Tensor]:
    """What :func:`from_where` has brought to each step, back where it came from."""
    stays, one, two = states
    none = stays.new_zeros(*stays.shape[:-1], 2)
    return [stays, torch.cat([one[..., 1:], none[..., :1]], -1), torch.cat([two, none], -1)[..., 2:]]


def _ways(s: Tensor, labels: Tensor, log_alpha: Tensor, blank: int) -> list[Tensor]:
    """∂log α_t+1(v)/∂log α_t(u) = α_t(u) exp s_t+1(l_v) / α_t+1(v) for u = v, v − 1, v − 2: (times − 1, samples, steps)
    each."""
    said, may_skip = what_is_said(s, labels), skips(labels, blank)
    came = from_where(log_alpha[:-1], may_skip)
    return [(of_way + said[1:] - log_alpha[1:]).exp() for of_way in came]


def _at_end(state: Tensor, T: Tensor) -> Tensor:
    """That of the last time of each sample: (times, samples, steps) → (samples, steps)."""
    last = (T - 1).clamp(min=0).long().reshape(1, len(T), 1).expand(1, *state.shape[1:])
    return state.gather(0, last).squeeze(0)


def _costs(log_alpha: Tensor, T: Tensor, S: Tensor) -> Tensor:
    """C_n = −log P."""
    steps = torch.arange(log_alpha.shape[2], device=log_alpha.device)
    ends = (steps == 2 * S.unsqueeze(1)) | (steps == 2 * S.unsqueeze(1) - 1)
    log_p = torch.logsumexp(torch.where(ends, _at_end(log_alpha, T), NOTHING), 1)
    log_p = torch.where(T > 0, log_p, (S > 0) * NOTHING)  # of no time the empty path
    return torch.where(log_p <= NOTHING / 10, torch.inf, -log_p)


def _last(log_alpha: Tensor, T: Tensor, S: Tensor) -> Tensor:
    """γ of each step at the last time: α_T(u) / P, of the last two steps."""
    steps = torch.arange(log_alpha.shape[2], device=log_alpha.device)
    ends = (steps == 2 * S.unsqueeze(1)) | (steps == 2 * S.unsqueeze(1) - 1)
    return torch.where(ends, _at_end(log_alpha, T), NOTHING).softmax(1) * ends


def _share(ctx: Any, g: Tensor, log_alpha: Tensor, T: Tensor, S: Tensor) -> Tensor:
    """∂C/∂C_n: (samples, 1); 0 of an infinite one with ``zero_infinity``, else NaN."""
    g = widened(g)
    if ctx.reduction == "mean":
        g = g / S.clamp(min=1) / max(len(S), 1)
    is_possible = ~_costs(log_alpha.detach(), T, S).isinf()
    return torch.where(is_possible, g, 0 if ctx.zero_infinity else torch.nan).unsqueeze(1)
