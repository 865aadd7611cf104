"""The convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_low_precision, overridable, run
from torch_manualbp.functional.windows import sizes

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


@overridable
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """z_o(x) = Σ_c Σ_u W_oc(u) a_c(s x + d u − p) + b_o along one dimension, with
    :class:`~torch_manualbp.rules.Convolution`; as :func:`torch.nn.functional.conv1d`."""
    return _convolved(torch_functional.conv1d, 1, input, weight, bias, stride, padding, dilation, groups)


@overridable
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """z_o(x) = Σ_c Σ_u W_oc(u) a_c(s x + d u − p) + b_o along two dimensions, with
    :class:`~torch_manualbp.rules.Convolution`; as :func:`torch.nn.functional.conv2d`."""
    return _convolved(torch_functional.conv2d, 2, input, weight, bias, stride, padding, dilation, groups)


@overridable
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """z_o(x) = Σ_c Σ_u W_oc(u) a_c(s x + d u − p) + b_o along three dimensions, with
    :class:`~torch_manualbp.rules.Convolution`; as :func:`torch.nn.functional.conv3d`."""
    return _convolved(torch_functional.conv3d, 3, input, weight, bias, stride, padding, dilation, groups)


@overridable
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """z_o(s x + d u − p) gets Σ_c W_co(u) a_c(x) of every x and u, along one dimension, with
    :class:`~torch_manualbp.rules.TransposedConvolution`; as :func:`torch.nn.functional.conv_transpose1d`."""
    return _transposed(
        torch_functional.conv_transpose1d, 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@overridable
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """z_o(s x + d u − p) gets Σ_c W_co(u) a_c(x) of every x and u, along two dimensions, with
    :class:`~torch_manualbp.rules.TransposedConvolution`; as :func:`torch.nn.functional.conv_transpose2d`."""
    return _transposed(
        torch_functional.conv_transpose2d, 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@overridable
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """z_o(s x + d u − p) gets Σ_c W_co(u) a_c(x) of every x and u, along three dimensions, with
    :class:`~torch_manualbp.rules.TransposedConvolution`; as :func:`torch.nn.functional.conv_transpose3d`."""
    return _transposed(
        torch_functional.conv_transpose3d, 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _convolved(
    of_torch: Callable[..., Tensor],
    n: int,
    a: Tensor,
    W: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    numbers = sizes(n, stride, dilation)
    is_usual = _is_usual(n, a, W)
    if is_usual and numbers is not None and padding in ("same", "valid"):
        strides, dilations = numbers
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, W.shape[2:], strict=True)]
        if padding == "valid" or all(s == 1 for s in strides):
            if any(t % 2 for t in total):  # the odd one goes behind
                a = run(rules.Pad, a, tuple(p for t in reversed(total) for p in (0, t % 2)), 0.0)
            padding = tuple(t // 2 for t in total)
    padded = sizes(n, padding)
    if not is_usual or numbers is None or padded is None:
        return of_torch(a, W, b, stride, padding, dilation, groups)  # which says what is wrong, and takes DTensors
    strides, dilations = numbers
    return in_low_precision(rules.Convolution, a, W, b, strides, padded[0], dilations, groups)


def _transposed(
    of_torch: Callable[..., Tensor],
    n: int,
    a: Tensor,
    W: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Tensor:
    numbers = sizes(n, stride, padding, output_padding, dilation)
    is_usual = _is_usual(n, a, W)
    if not is_usual or numbers is None:
        return of_torch(a, W, b, stride, padding, output_padding, groups, dilation)  # the same
    *before, dilations = numbers
    return in_low_precision(rules.TransposedConvolution, a, W, b, *before, groups, dilations)


def _is_usual(n: int, a: Any, W: Any) -> bool:
    """Whether these are tensors of the right number of dimensions, and no DTensors (which have ``to_local``): torch
    splits its own convolution over samples, and not ∂C/∂W, a convolution in which samples and channels change places.
    """
    if not (isinstance(a, Tensor) and isinstance(W, Tensor)) or hasattr(a, "to_local") or hasattr(W, "to_local"):
        return False
    return W.dim() == n + 2 and a.dim() in (n + 1, n + 2)
