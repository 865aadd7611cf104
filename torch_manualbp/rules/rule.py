"""What every rule shares: a fast ``apply``, forward mode beside torch.compile, and one rounding in low precision.

A rule is calculus: where it runs is asked here and in :mod:`torch_manualbp.kernels`, and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionMeta
from torch.nn import Parameter

from torch_manualbp._torch import (
    forward_mode_level,
    functorch_levels_of_forward_mode,
    is_compiling,
    is_jit_tracing,
    is_transformed,
)
from torch_manualbp.rules.jacobian import Jacobian
from torch_manualbp.rules.recording import recorder

__all__ = ["Rule", "RuleWithByproducts", "evaluate_by", "formula", "in_dtype", "learning", "output_of", "widened"]

F = TypeVar("F", bound=Callable[..., Any])

Structure = Literal["entries", "rows", "sums", "whole"]
"""Which parts of a formula can be computed apart: each entry of the result from the same entry of each tensor, each row
from the same rows, a sum from the sums of parts, or none."""

_evaluate: Callable[[Callable[..., Any], Structure, tuple[Any, ...]], Any] | None = None
"""What evaluates the formulas: the dispatcher of :mod:`torch_manualbp.kernels`; None: they run as they stand."""


def evaluate_by(dispatcher: Callable[[Callable[..., Any], Structure, tuple[Any, ...]], Any] | None) -> None:
    """Have ``dispatcher(formula, structure, args)`` evaluate the formulas, or with None let them run as they stand."""
    global _evaluate
    _evaluate = dispatcher


def formula(by: Structure) -> Callable[[F], F]:
    """Say which parts of a formula can be computed apart, so that something faster may evaluate it.

    It takes its arguments by position; its first is a tensor, or None and its second is one.
    """

    def declare(function: F) -> F:
        @functools.wraps(function)
        def evaluated(*args: Any) -> Any:
            return function(*args) if _evaluate is None else _evaluate(function, by, args)

        return evaluated  # type: ignore[return-value]

    return declare


class Rule(Function):
    """The calculus of one operation, as a ``torch.autograd.Function``.

    A rule is written with static methods, as torch documents them for ``Function``:

    - ``forward(*args)`` computes the operation, out of place, and returns a new tensor;
    - ``setup_context(ctx, inputs, output)`` keeps what the needed gradients use, with ``ctx.save_for_backward``, and
      for forward mode with ``ctx.save_for_forward`` (which holds nothing once ``apply`` has returned);
    - ``backward(ctx, upstream)`` is the formula: one gradient, or ``None``, for each argument of ``forward``;
    - ``jvp(ctx, *tangents)`` is the formula of forward mode; a tangent is ``None`` where its argument has none.

    ``backward`` and ``jvp`` are made of differentiable torch operations, so that a rule can be differentiated again.
    Call a rule as ``TheRule.apply(*args)`` with all of its arguments, positionally.

    Where ATen's function, which ``forward`` calls, lacks what torch.func's transforms ask for, the rule has

    - ``composite(*args)``: the same forward, made of functions that have it;
    - ``compiles_composite``, if torch.compile is to trace that, too, because it makes less of ATen's function.

    ``jacobian`` says what its Jacobian looks like, from which an explanation takes its factors.
    """

    generate_vmap_rule = True

    jacobian: ClassVar[Jacobian] = Jacobian()

    composite: ClassVar[Callable[..., Any] | None] = None
    compiles_composite: ClassVar[bool] = False

    with_jvp: ClassVar[type[Rule]]
    """The same rule with its ``jvp`` visible to torch; ``apply`` picks it where forward mode may be running."""

    _is_twin: ClassVar[bool] = False
    _jvp: ClassVar[Any] = staticmethod(Function.jvp)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # torch.compile refuses a Function that has a jvp, even where only reverse mode is used (pytorch#118397,
        # pytorch#180284), and looks for it on the class itself, passing by our apply. So the rule proper has none,
        # and a twin with it serves eager forward mode.
        super().__init_subclass__(**kwargs)
        if "_is_twin" in vars(cls):
            return
        if "composite" in vars(cls):
            cls.forward = staticmethod(_or_composite(cls))  # type: ignore[method-assign]
        if "jvp" in vars(cls):
            cls._jvp = vars(cls)["jvp"]
            del cls.jvp
        inherited = next(vars(base)["_jvp"] for base in cls.__mro__ if "_jvp" in vars(base))
        members = {"__module__": cls.__module__, "__doc__": cls.__doc__, "jvp": inherited, "_is_twin": True}
        cls.with_jvp = type(cls.__name__, (cls,), members)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the rule on all arguments of its ``forward``, in order."""
        tape = recorder()
        if tape is not None:
            return tape.apply(cls, args)
        # Function.apply inspects the signature of forward at every call: 42 µs for a tiny Linear, against 8 µs for its
        # base class's apply, which does all that is needed when no functorch transform is active.
        if is_transformed():
            if functorch_levels_of_forward_mode() > 1:
                # Forward over forward, torch takes the tangent of a Function for a constant, silently.
                return cls.forward(*args)
            return super(Rule, cls.with_jvp).apply(*args)  # type: ignore[no-untyped-call]
        if forward_mode_level() >= 0:
            return super(Function, cls.with_jvp).apply(*args)  # type: ignore[misc]
        if not torch.is_grad_enabled() or is_jit_tracing() is not None:
            return cls.forward(*args)  # nothing to keep: 5 µs against 12; and torch.jit.trace can hold no Function
        return super(Function, cls).apply(*args)  # type: ignore[misc]

    # Restated, because Function declares backward without keywords, and a type checker would then refuse the rules'
    # own argument names.
    @staticmethod
    def backward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        """∂C/∂(each argument of ``forward``) from the upstream gradient ∂C/∂(output)."""
        raise NotImplementedError("a rule must define backward(ctx, upstream)")


