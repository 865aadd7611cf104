"""Mistakes planted in poolings and borders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import (
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    Border,
    FractionalMaxPool,
    LPPool,
    MaxPool,
    MaxUnpool,
    Pad,
)
from torch_manualbp.rules.padding import border_gradient
from torch_manualbp.rules.pooling.average import average_gradient
from torch_manualbp.rules.pooling.largest import put_at
from torch_manualbp.rules.pooling.power import mean_of_powers, slope
from torch_manualbp.verify.mistakes.mistake import breaks, planted

Gradients = tuple[Tensor | None, ...]


def _padded(make: Make) -> tuple[Any, ...]:
    return make(2, 3, 5, 5), (3, 3), (2, 2), (1, 1), False, False, None


def _uneven(make: Make) -> tuple[Any, ...]:
    return make(2, 3, 5, 5), (3, 3)


def _bordered(make: Make) -> tuple[Any, ...]:
    return make(2, 3, 4, 4), (1, 1, 1, 1), "reflect"


def _one_number(make: Make) -> tuple[Any, ...]:
    return make(5, 4), (1, 1), 0.0


@planted("average pool, padding counted", "wrong count", "∂C/∂z divides by the window's size at the border", _padded)
class PaddingCounted(AvgPool):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Gradients:
        window, stride, padding, *_ = ctx.options
        dz = average_gradient(da, ctx.size, window, stride, padding, False, True, None)
        return dz, *[None for _ in ctx.options]


@planted("adaptive average pool, even windows", "wrong count", "∂C/∂z takes all windows for equally large", _uneven)
class WindowsTakenForEven(AdaptiveAvgPool):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        dz, _ = AdaptiveAvgPool.backward(ctx, da)
        return dz * math.prod(ctx.output_size) / math.prod(ctx.size), None


@planted("border, mirrored with the edge", "wrong variable", "∂C/∂z takes reflection for repetition", _bordered)
class MirroredWithTheEdge(Border):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return border_gradient(da, ctx.pads, "replicate"), None, None


@planted("border, forgotten", "missing term", "∂C/∂z lacks what comes from the border", _bordered)
class BorderForgotten(Border):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Pad.backward(ctx, da)


@planted(
    "border of zeros, sides swapped", "wrong variable", "∂C/∂z cuts off what was put on the other side", _one_number
)
class SidesSwapped(Pad):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (p, _) = ctx.pads
        return da[..., : da.shape[-1] - 2 * p].clone(), None, None


@breaks("overlapping", "first derivatives", "gradcheck")
class OneOfTheWindowsAlone(MaxPool):
    """Where an entry is the largest of several windows, the last one's gradient wins."""

    @staticmethod
    def backward(ctx: Any, da: Tensor | None, _: None = None) -> Gradients:
        (i,) = ctx.saved_tensors
        assert da is not None
        rows = da.shape[:2]
        at, g = i.reshape(*rows, -1).long(), da.reshape(*rows, -1)
        dz = torch.zeros(*rows, math.prod(ctx.size), dtype=da.dtype).scatter(-1, at, g)
        return dz.reshape(*rows, *ctx.size), *[None] * ctx.others


@breaks("images", "first derivatives")
class FromTheFirstPlaces(MaxUnpool):
    """Takes the gradients of the first entries, wherever the largest were."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Gradients:
        (i,) = ctx.saved_tensors
        dz = da.flatten(2)[..., : math.prod(i.shape[2:])].reshape(i.shape)
        return dz, None, *[None for _ in ctx.options]


@breaks("images", "bytes kept")
class KeepsTheInput(MaxPool):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        MaxPool.setup_context(ctx, inputs, output)
        ctx.save_for_backward(output[1].long(), inputs[0], inputs[0] * 2)

    @staticmethod
    def backward(ctx: Any, da: Tensor | None, _: None = None) -> Gradients:
        i, *_ = ctx.saved_tensors
        return None if da is None else put_at(da, i, ctx.size), *[None] * ctx.others


@breaks("images", "first derivatives")
class FirstOfEachRow(AdaptiveMaxPool):
    """Takes the flat index for one into the row."""

    @staticmethod
    def backward(ctx: Any, da: Tensor | None, _: None = None) -> Gradients:
        (i,) = ctx.saved_tensors
        assert da is not None
        return put_at(da, i % ctx.size[-1], ctx.size), None, None


@breaks("images", "first derivatives")
class FirstOfEachColumn(FractionalMaxPool):
    """Takes the flat index for one into the column."""

    @staticmethod
    def backward(ctx: Any, da: Tensor | None, _: None = None) -> Gradients:
        (i,) = ctx.saved_tensors
        assert da is not None
        return put_at(da, i // ctx.size[-1] * ctx.size[-1], ctx.size), *[None] * ctx.others


@breaks("rounded up", "first derivatives")
class WholeWindowsAtTheBorder(LPPool):
    """Divides by the size of the window where less of it lies in z."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Gradients:
        p, window, stride, _ = ctx.options
        (z,) = ctx.saved_tensors
        dm = da * slope(mean_of_powers(z, *ctx.options), p, math.prod(window))
        dz = average_gradient(dm, z.shape[-2:], window, stride, (0, 0), False, True, None)
        return z.pow(p - 1) * dz, *[None for _ in ctx.options]
