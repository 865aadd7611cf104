"""The losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp._torch import is_traced_by_make_fx, is_transformed
from torch_manualbp.functional.call import in_full_precision, legacy_reduction, overridable, run
from torch_manualbp.rules.recording import recorder
from torch_manualbp.rules.rule import Rule

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
]


@overridable
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """C_i = |s_i − y_i|, with :class:`~torch_manualbp.rules.Difference` and
    :class:`~torch_manualbp.rules.AbsoluteError`.

    As :func:`torch.nn.functional.l1_loss`. The reduction of a weighted loss, Σ v_i C_i / Σ v_i, is left to autograd.
    """
    if not _are_tensors(input, target) or reduction not in _REDUCTIONS or not _fits(weight, input):
        kwargs = {} if weight is None else {"weight": weight}
        return torch_functional.l1_loss(input, target, size_average, reduce, reduction, **kwargs)  # says what is wrong
    if input.shape != target.shape:
        _have_torch_say(torch_functional.l1_loss, input, target)
    reduction = legacy_reduction(size_average, reduce, reduction)
    if weight is None:
        return _absolute_error(input, target, reduction)
    weighted = _absolute_error(input, target, "none") * weight
    return _reduced(weighted, reduction, weight.sum())


@overridable
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """C_i = (s_i − y_i)² / 2β where |s_i − y_i| < β, elsewhere |s_i − y_i| − β / 2, with
    :class:`~torch_manualbp.rules.SmoothAbsoluteError`; as :func:`torch.nn.functional.smooth_l1_loss`."""
    if not _are_tensors(input, target) or reduction not in _REDUCTIONS:
        return torch_functional.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)
    if input.shape != target.shape:
        _have_torch_say(torch_functional.smooth_l1_loss, input, target)
    reduction = legacy_reduction(size_average, reduce, reduction)
    if beta == 0:
        return _absolute_error(input, target, reduction)
    return in_full_precision(rules.SmoothAbsoluteError, input, target, beta, reduction)


@overridable
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """C_i = (s_i − y_i)² / 2 where |s_i − y_i| ≤ Δ, elsewhere Δ (|s_i − y_i| − Δ / 2), with
    :class:`~torch_manualbp.rules.Huber`.

    As :func:`torch.nn.functional.huber_loss`. The reduction of a weighted loss is left to autograd.
    """
    if not _are_tensors(input, target) or reduction not in _REDUCTIONS or not _fits(weight, input):
        kwargs = {} if weight is None else {"weight": weight}
        return torch_functional.huber_loss(input, target, reduction, delta, **kwargs)
    if input.shape != target.shape:
        _have_torch_say(torch_functional.huber_loss, input, target)
    if weight is None:
        return in_full_precision(rules.Huber, input, target, delta, reduction)
    weighted = in_full_precision(rules.Huber, input, target, delta, "none") * weight
    return _reduced(weighted, reduction, weighted.numel())


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
    if not _fits(weight, input) or reduction not in _REDUCTIONS:
        # torch says what is wrong; its stub for type checkers has no weight
        return torch_functional.mse_loss(input, target, reduction=reduction, weight=weight)  # type: ignore[call-arg]
    weighted = run(rules.MeanSquaredError, input, target, "none") * weight
    return _reduced(weighted, reduction, weight.sum())


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
    if not _are_tensors(input, target):
        return torch_functional.cross_entropy(input, target, weight, reduction=reduction)  # says what is wrong
    if input.shape == target.shape:
        rule: type[Rule] = rules.CrossEntropyProbabilities
    else:
        rule = rules.CrossEntropy
        if _learns(weight):
            return torch_functional.cross_entropy(input, target, weight)  # which says that weight takes no gradient
    if _is_complex(input, target):
        return torch_functional.cross_entropy(input, target, reduction=reduction)  # which says that it takes none
    return in_full_precision(rule, input, target, weight, ignore_index, reduction, label_smoothing)


@overridable
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = −w_y s_y, with :class:`~torch_manualbp.rules.NegativeLogLikelihood`; as
    :func:`torch.nn.functional.nll_loss`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    if _learns(weight):
        return torch_functional.nll_loss(
            input, target, weight, reduction=reduction
        )  # which says that weight takes no gradient
    return in_full_precision(rules.NegativeLogLikelihood, input, target, weight, ignore_index, reduction)


@overridable
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """C_i = (log v_i + (s_i − y_i)² / v_i) / 2, with :class:`~torch_manualbp.rules.Difference` and
    :class:`~torch_manualbp.rules.GaussianNegativeLogLikelihood`.

    As :func:`torch.nn.functional.gaussian_nll_loss`: a variance below ``eps`` is raised to it, and takes the gradient
    of the raised one.
    """
    if isinstance(var, float) and _are_tensors(input, target) and var >= 0 and not _is_complex(input, target):
        var = var * torch.ones_like(input)
    well_formed = _are_tensors(input, target, var) and reduction in _REDUCTIONS and not _is_complex(input, target, var)
    if not (well_formed and _is_variance_of(var, input)):
        return torch_functional.gaussian_nll_loss(input, target, var, full, eps, reduction)  # says what is wrong
    assert isinstance(var, Tensor)
    v = (var.unsqueeze(-1) if var.dim() < input.dim() else var).clone()
    with torch.no_grad():
        v.clamp_(min=eps)
    # Autocast leaves a composite of torch's to its parts, which on the CPU take what they are given.
    apply = run if input.device.type == "cpu" else in_full_precision
    return apply(rules.GaussianNegativeLogLikelihood, apply(rules.Difference, input, target, 0.0), v, full, reduction)


@overridable
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = exp(s_i) − y_i s_i, or s_i − y_i log(s_i + ε), with
    :class:`~torch_manualbp.rules.PoissonNegativeLogLikelihood`; as :func:`torch.nn.functional.poisson_nll_loss`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    return in_full_precision(
        rules.PoissonNegativeLogLikelihood, input, target, bool(log_input), bool(full), eps, reduction
    )


@overridable
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """C_i = y_i (log y_i − s_i), or exp(y_i) (y_i − s_i), with
    :class:`~torch_manualbp.rules.KullbackLeiblerDivergence`; as :func:`torch.nn.functional.kl_div`."""
    if size_average is not None or reduce is not None:
        # here the deprecated flags leave a division by the batch size as it is
        divides = reduction == "batchmean"
        reduction = legacy_reduction(size_average, reduce, reduction)
        C = in_full_precision(rules.KullbackLeiblerDivergence, input, target, log_target, reduction)
        return C / input.shape[0] if divides and input.dim() else C
    if reduction == "mean":
        nothing = torch.empty(0, device="meta")
        torch_functional.kl_div(nothing, nothing)  # which warns of what "mean" divides by
    return in_full_precision(rules.KullbackLeiblerDivergence, input, target, bool(log_target), reduction)


@overridable
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = −w_i (y_i log s_i + (1 − y_i) log(1 − s_i)), with :class:`~torch_manualbp.rules.BinaryCrossEntropy`; as
    :func:`torch.nn.functional.binary_cross_entropy`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    refused = not _are_tensors(input, target) or (input.device.type == "cuda" and torch.is_autocast_enabled("cuda"))
    if refused or _learns(weight):
        return torch_functional.binary_cross_entropy(
            input, target, weight, reduction=reduction
        )  # which says why it refuses
    return in_full_precision(rules.BinaryCrossEntropy, input, target, weight, reduction)


@overridable
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """C_i = −w_i (p_i y_i log σ(s_i) + (1 − y_i) log σ(−s_i)), with
    :class:`~torch_manualbp.rules.BinaryCrossEntropyWithLogits`; as
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    refused = not _are_tensors(input, target) or _is_complex(input, target)
    if refused or _learns(weight) or _learns(pos_weight):  # torch says what is wrong, or takes no gradient
        return torch_functional.binary_cross_entropy_with_logits(
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        )
    return in_full_precision(rules.BinaryCrossEntropyWithLogits, input, target, weight, pos_weight, reduction)


