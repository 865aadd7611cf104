"""The losses."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CTCLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "HingeEmbeddingLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
]


class L1Loss(torch.nn.L1Loss):
    """``torch.nn.L1Loss`` by :class:`torch_manualbp.rules.Difference` and
    :class:`torch_manualbp.rules.AbsoluteError`.

    C = Σ |s − y| / n ⇒ ∂C/∂s = sign(s − y) / n. Kept: s − y.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """``torch.nn.SmoothL1Loss`` by :class:`torch_manualbp.rules.SmoothAbsoluteError`.

    C = Σ c (s − y − c / 2) / βn, c = s − y clamped to ±β ⇒ ∂C/∂s = c / βn. Kept: s, y.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(torch.nn.HuberLoss):
    """``torch.nn.HuberLoss`` by :class:`torch_manualbp.rules.Huber`.

    C = Σ c (s − y − c / 2) / n, c = s − y clamped to ±Δ ⇒ ∂C/∂s = c / n. Kept: s, y.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class MSELoss(torch.nn.MSELoss):
    """``torch.nn.MSELoss`` by :class:`torch_manualbp.rules.MeanSquaredError`.

    C = Σ (s − y)² / n ⇒ ∂C/∂s = 2 (s − y) / n. Kept: s, y.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` by :class:`torch_manualbp.rules.CrossEntropy` for class indices and
    :class:`torch_manualbp.rules.CrossEntropyProbabilities` for class probabilities.

    C = −Σ_k q_k log p_k ⇒ ∂C/∂s = (p Σ_k q_k − q) / n. Kept: log p, y, class weights.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(torch.nn.NLLLoss):
    """``torch.nn.NLLLoss`` by :class:`torch_manualbp.rules.NegativeLogLikelihood`.

    C = −Σ w_y s_y / Σ w_y ⇒ ∂C/∂s_k = −w_k [k = y] / Σ w_y. Kept: y, class weights.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class GaussianNLLLoss(torch.nn.GaussianNLLLoss):
    """``torch.nn.GaussianNLLLoss`` by :class:`torch_manualbp.rules.Difference` and
    :class:`torch_manualbp.rules.GaussianNegativeLogLikelihood`.

    C = Σ (log v + (s − y)² / v) / 2n ⇒ ∂C/∂s = (s − y) / vn, ∂C/∂v = (v − (s − y)²) / 2v²n. Kept: s − y, v.
    """

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor:
        return F.gaussian_nll_loss(input, target, var, full=self.full, eps=self.eps, reduction=self.reduction)


class PoissonNLLLoss(torch.nn.PoissonNLLLoss):
    """``torch.nn.PoissonNLLLoss`` by :class:`torch_manualbp.rules.PoissonNegativeLogLikelihood`.

    C = Σ (exp(s) − y s) / n ⇒ ∂C/∂s = (exp(s) − y) / n. Kept: a copy of s, y.
    """

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(
            log_input, target, log_input=self.log_input, full=self.full, eps=self.eps, reduction=self.reduction
        )


class KLDivLoss(torch.nn.KLDivLoss):
    """``torch.nn.KLDivLoss`` by :class:`torch_manualbp.rules.KullbackLeiblerDivergence`.

    C = Σ y (log y − s) / n ⇒ ∂C/∂s = −y / n, ∂C/∂y = (log y + 1 − s) / n. Kept: y; s, if ∂C/∂y is needed; with
    `log_target` copies.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class BCELoss(torch.nn.BCELoss):
    """``torch.nn.BCELoss`` by :class:`torch_manualbp.rules.BinaryCrossEntropy`.

    C = −Σ w (y log s + (1 − y) log(1 − s)) / n ⇒ ∂C/∂s = w (s − y) / s (1 − s) n. Kept: s, y, w.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss`` by :class:`torch_manualbp.rules.BinaryCrossEntropyWithLogits`.

    C = −Σ w (p y log σ(s) + (1 − y) log σ(−s)) / n ⇒ ∂C/∂s = w ((p y + 1 − y) σ(s) − p y) / n. Kept: s, y, w, p.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, weight=self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class HingeEmbeddingLoss(torch.nn.HingeEmbeddingLoss):
    """``torch.nn.HingeEmbeddingLoss`` by :class:`torch_manualbp.rules.HingeEmbedding`.

    C = Σ (s where y = 1, max(0, margin − s) where y = −1) / n ⇒ ∂C/∂s = (1, or −1 up to the margin) / n. Kept: the
    slope, a byte an entry.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.hinge_embedding_loss(input, target, margin=self.margin, reduction=self.reduction)


class SoftMarginLoss(torch.nn.SoftMarginLoss):
    """``torch.nn.SoftMarginLoss`` by :class:`torch_manualbp.rules.SoftMargin`.

    C = Σ log(1 + exp(−y s)) / n ⇒ ∂C/∂s = −y σ(−y s) / n. Kept: s, y.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.soft_margin_loss(input, target, reduction=self.reduction)


class CTCLoss(torch.nn.CTCLoss):
    """``torch.nn.CTCLoss`` by :class:`torch_manualbp.rules.ConnectionistTemporalClassification`.

    C = −log Σ of all paths that say the labels, of Π_t exp s_t, by α_t(u) = (α_t−1(u) + α_t−1(u − 1) + …) exp s_t(l_u)
    ⇒ ∂C/∂s_t(k) = −Σ_u [l_u = k] α_t(u) β_t(u) / P. Kept: s, y, log α.
    """

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        return F.ctc_loss(
            log_probs, targets, input_lengths, target_lengths, self.blank, self.reduction, self.zero_infinity
        )
