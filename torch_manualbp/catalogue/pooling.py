"""The poolings, their torch twins and sample inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.pooling import (
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    FractionalMaxPool,
    LPPool,
    MaxPool,
    MaxUnpool,
)

__all__ = ["POOLINGS"]

Sizes = tuple[int, ...]


def _narrowed(pair: tuple[Tensor, Tensor], narrow: bool) -> tuple[Tensor, Tensor]:
    a, i = pair
    return a, i.to(torch.int16) if narrow else i


def _max_pool(
    z: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool, narrow: bool
) -> tuple[Tensor, Tensor]:
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(window) - 1]
    return _narrowed(pool(z, window, stride, padding, dilation, ceil_mode, True), narrow)


def _max_pool_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 6), (2, 2), (2, 2), (0, 0), (1, 1), False, True))
    yield Sample("overlapping", (make(2, 3, 5, 4), (3, 2), (1, 1), (1, 0), (1, 1), False, True))
    yield Sample("dilation, with indices", (make(2, 3, 6, 5), (2, 2), (2, 1), (0, 1), (2, 3), False, False))
    yield Sample("rounded up", (make(2, 3, 5, 4), (2, 3), (2, 2), (0, 1), (1, 1), True, True))
    yield Sample("one image", (make(3, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False, True))
    yield Sample("sequences", (make(2, 3, 5), (3,), (2,), (1,), (1,), False, True))
    yield Sample("volumes", (make(1, 2, 3, 4, 3), (2, 2, 1), (1, 2, 1), (0, 0, 0), (1, 1, 1), False, True))


def _avg_pool(
    z: Tensor, window: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool, count_padding: bool, divisor: int | None
) -> Tensor:
    if len(window) == 1:
        return F.avg_pool1d(z, window, stride, padding, ceil_mode, count_padding)
    pool = F.avg_pool2d if len(window) == 2 else F.avg_pool3d
    return pool(z, window, stride, padding, ceil_mode, count_padding, divisor)


def _avg_pool_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 6), (2, 2), (2, 2), (0, 0), False, True, None))
    yield Sample("overlapping", (make(2, 3, 5, 4), (3, 2), (1, 1), (1, 0), False, True, None))
    yield Sample("without the padding", (make(2, 3, 5, 4), (3, 2), (2, 1), (1, 1), False, False, None))
    yield Sample("rounded up", (make(2, 3, 5, 4), (2, 3), (2, 2), (0, 1), True, True, None))
    yield Sample("another divisor", (make(2, 3, 5, 4), (2, 2), (2, 1), (0, 1), True, True, 3))
    yield Sample("one image", (make(3, 4, 4), (2, 2), (2, 2), (0, 0), False, True, None))
    yield Sample("sequences", (make(2, 3, 5), (3,), (2,), (1,), False, True, None))
    yield Sample("volumes", (make(1, 2, 3, 4, 3), (2, 2, 1), (1, 2, 1), (0, 1, 0), True, False, None))


def _adaptive_max_pool(z: Tensor, size: Sizes, narrow: bool) -> tuple[Tensor, Tensor]:
    pool: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[len(size) - 1]
    return _narrowed(pool(z, size, True), narrow)


def _adaptive_max_pool_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 6), (2, 3), True))
    yield Sample("overlapping, with indices", (make(2, 3, 5, 4), (3, 3), False))
    yield Sample("more than there are", (make(2, 3, 2, 3), (3, 1), True))
    yield Sample("one sequence", (make(3, 5), (2,), True))
    yield Sample("volumes", (make(1, 2, 3, 4, 3), (2, 2, 1), True))


def _adaptive_avg_pool(z: Tensor, size: Sizes) -> Tensor:
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    result: Tensor = pool(z, size)
    return result


def _adaptive_avg_pool_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 6), (2, 3)))
    yield Sample("means of all", (make(2, 3, 4, 5), (1, 1)))
    yield Sample("overlapping", (make(2, 3, 5, 4), (3, 3)))
    yield Sample("more than there are", (make(2, 3, 2, 3), (3, 1)))
    yield Sample("one sequence", (make(3, 5), (2,)))
    yield Sample("volumes", (make(1, 2, 3, 4, 3), (2, 2, 1)))


def _fractional_max_pool(z: Tensor, window: Sizes, size: Sizes, narrow: bool, r: Tensor) -> tuple[Tensor, Tensor]:
    pool: Any = (F.fractional_max_pool2d, F.fractional_max_pool3d)[len(window) - 2]
    return _narrowed(pool(z, window, size, None, True, r), narrow)


def _fractional_max_pool_samples(make: Make) -> Iterator[Sample]:
    def drawn(*shape: int) -> Tensor:
        return make.positive(*shape) - 0.5

    yield Sample("images", (make(2, 3, 5, 6), (2, 2), (2, 3), True, drawn(2, 3, 2)))
    yield Sample("overlapping, with indices", (make(2, 3, 5, 4), (3, 2), (3, 3), False, drawn(2, 3, 2)))
    yield Sample("one image", (make(3, 5, 4), (2, 3), (3, 1), True, drawn(1, 3, 2)))
    yield Sample("volumes", (make(1, 2, 4, 5, 4), (2, 2, 1), (2, 3, 2), True, drawn(1, 2, 3)))


def _lp_pool(z: Tensor, p: float, window: Sizes, stride: Sizes, ceil_mode: bool) -> Tensor:
    pool: Any = (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)[len(window) - 1]
    a: Tensor = pool(z, p, window if len(window) > 1 else window[0], stride, ceil_mode)
    return a


def _lp_pool_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 6), 2, (2, 2), (2, 2), False))
    yield Sample("overlapping, of a fraction", (make.positive(2, 3, 5, 4), 2.5, (3, 2), (2, 1), False))
    yield Sample("rounded up", (make.positive(2, 3, 5, 4), 3, (2, 3), (2, 2), True))
    yield Sample("sums of one image", (make(3, 4, 4), 1, (2, 2), (2, 1), False))
    yield Sample("sequences", (make(2, 3, 5), 2, (3,), (2,), False))
    yield Sample("volumes", (make(1, 2, 3, 4, 3), 4, (2, 2, 1), (1, 2, 1), True))


def _max_unpool(z: Tensor, i: Tensor, window: Sizes, stride: Sizes, padding: Sizes, size: Sizes | None) -> Tensor:
    unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[len(window) - 1]
    return unpool(z, i, window, stride, padding, size)


def _max_unpool_samples(make: Make) -> Iterator[Sample]:
    def places(*shape: int, n: int) -> Tensor:
        return torch.argsort(make(*shape[: len(shape) - n], 20).real, -1)[..., : math.prod(shape[-n:])].reshape(shape)

    yield Sample("images", (make(2, 3, 2, 2), places(2, 3, 2, 2, n=2), (2, 2), (2, 2), (0, 0), (4, 5)))
    yield Sample("one sequence", (make(3, 12), places(3, 12, n=1), (2,), (2,), (0,), None))
    yield Sample(
        "volumes", (make(1, 2, 1, 2, 2), places(1, 2, 1, 2, 2, n=3), (2, 2, 2), (2, 2, 2), (0,) * 3, (2, 4, 3))
    )


POOLINGS: tuple[Operation, ...] = (
    Operation(
        AvgPool,
        _avg_pool,
        _avg_pool_samples,
        functions="avg_pool1d avg_pool2d avg_pool3d",
        layers="AvgPool1d AvgPool2d AvgPool3d",
        cancels=True,
    ),
    Operation(
        MaxPool,
        _max_pool,
        _max_pool_samples,
        functions="max_pool1d max_pool2d max_pool3d "
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
        layers="MaxPool1d MaxPool2d MaxPool3d",
        exempt={"channels last, volumes": "torch's own function takes one volume in no such layout"},
    ),
    Operation(
        AdaptiveMaxPool,
        _adaptive_max_pool,
        _adaptive_max_pool_samples,
        functions="adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
        "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices",
        layers="AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d",
    ),
    Operation(
        AdaptiveAvgPool,
        _adaptive_avg_pool,
        _adaptive_avg_pool_samples,
        functions="adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        layers="AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d",
        cancels=True,
    ),
    Operation(
        FractionalMaxPool,
        _fractional_max_pool,
        _fractional_max_pool_samples,
        functions="fractional_max_pool2d fractional_max_pool3d "
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices",
        layers="FractionalMaxPool2d FractionalMaxPool3d",
        constants=frozenset({4}),
    ),
    Operation(
        LPPool,
        _lp_pool,
        _lp_pool_samples,
        functions="lp_pool1d lp_pool2d lp_pool3d",
        layers="LPPool1d LPPool2d LPPool3d",
        cancels=True,
    ),
    Operation(
        MaxUnpool,
        _max_unpool,
        _max_unpool_samples,
        functions="max_unpool1d max_unpool2d max_unpool3d",
        layers="MaxUnpool1d MaxUnpool2d MaxUnpool3d",
    ),
)
