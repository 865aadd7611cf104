"""``torch.autograd.grad`` inside of a forward or a loss: gradient penalties, and losses of differential equations.

The rules' backward formulas run as a part of forward, each of their calls by a rule again: so the way back of the step
goes through them, by the rules' second derivatives.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_manualbp.derive.program import Value

if TYPE_CHECKING:
    from torch_manualbp.derive.tape import Tape

__all__ = ["gradients_inside"]

Tensors = Tensor | Sequence[Tensor]


def gradients_inside(
    tape: Tape,
    outputs: Tensors,
    inputs: Tensors,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """What ``torch.autograd.grad`` returns of the same arguments.

    Raises:
        NotImplementedError: gradients of several upstreams at once.
        RuntimeError: where torch raises it.
    """
    if is_grads_batched:
        raise NotImplementedError("is_grads_batched")
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    given = (grad_outputs,) if grad_outputs is None or isinstance(grad_outputs, Tensor) else tuple(grad_outputs)
    upstreams = given if len(given) == len(outputs) else given * len(outputs)
    if not all(map(tape.learns_from, (*outputs, *inputs))):
        raise RuntimeError("One of the differentiated Tensors does not require grad")
    wanted = [tape.program.value(t) for t in inputs]
    with contextlib.nullcontext() if create_graph else torch.no_grad(), _as_formulas_stand(tape):
        found = _gradients(tape, outputs, upstreams, set(wanted))
    result = tuple(found.get(value) for value in wanted)
    if materialize_grads:
        return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(result, inputs, strict=True))
    if not allow_unused and any(g is None for g in result):
        raise RuntimeError(
            "One of the differentiated Tensors appears to not have been used in the graph. "
            "Set allow_unused=True if this is the desired behavior."
        )
    return result


def _gradients(
    tape: Tape, outputs: tuple[Tensor, ...], upstreams: tuple[Tensor | None, ...], wanted: set[Value]
) -> dict[Value, Tensor]:
    reached = set(wanted)
    nodes = []
    for node in tape.nodes:
        if not reached.isdisjoint(node.arguments):
            reached.update(node.outputs)
            nodes.append(node)
    gradients: dict[Value, Tensor] = {}
    for output, upstream in zip(outputs, upstreams, strict=True):
        if upstream is None and output.numel() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        g = torch.ones_like(output) if upstream is None else upstream
        tape._accumulate(gradients, tape.program.value(output), g)
    found: dict[Value, Tensor] = {}
    for node in reversed(nodes):
        for value in wanted.intersection(node.outputs) & gradients.keys():
            found[value] = gradients[value]
        upstream_of_outputs = [gradients.pop(value, None) for value in node.outputs]
        if all(g is None for g in upstream_of_outputs):
            continue
        ctx = copy.copy(node.ctx)
        ctx.needs_input_grad = tuple(value is not None and value in reached for value in node.arguments)
        filled = [
            torch.zeros_like(value.tensor) if g is None and ctx.materializes_grads else g
            for g, value in zip(upstream_of_outputs, node.outputs, strict=True)
        ]
        with tape.within(node.path):
            result = node.rule.backward(ctx, *filled)
            result = result if isinstance(result, tuple) else (result,)
            for argument, needed, g in zip(node.arguments, ctx.needs_input_grad, result, strict=True):
                if argument is not None and needed and g is not None:
                    tape._accumulate(gradients, argument, g)
    return {**{value: gradients[value] for value in wanted & gradients.keys()}, **found}


@contextlib.contextmanager
def _as_formulas_stand(tape: Tape) -> Iterator[None]:
    how, tape.how = tape.how, "pure"
    try:
        yield
    finally:
        tape.how = how
