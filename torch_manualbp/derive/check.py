"""A derived program held against autograd, before it changes a parameter.

::

    |found − expected| ≤ 64 ε max |expected| + 4 moved,   moved = max |∂C/∂W (x (1 + 64 ε ξ)) − ∂C/∂W (x)|

in the lowest precision that the program computes in, where ``moved`` is what moving every parameter and input by 64 ε
of itself does to the gradient, ξ of variance 1: no order of the sums in it keeps more digits, and where a number falls
on the other side of a kink, as one of some millions at a ReLU does, the gradient jumps. It is computed where the first
term does not suffice. A gradient that is zero but for rounding, as of the bias of a key in attention, is noise, and so
is what it moves by: the largest of 10 such numbers is exceeded by one in 11 others, and four times it by none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import CheckpointFunction

from torch_manualbp._torch import pytree
from torch_manualbp.derive.buffers import Kept
from torch_manualbp.derive.draws import Draws
from torch_manualbp.derive.recording import called, named_tensors, one_number
from torch_manualbp.rules import CELU, Hardsigmoid
from torch_manualbp.rules.rule import Rule

__all__ = [
    "Case",
    "Reference",
    "differences",
    "is_close",
    "is_rounding",
    "loss_by_autograd",
    "named_results",
    "reference",
    "rounding",
]

ULPS = {torch.float16: 8, torch.bfloat16: 8}
"""Units in the last place of the lowest precision that the program computes in; of others 64: two orders of the same
sums differ by 16 at most, on the networks that :mod:`~torch_manualbp.verify.gradients` was measured with."""

BLOCK_ELEMENTS = 1 << 18
"""Numbers that are compared at a time: what is made of them stays in the cache."""

INEXACT = frozenset({Hardsigmoid, CELU})
"""The rules beside which torch's own kernels have constants of float32, 1/6 and 1/α, in float64 gradients."""

NOISE = 4
"""Times the largest number that was moved by, of those that moving them makes."""

DRAWS = 10
"""How often the numbers are moved at most: at a kink half of the draws come to lie on the other side."""

DRAWS_OF_DATA = 3
"""How many of these move parameters and data alone, before the outputs of layers are moved, too."""


@dataclass
class Reference:
    """Loss, output and gradients as autograd has them."""

    C: Tensor
    output: Any
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """The numbers of what does not learn and has other numbers than before."""

    error: RuntimeError | None = None
    """What autograd raises."""


def loss_by_autograd(
    model: Module, loss: Callable[..., Tensor], inputs: Any, target: Any, draws: Draws
) -> tuple[Tensor, Any]:
    """The loss of a model on copies of the data, recorded by autograd, and the output."""
    copies: dict[int, Tensor] = {}  # of what is given twice one

    def copied(t: Tensor) -> Tensor:
        return copies.setdefault(id(t), t.detach().clone())

    inputs, target = pytree.tree_map_only(Tensor, copied, (inputs, target))
    with draws.again(), torch.enable_grad():
        output = called(model, inputs)
        # A loss may write over its input.
        seen = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), output)
        return one_number(loss(output, target)), seen


def reference(
    model: Module,
    loss: Callable[..., Tensor],
    inputs: Any,
    target: Any,
    parameters: Mapping[str, Tensor],
    draws: Draws,
    share: float,
    noting: AbstractContextManager[Any] | None = None,
) -> Reference:
    """Autograd's numbers. Hooks that accumulate gradients are not called, ``.grad`` is not touched, and buffers are as
    before.

    Args:
        noting: the context that forward and loss run in.
    """
    with Kept(named_tensors(model, loss)) as kept, _checkpoints_as_they_stand():
        found = _reference(model, loss, inputs, target, parameters, draws, share, noting)
    found.buffers = kept.changed
    return found


@contextmanager
def _checkpoints_as_they_stand() -> Iterator[None]:
    """A block in which a reentrant checkpoint runs what it is given and no more: it takes no ``autograd.grad``."""

    def apply(run: Callable[..., Any], preserves_random_state: bool, *args: Any) -> Any:
        learns = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        with nullcontext() if learns else torch.no_grad():
            return run(*args)

    setattr(CheckpointFunction, "apply", staticmethod(apply))  # noqa: B010 # no assignment, for type checkers
    try:
        yield
    finally:
        delattr(CheckpointFunction, "apply")


def _reference(
    model: Module,
    loss: Callable[..., Tensor],
    inputs: Any,
    target: Any,
    parameters: Mapping[str, Tensor],
    draws: Draws,
    share: float,
    noting: AbstractContextManager[Any] | None,
) -> Reference:
    with noting or nullcontext():
        C, output = loss_by_autograd(model, loss, inputs, target, draws)
    found = Reference(C.detach(), output)
    if C.requires_grad and parameters:
        try:
            # Backward runs outside of autocast, as torch has it.
            with draws.again(), torch.autocast(C.device.type, enabled=False):
                gradients = torch.autograd.grad(
                    C, list(parameters.values()), torch.full_like(C, share), allow_unused=True
                )
        except RuntimeError as error:
            found.error = error
        else:
            found.gradients = dict(zip(parameters, gradients, strict=True))
    return found


