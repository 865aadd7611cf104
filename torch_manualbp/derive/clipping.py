"""Clipping of the gradients between the way back and the update.

::

    ‖g‖ = √ Σ g²                                        over all entries of all gradients
    by norm:     g ← g min(1, clip_norm / (‖g‖ + 1e-6))
    by value:    g ← min(max(g, −clip_value), clip_value)

as ``clip_grad_norm_`` and ``clip_grad_value_`` of torch.nn.utils have it, in this order. The norm asks for all
gradients before the first parameter changes, so that none of them is folded into the product that makes it. The bounds
are inputs of the step, as learning rates are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import foreach_mul_, foreach_norm
from torch_manualbp.derive.program import MADE, Call, Formula, Memory, Program, Text, Value
from torch_manualbp.derive.textbook import define

__all__ = ["BOUNDS", "NORM", "clip", "norm_function", "write_clipping"]

BOUNDS = ("clip_norm", "clip_value")
"""The bounds, as the step is given them."""

NORM = "norm_of_all"
SECTION = "clipping"
EPS = 1e-6
SMALL = 1 << 16
"""Numbers up to which a gradient is scaled in one call with others."""


def clip(program: Program, gradients: Sequence[Value], how: Any) -> Value | None:
    """Record how gradients, which have memory of their own, are clipped in place. Returns their norm, if it is asked
    for."""
    program.section, program.title = SECTION, ()
    norm = _norm(program, gradients, how.compile) if how.needs_norm else None
    if norm is not None and how.clip_norm:
        program.title = ("clip_norm", "g ← g min(1, clip_norm / (‖g‖ + 1e-6))")
        scale = _scale(program, norm)
        small = [g for g in gradients if g.tensor.numel() <= SMALL and not how.compile]
        if small:
            program.append(foreach_mul_, small, scale, writes=small)
        for g in (g for g in gradients if g not in small):
            program.append(Tensor.mul_, g, scale, writes=[g])
    if how.clip_value:
        program.title = ("clip_value", "g ← min(max(g, −clip_value), clip_value)")
        for g in gradients:
            program.append(Tensor.clamp_, g, Text("-clip_value"), Text("clip_value"), writes=[g])
    return norm


def _norm(program: Program, gradients: Sequence[Value], pure: bool) -> Value:
    program.title = ("the norm of all gradients", "‖g‖ = √ Σ g²")
    tensors = [g.tensor for g in gradients]
    with torch.no_grad():
        if pure:
            norms = [program.call(torch.linalg.vector_norm, (t,), {}) for t in tensors]
        else:
            norms = list(program.call(foreach_norm, (tensors,), {}))
        norm = program.value(program.call(torch.linalg.vector_norm, (program.call(torch.stack, (norms,), {}),), {}))
    norm.name, norm.is_named = "grad_norm", True
    return norm


def _scale(program: Program, norm: Value) -> Value:
    """min(1, clip_norm / (‖g‖ + 1e-6)), as a tensor of no dimension."""
    with torch.no_grad():
        ratio = program.add(torch.ones_like(norm.tensor), MADE, "ratio")
        above = program.value(program.call(torch.add, (norm.tensor, EPS), {}))
        quotient = Call(Tensor.__rtruediv__, (above, Text("clip_norm")), {}, (ratio,), made=frozenset([ratio.memory]))
        quotient.section, quotient.title = program.section, program.title
        program.calls.append(quotient)
        scale = program.value(program.call(torch.clamp, (ratio.tensor,), {"max": 1.0}))
    scale.name, scale.is_named = "clip", True
    return scale


def write_clipping(
    program: Program, learnt: Mapping[Value, Value], how: Any
) -> tuple[dict[Value, Value], Value | None]:
    """The same as formulas: the clipped gradients by parameter, and their norm."""
    program.section, program.title = SECTION, ()
    gradients, norm = dict(learnt), None
    if how.needs_norm:
        places = ", ".join("{}" for _ in gradients)
        program.title = ("the norm of all gradients", "‖g‖ = √ Σ g²")
        like = Value(torch.zeros((), dtype=_dtype_of_norm(gradients.values())), Memory(MADE))
        norm = define(program, "grad_norm", Formula(f"{NORM}({places})", tuple(gradients.values())), like)
    if norm is not None and how.clip_norm:
        program.title = ("clip_norm", "g ← g min(1, clip_norm / (‖g‖ + 1e-6))")
        scale = define(program, "clip", Formula(f"torch.clamp(clip_norm / ({{}} + {EPS}), max=1)", (norm,)), norm)
        for W, g in gradients.items():
            gradients[W] = define(program, f"d{W.name}_scaled", Formula("{} * {}", (scale, g)), g)
    if how.clip_value:
        program.title = ("clip_value", "g ← min(max(g, −clip_value), clip_value)")
        for W, g in gradients.items():
            text = "torch.clamp({}, -clip_value, clip_value)"
            gradients[W] = define(program, f"d{W.name}_clipped", Formula(text, (g,)), g)
    return gradients, norm


def _dtype_of_norm(gradients: Iterable[Value]) -> torch.dtype:
    found = torch.bool
    for g in gradients:
        found = torch.promote_types(found, g.tensor.dtype.to_real())
    return found


def norm_function() -> list[str]:
    """The function that formulas call, as its lines."""
    return [
        f"def {NORM}(*gradients):",
        '    """‖g‖ = √ Σ g² over all entries of all gradients."""',
        "    norms = [torch.linalg.vector_norm(g) for g in gradients]",
        "    return torch.linalg.vector_norm(torch.stack(norms))",
    ]
