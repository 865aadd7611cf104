"""The rules of the activations: a = f(z), so that the local gradient is δ = ∂C/∂a ⊙ f'(z).

Most act on every entry alone and owe, beside their forward, f'(z) alone: see
:class:`~torch_manualbp.rules.Elementwise`.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.activation import gated, leaky, piecewise, smooth, softmax
from torch_manualbp.rules.activation.gated import *  # noqa: F403
from torch_manualbp.rules.activation.leaky import *  # noqa: F403
from torch_manualbp.rules.activation.piecewise import *  # noqa: F403
from torch_manualbp.rules.activation.smooth import *  # noqa: F403
from torch_manualbp.rules.activation.softmax import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in (gated, leaky, piecewise, smooth, softmax) for name in module.__all__]
