"""The activations, their torch twins and sample inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.activation import (
    CELU,
    ELU,
    GELU,
    GLU,
    SELU,
    GELUTanh,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Mish,
    PReLU,
    ReLU,
    ReLU6,
    RReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softmin,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Threshold,
)
from torch_manualbp.rules.rule import widened

__all__ = ["ACTIVATIONS", "OVERFLOWS"]


OVERFLOWS = (
    "torch multiplies the upstream gradient by a factor above 1 before one below 1; the largest numbers overflow there"
)
INFINITE_BY_ZERO = "torch's formula is NaN, ∞ · 0, where z is infinite; ours is the limit"
SUBTRACTS_INFINITIES = "torch's composite is NaN, ∞ − ∞, where z or the upstream is infinite; ours is the limit"


def _special_values(reason: str, *dtypes: str) -> dict[str, str]:
    return {f"special values, {dtype}": reason for dtype in dtypes}


def _elementwise(*options: Any, also: tuple[Any, ...] | None = None) -> Callable[[Make], Iterator[Sample]]:
    """Any numbers in any shape; with ``also`` other options, too."""

    def samples(make: Make) -> Iterator[Sample]:
        yield Sample("matrix", (make(5, 4), *options))
        yield Sample("number", (make(), *options))
        yield Sample("four dimensions", (3 * make(2, 3, 2, 2), *options))
        yield Sample("empty batch", (make(0, 4), *options))
        if also is not None:
            yield Sample("other options", (2 * make(5, 4), *also))

    return samples


def _prelu_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(1)))
    yield Sample("slope of each channel", (make(5, 4), make(4)))
    yield Sample("images", (make(2, 3, 2, 2), make(3)))
    yield Sample("one sample", (make(4), make(1)))
    yield Sample("number", (make(), make()))
    yield Sample("empty batch", (make(0, 4), make(4)))


def _rrelu_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make.positive(5, 4)))
    yield Sample("number", (make(), make.positive()))
    yield Sample("empty batch", (make(0, 4), make.positive(0, 4)))


def _glu_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), -1))
    yield Sample("channels", (2 * make(2, 4, 3, 2), 1))
    yield Sample("one sample", (make(6), 0))
    yield Sample("empty batch", (make(0, 4), -1))


def _along_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), -1))
    yield Sample("columns", (2 * make(5, 4), 0))
    yield Sample("channels", (2 * make(2, 3, 2, 2), -3))
    yield Sample("one sample", (make(6), 0))
    yield Sample("number", (make(), 0))
    yield Sample("empty batch", (make(0, 4), -1))


def _hardsigmoid(z: Tensor) -> Tensor:
    """The gradient of torch's own function has 1/6 in float32 even for float64, and no second derivative."""
    return (F.relu6(widened(z) + 3) / 6).to(z.dtype)


def _hardswish(z: Tensor) -> Tensor:
    """The second derivative of torch's own function has 1/3 in float32 even for float64."""
    return z * F.relu6(z + 3) / 6


def _gelu_tanh(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def _gelu_tanh_by_sigmoid(z: Tensor) -> Tensor:
    """In float64, too, 1 + tanh is 0 where σ is not yet."""
    return z * torch.sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))


