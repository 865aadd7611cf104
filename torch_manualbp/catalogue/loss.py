"""The losses, their torch twins and sample inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.loss import (
    AbsoluteError,
    BinaryCrossEntropy,
    BinaryCrossEntropyWithLogits,
    CrossEntropy,
    CrossEntropyProbabilities,
    GaussianNegativeLogLikelihood,
    HingeEmbedding,
    Huber,
    KullbackLeiblerDivergence,
    MeanSquaredError,
    NegativeLogLikelihood,
    PoissonNegativeLogLikelihood,
    SmoothAbsoluteError,
    SoftMargin,
)

__all__ = ["LOSSES"]

REDUCTIONS = ("none", "sum", "mean")


def _pair_samples(*options: Any) -> Callable[[Make], Iterator[Sample]]:
    """An output and a target of any numbers."""

    def samples(make: Make) -> Iterator[Sample]:
        for reduction in REDUCTIONS:
            yield Sample(reduction, (2 * make(5, 4), make(5, 4), *options, reduction))
            yield Sample(f"{reduction}, empty batch", (make(0, 4), make(0, 4), *options, reduction))
        yield Sample("number", (make(), make(), *options, "mean"))

    return samples


def _absolute_error_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), reduction))
    yield Sample("number", (make(), "mean"))
    yield Sample("mean, empty batch", (make(0, 4), "mean"))


def _gaussian_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), make.positive(5, 4), False, reduction))
    yield Sample("full, one variance a sample", (make(5, 4), make.positive(5, 1), True, "mean"))
    yield Sample("number", (make(), make.positive(), False, "sum"))
    yield Sample("mean, empty batch", (make(0, 4), make.positive(0, 4), False, "mean"))


def _poisson_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), make.positive(5, 4), True, False, 1e-8, reduction))
    yield Sample("full", (make(5, 4), 2 * make.positive(5, 4), True, True, 1e-8, "mean"))
    yield Sample("rate", (make.positive(5, 4), make.positive(5, 4), False, False, 1e-3, "none"))
    yield Sample("rate, full, broadcast", (make.positive(5, 4), 2 * make.positive(4), False, True, 1e-3, "mean"))
    yield Sample("number", (make(), make.positive(), True, False, 1e-8, "sum"))
    yield Sample("mean, empty batch", (make(0, 4), make(0, 4), True, False, 1e-8, "mean"))


def _divergence_samples(make: Make) -> Iterator[Sample]:
    for reduction in (*REDUCTIONS, "batchmean"):
        for log_target in (False, True):
            y = make(5, 4) if log_target else make.probabilities(5, 4, dim=1)
            yield Sample(f"{reduction}{', log target' if log_target else ''}", (make(5, 4), y, log_target, reduction))
    yield Sample("broadcast", (make(5, 4), make.probabilities(4, dim=0), False, "mean"))
    yield Sample("number", (make(), make.positive(), False, "batchmean"))
    yield Sample("mean, empty batch", (make(0, 4), make(0, 4), False, "mean"))


def _binary_cross_entropy_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4).sigmoid(), make(5, 4).sigmoid(), None, reduction))
    yield Sample("weighted", (make(5, 4).sigmoid(), make(5, 4).sigmoid(), make.positive(4), "mean"))
    yield Sample("number", (make().sigmoid(), make().sigmoid(), None, "sum"))
    yield Sample("mean, empty batch", (make(0, 4), make(0, 4), None, "mean"))


def _with_logits_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (2 * make(5, 4), make(5, 4).sigmoid(), None, None, reduction))
    for about, w, p in (
        ("weighted", make.positive(5, 1), None),
        ("positive weighted", None, make.positive(4)),
        ("both weighted", make.positive(5, 4), make.positive(1)),
    ):
        yield Sample(about, (2 * make(5, 4), make(5, 4).sigmoid(), w, p, "mean"))
    yield Sample("number", (make(), make().sigmoid(), None, None, "sum"))
    yield Sample("mean, empty batch", (make(0, 4), make(0, 4), None, None, "mean"))


def _signs(make: Make, *shape: int) -> Tensor:
    """−1 and 1, in the dtype of the scores."""
    return (2 * make.indices(2, *shape) - 1).to(make.dtype)


def _hinge_embedding_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (2 * make(5, 4), _signs(make, 5, 4), 0.7, reduction))
    yield Sample("targets of neither sign", (2 * make(5, 4), make(5, 4), 0.7, "mean"))
    yield Sample("broadcast", (2 * make(5, 4), _signs(make, 4), 0.7, "mean"))
    yield Sample("number", (make(), _signs(make), 0.7, "sum"))
    yield Sample("mean, empty batch", (make(0, 4), _signs(make, 0, 4), 0.7, "mean"))


def _soft_margin_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (2 * make(5, 4), _signs(make, 5, 4), reduction))
    yield Sample("broadcast", (2 * make(5, 4), _signs(make, 4), "mean"))
    yield Sample("number", (make(), _signs(make), "sum"))
    yield Sample("mean, empty batch", (make(0, 4), _signs(make, 0, 4), "mean"))


def _negative_log_likelihood_samples(make: Make) -> Iterator[Sample]:
    y = torch.tensor([2, 1, 3], device=make.device)
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(3, 4), y, None, 1, reduction))
        yield Sample(f"{reduction}, weighted", (make(3, 4), y, make.positive(4), 1, reduction))
    yield Sample("images", (make(2, 4, 2, 1), make.indices(4, 2, 2, 1), make.positive(4), -100, "mean"))
    yield Sample("volumes", (make(2, 4, 1, 2, 1), make.indices(4, 2, 1, 2, 1), None, -100, "none"))
    yield Sample("one sample", (make(4), y[0], None, -100, "mean"))
    yield Sample("mean, empty batch", (make(0, 4), make.indices(4, 0), None, -100, "mean"))


def _cross_entropy_samples(make: Make) -> Iterator[Sample]:
    def targets(*shape: int) -> Tensor:
        y = make.indices(4, *shape)
        y.view(-1)[:1] = 2  # never all of them ignored
        y.view(-1)[1:2] = 1
        return y

    for reduction in REDUCTIONS:
        for epsilon in (0.0, 0.2):
            for weight in (None, make.positive(4)):
                about = f"{reduction}, ε={epsilon}{', weighted' if weight is not None else ''}"
                yield Sample(about, (make(3, 4), targets(3), weight, 1, reduction, epsilon))
                yield Sample(f"{about}, images", (make(2, 4, 2, 1), targets(2, 2, 1), weight, -100, reduction, epsilon))
        yield Sample(f"{reduction}, one sample", (make(4), targets(), make.positive(4), -100, reduction, 0.1))
        yield Sample(f"{reduction}, empty batch", (make(0, 4), targets(0), None, -100, reduction, 0.0))


def _cross_entropy_probabilities_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        for epsilon in (0.0, 0.2):
            for weight in (None, make.positive(4)):
                about = f"{reduction}, ε={epsilon}{', weighted' if weight is not None else ''}"
                matrix = make(3, 4), make.probabilities(3, 4, dim=1)
                yield Sample(about, (*matrix, weight, -100, reduction, epsilon))
                images = make(2, 4, 2, 1), make.probabilities(2, 4, 2, 1, dim=1)
                yield Sample(f"{about}, images", (*images, weight, -100, reduction, epsilon))
        one = make(4), make.probabilities(4, dim=0)
        yield Sample(f"{reduction}, one sample", (*one, make.positive(4), -100, reduction, 0.1))
        yield Sample(f"{reduction}, empty batch", (make(0, 4), make(0, 4), None, -100, reduction, 0.0))


def _mse_loss(s: Tensor, y: Tensor, reduction: str) -> Tensor:
    return F.mse_loss(s, y, reduction=reduction)


def _smooth_l1_loss(s: Tensor, y: Tensor, beta: float, reduction: str) -> Tensor:
    return F.smooth_l1_loss(s, y, beta=beta, reduction=reduction)


def _huber_loss(s: Tensor, y: Tensor, delta: float, reduction: str) -> Tensor:
    return F.huber_loss(s, y, delta=delta, reduction=reduction)


def _absolute_value(r: Tensor, reduction: str) -> Tensor:
    return _reduced(r.abs(), reduction)


def _gaussian_nll_loss(r: Tensor, v: Tensor, full: bool, reduction: str) -> Tensor:
    """What F.gaussian_nll_loss makes of s − y = r; of r and 0 it would keep r − 0, and v in a copy."""
    C = 0.5 * (v.log() + r**2 / v)
    return _reduced(C + 0.5 * math.log(2 * math.pi) if full else C, reduction)


def _poisson_nll_loss(s: Tensor, y: Tensor, log_input: bool, full: bool, epsilon: float, reduction: str) -> Tensor:
    return F.poisson_nll_loss(s, y, log_input, full, eps=epsilon, reduction=reduction)


def _kl_div(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Tensor:
    if reduction == "mean":  # of which F.kl_div warns
        return F.kl_div(s, y, reduction="none", log_target=log_target).mean()
    return F.kl_div(s, y, reduction=reduction, log_target=log_target)


def _binary_cross_entropy(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
    return F.binary_cross_entropy(s, y, w, reduction=reduction)


def _binary_cross_entropy_by_logarithms(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
    """torch's own second derivative adds 1e-12 to s and to 1 − s."""
    C = -(y * s.log() + (1 - y) * (1 - s).log()) * (1 if w is None else w)
    return _reduced(C, reduction)


