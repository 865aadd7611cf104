"""How the numbers of images lie in memory."""

from __future__ import annotations

from torch import Tensor

__all__ = ["is_channels_last", "laid_out"]


def is_channels_last(t: Tensor) -> bool:
    """Whether the channels (N, n, *) of a place lie side by side. (``is_contiguous`` of such a form fails in vmap.)"""
    return t.dim() > 3 and t.stride(1) == 1 and t.stride(-1) >= t.shape[1] > 1


def laid_out(t: Tensor, channels_last: bool) -> Tensor:
    """The same numbers with the channels of a place, or the places of a channel, side by side."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()
