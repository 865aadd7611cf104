"""Numbers as the page writes them, the same as its script: significant digits, a true minus, a raised exponent."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["RAISED", "for_script", "shown"]

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def shown(value: Any, digits: int = 10) -> str:
    """``1.5e-07`` as 1.5·10⁻⁷; None as a dash."""
    if value is None:
        return "–"
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞" if number > 0 else "−∞"
    body, _, exponent = f"{abs(number):.{digits}g}".partition("e")
    power = f"·10{str(int(exponent)).translate(RAISED)}" if exponent else ""
    return f"{'−' if number < 0 else ''}{body}{power}"


def for_script(value: float | None) -> float | str:
    """As JavaScript's ``Number`` and JSON take it: infinities and NaN are words, and None is empty."""
    if value is None:
        return ""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
