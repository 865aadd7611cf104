"""What malloc does with memory that is freed: to map its pages anew can take as long as a layer."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As glibc's malloc.h has them."""


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for what comes next, where it is glibc's. Returns whether it does from now on.

    Otherwise it hands large blocks back to the system, or not, by what else was allocated before and lies behind them:
    of two layers that are compared one may pay for fresh pages at every call, and the other never.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another malloc; another system
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
