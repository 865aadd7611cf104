"""The rules of functions of each entry, and of the corresponding entries of several tensors, that are no activations.

What goes in is z, of two operands x and y; what comes out a, of two operands z.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.entrywise import choice, exponential, pairs, power, special, trigonometric
from torch_manualbp.rules.entrywise.choice import *  # noqa: F403
from torch_manualbp.rules.entrywise.exponential import *  # noqa: F403
from torch_manualbp.rules.entrywise.pairs import *  # noqa: F403
from torch_manualbp.rules.entrywise.power import *  # noqa: F403
from torch_manualbp.rules.entrywise.special import *  # noqa: F403
from torch_manualbp.rules.entrywise.trigonometric import *  # noqa: F403

_MODULES = choice, exponential, pairs, power, special, trigonometric

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in _MODULES for name in module.__all__]
