"""What stands between a Function and autograd: the forward alone, for autograd to differentiate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd import function as function_module
from torch.autograd.function import BackwardCFunction
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from torch_manualbp._torch import FunctionBase, OpOverload, OverloadPacket, PlainFunction
from torch_manualbp.rules.rule import RuleWithByproducts, output_of
from torch_manualbp.verify.check import DoesNotApply

__all__ = [
    "Application",
    "UnseenFunctionError",
    "applied_in_forward",
    "in_plain_autograd",
    "is_custom_operator",
    "is_function",
    "is_old_style",
    "operator_named",
    "recorded",
    "run_forward",
]

_IS_ENGINES = vars(Function)["apply"] is vars(FunctionBase)["apply"]
"""Whether ``Function.apply`` is the engine's, as it is since torch 2.14."""

Handler = Callable[[type[Function], Sequence[Any]], Any]


def is_function(target: Any) -> bool:
    """Whether it is an ``autograd.Function``, a class that is applied and never instantiated."""
    return isinstance(target, type) and issubclass(target, Function)


def is_custom_operator(target: Any) -> bool:
    """Whether it is an operator of ``torch.library``: the object that ``custom_op`` makes, or ``torch.ops.ns.op``."""
    return isinstance(target, CustomOpDef | OverloadPacket | OpOverload) and not str(target).startswith("aten.")


def operator_named(target: Any) -> Any:
    """The operator that ``"ns::op"`` names; the Function of an ``apply`` that this torch would call unseen; anything
    else as it is."""
    if _IS_ENGINES and getattr(target, "__name__", "") == "apply" and is_function(getattr(target, "__self__", None)):
        return target.__self__
    if not isinstance(target, str) or "::" not in target:
        return target
    namespace, _, name = target.partition("::")
    try:
        return getattr(getattr(torch.ops, namespace), name)
    except AttributeError as error:
        raise ValueError(f"there is no operator {target!r}: import what registers it first") from error


def is_old_style(function: type[Function]) -> bool:
    """Whether its ``forward`` takes the ctx, and there is no ``setup_context``."""
    return function.setup_context is Function.setup_context


def run_forward(function: type[Function], args: Sequence[Any]) -> Any:
    """``forward`` of the Function on ordinary tensors, in either style: autograd records the operations in it."""
    if not is_old_style(function):
        result = function.forward(*args)
        return output_of(function, result) if issubclass(function, RuleWithByproducts) else result
    ctx = _Context(args)
    if function.__name__.startswith("GeneratedBackwardFor_"):  # torch.library's, of an operator that is its own kernel
        with torch.no_grad():
            return function.forward(ctx, *[a.detach() if isinstance(a, Tensor) else a for a in args])
    result = function.forward(ctx, *args)
    if not ctx.constant:
        return result
    results = (result,) if isinstance(result, Tensor) else tuple(result)
    results = tuple(r.detach() if any(r is c for c in ctx.constant) else r for r in results)
    return results[0] if isinstance(result, Tensor) else results


class _Context(SimpleNamespace):
    """What a ``forward`` in the ctx style may ask of its ctx while nothing is to be kept."""

    def __init__(self, args: Sequence[Any]) -> None:
        super().__init__()
        self.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        self.constant: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_non_differentiable(self, *tensors: Any) -> None:
        self.constant = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


@contextmanager
def in_plain_autograd() -> Iterator[list[type[Function]]]:
    """Every Function that is applied in this thread runs its forward on ordinary tensors, and autograd differentiates
    that. Yields the list of the Functions that were met."""
    met: list[type[Function]] = []

    def run(function: type[Function], args: Sequence[Any]) -> Any:
        met.append(function)
        if issubclass(function, RuleWithByproducts):  # whose apply, or caller, takes of all outputs what it needs
            return function.forward(*args)
        return run_forward(function, args)

    with _applied_by(run), _transformed_by(run):
        yield met


@contextmanager
def _transformed_by(handler: Handler) -> Iterator[None]:
    """Inside of torch.func Functions are not applied, but called with the rules that they have for its transforms."""
    module: Any = function_module
    here, before = threading.get_ident(), module.custom_function_call

    def call(cls: type[Function], *args: Any) -> Any:
        return handler(cls, args) if threading.get_ident() == here else before(cls, *args)

    module.custom_function_call = call
    try:
        yield
    finally:
        module.custom_function_call = before


@dataclass(frozen=True)
class Application:
    """One call of a Function: what it was given, and its node in the graph."""

    function: type[Function]
    args: tuple[Any, ...]
    results: tuple[Any, ...]

    @property
    def node(self) -> Any:
        """The node whose ``apply`` is the Function's ``backward``, or None where nothing needs a gradient."""
        return next((r.grad_fn for r in self.results if isinstance(r, Tensor) and r.grad_fn is not None), None)


@contextmanager
def recorded() -> Iterator[list[Application]]:
    """Yields the list of all applications of Functions in this thread."""
    found: list[Application] = []

    def run(function: type[Function], args: Sequence[Any]) -> Any:
        result = super(PlainFunction, function).apply(*args)  # type: ignore[misc]
        results = result if isinstance(result, tuple | list) else (result,)
        found.append(Application(function, tuple(args), tuple(results)))
        return result

    with _applied_by(run):
        yield found


@contextmanager
def _applied_by(handler: Handler) -> Iterator[None]:
    # Every way to apply a Function passes here on to the engine: Function.apply, an apply of the class's own, and a
    # bound `MyFunction.apply` that was taken long before. Nothing is defined there otherwise. Since torch 2.14
    # Function.apply is the engine's itself, so that one taken before is bound to that, and makes its ctx unseen.
    here = threading.get_ident()
    is_seen: list[bool] = []

    def apply(cls: type[Function], *args: Any) -> Any:
        if threading.get_ident() != here:
            return super(PlainFunction, cls).apply(*args)  # type: ignore[misc]
        is_seen.append(True)
        try:
            return handler(cls, args)
        finally:
            is_seen.pop()

    def make_ctx(ctx: Any, *args: Any) -> None:
        if threading.get_ident() == here and not is_seen:
            raise UnseenFunctionError(_UNSEEN.format(ctx._forward_cls.__name__))

    patched: Any = classmethod(apply)
    with _replaced(PlainFunction, "apply", patched):
        if not _IS_ENGINES:
            yield
        else:
            with _replaced(Function, "apply", patched), _replaced(BackwardCFunction, "__init__", make_ctx):
                yield


@contextmanager
def _replaced(cls: Any, name: str, by: Any) -> Iterator[None]:
    """A member of a class replaced for a while."""
    before = vars(cls).get(name)
    setattr(cls, name, by)
    try:
        yield
    finally:
        if before is None:
            delattr(cls, name)
        else:
            setattr(cls, name, before)


class UnseenFunctionError(DoesNotApply):
    """A Function is applied in a way that cannot be seen, so that its forward alone cannot be had."""


_UNSEEN = (
    "{0}.apply was taken before the verification began, and this torch applies it unseen: pass {0} itself, or call "
    "{0}.apply where it is used"
)


def applied_in_forward(function: Callable[..., Any], *args: Any) -> list[type[Function]]:
    """The Functions that one call applies."""
    with torch.enable_grad(), in_plain_autograd() as met:
        function(*args)
    return met
