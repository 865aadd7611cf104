"""Gradient verification.

:func:`compare_gradients` holds the gradients of a model against those of the same network in stock ``torch.nn``.
"""

from torch_manualbp.verify.gradients import GradientComparison, GradientRow, compare_gradients

__all__ = ["GradientComparison", "GradientRow", "compare_gradients"]
