"""The rules of the activations: a = f(z), so that the local gradient is δ = ∂C/∂a ⊙ f'(z).

Most act on every entry alone and owe, beside their forward, f'(z) alone: :class:`~torch_manualbp.rules.Elementwise` has the rest.
"""

<<<<<<< ours
from torch_manualbp.rules.activation.gated import GLU
from torch_manualbp.rules.activation.leaky import LeakyReLU, PReLU, RReLU
from torch_manualbp.rules.activation.piecewise import (
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    ReLU,
    ReLU6,
    Softshrink,
    Threshold,
)
from torch_manualbp.rules.activation.smooth import (
    CELU,
    ELU,
    GELU,
    SELU,
    GELUTanh,
    LogSigmoid,
    Mish,
    Sigmoid,
    SiLU,
    Softplus,
    Softsign,
    Tanh,
)
from torch_manualbp.rules.activation.softmax import LogSoftmax, Softmax, Softmin, log_softmax_delta, softmax_delta

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "GELUTanh",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Threshold",
    "log_softmax_delta",
    "softmax_delta",
]
=======
from typing import TYPE_CHECKING

from torch_manualbp.rules.activation import elementwise, gated, leaky, piecewise, smooth, softmax
from torch_manualbp.rules.activation.elementwise import *  # noqa: F403
from torch_manualbp.rules.activation.gated import *  # noqa: F403
from torch_manualbp.rules.activation.leaky import *  # noqa: F403
from torch_manualbp.rules.activation.piecewise import *  # noqa: F403
from torch_manualbp.rules.activation.smooth import *  # noqa: F403
from torch_manualbp.rules.activation.softmax import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = [name for module in (elementwise, gated, leaky, piecewise, smooth, softmax) for name in module.__all__]
>>>>>>> theirs
