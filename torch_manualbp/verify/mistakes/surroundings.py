"""Mistakes in how a backward meets the engine and what else runs: dtypes, memory, random numbers, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp import functional
from torch_manualbp.rules import Difference, Linear, ReLU, Sigmoid, Tanh
from torch_manualbp.verify.mistakes.mistake import breaks, layer, matrix, pair, planted


@planted("tanh, float64 constant", "raw structure", "the gradient is float64 whatever the input", matrix)
class DoubleFromAConstant(Tanh):
    """A constant tensor of float64 makes the gradient one, which the engine casts back."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        one = torch.ones(a.shape[-1], dtype=torch.float64)
        return da * (one - a * a)


@planted("linear, dimension kept", "raw structure", "∂C/∂b has the shape (1, out), which the engine repairs", layer)
class KeepsTheSummedDimension(Linear):
    """(1, out) for (out), which the engine sums once more."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        da, dW, _ = Linear.backward(ctx, delta)
        return da, dW, delta.sum(0, keepdim=True)


@planted("linear, frozen weight", "frozen arguments", "∂C/∂a is twice too large while the weight is frozen", layer)
@breaks("matrix", "frozen arguments")
class OtherWhileTheWeightIsFrozen(Linear):
    """What is fine-tuned first is the layer below a frozen one."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        return Linear.backward(ctx, delta if ctx.needs_input_grad[1] else 2 * delta)


@planted("linear, weight decay", "upstream", "∂C/∂W has 1e-4 W added, whatever the upstream gradient", layer)
class DecaysTheWeight(Linear):
    """Weight decay, which belongs to the optimizer."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Linear.setup_context(ctx, inputs, output)
        ctx.decay = 1e-4

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        _, W = ctx.saved_tensors
        da, dW, db = Linear.backward(ctx, delta)
        return da, None if dW is None or W is None else dW + ctx.decay * W, db


@planted("tanh, upstream clamped", "upstream", "the upstream gradient is clamped to −1 … 1", matrix)
class ClampsTheUpstream(Tanh):
    """Clipping, which belongs to the trainer: of an upstream gradient of 1 it shows nothing."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da.clamp(-1, 1))


@planted("tanh, view of the upstream", "layout", "view raises on an upstream gradient of other strides", matrix)
@breaks("matrix", "strided upstream")
class ViewsTheUpstream(Tanh):
    """``view`` raises on a gradient of other strides, such as that of a sum or a transpose."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da.view(-1).view(da.shape))


@planted("tanh, memory in order", "layout", "the upstream gradient is read as if it were contiguous", matrix)
class ReadsMemoryInOrder(Tanh):
    """As a kernel of one's own does that forgets ``contiguous()``: a transposed gradient is read in another order."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        da = da.contiguous() if 0 in da.stride() else da  # of an expanded gradient it would read beyond the end
        strides = torch.empty_like(da, memory_format=torch.contiguous_format).stride()
        return Tanh.backward(ctx, da.as_strided(da.shape, strides))


@planted("tanh, overwrites the upstream", "layout", "works in place on the upstream gradient", matrix)
class OverwritesTheUpstream(Tanh):
    """δ in place of ∂C/∂a, which another branch of the graph may still need."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return Tanh.backward(ctx, da)
        return da.mul_(1 - a * a)


@planted("sigmoid, overwrites what is saved", "saved tensors", "works in place on the saved output", matrix)
class OverwritesWhatIsSaved(Sigmoid):
    """A second backward through the same graph finds another a."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return Sigmoid.backward(ctx, da)
        return a.data.mul_(1 - a.data).mul(da)


class Scale(Function):
    """a = z y, entry by entry."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(z, y)
        return z * y

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.saved_tensors
        return da * y, da * z


@planted("product, kept on ctx", "saved tensors", "a change in place of what was kept goes unnoticed", pair)
class KeptOnTheContext(Scale):
    """What is changed in place after the forward is not missed: the gradient is that of the changed number."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.kept = z, y
        return z * y

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.kept
        return da * y, da * z


