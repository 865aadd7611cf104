"""The activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp._torch import is_transformed
from torch_manualbp.functional.call import in_low_precision, in_place, overridable, overridable_rule, run, run_in_place
from torch_manualbp.rules.elementwise import zero
from torch_manualbp.rules.rule import Rule

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
]


@overridable
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """a = z where z > 0, else α (exp(z / α) − 1), with :class:`~torch_manualbp.rules.CELU`; as
    :func:`torch.nn.functional.celu`."""
    return run_in_place(rules.CELU, input, alpha) if inplace else run(rules.CELU, input, alpha)


@overridable
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """a = z where z > 0, else α (exp(z) − 1), with :class:`~torch_manualbp.rules.ELU`; as
    :func:`torch.nn.functional.elu`."""
    return run_in_place(rules.ELU, input, alpha) if inplace else run(rules.ELU, input, alpha)


@overridable
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """a = z Φ(z), with :class:`~torch_manualbp.rules.GELU` or, for ``approximate="tanh"``,
    :class:`~torch_manualbp.rules.GELUTanh`; as :func:`torch.nn.functional.gelu`."""
    if approximate not in ("none", "tanh"):
        return torch_functional.gelu(input, approximate=approximate)  # says what is wrong
    return run(rules.GELU if approximate == "none" else rules.GELUTanh, input)


@overridable
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a = u σ(v) of the halves u and v of z, with :class:`~torch_manualbp.rules.GLU`; as
    :func:`torch.nn.functional.glu`."""
    return run(rules.GLU, input, dim)


@overridable
def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """a = z where |z| > λ, else 0, with :class:`~torch_manualbp.rules.Hardshrink`; as
    :func:`torch.nn.functional.hardshrink`."""
    return run(rules.Hardshrink, input, lambd)


@overridable
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """a = min(max(z + 3, 0), 6) / 6, with :class:`~torch_manualbp.rules.Hardsigmoid`; as
    :func:`torch.nn.functional.hardsigmoid`."""
    return run_in_place(rules.Hardsigmoid, input) if inplace else run(rules.Hardsigmoid, input)


@overridable
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """a = z min(max(z + 3, 0), 6) / 6, with :class:`~torch_manualbp.rules.Hardswish`; as
    :func:`torch.nn.functional.hardswish`."""
    return run_in_place(rules.Hardswish, input) if inplace else run(rules.Hardswish, input)


@overridable
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """a = min(max(z, low), high), with :class:`~torch_manualbp.rules.Hardtanh`; as
    :func:`torch.nn.functional.hardtanh`."""
    if inplace:
        return run_in_place(rules.Hardtanh, input, min_val, max_val)
    return run(rules.Hardtanh, input, min_val, max_val)


@overridable
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """a = max(z, 0) + slope min(z, 0), with :class:`~torch_manualbp.rules.LeakyReLU`; as
    :func:`torch.nn.functional.leaky_relu`."""
    if inplace:
        return run_in_place(rules.LeakyReLU, input, negative_slope)
    return run(rules.LeakyReLU, input, negative_slope)


@overridable
def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """a_k = z_k − log Σ_j exp(z_j), with :class:`~torch_manualbp.rules.LogSoftmax`; as
    :func:`torch.nn.functional.log_softmax`."""
    return _along(rules.LogSoftmax, "log_softmax", input, dim, _stacklevel, dtype)


@overridable
def logsigmoid(input: Tensor) -> Tensor:
    """a = log σ(z), with :class:`~torch_manualbp.rules.LogSigmoid`; as :func:`torch.nn.functional.logsigmoid`."""
    return run(rules.LogSigmoid, input)


@overridable
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """a = z tanh(log(1 + exp(z))), with :class:`~torch_manualbp.rules.Mish`; as :func:`torch.nn.functional.mish`."""
    return run_in_place(rules.Mish, input) if inplace else run(rules.Mish, input)


@overridable
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """a = max(z, 0) + w min(z, 0), with :class:`~torch_manualbp.rules.PReLU`; as
    :func:`torch.nn.functional.prelu`."""
    return in_low_precision(rules.PReLU, input, weight)


@overridable
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """a = max(z, 0), with :class:`~torch_manualbp.rules.ReLU`; as :func:`torch.nn.functional.relu`."""
    output = run(rules.ReLU, input)
    return in_place(input, output) if inplace else output


@overridable
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """a = min(max(z, 0), 6), with :class:`~torch_manualbp.rules.ReLU6`; as :func:`torch.nn.functional.relu6`."""
    return run_in_place(rules.ReLU6, input) if inplace else run(rules.ReLU6, input)


