"""The activations that are made of exponentials."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.activation.elementwise import Activation
from torch_manualbp.rules.arithmetic import (
    SIGMOID_IS_POSITIVE,
    larger,
    logistic,
    logistic_and_divisor,
    quotient,
    times,
    times_one_plus,
)
from torch_manualbp.rules.choice import is_above, passing, step

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "GELUTanh",
    "LogSigmoid",
    "Mish",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
]


class Sigmoid(Activation):
    """The logistic sigmoid.

    ::

        a = σ(z) = 1 / (1 + exp(−z))
        ⇒
        f'(z) = a (1 − a)

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return (1 - a).mul_(a)  # the digits of a − a² cancel as a nears 1

    @staticmethod
    def write_derivative(d: Tensor, a: Tensor) -> None:
        torch.addcmul(a, a, a, value=-1, out=d)  # a − a², rounded once by processors that fuse it

    @staticmethod
    def lean_delta(da: Tensor, a: Tensor) -> Tensor:
        return torch.addcmul(a, a, a, value=-1).mul_(da)


class LogSigmoid(Activation):
    """The logarithm of the logistic sigmoid.

    ::

        a = log σ(z)
        ⇒
        f'(z) = σ(−z)

    As torch's, the output and the gradient are laid out plainly, whatever the strides of z. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.logsigmoid(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return logistic(-(z if z.is_contiguous() else z.contiguous()))

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor) -> None:
        if z.amax() < SIGMOID_IS_POSITIVE:
            torch.neg(z, out=d).sigmoid_()
        else:
            d.copy_(LogSigmoid.derivative(z))


class Tanh(Activation):
    """The hyperbolic tangent.

    ::

        a = tanh(z)
        ⇒
        f'(z) = 1 − a²

    Kept: a.
    """

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return (1 - a).mul_(1 + a)  # each factor is exact near its zero, where 1 − a² loses its digits

    @staticmethod
    def write_derivative(d: Tensor, a: Tensor) -> None:
        torch.addcmul(a.new_ones(()), a, a, value=-1, out=d)  # rounded once by processors that fuse it

    @staticmethod
    def lean_delta(da: Tensor, a: Tensor) -> Tensor:
        return torch.addcmul(a.new_ones(()), a, a, value=-1).mul_(da)


class Softsign(Activation):
    """The sigmoid whose tails fall like 1 / |z|.

    ::

        a = z / (1 + |z|)
        ⇒
        f'(z) = 1 / (1 + |z|)²

    For complex numbers, of which |z| is no analytic function, it stays torch's. Kept: z.
    """

    in_blocks = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.softsign(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        size = z.abs()
        return 1 / ((size + 2).mul_(size).add_(1))  # (1 + |z|)², of which 1 + |z| would be rounded twice


class Softplus(Activation):
    """The smooth maximum of z and 0.

    ::

        a = log(1 + exp(β z)) / β  where β z ≤ threshold,  else z
        ⇒
        f'(z) = σ(β z)  where β z ≤ threshold,  else 1

    Kept: z.
    """

    in_blocks = True

    @staticmethod
    def forward(z: Tensor, beta: float, threshold: float) -> Tensor:
        return F.softplus(z, beta, threshold)

    @staticmethod
    def derivative(z: Tensor, beta: float, threshold: float) -> Tensor:
        z = z if beta == 1 else z * beta
        return larger(logistic(z), is_above(z, threshold))

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor, beta: float, threshold: float) -> None:
        is_1_from_threshold_on = math.exp(-threshold) < torch.finfo(z.dtype).eps / 4
        if is_1_from_threshold_on and beta > 0 and z.amin() * beta > -SIGMOID_IS_POSITIVE:
            torch.sigmoid(z if beta == 1 else torch.mul(z, beta, out=d), out=d)
        else:
            d.copy_(Softplus.derivative(z, beta, threshold))


class ELU(Activation):
    """The exponential linear unit.

    ::

        a = z where z > 0,  α (exp(z) − 1) elsewhere
        ⇒
        f'(z) = 1 where z > 0,  α exp(z) elsewhere

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, alpha: float) -> Tensor:
        return F.elu(z, alpha)

    @staticmethod
    def derivative(z: Tensor, alpha: float) -> Tensor:
        z = passing(z)
        exp = z.clamp(max=0).exp_()
        return exp if alpha == 1 else times(step(z, alpha, 1), exp)

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor, alpha: float) -> None:
        passing(z, out=d)
        slope = None if alpha == 1 else step(d, alpha, 1)
        d.exp_().clamp_(max=1)
        if slope is not None:
            d.mul_(slope)


