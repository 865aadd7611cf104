"""Mistakes planted in convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import (
    Convolution,
    TransposedConvolution,
    convolution_bias_gradient,
    convolution_input_gradient,
    convolution_weight_gradient,
)
from torch_manualbp.verify.mistakes.mistake import breaks, planted

Gradients = tuple[Tensor | None, ...]


def _square(make: Make) -> tuple[Any, ...]:
    return make(2, 3, 5, 5), make(3, 3, 3, 3), make(3), (1, 1), (1, 1), (1, 1), 1


def _strided(make: Make) -> tuple[Any, ...]:
    return make(2, 2, 7, 7), make(3, 2, 2, 2), make(3), (2, 2), (0, 0), (1, 1), 1


def _grouped(make: Make) -> tuple[Any, ...]:
    return make(2, 4, 4, 4), make(4, 2, 3, 3), make(4), (1, 1), (0, 0), (1, 1), 2


def _square_transposed(make: Make) -> tuple[Any, ...]:
    return make(2, 3, 4, 4), make(3, 3, 3, 3), make(3), (1, 1), (1, 1), (0, 0), 1, (1, 1)


@planted("convolution, kernel not turned", "transpose", "∂C/∂a convolves δ with W as it stands", _square)
class KernelNotTurned(Convolution):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        _, W = ctx.saved_tensors
        _, *others = Convolution.backward(ctx, delta)
        if not ctx.needs_input_grad[0]:
            return None, *others
        return convolution_input_gradient(delta, W.flip(2, 3), ctx.input_size, *ctx.options), *others


@planted("convolution, channels not transposed", "transpose", "∂C/∂a sums over the channels that come in", _square)
class ChannelsNotTransposed(Convolution):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        _, W = ctx.saved_tensors
        _, *others = Convolution.backward(ctx, delta)
        if not ctx.needs_input_grad[0]:
            return None, *others
        return convolution_input_gradient(delta, W.transpose(0, 1), ctx.input_size, *ctx.options), *others


@planted("convolution, stride forgotten", "option ignored", "∂C/∂W takes the entries of a side by side", _strided)
class StrideForgotten(Convolution):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, _ = ctx.saved_tensors
        da, _, *others = Convolution.backward(ctx, delta)
        if not ctx.needs_input_grad[1]:
            return da, None, *others
        _, padding, dilation, groups = ctx.options
        return da, convolution_weight_gradient(a, delta, ctx.window, (1, 1), padding, dilation, groups), *others


@planted("convolution, groups mixed up", "wrong variable", "∂C/∂W sees the channels of the other group", _grouped)
class GroupsMixedUp(Convolution):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, _ = ctx.saved_tensors
        da, _, *others = Convolution.backward(ctx, delta)
        if not ctx.needs_input_grad[1]:
            return da, None, *others
        swapped = torch.cat([a[:, 2:], a[:, :2]], 1)
        return da, convolution_weight_gradient(swapped, delta, ctx.window, *ctx.options), *others


@planted("transposed convolution, not transposed", "transpose", "∂C/∂a is transposed once more", _square_transposed)
class TransposedTwice(TransposedConvolution):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        _, W = ctx.saved_tensors
        _, *others = TransposedConvolution.backward(ctx, delta)
        if not ctx.needs_input_grad[0]:
            return None, *others
        stride, padding, extra, groups, dilation = ctx.options
        return torch.conv_transpose2d(delta, W, None, stride, padding, extra, groups, dilation), *others


@breaks("images", "raw backward")
class BiasOfEachPlace(Convolution):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        da, dW, _, *others = Convolution.backward(ctx, delta)
        return da, dW, delta.sum(0), *others


@breaks("images", "bytes kept")
class KeepsTheOutput(Convolution):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Convolution.setup_context(ctx, inputs, output)
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W, _ = ctx.saved_tensors
        da = convolution_input_gradient(delta, W, ctx.input_size, *ctx.options)
        dW = convolution_weight_gradient(a, delta, ctx.window, *ctx.options)
        return da, dW, convolution_bias_gradient(delta, 2), None, None, None, None


@breaks("stride, padding", "tangents", "forward mode")
class TangentOfTheWeightsForgotten(Convolution):
    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dW: Tensor | None, db: Tensor | None, *rest: None) -> Any:
        if da is None:
            return Convolution.with_jvp.jvp(ctx, da, dW, db, *rest)
        return Convolution.with_jvp.jvp(ctx, da, None, db, *rest)
