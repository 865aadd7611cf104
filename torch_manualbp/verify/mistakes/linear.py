"""Mistakes in the layers that are products: the classic exercise, and its classic errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import Bilinear, Linear, bilinear_input_gradient
from torch_manualbp.verify.mistakes.mistake import layer, planted

Gradients = tuple[Tensor | None, ...]


def _square(make: Make) -> tuple[Any, ...]:
    return make(4, 4), make(4, 4), make(4)


def _bilinear(make: Make) -> tuple[Any, ...]:
    return make(5, 3), make(5, 3), make(2, 3, 3), make(2)


def _embedding(make: Make) -> tuple[Any, ...]:
    return torch.tensor([0, 2, 2, 1, 0]), make(4, 3)


class WrittenLinear(Function):
    """z = a Wᵀ + b as the tutorials write it, with what they use of ``ctx`` in ``forward``."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, W)
        return a @ W.t() + b

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        da = delta @ W if ctx.needs_input_grad[0] else None
        dW = delta.t() @ a if ctx.needs_input_grad[1] else None
        db = delta.sum(0) if ctx.needs_input_grad[2] else None
        return da, dW, db


@planted("linear, bias not summed", "missing sum", "∂C/∂b is δ of every sample, which the engine sums up", layer)
class BiasLeftToTheEngine(WrittenLinear):
    """The engine sums a gradient of expandable shape without a word: the value is right, the memory is not."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        da, dW, _ = WrittenLinear.backward(ctx, delta)
        return da, dW, delta


@planted(
    "linear, bias summed over neurons", "missing sum", "∂C/∂b sums δ over the neurons in place of the samples", _square
)
class BiasOfOneNeuronSummedOverAll(WrittenLinear):
    """The sum of a square δ over the neurons has the shape of that over the samples."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        da, dW, _ = WrittenLinear.backward(ctx, delta)
        return da, dW, delta.sum(1)


@planted("linear, square weight transposed", "transpose", "∂C/∂a = δ Wᵀ in place of δ W", _square)
class SquareWeightTransposed(WrittenLinear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        return delta @ W.t(), delta.t() @ a, delta.sum(0)


@planted("linear, weight gradient transposed", "transpose", "∂C/∂W = aᵀ δ in place of δᵀ a", _square)
class WeightGradientTransposed(WrittenLinear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        return delta @ W, a.t() @ delta, delta.sum(0)


@planted("linear, averaged over the batch", "batch size", "∂C/∂W and ∂C/∂b are divided by the number of samples", layer)
class AveragedOverTheBatch(WrittenLinear):
    """The loss has its mean; the layer takes another."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        da, dW, db = WrittenLinear.backward(ctx, delta)
        n = delta.shape[0]
        return da, None if dW is None else dW / n, None if db is None else db / n


@planted("linear, bias asked for by the weight", "frozen arguments", "∂C/∂b is None once the weight is frozen", layer)
class BiasAskedForByTheWeight(WrittenLinear):
    """The bias takes the weight's place in ``needs_input_grad``, which shows once the weight is frozen."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        da, dW, _ = WrittenLinear.backward(ctx, delta)
        return da, dW, delta.sum(0) if ctx.needs_input_grad[1] else None


@planted("linear, bias forgotten", "raw structure", "∂C/∂b is None though the bias needs it", layer)
class BiasForgotten(WrittenLinear):
    """``None`` for what needs a gradient: the bias never moves."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        da, dW, _ = WrittenLinear.backward(ctx, delta)
        return da, dW, None


@planted("linear, last sample forgotten", "missing term", "∂C/∂W sums over all samples but the last", layer)
class LastSampleForgotten(WrittenLinear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        return delta @ W, delta[:-1].t() @ a[:-1], delta.sum(0)


@planted("linear, weight not conjugated", "conj", "∂C/∂a = δ W in place of δ W*", layer, is_complex=True)
class WeightNotConjugated(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        a, W = ctx.saved_tensors
        return None if W is None else delta @ W, None if a is None else delta.t() @ a.conj(), delta.sum(0)


@planted(
    "linear, upstream conjugated", "conj", "every gradient is computed from δ* in place of δ", layer, is_complex=True
)
class ConjugatedUpstream(Linear):
    """δ* for δ."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        return Linear.backward(ctx, delta.conj().resolve_conj())


@planted("bilinear, transposed", "transpose", "∂C/∂y sums over the wrong one of W's two dimensions", _bilinear)
class BilinearTransposed(Bilinear):
    """Wᵀ for W in ∂C/∂y: of two spaces of one size any of the two fits."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        x, _, W = ctx.saved_tensors
        dx, _, dW, db = Bilinear.backward(ctx, delta)
        dy = bilinear_input_gradient(delta, x, W) if ctx.needs_input_grad[1] else None
        return dx, dy, dW, db


@planted("bilinear, sides swapped", "transpose", "∂C/∂W has x and y swapped", _bilinear)
class BilinearSidesSwapped(Bilinear):
    """Σ δ_k y_i x_j for Σ δ_k x_i y_j."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        dx, dy, dW, db = Bilinear.backward(ctx, delta)
        return dx, dy, None if dW is None else dW.transpose(1, 2), db


class SharedWeightCountedOnce(Function):
    """z = W (W a): the product rule has two terms, of which one is here."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(a, W)
        return a @ W.t() @ W.t()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        return delta @ W @ W, delta.t() @ (a @ W.t())


class SharedWeight(SharedWeightCountedOnce):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        return delta @ W @ W, delta.t() @ (a @ W.t()) + (delta @ W).t() @ a


class RowsOverwritten(Function):
    """An embedding whose repeated rows overwrite one another's gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        ctx.shape = W.shape
        return W[y]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Gradients:
        (y,) = ctx.saved_tensors
        return None, da.new_zeros(ctx.shape).index_put((y,), da)


class RowsAddedUp(RowsOverwritten):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Gradients:
        (y,) = ctx.saved_tensors
        return None, da.new_zeros(ctx.shape).index_put((y,), da, accumulate=True)


planted(
    "shared weight, counted once",
    "missing term",
    "∂C/∂W of W (W a) lacks the term of the inner W",
    lambda make: (make(5, 4), make(4, 4)),
    twin=SharedWeight,
)(SharedWeightCountedOnce)
planted(
    "embedding, repeated rows",
    "missing sum",
    "of rows that were looked up twice the last gradient wins",
    _embedding,
    twin=RowsAddedUp,
)(RowsOverwritten)
