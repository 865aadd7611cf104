"""How the losses C_i of entries or samples become C, and what of ∂C is each one's share."""

from __future__ import annotations

from torch import Tensor

__all__ = ["reduced", "share_of_each"]


def reduced(C: Tensor, reduction: str) -> Tensor:
    """C of the C_i, for ``"none"``, ``"sum"`` and ``"mean"``."""
    if reduction == "none":
        return C
    return C.sum() if reduction == "sum" else C.mean()


def share_of_each(g: Tensor, reduction: str, n: int) -> Tensor:
    """∂C/∂C_i: g / n of a mean; and of the empty mean g, so that no derivative is the empty sum's 0 times 1 / 0."""
    return g / max(n, 1) if reduction == "mean" else g
