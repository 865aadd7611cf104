"""The calculus of the package: every rule is one operation with its forward and its backward formula.

Notation, as in a textbook; the code writes the same letters in ASCII.

========== ============ ==========================================================================================
textbook   code         meaning
========== ============ ==========================================================================================
a          ``a``        activations: what enters a linear layer, what an activation returns; rows are samples
W, b       ``W, b``     weight (out, in) and bias (out)
z          ``z``        weighted inputs z = a Wᵀ + b, what enters an activation
δ          ``delta``    the local gradient ∂C/∂z
s, y, C    ``s, y, C``  the network's output, the target, the cost
g          ``g``        the upstream gradient of a loss
∂C/∂x      ``dx``       the gradient of any x; in a ``jvp``, the tangent of x
⊙          ``*``        the elementwise product
⇒                       between a forward and the backward that follows from it
========== ============ ==========================================================================================

:mod:`torch_manualbp.catalogue` lists every rule with its torch twin and sample inputs. A rule is tested by being listed
there.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules import (
    activation,
    attention,
    convolution,
    embedding,
    entrywise,
    linear,
    loss,
    norm,
    padding,
    pooling,
    recurrent,
    reduction,
    resampling,
    sampling,
    structure,
)
from torch_manualbp.rules.activation import *  # noqa: F403
from torch_manualbp.rules.attention import *  # noqa: F403
from torch_manualbp.rules.convolution import *  # noqa: F403
from torch_manualbp.rules.elementwise import Elementwise
from torch_manualbp.rules.embedding import *  # noqa: F403
from torch_manualbp.rules.entrywise import *  # noqa: F403
from torch_manualbp.rules.jacobian import AlongDimension, Convolved, Diagonal, Jacobian, Normalization, Product
from torch_manualbp.rules.linear import *  # noqa: F403
from torch_manualbp.rules.loss import *  # noqa: F403
from torch_manualbp.rules.norm import *  # noqa: F403
from torch_manualbp.rules.padding import *  # noqa: F403
from torch_manualbp.rules.pooling import *  # noqa: F403
from torch_manualbp.rules.recurrent import *  # noqa: F403
from torch_manualbp.rules.reduction import *  # noqa: F403
from torch_manualbp.rules.resampling import *  # noqa: F403
from torch_manualbp.rules.rule import Rule
from torch_manualbp.rules.sampling import *  # noqa: F403
from torch_manualbp.rules.structure import *  # noqa: F403

__all__ = ["AlongDimension", "Convolved", "Diagonal", "Elementwise", "Jacobian", "Normalization", "Product", "Rule"]
if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    for _family in (
        activation,
        attention,
        convolution,
        embedding,
        entrywise,
        linear,
        loss,
        norm,
        padding,
        pooling,
        recurrent,
        reduction,
        resampling,
        sampling,
        structure,
    ):
        __all__ += _family.__all__
