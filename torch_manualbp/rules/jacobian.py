"""What the Jacobian of a rule looks like: which entries of an argument an entry of the output depends on, and how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AlongDimension", "Diagonal", "Jacobian", "Normalization", "Product"]


@dataclass(frozen=True)
class Jacobian:
    """Any: an entry of the output may depend on every entry of an argument. It is known by ``backward`` and ``jvp``."""

    def is_diagonal(self, position: int) -> bool:
        """Whether an entry of the output depends on one entry of this argument, that in the same place, if the argument
        has as many."""
        return False


@dataclass(frozen=True)
class Diagonal(Jacobian):
    """Each entry of the output depends on one entry of each of these arguments::

    ∂a_i/∂z_j = f'(z_i) where i = j, else 0
    """

    arguments: tuple[int, ...] = (0,)
    """Their positions."""

    slope: str = "f'"
    """What the numbers on the diagonal are called: ``f'``, ``r`` for constants that multiply, or nothing where they are
    the same for all entries."""

    def is_diagonal(self, position: int) -> bool:
        return position in self.arguments


@dataclass(frozen=True)
class AlongDimension(Jacobian):
    """An entry of the output depends on the entries of the first argument along one dimension."""

    dim: int = 1
    """The position of the argument that names this dimension."""


@dataclass(frozen=True)
class Normalization(Jacobian):
    """Rows of the first argument z, of the shape in the second, that are normalised and scaled by the third, a w or
    None, with the last for ε::

        ∂a_i/∂z_j = w_i r ([i = j] − 1 / n − ẑ_i ẑ_j / n)      for i and j of one row, else 0

    without the 1 / n where no mean is subtracted.
    """

    is_centred: bool = True

    def by_input(
        self, z: Tensor, n: int, w: Tensor | None, eps: float, entries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """∂a/∂z for some entries of z, as flat indices: those of z, those of a, and the derivatives."""
        rows = z.reshape(z.numel() // n, n)
        centred = rows - rows.mean(1, keepdim=True) if self.is_centred else rows
        r = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
        z_hat, row, j = centred * r, entries // n, entries % n
        value = -z_hat[row] * z_hat[row, j].unsqueeze(1) / n - self.is_centred / n
        value[torch.arange(len(entries)), j] += 1
        value = value * r[row] * (1 if w is None else w.reshape(1, n))
        q = row.unsqueeze(1) * n + torch.arange(n)
        return entries.repeat_interleave(n), q.reshape(-1), value.reshape(-1)


@dataclass(frozen=True)
class Product(Jacobian):
    """The product of an input and a weight along the last dimension, for a sample i at a time::

    z_ij = Σ_k a_ik W_jk + b_j
    ⇒
    ∂z_ij/∂a_ik = W_jk,  ∂z_ij/∂W_jk = a_ik,  ∂z_ij/∂b_j = 1
    ‖∂C/∂W‖² = ‖δ_i‖² ‖a_i‖²          of one sample, whose ∂C/∂W is δ_i a_iᵀ
    """

    input: int = 0
    weight: int = 1
    bias: int = 2

    def by_input(self, W: Tensor, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∂z/∂a for some entries of a, as flat indices: those of a, those of z, and the derivatives."""
        out, n = W.shape
        i, k = entries // n, entries % n
        z = (i[:, None] * out + torch.arange(out)).reshape(-1)
        return entries.repeat_interleave(out), z, W.t()[k].reshape(-1)

    def by_weight(self, a: Tensor, W: Tensor, entry: int) -> tuple[Tensor, Tensor]:
        """∂z/∂W_jk for the entry with this flat index: the flat indices in z of what depends on it, and a_ik."""
        out, n = W.shape
        j, k = divmod(entry, n)
        return torch.arange(a.shape[:-1].numel()) * out + j, a[..., k].reshape(-1)

    def by_bias(self, a: Tensor, W: Tensor, entry: int) -> tuple[Tensor, Tensor]:
        """∂z/∂b_j: the flat indices in z of what depends on it, and ones."""
        count = a.shape[:-1].numel()
        return torch.arange(count) * len(W) + entry, torch.ones(count, dtype=a.dtype)

    def weight_entry(self, W: Tensor, p: int, q: int) -> int:
        """The flat index of the W_jk that is ∂z/∂a for the entry p of a and the entry q of z."""
        out, n = W.shape
        return q % out * n + p % n

    def squared_norms(self, delta: Tensor, a: Tensor, has_bias: bool = False) -> Tensor:
        """‖∂C/∂W‖² of each sample, and ‖∂C/∂b‖² if there is a bias: (samples, out), (samples, in) → (samples)."""
        return delta.square().sum(-1) * (a.square().sum(-1) + has_bias)
