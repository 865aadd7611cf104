"""Linear + cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp.functional.call import autocasts, in_low_precision, overridable
from torch_manualbp.functional.linear import linear
from torch_manualbp.functional.loss import cross_entropy
from torch_manualbp.kernels import ahead
from torch_manualbp.rules.rule import Rule

__all__ = ["linear_cross_entropy"]


@overridable
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """C of s = W x + b: as :func:`torch.nn.functional.linear_cross_entropy` of torch 2.13, with
    :class:`~torch_manualbp.rules.LinearCrossEntropy` or, for class probabilities,
    :class:`~torch_manualbp.rules.LinearCrossEntropyProbabilities`.

    On the CPU the scores are made a block at a time, and with them the gradients of a mean or a sum; ``options``, which
    have torch do so, change nothing. Those of a loss of several dimensions are all made, by :func:`linear`, for
    :func:`cross_entropy`.
    """
    given: dict[str, Any] = {
        "linear_bias": linear_bias,
        "weight": weight,
        "reduction": reduction,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    if not _fits(input, linear_weight, target, **given):
        return _by_torch(input, linear_weight, target, **given)  # which says what is wrong
    if options is not None and (linear_weight.dim() > 2 or label_smoothing != 0 or target.is_floating_point()):
        of_tensors = {name: _shape_of(value) for name, value in given.items()}
        x, W, y = map(_shape_of, (input, linear_weight, target))
        torch_functional.linear_cross_entropy(x, W, y, **of_tensors, options=options)  # which warns, of no numbers
    ignored = -100 if ignore_index is None else ignore_index
    if linear_weight.dim() > 2 or linear_weight.shape[0] == 0:
        s = linear(input, linear_weight.reshape(math.prod(linear_weight.shape[:-1]), linear_weight.shape[-1]))
        s = s.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
        s = s if linear_bias is None else s + linear_bias
        return cross_entropy(s, target, weight, None, ignored, None, reduction, label_smoothing)
    x, y = (input, target) if input.dim() == 2 else (input.unsqueeze(0), target.unsqueeze(0))
    if target.is_floating_point():
        rule: type[Rule] = ahead.OfProbabilities
        options_of_rule: tuple[Any, ...] = (reduction, label_smoothing)
    else:
        rule, options_of_rule = ahead.OfClasses, (ignored, reduction, label_smoothing)
    C = in_low_precision(rule, x, linear_weight, linear_bias, y, weight, *options_of_rule, first=3)
    if input.dim() == 1 and reduction == "none":
        C = C.squeeze(0)
    return C if autocasts(input) else C.to(input.dtype)


def _fits(input: Any, linear_weight: Any, target: Any, **given: Any) -> bool:
    tensors = input, linear_weight, target
    b, w, epsilon = given["linear_bias"], given["weight"], given["label_smoothing"]
    if not all(isinstance(t, Tensor) for t in tensors) or not all(t is None or isinstance(t, Tensor) for t in (b, w)):
        return False
    dtypes = {t.dtype for t in (input, linear_weight, b) if t is not None}
    fits = len(dtypes) == 1 or autocasts(input)
    fits &= all(dtype.is_floating_point for dtype in dtypes) and 1 <= input.dim() <= 2 <= linear_weight.dim()
    if not fits or input.shape[-1] != linear_weight.shape[-1] or input.dim() == 1 < linear_weight.dim() - 1:
        return False
    K, *outer = linear_weight.shape[:-1]
    if (b is not None and b.shape != (K, *outer)) or (w is not None and (w.shape != (K,) or w.dtype not in dtypes)):
        return False
    fits = given["reduction"] in ("none", "sum", "mean") and 0 <= epsilon <= 1
    if target.shape == (*input.shape[:-1], K, *outer):
        return fits and target.dtype in dtypes and given["ignore_index"] is None
    if target.dtype != torch.int64 or target.shape != (*input.shape[:-1], *outer):
        return False
    return fits and not (w is not None and w.requires_grad and torch.is_grad_enabled())


def _shape_of(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _by_torch(input: Any, linear_weight: Any, target: Any, **given: Any) -> Tensor:
    function = getattr(torch_functional, "linear_cross_entropy", None)
    if function is not None:
        result: Tensor = function(input, linear_weight, target, **given)
        return result
    b, ignored = given.pop("linear_bias"), given.pop("ignore_index")
    given |= {} if ignored is None else {"ignore_index": ignored}
    return torch_functional.cross_entropy(torch_functional.linear(input, linear_weight, b), target, **given)
