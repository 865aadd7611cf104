"""The activations that are made of exponentials."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.elementwise import Elementwise, logistic

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


class Sigmoid(Elementwise):
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
        return a * (1 - a)


class LogSigmoid(Elementwise):
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
        return logistic(-z)


class Tanh(Elementwise):
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
        return (1 - a) * (1 + a)  # each factor is exact near its zero, where 1 − a² loses its digits


class Softsign(Elementwise):
    """The sigmoid whose tails fall like 1 / |z|.

    ::

        a = z / (1 + |z|)
        ⇒
        f'(z) = 1 / (1 + |z|)²

    For complex numbers, of which |z| is no analytic function, it stays torch's. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.softsign(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (1 + z.abs() * (2 + z.abs()))  # of the square 1 + |z| would be rounded twice


class Softplus(Elementwise):
    """The smooth maximum of z and 0.

    ::

        a = log(1 + exp(β z)) / β  where β z ≤ threshold,  else z
        ⇒
        f'(z) = σ(β z)  where β z ≤ threshold,  else 1

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, beta: float, threshold: float) -> Tensor:
        return F.softplus(z, beta, threshold)

    @staticmethod
    def derivative(z: Tensor, beta: float, threshold: float) -> Tensor:
        return torch.where(beta * z > threshold, 1, logistic(beta * z))


class ELU(Elementwise):
    """The exponential linear unit.

    ::

        a = z where z > 0,  α (exp(z) − 1) elsewhere
        ⇒
        f'(z) = 1 where z > 0,  α exp(min(z, 0)) elsewhere

    The minimum keeps ∞ out of the derivative of f'. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, alpha: float) -> Tensor:
        return F.elu(z, alpha)

    @staticmethod
    def derivative(z: Tensor, alpha: float) -> Tensor:
        return torch.where(z <= 0, alpha * torch.exp(z.clamp(max=0)), 1)


class CELU(Elementwise):
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
        return torch.where(z <= 0, torch.exp(z.clamp(max=0) / alpha), 1)


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_LAMBDA = 1.0507009873554804934193349852946


class SELU(Elementwise):
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
        return SELU_LAMBDA * torch.where(z <= 0, SELU_ALPHA * torch.exp(z.clamp(max=0)), 1)


class SiLU(Elementwise):
    """The sigmoid linear unit, or Swish.

    ::

        a = z σ(z)
        ⇒
        f'(z) = σ (1 + z (1 − σ))

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.silu(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        sigma = torch.sigmoid(z)
        return torch.addcmul(sigma, sigma, z * (1 - sigma))  # σ + σ ⊙ z (1 − σ), rounded once


class Mish(Elementwise):
    """The linear unit gated by the tanh of its softplus.

    ::

        a = z w,  w = tanh(log(1 + exp(z)))
        ⇒
        f'(z) = w + z σ(z) (1 − w²)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.mish(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        w = torch.tanh(F.softplus(z))
        return w + z * torch.sigmoid(z) * (1 - w) * (1 + w)


class GELU(Elementwise):
    """The linear unit gated by the normal distribution Φ, with density φ.

    ::

        a = z Φ(z),  Φ(z) = (1 + erf(z / √2)) / 2
        ⇒
        f'(z) = Φ(z) + z φ(z),  φ(z) = exp(−z² / 2) / √2π

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.gelu(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        Phi = (1 + torch.erf(z * math.sqrt(0.5))) / 2
        phi = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return Phi + z * phi


class GELUTanh(Elementwise):
    """The GELU with a tanh in place of Φ, which is a sigmoid of twice its argument.

    ::

        a = z (1 + tanh u) / 2 = z σ(2u),  2u = κ z (1 + c z²),  κ = √(8 / π),  c = 0.044715
        ⇒
        f'(z) = σ (1 + κ z (1 + 3c z²) (1 − σ)),  σ = e / (1 + e),  1 − σ = 1 / (1 + e),  e = exp(2u)

    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return F.gelu(z, approximate="tanh")

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        kappa, c = math.sqrt(8 / math.pi), 0.044715
        z = z.clamp(-30, 9)  # where σ is 0 or 1 in every dtype, and e is finite
        e = torch.exp(kappa * z * (1 + c * z * z))
        sigma = e / (1 + e)
        return torch.addcmul(sigma, sigma, kappa * z * (1 + 3 * c * z * z) / (1 + e))  # rounded once, as SiLU's
