"""Gradient verification.

:func:`compare_gradients` holds the gradients of a model against those of the same network in stock ``torch.nn``;
:func:`contract_matrix` holds rules, ours or one's own, to everything that a rule owes.
"""

from torch_manualbp.verify.contract import Matrix, contract_matrix
from torch_manualbp.verify.gradients import GradientComparison, GradientRow, compare_gradients

__all__ = ["GradientComparison", "GradientRow", "Matrix", "compare_gradients", "contract_matrix"]
