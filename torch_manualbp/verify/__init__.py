"""Gradient verification.

:func:`verify` holds the gradients of a module, an ``autograd.Function`` or a callable against autograd of its forward;
:func:`verify_model` does so with every layer of a model where it stands;
:func:`compare_gradients` holds the gradients of a model against those of the same network in stock ``torch.nn``;
:func:`contract_matrix` holds rules, ours or one's own, to everything that a rule owes;
:func:`surroundings_matrix` holds layers to torch's in what people do with them, from ``deepcopy`` to FSDP2.

The package itself may be called: ``torch_manualbp.verify(target, *inputs)`` is ``torch_manualbp.verify.verify``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_manualbp.verify.checks import CHECKS as CHECKS
    from torch_manualbp.verify.gradients import GradientComparison as GradientComparison
    from torch_manualbp.verify.gradients import GradientRow as GradientRow
    from torch_manualbp.verify.gradients import compare_gradients as compare_gradients
    from torch_manualbp.verify.matrix import Matrix as Matrix
    from torch_manualbp.verify.matrix import contract_matrix as contract_matrix
    from torch_manualbp.verify.matrix import surroundings_matrix as surroundings_matrix
    from torch_manualbp.verify.models import verify_model as verify_model
    from torch_manualbp.verify.report import GradientError as GradientError
    from torch_manualbp.verify.report import Report as Report
    from torch_manualbp.verify.report import Row as Row
    from torch_manualbp.verify.verifier import verify as verify

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

_MODULES = {  # what each brings, when it is first asked for: the plugin of pytest stands here, and must load nothing
    "checks": ("CHECKS",),
    "contract": (),
    "gradients": ("GradientComparison", "GradientRow", "compare_gradients"),
    "matrix": ("Matrix", "contract_matrix", "surroundings_matrix"),
    "models": ("verify_model",),
    "report": ("GradientError", "Report", "Row"),
    "surroundings": (),
    "verifier": ("verify",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name == module or name in names:
            found = importlib.import_module(f"{__name__}.{module}")
            return found if name == module else getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package that is a function as well, so that the function needs no second name."""

    def __call__(self, target: Any, *inputs: Any, **options: Any) -> Report:
        return importlib.import_module(f"{__name__}.verifier").verify(target, *inputs, **options)


sys.modules[__name__].__class__ = _Package
