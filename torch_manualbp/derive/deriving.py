"""From a model, a loss and an optimizer to a program that has been held against autograd.

1. forward, loss and autograd's gradients run as they are: what Python code they execute is noted (``reads``);
2. forward, loss and the rules' backward are recorded on the same numbers (``recording``);
3. what forward has changed meanwhile, besides making tensors, is refused;
4. the program up to the gradients runs, and its numbers are compared with autograd's (``check``);
5. the program itself is planned and written (``derived``).

Whatever fails, modules are as they were: parameters, buffers and attributes. What forward has changed in other objects
is refused, and stays changed.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module
from torch.optim import Optimizer

from torch_manualbp._progress import Progress
from torch_manualbp._text import one_line, visible
from torch_manualbp._torch import pytree
from torch_manualbp.derive.buffers import Kept
from torch_manualbp.derive.check import Case, Reference, differences, named_results, reference, rounding
from torch_manualbp.derive.derived import Derived, How, heading_of
from torch_manualbp.derive.draws import Draws
from torch_manualbp.derive.effects import DRAWS, Restored, has_hooks_on_the_way, refuse_scripted, wrappers
from torch_manualbp.derive.expected import OtherNumbersError
from torch_manualbp.derive.floats import float_inputs, in_place_of
from torch_manualbp.derive.foreign import mistakes_of
from torch_manualbp.derive.interruptions import Uninterrupted
from torch_manualbp.derive.reads import Executed, Reads
from torch_manualbp.derive.recording import Recording, named_tensors, path_of_loss, record
from torch_manualbp.derive.refusals import Problem
from torch_manualbp.derive.tape import NotDerivableError, one_at_a_time
from torch_manualbp.derive.tracers import Asked, MayGoAnotherWay
from torch_manualbp.kernels.products import onednn_linear

__all__ = ["derived_program", "holds_at"]


def derived_program(
    model: Module,
    loss: Callable[..., Tensor],
    optimizer: Optimizer,
    inputs: Any,
    target: Any,
    how: How,
    check: bool,
    floats: Sequence[tuple[dict[str, Any], str, str]] = (),
    group: Any = None,
) -> tuple[Derived, Reads]:
    """The program for these data, and everything that it depends on.

    Args:
        floats: attributes of modules that are to be inputs of the program, by name, and keys for them.
        group: the processes that make the step together.

    Raises:
        NotDerivableError: the step cannot be derived, or its numbers are not autograd's.
        ValueError: the loss is not one number, or the optimizer holds other parameters than those that learn.
    """
    roots = [("", model), (path_of_loss(model), loss)]
    with (
        one_at_a_time,
        _uncollected(),
        Uninterrupted() as signals,
        Progress("deriving a step") as progress,
        torch.inference_mode(False),
        Restored(root for _, root in roots),
    ):
        at: list[str] = []

        def go_on(path: str = "", doing: str = "recording") -> None:
            signals.look()
            if [path, doing] != at:
                at[:] = path, doing
                progress.at(" ".join(filter(None, (doing, visible(path)))))

        refuse_scripted(root for _, root in roots)
        modules = [item for path, root in roots if isinstance(root, Module) for item in root.named_modules(prefix=path)]
        if spread := wrappers(modules):
            raise NotDerivableError(spread)
        named = named_tensors(model, loss)
        draws = Draws()
        parameters = {name: t for name, t in named.items() if t.requires_grad and not how.evaluates}
        frozen: set[int] = set()
        if how.freeze_others:
            frozen = set(map(id, named.values())) - {id(p) for group in optimizer.param_groups for p in group["params"]}
            parameters = {name: t for name, t in parameters.items() if id(t) not in frozen}
        executed = Executed()
        expected = None
        if not has_hooks_on_the_way(root for _, root in roots):  # which the recording refuses, and are not to be called
            learnt = parameters if check else {}
            try:
                expected = reference(model, loss, inputs, target, learnt, draws, how.share, executed)
            except Exception:
                record(model, loss, named, {}, inputs, target, draws)  # which may refuse a part of it by name
                raise
        go_on()
        if executed.draws:
            raise NotDerivableError([DRAWS])

        given_floats = float_inputs(floats, torch.float32 if expected is None else expected.C.dtype)

        def recorded(as_traced: bool) -> tuple[Reads, Recording]:
            reads = Reads(roots, executed, map(id, named.values()), given_floats)
            if reads.beyond is not None:
                what = "forward may read more of Python than can be followed at each step, by way of "
                todo = "have it read numbers from a few attributes"
                raise NotDerivableError([(reads.beyond.path, what + reads.beyond.text, todo)])
            knows_draws = expected is not None and not executed.may_draw_by_numpy()
            with in_place_of(given_floats) as tensors:
                reads.held.update(tensors)
                return reads, record(
                    model,
                    loss,
                    named,
                    reads.held,
                    inputs,
                    target,
                    draws,
                    share=how.share,
                    pure=how.compile,
                    at_call=go_on,
                    knows_draws=knows_draws,
                    as_traced=as_traced,
                    frozen=frozen,
                    evaluates=how.evaluates,
                )

        as_traced = False
        try:
            reads, recording = recorded(as_traced)
        except MayGoAnotherWay:
            as_traced = True
            with Asked(says=True):  # what code runs there is noted, too
                reference(model, loss, inputs, target, {}, draws, how.share, executed)
            reads, recording = recorded(as_traced)
        changed = reads.changes()
        if recording.functions:
            _look_at(recording.functions)
            for function, _, _ in recording.functions:
                backward = inspect.unwrap(function.backward)
                executed.codes.setdefault(backward.__code__, backward.__globals__)
            reads = Reads(
                roots, executed, map(id, named.values()), given_floats
            )  # with what the Functions' backward reads
        seeds = [("", f"forward sets torch's seed by {seed}", "set seeds outside of it") for seed in executed.seeds]
        changes = [(at.path, f"forward changes {at.text}", "keep such state out of a derived step") for at in changed]
        if seeds or changes:
            raise NotDerivableError([*seeds, *changes])
        go_on(doing="planning")
        given = [t for t in pytree.tree_leaves((inputs, target)) if isinstance(t, Tensor)]
        laid_out = [value.tensor.stride() for value in recording.inputs]
        uneven = [i for i, (t, stride) in enumerate(zip(given, laid_out, strict=True)) if t.stride() != stride]

        def program(of: Recording, how: How, is_looked_at: bool = False) -> Derived:
            heading = heading_of(model, loss, optimizer, how)
            return Derived(of, optimizer, how, named, reads.held, uneven, heading, is_looked_at, group)

        twin = recording.copied() if check and expected is not None else recording
        derived = program(recording, how, is_looked_at=True)
        if derived.answers and derived.buckets:
            what = "forward reads numbers, by which each of several processes would go another way"
            raise NotDerivableError([("", what, "have the step's course follow from shapes, or train with autograd")])
        if check and expected is not None:
            if expected.error is not None:
                what = f"autograd raises {one_line(expected.error)}"
                raise NotDerivableError([("", what, "mend the model or the loss")])
            rounded = rounding(recording.program.dtypes(), recording.rules)
            case = Case(model, loss, inputs, target, parameters, draws, how.share, rounded)
            go_on(doing="comparing it with autograd")
            held = _hold(case, program, twin, expected, how, again=lambda: recorded(as_traced)[1])
            derived.twin = held.without_numbers()
            if executed.is_complete:
                derived.codes = frozenset(executed.codes)
        return derived, reads


def holds_at(
    model: Module,
    loss: Callable[..., Tensor],
    inputs: Any,
    target: Any,
    derived: Derived,
) -> bool:
    """Whether a program that was derived for other sizes has autograd's numbers on these data, of which forward and
    loss run no other code."""
    twin, how, draws, executed = derived.twin, derived.how, Draws(), Executed()
    if twin is None or not derived.codes:
        return False
    roots = [root for root in (model, loss) if isinstance(root, Module)]
    with one_at_a_time, Uninterrupted(), torch.inference_mode(False), Restored(roots):
        named = named_tensors(model, loss)
        learnt = set(map(id, derived.parameters))
        parameters = {name: t for name, t in named.items() if id(t) in learnt}
        expected = reference(model, loss, inputs, target, parameters, draws, how.share, executed)
        is_known = executed.is_complete and derived.codes.issuperset(executed.codes)
        if not is_known or executed.draws or executed.seeds or expected.error is not None:
            return False
        case = Case(model, loss, inputs, target, parameters, draws, how.share, derived.rounded)
        try:
            derived.bind()
            twin.bind()
            with Kept(named) as kept:
                results = _run(case, twin)
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError):
            return False  # what numbers lead to that follow from the size in another way than two sizes say
        finally:
            twin.release()
        return not _differing(case, expected, named, kept, results)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """A block without Python's collector of cycles, which would go through all of torch a dozen times meanwhile: of
    deriving 12 layers it takes a quarter."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def _look_at(functions: tuple[tuple[type[Function], tuple[Any, ...], Problem], ...]) -> None:
    """Verify the autograd.Functions of a program, which are no rules.

    Raises:
        NotDerivableError: the backward of some is not the derivative of their forward.
    """
    problems = []
    for function, args, place in functions:
        if wrong := mistakes_of(function, args):
            what = f"the Function {function.__name__} is autograd's, and verification finds it wrong ({wrong})"
            problems.append(Problem((place[0], what, "make it a torch_manualbp.Rule, if it is meant so")))
            problems[-1].line = place.line
    if problems:
        raise NotDerivableError(problems)