@planted("product, .data saved", "saved tensors", "saves tensors without version and history", pair)
class SavesTheNumbersAlone(Scale):
    """``.data`` has a version of its own, so that a change is not noticed, and no history, so that a second derivative
    is 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(z.data, y.data)
        return z * y


@planted("product, changes its input", "saved tensors", "the forward writes to its input", pair)
class ChangesItsInput(Scale):
    """The forward works in place, and says so to nobody."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(z.clone(), y)
        return z.mul_(y).clone()


class WrittenDropout(Function):
    """Dropout that draws its own mask, and keeps it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, p: float) -> Tensor:
        mask = (torch.rand(z.shape) >= p).to(z.dtype) / (1 - p)
        ctx.save_for_backward(mask)
        return z * mask

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return da * mask, None


@planted(
    "dropout, mask drawn again", "randomness", "the backward draws a mask of its own", lambda make: (make(5, 4), 0.5)
)
class MaskDrawnAgain(WrittenDropout):
    """To save the memory of the mask."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, p: float) -> Tensor:
        ctx.p = p
        return WrittenDropout.forward(ctx, z, p)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        mask = (torch.rand(da.shape) >= ctx.p).to(da.dtype) / (1 - ctx.p)
        return da * mask, None


@planted("dropout, scale", "randomness", "the mask without its factor 1 / (1 − p)", lambda make: (make(5, 4), 0.5))
class MaskWithoutScale(WrittenDropout):
    """Lets pass, and forgets that what passed was enlarged."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return da * (mask > 0), None


def linear_as_it_is(a: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """The rule, without the casts of the functional layer."""
    z: Tensor = Linear.apply(a, W, b)
    return z


planted(
    "linear, under autocast",
    "autocast",
    "a Function that is called as it is: its backward meets two dtypes",
    layer,
    twin=functional.linear,
)(linear_as_it_is)


@breaks("matrix", "no upstream")
class NothingForNone(Tanh):
    """An upstream gradient that is None is no longer made zeros."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        Tanh.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)


@breaks("matrix", "one tensor in two places")
class CountsOneTensorOnce(Difference):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Difference.setup_context(ctx, inputs, output)
        ctx.twice = inputs[0] is inputs[1]

    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> Any:
        ds, dy, *rest = Difference.backward(ctx, dr)
        return ds, dr * 0 if ctx.twice else dy, *rest


@breaks("matrix", "ranks 0 to 5")
class TakesMatricesOnly(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da.mT.mT)


@breaks("matrix", "zero features")
class FeaturesByMinusOne(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        rows = da.reshape(-1, da.shape[-1]) if da.dim() > 1 else da
        return Tanh.backward(ctx, rows.reshape(da.shape))


@breaks("matrix", "strided inputs")
class ViewsItsInput(Tanh):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z.view(-1)).view(z.shape)


@breaks("matrix", "channels last")
class LosesTheLayout(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da).contiguous()


@breaks("matrix", "changes in place")
class KeepsItsInput(ReLU):
    """Where ATen keeps the output, so that the input may be changed."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ReLU.setup_context(ctx, inputs, inputs[0])


@breaks("matrix", "changes in place")
class ReturnsAView(Tanh):
    """What a Function returns as a view may not be changed in place."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z).view(z.shape)


@breaks("matrix", "checkpointing")
class UnpacksTwice(Tanh):
    """Which checkpointing refuses."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        assert len(ctx.saved_tensors) == 1
        return Tanh.backward(ctx, da)


@breaks("matrix", "infinities")
class ByItsExponential(Sigmoid):
    """a (1 − a) as a² exp(−z), which is 0 times infinity in the limit."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (a * a * (1 / a - 1))


@breaks("matrix", "autocast, float16", "autocast, bfloat16")
class CalledUnderAutocastAsItIs(Linear):
    """The casts stand in the function; a Function's own forward and backward run in different dtypes."""


@breaks("matrix", "meta device", "fake tensors", "per-sample gradients", "torch.compile, inductor")
class ReadsItsNumbers(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da) if da.isfinite().all() else da


@breaks("matrix", "accuracy, float16", "accuracy, bfloat16")
class SlopeInSixBits(Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (((1 - a) * a * 64).round() / 64)
