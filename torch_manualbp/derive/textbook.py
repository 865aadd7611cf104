"""The update of an optimizer in the formulas of a textbook, one line a quantity, for the article of a step.

With g = ∂C/∂W, negated where the optimizer maximises, and + λ W where weight decay belongs to the gradient,

::

    SGD      v ← μ v + (1 − d) g                   W ← W − η v           (g in the place of v without momentum;
                                                                          g + μ v with Nesterov's)
    Adam     m ← β₁ m + (1 − β₁) g                 v ← β₂ v + (1 − β₂) g²
             W ← W − η m̂ / (√v̂ + ε)                m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from torch_manualbp.derive.program import MADE, Call, Formula, Memory, Program, Text, Value
from torch_manualbp.derive.update import SGD, Adam

__all__ = ["APPLY", "define", "functions_of", "write_update"]

Learnt = Sequence[tuple[Value, Value, dict[str, Value]]]
"""Parameters, their gradients, and the state that the optimizer has of each."""


APPLY = "()"
"""What stands for the function of a call whose first argument is the name of a function that the text defines."""


def write_update(form: Any, program: Program, learnt: Learnt) -> None:
    """Record the update of parameters from their gradients, with the state that belongs to each."""
    for W, g, state in learnt:
        _WRITERS[type(form)](form, program, W, g, state)


def functions_of(forms: Iterable[Any]) -> Iterator[list[str]]:
    """The functions that the updates call, each as its lines."""
    for form in {_name_of(form): form for form in forms if isinstance(form, Adam)}.values():
        yield list(_adam_function(form))


def _sgd(form: SGD, program: Program, W: Value, dW: Value, state: dict[str, Value]) -> None:
    x = form.suffix
    lr, mu, damped = f"lr{x}", f"momentum{x}", f"(1 - dampening{x}) * " if form.dampening else ""
    g = _gradient(form.maximize, f"weight_decay{x}" if form.weight_decay else "", W, dW)
    lines = ["g = −∂C/∂W" if form.maximize else "g = ∂C/∂W"]
    lines[0] += " + λ W" if form.weight_decay else ""
    rate = "η = lr" + (",  λ = weight_decay" if form.weight_decay else "")
    if not form.momentum:
        program.title = ("SGD", f"W ← W − η g,  {lines[0]},  {rate}")
        _change(program, W, "-=", f"{lr} * {_factor(g)}", g.values)
        return
    v = state["momentum_buffer"]
    factor = "(1 − d) " if form.dampening else ""
    moved = "(g + μ v)" if form.nesterov else "v"
    rate += ",  μ = momentum" + (",  d = dampening" if form.dampening else "")
    program.title = ("SGD", f"v ← μ v + {factor}g,  W ← W − η {moved},  {lines[0]},  {rate}")
    if form.nesterov and len(g.values) > 1:
        g = Formula("{}", (define(program, f"g_{W.name}", g, W),))
    _change(program, v, "=", f"{mu} * {{}} + {damped}{_factor(g) if damped else g.text}", (v, *g.values))
    if form.nesterov:
        _change(program, W, "-=", f"{lr} * ({g.text} + {mu} * {{}})", (*g.values, v))
    else:
        _change(program, W, "-=", f"{lr} * {{}}", (v,))


def _adam(form: Adam, program: Program, W: Value, dW: Value, state: dict[str, Value]) -> None:
    numbers = [Text(f"{name}{form.suffix}") for name in form.settings]
    program.title = ()
    changed = [W, *state.values()]
    program.append(APPLY, Text(_name_of(form)), W, dW, *state.values(), *numbers, writes=changed)


def _name_of(form: Adam) -> str:
    signs = (("amsgrad", form.amsgrad), ("maximizing", form.maximize))
    return "_".join(["adamw" if form.decoupled else "adam", *(sign for sign, is_there in signs if is_there)])


def _adam_function(form: Adam) -> Iterator[str]:
    """Adam's formulas, which each parameter takes in turn."""
    state = ["t", "m", "v", *(["v_max"] if form.amsgrad else [])]
    name = "AdamW" if form.decoupled else "Adam"
    yield f"def {_name_of(form)}({', '.join(['W', 'g', *state, *form.settings])}):"
    yield f'    """{name}\'s update of W by g = ∂C/∂W at step t."""'
    yield "    t += 1"
    if form.maximize:
        yield "    g = -g"
    yield "    W *= 1 - lr * weight_decay" if form.decoupled else "    g = g + weight_decay * W"
    yield "    m[...] = beta1 * m + (1 - beta1) * g"
    yield "    v[...] = beta2 * v + (1 - beta2) * g ** 2"
    if form.amsgrad:
        yield "    v_max[...] = torch.maximum(v_max, v)"
    # float32 counts the steps exactly, and is too short for their powers.
    yield "    m_hat = m / (1 - beta1 ** t.double())"
    yield f"    v_hat = {state[-1]} / (1 - beta2 ** t.double())"
    yield "    W -= lr * m_hat / (v_hat.sqrt() + eps)"


_WRITERS: dict[type, Any] = {SGD: _sgd, Adam: _adam}


def _gradient(maximizes: bool, decay: str, W: Value, dW: Value) -> Formula:
    """What the optimizer descends along."""
    sign = "-" if maximizes else ""
    return Formula(f"{sign}{{}} + {decay} * {{}}", (dW, W)) if decay else Formula(f"{sign}{{}}", (dW,))


def _factor(g: Formula) -> str:
    """Its text as a factor."""
    return g.text if len(g.values) == 1 else f"({g.text})"


def define(program: Program, name: str, formula: Formula, like: Value) -> Value:
    """A line that makes a quantity of this name."""
    memory = Memory(MADE)
    value = Value(torch.empty_like(like.tensor), memory, name, is_named=True)
    made = Call("=", (None, formula), {}, (value,), made=frozenset([memory]))
    made.section, made.title = program.section, program.title
    program.calls.append(made)
    return value


def _change(program: Program, target: Value, sign: str, text: str, values: tuple[Value, ...] = ()) -> None:
    """A line that changes what stays from step to step: ``target -= …``, or all of its entries by ``=``."""
    program.append(sign, target, Formula(text, values), writes=[target])