@overridable
def rrelu(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """a = r z with r = 1 where z > 0, else drawn uniformly between ``lower`` and ``upper``, with
    :class:`~torch_manualbp.rules.RReLU`; as :func:`torch.nn.functional.rrelu`, and with its random numbers.

    Without ``training`` r is the mean of the two, with :class:`~torch_manualbp.rules.LeakyReLU`.
    """
    if not input.is_floating_point() or lower > upper:
        return torch_functional.rrelu(input, lower, upper, training, inplace)  # says what is wrong
    if not training:
        return leaky_relu(input, (lower + upper) / 2, inplace)
    plain = input.contiguous()  # as torch lays its output out, and draws
    output = run(rules.RReLU, plain, _random_slopes(plain.detach(), lower, upper))
    return in_place(input, output) if inplace else output


def _random_slopes(z: Tensor, lower: float, upper: float) -> Tensor:
    """r, drawn where z ≤ 0 alone, in the order of torch's kernel."""
    if torch.compiler.is_compiling() or is_transformed() or z.is_meta:
        return torch.where(z <= 0, torch.empty_like(z).uniform_(lower, upper), 1 + zero(z))
    r = torch.empty_like(z, memory_format=torch.contiguous_format)
    torch.ops.aten.rrelu_with_noise(z, r, lower, upper, True)
    return r


@overridable
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """a = λ z where z > 0, else λ α (exp(z) − 1), with :class:`~torch_manualbp.rules.SELU`; as
    :func:`torch.nn.functional.selu`."""
    return run_in_place(rules.SELU, input) if inplace else run(rules.SELU, input)


@overridable_rule(rules.Sigmoid)
def sigmoid(input: Tensor) -> Tensor:
    """a = σ(z), with :class:`~torch_manualbp.rules.Sigmoid`; as :func:`torch.nn.functional.sigmoid`."""
    return run(rules.Sigmoid, input)


@overridable
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """a = z σ(z), with :class:`~torch_manualbp.rules.SiLU`; as :func:`torch.nn.functional.silu`."""
    if input.is_complex():
        return torch_functional.silu(input, inplace)  # which has no gradient
    return run_in_place(rules.SiLU, input) if inplace else run(rules.SiLU, input)


@overridable
def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """a_k = exp(z_k) / Σ_j exp(z_j), with :class:`~torch_manualbp.rules.Softmax`; as
    :func:`torch.nn.functional.softmax`."""
    return _along(rules.Softmax, "softmax", input, dim, _stacklevel, dtype)


@overridable
def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """a_k = exp(−z_k) / Σ_j exp(−z_j), with :class:`~torch_manualbp.rules.Softmin`; as
    :func:`torch.nn.functional.softmin`."""
    if not input.is_floating_point():
        return softmax(-input, dim, _stacklevel + 2, dtype)  # whose minus comes before the cast
    return _along(rules.Softmin, "softmin", input, dim, _stacklevel, dtype)


@overridable
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """a = log(1 + exp(β z)) / β, with :class:`~torch_manualbp.rules.Softplus`; as
    :func:`torch.nn.functional.softplus`."""
    return run(rules.Softplus, input, beta, threshold)


@overridable
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """a = z − λ where z > λ, z + λ where z < −λ, else 0, with :class:`~torch_manualbp.rules.Softshrink`; as
    :func:`torch.nn.functional.softshrink`."""
    return run(rules.Softshrink, input, lambd)


@overridable
def softsign(input: Tensor) -> Tensor:
    """a = z / (1 + |z|), with :class:`~torch_manualbp.rules.Softsign`; as :func:`torch.nn.functional.softsign`."""
    if input.is_complex():
        return torch_functional.softsign(input)
    return run(rules.Softsign, input)


@overridable_rule(rules.Tanh)
def tanh(input: Tensor) -> Tensor:
    """a = tanh(z), with :class:`~torch_manualbp.rules.Tanh`; as :func:`torch.nn.functional.tanh`."""
    return run(rules.Tanh, input)


@overridable
def tanhshrink(input: Tensor) -> Tensor:
    """a = z − tanh(z), with :class:`~torch_manualbp.rules.Tanh` and :class:`~torch_manualbp.rules.Difference`, so that
    tanh(z) is all it keeps; as :func:`torch.nn.functional.tanhshrink`."""
    return run(rules.Difference, input, run(rules.Tanh, input), 0.0)


@overridable
def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """a = z where z > θ, else ``value``, with :class:`~torch_manualbp.rules.Threshold`; as
    :func:`torch.nn.functional.threshold`."""
    if inplace:
        return run_in_place(rules.Threshold, input, threshold, value)
    return run(rules.Threshold, input, threshold, value)


def _along(
    rule: type[Rule], name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None
) -> Tensor:
    if dim is None:
        dim = torch_functional._get_softmax_dim(  # type: ignore[attr-defined]
            name, input.dim(), stacklevel + 2
        )
    if input.is_complex() or (dtype is not None and not dtype.is_floating_point):
        return getattr(torch_functional, name)(input, dim, dtype=dtype)
    if dtype is None and input.device.type != "cpu" and _autocasts_to_low_precision(input):
        dtype = torch.float32
    return run(rule, input if dtype is None else input.to(dtype), dim)


def _autocasts_to_low_precision(input: Tensor) -> bool:
    device = input.device.type
    return device != "meta" and torch.is_autocast_enabled(device) and input.dtype != torch.float64
