"""Which kernel multiplies matrices in a step that is written down.

torch hands float32 products on an x86 processor to MKL, which gives AVX-512 to Intel's processors alone. oneDNN, which
torch brings along and which ``torch.compile`` takes for frozen weights, gives it to all. On two cores of an AMD EPYC
(Zen 5) products of 64 and of 512 samples with a 1024×4096 matrix take less than half as long; up to about 2²¹
multiplications they take longer, since the call does.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.evaluate import is_written_down, records_nothing

__all__ = [
    "is_faster_in_onednn",
    "onednn_linear",
    "outweighs_transposing",
    "times_transposed",
    "use_onednn",
    "uses_onednn",
]

onednn_linear: Any = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None
"""``onednn_linear(a, W, b, "none", [], "")`` = a Wᵀ + b."""

LARGE_PRODUCT = 1 << 22
"""Multiplications from which on oneDNN's product is the faster one."""

WIDE, SAMPLES = 256, 8
"""How wide a has to be for δᵀ a to outweigh that oneDNN wants δ transposed (2048×64 by 64 takes 1.6 times as long as by
MKL, 512×100 by 1000 1.3 times), and how many samples there have to be to outweigh that it adds to nothing (a single one
takes four times as long)."""

_uses_onednn: bool | None = None


def use_onednn(enabled: bool | None = True) -> None:
    """Have the large float32 products of the steps that are derived from now on be oneDNN's, or MKL's.

    None, as it is at first, means oneDNN's on an x86 processor with AVX-512 that is not Intel's.

    Raises:
        RuntimeError: this torch has no oneDNN.
    """
    global _uses_onednn
    if enabled and onednn_linear is None:
        raise RuntimeError("this torch was built without oneDNN: leave its products to BLAS, use_onednn(False)")
    _uses_onednn = enabled


def uses_onednn() -> bool:
    """Whether large products are oneDNN's: what :func:`use_onednn` said, or what is faster on this processor."""
    if onednn_linear is None or not torch._C._get_mkldnn_enabled():
        return False
    return _is_left_out_by_mkl() if _uses_onednn is None else _uses_onednn


def is_faster_in_onednn(multiplications: int, *factors: Tensor) -> bool:
    """Whether the product of these matrices, and a bias, is to be oneDNN's in a step that is written down.

    torch hands it their memory as it lies: a bias with gaps gets others' numbers, and rows that overlap are refused.
    """
    if multiplications < LARGE_PRODUCT or not is_written_down() or not uses_onednn():
        return False
    is_dense = all(t.is_contiguous() or (t.dim() == 2 and t.t().is_contiguous()) for t in factors)
    return is_dense and all(t.dtype == torch.float32 for t in factors) and records_nothing(*map(Tensor.detach, factors))


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ of two matrices, without a gradient, by the kernel that is faster."""
    is_large = a.shape[0] * a.shape[1] * b.shape[0] >= LARGE_PRODUCT and uses_onednn()
    if is_large and records_nothing(a, b) and all(t.dtype == torch.float32 and t.is_contiguous() for t in (a, b)):
        return onednn_linear(a, b, None, "none", [], "")
    return a @ b.T


def outweighs_transposing(a: Tensor) -> bool:
    """Whether the product δᵀ a is worth a transposed δ and a ∂C/∂W of its own: a (samples, in)."""
    return a.shape[1] >= WIDE and a.shape[0] >= SAMPLES


@functools.cache
def _is_left_out_by_mkl() -> bool:
    if not torch.backends.mkl.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return "GenuineIntel" not in _processor()


def _processor() -> str:
    """What the processor says of itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "GenuineIntel")
