"""Gradient verification.

:func:`compare_gradients` holds the gradients of a model against those of the same network in stock ``torch.nn``;
:func:`contract_matrix` holds rules, ours or one's own, to everything that a rule owes;
:func:`surroundings_matrix` holds layers to torch's in what people do with them, from ``deepcopy`` to FSDP2.
"""

from torch_manualbp.verify.contract import Matrix, contract_matrix
from torch_manualbp.verify.gradients import GradientComparison, GradientRow, compare_gradients
from torch_manualbp.verify.surroundings import surroundings_matrix

__all__ = ["GradientComparison", "GradientRow", "Matrix", "compare_gradients", "contract_matrix", "surroundings_matrix"]
