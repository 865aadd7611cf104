"""The rules of functions of each entry, and of the corresponding entries of several tensors, that are no activations.

What goes in is z, of two operands x and y; what comes out a, of two operands z.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.entrywise import choice, exponential, power
from torch_manualbp.rules.entrywise.choice import *  # noqa: F403
from torch_manualbp.rules.entrywise.exponential import *  # noqa: F403
from torch_manualbp.rules.entrywise.power import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in (choice, exponential, power) for name in module.__all__]
