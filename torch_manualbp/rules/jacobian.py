"""What the Jacobian of a rule looks like: which entries of an argument an entry of the output depends on, and how."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["AlongDimension", "Convolved", "Diagonal", "Jacobian", "Normalization", "Product"]


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

    def normalized(self, z: Tensor, n: int, eps: float) -> tuple[Tensor, Tensor]:
        """ẑ and r = 1 / σ of each row."""
        rows = z.reshape(z.numel() // n, n)
        centred = rows - rows.mean(1, keepdim=True) if self.is_centred else rows
        r = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
        return centred * r, r

    def by_input(
        self, z: Tensor, n: int, w: Tensor | None, eps: float, entries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """∂a/∂z for some entries of z, as flat indices: those of z, those of a, and the derivatives."""
        z_hat, r = self.normalized(z, n, eps)
        row, j = entries // n, entries % n
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

    def input_entry(self, a: Tensor, W: Tensor, q: int, entry: int) -> int:
        """The flat index of the a_ik that is ∂z/∂W for the entry q of z and this entry of W."""
        out, n = W.shape
        return q // out * n + entry % n

    def weight_entry(self, W: Tensor, p: int, q: int) -> int:
        """The flat index of the W_jk that is ∂z/∂a for the entry p of a and the entry q of z."""
        out, n = W.shape
        return q % out * n + p % n

    def squared_norms(self, delta: Tensor, a: Tensor, has_bias: bool = False) -> Tensor:
        """‖∂C/∂W‖² of each sample, and ‖∂C/∂b‖² if there is a bias: (samples, out), (samples, in) → (samples)."""
        return delta.square().sum(-1) * (a.square().sum(-1) + has_bias)


@dataclass(frozen=True)
class Convolved(Jacobian):
    """The product of an input and a window of weights, in every place x of the window, for a sample at a time::

        z_o(x) = Σ_c Σ_u W_oc(u) a_c(s x + d u − p) + b_o
        ⇒
        ∂z_o(x)/∂a_c(y) = W_oc(u),  ∂z_o(x)/∂W_oc(u) = a_c(y),      where y = s x + d u − p, within a;  ∂z_o(x)/∂b_o = 1

    The options are stride, padding, dilation and the number of groups, as the rule has them.
    """

    input: int = 0
    weight: int = 1
    bias: int = 2

    def by_input(
        self, a: Tensor, W: Tensor, z: Tensor, options: Sequence[Any], entries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """∂z/∂a for some entries of a, as flat indices: those of a, those of z, and the derivatives."""
        stride, padding, dilation, groups = options
        (n_in, *size), (n_out, *places) = _of_sample(a, stride), _of_sample(z, stride)
        n, c, *y = torch.unravel_index(entries, (a.numel() // math.prod((n_in, *size)), n_in, *size))
        of_group = n_out // groups
        o = c[:, None] // (n_in // groups) * of_group + torch.arange(of_group)
        p, q, value = [entries[:0]], [entries[:0]], [W.reshape(-1)[:0]]
        for u in itertools.product(*map(range, W.shape[2:])):
            there, x = torch.ones_like(entries, dtype=torch.bool), torch.zeros_like(entries)
            for y_i, u_i, s, r, d, m in zip(y, u, stride, padding, dilation, places, strict=True):
                moved = y_i + r - d * u_i
                there &= (moved % s == 0) & (moved >= 0) & (moved // s < m)
                x = x * m + moved // s
            q.append(((n[:, None] * n_out + o) * math.prod(places) + x[:, None])[there].reshape(-1))
            p.append(entries[there].repeat_interleave(of_group))
            at = o[there], (c % (n_in // groups))[there, None], *(torch.tensor(u_i) for u_i in u)
            value.append(W[at].reshape(-1))
        return torch.cat(p), torch.cat(q), torch.cat(value)

    def by_weight(self, a: Tensor, W: Tensor, z: Tensor, options: Sequence[Any], entry: int) -> tuple[Tensor, Tensor]:
        """∂z/∂W_oc(u) for the entry with this flat index: the flat indices in z of what depends on it, and a_c(y)."""
        stride, padding, dilation, groups = options
        (n_in, *size), (n_out, *places) = _of_sample(a, stride), _of_sample(z, stride)
        o, c, *u = (int(i) for i in torch.unravel_index(torch.tensor(entry), W.shape))
        of_z = torch.arange(z.numel() // math.prod((n_out, *places))) * n_out + o
        of_a = torch.arange(len(of_z)) * n_in + o // (n_out // groups) * (n_in // groups) + c
        for u_i, s, r, d, m, k in zip(u, stride, padding, dilation, places, size, strict=True):
            x = torch.arange(m)
            y = s * x + d * u_i - r
            x, y = x[(y >= 0) & (y < k)], y[(y >= 0) & (y < k)]
            of_z, of_a = (of_z[:, None] * m + x).reshape(-1), (of_a[:, None] * k + y).reshape(-1)
        return of_z, a.reshape(-1)[of_a]

    def by_bias(self, z: Tensor, options: Sequence[Any], entry: int) -> tuple[Tensor, Tensor]:
        """∂z/∂b_o: the flat indices in z of what depends on it, and ones."""
        n_out, *places = _of_sample(z, options[0])
        first = torch.arange(z.numel() // math.prod((n_out, *places))) * n_out + entry
        of_z = (first[:, None] * math.prod(places) + torch.arange(math.prod(places))).reshape(-1)
        return of_z, torch.ones(len(of_z), dtype=z.dtype)

    def input_entry(self, a: Tensor, W: Tensor, z: Tensor, options: Sequence[Any], q: int, entry: int) -> int:
        """The flat index of the a_c(y) that is ∂z/∂W for the entry q of z and this entry of W."""
        stride, padding, dilation, groups = options
        (n_in, *size), (n_out, *places) = _of_sample(a, stride), _of_sample(z, stride)
        at = torch.unravel_index(torch.tensor(q), (z.numel() // math.prod((n_out, *places)), n_out, *places))
        n, o, *x = (int(i) for i in at)
        _, c, *u = (int(i) for i in torch.unravel_index(torch.tensor(entry), W.shape))
        flat = n * n_in + o // (n_out // groups) * (n_in // groups) + c
        for x_i, u_i, s, r, d, k in zip(x, u, stride, padding, dilation, size, strict=True):
            flat = flat * k + s * x_i + d * u_i - r
        return flat

    def weight_entry(self, a: Tensor, W: Tensor, z: Tensor, options: Sequence[Any], p: int, q: int) -> int:
        """The flat index of the W_oc(u) that is ∂z/∂a for the entry p of a and the entry q of z."""
        stride, padding, dilation, groups = options
        (n_in, *size), (n_out, *places) = _of_sample(a, stride), _of_sample(z, stride)
        c, *y = (int(i) for i in torch.unravel_index(torch.tensor(p % math.prod((n_in, *size))), (n_in, *size)))
        o, *x = (int(i) for i in torch.unravel_index(torch.tensor(q % math.prod((n_out, *places))), (n_out, *places)))
        flat = o * (n_in // groups) + c % (n_in // groups)
        for x_i, y_i, s, r, d, k in zip(x, y, stride, padding, dilation, W.shape[2:], strict=True):
            flat = flat * k + (y_i + r - s * x_i) // d
        return flat


def _of_sample(a: Tensor, stride: Sequence[int]) -> Sequence[int]:
    """Channels, and the size of the dimensions that a window moves along."""
    return a.shape[-len(stride) - 1 :]