def _hold(
    case: Case,
    program: Callable[[Recording, How], Derived],
    twin: Recording,
    expected: Reference,
    how: How,
    again: Callable[[], Recording],
) -> Derived:
    """Run the program up to the gradients on the data that it is derived for, and compare.

    Args:
        twin: a recording that is of no use afterwards.
        again: makes another one.

    Returns:
        The program that was run.

    Raises:
        NotDerivableError: something differs from autograd by more than rounding.
    """
    plain = How(folds=False, share=how.share, keep_output=True, evaluates=how.evaluates)

    for call in twin.program.calls:
        # By torch's own kernel in forward, as autograd has it: the other's rounding takes one z in some millions across
        # the kink of a ReLU.
        if call.function is onednn_linear and call.section == "forward":
            call.function, call.args = torch.nn.functional.linear, call.args[:3]
    named = named_tensors(case.model, case.loss)
    with Kept(named) as kept:
        held = program(replace(twin, output=list(twin.outputs)), plain)
        results = _run(case, held)
    differ = _differing(case, expected, named, kept, results)
    if not differ:
        return held
    with Kept(named):
        _, _, _, deltas = _run(case, program(again(), replace(plain, keep_output=False, keep_deltas=True)))
    where = case.first_delta(deltas)
    at = "" if where is None else f"; going back from the loss, the first ∂C/∂(output) that differs is {where}'s"
    what = f"the program's numbers are not autograd's ({'; '.join(differ)}{at})"
    todo = "write what changes tensors in place out of place, or train with autograd"
    raise NotDerivableError([(where or "", what, todo)])


