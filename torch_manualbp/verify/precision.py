"""The digits that a target has: float32 inside, whatever it is given, or in a kernel that nobody sees into."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import TorchDispatchMode

__all__ = ["POINTS", "SPACING", "WIDE", "Widening", "around", "eps_of", "noise_of", "widened"]

SPACING = 2.0**-22
"""Between the points at which noise is measured, relatively: a smooth function has no fourth differences left there."""

POINTS = 5

VANISHING = 1e-6
"""Next to the largest number of all: what is smaller may be all rounding, such as the gradient of a bias in front of a
batch norm."""

WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}

MAKES = {"zeros", "ones", "empty", "full", "arange", "linspace", "scalar_tensor"}
"""Operations that make tensors without being given any."""

_local = threading.local()


class Widening(TorchDispatchMode):
    """In here what is computed of float64 stays in float64: a cast to float32, as every norm of a language model has
    it, does nothing, so that such code can be held to all digits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        """How many casts there were."""
        self.made = 0
        """How many of truth values or integers to float32 there were."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wide = WIDE.get(kwargs.get("dtype"))
        if wide is not None and (_has(args, wide) or func.overloadpacket.__name__ in MAKES):
            self.count += _has(args, wide)
            kwargs = {**kwargs, "dtype": wide}
        elif wide is not None and _has_no_numbers(args):
            self.made += 1
            kwargs = {**kwargs, "dtype": wide}
        return func(*args, **kwargs)


def _has(args: Sequence[Any], dtype: torch.dtype) -> bool:
    return any(isinstance(t, Tensor) and t.dtype in (dtype, torch.float64) for t in args)


def _has_no_numbers(args: Sequence[Any]) -> bool:
    tensors = [t for t in args if isinstance(t, Tensor)]
    return bool(tensors) and not any(t.is_floating_point() or t.is_complex() for t in tensors)


@contextlib.contextmanager
def widened(active: bool) -> Iterator[None]:
    """Forwards and backwards in float64 are widened, if they are to be, wherever :func:`around` stands."""
    before = getattr(_local, "active", False)
    _local.active = active
    try:
        yield
    finally:
        _local.active = before


def around(dtype: torch.dtype) -> Any:
    """The mode in which a forward or a backward of numbers in a dtype runs."""
    if getattr(_local, "active", False) and dtype in (torch.float64, torch.complex128):
        return Widening()
    return contextlib.nullcontext()


def noise_of(values: Sequence[Sequence[Tensor]]) -> float:
    """The rounding error of tensors, relative to their largest entries, from their values at :data:`POINTS` points.

    ::

        σ² = Σ (Δ⁴ f)² / 70 n

    where Δ⁴ is the fourth difference of neighbouring points, of which rounding alone is left (Moré, Wild 2011, SIAM
    Journal on Scientific Computing 33). Some entries may cross a kink; the third quartile of all is taken.
    """
    worst = 0.0
    most = max((t.abs().nan_to_num(0, 0, 0).max().item() for t in values[0] if t.numel()), default=0.0)
    for tensor in zip(*values, strict=True):
        if not tensor[0].numel():
            continue
        wide = [torch.view_as_real(t).double() if t.is_complex() else t.double() for t in tensor]
        fourth = sum(c * t for c, t in zip((1, -4, 6, -4, 1), wide, strict=True))
        size = max(t.abs().nan_to_num(0, 0, 0).max().item() for t in wide)
        if size > VANISHING * most and isinstance(fourth, Tensor):
            noise = fourth.abs().flatten().nan_to_num(0, 0, 0).sort().values
            worst = max(worst, noise[(3 * len(noise)) // 4 if len(noise) > 3 else -1].item() / 70**0.5 / size)
    return worst


def eps_of(noise: float) -> float:
    """The ε of the dtype that has this noise."""
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        eps = torch.finfo(dtype).eps
        if noise <= eps * (2048 if dtype == torch.float64 else 4):
            return eps
    return max(noise, torch.finfo(torch.bfloat16).eps)
