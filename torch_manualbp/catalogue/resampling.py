"""Interpolation, shuffles and windows as columns, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.resampling import ChannelShuffle, Fold, Interpolate, PixelShuffle, PixelUnshuffle, Unfold
from torch_manualbp.rules.sampling import AffineGrid, GridSample

__all__ = ["RESAMPLINGS"]


def _interpolate_samples(make: Make) -> Iterator[Sample]:
    yield Sample("nearest, twice", (make(2, 3, 3, 2), None, (2.0, 2.0), "nearest", None, None, False))
    yield Sample("nearest", (make(2, 3, 4, 5), (3, 7), None, "nearest", None, None, False))
    yield Sample("nearest-exact", (make(2, 3, 5), None, (1.7,), "nearest-exact", None, None, False))
    yield Sample("linear", (make(2, 3, 5), (8,), None, "linear", False, None, False))
    yield Sample("bilinear, twice", (make(2, 3, 3, 2), None, (2.0, 2.0), "bilinear", False, None, False))
    yield Sample("bilinear by the corners", (make(2, 3, 4, 5), (6, 3), None, "bilinear", True, None, False))
    yield Sample("bilinear, smoothed", (make(2, 2, 6, 5), (3, 2), None, "bilinear", False, None, True))
    yield Sample("bicubic", (make(2, 2, 4, 5), None, (1.5, 0.7), "bicubic", False, None, False))
    yield Sample("trilinear", (make(1, 2, 2, 3, 2), (3, 4, 3), None, "trilinear", None, None, False))


def _pixel_shuffle_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 8, 2, 3), 2))
    yield Sample("one image", (make(9, 2, 1), 3))


def _pixel_unshuffle_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 2, 4, 6), 2))
    yield Sample("one image", (make(1, 6, 3), 3))


def _channel_shuffle_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 6, 2, 3), 3))
    yield Sample("sequences", (make(2, 4, 3), 2))


def _unfold_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 5, 4), (3, 2), (1, 1), (0, 0), (1, 1)))
    yield Sample("stride, padding, dilation", (make(2, 2, 5, 6), (2, 2), (2, 1), (1, 1), (2, 3)))
    yield Sample("one image", (make(3, 5, 4), (3, 2), (1, 1), (1, 0), (1, 1)))


def _fold_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 18, 9), (5, 4), (3, 2), (1, 1), (0, 0), (1, 1)))
    yield Sample("stride, padding, dilation", (make(2, 8, 9), (5, 6), (2, 2), (2, 1), (1, 1), (2, 3)))
    yield Sample("one image", (make(4, 4), (4, 4), (2, 2), (1, 1), (0, 0), (2, 2)))


def _grid_samples(make: Make) -> Iterator[Sample]:
    plane, grid = make(2, 2, 3, 4), 1.2 * make.positive(2, 3, 2, 2) - 1.3
    yield Sample("bilinear", (plane, grid, "bilinear", "zeros", False))
    yield Sample("bilinear by the corners, to the border", (plane, grid, "bilinear", "border", True))
    yield Sample("bilinear, reflected", (plane, 3 * grid, "bilinear", "reflection", False))
    yield Sample("bilinear by the corners, reflected", (plane, 3 * grid, "bilinear", "reflection", True))
    yield Sample("nearest", (plane, grid, "nearest", "zeros", False))
    yield Sample("bicubic", (plane, grid, "bicubic", "zeros", False))
    yield Sample("bicubic, reflected", (plane, grid, "bicubic", "reflection", True))
    yield Sample("volumes", (make(1, 2, 2, 3, 2), make.positive(1, 2, 2, 1, 3) - 1.1, "bilinear", "zeros", False))
    yield Sample("volumes, nearest", (make(1, 2, 2, 3, 2), make.positive(1, 2, 2, 1, 3) - 1, "nearest", "border", True))


def _affine_grid_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 2, 3), (2, 1, 3, 4), False))
    yield Sample("images by the corners", (make(2, 2, 3), (2, 3, 2, 3), True))
    yield Sample("volumes", (make(1, 3, 4), (1, 1, 2, 3, 2), False))


NO_PLACE = "where the grid is no number, or none of an entry, torch's gradient is that of an index that C leaves open"

RESAMPLINGS: tuple[Operation, ...] = (
    Operation(
        Interpolate,
        F.interpolate,
        _interpolate_samples,
        functions="interpolate upsample upsample_bilinear upsample_nearest",
        layers="Upsample UpsamplingBilinear2d UpsamplingNearest2d",
        cancels=True,
        exempt={
            "autocast, float16, bilinear, smoothed": "torch smooths no float16 on the CPU",
            "autocast, bfloat16, bilinear, smoothed": "torch smooths no bfloat16 on the CPU",
        },
    ),
    Operation(
        GridSample,
        F.grid_sample,
        _grid_samples,
        functions="grid_sample",
        twin_for_second=GridSample.composite,
        cancels=True,
        exempt={
            "NaN, bicubic": NO_PLACE,
            "infinities, bicubic": NO_PLACE,
            "infinities, volumes": NO_PLACE,
            "one rounding, float16, bicubic": "an entry of 6e-5 among 2s is 4 ulp of itself off; ATen's 48,000",
            **{
                f"{check}, {sample}": "the twin's derivative by the grid is 0 without a graph"
                for check in ("tangents", "Hessian-vector products")
                for sample in ("nearest", "volumes, nearest")
            },
        },
    ),
    Operation(AffineGrid, F.affine_grid, _affine_grid_samples, functions="affine_grid", cancels=True),
    Operation(
        PixelShuffle,
        F.pixel_shuffle,
        _pixel_shuffle_samples,
        functions="pixel_shuffle",
        layers="PixelShuffle",
        complex=True,
    ),
    Operation(
        PixelUnshuffle,
        F.pixel_unshuffle,
        _pixel_unshuffle_samples,
        functions="pixel_unshuffle",
        layers="PixelUnshuffle",
        complex=True,
    ),
    Operation(
        ChannelShuffle,
        F.channel_shuffle,
        _channel_shuffle_samples,
        functions="channel_shuffle",
        layers="ChannelShuffle",
    ),
    Operation(Unfold, F.unfold, _unfold_samples, functions="unfold", layers="Unfold", complex=True),
    Operation(Fold, F.fold, _fold_samples, functions="fold", layers="Fold", complex=True),
)
