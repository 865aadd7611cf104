"""What was recorded of the layers, as a notebook displays it: ‖δ‖ of each, and δ itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from markupsafe import Markup
from torch import Tensor

from torch_manualbp import _html
from torch_manualbp._text import visible

if TYPE_CHECKING:
    from torch_manualbp.insight.record import Call, LocalGradients

__all__ = ["entries", "of_calls", "of_layers"]

MOST_ROWS, MOST_COLUMNS = 8, 10
"""Rows and columns of a tensor above which its middle is left out."""

MOST_OPEN = 6
"""Layers whose δ is to be seen at once; of more it is to be opened."""


def of_layers(record: LocalGradients) -> str:
    """A table of the calls, and below it δ of each."""
    columns, rows = record.table()
    calls = list(record.calls())
    # An activation that is a module has the δ of the layer whose z it takes.
    of_one_z = {id(call.z): call for call in reversed(calls) if call.is_reached and isinstance(call.delta, Tensor)}
    with_delta = list(of_one_z.values())[::-1]
    symbols, is_open = record.symbols(), len(with_delta) <= MOST_OPEN
    deltas = [_delta(call, symbols.get(id(call.z), "δ"), is_open) for call in with_delta]
    return _html.section(_html.table(columns, rows, numbers={len(columns) - 1}), *deltas)


def _delta(call: Call, symbol: str, is_open: bool) -> Markup:
    shape = " × ".join(map(str, call.delta.shape)) or "one number"
    summary = Markup("{} = ∂<var>C</var>/∂<var>z</var> of <code>{}</code>, {}").format(
        symbol, visible(call.layer) or "the model", shape
    )
    return _html.folded(summary, entries(call.delta), is_open)


def of_calls(calls: Sequence[Call]) -> str:
    """x, z, a, δ and ∂C/∂a of each."""
    blocks: list[Markup] = []
    for i, call in enumerate(calls):
        which = f", call {i + 1} of {len(calls)}" if len(calls) > 1 else ""
        blocks.append(_html.paragraph(f"{call.layer or 'the model'}{which}"))
        gradients = {"δ = ∂C/∂z": call.delta, "∂C/∂a": call.da} if call.is_reached else {}
        for name, value in {"x": call.x, "z": call.z, "a": call.a, **gradients}.items():
            if name in ("a", "∂C/∂a") and not call.is_activated:
                continue  # it is z, or δ
            content = entries(value) if isinstance(value, Tensor) else _html.paragraph(str(value))
            blocks.append(_html.folded(name, content, is_open=True))
        if not call.is_reached:
            blocks.append(_html.paragraph(call.why_not_reached(), "soft"))
    return _html.section(*blocks)


def entries(t: Tensor) -> Markup:
    """The numbers of a tensor, a row for each of its rows; blue is positive, orange negative, the largest strongest.
    Of more than two dimensions all but the last are rows, as if they were one; the middle of what is large is left
    out."""
    wide = t.detach().to(torch.complex128 if t.is_complex() else torch.float64).cpu()
    matrix = wide.reshape(-1, wide.shape[-1]) if wide.dim() > 1 else wide.reshape(1, -1)
    if not matrix.numel():
        return _html.paragraph("There are no numbers in it.", "soft")
    rows, columns = (_ends(n, most) for n, most in zip(matrix.shape, (MOST_ROWS, MOST_COLUMNS), strict=True))
    sizes = matrix.abs()
    largest = sizes[sizes.isfinite()].max().item() if sizes.isfinite().any() else 0.0
    lines = [["…" if i is None or j is None else _entry(matrix[i, j].item(), largest) for j in columns] for i in rows]
    return _html.table((), lines, range(len(columns)), kind="entries")


def _ends(n: int, most: int) -> Sequence[int | None]:
    """All of 0, …, n − 1, or the first and the last with None between them."""
    half = most // 2
    return range(n) if n <= most else [*range(half), None, *range(n - half, n)]


def _entry(value: float | complex, largest: float) -> Markup:
    text = f"{value:.4g}".replace("-", "−")
    if isinstance(value, complex) or not math.isfinite(value) or value == 0 or not largest:
        return Markup("<span>{}</span>").format(text)
    size = round(10 + 40 * math.sqrt(abs(value) / largest))
    return Markup('<span class="{}" style="--size:{}%">{}</span>').format("plus" if value > 0 else "minus", size, text)
