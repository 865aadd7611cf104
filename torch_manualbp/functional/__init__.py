"""``torch.nn.functional`` over the rules: the same signatures, defaults, reductions and autocast behaviour.

Ours are those of ``__all__``, each one call of the rule that its docstring names; ``torch-manualbp layers`` prints them
with their formulas. Every other name of ``torch.nn.functional`` is handed on as it is, so that a model file changes one
import::

    import torch_manualbp.functional as F      # was: import torch.nn.functional as F
"""

from typing import Any

from torch.nn import functional as _torch_functional

from torch_manualbp.functional import activation as _activation
from torch_manualbp.functional import attention as _attention
from torch_manualbp.functional import convolution as _convolution
from torch_manualbp.functional import ctc as _ctc
from torch_manualbp.functional import dropouts as _dropout
from torch_manualbp.functional import embedding as _embedding
from torch_manualbp.functional import linear as _linear
from torch_manualbp.functional import loss as _loss
from torch_manualbp.functional import margin as _margin
from torch_manualbp.functional import norm as _norm
from torch_manualbp.functional import padding as _padding
from torch_manualbp.functional import pooling as _pooling
from torch_manualbp.functional import projected as _projected
from torch_manualbp.functional import recurrent as _recurrent
from torch_manualbp.functional import resampling as _resampling
from torch_manualbp.functional.activation import *  # noqa: F403
from torch_manualbp.functional.attention import *  # noqa: F403
from torch_manualbp.functional.convolution import *  # noqa: F403
from torch_manualbp.functional.ctc import *  # noqa: F403
from torch_manualbp.functional.dropouts import *  # noqa: F403
from torch_manualbp.functional.embedding import *  # noqa: F403
from torch_manualbp.functional.linear import *  # noqa: F403
from torch_manualbp.functional.loss import *  # noqa: F403
from torch_manualbp.functional.margin import *  # noqa: F403
from torch_manualbp.functional.norm import *  # noqa: F403
from torch_manualbp.functional.padding import *  # noqa: F403
from torch_manualbp.functional.pooling import *  # noqa: F403
from torch_manualbp.functional.projected import *  # noqa: F403
from torch_manualbp.functional.recurrent import *  # noqa: F403
from torch_manualbp.functional.recurrent import recurrent_cell as recurrent_cell
from torch_manualbp.functional.recurrent import recurrent_layer as recurrent_layer
from torch_manualbp.functional.resampling import *  # noqa: F403

__all__ = (
    _linear.__all__
    + _convolution.__all__
    + _embedding.__all__
    + _attention.__all__
    + _activation.__all__
    + _loss.__all__
    + _projected.__all__
    + _margin.__all__
    + _norm.__all__
    + _recurrent.__all__
    + _padding.__all__
    + _pooling.__all__
    + _dropout.__all__
    + _ctc.__all__
    + _resampling.__all__
)

for _name in __all__:  # where users, pickles and fx's generated code find them, and no module stands in the way
    globals()[_name].__module__ = __name__


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_functional, name)
    except AttributeError:
        raise AttributeError(f"neither {__name__} nor torch.nn.functional has a {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
