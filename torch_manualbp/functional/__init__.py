"""``torch.nn.functional`` over the rules: the same signatures, defaults, reductions and autocast behaviour.

Ours, each one call of the rule that it names:

- linear: ``linear``, ``bilinear``, ``identity``
- activations: ``celu``, ``elu``, ``gelu``, ``glu``, ``hardshrink``, ``hardsigmoid``, ``hardswish``, ``hardtanh``,
  ``leaky_relu``, ``log_softmax``, ``logsigmoid``, ``mish``, ``prelu``, ``relu``, ``relu6``, ``rrelu``, ``selu``,
  ``sigmoid``, ``silu``, ``softmax``, ``softmin``, ``softplus``, ``softshrink``, ``softsign``, ``tanh``, ``tanhshrink``,
  ``threshold``
- losses: ``l1_loss``, ``smooth_l1_loss``, ``huber_loss``, ``mse_loss``, ``cross_entropy``, ``nll_loss``,
  ``gaussian_nll_loss``, ``poisson_nll_loss``, ``kl_div``, ``binary_cross_entropy``,
  ``binary_cross_entropy_with_logits``, ``hinge_embedding_loss``, ``soft_margin_loss``
- losses of margins: ``margin_ranking_loss``, ``multi_margin_loss``, ``multilabel_margin_loss``,
  ``multilabel_soft_margin_loss``
- losses of embeddings: ``cosine_embedding_loss``, ``triplet_margin_loss``, ``triplet_margin_with_distance_loss``

Every other name of ``torch.nn.functional`` is handed on as it is, so that a model file changes one import::

    import torch_manualbp.functional as F      # was: import torch.nn.functional as F
"""

from typing import Any

from torch.nn import functional as _torch_functional

from torch_manualbp.functional import activation as _activation
from torch_manualbp.functional import linear as _linear
from torch_manualbp.functional import loss as _loss
from torch_manualbp.functional import margin as _margin
from torch_manualbp.functional.activation import *  # noqa: F403
from torch_manualbp.functional.linear import *  # noqa: F403
from torch_manualbp.functional.loss import *  # noqa: F403
from torch_manualbp.functional.margin import *  # noqa: F403

__all__ = _linear.__all__ + _activation.__all__ + _loss.__all__ + _margin.__all__

for _name in __all__:  # where users, pickles and fx's generated code find them, and no module stands in the way
    globals()[_name].__module__ = __name__


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_functional, name)
    except AttributeError:
        raise AttributeError(f"neither {__name__} nor torch.nn.functional has a {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
