"""The rules of the normalisations: ẑ has mean 0 and variance 1, or mean square 1, over some of its entries."""

from typing import TYPE_CHECKING

from torch_manualbp.rules.norm import batch, channels, distance, response, rows
from torch_manualbp.rules.norm.batch import *  # noqa: F403
from torch_manualbp.rules.norm.channels import *  # noqa: F403
from torch_manualbp.rules.norm.distance import *  # noqa: F403
from torch_manualbp.rules.norm.response import *  # noqa: F403
from torch_manualbp.rules.norm.rows import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in (batch, channels, distance, response, rows) for name in module.__all__]
