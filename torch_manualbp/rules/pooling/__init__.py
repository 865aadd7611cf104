"""The rules of pooling: the largest entry of each window, the mean of its entries, or their p-norm."""

from typing import TYPE_CHECKING

from torch_manualbp.rules.pooling import average, largest, power
from torch_manualbp.rules.pooling.average import *  # noqa: F403
from torch_manualbp.rules.pooling.largest import *  # noqa: F403
from torch_manualbp.rules.pooling.power import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in (average, largest, power) for name in module.__all__]
