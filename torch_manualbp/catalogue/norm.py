"""The normalisations, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.norm import (
    BatchNorm,
    CosineSimilarity,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    Normalize,
    PairwiseDistances,
    RMSNorm,
    RunningBatchNorm,
)

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


def _local_response_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("sequence", (3 * make(2, 4, 3), 2, 1.0, 0.75, 1.0))
    yield Sample("images", (make(2, 4, 3, 2), 3, 0.5, 0.5, 0.8))
    yield Sample("volumes", (make(2, 4, 1, 2, 2), 2, 0.5, 0.75, 1.0))
    yield Sample("more channels than there are", (make(2, 4, 3), 9, 1.0, 2.0, 0.5))
    yield Sample("of itself alone", (make(2, 4, 3), 1, 1.0, 0.75, 1.0))


def _normalize(z: Tensor, p: float, dims: tuple[int, ...], eps: float) -> Tensor:
    return F.normalize(z, p, dims, eps)  # type: ignore[arg-type]


def _normalize_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), 2.0, (-1,), 1e-12))
    yield Sample("columns", (make(5, 4), 2.0, (0,), 1e-12))
    yield Sample("one vector", (make(6), 2.0, (0,), 1e-12))
    yield Sample("images", (make(2, 4, 3, 2), 2.0, (-2, -1), 1e-12))
    yield Sample("of sums", (make(5, 4), 1.0, (-1,), 1e-12))
    yield Sample("of cubes", (make(5, 4), 3.0, (-1,), 1e-12))
    yield Sample("by the largest", (make(5, 4), float("inf"), (-1,), 1e-12))
    yield Sample("shorter than ε", (make(5, 4), 2.0, (-1,), 20.0))
    yield Sample("empty batch", (make(0, 4), 2.0, (-1,), 1e-12))


def _cosine_similarity(u: Tensor, v: Tensor, dim: int, eps: float) -> Tensor:
    """torch differentiates the norm of a vector that is shorter than ε, which its forward takes for ε."""
    if u.is_complex():
        raise RuntimeError("the cosine of complex vectors is no derivative's")
    u, v = torch.broadcast_tensors(u, v)
    m, n = (t.norm(2, dim, keepdim=True).clamp_min(eps) for t in (u, v))
    return ((u / m) * (v / n)).sum(dim)


def _cosine_similarity_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 4), -1, 1e-8))
    yield Sample("channels", (make(2, 4, 3), make(2, 4, 3), -2, 1e-8))
    yield Sample("one pair", (make(6), make(6), -1, 1e-8))
    yield Sample("broadcast", (make(5, 1, 4), make(3, 4), -1, 1e-8))
    yield Sample("shorter than ε", (make(5, 4), 4 * make(5, 4), -1, 3.0))
    yield Sample("empty batch", (make(0, 4), make(0, 4), -1, 1e-8))


def _pdist(z: Tensor, p: float) -> Tensor:
    """torch.pdist in operations of which torch has second derivatives, where torch.pdist takes the rows."""
    if z.dim() != 2 or not z.is_floating_point() or z.dtype in (torch.float16, torch.bfloat16):
        return torch.pdist(z, p)
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    return torch.norm(z.index_select(0, i) - z.index_select(0, j), p, -1)


def _pdist_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), 2.0))
    yield Sample("of sums", (make(4, 3), 1.0))
    yield Sample("of cubes", (make(4, 3), 3.0))
    yield Sample("by the largest", (make(4, 3), float("inf")))
    yield Sample("one row", (make(1, 4), 2.0))


ROUNDS_STATISTICS = "torch rounds the mean to the input's dtype, which of large means leaves z − μ few right digits"
LARGE_MEANS_BFLOAT16 = {"autocast, bfloat16, large means": ROUNDS_STATISTICS}
LARGE_MEANS = {"autocast, float16, large means": ROUNDS_STATISTICS, **LARGE_MEANS_BFLOAT16}
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
        exempt={**LARGE_MEANS_BFLOAT16, "zero features": ANY_WEIGHTS, "bytes kept, empty batch": NO_STATISTICS},
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
        exempt={**LARGE_MEANS_BFLOAT16, "zero features": "of no places torch's ∂C/∂w is NaN; ours is the empty sum, 0"},
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
    Operation(
        LocalResponseNorm,
        F.local_response_norm,
        _local_response_norm_samples,
        functions="local_response_norm",
        layers="LocalResponseNorm",
        cancels=True,
    ),
    Operation(Normalize, _normalize, _normalize_samples, functions="normalize", complex=True, cancels=True),
    Operation(
        CosineSimilarity,
        _cosine_similarity,
        _cosine_similarity_samples,
        functions="cosine_similarity",
        layers="CosineSimilarity",
        cancels=True,
    ),
    Operation(
        PairwiseDistances,
        _pdist,
        _pdist_samples,
        functions="pdist",
        cancels=True,
        exempt={
            "changes in place, argument 0": "the twin keeps the differences of all pairs; torch.pdist keeps z, as ours",
            "bytes kept, one row": "the twin keeps the differences of all pairs, which are none; torch keeps z",
        },
    ),
)