ACTIVATIONS: tuple[Operation, ...] = (
    Operation(
        CELU,
        F.celu,
        _elementwise(1.0, also=(0.5,)),
        functions="celu",
        layers="CELU",
        exempt=_special_values(OVERFLOWS, "float64", "float32", "bfloat16"),
    ),
    Operation(ELU, F.elu, _elementwise(1.0, also=(0.5,)), functions="elu", layers="ELU"),
    Operation(GELU, F.gelu, _elementwise(), functions="gelu", layers="GELU", cancels=True),
    Operation(
        GELUTanh,
        _gelu_tanh,
        _elementwise(),
        functions="gelu",
        layers="GELU",
        reference=_gelu_tanh_by_sigmoid,
        cancels=True,
        exempt={
            "infinities": INFINITE_BY_ZERO,
            **_special_values(INFINITE_BY_ZERO, "float64", "float32", "float16", "bfloat16"),
        },
    ),
    Operation(GLU, F.glu, _glu_samples, functions="glu", layers="GLU"),
    Operation(Hardshrink, F.hardshrink, _elementwise(0.5), functions="hardshrink", layers="Hardshrink"),
    Operation(
        Hardsigmoid,
        _hardsigmoid,
        _elementwise(),
        functions="hardsigmoid",
        layers="Hardsigmoid",
        exempt={
            "changes in place": "the twin keeps z + 3; torch's own function keeps z, as ours",
            "NaN, number": "the twin's minimum lets the gradient of one NaN pass; torch's own function has 0, as ours",
        },
    ),
    Operation(
        Hardswish,
        F.hardswish,
        _elementwise(),
        functions="hardswish",
        layers="Hardswish",
        twin_for_second=_hardswish,
    ),
    Operation(Hardtanh, F.hardtanh, _elementwise(-1.0, 1.0, also=(0.5, 2.5)), functions="hardtanh", layers="Hardtanh"),
    Operation(LeakyReLU, F.leaky_relu, _elementwise(0.01, also=(-0.5,)), functions="leaky_relu", layers="LeakyReLU"),
    Operation(LogSigmoid, F.logsigmoid, _elementwise(), functions="logsigmoid", layers="LogSigmoid"),
    Operation(
        LogSoftmax, torch.log_softmax, _along_samples, functions="log_softmax", layers="LogSoftmax", cancels=True
    ),
    Operation(Mish, F.mish, _elementwise(), functions="mish", layers="Mish", cancels=True),
    Operation(PReLU, torch.prelu, _prelu_samples, functions="prelu", layers="PReLU"),
    Operation(ReLU, torch.relu, _elementwise(), functions="relu", layers="ReLU"),
    Operation(ReLU6, F.relu6, _elementwise(), functions="relu6", layers="ReLU6"),
    Operation(RReLU, torch.mul, _rrelu_samples, functions="rrelu", layers="RReLU", constants=frozenset({1})),
    Operation(
        SELU,
        torch.selu,
        _elementwise(),
        functions="selu",
        layers="SELU",
        exempt=_special_values(OVERFLOWS, "float64", "float32", "bfloat16"),
    ),
    Operation(Sigmoid, torch.sigmoid, _elementwise(), functions="sigmoid", layers="Sigmoid", complex=True),
    Operation(SiLU, F.silu, _elementwise(), functions="silu", layers="SiLU", cancels=True),
    Operation(Softmax, torch.softmax, _along_samples, functions="softmax", layers="Softmax Softmax2d", cancels=True),
    Operation(Softmin, F.softmin, _along_samples, functions="softmin", layers="Softmin", cancels=True),
    Operation(
        Softplus,
        F.softplus,
        _elementwise(1.0, 20.0, also=(2.0, 1.5)),
        functions="softplus",
        layers="Softplus",
        exempt=_special_values(OVERFLOWS, "float64", "float32", "bfloat16"),
    ),
    Operation(Softshrink, F.softshrink, _elementwise(0.5), functions="softshrink", layers="Softshrink"),
    Operation(
        Softsign,
        F.softsign,
        _elementwise(),
        functions="softsign",
        layers="Softsign",
        exempt={
            "complex numbers": "|z| is no analytic function; functional.softsign leaves complex numbers to torch",
            "infinities": SUBTRACTS_INFINITIES,
            **_special_values(SUBTRACTS_INFINITIES, "float64", "float32", "float16", "bfloat16"),
        },
    ),
    Operation(Tanh, torch.tanh, _elementwise(), functions="tanh tanhshrink", layers="Tanh Tanhshrink", complex=True),
    Operation(Threshold, F.threshold, _elementwise(0.1, 0.2), functions="threshold", layers="Threshold"),
)