def _differing(
    case: Case, expected: Reference, named: Mapping[str, Tensor], kept: Kept, results: tuple[Any, ...]
) -> list[str]:
    """What of a program's numbers is not autograd's, in words."""
    C, outputs, gradients, _ = results
    updated = dict.fromkeys((*expected.buffers, *kept.changed))
    buffers = [{name: of.get(name, named[name]) for name in updated} for of in (kept.changed, expected.buffers)]
    found = named_results(C, outputs, {name: gradients.get(p) for name, p in case.parameters.items()}, buffers[0])
    wanted = named_results(expected.C, expected.output, expected.gradients, buffers[1])
    return differences(found, wanted, case.rounded, case.moved(wanted))


def _run(case: Case, held: Derived) -> tuple[Tensor, Any, dict[Tensor, Tensor], dict[str, Tensor]]:
    """Loss, output, gradients and deltas of a program up to the gradients."""
    leaves = [t.detach().clone() for t in pytree.tree_leaves((case.inputs, case.target)) if isinstance(t, Tensor)]
    try:
        with case.draws.again():
            result = held.run(leaves)
    except OtherNumbersError as error:
        what = f"forward reads numbers, and finds others on the same batch: {error}"
        raise NotDerivableError([("", what, "have it read what follows from the batch")]) from error
    result = result if isinstance(result, tuple) else (result,)
    gradients = dict(zip(held.parameters, held.gradients(result), strict=True))
    kept = iter(result[1:])
    deltas = {path: next(kept) for path in held.deltas}
    return result[0], held.output(kept), gradients, deltas
