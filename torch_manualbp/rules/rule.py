"""What every rule shares: a fast ``apply``, forward mode beside torch.compile, and one rounding in low precision."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionMeta

__all__ = ["Rule", "RuleWithByproducts", "in_dtype", "output_of", "put_on_tape", "runs_forward_mode", "widened"]


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
    """

    generate_vmap_rule = True

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
        if "jvp" in vars(cls):
            cls._jvp = vars(cls)["jvp"]
            del cls.jvp
        inherited = next(vars(base)["_jvp"] for base in cls.__mro__ if "_jvp" in vars(base))
        members = {"__module__": cls.__module__, "__doc__": cls.__doc__, "jvp": inherited, "_is_twin": True}
        cls.with_jvp = type(cls.__name__, (cls,), members)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the rule on all arguments of its ``forward``, in order."""
        tape = _tape
        if tape is not None and tape.is_here():
            return tape.apply(cls, args)
        # Function.apply inspects the signature of forward at every call: 42 µs for a tiny Linear, against 8 µs for its
        # base class's apply, which does all that is needed when no functorch transform is active.
        if torch._C._are_functorch_transforms_active():
            if _levels_of_forward_mode() > 1:
                # Forward over forward, torch takes the tangent of a Function for a constant, silently.
                return cls.forward(*args)
            return super(Rule, cls.with_jvp).apply(*args)  # type: ignore[no-untyped-call]
        if forward_ad._current_level >= 0:
            return super(Function, cls.with_jvp).apply(*args)  # type: ignore[misc]
        if not torch.is_grad_enabled() or torch._C._get_tracing_state() is not None:
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
    argument. ``apply`` returns the first output alone, everywhere. The rule is written with

    - ``forward(*args)``, which returns a tuple: the output, then the byproducts; or the output alone, where it has none
      to keep;
    - ``setup_context(ctx, inputs, output)`` with what forward returned as ``output``. It calls
      ``ctx.set_materialize_grads(False)``, so that no gradients of zeros are made for the byproducts, and may run more
      than once a call, as torch.func's transforms do, with a ``ctx.needs_input_grad`` that differs;
    - ``backward(ctx, upstream, *upstreams)``, with a gradient of each output that forward returned, or None for one
      that has none: a first derivative has ``upstream`` alone, a second may have those of the byproducts alone. (Code
      from torch.compile may give zeros for None.) It adds up the parts of those that are there;
    - ``jvp(ctx, *tangents)``, which returns a tangent of each output that forward returned.
    """

    _traced: ClassVar[Any]
    """The Function that torch.compile traces."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        members = ("forward", "setup_context", "backward")
        cls._traced = type(cls.__name__, (Function,), {name: staticmethod(getattr(cls, name)) for name in members})

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return output_of(cls._traced.apply(*args))
        outputs = super().apply(*args)
        # torch.func calls the twin's apply in its turn, and its own backward and jvp are of all outputs.
        return outputs if cls._is_twin else output_of(outputs)


def output_of(result: Any) -> Any:
    """What the caller is to see of what ``forward`` of a rule with byproducts returned."""
    return result[0] if isinstance(result, tuple) else result


_tape: Any = None
"""What runs the rules of a thread in autograd's place: the tape of a step that is being derived. It has ``apply(rule,
args)``, and ``is_here()`` for whether this is the thread."""


def put_on_tape(tape: Any) -> Any:
    """Have ``tape`` run the rules from now on, or with None autograd again. Returns what ran them before."""
    global _tape
    before, _tape = _tape, tape
    return before


def runs_forward_mode() -> bool:
    """Whether a ``jvp`` may be asked for."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _levels_of_forward_mode() -> int:
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return sum(i.key() == torch._C._functorch.TransformType.Jvp for i in interpreters)


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
