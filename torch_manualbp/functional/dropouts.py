"""Dropout, which draws torch's own random numbers: of one seed both let the same entries pass."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_place, overridable, run

__all__ = ["alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"]

ALPHA = 1.7580993408473766
"""Minus the limit of SELU at −∞."""


@overridable
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """a = r ⊙ z, r = 1 / (1 − p) or 0 at random, with :class:`~torch_manualbp.rules.Dropout`; as
    :func:`torch.nn.functional.dropout`."""
    if not 0 <= p <= 1:
        return torch_functional.dropout(input, p, training, inplace)  # says what is wrong
    return left_out(input, p, training, inplace)


@overridable
def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """a = r ⊙ z, one r for each channel of (samples, channels, length), with :class:`~torch_manualbp.rules.Dropout`;
    as :func:`torch.nn.functional.dropout1d`."""
    if not 0 <= p <= 1 or input.dim() != 3:
        torch_functional.dropout1d(_without_numbers(input), p, training=False)  # says what is wrong
    return _of_channels(input, p, training, inplace, is_one=input.dim() == 2)


@overridable
def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """a = r ⊙ z, one r for each channel of (samples, channels, height, width), with
    :class:`~torch_manualbp.rules.Dropout`; as :func:`torch.nn.functional.dropout2d`."""
    if not 0 <= p <= 1 or input.dim() != 4:
        torch_functional.dropout2d(_without_numbers(input), p, training=False)  # says what is wrong, and warns
    return left_out(input, p, training, inplace, channels=2)


@overridable
def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """a = r ⊙ z, one r for each channel of (samples, channels, depth, height, width), with
    :class:`~torch_manualbp.rules.Dropout`; as :func:`torch.nn.functional.dropout3d`."""
    if not 0 <= p <= 1 or input.dim() != 5:
        torch_functional.dropout3d(_without_numbers(input), p, training=False)  # says what is wrong, and warns
    return _of_channels(input, p, training, inplace, is_one=input.dim() == 4)


@overridable
def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """a = r ⊙ z + b, with :class:`~torch_manualbp.rules.AlphaDropout`; as :func:`torch.nn.functional.alpha_dropout`."""
    if not 0 <= p <= 1:
        return torch_functional.alpha_dropout(input, p, training, inplace)
    return left_out(input, p, training, inplace, keeps_variance=True)


@overridable
def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """a = r ⊙ z + b, one r and b for each channel, with :class:`~torch_manualbp.rules.AlphaDropout`; as
    :func:`torch.nn.functional.feature_alpha_dropout`."""
    if not 0 <= p <= 1:
        return torch_functional.feature_alpha_dropout(input, p, training, inplace)
    return left_out(input, p, training, inplace, channels=2, keeps_variance=True)


def left_out(
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    channels: int = 0,
    keeps_variance: bool = False,
) -> Tensor:
    """The input with entries left out, or the channels of its first dimensions, of which there are so many."""
    if p == 0 or not training or not input.numel():
        return input
    if p == 1:
        output = run(rules.Dropout, input, torch.zeros((), dtype=torch.bool, device=input.device), 1.0)
    else:
        passes = _drawn(input, p, channels, keeps_variance)
        if keeps_variance:
            output = run(rules.AlphaDropout, input, passes, *_numbers(p, input.dtype)[1:])
        else:
            output = run(rules.Dropout, input, passes, _numbers(p, input.dtype)[0])
    return in_place(input, output) if inplace else output


def _of_channels(input: Tensor, p: float, training: bool, inplace: bool, is_one: bool) -> Tensor:
    """Channels left out of one sample, which torch returns a view of where it leaves out none, or of several."""
    output = left_out(input, p, training, inplace, channels=1 if is_one else 2)
    return input.view_as(input) if is_one and output is input and not inplace else output


def _drawn(input: Tensor, p: float, channels: int, keeps_variance: bool) -> Tensor:
    """Which entries pass: the numbers that torch draws, which it lays out as the input is."""
    if channels:
        if input.dim() < channels:
            torch.feature_dropout(input, p, True)  # says what is wrong
        shape = *input.shape[:channels], *[1] * (input.dim() - channels)
        return input.new_empty(shape, dtype=torch.bool, requires_grad=False).bernoulli_(1 - p)
    if input.is_cuda and not keeps_variance:  # where torch has a kernel that draws in another order
        with torch.no_grad():
            return torch.native_dropout(input, p, True)[1]
    return torch.empty_like(input, dtype=torch.bool, requires_grad=False).bernoulli_(1 - p)


@functools.cache
def _numbers(p: float, dtype: torch.dtype) -> tuple[float, float, float, float]:
    """1 / (1 − p), and of the alpha dropout s, low and high, rounded as torch rounds them in this dtype."""
    alpha_s = ALPHA * (s := 1 / math.sqrt((ALPHA * ALPHA * p + 1) * (1 - p)))
    drawn = torch.tensor([1, 0], dtype=dtype, device="cpu")
    high, low = drawn.add(-1).mul_(alpha_s).add_(alpha_s * p).tolist()
    return drawn.div(1 - p)[0].item(), drawn.mul(s)[0].item(), low, high


def _without_numbers(input: Tensor) -> Tensor:
    return torch.empty(input.shape, device="meta")
