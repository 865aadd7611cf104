"""Mistakes planted in interpolation, shuffles and windows as columns."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import (
    AffineGrid,
    ChannelShuffle,
    Fold,
    GridSample,
    Interpolate,
    PixelShuffle,
    PixelUnshuffle,
    Unfold,
)
from torch_manualbp.rules.resampling import interpolation_gradient
from torch_manualbp.rules.sampling import grid_sample_gradients
from torch_manualbp.verify.mistakes.mistake import breaks, planted


def _corners(make: Make) -> tuple[Any, ...]:
    return make(2, 3, 4, 4), (6, 6), None, "bilinear", True, None, False


def _channels(make: Make) -> tuple[Any, ...]:
    return make(2, 6, 2, 3), 2


def _square(make: Make) -> tuple[Any, ...]:
    return make(1, 4, 2, 2), 2


@planted("interpolation, corners not aligned", "option ignored", "∂C/∂z weighs as by default", _corners)
class CornersNotAligned(Interpolate):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        to_size, scales, mode, _, recompute, antialias = ctx.options
        dz = interpolation_gradient(da, ctx.size, to_size, scales, mode, False, recompute, antialias)
        return dz, *[None for _ in ctx.options]


@planted("interpolation, of the gradient", "transpose", "∂C/∂z interpolates ∂C/∂a back", _corners)
class InterpolatedBack(Interpolate):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        dz = F.interpolate(da, tuple(ctx.size), mode="bilinear", align_corners=True)
        return dz, *[None for _ in ctx.options]


@planted("channel shuffle, not undone", "transpose", "∂C/∂z is shuffled by the same groups again", _channels)
class ShuffledAgain(ChannelShuffle):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return F.channel_shuffle(da, ctx.groups), None


@planted("pixel shuffle, places transposed", "transpose", "∂C/∂z has rows and columns of each square swapped", _square)
class SquaresTransposed(PixelShuffle):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return F.pixel_unshuffle(da.mT, ctx.r).mT, None


@breaks("images", "first derivatives")
class SquaresTransposedBack(PixelUnshuffle):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return F.pixel_shuffle(da.flip(1), ctx.r), None


@breaks("images", "first derivatives", "gradcheck")
class WindowsAveraged(Unfold):
    """Divides by the number of windows that an entry is in."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        dz, *others = Unfold.backward(ctx, da)
        assert dz is not None
        count = F.fold(F.unfold(dz.new_ones(dz.shape), *ctx.options), ctx.size, *ctx.options)
        return dz / count, *others


@breaks("images", "first derivatives", "gradcheck")
class ColumnsReversed(Fold):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        dz, *others = Fold.backward(ctx, da)
        assert dz is not None
        return dz.flip(-1), *others


@breaks("bilinear, reflected", "first derivatives")
class ReflectionThatDoesNotTurn(GridSample):
    """The derivative of a reflected place, without its −1."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        z, x = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        mode, padding, align = ctx.options
        dz, dx = grid_sample_gradients(da, z, x, ctx.shape, mode, padding, align, needs)
        return dz, None if dx is None else dx.abs(), None, None, None


@breaks("images by the corners", "first derivatives", "gradcheck")
class CornersForgotten(AffineGrid):
    """∂C/∂θ of places whose outer centres are not −1 and 1."""

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Any:
        ctx.align_corners = False
        return AffineGrid.backward(ctx, dx)
