"""The convolutions, and the transposed ones: of one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp._torch import unsafe_view
from torch_manualbp.rules.jacobian import Convolved
from torch_manualbp.rules.layout import is_channels_last, laid_out
from torch_manualbp.rules.rule import Rule, formula

__all__ = [
    "Convolution",
    "TransposedConvolution",
    "convolution_bias_gradient",
    "convolution_input_gradient",
    "convolution_weight_gradient",
    "transposed_convolution",
]

Sizes = tuple[int, ...]
"""A number for each of the dimensions that a window moves along."""

Gradients = tuple[Tensor | None, ...]

CONVOLUTIONS: Sequence[Callable[..., Tensor]] = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED: Sequence[Callable[..., Tensor]] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Convolution(Rule):
    """The weighted inputs of neurons that see a window each, with the same weights in every place.

    ::

        z_o(x) = Σ_c Σ_u W_oc(u) a_c(s x + d u − p) + b_o
        ⇒
        δ = ∂C/∂z                      the local gradient, which comes from above
        ∂C/∂a_c(y) = Σ_o Σ_{x,u: s x + d u − p = y} W_oc(u) δ_o(x)
        ∂C/∂W_oc(u) = Σ_samples Σ_x δ_o(x) a_c(s x + d u − p)
        ∂C/∂b_o = Σ_samples Σ_x δ_o(x)

    x and y are places, u one in the window, s the stride, d the dilation; a is 0 outside, where p reaches. ∂C/∂a is the
    transposed convolution of δ, ∂C/∂W the convolution of a with δ, in which samples and channels, stride and dilation
    change places. Of several groups of channels o sees those c of its own. Shapes: a (N, in, *), or without N for one
    sample, W (out, in / groups, *), b (out), z and δ (N, out, *). For complex numbers W and a are conjugated. Kept:
    a where ∂C/∂W is needed, W where ∂C/∂a is needed.
    """

    jacobian = Convolved()

    @staticmethod
    def forward(
        a: Tensor, W: Tensor, b: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
    ) -> Tensor:
        z = CONVOLUTIONS[len(stride) - 1](a, W, b, stride, padding, dilation, groups)
        return _own(z, a, W)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, W, _, *ctx.options = inputs
        _keep(ctx, a, W, output)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        needs_da, needs_dW, needs_db, *others = ctx.needs_input_grad
        delta = delta if is_channels_last(delta) else delta.contiguous()  # once, and not for each product
        da = convolution_input_gradient(delta, W, ctx.input_size, *ctx.options) if needs_da else None
        dW = None
        if needs_dW:
            dW = convolution_weight_gradient(a.conj() if a.is_complex() else a, delta, ctx.window, *ctx.options)
        db = convolution_bias_gradient(delta, len(ctx.window)) if needs_db else None
        return da, dW, db, *[None for _ in others]

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dW: Tensor | None, db: Tensor | None, *_: None) -> Tensor | None:
        a, W = ctx.saved_tensors
        convolve = CONVOLUTIONS[len(ctx.window) - 1]
        of_a = None if da is None else convolve(da, W, None, *ctx.options)
        of_W = None if dW is None else convolve(a, dW, None, *ctx.options)
        return _sum_of_tangents(ctx, of_a, of_W, db)


class TransposedConvolution(Rule):
    """The convolution the other way round: every entry of the input is put, times the window of weights, on the output.

    ::

        z_o(y) = Σ_c Σ_{x,u: s x + d u − p = y} W_co(u) a_c(x) + b_o
        ⇒
        δ = ∂C/∂z                      the local gradient, which comes from above
        ∂C/∂a_c(x) = Σ_o Σ_u W_co(u) δ_o(s x + d u − p)
        ∂C/∂W_co(u) = Σ_samples Σ_x a_c(x) δ_o(s x + d u − p)
        ∂C/∂b_o = Σ_samples Σ_y δ_o(y)

    x and y are places, u one in the window, s the stride, d the dilation, p the padding; δ is 0 outside. ∂C/∂a is the
    convolution of δ, ∂C/∂W that of δ with a. Of several groups of channels c sees those o of its own. Shapes: a (N, in,
    *), or without N for one sample, W (in, out / groups, *), b (out), z and δ (N, out, *), larger by the output
    padding at the end. For complex numbers W and a are conjugated. Kept: a where ∂C/∂W is needed, W where ∂C/∂a is
    needed.
    """

    @staticmethod
    def forward(
        a: Tensor,
        W: Tensor,
        b: Tensor | None,
        stride: Sizes,
        padding: Sizes,
        output_padding: Sizes,
        groups: int,
        dilation: Sizes,
    ) -> Tensor:
        z = TRANSPOSED[len(stride) - 1](a, W, b, stride, padding, output_padding, groups, dilation)
        return _own(z, a, W)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, W, _, *ctx.options = inputs
        _keep(ctx, a, W, output)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        a, W = ctx.saved_tensors
        needs_da, needs_dW, needs_db, *others = ctx.needs_input_grad
        delta = delta if is_channels_last(delta) else delta.contiguous()  # once, and not for each product
        stride, padding, _, groups, dilation = ctx.options
        da = dW = None
        if needs_da:
            W = W.conj() if W.is_complex() else W
            da = CONVOLUTIONS[len(stride) - 1](delta, W, None, stride, padding, dilation, groups)
            da = _first(da, ctx.input_size)  # where windows lie wholly in the output padding, there are more
        if needs_dW:
            a = a.conj() if a.is_complex() else a
            dW = convolution_weight_gradient(delta, a, ctx.window, stride, padding, dilation, groups)
        db = convolution_bias_gradient(delta, len(stride)) if needs_db else None
        return da, dW, db, *[None for _ in others]

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dW: Tensor | None, db: Tensor | None, *_: None) -> Tensor | None:
        a, W = ctx.saved_tensors
        convolve = TRANSPOSED[len(ctx.window) - 1]
        of_a = None if da is None else convolve(da, W, None, *ctx.options)
        of_W = None if dW is None else convolve(a, dW, None, *ctx.options)
        return _sum_of_tangents(ctx, of_a, of_W, db)


@formula(by="whole")
def convolution_input_gradient(
    delta: Tensor, W: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """∂C/∂a, of this size, the transposed convolution of δ: (N, out, *), (out, in / groups, *) → (N, in, *)."""
    return transposed_convolution(delta, W.conj() if W.is_complex() else W, size, stride, padding, dilation, groups)


def transposed_convolution(
    delta: Tensor, W: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """Σ_{x,u: s x + d u − p = y} W(u) δ(x) for every place y of this size."""
    about = zip(size, delta.shape[-len(size) :], W.shape[2:], stride, padding, dilation, strict=True)
    # What lies behind the last window.
    behind = [max(n - ((m - 1) * s - 2 * p + d * (k - 1) + 1), 0) for n, m, k, s, p, d in about]
    return _first(TRANSPOSED[len(size) - 1](delta, W, None, stride, padding, behind, groups, dilation), size)


@formula(by="whole")
def convolution_weight_gradient(
    a: Tensor, delta: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """∂C/∂W of this window, the convolution of a with δ: (N, in, *), (N, out, *) → (out, in / groups, *)."""
    if a.dim() == len(window) + 1:
        a, delta = a.unsqueeze(0), delta.unsqueeze(0)
    N, n = a.shape[:2]
    if N == 0:  # a sum of nothing; ATen's convolution of no channels has no second derivative
        places = list(range(2, a.dim()))
        dW = torch.mm(delta.sum(places).t(), a.sum(places).narrow(1, 0, n // groups))
        return dW.reshape(*dW.shape, *[1 for _ in places]).expand(*dW.shape, *window).contiguous()
    like = a
    if groups == 1:
        a = a.transpose(0, 1)
    else:  # a sample for each channel of a group, a channel for each group and sample
        a = a.reshape(N, groups, n // groups, *a.shape[2:]).transpose(0, 2)
        a = a.reshape(n // groups, groups * N, *a.shape[3:])
    dW = CONVOLUTIONS[len(window) - 1](a, delta.transpose(0, 1), None, dilation, padding, stride, groups)
    dW = _first(dW, window).transpose(0, 1)  # where the stride leaves rows of a out, there are more
    return laid_out(dW, is_channels_last(like) or is_channels_last(delta))


def convolution_bias_gradient(delta: Tensor, dimensions: int) -> Tensor:
    """∂C/∂b = Σ_samples Σ_x δ(x): (N, out, *) → (out)."""
    channels = delta.dim() - dimensions - 1
    return delta.sum([d for d in range(delta.dim()) if d != channels])


def _own(z: Tensor, a: Tensor, W: Tensor) -> Tensor:
    """For one sample z is a view, and what a Function returns as a view may not be changed in place."""
    return z if a.dim() == W.dim() else unsafe_view(z, z.shape)


def _keep(ctx: Any, a: Tensor, W: Tensor, z: Tensor) -> None:
    needs_da, needs_dW, *_ = ctx.needs_input_grad
    ctx.window, ctx.input_size, ctx.output_shape = W.shape[2:], a.shape[2 - W.dim() :], z.shape
    ctx.save_for_backward(a if needs_dW else None, W if needs_da else None)
    ctx.save_for_forward(a, W)


def _first(t: Tensor, size: Sizes) -> Tensor:
    """The first entries of the last dimensions, as many as the size says."""
    if t.shape[-len(size) :] == tuple(size):
        return t
    for d, n in enumerate(size, start=t.dim() - len(size)):
        t = t.narrow(d, 0, n)
    return t.clone()


def _sum_of_tangents(ctx: Any, of_a: Tensor | None, of_W: Tensor | None, db: Tensor | None) -> Tensor | None:
    dz = of_W if of_a is None else of_a if of_W is None else of_a + of_W
    if db is None:
        return dz
    db = db.reshape(db.shape[0], *[1 for _ in ctx.window]).expand(ctx.output_shape)
    return db.clone() if dz is None else dz + db
