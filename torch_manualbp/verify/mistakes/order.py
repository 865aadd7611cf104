"""Mistakes that the first derivative in reverse mode does not show: second derivatives, forward mode, vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from torch_manualbp.rules import Huber, Linear, Sigmoid, Tanh, huber_derivative
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify.mistakes.mistake import breaks, layer, matrix, pair, planted


@planted("sigmoid, detached", "second derivative", "what was saved is detached", matrix)
@breaks("matrix", "second derivatives", "second derivatives, constant upstream", "gradgradcheck")
class SigmoidDetached(Sigmoid):
    """To save memory, as its author believed."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return Sigmoid.delta(da, a.detach())


@planted("tanh, upstream detached", "second derivative", "the upstream gradient is detached", matrix)
class UpstreamDetached(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da.detach())


@planted(
    "Huber, detached",
    "second derivative",
    "output and target are detached",
    lambda make: (make(5, 4), make(5, 4), 1.5, "sum"),
)
@breaks("sum", "second derivatives", "gradgradcheck")
class HuberDetached(Huber):
    partials = (
        lambda s, y, threshold: huber_derivative(s.detach(), y.detach(), threshold),
        lambda s, y, threshold: huber_derivative(y.detach(), s.detach(), threshold),
    )


@planted("linear, no_grad", "second derivative", "the backward runs without a graph", layer)
class WithoutGraph(Linear):
    """``no_grad`` around the backward."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        with torch.no_grad():
            return Linear.backward(ctx, delta)


class Square(Function):
    """a = z² y."""

    @staticmethod
    def forward(z: Tensor, y: Tensor) -> Tensor:
        return z * z * y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        g, z, y = (widened(t) for t in (da, *ctx.saved_tensors))
        return (g * y * z * 2).to(da.dtype), (g * z * z).to(da.dtype)


@planted(
    "square, once differentiable",
    "second derivative",
    "a second derivative is refused, but not where the upstream gradient needs none",
    pair,
)
class SquareOnce(Square):
    """Promises to refuse a second derivative, and gives a wrong one where the upstream gradient needs none."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return Square.backward(ctx, da)


class Sinh(Function):
    """a = (exp(z) − exp(−z)) / 2."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.sinh(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (widened(da) * widened(z).cosh()).to(z.dtype)


@planted("sinh, saved intermediate", "second derivative", "keeps exp(z), which is neither input nor output", matrix)
class SinhOfAnIntermediate(Sinh):
    """Keeps exp(z), which is neither input nor output: the second derivative takes it for a constant."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        wide = widened(z)
        ctx.save_for_backward(wide.exp(), (-wide).exp())
        return torch.sinh(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        up, down = ctx.saved_tensors
        return (widened(da) * (up + down) / 2).to(da.dtype)


@planted("sigmoid, jvp", "forward mode", "the tangent of another function", matrix)
@breaks("matrix", "forward mode", "Jacobians", "Hessians", "gradcheck")
class TangentOfAnotherFunction(Sigmoid):
    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return dz * a


@planted("linear, jvp", "forward mode", "the tangent of W is dropped where a has one", layer)
class TangentOfTheWeightForgotten(Linear):
    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dW: Tensor | None, db: Tensor | None) -> Tensor | None:
        return Linear.with_jvp.jvp(ctx, da, None if da is not None else dW, db)


class SquareForward(Square):
    """With forward mode."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dy: Tensor | None) -> Any:
        z, y = ctx.saved_tensors
        by_z = 0 if dz is None else 2 * z * y * dz
        return by_z + (0 if dy is None else z * z * dy)


@planted("square, jvp", "forward mode", "the tangent of y has the wrong sign", pair)
class SquareForwardNegative(SquareForward):
    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dy: Tensor | None) -> Any:
        z, y = ctx.saved_tensors
        by_z = 0 if dz is None else 2 * z * y * dz
        return by_z - (0 if dy is None else z * z * dy)


class Centred(Function):
    """The centred rows z − mean(z), with a rule for vmap written by hand."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return (widened(z) - widened(z).mean(-1, keepdim=True)).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return (widened(da) - widened(da).mean(-1, keepdim=True)).to(da.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: Tensor) -> Any:
        return Centred.apply(z.movedim(in_dims[0], 0)), 0  # type: ignore[no-untyped-call]


@planted(
    "centring, vmap", "vmap", "under vmap the mean runs over the dimension that is mapped", lambda make: (make(4, 4),)
)
class MixesWhatIsMapped(Centred):
    """The mapped dimension becomes the last, of which the rows' means are taken: samples see each other."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: Tensor) -> Any:
        return Centred.apply(z.movedim(in_dims[0], -1)), z.dim() - 1  # type: ignore[no-untyped-call]
