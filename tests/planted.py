"""A mistake planted in a correct rule, and what must catch it."""

from __future__ import annotations

from torch_manualbp.rules import Rule

__all__ = ["Mistake"]

Mistake = tuple[type[Rule], str, list[str]]
"""A subclass of the correct rule that plants one mistake, the sample to run, and names of the checks that catch it."""
