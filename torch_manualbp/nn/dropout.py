"""The layers that leave entries out at random."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"]


class Dropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` by :class:`torch_manualbp.rules.Dropout`.

    a = r ⊙ z, r = 1 / (1 − p) or 0 at random ⇒ ∂C/∂z = r ⊙ ∂C/∂a. Kept: which entries pass, a byte each.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)


class Dropout1d(torch.nn.Dropout1d):
    """``torch.nn.Dropout1d`` by :class:`torch_manualbp.rules.Dropout`.

    a = r ⊙ z, r = 1 / (1 − p) or 0 at random for each channel ⇒ ∂C/∂z = r ⊙ ∂C/∂a. Kept: which channels pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(torch.nn.Dropout2d):
    """``torch.nn.Dropout2d`` by :class:`torch_manualbp.rules.Dropout`.

    a = r ⊙ z, r = 1 / (1 − p) or 0 at random for each channel ⇒ ∂C/∂z = r ⊙ ∂C/∂a. Kept: which channels pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(torch.nn.Dropout3d):
    """``torch.nn.Dropout3d`` by :class:`torch_manualbp.rules.Dropout`.

    a = r ⊙ z, r = 1 / (1 − p) or 0 at random for each channel ⇒ ∂C/∂z = r ⊙ ∂C/∂a. Kept: which channels pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(torch.nn.AlphaDropout):
    """``torch.nn.AlphaDropout`` by :class:`torch_manualbp.rules.AlphaDropout`.

    a = r ⊙ z + b, r = 0 at random, mean and variance kept ⇒ ∂C/∂z = r ⊙ ∂C/∂a. Kept: which entries pass, a byte each.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.alpha_dropout(input, self.p, self.training)


class FeatureAlphaDropout(torch.nn.FeatureAlphaDropout):
    """``torch.nn.FeatureAlphaDropout`` by :class:`torch_manualbp.rules.AlphaDropout`.

    a = r ⊙ z + b, r = 0 at random for each channel ⇒ ∂C/∂z = r ⊙ ∂C/∂a. Kept: which channels pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.feature_alpha_dropout(input, self.p, self.training)
