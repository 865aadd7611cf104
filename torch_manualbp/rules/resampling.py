"""Images, sequences and volumes of other sizes, and the same entries in other places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.layout import is_channels_last, laid_out
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = [
    "ChannelShuffle",
    "Fold",
    "Interpolate",
    "PixelShuffle",
    "PixelUnshuffle",
    "Unfold",
    "interpolation_gradient",
]

Sizes = tuple[int, ...]
Scales = tuple[float, ...]


class Interpolate(Rule):
    """The input at other places, in between its own.

    ::

        a(x) = Σ_y P(x, y) z(y)                along each dimension
        ⇒
        ∂C/∂z(y) = Σ_x P(x, y) ∂C/∂a(x)

    P is what the mode makes of an input that is 1 in one place: of ``"nearest"`` one entry of 1 for each x, of linear
    modes two weights, of cubic ones four, with ``antialias`` more. ``size`` or ``scales`` has a number for each
    dimension. Shapes: z (N, n, *), a with the new sizes. Kept: nothing.
    """

    @staticmethod
    def forward(
        z: Tensor,
        size: Sizes | None,
        scales: Scales | None,
        mode: str,
        align_corners: bool | None,
        recompute: bool | None,
        antialias: bool,
    ) -> Tensor:
        a = F.interpolate(z, size, scales, mode, align_corners, recompute, antialias)
        return a.clone() if a is z else a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.options = inputs
        ctx.size = z.shape[2:]
        # As ATen's, which lays out volumes plainly where they are not weighed.
        ctx.channels_last = is_channels_last(z) and (z.dim() == 4 or inputs[3] == "trilinear")

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        dz = interpolation_gradient(da, ctx.size, *ctx.options)
        return laid_out(dz, ctx.channels_last), *[None for _ in ctx.options]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return Interpolate.forward(dz, *ctx.options)


@formula(by="whole")
def interpolation_gradient(
    da: Tensor,
    size: Sizes,
    to_size: Sizes | None,
    scales: Scales | None,
    mode: str,
    align_corners: bool | None,
    recompute: bool | None,
    antialias: bool,
) -> Tensor:
    """∂C/∂z, of this size, one dimension after the other."""
    dz = widened(da)
    order = range(len(size))  # of sums rows first, which lie together; of products columns, which are rows of P
    for k in order if mode.startswith("nearest") else reversed(order):
        d, n, m = k + 2, size[k], da.shape[k + 2]
        of = None if to_size is None else to_size[k]
        scale = None if scales is None else scales[k]
        if mode.startswith("nearest"):
            if m in (n, 2 * n, 4 * n) and scale in (None, m // n):  # each entry so often
                dz = dz.reshape(*dz.shape[:d], n, m // n, *dz.shape[d + 1 :]).sum(d + 1)
                continue
            places = torch.arange(n, dtype=torch.float64, device=da.device).reshape(1, 1, n)
            i = F.interpolate(places, of, scale, mode, None, recompute)[0, 0].long()
            dz = dz.new_zeros(*dz.shape[:d], n, *dz.shape[d + 1 :]).index_add(d, i, dz)
            continue
        one = torch.eye(n, dtype=dz.dtype, device=da.device).reshape(1, n, 1, n)
        one_size, one_scale = None if of is None else (1, of), None if scale is None else (1.0, scale)
        plane = "bicubic" if mode == "bicubic" else "bilinear"
        P = F.interpolate(one, one_size, one_scale, plane, align_corners, recompute, antialias).reshape(n, m)
        dz = torch.matmul(dz.movedim(d, -1), P.t()).movedim(-1, d)
    return dz.to(da.dtype)


class PixelShuffle(Rule):
    """Channels laid out as places, r × r for each place.

    ::

        a_c(r y + i, r x + j) = z_{c r² + i r + j}(y, x)
        ⇒
        ∂C/∂z_{c r² + i r + j}(y, x) = ∂C/∂a_c(r y + i, r x + j)

    Shapes: z (*, n r², h, w), a (*, n, h r, w r). Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, r: int) -> Tensor:
        return F.pixel_shuffle(z, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.r = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return F.pixel_unshuffle(da, ctx.r), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return F.pixel_shuffle(dz, ctx.r)


class PixelUnshuffle(Rule):
    """Places laid out as channels, r² for each r × r of them.

    ::

        a_{c r² + i r + j}(y, x) = z_c(r y + i, r x + j)
        ⇒
        ∂C/∂z_c(r y + i, r x + j) = ∂C/∂a_{c r² + i r + j}(y, x)

    Shapes: z (*, n, h r, w r), a (*, n r², h, w). Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, r: int) -> Tensor:
        return F.pixel_unshuffle(z, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.r = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return F.pixel_shuffle(da, ctx.r), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return F.pixel_unshuffle(dz, ctx.r)


class ChannelShuffle(Rule):
    """The channels of g groups in turn.

    ::

        a_{c g + i} = z_{i n / g + c}
        ⇒
        ∂C/∂z_{i n / g + c} = ∂C/∂a_{c g + i}

    Shapes: z and a (N, n, *). Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, groups: int) -> Tensor:
        return _shuffled(z, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        z, ctx.groups = inputs
        ctx.channels = z.shape[1]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return _shuffled(da, ctx.channels // ctx.groups), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return _shuffled(dz, ctx.groups)


def _shuffled(t: Tensor, groups: int) -> Tensor:
    parts = t.reshape(t.shape[0], groups, t.shape[1] // groups, *t.shape[2:])
    return laid_out(parts.transpose(1, 2).reshape(t.shape), is_channels_last(t))


class Unfold(Rule):
    """Each window of an image as a column.

    ::

        a_cu(x) = z_c(s x + d u − p)
        ⇒
        ∂C/∂z_c(y) = Σ_{x,u: s x + d u − p = y} ∂C/∂a_cu(x)

    x and y are places, u one in the window, s the stride, d the dilation, p the padding, of zeros. Shapes: z (N, n, h,
    w), or without N for one image, a (N, n times the window, number of windows). Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, window: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> Tensor:
        return F.unfold(z, window, dilation, padding, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.options = inputs
        ctx.size = tuple(z.shape[-2:])

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return folded(da, ctx.size, *ctx.options), *[None for _ in ctx.options]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return F.unfold(dz, *ctx.options)


class Fold(Rule):
    """An image as the sum of windows, each of which is a column.

    ::

        a_c(y) = Σ_{x,u: s x + d u − p = y} z_cu(x)
        ⇒
        ∂C/∂z_cu(x) = ∂C/∂a_c(s x + d u − p)

    Letters as in :class:`Unfold`. Shapes: z (N, n times the window, number of windows), or without N for one image, a
    (N, n, h, w) for a size of (h, w). Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, size: Sizes, window: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> Tensor:
        return F.fold(z, size, window, dilation, padding, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.size, *ctx.options = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return F.unfold(da, *ctx.options), None, *[None for _ in ctx.options]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return F.fold(dz, ctx.size, *ctx.options)


def folded(da: Tensor, size: Sizes, *options: Sizes) -> Tensor:
    """The sum of windows, rounded once."""
    return F.fold(widened(da), size, *options).to(da.dtype)
