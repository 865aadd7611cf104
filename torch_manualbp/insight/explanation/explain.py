"""``explain(model, loss, x, y, "fc2.weight", (1, 1))``: the chain of one weight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_manualbp._progress import Progress
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.insight.explanation.chain import uses_of
from torch_manualbp.insight.explanation.numbers import digits_of
from torch_manualbp.insight.explanation.reference import autograd_value
from torch_manualbp.insight.explanation.result import Explanation
from torch_manualbp.insight.explanation.story import Story
from torch_manualbp.insight.explanation.weight import Weight, find_weight
from torch_manualbp.insight.refusals import refuse_compiled
from torch_manualbp.insight.trace import Quantity, Trace, trace

__all__ = ["explain"]


def explain(
    model: Module,
    loss: Callable[..., Tensor],
    x: Any,
    y: Any,
    weight: str,
    index: int | Sequence[int],
    *,
    paths: int = 5,
    samples: int = 5,
) -> Explanation:
    """Why ∂C/∂w of one weight is what it is: each factor of its chain with its number and where it comes from.

    ::

        ∂C/∂w_22⁽²⁾ = ∂C/∂a_2⁽³⁾ · f'(z_2⁽³⁾) · a_2⁽²⁾

    Args:
        model: of layers of ``torch_manualbp.nn`` or ``torch.nn``. What the weight goes through on its way to C has
            rules; the rest of the model need not have them.
        loss: a function or module of (output, target) that returns one number.
        x: a tensor, or a tuple of the model's arguments, or a mapping of them by name.
        y: what the loss takes besides the output.
        weight: the name of a parameter, such as ``"fc2.weight"``.
        index: of an entry of it: row and column from 0, such as ``(1, 1)`` for w_22.
        paths: how many of the strongest paths are shown.
        samples: how many samples are shown; where there are more, those that contribute most, and paths are those of
            these samples.

    The model is run twice, with the same random numbers, and is afterwards as it was: gradients, buffers, mode and the
    random state.

    Raises:
        ValueError: there is no such parameter, nothing is learnt of it, C does not depend on it, the loss is not one
            number, or the model is compiled.
        IndexError: the parameter has no such entry.
        NotDerivableError: what has no rule takes the weight, or what is made of it; the message lists every place.
    """
    if paths < 0 or samples < 1:
        raise ValueError(f"paths={paths} and samples={samples}: the first is at least 0, the second at least 1")
    refuse_compiled(model)
    asked = find_weight(model, loss, weight, index)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    forked = torch.random.fork_rng(devices=list(devices))
    with torch.inference_mode(False), forked, _buffers_kept(model, loss):
        random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
        passed = trace(model, loss, x, y, passes_by=True)
        torch.set_rng_state(random[0])
        for device, state in zip(devices, random[1], strict=True):
            torch.cuda.set_rng_state(state, device)
        reference = autograd_value(model, loss, x, y, asked)
    quantity = _quantity(passed, asked)
    if passed.refused and (quantity is None or passed.is_refused_between(quantity)):
        raise NotDerivableError([refused.problem for refused in passed.refused])
    uses = [] if quantity is None else uses_of(passed, quantity, asked.flat)
    if quantity is None or reference is None or not uses:
        raise ValueError(
            f"C does not depend on {asked.name}{list(asked.index)}: the forward does not use it, or detaches what it "
            "makes of it, or runs under no_grad"
        )
    with Progress("explain") as progress:
        story = Story(passed, quantity, asked, uses, digits_of(asked.parameter.dtype), progress)
        return story.told(reference, paths, samples)


def _quantity(passed: Trace, asked: Weight) -> Quantity | None:
    """A tied parameter has one name in the trace."""
    return next((passed.parameters[name] for name in asked.names if name in passed.parameters), None)


@contextlib.contextmanager
def _buffers_kept(*roots: Any) -> Iterator[None]:
    """A layer whose buffers a forward changes has no rule; but it is refused only when it has run."""
    modules = [module for root in roots if isinstance(root, Module) for module in root.modules()]
    before = [(module, dict(module._buffers)) for module in modules]
    numbers = {b: b.detach().clone() for _, own in before for b in own.values() if b is not None and not is_lazy(b)}
    try:
        yield
    finally:
        for module, own in before:
            module._buffers.update(own)
        with torch.no_grad():
            for buffer, number in numbers.items():
                if not torch.equal(buffer, number):  # by the version it would not show: batch_norm leaves that alone
                    buffer.copy_(number)
