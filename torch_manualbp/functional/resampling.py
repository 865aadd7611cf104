"""Images of other sizes, and the same entries in other places."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_full_precision, overridable, run
from torch_manualbp.functional.pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from torch_manualbp.functional.windows import sizes

__all__ = [
    "affine_grid",
    "channel_shuffle",
    "fold",
    "grid_sample",
    "interpolate",
    "pixel_shuffle",
    "pixel_unshuffle",
    "unfold",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]


@overridable
def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """a(x) = Σ_y P(x, y) z(y), with :class:`~torch_manualbp.rules.Interpolate`, or for ``"area"`` with
    :class:`~torch_manualbp.rules.AdaptiveAvgPool`; as :func:`torch.nn.functional.interpolate`."""
    about = (align_corners, recompute_scale_factor, antialias)
    n = input.dim() - 2 if isinstance(input, Tensor) else 0
    is_usual = n in (1, 2, 3) and input.is_floating_point() and (size is None) != (scale_factor is None)
    to_size = None if size is None or not is_usual else sizes(n, size)
    scales = None
    if is_usual and scale_factor is not None:
        scales = tuple(scale_factor) if isinstance(scale_factor, list | tuple) else (scale_factor,) * n
    if not is_usual or (to_size is None and (scales is None or len(scales) != n)):
        return torch_functional.interpolate(input, size, scale_factor, mode, *about)  # which says what is wrong
    if mode == "area" and align_corners is None and not antialias and not recompute_scale_factor:
        wanted = (
            to_size[0] if to_size else [int(m * float(s)) for m, s in zip(input.shape[2:], scales or (), strict=True)]
        )
        pool = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)[n - 1]
        return pool(input, tuple(wanted))
    if mode == "area":
        return torch_functional.interpolate(input, size, scale_factor, mode, *about)
    return run(rules.Interpolate, input, to_size[0] if to_size else None, scales, mode, *about)


@overridable
def upsample(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None
) -> Tensor:
    """a(x) = Σ_y P(x, y) z(y) ⇒ ∂C/∂z(y) = Σ_x P(x, y) ∂C/∂a(x). Kept: nothing. :func:`interpolate`, as
    :func:`torch.nn.functional.upsample`."""
    _is_deprecated("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


@overridable
def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """a(x) = Σ_y P(x, y) z(y) ⇒ ∂C/∂z(y) = Σ_x P(x, y) ∂C/∂a(x). Kept: nothing. :func:`interpolate`, as
    :func:`torch.nn.functional.upsample_nearest`."""
    _is_deprecated("upsample_nearest")
    return interpolate(input, size, scale_factor, mode="nearest")


@overridable
def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """a(x) = Σ_y P(x, y) z(y) ⇒ ∂C/∂z(y) = Σ_x P(x, y) ∂C/∂a(x). Kept: nothing. :func:`interpolate`, as
    :func:`torch.nn.functional.upsample_bilinear`."""
    _is_deprecated("upsample_bilinear")
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


def _is_deprecated(name: str) -> None:
    warnings.warn(f"`nn.functional.{name}` is deprecated. Use `nn.functional.interpolate` instead.", stacklevel=4)


@overridable
def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """a_c(x) = Σ_y Π_d w(u_d, y_d) z_c(y) ⇒ ∂C/∂z_c(y) = Σ_x Π_d w(u_d, y_d) ∂C/∂a_c(x), and ∂C/∂x with w' for one
    of the w. Kept: z, x. By :class:`~torch_manualbp.rules.GridSample`; as :func:`torch.nn.functional.grid_sample`."""
    fits = isinstance(input, Tensor) and isinstance(grid, Tensor) and input.dtype == grid.dtype
    fits = fits and input.dim() == grid.dim() and grid.dim() in (4, 5) and input.is_floating_point()
    fits = fits and input.shape[0] == grid.shape[0] and grid.shape[-1] == input.dim() - 2
    if not fits or 0 in input.shape[1:] or align_corners is None or (mode == "bicubic" and input.dim() == 5):
        return torch_functional.grid_sample(input, grid, mode, padding_mode, align_corners)  # which says what is wrong
    if mode not in ("bilinear", "nearest", "bicubic") or padding_mode not in ("zeros", "border", "reflection"):
        return torch_functional.grid_sample(input, grid, mode, padding_mode, align_corners)
    return in_full_precision(rules.GridSample, input, grid, mode, padding_mode, align_corners)


@overridable
def affine_grid(theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
    """x_i(y) = Σ_j θ_ij y_j + θ_i,n+1 ⇒ ∂C/∂θ_ij = Σ_y ∂C/∂x_i(y) y_j. Kept: nothing. By
    :class:`~torch_manualbp.rules.AffineGrid`; as :func:`torch.nn.functional.affine_grid`."""
    size = tuple(size)
    n = len(size) - 2
    fits = isinstance(theta, Tensor) and theta.is_floating_point() and n in (2, 3) and align_corners is not None
    fits = fits and theta.shape == (size[0], n, n + 1) and min(size) > 0 and not (align_corners and 1 in size[2:])
    if not fits:
        return torch_functional.affine_grid(theta, list(size), align_corners)  # which warns, or says what is wrong
    return run(rules.AffineGrid, theta, size, align_corners)


@overridable
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """a_c(r y + i, r x + j) = z_{c r² + i r + j}(y, x), with :class:`~torch_manualbp.rules.PixelShuffle`; as
    :func:`torch.nn.functional.pixel_shuffle`."""
    return run(rules.PixelShuffle, input, upscale_factor)


@overridable
def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """a_{c r² + i r + j}(y, x) = z_c(r y + i, r x + j), with :class:`~torch_manualbp.rules.PixelUnshuffle`; as
    :func:`torch.nn.functional.pixel_unshuffle`."""
    return run(rules.PixelUnshuffle, input, downscale_factor)


@overridable
def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """a_{c g + i} = z_{i n / g + c}, with :class:`~torch_manualbp.rules.ChannelShuffle`; as
    :func:`torch.nn.functional.channel_shuffle`."""
    if input.dim() < 3 or not isinstance(groups, int) or groups < 1 or input.shape[1] % groups:
        return torch_functional.channel_shuffle(input, groups)  # which says what is wrong
    return run(rules.ChannelShuffle, input, groups)


@overridable
def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """a_cu(x) = z_c(s x + d u − p), with :class:`~torch_manualbp.rules.Unfold`; as
    :func:`torch.nn.functional.unfold`."""
    numbers = sizes(2, kernel_size, dilation, padding, stride)
    if numbers is None:
        return torch_functional.unfold(input, kernel_size, dilation, padding, stride)  # which says what is wrong
    return run(rules.Unfold, input, *numbers)


@overridable
def fold(
    input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """a_c(y) = Σ z_cu(x) over s x + d u − p = y, with :class:`~torch_manualbp.rules.Fold`; as
    :func:`torch.nn.functional.fold`."""
    numbers = sizes(2, output_size, kernel_size, dilation, padding, stride)
    if numbers is None:
        return torch_functional.fold(input, output_size, kernel_size, dilation, padding, stride)
    return run(rules.Fold, input, *numbers)
