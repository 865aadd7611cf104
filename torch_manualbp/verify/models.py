"""Verify every layer of a model where it stands: on the inputs and the upstream gradients that it really has."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._text import one_line, visible
from torch_manualbp._torch import is_batched, is_functorch_wrapped, is_traced_by_make_fx, pytree
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.checks import Check, chosen
from torch_manualbp.verify.claims.directions import along_directions
from torch_manualbp.verify.own_process import Seen, in_own_process
from torch_manualbp.verify.report import DOES_NOT_APPLY, LEFT_OUT, OK, Report, Row
from torch_manualbp.verify.restore import stopped_after, undisturbed
from torch_manualbp.verify.subject import Subject, is_number, name_of, name_of_dtype
from torch_manualbp.verify.trial import Options, Target
from torch_manualbp.verify.verifier import BUDGET_S, list_until_spent, run_checks

__all__ = ["verify_model"]

WHOLE = "whole model: "
"""In front of the name of a check of all layers together, by which operations between layers are looked at as well."""


def _slope_of_the_loss(trial: Target) -> Iterator[Row]:
    """The whole loss changes along a random direction of all parameters as their gradients say, by finite differences
    of its values; where it does not, each parameter is looked at: what autograd does not see, such as ``w.data``, a
    statistic that is detached, or a hook, is seen in the values."""
    try:
        rows = list(along_directions(trial, trial.exact, count=1, least=LEAST))
    except DoesNotApply:
        rows = []
    if rows and all(row.ok for row in rows):
        yield from rows
        return
    apart = list(along_directions(trial, trial.exact, count=2, least=LEAST))
    yield from apart if any(not row.ok for row in apart) else (*rows, *apart)


LEAST = 1e-3
"""Relative difference of a slope that is looked at: in a network there are kinks on every way."""

WHOLE_LOSS = Check("finite differences", _slope_of_the_loss, on_all=True)


def verify_model(
    model: Module,
    inputs: Any,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    *,
    layers: Sequence[str] | None = None,
    checks: Sequence[str] | str | None = None,
    leave_out: Sequence[str] | str = (),
    budget_s: float = BUDGET_S,
    kinks: str = "between",
    strict: bool = False,
    own_process: bool = False,
    seed: int = 0,
) -> Report:
    """Hold the gradients of every layer, and of the whole model, against autograd of the same forward in float64.

    One pass of ``loss(model(inputs), target)`` captures what each layer is given and the upstream gradient that reaches
    it; then each is verified by itself on these, so that a mistake is found where it is made and not below it.
    Nothing is changed: the model and the loss are copied, and the random state is as it was.

    Args:
        inputs: what the model is called with: a tensor, a tuple of all inputs, or a dictionary of inputs by keyword.
        target: the second argument of the loss.
        loss: a function of the model's output and the target that returns a number, or a module; it is verified, too.
        layers: paths in the model of the layers to verify (default: all that have no layers in them, and the whole).
        checks: as of :func:`~torch_manualbp.verify.verify`; by default "structure", "values" in float64 and in the
            model's dtype, which cost a few backward passes, and "finite differences" of the whole loss.
        leave_out: names of checks not to run.
        budget_s: seconds for all of it; the report says what was left out.
        kinks: which derivative a kink has: any "between" those of both sides, or the one of "autograd".
        strict: whether findings that are no wrong values make the report not ok.
        own_process: whether it runs in a process of its own, which is ended when the time is over.
        seed: where random numbers start from in every run.

    Raises:
        ValueError: nothing requires a gradient, there is no such layer or check, or the forward fails.
    """
    start = time.perf_counter()
    options = Options(deadline=start + budget_s, kinks=kinks)
    args, kwargs = _arguments(inputs)
    wanted = _checks(model, checks, leave_out)
    _layers(model, layers)
    notes: dict[str, None] = {}

    def found() -> Iterator[Row]:
        own, own_loss = copy.deepcopy((model, loss))
        chosen_layers = _layers(own, layers)
        whole = ModelAndLoss(own, own_loss)
        subject = Subject(whole, (target, *args), kwargs, seed=seed, only_parameters=True)
        torch.default_generator.manual_seed(seed)
        calls = _captured(whole, chosen_layers, (target, *args), kwargs)
        if layers is None:
            trial = Target(subject, options)
            notes.update(dict.fromkeys(trial.notes))
            # The slope of the loss sees what nothing else does, and is looked at first, while there is time.
            of_whole = [c for c in wanted if c is WHOLE_LOSS]
            of_whole += [c for c in wanted if c.name.startswith("values")]
            for row in run_checks(trial, of_whole):
                yield replace(row, check=WHOLE + row.check, name=row.name.removeprefix("model."))
        of_layers = [c for c in wanted if c is not WHOLE_LOSS]
        for call in calls if layers is None else calls[:-1]:
            yield from _of_layer(call, of_layers, options, seed, notes)

    def verified(seen: Seen | None = None) -> Report:
        with undisturbed(model, loss), stopped_after(options.deadline):
            rows = sorted(list_until_spent(found(), seen), key=_place)
        if checks is not None:
            rows = [replace(row, compares=row.verdict == OK) for row in rows]
        return Report(name_of(model), tuple(rows), time.perf_counter() - start, tuple(notes), strict)

    return in_own_process(verified, name_of(model), budget_s) if own_process else verified()


def _place(row: Row) -> int:
    """The gradients of the whole, the slope of its loss, then the layers."""
    return 1 if row.check == WHOLE + WHOLE_LOSS.name else 0 if row.check.startswith(WHOLE) else 2


class ModelAndLoss(Module):
    """The model and its loss, whose parameters are ``model.fc1.weight`` and so on."""

    def __init__(self, model: Module, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, target: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self.loss_of(self.model(*args, **kwargs), target)

    def loss_of(self, output: Any, target: Any) -> Tensor:
        """The loss of an output; of its ``logits``, where the loss takes none of the class that wraps these."""
        if isinstance(getattr(output, "logits", None), Tensor):
            try:
                return self.loss(output, target)
            except (TypeError, AttributeError):
                return self.loss(output.logits, target)
        return self.loss(output, target)


@dataclass
class _Call:
    """One call of a layer: what it was given, and the gradient that came back."""

    name: str
    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    upstream: list[Tensor | None] = field(default_factory=list)
    is_transformed: bool = False
    """Whether it was inside of a transform of torch.func, where tensors have other sizes than outside."""


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _checks(model: Module, checks: Sequence[str] | str | None, leave_out: Sequence[str] | str) -> tuple[Check, ...]:
    if checks is not None:
        return chosen(checks, leave_out)
    dtypes = {name_of_dtype(p.dtype) for p in model.parameters() if p.is_floating_point()} - {"float64"}
    names = [f"values, {dtype}" for dtype in sorted(dtypes) if dtype in ("float32", "float16", "bfloat16")]
    without = [leave_out] if isinstance(leave_out, str) else list(leave_out)
    found = chosen(["structure", "values, float64", *names], [name for name in without if name != WHOLE_LOSS.name])
    return found if WHOLE_LOSS.name in without else (*found, WHOLE_LOSS)


def _layers(model: Module, names: Sequence[str] | None) -> dict[str, Module]:
    modules = dict(model.named_modules())
    if names is None:
        return {name: module for name, module in modules.items() if not any(True for _ in module.children())}
    for name in names:
        if name not in modules:
            raise ValueError(
                f"layers: the model has no layer {name!r}; it has {', '.join(visible(n) for n in modules if n)}"
            )
    return {name: modules[name] for name in names}


def _captured(
    whole: ModelAndLoss, layers: Mapping[str, Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[_Call]:
    """What each layer and the loss were given in one pass, and the gradients that reached them."""
    calls: list[_Call] = []
    names = {id(module): name or "model" for name, module in layers.items()}
    with _watched(layers.values(), names, calls):
        output = whole.model(*args[1:], **kwargs)
        value = whole.loss_of(output, args[0])
    calls.append(_Call("loss", whole.loss_of, (_detached(output), args[0]), {}, [torch.ones_like(value)]))
    parameters = [p for p in whole.parameters() if p.requires_grad]
    torch.autograd.grad(value, parameters, torch.ones_like(value), allow_unused=True)
    return calls


@contextmanager
def _watched(layers: Any, names: Mapping[int, str], calls: list[_Call]) -> Iterator[None]:
    counts: dict[int, int] = {}
    handles = []

    def before(module: Module, args: Any, kwargs: Any) -> None:
        n = counts[id(module)] = counts.get(id(module), 0) + 1
        name = names[id(module)] + (f"#{n}" if n > 1 else "")
        if _is_transformed((args, kwargs, [*module.parameters()])):
            calls.append(_Call(name, module, (), {}, is_transformed=True))
        else:
            calls.append(_Call(name, module, _detached(args), _detached(kwargs)))
        pending.setdefault(id(module), []).append(calls[-1])

    def after(module: Module, args: Any, kwargs: Any, result: Any) -> None:
        call = pending[id(module)].pop()
        if call.is_transformed:
            return
        outputs = [t for t in pytree.tree_leaves(result) if is_number(t)]
        call.upstream = [None for _ in outputs]
        for i, output in enumerate(outputs):
            if output.requires_grad:
                output.register_hook(_keeper(call, i))

    pending: dict[int, list[_Call]] = {}
    for module in layers:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeper(call: _Call, i: int) -> Callable[[Tensor], None]:
    def keep(gradient: Tensor) -> None:
        if not is_batched(gradient):  # and not those of is_grads_batched=True inside
            call.upstream[i] = gradient.detach()

    return keep


def _is_transformed(values: Any) -> bool:
    """Whether it holds what make_fx traces, or a tensor of torch.func."""
    if is_traced_by_make_fx():
        return True
    return any(isinstance(t, Tensor) and is_functorch_wrapped(t) for t in pytree.tree_leaves(values))


def _detached(values: Any) -> Any:
    """The same numbers without their history, in memory of their own: the layer may work in place."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad), values)


def _of_layer(call: _Call, checks: Sequence[Check], options: Options, seed: int, notes: dict[str, None]) -> list[Row]:
    prefix = "" if call.name == "model" else f"{call.name}."
    if time.perf_counter() > (options.deadline or math.inf):
        return [Row(call.name, check.name, LEFT_OUT, hint="the budget of time is spent") for check in checks]
    if call.is_transformed:
        hint = "it is called inside of torch.func, whose tensors are of no size outside: see the whole model"
        return [Row(call.name, "", DOES_NOT_APPLY, hint=hint)]
    if not any(u is not None for u in call.upstream):
        return [Row(call.name, "", DOES_NOT_APPLY, hint="no gradient reaches it")]
    try:
        subject = Subject(call.layer, call.args, call.kwargs, seed=seed, prefix=prefix, upstream=call.upstream)
    except ValueError as error:
        return [Row(call.name, "", DOES_NOT_APPLY, hint=one_line(error))]
    trial = Target(subject, options)
    notes |= dict.fromkeys(trial.notes)
    return [row if row.name else replace(row, name=call.name) for row in run_checks(trial, checks)]
