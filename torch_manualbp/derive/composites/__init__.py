"""Functions of torch that are made of others: each of torch's signature, in plain calls of torch that have rules.

They run where a tape sees their calls, and makes rules of those of which something is learnt.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch_manualbp.derive.composites import entries, products, reductions, shapes
from torch_manualbp.derive.composites.refusal import NoRule
from torch_manualbp.derive.composites.refused import REFUSED

__all__ = ["COMPOSITES", "REFUSED", "NoRule"]

COMPOSITES: Mapping[Callable[..., Any], str] = {
    **entries.COMPOSITES,
    **products.COMPOSITES,
    **reductions.COMPOSITES,
    **shapes.COMPOSITES,
}
"""The names, of functions of torch, of its special and linalg, and of methods, that each of these computes."""
