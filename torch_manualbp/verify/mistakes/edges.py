"""Mistakes at single points and beyond the usual numbers: kinks, ∞ and NaN, few digits, empty batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.rules import GELU, AbsoluteError, Divide, Hardtanh, MeanSquaredError, ReLU, ReLU6, Tanh
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify.mistakes.mistake import breaks, matrix, planted


class WrittenReLU(Function):
    """a = max(z, 0), whose derivative at 0 is 0."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z <= 0, 0, da)


@planted("ReLU, at 0", "kink", "1 at the kink, where torch has 0", matrix)
class KinkOnTheOtherSide(WrittenReLU):
    """``<`` for ``<=``."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z < 0, 0, da)


@planted("ReLU, half at 0", "kink", "1/2 at the kink, where torch has 0", matrix)
class HalfAtTheKink(WrittenReLU):
    """The middle of both derivatives, as the numerical one has it."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z == 0, da / 2, torch.where(z <= 0, 0, da))


@planted("ReLU6, at 6", "kink", "1 at the upper kink, where torch has 0", matrix)
class UpperKinkPasses(ReLU6):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where((z <= 0) | (z > 6), 0, da)


@planted(
    "hardtanh, lower bound",
    "kink",
    "passes below the lower bound, which no input reaches",
    lambda make: (make(5, 4), -6.0, 1.0),
)
class LowerBoundForgotten(Hardtanh):
    """Right for every input that is not clamped from below."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        _, high = ctx.options
        return torch.where(z >= high, 0, da), None, None


@planted("absolute error, at 0", "kink", "sign(0) = 1", lambda make: (make(5, 4), "mean"))
class SignOfZeroIsOne(AbsoluteError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (r,) = ctx.saved_tensors
        return torch.where(r < 0, -g, g) / r.numel(), None


class Clamp(Function):
    """a = min(max(z, −1), 1), whose derivative at both bounds is 1, as torch.clamp has it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return torch.where((z >= -1) & (z <= 1), da, 0)


@planted("clamp, at its bounds", "kink", "0 at the bounds, where torch has 1", matrix)
class ClampStrict(Clamp):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return torch.where((z > -1) & (z < 1), da, 0)


@planted("ReLU, product", "special values", "∂C/∂a [a > 0] is NaN where ∂C/∂a = ∞", matrix)
@breaks("matrix", "special values, float32", "special values, bfloat16")
class ProductForChoice(ReLU):
    """∞ · 0 is NaN."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return da * (a > 0)


@planted("ReLU, NaN stops", "special values", "0 at z = NaN, which torch lets pass", matrix)
class NaNStops(ReLU):
    """``a > 0`` is False of NaN: a diverged forward looks like a dead unit."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return torch.where(a > 0, da, 0)


@planted("tanh, NaN hidden", "special values", "nan_to_num on the gradient", matrix)
@breaks("matrix", "NaN")
class NaNHidden(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da)[0].nan_to_num()


class Length(Function):
    """a = ‖z‖ of each row, whose derivative z / a is 0 / 0 at 0, where torch has 0."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.linalg.vector_norm(z, dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        z, a = (widened(t) for t in ctx.saved_tensors)
        a = a.unsqueeze(-1)
        return torch.where(a == 0, 0, widened(da).unsqueeze(-1) * (z / torch.where(a == 0, 1, a))).to(da.dtype)


@planted("length, at 0", "special values", "0 / 0 at a row of zeros, where torch has 0", lambda make: (make(6, 1),))
class LengthByItsFormula(Length):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        z, a = (widened(t) for t in ctx.saved_tensors)
        return (widened(da).unsqueeze(-1) * (z / a.unsqueeze(-1))).to(da.dtype)


@planted(
    "GELU, rounded at every step",
    "precision",
    "the formula is evaluated in bfloat16 step by step",
    lambda make: (3 * make(8, 8),),
)
class RoundedAtEveryStep(GELU):
    """The formula evaluated in bfloat16, where ATen's kernel computes in float32 and rounds once."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        Phi = 0.5 * (1 + (z * math.sqrt(0.5)).erf())
        phi = (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)
        return da * (Phi + z * phi)


class Energy(Function):
    """C_j = w_j Σ_i z_ij²: ∂C_j/∂w_j is a sum of numbers that all have one sign."""

    @staticmethod
    def forward(z: Tensor, w: Tensor) -> Tensor:
        return (widened(w) * widened(z).square().sum(0)).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        dtype, (g, z, w) = z.dtype, (widened(t) for t in (g, z, w))
        return (2 * g * w * z).to(dtype), (g * z.square().sum(0)).to(dtype)


@planted(
    "energy, added up in few digits",
    "precision",
    "∂C/∂w is added up in the dtype of the input",
    lambda make: (make.positive(600, 2), make.positive(2)),
)
class AddedUpInFewDigits(Energy):
    """In bfloat16 256 + 1 is 256: what is added to a large sum is lost."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        total = torch.zeros_like(w)
        for row in z:
            total = total + row * row
        return 2 * g * w * z, g * total


@planted("tanh, in float32", "precision", "computed in float32 whatever the dtype", matrix)
class SingleWhateverTheDtype(Tanh):
    """``.float()``, and back: of float64 half of the digits are gone."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return (da.float() * (1 - a.float().square())).to(da.dtype)


@planted(
    "quotient, squared divisor",
    "precision",
    "y² overflows in float16 where x / y / y does not",
    lambda make: (100 * make.positive(5, 4), 600 * make.positive(5, 4)),
)
class DivisorSquared(Divide):
    """x / y² for x / y / y: in float16 y² is ∞ from 256 on."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return dz / y, None if x is None else -dz * x / (y * y)


@planted(
    "squared error, empty batch", "empty batch", "1 / n raises for n = 0", lambda make: (make(5, 4), make(5, 4), "mean")
)
class DividesByNothing(MeanSquaredError):
    """Python divides by a batch of 0 samples, and raises."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y = ctx.saved_tensors
        ds = 2 * (s - y) * (g * (1 / s.numel()))
        return ds, -ds, None


@planted("tanh, empty batch", "empty batch", "reshape(n, −1) raises for n = 0", matrix)
@breaks("matrix", "empty batch")
class FeaturesByMinusOne(Tanh):
    """``reshape(n, -1)``: in 0 entries there is no telling how many −1 are."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da.reshape(da.shape[0], -1).reshape(da.shape))
