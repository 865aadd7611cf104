"""The activations, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torch_manualbp.rules.activation import ReLU, Sigmoid, Tanh
from torch_manualbp.rules.catalogue.entry import Entry, Make, Sample

__all__ = ["ACTIVATIONS"]


def _elementwise_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4),))
    yield Sample("number", (make(),))
    yield Sample("four dimensions", (3 * make(2, 3, 2, 2),))
    yield Sample("empty batch", (make(0, 4),))


ACTIVATIONS: tuple[Entry, ...] = (
    Entry(ReLU, torch.relu, _elementwise_samples),
    Entry(Sigmoid, torch.sigmoid, _elementwise_samples, complex=True),
    Entry(Tanh, torch.tanh, _elementwise_samples, complex=True),
)
