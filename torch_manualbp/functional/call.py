"""How a function of ours calls its rule: tensor subclasses, autocast, and the places where no Function can run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, is_grad_enabled
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary

import torch_manualbp.kernels  # noqa: F401 # which evaluates the formulas
from torch_manualbp._torch import (
    forward_mode_level,
    is_autocast_enabled,
    is_dynamo_compiling,
    is_jit_tracing,
    is_transformed,
    legacy_reduction_name,
)
from torch_manualbp.rules.recording import recorder
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, output_of

__all__ = [
    "autocasts",
    "in_full_precision",
    "in_full_precision_on_cpu",
    "in_low_precision",
    "in_place",
    "in_precision_of",
    "is_unwatched",
    "legacy_reduction",
    "overridable",
    "overridable_rule",
    "run",
    "run_in_place",
    "run_whole",
    "run_with_byproducts",
]

F = TypeVar("F", bound=Callable[..., Any])

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # which torch 2.6 lacks


def overridable(function: F) -> F:
    """Let a tensor subclass or a mode, which fx's symbolic tracing is one of, take the call over, as torch's do."""

    @functools.wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        relevant = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(relevant):
            tensors = tuple(arg for arg in relevant if isinstance(arg, Tensor) or hasattr(arg, "__torch_function__"))
            return handle_torch_function(public, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return public  # type: ignore[return-value]


def overridable_rule(rule: type[Rule]) -> Callable[[F], F]:
    """:func:`overridable` of a function of one tensor that is a rule and nothing else, in half of the time where its
    forward is all there is to do: a policy that acts on one observation feels each microsecond."""

    def declare(function: F) -> F:
        forward = rule.forward

        @functools.wraps(function)
        def public(input: Any) -> Any:
            if has_torch_function_unary(input):
                return handle_torch_function(public, (input,), input)
            return forward(input) if is_unwatched() else function(input)

        return public  # type: ignore[return-value]

    return declare


def run(rule: type[Rule], *args: Any) -> Any:
    """``rule.apply(*args)``, or where no Function can run, its forward alone, which torch differentiates itself."""
    if is_unwatched():
        return output_of(rule, rule.forward(*args))
    if _is_forward_alone(args[0]):
        return output_of(rule, rule.forward(*args))
    return rule.apply(*(_distinct(args) if torch.compiler.is_compiling() else args))


def is_unwatched() -> bool:
    """Whether nobody asks for gradients, nor traces or records what is called: a layer's forward is all there is to do,
    and the other questions take as long as a small one."""
    return not (
        is_grad_enabled()
        or is_dynamo_compiling()
        or is_transformed()
        or forward_mode_level() >= 0
        or recorder() is not None
        or is_jit_tracing() is not None
    )


def run_whole(rule: type[Rule], *args: Any) -> Any:
    """The same of a rule whose outputs are all the caller's; torch.compile cannot ask it for their number."""
    if _is_forward_alone(args[0]):
        return rule.forward(*args)
    return rule.apply(*(_distinct(args) if torch.compiler.is_compiling() else args))


def run_with_byproducts(rule: type[RuleWithByproducts], *args: Any) -> Any:
    """The same with all that the rule's forward returns."""
    if _is_forward_alone(args[0]):
        return rule.forward(*args)
    return rule.with_byproducts(*(_distinct(args) if torch.compiler.is_compiling() else args))


def _is_forward_alone(input: Any) -> bool:
    """Whether ragged and sparse tensors have other formulas, or torch.compile cannot vmap over a Function, or
    torch.export(strict=True) would take its forward for a constant."""
    if isinstance(input, Tensor) and (input.layout is not torch.strided or input.is_nested):
        return True
    return torch.compiler.is_compiling() and (is_transformed() or _is_exporting())


def in_low_precision(rule: type[Rule], *args: Any, first: int | None = None) -> Any:
    """``run(rule, *args)``, under autocast in its dtype, as autocast runs matrix products: all tensors, or the first
    so many."""
    if is_autocast_enabled() and autocasts(args[0]):
        return _run_cast(rule, torch.get_autocast_dtype(args[0].device.type), args, first)
    return run(rule, *args)


def in_full_precision(rule: type[Rule], *args: Any) -> Any:
    """``run(rule, *args)``, under autocast in float32, as autocast runs losses."""
    if is_autocast_enabled() and autocasts(args[0]):
        return _run_cast(rule, torch.float32, args)
    return run(rule, *args)


def in_full_precision_on_cpu(rule: type[Rule], *args: Any) -> Any:
    """``run(rule, *args)``, under autocast on the CPU in float32, where autocast runs some functions so there alone."""
    if is_autocast_enabled() and autocasts(args[0]) and args[0].device.type == "cpu":
        return _run_cast(rule, torch.float32, args)
    return run(rule, *args)


def in_precision_of(state: Tensor, rule: type[Rule], *args: Any) -> Any:
    """``run(rule, *args)``, under autocast in the dtype of the state, which torch's own steps come back to."""
    if is_autocast_enabled() and autocasts(args[0]):
        return _run_cast(rule, state.dtype, args)
    return run(rule, *args)


def in_place(input: Tensor, output: Tensor) -> Tensor:
    """Write the output of a rule over its input: Function's own in-place protocol, mark_dirty, fails under vmap and
    torch.compile."""
    return input.copy_(output)


def run_in_place(rule: type[Rule], input: Tensor, *options: Any) -> Tensor:
    """Write the output of a rule that keeps its input over it; what it keeps is a copy."""
    return in_place(input, run(rule, input.clone(), *options))


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that torch's deprecated flags mean, with torch's warning."""
    if size_average is not None or reduce is not None:
        return legacy_reduction_name(size_average, reduce)
    return reduction


def _distinct(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """No tensor twice: torch.compile refuses such a call of a Function, and older versions lost half of the gradient
    (pytorch#183604)."""
    distinct: list[Any] = []
    for arg in args:
        again = isinstance(arg, Tensor) and any(arg is other for other in distinct)
        distinct.append(arg.view_as(arg) if again else arg)
    return tuple(distinct)


def autocasts(input: Any) -> bool:
    """Whether autocast is on where this tensor is."""
    if not isinstance(input, Tensor):
        return False  # of what is no tensor the forward says that it takes none
    device = input.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def _run_cast(rule: type[Rule], dtype: torch.dtype, args: tuple[Any, ...], first: int | None = None) -> Any:
    """Cast outside the Function, where autograd casts the gradients back: ``custom_fwd`` cannot be had together with
    ``setup_context`` (pytorch#132388). As autocast does, leave float64, integers and other devices as they are."""
    device = args[0].device.type

    def cast(arg: Any) -> Any:
        if not (isinstance(arg, Tensor) and arg.is_floating_point() and arg.device.type == device):
            return arg
        return arg if arg.dtype == torch.float64 else arg.to(dtype)

    with torch.autocast(device, enabled=False):
        return run(rule, *(cast(arg) for arg in args[:first]), *(() if first is None else args[first:]))
