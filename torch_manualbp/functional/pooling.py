"""The poolings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp._torch import is_autocast_enabled
from torch_manualbp.functional.call import in_full_precision, in_full_precision_on_cpu, overridable, run, run_whole
from torch_manualbp.functional.windows import sizes
from torch_manualbp.rules.norm.normalized import is_low

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]


@overridable
def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """a(x) = Σ_u z(s x + u − p) / n along one dimension, with :class:`~torch_manualbp.rules.AvgPool`; as
    :func:`torch.nn.functional.avg_pool1d`."""
    of_torch = torch_functional.avg_pool1d
    return _averaged(of_torch, 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


@overridable
def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """a(x) = Σ_u z(s x + u − p) / n along two dimensions, with :class:`~torch_manualbp.rules.AvgPool`; as
    :func:`torch.nn.functional.avg_pool2d`."""
    of_torch = torch_functional.avg_pool2d
    return _averaged(of_torch, 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@overridable
def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """a(x) = Σ_u z(s x + u − p) / n along three dimensions, with :class:`~torch_manualbp.rules.AvgPool`; as
    :func:`torch.nn.functional.avg_pool3d`."""
    of_torch = torch_functional.avg_pool3d
    return _averaged(of_torch, 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@overridable
def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """a(x) = max_u z(s x + d u − p) along one dimension, with :class:`~torch_manualbp.rules.MaxPool`; as
    :func:`torch.nn.functional.max_pool1d`."""
    of_torch = torch_functional.max_pool1d
    return _largest(of_torch, 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@overridable
def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """a(x) and where it was, with :class:`~torch_manualbp.rules.MaxPool`; as
    :func:`torch.nn.functional.max_pool1d_with_indices`."""
    of_torch = torch_functional.max_pool1d_with_indices
    return _largest(of_torch, 1, input, kernel_size, stride, padding, dilation, ceil_mode, True)


@overridable
def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """a(x) = max_u z(s x + d u − p) along two dimensions, with :class:`~torch_manualbp.rules.MaxPool`; as
    :func:`torch.nn.functional.max_pool2d`."""
    of_torch = torch_functional.max_pool2d
    return _largest(of_torch, 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@overridable
def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """a(x) and where it was, with :class:`~torch_manualbp.rules.MaxPool`; as
    :func:`torch.nn.functional.max_pool2d_with_indices`."""
    of_torch = torch_functional.max_pool2d_with_indices
    return _largest(of_torch, 2, input, kernel_size, stride, padding, dilation, ceil_mode, True)


@overridable
def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """a(x) = max_u z(s x + d u − p) along three dimensions, with :class:`~torch_manualbp.rules.MaxPool`; as
    :func:`torch.nn.functional.max_pool3d`."""
    of_torch = torch_functional.max_pool3d
    return _largest(of_torch, 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@overridable
def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """a(x) and where it was, with :class:`~torch_manualbp.rules.MaxPool`; as
    :func:`torch.nn.functional.max_pool3d_with_indices`."""
    of_torch = torch_functional.max_pool3d_with_indices
    return _largest(of_torch, 3, input, kernel_size, stride, padding, dilation, ceil_mode, True)


@overridable
def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest entry of each of so many windows along one dimension, with
    :class:`~torch_manualbp.rules.AdaptiveMaxPool`; as :func:`torch.nn.functional.adaptive_max_pool1d`."""
    of_torch = torch_functional.adaptive_max_pool1d_with_indices
    a, i = _evenly(of_torch, 1, rules.AdaptiveMaxPool, input, output_size, not return_indices)
    return (a, i) if return_indices else a


@overridable
def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """The same and where it was, with :class:`~torch_manualbp.rules.AdaptiveMaxPool`; as
    :func:`torch.nn.functional.adaptive_max_pool1d_with_indices`."""
    of_torch = torch_functional.adaptive_max_pool1d_with_indices
    pair: tuple[Tensor, Tensor] = _evenly(of_torch, 1, rules.AdaptiveMaxPool, input, output_size, False)
    return pair