class _CalledByItsApply(FunctionMeta):
    """A metaclass of its own: of a FunctionMeta's class torch.compile passes by the ``apply``."""


class RuleWithByproducts(Rule, metaclass=_CalledByItsApply):
    """A rule that keeps tensors which its forward makes on the way, as log p of a cross-entropy.

    They must be outputs: a second derivative sees nothing behind a kept tensor that is neither an output nor an
    argument. ``apply`` returns the first output alone, or the first ``outputs``, everywhere; ``with_byproducts`` all of
    them. The rule is written with

    - ``forward(*args)``, which returns a tuple: the outputs, then the byproducts; or the output alone, where it has
      none to keep;
    - ``alone(*args)``, which returns the output alone, for where byproducts are not to be kept;
    - ``setup_context(ctx, inputs, output)`` with what forward returned as ``output``. It calls
      ``ctx.set_materialize_grads(False)``, so that no gradients of zeros are made for the byproducts, and may run more
      than once a call, as torch.func's transforms do, with a ``ctx.needs_input_grad`` that differs;
    - ``backward(ctx, upstream, *upstreams)``, with a gradient of each output that forward returned, or None for one
      that has none: a first derivative has ``upstream`` alone, a second may have those of the byproducts alone. (Code
      from torch.compile may give zeros for None.) It adds up the parts of those that are there;
    - ``jvp(ctx, *tangents)``, which returns a tangent of each output that forward returned.
    """

    outputs: ClassVar[int] = 1
    """How many of what forward returns the caller is to see."""

    alone: ClassVar[Callable[..., Any] | None] = None

    _traced: ClassVar[Any]
    """The Function that torch.compile traces."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "alone" in vars(cls):
            cls.forward = staticmethod(_or_alone(cls.forward, cls.alone))  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)
        members = ("forward", "setup_context", "backward")
        cls._traced = type(cls.__name__, (Function,), {name: staticmethod(getattr(cls, name)) for name in members})

    @classmethod
    def apply(cls, *args: Any) -> Any:
        outputs = cls.with_byproducts(*args)
        # torch.func calls the twin's apply in its turn, and its own backward and jvp are of all outputs.
        return outputs if cls._is_twin else output_of(cls, outputs)

    @classmethod
    def with_byproducts(cls, *args: Any) -> Any:
        """Run the rule on all arguments of its ``forward``, and return the byproducts, too, if it has any."""
        return cls._traced.apply(*args) if is_compiling() else super().apply(*args)


def output_of(rule: Any, result: Any) -> Any:
    """What the caller is to see of what ``forward`` of a rule with byproducts returned."""
    if not isinstance(result, tuple):
        return result
    outputs = getattr(rule, "outputs", 1)
    return result[0] if outputs == 1 else result[:outputs]


def _or_composite(rule: Any) -> Callable[..., Any]:
    forward, composite, compiles = rule.forward, rule.composite, rule.compiles_composite

    @functools.wraps(forward)
    def forward_or_composite(*args: Any) -> Any:
        return composite(*args) if (compiles and is_compiling()) or is_transformed() else forward(*args)

    return forward_or_composite


def _or_alone(forward: Callable[..., Any], alone: Any) -> Callable[..., Any]:
    @functools.wraps(forward)
    def forward_or_alone(*args: Any) -> Any:
        return alone(*args) if _keeps_arguments(args) else forward(*args)

    return forward_or_alone


def _keeps_arguments(args: tuple[Any, ...]) -> bool:
    """Whether a rule of these is to keep its arguments, and no byproducts: torch.compile decides itself what of the
    forward is kept and what is computed again, a step that is derived has them in any case, torch.jit.trace keeps
    nothing, and a subclass such as DTensor may have functions of its own for the whole."""
    if is_compiling() or recorder() is not None or is_jit_tracing() is not None:
        return True
    return any(isinstance(t, Tensor) and type(t) not in (Tensor, Parameter) for t in args)


def learning(args: Iterable[Any]) -> list[bool]:
    """Which arguments a forward may take for ones whose gradient is asked for: none under torch.func's transforms,
    where ``setup_context`` sees others."""
    if is_transformed():
        return [False for _ in args]
    return [isinstance(t, Tensor) and t.requires_grad for t in args]


def widened(t: Tensor) -> Tensor:
    """``t`` in the precision that formulas compute in: float32 for float16 and bfloat16, its own otherwise.

    Rounding to 8 bits at every step instead costs up to 34 ulp where ATen's kernels, which widen too, are within 1.
    """
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def in_dtype(dtype: torch.dtype, gradient: Tensor) -> Tensor:
    """The gradient of an argument of ``dtype``: for a real one the real part, where ``to`` alone would warn."""
    if gradient.dtype == dtype:
        return gradient
    return (gradient.real if gradient.is_complex() and not dtype.is_complex else gradient).to(dtype)
