"""Mistakes in the activations: in f'(z), in what it is a function of, in a parameter that it learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import ELU, GELU, GLU, LeakyReLU, PReLU, Sigmoid, SiLU, Softplus, Tanh
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify.mistakes.mistake import breaks, matrix, planted


def _tiny(make: Make) -> tuple[Any, ...]:
    return make(5, 4), 1e-6


class WrittenTanh(Function):
    """a = tanh(z), as a newcomer writes it."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        (z,) = inputs
        ctx.save_for_backward(z, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        _, a = ctx.saved_tensors
        return (widened(da) * (1 - widened(a).square())).to(da.dtype)


@planted("tanh, of its input", "wrong variable", "1 − z² in place of 1 − a²", matrix)
class TanhOfItsInput(WrittenTanh):
    """1 − z² for 1 − a²."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        z, _ = ctx.saved_tensors
        return da * (1 - z * z)


@planted("tanh, of its output", "wrong variable", "tanh'(a) in place of tanh'(z)", matrix)
class TanhOfItsOutput(WrittenTanh):
    """tanh' at a, which is z already where z is small."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        _, a = ctx.saved_tensors
        return da * (1 - a.tanh().square())


@planted("tanh, not conjugated", "conj", "f'(z) in place of f'(z*)", matrix, is_complex=True)
@breaks("matrix", "complex numbers")
class TanhNotConjugated(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - a * a)


@planted("sigmoid, sign", "sign", "−f'(z) in place of f'(z)", matrix)
class SigmoidNegative(Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return -Sigmoid.backward(ctx, da)[0]


@planted("sigmoid, factor", "factor", "a in place of a (1 − a)", matrix)
@breaks("matrix", "first derivatives", "gradcheck", "forward mode", "Jacobians")
class SigmoidWithoutFactor(Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * a


@planted("SiLU, product rule", "missing term", "σ(z) without z σ'(z)", matrix)
class SiLUWithoutSlopeOfSigmoid(SiLU):
    """σ(z), where the product rule has a second term."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return da * z.sigmoid()


@planted(
    "GELU, tail",
    "missing term",
    "f'(z) = 0 below −3, where it is −0.012 and less",
    lambda make: (make(5, 4) - torch.tensor([0, 0, 0, 4.5]).to(make.dtype),),
)
class GELUWithoutTail(GELU):
    """f' is taken for 0 below −3, where z Φ(z) still moves."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        (dz,) = GELU.backward(ctx, da)
        return torch.where(z < -3, 0, dz)


@planted("GELU, by its approximation", "tiny error", "the derivative of the tanh approximation of the GELU", matrix)
class GELUByAnotherFormula(GELU):
    """The derivative of the tanh approximation, behind the exact forward."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        kappa, c = math.sqrt(2 / math.pi), 0.044715
        w = (kappa * (z + c * z**3)).tanh()
        return da * (0.5 * (1 + w) + 0.5 * z * (1 - w * w) * kappa * (1 + 3 * c * z * z))


@planted(
    "leaky ReLU, wrong side", "wrong variable", "the slope where z > 0, 1 elsewhere", lambda make: (make(5, 4), 0.1)
)
class LeakyOnTheWrongSide(LeakyReLU):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        (slope,) = ctx.options
        return torch.where(z > 0, da * slope, da), None


@planted(
    "PReLU, one slope for all", "missing sum", "∂C/∂w sums over the channels too", lambda make: (make(5, 4), make(4))
)
class SlopeNotSummedOverChannels(PReLU):
    """One gradient for all channels, whose sum the others should not see."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        z, w = ctx.saved_tensors
        dz, _ = PReLU.backward(ctx, da)
        return dz, (da * z.clamp(max=0)).sum().expand(w.shape)


@planted(
    "PReLU, slope not summed",
    "missing sum",
    "∂C/∂w is one of each sample, which the engine sums up",
    lambda make: (make(5, 4), make(4)),
)
class SlopeLeftToTheEngine(PReLU):
    """A gradient of each sample, (samples, channels), which the engine sums."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        z, _ = ctx.saved_tensors
        dz, _ = PReLU.backward(ctx, da)
        return dz, da * z.clamp(max=0)


@planted("ELU, α", "option ignored", "exp(z) without α where z ≤ 0", lambda make: (make(5, 4), 1.5))
class ELUWithoutAlpha(ELU):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z > 0, da, da * z.exp()), *[None for _ in ctx.options]


@planted("softplus, β", "option ignored", "σ(z) in place of σ(βz)", lambda make: (make(5, 4), 2.0, 20.0))
class SoftplusWithoutBeta(Softplus):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return da * z.sigmoid(), *[None for _ in ctx.options]


@planted(
    "GLU, halves swapped",
    "wrong variable",
    "the gate is computed from the half that it opens",
    lambda make: (make(5, 4), 1),
)
class GateOfTheOtherHalf(GLU):
    """The halves of z change places."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        u, v = z.chunk(2, ctx.dim)
        gate = u.sigmoid()
        return torch.cat((da * gate, da * v * gate * (1 - gate)), ctx.dim), None


@planted("sigmoid, 0.09 % too large", "tiny error", "1.0009 f'(z)", matrix)
class OffBy9In10Thousand(Sigmoid):
    """What ``gradcheck`` lets through by its tolerance of 1e-3."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sigmoid.backward(ctx, da)[0] * 1.0009


@planted("tanh, factor of 1 + 1e-4", "tiny error", "1.0001 f'(z)", matrix)
@breaks("matrix", "first derivatives", "forward mode", "Jacobians")
class OffByOneIn10Thousand(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da)[0] * 1.0001


@planted("tanh, factor of 1 − 1e-6", "tiny error", "0.999999 f'(z)", matrix)
class OffByOneInAMillion(Tanh):
    """A constant of six digits."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Tanh.backward(ctx, da)[0] * 0.999999


class ScaledTanh(Function):
    """a = k tanh(z) with a k so small that a tolerance of 1e-5 hides every gradient."""

    @staticmethod
    def forward(z: Tensor, k: float) -> Tensor:
        return k * torch.tanh(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        z, ctx.k = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return (widened(da) * (ctx.k * (1 - widened(z).tanh().square()))).to(da.dtype), None


@planted("scaled tanh, nine times too large", "tiny error", "a gradient of size 1e-6 is nine times too large", _tiny)
class TinyAndNineTimesTooLarge(ScaledTanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return 9 * ScaledTanh.backward(ctx, da)[0], None


@planted("scaled tanh, forgotten", "tiny error", "a gradient of size 1e-6 is 0", _tiny)
class TinyAndForgotten(ScaledTanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return torch.zeros_like(da), None
