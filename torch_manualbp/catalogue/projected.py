"""The rules of linear + cross-entropy, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.loss.projected import LinearCrossEntropy, LinearCrossEntropyProbabilities
from torch_manualbp.rules.rule import widened

__all__ = ["PROJECTED"]

SAMPLES, FEATURES, CLASSES = 12, 2, 5


def _of_indices(
    x: Tensor, W: Tensor, b: Any, y: Tensor, w: Any, ignore_index: int, reduction: str, epsilon: float
) -> Tensor:
    w, s = None if w is None else widened(w), _scores(x, W, b)
    return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)


def _of_probabilities(x: Tensor, W: Tensor, b: Any, y: Tensor, w: Any, reduction: str, epsilon: float) -> Tensor:
    w, s = None if w is None else widened(w), _scores(x, W, b)
    return F.cross_entropy(s, widened(y), w, reduction=reduction, label_smoothing=epsilon)


def _scores(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return F.linear(widened(x), widened(W), None if b is None else widened(b))


def _index_samples(make: Make) -> Iterator[Sample]:
    y = torch.arange(SAMPLES, device=make.device) % CLASSES
    x, W, b = make(SAMPLES, FEATURES), make(CLASSES, FEATURES), make(CLASSES)
    yield Sample("mean", (x, W, b, y, None, -100, "mean", 0.0))
    yield Sample("mean, weighted, ε=0.2, one ignored", (x, W, b, y, make.positive(CLASSES), 1, "mean", 0.2))
    yield Sample("sum, ε=0.1, no bias", (x, W, None, y, None, 3, "sum", 0.1))
    yield Sample("none, weighted", (x, W, b, y, make.positive(CLASSES), 0, "none", 0.0))
    yield Sample("sum, empty batch", (make(0, FEATURES), W, b, y[:0], None, -100, "sum", 0.0))


def _probability_samples(make: Make) -> Iterator[Sample]:
    x, W, b = make(SAMPLES, FEATURES), make(CLASSES, FEATURES), make(CLASSES)
    y = make.probabilities(SAMPLES, CLASSES, dim=1)
    yield Sample("mean", (x, W, b, y, None, "mean", 0.0))
    yield Sample("mean, weighted, ε=0.2", (x, W, b, y, make.positive(CLASSES), "mean", 0.2))
    yield Sample("sum, ε=0.1, no bias", (x, W, None, y, None, "sum", 0.1))
    yield Sample("none, weighted", (x, W, b, y, make.positive(CLASSES), "none", 0.0))
    yield Sample("sum, empty batch", (make(0, FEATURES), W, b, y[:0], None, "sum", 0.0))


ANEW = "torch keeps log p; ours x, W, b and y, of which it makes the scores anew"
OF_A_FEW = {"changes in place, argument 2": ANEW, "bytes kept, sum, empty batch": ANEW}
OF_A_FEW["bytes kept, argument 2 alone"] = ANEW
SINCE = hasattr(F, "linear_cross_entropy")  # torch 2.13

PROJECTED: tuple[Operation, ...] = (
    Operation(
        LinearCrossEntropy,
        _of_indices,
        _index_samples,
        functions="linear_cross_entropy" if SINCE else "",
        layers="LinearCrossEntropyLoss" if SINCE else "",
        constants=frozenset({4}),
        cancels=True,
        exempt=OF_A_FEW,
    ),
    Operation(
        LinearCrossEntropyProbabilities,
        _of_probabilities,
        _probability_samples,
        functions="linear_cross_entropy" if SINCE else "",
        layers="LinearCrossEntropyLoss" if SINCE else "",
        cancels=True,
        exempt={
            **OF_A_FEW,
            "changes in place, argument 3": ANEW,
            "bytes kept, argument 3 alone": ANEW,
            "bytes kept, argument 4 alone": ANEW,
            "bytes kept, argument 2 and argument 3 alone": ANEW,
            "bytes kept, argument 3 and argument 4 alone": ANEW,
        },
    ),
)