@overridable
def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest entry of each of so many windows along two dimensions, with
    :class:`~torch_manualbp.rules.AdaptiveMaxPool`; as :func:`torch.nn.functional.adaptive_max_pool2d`."""
    of_torch = torch_functional.adaptive_max_pool2d_with_indices
    a, i = _evenly(of_torch, 2, rules.AdaptiveMaxPool, input, output_size, not return_indices)
    return (a, i) if return_indices else a


@overridable
def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """The same and where it was, with :class:`~torch_manualbp.rules.AdaptiveMaxPool`; as
    :func:`torch.nn.functional.adaptive_max_pool2d_with_indices`."""
    of_torch = torch_functional.adaptive_max_pool2d_with_indices
    pair: tuple[Tensor, Tensor] = _evenly(of_torch, 2, rules.AdaptiveMaxPool, input, output_size, False)
    return pair


@overridable
def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest entry of each of so many windows along three dimensions, with
    :class:`~torch_manualbp.rules.AdaptiveMaxPool`; as :func:`torch.nn.functional.adaptive_max_pool3d`."""
    of_torch = torch_functional.adaptive_max_pool3d_with_indices
    a, i = _evenly(of_torch, 3, rules.AdaptiveMaxPool, input, output_size, not return_indices)
    return (a, i) if return_indices else a


@overridable
def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """The same and where it was, with :class:`~torch_manualbp.rules.AdaptiveMaxPool`; as
    :func:`torch.nn.functional.adaptive_max_pool3d_with_indices`."""
    of_torch = torch_functional.adaptive_max_pool3d_with_indices
    pair: tuple[Tensor, Tensor] = _evenly(of_torch, 3, rules.AdaptiveMaxPool, input, output_size, False)
    return pair


@overridable
def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The mean of each of so many windows along one dimension, with
    :class:`~torch_manualbp.rules.AdaptiveAvgPool`; as :func:`torch.nn.functional.adaptive_avg_pool1d`."""
    a: Tensor = _evenly(torch_functional.adaptive_avg_pool1d, 1, rules.AdaptiveAvgPool, input, output_size)
    return a


@overridable
def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The mean of each of so many windows along two dimensions, with
    :class:`~torch_manualbp.rules.AdaptiveAvgPool`; as :func:`torch.nn.functional.adaptive_avg_pool2d`."""
    a: Tensor = _evenly(torch_functional.adaptive_avg_pool2d, 2, rules.AdaptiveAvgPool, input, output_size)
    return a


@overridable
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The mean of each of so many windows along three dimensions, with
    :class:`~torch_manualbp.rules.AdaptiveAvgPool`; as :func:`torch.nn.functional.adaptive_avg_pool3d`."""
    a: Tensor = _evenly(torch_functional.adaptive_avg_pool3d, 3, rules.AdaptiveAvgPool, input, output_size)
    return a


@overridable
def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """The largest entry of each of so many windows along two dimensions, at random distances, with
    :class:`~torch_manualbp.rules.FractionalMaxPool`; as :func:`torch.nn.functional.fractional_max_pool2d`, and with
    its random numbers."""
    given = input, kernel_size, output_size, output_ratio, _random_samples
    a, i = _at_random(torch_functional.fractional_max_pool2d_with_indices, 2, *given, not return_indices)
    return (a, i) if return_indices else a


@overridable
def fractional_max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same and where it was, with :class:`~torch_manualbp.rules.FractionalMaxPool`; as
    :func:`torch.nn.functional.fractional_max_pool2d_with_indices`."""
    given = input, kernel_size, output_size, output_ratio, _random_samples
    return _at_random(torch_functional.fractional_max_pool2d_with_indices, 2, *given, False)


@overridable
def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """The largest entry of each of so many windows along three dimensions, at random distances, with
    :class:`~torch_manualbp.rules.FractionalMaxPool`; as :func:`torch.nn.functional.fractional_max_pool3d`, and with
    its random numbers."""
    given = input, kernel_size, output_size, output_ratio, _random_samples
    a, i = _at_random(torch_functional.fractional_max_pool3d_with_indices, 3, *given, not return_indices)
    return (a, i) if return_indices else a


