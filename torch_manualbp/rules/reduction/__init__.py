"""The rules of what makes one number of several along dimensions, and of running sums and products.

What goes in is z, what comes out a.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.reduction import extreme, moments, products, running
from torch_manualbp.rules.reduction.extreme import *  # noqa: F403
from torch_manualbp.rules.reduction.moments import *  # noqa: F403
from torch_manualbp.rules.reduction.products import *  # noqa: F403
from torch_manualbp.rules.reduction.running import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in (extreme, moments, products, running) for name in module.__all__]
