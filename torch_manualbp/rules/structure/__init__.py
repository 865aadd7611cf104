"""The rules of what stands between the layers of a model: arithmetic, products, shapes, parts, sums and dropout.

Their operands are called x and y, and the result z; where there is one alone, z goes in and a comes out.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.structure import (
    arrangement,
    contraction,
    dropout,
    indexing,
    joining,
    pointwise,
    product,
    reduction,
    scattering,
    shape,
)
from torch_manualbp.rules.structure.arrangement import *  # noqa: F403
from torch_manualbp.rules.structure.contraction import *  # noqa: F403
from torch_manualbp.rules.structure.dropout import *  # noqa: F403
from torch_manualbp.rules.structure.indexing import *  # noqa: F403
from torch_manualbp.rules.structure.joining import *  # noqa: F403
from torch_manualbp.rules.structure.pointwise import *  # noqa: F403
from torch_manualbp.rules.structure.product import *  # noqa: F403
from torch_manualbp.rules.structure.reduction import *  # noqa: F403
from torch_manualbp.rules.structure.scattering import *  # noqa: F403
from torch_manualbp.rules.structure.shape import *  # noqa: F403

_MODULES = (arrangement, contraction, dropout, indexing, joining, pointwise, product, reduction, scattering, shape)

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in _MODULES for name in module.__all__]
