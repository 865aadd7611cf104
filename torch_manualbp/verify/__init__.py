"""Gradient verification.

:func:`verify` holds the gradients of a module, an ``autograd.Function`` or a callable against autograd of its forward;
:func:`verify_model` does so with every layer of a model where it stands;
:func:`compare_gradients` holds the gradients of a model against those of the same network in stock ``torch.nn``;
:func:`contract_matrix` holds rules, ours or one's own, to everything that a rule owes;
:func:`surroundings_matrix` holds layers to torch's in what people do with them, from ``deepcopy`` to FSDP2.

The package itself may be called: ``torch_manualbp.verify(target, *inputs)`` is ``torch_manualbp.verify.verify``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torch_manualbp.verify.checks import CHECKS
from torch_manualbp.verify.contract import Matrix, contract_matrix
from torch_manualbp.verify.gradients import GradientComparison, GradientRow, compare_gradients
from torch_manualbp.verify.models import verify_model
from torch_manualbp.verify.report import GradientError, Report, Row
from torch_manualbp.verify.surroundings import surroundings_matrix
from torch_manualbp.verify.verifier import verify

__all__ = [
    "CHECKS",
    "GradientComparison",
    "GradientError",
    "GradientRow",
    "Matrix",
    "Report",
    "Row",
    "compare_gradients",
    "contract_matrix",
    "surroundings_matrix",
    "verify",
    "verify_model",
]


class _Package(ModuleType):
    """A package that is a function as well, so that the function needs no second name."""

    def __call__(self, target: Any, *inputs: Any, **options: Any) -> Report:
        return verify(target, *inputs, **options)


sys.modules[__name__].__class__ = _Package
