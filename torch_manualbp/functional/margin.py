"""The losses of margins between scores, and of distances between vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp._torch import number_of_reduction
from torch_manualbp.functional.call import in_full_precision, legacy_reduction, overridable, run

__all__ = [
    "cosine_embedding_loss",
    "margin_ranking_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]


@overridable
def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = 1 − cos(u, v) where y = 1, max(0, cos(u, v) − margin) where y = −1, with
    :class:`~torch_manualbp.rules.CosineEmbedding`; as :func:`torch.nn.functional.cosine_embedding_loss`."""
    reduction = _reduction_of(size_average, reduce, reduction)
    return in_full_precision(rules.CosineEmbedding, input1, input2, target, margin, reduction)


@overridable
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = max(0, margin − y_i (s₁ − s₂)_i), with :class:`~torch_manualbp.rules.MarginRanking` of a
    :class:`~torch_manualbp.rules.Difference`; as :func:`torch.nn.functional.margin_ranking_loss`."""
    reduction = _reduction_of(size_average, reduce, reduction)
    if not (_alike(input1, input2, target) and torch.is_floating_point(input1) and torch.is_floating_point(input2)):
        return torch_functional.margin_ranking_loss(input1, input2, target, margin, reduction=reduction)
    if target.is_complex() or target.dtype == torch.bool:
        return torch_functional.margin_ranking_loss(input1, input2, target, margin, reduction=reduction)
    difference = in_full_precision(rules.Difference, input1, input2, 0.0)
    return in_full_precision(rules.MarginRanking, difference, target, margin, reduction)


@overridable
def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = Σ_t Σ_{k not listed} max(0, 1 − s_t + s_k) / K over the listed classes t, with
    :class:`~torch_manualbp.rules.MultiLabelMargin`; as :func:`torch.nn.functional.multilabel_margin_loss`."""
    reduction = _reduction_of(size_average, reduce, reduction)
    return in_full_precision(rules.MultiLabelMargin, input, target, reduction)


@overridable
def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = −Σ_k w_k (y_k log σ(s_k) + (1 − y_k) log σ(−s_k)) / K, with
    :class:`~torch_manualbp.rules.MultiLabelSoftMargin`; as :func:`torch.nn.functional.multilabel_soft_margin_loss`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    tensors = (input, target) if weight is None else (input, target, weight)
    if reduction not in ("none", "sum", "mean") or not all(isinstance(t, Tensor) for t in tensors):
        return torch_functional.multilabel_soft_margin_loss(input, target, weight, reduction=reduction)
    if not input.is_floating_point() or target.dtype == torch.bool or any(t.is_complex() for t in tensors):
        return torch_functional.multilabel_soft_margin_loss(input, target, weight, reduction=reduction)
    return run(rules.MultiLabelSoftMargin, input, target, weight, reduction)  # whose dtype autocast leaves alone


@overridable
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = w_y Σ_{k≠y} max(0, margin − s_y + s_k)^p / K, with :class:`~torch_manualbp.rules.MultiMargin`; as
    :func:`torch.nn.functional.multi_margin_loss`."""
    reduction = _reduction_of(size_average, reduce, reduction)
    if isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled():
        # which says that weight takes no gradient
        return torch_functional.multi_margin_loss(input, target, p, margin, weight, reduction=reduction)
    return in_full_precision(rules.MultiMargin, input, target, p, margin, weight, reduction)


@overridable
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = max(0, margin + ‖a − x⁺ + ε‖_p − ‖a − x⁻ + ε‖_p) of an anchor a, a positive x⁺ and a negative x⁻, with
    :class:`~torch_manualbp.rules.TripletMargin` of the :class:`~torch_manualbp.rules.VectorNorm` of
    :class:`~torch_manualbp.rules.Difference`; as :func:`torch.nn.functional.triplet_margin_loss`."""
    reduction = _reduction_of(size_average, reduce, reduction)
    if margin <= 0 or not _alike(anchor, positive, negative) or not _are_inexact(anchor, positive, negative):
        return torch_functional.triplet_margin_loss(
            anchor, positive, negative, margin, p, eps, swap, reduction=reduction
        )

    def distance(x1: Tensor, x2: Tensor) -> Tensor:
        d = in_full_precision(rules.Difference, x1, x2, eps)
        return in_full_precision(rules.VectorNorm, d, p)

    return _triplet_margin(distance, anchor, positive, negative, margin, swap, reduction)


@overridable
def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """C_i = max(0, margin + D(a, x⁺) − D(a, x⁻)) for any distance D, with
    :class:`~torch_manualbp.rules.TripletMargin`; as :func:`torch.nn.functional.triplet_margin_with_distance_loss`.

    Without a ``distance_function``, and with ``torch.pairwise_distance`` or its module, D is that of
    :func:`triplet_margin_loss`, by our rules; any other is differentiated by autograd.
    """
    checked = reduction in ("mean", "sum", "none") and margin > 0 and _alike(anchor, positive, negative)
    if not checked or not _are_inexact(anchor, positive, negative):
        return torch_functional.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=distance_function,
            margin=margin,
            swap=swap,
            reduction=reduction,
        )
    distance = _ours(distance_function)
    return _triplet_margin(distance, anchor, positive, negative, margin, swap, reduction)


def _ours(distance: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Our rules in place of torch's pairwise distance, which is the default of the function and of the module."""
    p, eps = 2.0, 1e-6
    if type(distance) is torch.nn.PairwiseDistance and not distance.keepdim and not _has_hooks(distance):
        p, eps = distance.norm, distance.eps
    elif distance is not None and distance is not torch.pairwise_distance:
        return distance
    return lambda x1, x2: run(rules.VectorNorm, run(rules.Difference, x1, x2, eps), p)


def _has_hooks(module: torch.nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _triplet_margin(
    distance: Callable[[Tensor, Tensor], Tensor],
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float,
    swap: bool,
    reduction: str,
) -> Tensor:
    D_pos, D_neg = distance(anchor, positive), distance(anchor, negative)
    D_swap = distance(positive, negative) if swap else None
    return run(rules.TripletMargin, D_pos, D_neg, D_swap, margin, reduction)


def _reduction_of(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that is meant, with torch's warnings and its error."""
    name = legacy_reduction(size_average, reduce, reduction)
    return ("none", "mean", "sum")[number_of_reduction(name)]


def _alike(*tensors: Tensor) -> bool:
    """Whether all are tensors of as many dimensions; else torch says what is wrong."""
    return all(isinstance(t, Tensor) and t.dim() == tensors[0].dim() for t in tensors)


def _are_inexact(*tensors: Tensor) -> bool:
    return all(t.is_floating_point() or t.is_complex() for t in tensors)
