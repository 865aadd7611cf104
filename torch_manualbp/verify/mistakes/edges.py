"""Mistakes at single points and beyond the usual numbers: kinks, ∞ and NaN, few digits, empty batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import GELU, AbsoluteError, Divide, Hardtanh, MeanSquaredError, ReLU, ReLU6, Tanh
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify.mistakes.mistake import Mistake

__all__ = ["EDGES"]


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


class KinkOnTheOtherSide(WrittenReLU):
    """``<`` for ``<=``."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z < 0, 0, da)


class HalfAtTheKink(WrittenReLU):
    """The middle of both derivatives, as the numerical one has it."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z == 0, da / 2, torch.where(z <= 0, 0, da))


class UpperKinkPasses(ReLU6):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where((z <= 0) | (z > 6), 0, da)


class LowerBoundForgotten(Hardtanh):
    """Right for every input that is not clamped from below."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        _, high = ctx.options
        return torch.where(z >= high, 0, da), None, None


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


class ClampStrict(Clamp):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return torch.where((z > -1) & (z < 1), da, 0)


class ProductForChoice(ReLU):
    """∞ · 0 is NaN."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return da * (a > 0)


class NaNStops(ReLU):
    """``a > 0`` is False of NaN: a diverged forward looks like a dead unit."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return torch.where(a > 0, da, 0)


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


class LengthByItsFormula(Length):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        z, a = (widened(t) for t in ctx.saved_tensors)
        return (widened(da).unsqueeze(-1) * (z / a.unsqueeze(-1))).to(da.dtype)


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


class AddedUpInFewDigits(Energy):
    """In bfloat16 256 + 1 is 256: what is added to a large sum is lost."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        total = torch.zeros_like(w)
        for row in z:
            total = total + row * row
        return 2 * g * w * z, g * total


class SingleWhateverTheDtype(Tanh):
    """``.float()``, and back: of float64 half of the digits are gone."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return (da.float() * (1 - a.float().square())).to(da.dtype)


class DivisorSquared(Divide):
    """x / y² for x / y / y: in float16 y² is ∞ from 256 on."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return dz / y, None if x is None else -dz * x / (y * y)


class DividesByNothing(MeanSquaredError):
    """Python divides by a batch of 0 samples, and raises."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s, y = ctx.saved_tensors
        ds = 2 * (s - y) * (g * (1 / s.numel()))
        return ds, -ds, None


class FeaturesByMinusOne(Tanh):
    """``reshape(n, -1)``: in 0 entries there is no telling how many −1 are."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da.reshape(da.shape[0], -1).reshape(da.shape))


def _matrix(make: Make) -> tuple[Any, ...]:
    return (make(5, 4),)


EDGES = (
    Mistake("ReLU, at 0", "kink", "1 at the kink, where torch has 0", KinkOnTheOtherSide, WrittenReLU, _matrix),
    Mistake("ReLU, half at 0", "kink", "1/2 at the kink, where torch has 0", HalfAtTheKink, WrittenReLU, _matrix),
    Mistake("ReLU6, at 6", "kink", "1 at the upper kink, where torch has 0", UpperKinkPasses, ReLU6, _matrix),
    Mistake(
        "hardtanh, lower bound",
        "kink",
        "passes below the lower bound, which no input reaches",
        LowerBoundForgotten,
        Hardtanh,
        lambda make: (make(5, 4), -6.0, 1.0),
    ),
    Mistake(
        "absolute error, at 0", "kink", "sign(0) = 1", SignOfZeroIsOne, AbsoluteError, lambda make: (make(5, 4), "mean")
    ),
    Mistake("clamp, at its bounds", "kink", "0 at the bounds, where torch has 1", ClampStrict, Clamp, _matrix),
    Mistake("ReLU, product", "special values", "∂C/∂a [a > 0] is NaN where ∂C/∂a = ∞", ProductForChoice, ReLU, _matrix),
    Mistake("ReLU, NaN stops", "special values", "0 at z = NaN, which torch lets pass", NaNStops, ReLU, _matrix),
    Mistake("tanh, NaN hidden", "special values", "nan_to_num on the gradient", NaNHidden, Tanh, _matrix),
    Mistake(
        "length, at 0",
        "special values",
        "0 / 0 at a row of zeros, where torch has 0",
        LengthByItsFormula,
        Length,
        lambda make: (make(6, 1),),
    ),
    Mistake(
        "GELU, rounded at every step",
        "precision",
        "the formula is evaluated in bfloat16 step by step",
        RoundedAtEveryStep,
        GELU,
        lambda make: (3 * make(8, 8),),
    ),
    Mistake(
        "energy, added up in few digits",
        "precision",
        "∂C/∂w is added up in the dtype of the input",
        AddedUpInFewDigits,
        Energy,
        lambda make: (make.positive(600, 2), make.positive(2)),
    ),
    Mistake(
        "tanh, in float32", "precision", "computed in float32 whatever the dtype", SingleWhateverTheDtype, Tanh, _matrix
    ),
    Mistake(
        "quotient, squared divisor",
        "precision",
        "y² overflows in float16 where x / y / y does not",
        DivisorSquared,
        Divide,
        lambda make: (100 * make.positive(5, 4), 600 * make.positive(5, 4)),
    ),
    Mistake(
        "squared error, empty batch",
        "empty batch",
        "1 / n raises for n = 0",
        DividesByNothing,
        MeanSquaredError,
        lambda make: (make(5, 4), make(5, 4), "mean"),
    ),
    Mistake("tanh, empty batch", "empty batch", "reshape(n, −1) raises for n = 0", FeaturesByMinusOne, Tanh, _matrix),
)
