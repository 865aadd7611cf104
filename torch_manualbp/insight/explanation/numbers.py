"""How numbers are written: with the digits that the model's dtype has."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from torch_manualbp.insight.symbols import Notation, plain

__all__ = ["digits_of", "many", "number", "vector"]


def digits_of(dtype: torch.dtype) -> int:
    """Significant digits that are worth reading."""
    return {torch.float64: 12, torch.float32: 7}.get(dtype, 4)


def number(value: float, digits: int) -> Notation:
    """A number, in formulas with a power of ten for an exponent."""
    text = f"{value + 0.0:.{digits}g}"  # −0 + 0 is 0
    if not math.isfinite(value):
        latex = rf"\mathrm{{{text}}}".replace("inf", "Inf").replace("nan", "NaN")
        return Notation(text, latex, text)
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return plain(text)
    return Notation(
        text,
        rf"{mantissa} \cdot 10^{{{int(exponent)}}}",
        f"{mantissa}·10<sup>{int(exponent)}</sup>".replace("<sup>-", "<sup>−"),  # a line may end behind a hyphen
    )


def many(count: float) -> str:
    """A count, exactly as long as it is exact."""
    if count <= 2**53:
        return f"{int(count):,}".replace(",", " ")
    return "about " + re.sub(r"e\+?(\d+)", r" · 10^\1", f"{count:.3g}")


def vector(values: Tensor, digits: int) -> Notation:
    """The numbers of a vector or a matrix in brackets."""
    comma, space = plain(", "), plain("")
    if values.dim() == 0:
        return number(float(values), digits)
    inner = comma.joined(vector(row, digits) if row.dim() else number(float(row), digits) for row in values)
    return space + "(" + inner + ")"
