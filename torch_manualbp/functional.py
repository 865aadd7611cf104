"""``torch.nn.functional`` over the rules: the same signatures, defaults, reductions and autocast behaviour.

Ours: ``linear``, ``identity``, ``relu``, ``sigmoid``, ``tanh``, ``mse_loss``, ``cross_entropy``. Each is one call of
the rule that it names. Every other name of ``torch.nn.functional`` is handed on as it is, so that a model file changes
one import::

    import torch_manualbp.functional as F      # was: import torch.nn.functional as F
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as _torch_functional
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from torch_manualbp import rules
from torch_manualbp.rules.rule import Rule

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # which torch 2.6 lacks

__all__ = ["cross_entropy", "identity", "linear", "mse_loss", "relu", "sigmoid", "tanh"]


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_functional, name)
    except AttributeError:
        raise AttributeError(f"neither {__name__} nor torch.nn.functional has a {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """z = a Wᵀ + b, with :class:`~torch_manualbp.rules.Linear`; as :func:`torch.nn.functional.linear`."""
    if has_torch_function_variadic(input, weight, bias):
        return _overridden(linear, (input, weight, bias), input, weight, bias=bias)
    return _apply_in_low_precision(rules.Linear, input, weight, bias)


def identity(input: Tensor) -> Tensor:
    """a = z as a node of the graph, with :class:`~torch_manualbp.rules.Identity`."""
    if has_torch_function_unary(input):
        return _overridden(identity, (input,), input)
    return _run(rules.Identity, (input,))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """a = max(z, 0), with :class:`~torch_manualbp.rules.ReLU`; as :func:`torch.nn.functional.relu`."""
    if has_torch_function_unary(input):
        return _overridden(relu, (input,), input, inplace=inplace)
    output = _run(rules.ReLU, (input,))
    # Function's own in-place protocol, mark_dirty, fails under vmap and torch.compile.
    return input.copy_(output) if inplace else output


def sigmoid(input: Tensor) -> Tensor:
    """a = σ(z), with :class:`~torch_manualbp.rules.Sigmoid`; as :func:`torch.nn.functional.sigmoid`."""
    if has_torch_function_unary(input):
        return _overridden(sigmoid, (input,), input)
    return _run(rules.Sigmoid, (input,))


def tanh(input: Tensor) -> Tensor:
    """a = tanh(z), with :class:`~torch_manualbp.rules.Tanh`; as :func:`torch.nn.functional.tanh`."""
    if has_torch_function_unary(input):
        return _overridden(tanh, (input,), input)
    return _run(rules.Tanh, (input,))


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
    if has_torch_function_variadic(input, target, weight):
        return _overridden(
            mse_loss,
            (input, target, weight),
            input,
            target,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            weight=weight,
        )
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if weight is None:
        return _apply_in_full_precision(rules.MeanSquaredError, input, target, reduction)
    if not isinstance(weight, Tensor) or weight.shape != input.shape or reduction not in ("none", "sum", "mean"):
        # torch says what is wrong; its stub for type checkers has no weight
        return _torch_functional.mse_loss(input, target, reduction=reduction, weight=weight)  # type: ignore[call-arg]
    weighted = _run(rules.MeanSquaredError, (input, target, "none")) * weight
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else weighted.sum() / weight.sum()


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
    if has_torch_function_variadic(input, target, weight):
        return _overridden(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.shape == target.shape:
        rule: type[Rule] = rules.CrossEntropyProbabilities
    else:
        rule = rules.CrossEntropy
        if isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled():
            return _torch_functional.cross_entropy(input, target, weight)  # which says that weight takes no gradient
    return _apply_in_full_precision(rule, input, target, weight, ignore_index, reduction, label_smoothing)


def _overridden(function: Any, relevant: tuple[Any, ...], *args: Any, **kwargs: Any) -> Tensor:
    """Hand the call to a tensor subclass or mode, which fx's symbolic tracing is one of."""
    return handle_torch_function(function, relevant, *args, **kwargs)


def _apply_in_low_precision(rule: type[Rule], *args: Any) -> Tensor:
    """``rule.apply(*args)``, under autocast in its dtype, as autocast runs matrix products."""
    if _autocasts(args[0]):
        return _apply_cast(rule, torch.get_autocast_dtype(args[0].device.type), args)
    return _run(rule, args)


def _apply_in_full_precision(rule: type[Rule], *args: Any) -> Tensor:
    """``rule.apply(*args)``, under autocast in float32, as autocast runs losses."""
    if _autocasts(args[0]):
        return _apply_cast(rule, torch.float32, args)
    return _run(rule, args)


def _run(rule: type[Rule], args: tuple[Any, ...]) -> Tensor:
    """``rule.apply(*args)``, or where no Function can run, its forward alone, which torch differentiates itself."""
    input = args[0]
    if isinstance(input, Tensor) and (input.is_nested or input.layout is not torch.strided):
        return rule.forward(*args)  # ragged and sparse tensors have other formulas
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active() or _is_exporting():
            # torch.compile cannot vmap over a Function, and torch.export(strict=True) takes its forward for a constant.
            return rule.forward(*args)
        args = _distinct(args)
    return rule.apply(*args)


def _distinct(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """No tensor twice: torch.compile refuses such a call of a Function, and older versions lost half of the gradient
    (pytorch#183604)."""
    distinct: list[Any] = []
    for arg in args:
        again = isinstance(arg, Tensor) and any(arg is other for other in distinct)
        distinct.append(arg.view_as(arg) if again else arg)
    return tuple(distinct)


def _autocasts(input: Any) -> bool:
    if not isinstance(input, Tensor):
        return False  # the forward says what it takes
    device = input.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def _apply_cast(rule: type[Rule], dtype: torch.dtype, args: tuple[Any, ...]) -> Tensor:
    """Cast outside the Function, where autograd casts the gradients back: ``custom_fwd`` cannot be had together with
    ``setup_context`` (pytorch#132388). As autocast does, leave float64, integers and other devices as they are."""
    device = args[0].device.type

    def cast(arg: Any) -> Any:
        if not (isinstance(arg, Tensor) and arg.is_floating_point() and arg.device.type == device):
            return arg
        return arg if arg.dtype == torch.float64 else arg.to(dtype)

    with torch.autocast(device, enabled=False):
        return _run(rule, tuple(cast(arg) for arg in args))
