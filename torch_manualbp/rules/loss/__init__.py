"""The rules of the losses: s is the network's output, y the target, C the cost.

The loss C_i of each entry or sample is reduced to C: ``"none"`` keeps the C_i, ``"sum"`` adds them, ``"mean"`` divides
the sum by n. The upstream gradient g = ∂(what follows)/∂C is mostly 1; it has the shape of C: () after a reduction, the
shape of the C_i without.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.loss import binary, classification, ctc, embedding, margin, projected, regression
from torch_manualbp.rules.loss.binary import *  # noqa: F403
from torch_manualbp.rules.loss.classification import *  # noqa: F403
from torch_manualbp.rules.loss.ctc import *  # noqa: F403
from torch_manualbp.rules.loss.embedding import *  # noqa: F403
from torch_manualbp.rules.loss.margin import *  # noqa: F403
from torch_manualbp.rules.loss.projected import *  # noqa: F403
from torch_manualbp.rules.loss.regression import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [
        name
        for module in (binary, classification, ctc, embedding, margin, projected, regression)
        for name in module.__all__
    ]
