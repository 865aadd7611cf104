"""The losses, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.catalogue.entry import Entry, Make, Sample
from torch_manualbp.rules.loss import CrossEntropy, CrossEntropyProbabilities, MeanSquaredError

__all__ = ["LOSSES"]

REDUCTIONS = ("none", "sum", "mean")


def _squared_error_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), make(5, 4), reduction))
        yield Sample(f"{reduction}, empty batch", (make(0, 4), make(0, 4), reduction))
    yield Sample("number", (make(), make(), "mean"))


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


def _cross_entropy(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
    return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)


LOSSES: tuple[Entry, ...] = (
    Entry(MeanSquaredError, _mse_loss, _squared_error_samples),
    Entry(CrossEntropy, _cross_entropy, _cross_entropy_samples, constants=frozenset({2}), cancels=True),
    Entry(CrossEntropyProbabilities, _cross_entropy, _cross_entropy_probabilities_samples, cancels=True),
)
