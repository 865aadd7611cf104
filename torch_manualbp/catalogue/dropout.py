"""The rules of dropout, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.structure import AlphaDropout, Dropout

__all__ = ["DROPOUTS"]


def _dropout(z: Tensor, passes: Tensor, s: float) -> Tensor:
    """As torch multiplies, by numbers of the dtype of z."""
    return z * passes.to(z.dtype).mul_(s)


def _dropout_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make.indices(2, 5, 4).bool(), 2.0))
    yield Sample("channels", (make(5, 4, 3), make.indices(2, 5, 4, 1).bool(), 1.25))
    yield Sample("none pass", (make(5, 4), torch.zeros((), dtype=torch.bool, device=make.device), 1.0))


def _alpha_dropout(z: Tensor, passes: Tensor, s: float, low: float, high: float) -> Tensor:
    r = passes.to(z.dtype)
    return z * (r * s) + (r * (high - low) + low)


def _alpha_dropout_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make.indices(2, 5, 4).bool(), 0.875, -0.75, 0.5))
    yield Sample("channels", (make(5, 4, 3), make.indices(2, 5, 4, 1).bool(), 0.875, -0.75, 0.5))


KEEPS_BOOLEANS = {"changes in place, argument 1": "torch keeps numbers, made of the booleans; ours keeps these"}

DROPOUTS: tuple[Operation, ...] = (
    Operation(
        Dropout,
        _dropout,
        _dropout_samples,
        functions="dropout dropout1d dropout2d dropout3d",
        layers="Dropout Dropout1d Dropout2d Dropout3d",
        complex=True,
        exempt=KEEPS_BOOLEANS,
    ),
    Operation(
        AlphaDropout,
        _alpha_dropout,
        _alpha_dropout_samples,
        functions="alpha_dropout feature_alpha_dropout",
        layers="AlphaDropout FeatureAlphaDropout",
        complex=True,
        exempt=KEEPS_BOOLEANS,
    ),
)
