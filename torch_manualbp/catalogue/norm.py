"""The normalisations, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, RunningBatchNorm

__all__ = ["NORMS"]


def _layer_norm(z: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(z, shape, _beside(b, w), b, eps)


def _beside(b: Tensor | None, w: Tensor | None) -> Tensor | None:
    """w, or ones where there is a b alone, of which torch has no second derivative."""
    return torch.ones_like(b) if w is None and b is not None else w


def _layer_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), (4,), make(4), make(4), 1e-5))
    yield Sample("without weights", (make(5, 4), (4,), None, None, 1e-5))
    yield Sample("without bias", (make(5, 4), (4,), make(4), None, 0.1))
    yield Sample("bias alone", (make(5, 4), (4,), None, make(4), 1e-5))
    yield Sample("one sample", (make(6), (6,), make(6), make(6), 1e-5))
    yield Sample("images", (make(2, 3, 4, 2), (3, 4, 2), make(3, 4, 2), make(3, 4, 2), 1e-5))
    yield Sample("sequence", (2 * make(2, 3, 4), (4,), make(4), make(4), 1e-3))
    yield Sample("large means", (make(5, 8) + 100 * make(5, 1), (8,), make(8), make(8), 1e-5))
    yield Sample("constant rows", (make(5, 1).expand(5, 4).clone(), (4,), make(4), make(4), 1e-5))
    yield Sample("one entry", (make(5, 1), (1,), make(1), make(1), 1e-5))
    yield Sample("empty batch", (make(0, 4), (4,), make(4), make(4), 1e-5))


def _batch_norm(z: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    return F.batch_norm(z, None, None, _beside(b, w), b, training=True, eps=eps)


def _batch_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(4), make(4), 1e-5))
    yield Sample("without weights", (make(5, 4), None, None, 1e-5))
    yield Sample("without bias", (make(5, 4), make(4), None, 0.1))
    yield Sample("bias alone", (make(5, 4), None, make(4), 1e-5))
    yield Sample("sequence", (2 * make(3, 4, 2), make(4), make(4), 1e-3))
    yield Sample("images", (make(2, 4, 3, 2), make(4), make(4), 1e-5))
    yield Sample("volumes", (make(2, 4, 1, 2, 2), make(4), make(4), 1e-5))
    yield Sample("large means", (make(5, 4) + 100 * make(1, 4), make(4), make(4), 1e-5))
    yield Sample("constant channels", (make(1, 4).expand(5, 4).clone(), make(4), make(4), 1e-5))
    yield Sample("one sample", (make(1, 4, 3), make(4), make(4), 1e-5))
    yield Sample("empty batch", (make(0, 4), make(4), make(4), 1e-5))


def _running_batch_norm(z: Tensor, mu: Tensor, v: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    return F.batch_norm(z, mu, v, _beside(b, w), b, eps=eps)


def _running_batch_norm_samples(make: Make) -> Iterator[Sample]:
    def of(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        return make(*shape), make(shape[1]), make.positive(shape[1])

    yield Sample("matrix", (*of(5, 4), make(4), make(4), 1e-5))
    yield Sample("without weights", (*of(5, 4), None, None, 0.1))
    yield Sample("without bias", (*of(5, 4), make(4), None, 1e-5))
    yield Sample("bias alone", (*of(5, 4), None, make(4), 1e-5))
    yield Sample("images", (*of(2, 4, 3, 2), make(4), make(4), 1e-5))
    yield Sample("one entry", (*of(1, 1), make(1), make(1), 1e-5))
    yield Sample("empty batch", (*of(0, 4), make(4), make(4), 1e-5))


def _group_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), 1, make(4), make(4), 1e-5))
    yield Sample("sequence", (make(3, 4, 5), 2, make(4), make(4), 1e-5))
    yield Sample("without weights", (make(3, 4, 2), 2, None, None, 0.1))
    yield Sample("without bias", (make(3, 4, 2), 2, make(4), None, 1e-3))
    yield Sample("images", (make(2, 4, 3, 2), 2, make(4), make(4), 1e-5))
    yield Sample("volumes", (make(2, 4, 1, 2, 2), 2, make(4), make(4), 1e-3))
    yield Sample("large means", (make(3, 4, 3) + 100 * make(3, 1, 1), 2, make(4), make(4), 1e-5))
    yield Sample("constant groups", (make(3, 1, 1).expand(3, 4, 3).clone(), 2, make(4), make(4), 1e-3))
    yield Sample("empty batch", (make(0, 4, 3), 2, make(4), make(4), 1e-5))


def _instance_norm(z: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    return F.instance_norm(z, weight=w, bias=b, eps=eps)


def _instance_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("sequence", (make(3, 4, 5), make(4), make(4), 1e-5))
    yield Sample("without weights", (make(3, 4, 5), None, None, 0.1))
    yield Sample("without bias", (make(3, 4, 5), make(4), None, 1e-5))
    yield Sample("images", (2 * make(2, 4, 3, 2), make(4), make(4), 1e-5))
    yield Sample("volumes", (make(2, 4, 1, 2, 2), make(4), make(4), 1e-3))
    yield Sample("large means", (make(3, 4, 5) + 100 * make(3, 4, 1), make(4), make(4), 1e-5))
    yield Sample("constant channels", (make(3, 4, 1).expand(3, 4, 5).clone(), make(4), make(4), 1e-3))


def _rms_norm(z: Tensor, shape: tuple[int, ...], w: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(z, shape, w, eps)


def _rms_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), (4,), make(4), 1e-5))
    yield Sample("without weights", (make(5, 4), (4,), None, 0.1))
    yield Sample("one sample", (make(6), (6,), make(6), 1e-5))
    yield Sample("images", (make(2, 3, 4, 2), (3, 4, 2), make(3, 4, 2), 1e-5))
    yield Sample("sequence", (2 * make(2, 3, 4), (4,), make(4), 1e-3))
    yield Sample("large means", (make(5, 8) + 100 * make(5, 1), (8,), make(8), 1e-5))
    yield Sample("zero rows", (make(5, 4) * make.indices(2, 5, 1), (4,), make(4), 1e-5))
    yield Sample("one entry", (make(5, 1), (1,), make(1), 0.5))
    yield Sample("empty batch", (make(0, 4), (4,), make(4), 1e-5))


ROUNDS_STATISTICS = "torch rounds the mean to the input's dtype, which of large means leaves z − μ few right digits"
LARGE_MEANS = {f"autocast, {dtype}, large means": ROUNDS_STATISTICS for dtype in ("float16", "bfloat16")}
ANY_WEIGHTS = "of no channels torch takes weights of any number; functional leaves that to it"
NO_STATISTICS = "of no samples torch keeps no statistics"

NORMS: tuple[Operation, ...] = (
    Operation(
        BatchNorm,
        _batch_norm,
        _batch_norm_samples,
        functions="batch_norm",
        layers="BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d SyncBatchNorm",
        cancels=True,
        exempt={**LARGE_MEANS, "zero features": ANY_WEIGHTS, "bytes kept, empty batch": NO_STATISTICS},
    ),
    Operation(
        RunningBatchNorm,
        _running_batch_norm,
        _running_batch_norm_samples,
        functions="batch_norm",
        layers="BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
        constants=frozenset({1, 2}),
        cancels=True,
        exempt={
            "zero features": ANY_WEIGHTS,
            "bytes kept, empty batch": NO_STATISTICS,
            "changes in place, empty batch": NO_STATISTICS,
        },
    ),
    Operation(
        GroupNorm,
        F.group_norm,
        _group_norm_samples,
        functions="group_norm",
        layers="GroupNorm",
        cancels=True,
        exempt={**LARGE_MEANS, "zero features": "of no places torch's ∂C/∂w is NaN; ours is the empty sum, 0"},
    ),
    Operation(
        InstanceNorm,
        _instance_norm,
        _instance_norm_samples,
        functions="instance_norm",
        layers="InstanceNorm1d InstanceNorm2d InstanceNorm3d LazyInstanceNorm1d LazyInstanceNorm2d LazyInstanceNorm3d",
        cancels=True,
        exempt={
            **LARGE_MEANS,
            "zero features": ANY_WEIGHTS,
            "changes in place, argument 1": "torch keeps copies of w, one a sample; ours keeps w",
        },
    ),
    Operation(
        LayerNorm,
        _layer_norm,
        _layer_norm_samples,
        functions="layer_norm",
        layers="LayerNorm",
        cancels=True,
        exempt=LARGE_MEANS,
    ),
    Operation(
        RMSNorm, _rms_norm, _rms_norm_samples, functions="rms_norm", layers="RMSNorm", complex=True, cancels=True
    ),
)
