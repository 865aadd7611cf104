"""What the commands that time have in common: options, figures, and where they were measured."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import torch

from torch_manualbp.rules.products import uses_onednn

__all__ = ["count", "microseconds", "surroundings"]


def count(text: str) -> int:
    """The type of an option that counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def microseconds(t: float) -> str:
    """A time in microseconds, with the digits that mean something."""
    return f"{t:,.1f}" if t < 100 else f"{t:,.0f}"


def surroundings() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "products": "oneDNN's" if uses_onednn() else "BLAS's",
    }
