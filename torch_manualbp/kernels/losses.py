"""The losses in fewer and cheaper passes over memory than their formulas take."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.blocks import by_entries, sums
from torch_manualbp.kernels.dispatch import for_large, for_steps, plain
from torch_manualbp.rules.loss.binary import BinaryCrossEntropy, HingeEmbedding
from torch_manualbp.rules.loss.classification import (
    class_probabilities,
    cross_entropy_gradient,
    negative_log_likelihood_gradient,
)
from torch_manualbp.rules.loss.margin import (
    multi_label_margin_counts,
    ranking_gradient,
)
from torch_manualbp.rules.loss.reduction import reduced
from torch_manualbp.rules.rule import widened

__all__ = ["FEW_LABELS"]

WIDE = (torch.float32, torch.float64)


@for_large(BinaryCrossEntropy.forward)
def binary_cross_entropy(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Any:
    """As F.binary_cross_entropy, whose logarithms are taken one by one."""
    if not s.dtype == y.dtype == torch.float32 or s.shape != y.shape or reduction not in ("none", "sum", "mean"):
        return NotImplemented
    (s_low, s_high), (y_low, y_high) = s.aminmax(), y.aminmax()
    if not (0 <= s_low <= s_high <= 1 and 0 <= y_low <= y_high <= 1):
        return NotImplemented  # the formula says what is wrong
    return sums(BinaryCrossEntropy.composite, (s, y, w, reduction))


@for_large(HingeEmbedding.forward)
def hinge_embedding(s: Tensor, y: Tensor, margin: float, reduction: str) -> Any:
    """By products, where s is finite: a choice by a mask costs the processor a wrong guess every other number."""
    if s.dtype != y.dtype or s.dtype not in WIDE or s.shape != y.shape:
        return NotImplemented
    C = sums(_hinge_embedding_by_products, (s, y, margin, reduction))
    return C if math.isfinite(C.sum()) else NotImplemented


def _hinge_embedding_by_products(s: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
    near, far = torch.ne(y, -1, out=torch.empty_like(s)), torch.ne(y, 1, out=torch.empty_like(s))
    return reduced(near.mul_(s).addcmul_(far, (margin - s).clamp_(min=0)), reduction)


SHARED_ELEMENTS = 1 << 16
"""Numbers up to which p = exp(log p), with the log p of the forward, takes less time than a softmax."""


@for_steps(class_probabilities)
def class_probabilities_step(s: Tensor, is_log_p: bool) -> Tensor:
    """With the log p that the forward has made."""
    if is_log_p or s.numel() >= SHARED_ELEMENTS:
        return plain(class_probabilities)(s, is_log_p)
    return torch.log_softmax(widened(s), 0 if s.dim() == 1 else 1).exp()


@for_large(negative_log_likelihood_gradient)
@for_steps(negative_log_likelihood_gradient)
def negative_log_likelihood(h: Tensor, y: Tensor, k: int) -> Tensor:
    """Written over the zeros."""
    zeros = h.new_zeros(h.shape)
    return zeros.scatter_(k, y, h) if h.shape[k] else zeros


@for_large(ranking_gradient)
def ranking(passes: Tensor, x: Tensor, g: Tensor) -> Any:
    """By products, of one finite g for all."""
    if g.dim() or not g.isfinite() or x.dtype != g.dtype or passes.shape != x.shape:
        return NotImplemented
    return by_entries(lambda passes, x: passes.to(x.dtype).mul_(g).mul_(x), (passes, x))


@for_large(cross_entropy_gradient)
@for_steps(cross_entropy_gradient)
def cross_entropy(
    kept: Tensor, y: Tensor, g: Tensor, w_y: Tensor | None, w: Tensor | None, epsilon: float, is_log_p: bool
) -> Tensor:
    """Written over p, which is fresh."""
    k = 0 if kept.dim() == 1 else 1
    if epsilon or not kept.shape[k] or widened(kept).dtype != g.dtype:
        return plain(cross_entropy_gradient)(kept, y, g, w_y, w, epsilon, is_log_p)
    p = class_probabilities(kept, is_log_p)
    q_y = (g if w_y is None else g * w_y).unsqueeze(k)
    return p.mul_(q_y).scatter_add_(k, y.unsqueeze(k), -q_y)


FEW_LABELS = 64
"""Up to so many labels a sample, counting for one after the other is faster than sorting: 2.5 ms a label at 4096×1000,
against 430 ms."""


@for_large(multi_label_margin_counts)
def counts_label_by_label(s: Tensor, y: Tensor) -> Any:
    longest = _longest_list(y, FEW_LABELS)
    if longest > FEW_LABELS:
        return NotImplemented
    y = y[:, :longest]
    listed = (y < 0).cumsum(1) == 0
    y = torch.where(listed, y, 0)
    bound = torch.where(listed, s.gather(1, y) - 1, math.inf)
    others = s.clone()
    for t, is_listed in zip(y.split(1, 1), listed.split(1, 1), strict=True):
        others.scatter_(1, t, torch.where(is_listed, -math.inf, others.gather(1, t)))
    c, is_above, of_labels = torch.zeros_like(s), torch.empty_like(s), torch.empty_like(bound)
    for t in range(longest):
        torch.gt(others, bound[:, t : t + 1], out=is_above)
        torch.sum(is_above, 1, out=of_labels[:, t])
        c += is_above
    return c.scatter_add_(1, y, -of_labels)


def _longest_list(y: Tensor, limit: int) -> int:
    """The length of the longest of the lists, or ``limit`` + 1 if it is more."""
    listed = torch.ones_like(y[:, 0], dtype=torch.bool)
    for t, label in enumerate(y[:, : limit + 1].unbind(1)):
        listed = listed & (label >= 0)
        if not listed.any():
            return t
    return min(limit + 1, y.shape[1])
