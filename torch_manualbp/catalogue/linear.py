"""The linear rules, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.linear import Bilinear, Identity, Linear

__all__ = ["LINEAR"]


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


def _bilinear_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 2), make(3, 4, 2), make(3)))
    yield Sample("square", (make(5, 4), make(5, 4), make(4, 4, 4), make(4)))
    yield Sample("without bias", (make(5, 4), make(5, 2), make(3, 4, 2), None))
    yield Sample("sequence", (make(2, 5, 4), make(2, 5, 3), make(2, 4, 3), make(2)))
    yield Sample("one sample", (make(4), make(2), make(3, 4, 2), make(3)))
    yield Sample("empty batch", (make(0, 4), make(0, 2), make(3, 4, 2), make(3)))


def _any_shape(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4),))
    yield Sample("number", (make(),))
    yield Sample("four dimensions", (3 * make(2, 3, 2, 2),))
    yield Sample("empty batch", (make(0, 4),))


LINEAR: tuple[Operation, ...] = (
    Operation(
        Linear, F.linear, _linear_samples, functions="linear", layers="Linear LazyLinear", complex=True, cancels=True
    ),
    Operation(
        Bilinear,
        F.bilinear,
        _bilinear_samples,
        functions="bilinear",
        layers="Bilinear",
        cancels=True,
        exempt={"infinities": "torch adds up ∞ and −∞ of the neurons, which is NaN; ours multiplies their sum by ∞"},
    ),
    Operation(Identity, torch.Tensor.clone, _any_shape, functions="identity", layers="Identity", complex=True),
)
