"""The losses of margins between scores, and of distances between vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "CosineEmbeddingLoss",
    "MarginRankingLoss",
    "MultiLabelMarginLoss",
    "MultiLabelSoftMarginLoss",
    "MultiMarginLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]


class CosineEmbeddingLoss(torch.nn.CosineEmbeddingLoss):
    """``torch.nn.CosineEmbeddingLoss`` by :class:`torch_manualbp.rules.CosineEmbedding`.

    c = cos(u, v), C = 1 − c or max(0, c − margin) ⇒ ∂C/∂u = ∂C/∂c (v / (‖u‖ ‖v‖) − c u / ‖u‖²). Kept: u, v, the
    sort of pair.
    """

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.cosine_embedding_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


class MarginRankingLoss(torch.nn.MarginRankingLoss):
    """``torch.nn.MarginRankingLoss`` by :class:`torch_manualbp.rules.MarginRanking`.

    r = margin − y (s₁ − s₂), C = max(0, r) ⇒ ∂C/∂s₁ = −y [r ≥ 0] = −∂C/∂s₂. Kept: −y, where r ≥ 0.
    """

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.margin_ranking_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


class MultiLabelMarginLoss(torch.nn.MultiLabelMarginLoss):
    """``torch.nn.MultiLabelMarginLoss`` by :class:`torch_manualbp.rules.MultiLabelMargin`.

    C = Σ_t Σ_{k not listed} max(0, 1 − s_t + s_k) / K ⇒ ∂C/∂s_k = (the number of t within the margin) / K. Kept: s,
    y.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multilabel_margin_loss(input, target, reduction=self.reduction)


class MultiLabelSoftMarginLoss(torch.nn.MultiLabelSoftMarginLoss):
    """``torch.nn.MultiLabelSoftMarginLoss`` by :class:`torch_manualbp.rules.MultiLabelSoftMargin`.

    C = −Σ_k w_k (y_k log σ(s_k) + (1 − y_k) log σ(−s_k)) / K ⇒ ∂C/∂s_k = w_k (σ(s_k) − y_k) / K. Kept: s, y, class
    weights.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multilabel_soft_margin_loss(input, target, weight=self.weight, reduction=self.reduction)


class MultiMarginLoss(torch.nn.MultiMarginLoss):
    """``torch.nn.MultiMarginLoss`` by :class:`torch_manualbp.rules.MultiMargin`.

    r_k = margin − s_y + s_k, C = w_y Σ_{k≠y} max(0, r_k)^p / K ⇒ ∂C/∂s_k = w_y p r_k^(p−1) [r_k > 0] / K. Kept: s,
    y, class weights.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(
            input, target, p=self.p, margin=self.margin, weight=self.weight, reduction=self.reduction
        )


class TripletMarginLoss(torch.nn.TripletMarginLoss):
    """``torch.nn.TripletMarginLoss`` by :class:`torch_manualbp.rules.TripletMargin`.

    C = max(0, margin + ‖a − x⁺‖ − ‖a − x⁻‖) ⇒ ∂C/∂a = (a − x⁺) / ‖a − x⁺‖ − (a − x⁻) / ‖a − x⁻‖ where C > 0. Kept:
    the differences, the distances, where C > 0.
    """

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(
            anchor,
            positive,
            negative,
            margin=self.margin,
            p=self.p,
            eps=self.eps,
            swap=self.swap,
            reduction=self.reduction,
        )


class TripletMarginWithDistanceLoss(torch.nn.TripletMarginWithDistanceLoss):
    """``torch.nn.TripletMarginWithDistanceLoss`` by :class:`torch_manualbp.rules.TripletMargin`.

    C = max(0, margin + D⁺ − D⁻) ⇒ ∂C/∂D⁺ = 1 = −∂C/∂D⁻ where C > 0, and autograd for a distance that is not
    torch's. Kept: where C > 0.
    """

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=self.margin,
            swap=self.swap,
            reduction=self.reduction,
        )