class CELU(Activation):
    """The exponential linear unit whose derivative is continuous for every α.

    ::

        a = z where z > 0,  α (exp(z / α) − 1) elsewhere
        ⇒
        f'(z) = 1 where z > 0,  exp(z / α) elsewhere

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, alpha: float) -> Tensor:
        return F.celu(z, alpha)

    @staticmethod
    def derivative(z: Tensor, alpha: float) -> Tensor:
        below = passing(z).clamp(max=0)
        return (below if alpha == 1 else below.div_(alpha)).exp_()

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor, alpha: float) -> None:
        passing(z, out=d)
        if alpha == 1:
            d.exp_().clamp_(max=1)
        else:
            d.clamp_(max=0).div_(alpha).exp_()


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_LAMBDA = 1.0507009873554804934193349852946


class SELU(Activation):
    """The ELU that keeps activations near mean 0 and variance 1 from layer to layer.

    ::

        a = λ z where z > 0,  λ α (exp(z) − 1) elsewhere
        ⇒
        f'(z) = λ where z > 0,  λ α exp(z) elsewhere

    with α and λ of Klambauer et al., "Self-Normalizing Neural Networks" (2017). Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.selu(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        z = passing(z)
        exp = z.clamp(max=0).exp_()
        if torch.compiler.is_compiling():  # where a choice costs no more than a product, and z is kept for the exp
            return torch.where(z > 0, SELU_LAMBDA, exp * (SELU_LAMBDA * SELU_ALPHA))
        return times(step(z, SELU_LAMBDA * SELU_ALPHA, SELU_LAMBDA), exp)

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor) -> None:
        # As λ α exp(−x) with x = −z, but log α where z > 0: torch.threshold is a choice that costs no more than a
        # product, and keeps what is above a number, here the largest below 0.
        below_0 = -torch.finfo(z.dtype).smallest_normal * torch.finfo(z.dtype).eps
        torch.threshold_(passing(z, out=d).neg_(), below_0, math.log(SELU_ALPHA))
        d.neg_().exp_().mul_(SELU_LAMBDA * SELU_ALPHA)


class SiLU(Activation):
    """The sigmoid linear unit, or Swish.

    ::

        a = z σ(z)
        ⇒
        f'(z) = σ (1 + z (1 − σ))

    Kept: z.
    """

    in_blocks = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.silu(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        sigma = torch.sigmoid(z)
        return times_one_plus(sigma, (1 - sigma).mul_(z))

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor) -> None:
        sigma = torch.sigmoid(z, out=d)
        torch.lerp(sigma, z.new_ones(()), z * sigma, out=d)  # from σ to 1 by a: σ + a (1 − σ)


class Mish(Activation):
    """The linear unit gated by the tanh of its softplus.

    ::

        a = z w,  w = tanh(log(1 + exp(z)))
        ⇒
        f'(z) = w + z σ(z) (1 − w²)

    Kept: z.
    """

    in_blocks = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.mish(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        w = F.softplus(z).tanh()
        return torch.addcmul(w, times(z, torch.sigmoid(z)), (1 - w).mul_(1 + w))


class GELU(Activation):
    """The linear unit gated by the normal distribution Φ, with density φ.

    ::

        a = z Φ(z),  Φ(z) = (1 + erf(z / √2)) / 2
        ⇒
        f'(z) = Φ(z) + z φ(z),  φ(z) = exp(−z² / 2) / √2π

    Kept: z.
    """

    in_blocks = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.gelu(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        half = z.new_full((), 0.5)
        phi = torch.addcmul(half.new_zeros(()), z, z, value=-0.5).exp_()  # times √2π
        Phi = torch.add(half, (z * math.sqrt(0.5)).erf_(), alpha=0.5)  # 0 far below 0, where z φ is all that is left
        return torch.addcmul(Phi, z, phi, value=1 / math.sqrt(2 * math.pi))

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor) -> None:
        torch.add(z.new_full((), 0.5), torch.mul(z, math.sqrt(0.5), out=d).erf_(), alpha=0.5, out=d)
        # √2π φ as a power of 2: MKL's exp takes four times as long, and z² is rounded in any case.
        phi = torch.square(z).mul_(-0.5 * math.log2(math.e)).exp2_()
        torch.addcmul(d, z, phi, value=1 / math.sqrt(2 * math.pi), out=d)


class GELUTanh(Activation):
    """The GELU with a tanh in place of Φ, which is a sigmoid of twice its argument.

    ::

        a = z (1 + tanh u) / 2 = z σ(2u),  2u = κ z (1 + c z²),  κ = √(8 / π),  c = 0.044715
        ⇒
        f'(z) = σ (1 + z (1 − σ) κ (1 + 3c z²))

    Kept: z.
    """

    in_blocks = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.gelu(z, approximate="tanh")

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        kappa, c = math.sqrt(8 / math.pi), 0.044715
        z = z.clamp(-30, 30)  # where σ is 0 or 1 in every dtype, and z³ is still finite
        square = z * z
        sigma, d = logistic_and_divisor((square * (kappa * c)).add_(kappa).mul_(z))
        return times_one_plus(sigma, quotient(square.mul_(3 * kappa * c).add_(kappa).mul_(z), d))

    @staticmethod
    def write_derivative(d: Tensor, z: Tensor) -> None:
        kappa, c = math.sqrt(8 / math.pi), 0.044715
        z = z.clamp(-30, 9)  # from there on f' is 1 in float64 too, and exp(2u) is finite
        square = z * z
        log2 = kappa * math.log2(math.e)
        e = torch.add(z.new_full((), log2), square, alpha=log2 * c, out=d).mul_(z).exp2_()
        slope = torch.add(z.new_full((), kappa), square, alpha=3 * kappa * c, out=square).mul_(z)
        divisor = torch.add(e, 1, out=z)
        sigma = e.div_(divisor)
        sigma.addcmul_(sigma, slope.div_(divisor))
