"""The calculus of the package: every rule is one operation with its forward and its backward formula.

Notation, as in a textbook; the code writes the same letters in ASCII.

========== ============ ==========================================================================================
textbook   code         meaning
========== ============ ==========================================================================================
a          ``a``        activations: what enters a linear layer, what an activation returns; rows are samples
W, b       ``W, b``     weight (out, in) and bias (out)
z          ``z``        weighted inputs z = a Wᵀ + b, what enters an activation
δ          ``delta``    the local gradient ∂C/∂z
s, y, C    ``s, y, C``  the network's output, the target, the cost
g          ``g``        the upstream gradient of a loss
∂C/∂x      ``dx``       the gradient of any x; in a ``jvp``, the tangent of x
⊙          ``*``        the elementwise product
⇒                       between a forward and the backward that follows from it
========== ============ ==========================================================================================

``CATALOGUE`` lists every rule with its torch twin and sample inputs. A rule is tested by being listed in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.activation import ReLU, Sigmoid, Tanh
from torch_manualbp.rules.catalogue import Entry, Make, Sample
from torch_manualbp.rules.linear import Identity, Linear
from torch_manualbp.rules.loss import CrossEntropy, CrossEntropyProbabilities, MeanSquaredError
from torch_manualbp.rules.rule import Rule

__all__ = [
    "CATALOGUE",
    "CrossEntropy",
    "CrossEntropyProbabilities",
    "Entry",
    "Identity",
    "Linear",
    "Make",
    "MeanSquaredError",
    "ReLU",
    "Rule",
    "Sample",
    "Sigmoid",
    "Tanh",
]

REDUCTIONS = ("none", "sum", "mean")


def _linear_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(3, 4), make(3)))
    yield Sample("square", (make(5, 4), make(4, 4), make(4)))
    yield Sample("without bias", (make(5, 4), make(3, 4), None))
    yield Sample("one sample", (make(4), make(3, 4), make(3)))
    yield Sample("sequence", (make(2, 5, 4), make(3, 4), make(3)))
    yield Sample("weight of one neuron", (make(2, 5, 4), make(4), None))
    yield Sample("shared bias", (make(5, 4), make(3, 4), make(1)))
    yield Sample("no features", (make(5, 0), make(3, 0), make(3)))
    yield Sample("empty batch", (make(0, 4), make(3, 4), make(3)))


def _elementwise_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4),))
    yield Sample("number", (make(),))
    yield Sample("four dimensions", (3 * make(2, 3, 2, 2),))
    yield Sample("empty batch", (make(0, 4),))


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


CATALOGUE: tuple[Entry, ...] = (
    Entry(Identity, torch.Tensor.clone, _elementwise_samples, complex=True),
    Entry(Linear, F.linear, _linear_samples, complex=True, cancels=True),
    Entry(ReLU, torch.relu, _elementwise_samples),
    Entry(Sigmoid, torch.sigmoid, _elementwise_samples, complex=True),
    Entry(Tanh, torch.tanh, _elementwise_samples, complex=True),
    Entry(MeanSquaredError, _mse_loss, _squared_error_samples),
    Entry(CrossEntropy, _cross_entropy, _cross_entropy_samples, constants=frozenset({2}), cancels=True),
    Entry(CrossEntropyProbabilities, _cross_entropy, _cross_entropy_probabilities_samples, cancels=True),
)