@overridable
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = s_i where y_i = 1, max(0, margin − s_i) where y_i = −1, with
    :class:`~torch_manualbp.rules.HingeEmbedding`; as :func:`torch.nn.functional.hinge_embedding_loss`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    if not _are_tensors(input, target):
        return torch_functional.hinge_embedding_loss(input, target, reduction=reduction)  # says what is wrong
    return in_full_precision(rules.HingeEmbedding, input, target, margin, reduction)


@overridable
def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """C_i = log(1 + exp(−y_i s_i)), with :class:`~torch_manualbp.rules.SoftMargin`; as
    :func:`torch.nn.functional.soft_margin_loss`."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    if _learns(target) or _is_complex(input, target):
        return torch_functional.soft_margin_loss(
            input, target, reduction=reduction
        )  # which says that target takes no gradient, and complex numbers neither
    return in_full_precision(rules.SoftMargin, input, target, reduction)


_REDUCTIONS = ("none", "sum", "mean")


def _absolute_error(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    return in_full_precision(rules.AbsoluteError, in_full_precision(rules.Difference, input, target, 0.0), reduction)


def _reduced(weighted: Tensor, reduction: str, n: Tensor | int) -> Tensor:
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else weighted.sum() / n


def _are_tensors(*args: Any) -> bool:
    return all(isinstance(arg, Tensor) for arg in args)


def _fits(weight: Any, input: Tensor) -> bool:
    """Whether there is no weight, or one of each entry."""
    return weight is None or (isinstance(weight, Tensor) and weight.shape == input.shape)


def _learns(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled()


def _is_complex(*args: Any) -> bool:
    return any(isinstance(arg, Tensor) and arg.is_complex() for arg in args)


def _is_variance_of(var: Any, input: Tensor) -> bool:
    """Whether no entry is negative, and there is one for each entry, or for each along all dimensions but one."""
    if var.shape not in (input.shape, input.shape[:-1]):
        other = [v for v, size in zip(var.shape, input.shape, strict=False) if v != size]
        if var.dim() != input.dim() or other != [1]:
            return False
    is_traced = torch.compiler.is_compiling() or is_transformed() or recorder() is not None
    is_traced = is_traced or is_traced_by_make_fx()  # make_fx's
    if is_traced or var.is_meta:
        return True  # no number may decide what is traced or mapped
    return not (var < 0).any()


def _have_torch_say(function: Callable[..., Tensor], *tensors: Tensor) -> None:
    """torch's own warning or error about shapes, without its arithmetic."""
    function(*(torch.empty(t.shape, device="meta") for t in tensors))