@overridable
def fractional_max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same and where it was, with :class:`~torch_manualbp.rules.FractionalMaxPool`; as
    :func:`torch.nn.functional.fractional_max_pool3d_with_indices`."""
    given = input, kernel_size, output_size, output_ratio, _random_samples
    return _at_random(torch_functional.fractional_max_pool3d_with_indices, 3, *given, False)


@overridable
def lp_pool1d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """a(x) = (Σ_u z(s x + u)^p)^(1/p) along one dimension, with :class:`~torch_manualbp.rules.LPPool`; as
    :func:`torch.nn.functional.lp_pool1d`. Of p = ±∞ it is the largest or smallest |z|."""
    return _normed(torch_functional.lp_pool1d, 1, input, norm_type, kernel_size, stride, ceil_mode)


@overridable
def lp_pool2d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """a(x) = (Σ_u z(s x + u)^p)^(1/p) along two dimensions, with :class:`~torch_manualbp.rules.LPPool`; as
    :func:`torch.nn.functional.lp_pool2d`. Of p = ±∞ it is the largest or smallest |z|."""
    return _normed(torch_functional.lp_pool2d, 2, input, norm_type, kernel_size, stride, ceil_mode)


@overridable
def lp_pool3d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
    """a(x) = (Σ_u z(s x + u)^p)^(1/p) along three dimensions, with :class:`~torch_manualbp.rules.LPPool`; as
    :func:`torch.nn.functional.lp_pool3d`. Of p = ±∞ it is the largest or smallest |z|."""
    return _normed(torch_functional.lp_pool3d, 3, input, norm_type, kernel_size, stride, ceil_mode)


@overridable
def max_unpool1d(
    input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:
    """a(i(x)) = z(x) along one dimension, with :class:`~torch_manualbp.rules.MaxUnpool`; as
    :func:`torch.nn.functional.max_unpool1d`."""
    of_torch = torch_functional.max_unpool1d
    return _unpooled(of_torch, 1, input, indices, kernel_size, stride, padding, output_size)


@overridable
def max_unpool2d(
    input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:
    """a(i(x)) = z(x) along two dimensions, with :class:`~torch_manualbp.rules.MaxUnpool`; as
    :func:`torch.nn.functional.max_unpool2d`."""
    of_torch = torch_functional.max_unpool2d
    return _unpooled(of_torch, 2, input, indices, kernel_size, stride, padding, output_size)


@overridable
def max_unpool3d(
    input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:
    """a(i(x)) = z(x) along three dimensions, with :class:`~torch_manualbp.rules.MaxUnpool`; as
    :func:`torch.nn.functional.max_unpool3d`."""
    of_torch = torch_functional.max_unpool3d
    return _unpooled(of_torch, 3, input, indices, kernel_size, stride, padding, output_size)


def _largest(
    of_torch: Callable[..., Any],
    n: int,
    z: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    stride = kernel_size if _is_left_away(stride) else stride
    numbers = sizes(n, kernel_size, stride, padding, dilation)
    is_usual = isinstance(z, Tensor) and z.dim() in (n + 1, n + 2) and 0 not in z.shape[-n - 1 :]
    if not is_usual or numbers is None or not all(map(_takes_a_window, z.shape[-n:], *numbers)):
        return of_torch(z, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # says what is wrong
    call = in_full_precision_on_cpu if n == 3 else run_whole
    a, i = call(rules.MaxPool, z, *numbers, bool(ceil_mode), not return_indices)
    return (a, i) if return_indices else a


def _takes_a_window(m: int, k: int, s: int, p: int, d: int) -> bool:
    """Whether a window of size k fits into a dimension of size m, with stride, padding and dilation as torch takes."""
    return k > 0 and s > 0 and d > 0 and m + 2 * p > d * (k - 1)


def _evenly(of_torch: Callable[..., Any], n: int, rule: Any, z: Tensor, output_size: Any, *options: bool) -> Any:
    numbers = None
    if isinstance(z, Tensor) and z.dim() in (n + 1, n + 2):
        given = (output_size,) * n if isinstance(output_size, int) else tuple(output_size)
        if len(given) == n:
            numbers = sizes(n, [s if m is None else m for m, s in zip(given, z.shape[-n:], strict=True)])
    # A DTensor, which has to_local, is not gathered by the places that a mean's gradient is taken from.
    if numbers is None or (hasattr(z, "to_local") and rule is rules.AdaptiveAvgPool):
        return of_torch(z, output_size)  # which says what is wrong
    return (in_full_precision_on_cpu if n == 3 else run_whole)(rule, z, *numbers, *options)


def _at_random(
    of_torch: Callable[..., tuple[Tensor, Tensor]],
    n: int,
    z: Tensor,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    r: Tensor | None,
    narrow: bool,
) -> tuple[Tensor, Tensor]:
    numbers = None
    if isinstance(z, Tensor) and z.dim() in (n + 1, n + 2):
        if output_size is None and isinstance(output_ratio, (tuple, list)) and len(output_ratio) == n:
            output_size = [int(m * ratio) for m, ratio in zip(z.shape[-n:], output_ratio, strict=True)]
        numbers = sizes(n, kernel_size, output_size)
    if numbers is None:
        return of_torch(z, kernel_size, output_size, output_ratio, True, r)  # says what is wrong
    if r is None:
        r = torch.rand(1 if z.dim() == n + 1 else z.size(0), z.size(-n - 1), n, dtype=z.dtype, device=z.device)
    pair: tuple[Tensor, Tensor] = in_full_precision_on_cpu(rules.FractionalMaxPool, z, *numbers, narrow, r)
    return pair


def _normed(
    of_torch: Callable[..., Tensor],
    n: int,
    z: Tensor,
    p: float,
    kernel_size: Any,
    stride: Any,
    ceil_mode: bool,
) -> Tensor:
    numbers = sizes(n, kernel_size, kernel_size if _is_left_away(stride) else stride)
    is_usual = isinstance(z, Tensor) and z.dim() in (n + 1, n + 2) and isinstance(p, (int, float)) and p != 0
    if numbers is None or not is_usual or (n == 3 and _means_are_refused(z)):
        return of_torch(z, p, kernel_size, stride, ceil_mode)  # says what is wrong
    if math.isinf(p):
        largest: Any = (max_pool1d, max_pool2d, max_pool3d)[n - 1]
        size = run(rules.Abs, z)
        if p > 0:
            return largest(size, *numbers, 0, 1, ceil_mode)
        return run(rules.Negate, largest(run(rules.Negate, size), *numbers, 0, 1, ceil_mode))
    # where autocast takes powers, or the means of volumes, in float32
    call = in_full_precision if n == 3 or z.is_cuda else run
    return call(rules.LPPool, z, p, *numbers, bool(ceil_mode))


def _unpooled(
    of_torch: Callable[..., Tensor],
    n: int,
    z: Tensor,
    i: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
) -> Tensor:
    numbers = sizes(n, kernel_size, kernel_size if _is_left_away(stride) else stride, padding)
    if numbers is None or not isinstance(z, Tensor) or z.dim() not in (n + 1, n + 2):
        return of_torch(z, i, kernel_size, stride, padding, output_size)  # which says what is wrong
    size = None if output_size is None else tuple(output_size)
    a: Tensor = in_full_precision_on_cpu(rules.MaxUnpool, z, i, *numbers, size)
    return a


def _averaged(
    of_torch: Callable[..., Tensor],
    n: int,
    z: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    *divisor: int | None,
) -> Tensor:
    stride = kernel_size if _is_left_away(stride) else stride
    numbers = sizes(n, kernel_size, stride, padding)
    if numbers is None or not isinstance(z, Tensor) or z.dim() not in (n + 1, n + 2):
        return of_torch(z, kernel_size, stride, padding, ceil_mode, count_include_pad, *divisor)  # says what is wrong
    options = (bool(ceil_mode), bool(count_include_pad), *(divisor or (None,)))
    return (in_full_precision_on_cpu if n == 3 else run)(rules.AvgPool, z, *numbers, *options)


def _means_are_refused(z: Tensor) -> bool:
    """Whether torch has no means of volumes in this dtype."""
    return is_low(z) and z.device.type == "cpu" and not is_autocast_enabled()


def _is_left_away(stride: Any) -> bool:
    return stride is None or (isinstance(stride, (tuple, list)) and not stride)
