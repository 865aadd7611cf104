"""The losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_full_precision, legacy_reduction, overridable, run
from torch_manualbp.rules.rule import Rule

__all__ = ["cross_entropy", "mse_loss"]


@overridable
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """C_i = (s_i − y_i)², with :class:`~torch_manualbp.rules.MeanSquaredError`.

    As :func:`torch.nn.functional.mse_loss`. The reduction of a weighted loss, Σ v_i C_i / Σ v_i, is left to autograd.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if weight is None:
        return in_full_precision(rules.MeanSquaredError, input, target, reduction)
    if not isinstance(weight, Tensor) or weight.shape != input.shape or reduction not in ("none", "sum", "mean"):
        # torch says what is wrong; its stub for type checkers has no weight
        return torch_functional.mse_loss(input, target, reduction=reduction, weight=weight)  # type: ignore[call-arg]
    weighted = run(rules.MeanSquaredError, input, target, "none") * weight
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else weighted.sum() / weight.sum()


@overridable
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """C_i = −Σ_k q_k log softmax(s)_k; as :func:`torch.nn.functional.cross_entropy`.

    With class indices :class:`~torch_manualbp.rules.CrossEntropy`; with class probabilities, which have the shape of
    ``input``, :class:`~torch_manualbp.rules.CrossEntropyProbabilities`.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.shape == target.shape:
        rule: type[Rule] = rules.CrossEntropyProbabilities
    else:
        rule = rules.CrossEntropy
        if isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled():
            return torch_functional.cross_entropy(input, target, weight)  # which says that weight takes no gradient
    return in_full_precision(rule, input, target, weight, ignore_index, reduction, label_smoothing)
