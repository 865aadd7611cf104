"""The linear layers."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["Bilinear", "Identity", "LazyLinear", "Linear"]


class Identity(torch.nn.Identity):
    """``torch.nn.Identity``: a = z ⇒ ∂C/∂z = ∂C/∂a. Kept: nothing.

    Returns its very input, like torch's class, whose users change the output in place and compare with ``is``. For a
    node of its own in the graph there is :func:`torch_manualbp.functional.identity`.
    """


class Linear(torch.nn.Linear):
    """``torch.nn.Linear`` by :class:`torch_manualbp.rules.Linear`.

    z = a Wᵀ + b ⇒ ∂C/∂a = δ W, ∂C/∂W = δᵀ a, ∂C/∂b = Σ_samples δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor) -> Tensor:
        held = self._parameters
        if "weight" in held and "bias" in held:  # which Module's own __getattr__ takes 0.7 µs longer to say
            return F.linear(input, held["weight"], held["bias"])  # type: ignore[arg-type]
        return F.linear(input, self.weight, self.bias)


class LazyLinear(torch.nn.LazyLinear, Linear):
    """``torch.nn.LazyLinear``: learns the number of its inputs from the first one, and becomes our ``Linear``."""

    cls_to_become = Linear


class Bilinear(torch.nn.Bilinear):
    """``torch.nn.Bilinear`` by :class:`torch_manualbp.rules.Bilinear`.

    z_k = Σ_ij x_i W_kij y_j + b_k ⇒ ∂C/∂x_i = Σ_kj δ_k W_kij y_j, ∂C/∂W_kij = Σ_samples δ_k x_i y_j, ∂C/∂b = Σ δ.
    Kept: of x, y, W what is needed.
    """

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return F.bilinear(input1, input2, self.weight, self.bias)
