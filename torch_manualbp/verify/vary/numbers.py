"""Other numbers: large ones, rows of zeros, rows that are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torch_manualbp.verify.subject import Setting
from torch_manualbp.verify.vary.made import Varied, of_floats, replaced

__all__ = ["large", "numbers"]


def large(at: Setting, factor: float = 100.0) -> Iterator[Varied]:
    """The numbers of the first input, and of all, so many times as large."""
    inputs = _inputs(at)
    for group in dict.fromkeys([tuple(inputs[:1]), tuple(inputs)]):
        if group:
            about = ", ".join(at.subject.value_names[i] for i in group)
            yield replaced(at, {i: at.values[i] * factor for i in group}, f"{about} times {factor:g}")


def numbers(at: Setting) -> Iterator[Varied]:
    """A row of the first inputs that is 0, nearly 0, nearly constant, like another, or large; and half of them 0."""
    for i in _inputs(at)[:2]:
        t = at.values[i]
        for words, change in ROWS.items():
            changed = t.clone(memory_format=torch.contiguous_format)
            rows = changed.view(-1, t.shape[-1]) if t.dim() else changed.view(1, 1)
            change(rows)
            yield replaced(at, {i: changed}, f"{at.subject.value_names[i]} with {words}")


def _inputs(at: Setting) -> list[int]:
    positions = {leaf.position for leaf in at.subject.leaves}
    return [i for i in of_floats(at) if i in positions]


def _constant(rows: Tensor) -> None:
    row = rows[len(rows) // 2]
    row.copy_(row[:1] * (1 + 1e-3 * torch.linspace(-1, 1, len(row), dtype=torch.float64).to(row)))


def _alike(rows: Tensor) -> None:
    rows[len(rows) // 2] = rows[0]


def _half(rows: Tensor) -> None:
    rows[:, ::2] = 0


def _times(factor: float) -> Callable[[Tensor], None]:
    def change(rows: Tensor) -> None:
        rows[len(rows) // 2] *= factor

    return change


ROWS: dict[str, Callable[[Tensor], None]] = {
    "a row of zeros": _times(0.0),
    "a row times 1e-7": _times(1e-7),
    "a row times 1e-3": _times(1e-3),
    "a row that is nearly constant": _constant,
    "two equal rows": _alike,
    "a row times 1e4": _times(1e4),
    "every other entry 0": _half,
}