def _reduced(C: Tensor, reduction: str) -> Tensor:
    return C if reduction == "none" else C.sum() if reduction == "sum" else C.mean()


def _with_logits(s: Tensor, y: Tensor, w: Tensor | None, p: Tensor | None, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(s, y, w, pos_weight=p, reduction=reduction)


def _hinge_embedding_loss(s: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
    return F.hinge_embedding_loss(s, y, margin, reduction=reduction)


def _soft_margin_loss(s: Tensor, y: Tensor, reduction: str) -> Tensor:
    return F.soft_margin_loss(s, y, reduction=reduction)


def _nll_loss(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    return F.nll_loss(s, y, w, ignore_index=ignore_index, reduction=reduction)


def _cross_entropy(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
    return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)


LOSSES: tuple[Operation, ...] = (
    Operation(
        AbsoluteError,
        _absolute_value,
        _absolute_error_samples,
        functions="l1_loss",
        layers="L1Loss",
        complex=True,
    ),
    Operation(
        SmoothAbsoluteError, _smooth_l1_loss, _pair_samples(0.8), functions="smooth_l1_loss", layers="SmoothL1Loss"
    ),
    Operation(Huber, _huber_loss, _pair_samples(0.8), functions="huber_loss", layers="HuberLoss"),
    Operation(MeanSquaredError, _mse_loss, _pair_samples(), functions="mse_loss", layers="MSELoss"),
    Operation(
        CrossEntropy,
        _cross_entropy,
        _cross_entropy_samples,
        functions="cross_entropy",
        layers="CrossEntropyLoss AdaptiveLogSoftmaxWithLoss",
        constants=frozenset({2}),
        cancels=True,
    ),
    Operation(
        CrossEntropyProbabilities,
        _cross_entropy,
        _cross_entropy_probabilities_samples,
        functions="cross_entropy",
        layers="CrossEntropyLoss",
        cancels=True,
        exempt={
            "bytes kept, argument 2 alone": "for the class weights alone torch keeps the product log p ⊙ y; ours "
            "keeps log p and y",
        },
    ),
    Operation(
        NegativeLogLikelihood,
        _nll_loss,
        _negative_log_likelihood_samples,
        functions="nll_loss",
        layers="NLLLoss",
        constants=frozenset({2}),
    ),
    Operation(
        GaussianNegativeLogLikelihood,
        _gaussian_nll_loss,
        _gaussian_samples,
        functions="gaussian_nll_loss",
        layers="GaussianNLLLoss",
        cancels=True,
    ),
    Operation(
        PoissonNegativeLogLikelihood,
        _poisson_nll_loss,
        _poisson_samples,
        functions="poisson_nll_loss",
        layers="PoissonNLLLoss",
        cancels=True,
    ),
    Operation(
        KullbackLeiblerDivergence,
        _kl_div,
        _divergence_samples,
        functions="kl_div",
        layers="KLDivLoss",
        cancels=True,
    ),
    Operation(
        BinaryCrossEntropy,
        _binary_cross_entropy,
        _binary_cross_entropy_samples,
        functions="binary_cross_entropy",
        layers="BCELoss",
        constants=frozenset({2}),
        twin_for_second=_binary_cross_entropy_by_logarithms,
    ),
    Operation(
        BinaryCrossEntropyWithLogits,
        _with_logits,
        _with_logits_samples,
        functions="binary_cross_entropy_with_logits",
        layers="BCEWithLogitsLoss",
        constants=frozenset({2, 3}),
    ),
    Operation(
        HingeEmbedding,
        _hinge_embedding_loss,
        _hinge_embedding_samples,
        functions="hinge_embedding_loss",
        layers="HingeEmbeddingLoss",
        constants=frozenset({1}),
    ),
    Operation(
        SoftMargin,
        _soft_margin_loss,
        _soft_margin_samples,
        functions="soft_margin_loss",
        layers="SoftMarginLoss",
        constants=frozenset({1}),
        exempt={"infinities": "where exp(−y s) overflows torch's gradient is inf / inf; ours is the limit"},
    ),
)
