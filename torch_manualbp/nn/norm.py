"""The normalisations."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` by :class:`torch_manualbp.rules.LayerNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ
    ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and r of each sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` by :class:`torch_manualbp.rules.RMSNorm`.

    a = w ẑ, ẑ = z r, r = 1 / √(mean z² + ε) ⇒ ∂C/∂z = r (g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ ∂C/∂a. Kept: z, w;
    r of each sample.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
