"""Which kernel multiplies matrices in a step that is recorded.

torch hands float32 products on an x86 processor to MKL, which gives AVX-512 to Intel's processors alone. oneDNN, which
torch brings along and which ``torch.compile`` takes for frozen weights, gives it to all. On two cores of an AMD EPYC
(Zen 5) products of 64 and of 512 samples with a 1024×4096 matrix take less than half as long; up to about 2²¹
multiplications they take longer, since the call does.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp._torch import onednn_linear, uses_mkldnn
from torch_manualbp.kernels.dispatch import for_steps, is_watched, plain
from torch_manualbp.rules.linear import Linear, linear_input_gradient, linear_weight_gradient, samples_as_rows
from torch_manualbp.rules.recording import recorder

__all__ = [
    "is_faster_in_onednn",
    "onednn_linear",
    "times_transposed",
    "use_onednn",
    "uses_onednn",
]

LARGE_PRODUCT = 1 << 22
"""Multiplications from which on oneDNN's product is the faster one."""

WIDE, SAMPLES, FEW_SAMPLES = 256, 8, 128
"""How wide a has to be for δᵀ a to outweigh that oneDNN wants δ transposed (2048×64 by 64 takes 1.6 times as long as by
MKL, 512×100 by 1000 1.3 times), and how many samples there have to be to outweigh that it adds to nothing (a single one
takes four times as long). Where there are more samples than a few, δ may be no wider than a: 768×512 by 128 takes 1.2
times as long as by MKL, 3200×1024 by 256 1.1 to 1.35 times, 1024×384 by 1536 0.94."""

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
    if onednn_linear is None or not uses_mkldnn():
        return False
    return _is_left_out_by_mkl() if _uses_onednn is None else _uses_onednn


COLUMNS = 1 << 20
"""Multiplications of a product from which on it is faster with samples as columns: on two cores with MKL, 64×1024 times
1024×4096 takes 3.5 ms for 5.5, and up to a tenth less at larger sizes."""


@for_steps(Linear.forward)
def linear(a: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """z by the fastest kernel for its size: by BLAS also with its numbers in the order of zᵀ = W aᵀ + b, a column for
    each sample."""
    if W.dim() != 2 or a.dim() < 2 or (b is not None and b.shape != W.shape[:1]):
        return plain(Linear.forward)(a, W, b)
    rows = samples_as_rows(a)
    bias = () if b is None else (b,)
    if is_faster_in_onednn(rows.shape[0] * W.numel(), rows, W, *bias):
        z = onednn_linear(rows, W, b, "none", [], "")
    elif _is_faster_in_columns(rows, W):
        column = None if b is None else b.unsqueeze(1)
        z = (torch.mm(W, rows.t()) if column is None else torch.addmm(column, W, rows.t())).t()
    else:
        z = F.linear(rows, W, b)
    return z if a.dim() == 2 else z.reshape(*a.shape[:-1], W.shape[0])


@for_steps(linear_input_gradient)
def input_gradient(delta: Tensor, W: Tensor, like: Tensor | None = None) -> Tensor:
    """δ W, its numbers in the order of ``like``, which may have samples as columns."""
    if W.dim() == 2 and delta.dim() > 2:
        rows = None if like is None else samples_as_rows(like)
        return input_gradient(samples_as_rows(delta), W, rows).reshape(*delta.shape[:-1], W.shape[1])
    if W.dim() == 2 and not W.is_complex():
        if _is_in_columns(like):
            return torch.mm(W.t(), delta.t()).t()
        if delta.dim() == 2 and is_faster_in_onednn(delta.shape[0] * W.numel(), delta, W):
            return onednn_linear(delta, W.t(), None, "none", [], "")
    return plain(linear_input_gradient)(delta, W, like)


@for_steps(linear_weight_gradient)
def weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    """δᵀ a."""
    rows, a_rows = samples_as_rows(delta), samples_as_rows(a)
    if _outweighs_transposing(rows, a_rows) and is_faster_in_onednn(rows.numel() * a_rows.shape[1], rows, a_rows):
        return onednn_linear(rows.t(), a_rows.t(), None, "none", [], "")
    return plain(linear_weight_gradient)(delta, a)


def is_faster_in_onednn(multiplications: int, *factors: Tensor) -> bool:
    """Whether the product of these matrices, and a bias, is to be oneDNN's in a step.

    torch hands it their memory as it lies: a bias with gaps gets others' numbers, and rows that overlap are refused.
    """
    if multiplications < LARGE_PRODUCT or not uses_onednn():
        return False
    is_dense = all(t.is_contiguous() or (t.dim() == 2 and t.t().is_contiguous()) for t in factors)
    return is_dense and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in factors)


def _is_faster_in_columns(rows: Tensor, W: Tensor) -> bool:
    tape = recorder()
    if rows.shape[0] * W.numel() < COLUMNS or tape is None or tape.how != "lean" or rows.device.type != "cpu":
        return False
    return not (rows.dtype == torch.float32 and uses_onednn())  # which has it no faster, and layers would differ


def _is_in_columns(t: Tensor | None) -> bool:
    """Whether the samples are columns."""
    return t is not None and t.dim() == 2 and t.stride(0) == 1 and t.stride(1) >= t.shape[0] > 1


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ of two matrices, without a gradient, by the kernel that is faster."""
    is_large = a.shape[0] * a.shape[1] * b.shape[0] >= LARGE_PRODUCT and uses_onednn()
    if is_large and not is_watched((a, b)) and all(t.dtype == torch.float32 and t.is_contiguous() for t in (a, b)):
        return onednn_linear(a, b, None, "none", [], "")
    return a @ b.T


def _outweighs_transposing(delta: Tensor, a: Tensor) -> bool:
    """Whether the product δᵀ a is worth a transposed δ and a ∂C/∂W of its own: δ (samples, out), a (samples, in)."""
    samples, wide = a.shape
    return wide >= WIDE and samples >= SAMPLES and (samples <= FEW_SAMPLES or delta.shape[1] <= wide)


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
