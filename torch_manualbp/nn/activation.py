"""The activations."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]


class CELU(torch.nn.CELU):
    """``torch.nn.CELU`` by :class:`torch_manualbp.rules.CELU`.

    a = z where z > 0, else α (exp(z / α) − 1) ⇒ f'(z) = 1 where z > 0, else exp(z / α). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.celu(input, self.alpha, self.inplace)


class ELU(torch.nn.ELU):
    """``torch.nn.ELU`` by :class:`torch_manualbp.rules.ELU`.

    a = z where z > 0, else α (exp(z) − 1) ⇒ f'(z) = 1 where z > 0, else α exp(z). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace)


class GELU(torch.nn.GELU):
    """``torch.nn.GELU`` by :class:`torch_manualbp.rules.GELU`.

    a = z Φ(z), or with tanh z σ(2u) ⇒ f'(z) = Φ(z) + z φ(z), or σ (1 + z (1 − σ) 2u'). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate=self.approximate)


class GLU(torch.nn.GLU):
    """``torch.nn.GLU`` by :class:`torch_manualbp.rules.GLU`.

    a = u σ(v) ⇒ ∂C/∂u = ∂C/∂a ⊙ σ(v), ∂C/∂v = ∂C/∂a ⊙ u σ(v) (1 − σ(v)). Kept: u, v.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.glu(input, self.dim)


class Hardshrink(torch.nn.Hardshrink):
    """``torch.nn.Hardshrink`` by :class:`torch_manualbp.rules.Hardshrink`.

    a = z where |z| > λ, else 0 ⇒ δ = ∂C/∂a where |z| > λ, else 0. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.hardshrink(input, self.lambd)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """``torch.nn.Hardsigmoid`` by :class:`torch_manualbp.rules.Hardsigmoid`.

    a = min(max(z + 3, 0), 6) / 6 ⇒ δ = ∂C/∂a / 6 where −3 < z < 3, else 0. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.hardsigmoid(input, self.inplace)


class Hardswish(torch.nn.Hardswish):
    """``torch.nn.Hardswish`` by :class:`torch_manualbp.rules.Hardswish`.

    a = z min(max(z + 3, 0), 6) / 6 ⇒ f'(z) = z / 3 + 1/2 where −3 < z < 3, else 0 or 1. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.hardswish(input, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    """``torch.nn.Hardtanh`` by :class:`torch_manualbp.rules.Hardtanh`.

    a = min(max(z, low), high) ⇒ δ = ∂C/∂a where low < z < high, else 0. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` by :class:`torch_manualbp.rules.LeakyReLU`.

    a = max(z, 0) + slope min(z, 0) ⇒ f'(z) = 1 where z > 0, else slope. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class LogSigmoid(torch.nn.LogSigmoid):
    """``torch.nn.LogSigmoid`` by :class:`torch_manualbp.rules.LogSigmoid`.

    a = log σ(z) ⇒ f'(z) = σ(−z). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.logsigmoid(input)


class LogSoftmax(torch.nn.LogSoftmax):
    """``torch.nn.LogSoftmax`` by :class:`torch_manualbp.rules.LogSoftmax`.

    a_k = z_k − log Σ exp(z_j) ⇒ δ_k = ∂C/∂a_k − exp(a_k) Σ ∂C/∂a_j. Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)


class Mish(torch.nn.Mish):
    """``torch.nn.Mish`` by :class:`torch_manualbp.rules.Mish`.

    a = z w, w = tanh(log(1 + exp(z))) ⇒ f'(z) = w + z σ(z) (1 − w²). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.mish(input, inplace=self.inplace)


class PReLU(torch.nn.PReLU):
    """``torch.nn.PReLU`` by :class:`torch_manualbp.rules.PReLU`.

    a = max(z, 0) + w min(z, 0) ⇒ f'(z) = 1 where z > 0, else w; ∂C/∂w = Σ ∂C/∂a min(z, 0). Kept: z, w.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)


class ReLU(torch.nn.ReLU):
    """``torch.nn.ReLU`` by :class:`torch_manualbp.rules.ReLU`.

    a = max(z, 0) ⇒ δ = ∂C/∂a where a > 0, else 0. Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, inplace=self.inplace)


class ReLU6(torch.nn.ReLU6):
    """``torch.nn.ReLU6`` by :class:`torch_manualbp.rules.ReLU6`.

    a = min(max(z, 0), 6) ⇒ δ = ∂C/∂a where 0 < z < 6, else 0. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input, self.inplace)


class RReLU(torch.nn.RReLU):
    """``torch.nn.RReLU`` by :class:`torch_manualbp.rules.RReLU`.

    a = r z with r = 1 where z > 0, else random ⇒ δ = ∂C/∂a ⊙ r. Kept: r.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)


class SELU(torch.nn.SELU):
    """``torch.nn.SELU`` by :class:`torch_manualbp.rules.SELU`.

    a = λ z where z > 0, else λ α (exp(z) − 1) ⇒ f'(z) = λ where z > 0, else λ α exp(z). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.selu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """``torch.nn.Sigmoid`` by :class:`torch_manualbp.rules.Sigmoid`.

    a = σ(z) ⇒ f'(z) = a (1 − a). Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class SiLU(torch.nn.SiLU):
    """``torch.nn.SiLU`` by :class:`torch_manualbp.rules.SiLU`.

    a = z σ(z) ⇒ f'(z) = σ + z σ (1 − σ). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, inplace=self.inplace)


class Softmax(torch.nn.Softmax):
    """``torch.nn.Softmax`` by :class:`torch_manualbp.rules.Softmax`.

    a_k = exp(z_k) / Σ exp(z_j) ⇒ δ_k = a_k (∂C/∂a_k − Σ a_j ∂C/∂a_j). Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class Softmax2d(torch.nn.Softmax2d):
    """``torch.nn.Softmax2d`` by :class:`torch_manualbp.rules.Softmax`.

    a_k = exp(z_k) / Σ exp(z_j) over the channels ⇒ δ_k = a_k (∂C/∂a_k − Σ a_j ∂C/∂a_j). Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor) and input.dim() not in (3, 4):  # and not what fx traces with
            return super().forward(input)  # says what is wrong
        return F.softmax(input, -3, _stacklevel=5)


class Softmin(torch.nn.Softmin):
    """``torch.nn.Softmin`` by :class:`torch_manualbp.rules.Softmin`.

    a_k = exp(−z_k) / Σ exp(−z_j) ⇒ δ_k = −a_k (∂C/∂a_k − Σ a_j ∂C/∂a_j). Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.softmin(input, self.dim, _stacklevel=5)


class Softplus(torch.nn.Softplus):
    """``torch.nn.Softplus`` by :class:`torch_manualbp.rules.Softplus`.

    a = log(1 + exp(β z)) / β ⇒ f'(z) = σ(β z). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class Softshrink(torch.nn.Softshrink):
    """``torch.nn.Softshrink`` by :class:`torch_manualbp.rules.Softshrink`.

    a = z ∓ λ where |z| > λ, else 0 ⇒ δ = ∂C/∂a where |z| > λ, else 0. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.softshrink(input, self.lambd)


class Softsign(torch.nn.Softsign):
    """``torch.nn.Softsign`` by :class:`torch_manualbp.rules.Softsign`.

    a = z / (1 + |z|) ⇒ f'(z) = 1 / (1 + |z|)². Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.softsign(input)


class Tanh(torch.nn.Tanh):
    """``torch.nn.Tanh`` by :class:`torch_manualbp.rules.Tanh`.

    a = tanh z ⇒ f'(z) = 1 − a². Kept: a.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class Tanhshrink(torch.nn.Tanhshrink):
    """``torch.nn.Tanhshrink`` by :class:`torch_manualbp.rules.Tanh` and :class:`torch_manualbp.rules.Difference`.

    a = z − tanh z ⇒ f'(z) = tanh² z. Kept: tanh z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.tanhshrink(input)


class Threshold(torch.nn.Threshold):
    """``torch.nn.Threshold`` by :class:`torch_manualbp.rules.Threshold`.

    a = z where z > θ, else value ⇒ δ = ∂C/∂a where z > θ, else 0. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.threshold(input, self.threshold, self.value, self.inplace)
