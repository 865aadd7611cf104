"""A varied call, and numbers for it that are like the ones at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.subject import Setting, is_number

__all__ = ["Varied", "has_permutations", "is_inverse_of_another", "is_sorted", "of_floats", "redrawn", "replaced"]


@dataclass(frozen=True)
class Varied:
    """A call, and in words what is other in it."""

    words: str
    at: Setting
    group: str = ""
    """Calls of one group are refused together: where the target takes not the first, the others are not tried."""
    ranks: int | None = 0
    """How many more dimensions outputs have, if they are no single numbers: else it is another call altogether. None is
    of outputs of the very same shapes."""


def replaced(at: Setting, changes: Mapping[int, Any], words: str, group: str = "", ranks: int | None = 0) -> Varied:
    """The call with other values at some places."""
    changed = at.with_values([changes.get(i, v) for i, v in enumerate(at.values)])
    return Varied(words, changed, group or words, ranks)


def of_floats(at: Setting) -> list[int]:
    """The places of tensors of numbers that have entries."""
    return [i for i in at.tensors() if is_number(at.values[i]) and at.values[i].numel()]


def is_sorted(flat: Tensor) -> bool:
    """Whether integers ascend, which may be what they are for."""
    return flat.numel() > 2 and flat.dtype != torch.bool and bool((flat[1:] >= flat[:-1]).all())


def has_permutations(t: Tensor) -> bool:
    """Whether the rows are permutations of 0 … n − 1, of three or more."""
    if is_number(t) or t.dtype == torch.bool or not t.dim() or not t.numel() or t.shape[-1] < 3:
        return False
    return torch.equal(t.sort(-1).values, torch.arange(t.shape[-1], device=t.device, dtype=t.dtype).expand_as(t))


def is_inverse_of_another(at: Setting, i: int) -> bool:
    """Whether the tensor there and another one are permutations that undo each other: neither is other alone."""
    t = at.values[i]
    return has_permutations(t) and any(
        j != i and has_permutations(at.values[j]) and torch.equal(at.values[j].argsort(-1), t)
        for j in at.tensors()
        if at.values[j].shape == t.shape
    )


def _longer(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Permutations with the further numbers at their end, or the order of the first few."""
    rows = t.reshape(-1, t.shape[-1])
    rows = rows[torch.arange(torch.Size(shape[:-1]).numel(), device=t.device) % len(rows)]
    n, new = rows.shape[1], shape[-1]
    further = torch.arange(n, max(n, new), device=t.device, dtype=t.dtype).expand(len(rows), -1)
    rows = torch.cat([rows, further], 1)[:, :new]
    return (rows if new >= n else rows.argsort(-1).argsort(-1)).to(t.dtype).reshape(shape)


def redrawn(t: Tensor, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of this shape with numbers like those of ``t``: of integers and truth values the same over and over; of
    others such as stand there, none larger, and no two alike."""
    count = torch.Size(shape).numel()
    flat = t.detach().flatten()
    if has_permutations(t) and t.dim() > 1 and shape:
        return _longer(t, shape)
    if not is_number(t):
        which = torch.arange(count, device=t.device)
        which = which.clamp_max(flat.numel() - 1) if t.dim() == 1 and is_sorted(flat) else which % flat.numel()
        return flat[which].reshape(shape)
    generator = torch.Generator().manual_seed(seed + count)
    which = torch.randint(flat.numel(), (count,), generator=generator).to(t.device)
    factor = (1 - 0.3 * torch.rand(count, dtype=torch.float64, generator=generator)).to(t.device)
    return (flat[which].to(torch.complex128 if t.is_complex() else torch.float64) * factor).to(t.dtype).reshape(shape)
