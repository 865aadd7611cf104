"""Entries left out at random."""

from __future__ import annotations

from torch_manualbp.rules.constant import TimesConstant

__all__ = ["Dropout"]


class Dropout(TimesConstant):
    """The layer that lets each entry pass with probability 1 − p, and so much larger that the mean stays.

    ::

        a = r ⊙ z,  r = 1 / (1 − p) with probability 1 − p, else 0
        ⇒
        ∂C/∂z = r ⊙ ∂C/∂a

    r is drawn by the caller, and a constant. Shapes: z and r alike. Kept: r.
    """
