"""Mistakes planted in correct rules and in Functions as people write them: what verification must find.

Each :class:`Mistake` has the wrong target, its correct twin, and inputs for both; ``torch-manualbp verify --self-test``
holds :func:`~torch_manualbp.verify`, ``torch.autograd.gradcheck`` and ``torch.allclose`` against all of them.
"""

from torch_manualbp.verify.mistakes.activation import ACTIVATIONS
from torch_manualbp.verify.mistakes.along import ALONG
from torch_manualbp.verify.mistakes.edges import EDGES
from torch_manualbp.verify.mistakes.linear import LINEAR
from torch_manualbp.verify.mistakes.loss import LOSSES
from torch_manualbp.verify.mistakes.mistake import KINDS, Mistake
from torch_manualbp.verify.mistakes.order import ORDER
from torch_manualbp.verify.mistakes.surroundings import SURROUNDINGS

__all__ = ["KINDS", "MISTAKES", "Mistake"]

MISTAKES: tuple[Mistake, ...] = LINEAR + ACTIVATIONS + ALONG + LOSSES + ORDER + EDGES + SURROUNDINGS
