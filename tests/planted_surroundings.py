"""Mistakes planted in how a rule meets its surroundings: shapes, strides, dtypes, memory, the rest of the graph."""

from __future__ import annotations

from typing import Any

import torch
from planted import Mistake
from torch import Tensor

from torch_manualbp.rules import Difference, Linear, ReLU, Sigmoid, Tanh


class ConjugateForgotten(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return Tanh.delta(da, a)


class NothingForNone(Tanh):
    """An upstream gradient that is None is no longer made zeros."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        Tanh.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)


class CountsOneTensorOnce(Difference):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Difference.setup_context(ctx, inputs, output)
        ctx.twice = inputs[0] is inputs[1]

    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> Any:
        ds, dy, *rest = Difference.backward(ctx, dr)
        return ds, dr * 0 if ctx.twice else dy, *rest


class TakesMatricesOnly(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da.mT.mT)


class ReshapedByMinusOne(Tanh):
    """In 0 entries there is no telling how many −1 are."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        rows = da.reshape(da.shape[0], -1) if da.dim() > 1 else da
        return Tanh.backward(ctx, rows.reshape(da.shape))


class FeaturesByMinusOne(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        rows = da.reshape(-1, da.shape[-1]) if da.dim() > 1 else da
        return Tanh.backward(ctx, rows.reshape(da.shape))


class ViewsItsInput(Tanh):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z.view(-1)).view(z.shape)


class LosesTheLayout(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da).contiguous()


class CountsOnTheWeight(Linear):
    """Another gradient of the input while the weight is frozen."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        return Linear.backward(ctx, delta if ctx.needs_input_grad[1] else 2 * delta)


class KeepsItsInput(ReLU):
    """Where ATen keeps the output, so that the input may be changed."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ReLU.setup_context(ctx, inputs, inputs[0])


class ReturnsAView(Tanh):
    """What a Function returns as a view may not be changed in place."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z).view(z.shape)


class UnpacksTwice(Tanh):
    """Which checkpointing refuses."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        assert len(ctx.saved_tensors) == 1
        return Tanh.backward(ctx, da)


class NaNHidden(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da).nan_to_num()


class ByItsExponential(Sigmoid):
    """a (1 − a) as a² exp(−z), which is 0 times infinity in the limit."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (a * a * (1 / a - 1))


class CalledUnderAutocastAsItIs(Linear):
    """The casts stand in the function; a Function's own forward and backward run in different dtypes."""


class ReadsItsNumbers(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da) if da.isfinite().all() else da


class SlopeInSixBits(Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (((1 - a) * a * 64).round() / 64)


MISTAKES: list[Mistake] = [
    (ConjugateForgotten, "matrix", ["complex numbers"]),
    (NothingForNone, "matrix", ["no upstream"]),
    (CountsOneTensorOnce, "matrix", ["one tensor in two places"]),
    (TakesMatricesOnly, "matrix", ["ranks 0 to 5"]),
    (ReshapedByMinusOne, "matrix", ["empty batch"]),
    (FeaturesByMinusOne, "matrix", ["zero features"]),
    (ViewsItsInput, "matrix", ["strided inputs"]),
    (LosesTheLayout, "matrix", ["channels last"]),
    (CountsOnTheWeight, "matrix", ["frozen arguments"]),
    (KeepsItsInput, "matrix", ["changes in place"]),
    (ReturnsAView, "matrix", ["changes in place"]),
    (UnpacksTwice, "matrix", ["checkpointing"]),
    (NaNHidden, "matrix", ["NaN"]),
    (ByItsExponential, "matrix", ["infinities"]),
    (CalledUnderAutocastAsItIs, "matrix", ["autocast, float16", "autocast, bfloat16"]),
    (ReadsItsNumbers, "matrix", ["meta device", "fake tensors", "per-sample gradients", "torch.compile, inductor"]),
    (SlopeInSixBits, "matrix", ["accuracy, float16", "accuracy, bfloat16"]),
]
