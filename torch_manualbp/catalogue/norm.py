"""The normalisations, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.norm import LayerNorm, RMSNorm

__all__ = ["NORMS"]


def _layer_norm(z: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    """With a w of ones for none beside a b, of which torch has no second derivative."""
    w = z.new_ones(shape) if w is None and b is not None else w
    return F.layer_norm(z, shape, w, b, eps)


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


ROUNDS_STATISTICS = (
    "torch rounds the mean to the dtype of the input, which of large means leaves z − μ few right digits"
)

NORMS: tuple[Operation, ...] = (
    Operation(
        LayerNorm,
        _layer_norm,
        _layer_norm_samples,
        functions="layer_norm",
        layers="LayerNorm",
        cancels=True,
        exempt={f"autocast, {dtype}, large means": ROUNDS_STATISTICS for dtype in ("float16", "bfloat16")},
    ),
    Operation(
        RMSNorm, _rms_norm, _rms_norm_samples, functions="rms_norm", layers="RMSNorm", complex=True, cancels=True
    ),
)