def named_results(
    C: Tensor, output: Any, gradients: Mapping[str, Tensor | None], buffers: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """Loss, tensors of the output, gradients and updated buffers, by what a message calls them."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    texts = ["the output"] if len(leaves) == 1 else [f"output {i + 1}" for i in range(len(leaves))]
    named = {f"∂C/∂{name}": g for name, g in gradients.items()}
    named |= {f"the buffer {name}": t for name, t in buffers.items()}
    return {"the loss": C, **dict(zip(texts, leaves, strict=True)), **named}


@dataclass
class Case:
    """A model and a loss with the data that a program is held against autograd on."""

    model: Module
    loss: Callable[..., Tensor]
    inputs: Any
    target: Any
    parameters: dict[str, Tensor]
    """Those that require grad."""

    draws: Draws
    share: float
    rounded: float
    """The largest part of itself that a number may be off by in rounding."""

    def moved(self, expected: Mapping[str, Tensor | None]) -> Iterator[dict[str, float]]:
        """By how much each result moves with the numbers that it is made of, draw by draw. It is a copy of the model
        whose parameters move; of one that cannot be copied the data move alone."""
        again = reference(self.model, self.loss, self.inputs, self.target, self.parameters, self.draws, self.share)
        same = named_results(again.C, again.output, again.gradients, again.buffers)
        if not all(_agree(same.get(name), t, self.rounded, 0.0) for name, t in expected.items()):
            return  # forward has other numbers at each call
        try:
            model, loss = copy.deepcopy((self.model, self.loss))
        except Exception:  # whatever a module raises that is copied
            model, loss, parameters = self.model, self.loss, self.parameters
            moving = []
        else:
            named = named_tensors(model, loss)
            parameters = {name: named[name] for name in self.parameters}
            moving = [p for p in parameters.values() if p.is_floating_point() or p.is_complex()]
        before = [p.detach().clone() for p in moving]
        noise = torch.Generator().manual_seed(0)

        def near(t: Tensor) -> Tensor:
            if not (t.is_floating_point() or t.is_complex()):
                return t.detach()
            # Three times as fast as normal numbers, of the same variance.
            xi = torch.empty(t.shape, dtype=t.abs().dtype, device="cpu").uniform_(-(3**0.5), 3**0.5, generator=noise)
            return t.detach() * xi.mul_(self.rounded).add_(1).to(t.device)

        def move_output(module: Module, args: Any, output: Any) -> Any:
            return pytree.tree_map_only(
                Tensor, lambda t: t * near(torch.ones_like(t)) if t.requires_grad else t, output
            )

        layers = [m for m in model.modules() if not m._modules] if moving else []
        for draw in range(DRAWS):
            if draw == DRAWS_OF_DATA:  # what cancels exactly, whatever the parameters are, moves with what is between
                for layer in layers:
                    layer.register_forward_hook(move_output)
            with torch.no_grad():
                for p, t in zip(moving, before, strict=True):
                    p.copy_(near(t))
            x, y = pytree.tree_map_only(Tensor, near, (self.inputs, self.target))
            other = reference(model, loss, x, y, parameters, self.draws, self.share)
            found = named_results(other.C, other.output, other.gradients, other.buffers)
            pairs = ((name, t, found.get(name)) for name, t in expected.items())
            yield {name: _distance(b, a) for name, a, b in pairs if a is not None and b is not None}

    def first_delta(self, deltas: Mapping[str, Tensor]) -> str | None:
        """The module, going back from the loss, whose ∂C/∂(output) is the first that differs from autograd's.

        Args:
            deltas: the program's, in the order of the forward.
        """
        outputs: dict[str, Tensor] = {}

        def keeps(name: str) -> Callable[..., None]:
            def keep(module: Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.requires_grad:
                    outputs[name] = output

            return keep

        layers = ((name, module) for name, module in self.model.named_modules() if not module._modules)
        modules = [(name, module) for name, module in layers if name in deltas]
        handles = [module.register_forward_hook(keeps(name)) for name, module in modules]
        try:
            with Kept(named_tensors(self.model, self.loss)), _checkpoints_as_they_stand():
                C, _ = loss_by_autograd(self.model, self.loss, self.inputs, self.target, self.draws)
                upstream = torch.full_like(C, self.share)
                with torch.autocast(C.device.type, enabled=False):
                    found = torch.autograd.grad(C, list(outputs.values()), upstream, allow_unused=True)
        except RuntimeError:
            return None
        finally:
            for handle in handles:
                handle.remove()
        expected = dict(zip(outputs, found, strict=True))
        for name in reversed(list(deltas)):
            theirs = expected.get(name)
            if theirs is not None and not is_close(deltas[name], theirs, self.rounded):
                return name
        return None


def is_rounding(
    found: Tensor,
    expected: Tensor,
    model: Module,
    loss: Callable[..., Tensor],
    inputs: Any,
    target: Any,
    rounded: float,
) -> bool:
    """Whether two losses differ by no more than rounding makes of a loss like this: what moving all numbers that it is
    made of by their rounding does to it."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return False
    with torch.inference_mode(False):
        parameters = {name: t for name, t in named_tensors(model, loss).items() if t.requires_grad}
        case = Case(model, loss, inputs, target, parameters, Draws(), 1.0, rounded)
        now = {"the loss": reference(model, loss, inputs, target, {}, case.draws, 1.0).C}
        off = _distance(found, expected)
        return any(off <= NOISE * draw.get("the loss", 0.0) for draw in case.moved(now))


def rounding(dtypes: Iterable[torch.dtype], rules: Collection[type[Rule]] = ()) -> float:
    """64 ε of the lowest precision among these, or 8 ε where it is half a word's."""
    floats = [d for d in dtypes if d.is_floating_point or d.is_complex]
    if not INEXACT.isdisjoint(rules):
        floats.append(torch.float32)
    return max((ULPS.get(d, 64) * torch.finfo(d).eps for d in floats), default=0.0)


def is_close(found: Tensor, expected: Tensor, rounded: float, slack: float = 0.0) -> bool:
    """Whether they differ by no more than this part of the largest entry, and the slack."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.numel() or not (found.is_floating_point() or found.is_complex()):
        return torch.equal(found, expected)
    return _distance(found, expected) <= rounded * _largest(expected) + slack


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where NaN or infinity stands in one alone."""
    if found.numel() > BLOCK_ELEMENTS and found.is_contiguous() and expected.is_contiguous():
        blocks = zip(found.view(-1).split(BLOCK_ELEMENTS), expected.view(-1).split(BLOCK_ELEMENTS), strict=True)
        return max(_distance(a, b) for a, b in blocks)
    if torch.equal(found, expected):
        return 0.0
    half = found.dtype in (torch.float16, torch.bfloat16)
    off = (found.float() - expected.float()) if half else found - expected
    largest = _extent(off)
    if math.isfinite(largest):
        return largest
    same = (found == expected) | (found.isnan() & expected.isnan())
    return torch.where(same, 0.0, off.abs().nan_to_num(torch.inf, torch.inf)).max().item()


def _largest(t: Tensor) -> float:
    largest = _extent(t)
    if math.isfinite(largest):
        return largest
    sizes = t.abs()[t.isfinite()]
    return sizes.max().item() if sizes.numel() else 0.0


def _extent(t: Tensor) -> float:
    """max |t|, or NaN."""
    if t.is_complex():
        return t.abs().max().item()
    low, high = torch.aminmax(t)  # in one pass, where |t| takes another and memory
    return max(-low.item(), high.item(), key=lambda x: math.inf if x != x else x)


def differences(
    found: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    rounded: float,
    moved: Iterable[Mapping[str, float]],
) -> list[str]:
    """What of the program differs from autograd, in words, a line each.

    Args:
        rounded: the part of the largest entry that rounding may make.
        moved: ``moved`` of each name, draw by draw; they are computed where a difference has to be explained.
    """
    slack = dict.fromkeys(expected, 0.0)
    draws = iter(moved)
    while True:
        far = [name for name in expected if not _agree(found.get(name), expected[name], rounded, slack[name])]
        draw = next(draws, None) if far else None
        if draw is None:
            return [_said(name, found.get(name), expected[name]) for name in far]
        slack = {name: max(size, NOISE * draw.get(name, 0.0)) for name, size in slack.items()}


def _agree(found: Tensor | None, expected: Tensor | None, rounded: float, slack: float) -> bool:
    if found is None or expected is None:
        return found is expected
    return is_close(found, expected, rounded, slack)


def _said(name: str, found: Tensor | None, expected: Tensor | None) -> str:
    if found is None or expected is None:
        return f"{name}: {'the program' if found is None else 'autograd'} has none"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{name}: {_kind(found)} and not {_kind(expected)}"
    if not (found.is_floating_point() or found.is_complex()):
        return f"{name}: other numbers"
    off, size = _distance(found, expected), _largest(expected)
    return f"{name}: off by {off:.1e}, where its largest entry is {size:.1e}"


def _kind(t: Tensor) -> str:
    return f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
