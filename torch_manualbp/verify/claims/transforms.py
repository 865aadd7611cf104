"""What else runs around a backward: torch.func's transforms, torch.compile, autocast, tensors without numbers."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp._text import one_line
from torch_manualbp._torch import fake_tensor_mode, reset_compiler
from torch_manualbp.rules.rule import RuleWithByproducts, output_of
from torch_manualbp.verify.case import Case, refusal
from torch_manualbp.verify.check import UNSUPPORTED, DoesNotApply, finish
from torch_manualbp.verify.kinked import beside, is_between
from torch_manualbp.verify.measure import error_of, largest
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import Results, Setting, as_function, name_of_dtype
from torch_manualbp.verify.trial import EPS, EXACT, Trial, assert_same

__all__ = [
    "autocast",
    "compiled",
    "compiled_to_machine_code",
    "functorch",
    "hessians_agree",
    "jacobians_agree",
    "per_sample_gradients",
    "runs_on_fake_tensors",
    "runs_on_the_meta_device",
    "vmapped",
]

MANY = 50_000
"""Numbers in all leaves, above which vmap maps over the inputs alone."""


def jacobians_agree(trial: Trial) -> None:
    """jacfwd and jacrev of every argument agree."""
    leaves, positions = _jacobians_of(trial)
    forward = torch.func.jacfwd(trial.joined(), positions)(*leaves)
    reverse = torch.func.jacrev(trial.joined(), positions)(*leaves)
    for leaf, f, r in zip(trial.leaves, forward, reverse, strict=True):
        assert_same(f, r, f"Jacobian of {leaf.name}")


def hessians_agree(trial: Trial) -> None:
    """The Hessians of Σ output² forward over reverse, reverse over reverse and forward over forward agree."""
    leaves, positions = _jacobians_of(trial)
    function = trial.joined()

    def cost(*leaves: Tensor) -> Tensor:
        return function(*leaves).square().sum()

    for p in positions:
        forward_over_reverse = torch.func.hessian(cost, p)(*leaves)
        reverse_over_reverse = torch.func.jacrev(torch.func.jacrev(cost, p), p)(*leaves)
        assert_same(forward_over_reverse, reverse_over_reverse, f"Hessian of {trial.leaves[p].name}")
        forward_over_forward = torch.func.jacfwd(torch.func.jacfwd(cost, p), p)(*leaves)
        assert_same(forward_over_forward, reverse_over_reverse, f"Hessian of {trial.leaves[p].name}, by forward mode")


def _jacobians_of(trial: Trial) -> tuple[list[Tensor], tuple[int, ...]]:
    leaves = trial.exact.leaves([])
    if not trial.joined()(*leaves).dim() and any(not t.numel() for t in leaves):
        raise DoesNotApply("torch.func.jacrev of an argument without entries fails for every function")
    return leaves, tuple(range(len(leaves)))


def functorch(trial: Trial) -> Iterator[Row]:
    """torch.func.vjp, which torch.func.grad and jacrev are made of, gives the same gradients."""
    at, right = trial.exact, trial.references.at()

    def pulled(plain: bool = False) -> Results:
        run = at.run_plain if plain else at.run
        outputs, pull = torch.func.vjp(lambda *leaves: run(leaves), *at.leaves([]))  # type: ignore[misc]
        return Results(list(outputs), list(pull(tuple(at.upstream(outputs)))))

    found, expected = _transformed(trial, pulled), Results(right.outputs, right.gradients)
    if _draws_otherwise(trial, found.outputs, right.outputs):
        expected = pulled(plain=True)
        _require_same_draws(found.outputs, expected.outputs, "torch.func.vjp")
    yield from trial.same(found, expected, hint="under torch.func.vjp")


def _draws_otherwise(trial: Trial, found: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether outputs of a target that draws random numbers are others under a transform: of a tensor that is laid out
    in another order torch's dropout leaves out other numbers there."""
    if trial.has_twin or all(map(_alike, found, right)):
        return False
    at, seed = trial.exact, trial.subject.seed
    with torch.no_grad():
        return not all(map(_alike, *(at.run(at.leaves([]), seed=seed + n) for n in (0, 1))))


def _require_same_draws(found: Sequence[Tensor], right: Sequence[Tensor], where: str) -> None:
    if not all(map(_alike, found, right)):
        raise DoesNotApply(f"it draws other random numbers under {where}")


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, 1e-6, 1e-6 * largest(b), equal_nan=True)


def vmapped(trial: Trial) -> Iterator[Row]:
    """Outputs and gradients under torch.vmap, over three versions of all tensors, stacked in front and at the end, and
    of some of them, are those of one at a time; each version has an upstream gradient of its own."""
    trial.references.require_autograd()
    if not trial.has_twin and any(f.vmap is not Function.vmap for f in trial.subject.functions):
        # Its own rule for vmap may take the dimension that is mapped over for another one of the same size.
        sizes = dict.fromkeys(n for leaf in trial.leaves for n in leaf.tensor.shape[-1:] if 1 < n <= 16)
        for size, pattern in itertools.product(list(sizes)[:2], _patterns(trial)):
            with contextlib.suppress(DoesNotApply, RuntimeError, ValueError, IndexError):  # and elsewhere it is seen
                rows = _vmapped(trial, trial.versions(trial.exact, size), [pattern], [pattern])
                yield from (row for row in rows if not row.ok)
    front = _patterns(trial)
    yield from _vmapped(trial, trial.versions(trial.exact, 3), front, front[:1] if trial.has_twin else front)


def _vmapped(trial: Trial, versions: list[Setting], front: list[Mapped], last: list[Mapped]) -> Iterator[Row]:
    ran, reasons = 0, []
    for mapped, dim in [*((p, 0) for p in front), *((p, -1) for p in last)]:
        with_upstream = partial(_pulled, mapped=mapped, dim=dim)
        try:
            found = _transformed(trial, partial(with_upstream, versions), partial(with_upstream, versions, plain=True))
        except DoesNotApply as why:
            reasons.append(str(why))
            continue
        mapped_plain: Results | None = None
        first = versions[0].run_plain(versions[0].leaves([]))
        if _draws_otherwise(trial, [o[0].detach() for o in found.outputs], [o.detach() for o in first]):
            try:
                mapped_plain = with_upstream(versions, plain=True)
                _require_same_draws(found.outputs, mapped_plain.outputs, "vmap")
            except (DoesNotApply, RuntimeError) as why:
                reasons.append(one_line(why))
                continue
        ran += 1
        for n, version in enumerate(versions):
            at = _mixed(versions[0], version, mapped)
            outputs = at.run_plain(at.leaves([]))
            upstream = [(1 + n) * u for u in at.upstream(outputs)]
            one = Results([o[n] for o in found.outputs], [g[n] for g in found.gradients])
            hint = f"under vmap, sample {n}"
            if mapped_plain is None:
                right = at.results(at.run_plain, upstream=upstream)
            else:
                right = Results([o[n] for o in mapped_plain.outputs], [g[n] for g in mapped_plain.gradients])
            rows = trial.same(one, right, hint=hint, slack=4, outputs=True)
            yield from (row for row in rows if not row.ok or n == 0)
    finish(ran, reasons)


Mapped = tuple[tuple[int, ...], tuple[str, ...]]
"""What vmap maps over: places in the values, and names of parameters."""


def _patterns(trial: Trial) -> list[Mapped]:
    """Which tensors vmap maps over: the inputs, those and the parameters, and each alone; of a rule also the first two,
    as for per-sample gradients."""
    at = trial.exact
    inputs = tuple(leaf.position for leaf in trial.leaves if leaf.position is not None)
    tensors = tuple(at.tensors()) if trial.has_twin else inputs
    parameters = tuple(leaf.parameter for leaf in trial.leaves if leaf.parameter)
    patterns: list[Mapped] = [(tensors, () if tensors else parameters)]
    if trial.subject.size() <= MANY:
        alone = [*(((i,), ()) for i in tensors), *(((), (name,)) for name in parameters)]
        patterns += [
            (tensors, parameters),
            *([(tensors[:2], ())] if trial.has_twin else []),
            *alone[: None if trial.has_twin else 3],
        ]
    return list(dict.fromkeys(patterns))


def _mixed(at: Setting, version: Setting, mapped: Mapped) -> Setting:
    """The call with what is mapped over from another version of it."""
    positions, parameters = mapped
    mixed = at.with_values([version.values[i] if i in positions else v for i, v in enumerate(at.values)])
    mixed.state = {name: version.state[name] if name in parameters else t for name, t in at.state.items()}
    return mixed


def _pulled(versions: Sequence[Setting], mapped: Mapped, dim: int, plain: bool = False) -> Results:
    """Outputs and gradients under vmap, the upstream gradient of the n-th version 1 + n times the first."""
    positions, parameters = mapped
    at = versions[0]

    def both(factor: Tensor, values: dict[int, Tensor], state: dict[str, Tensor]) -> tuple[Any, Any]:
        here = at.with_values([values.get(i, v) for i, v in enumerate(at.values)])
        here.state = at.state | state
        leaves = [here.state[f.parameter] if f.position is None else here.values[f.position] for f in at.subject.leaves]  # type: ignore[index]
        run = here.run_plain if plain else here.run
        outputs, pull = torch.func.vjp(lambda *moved: run(moved), *leaves)  # type: ignore[misc]
        return outputs, pull(tuple(factor.to(u.dtype) * u for u in at.upstream(outputs)))

    factors = torch.arange(1.0, 1 + len(versions), dtype=torch.float64)
    values = {i: torch.stack([v.values[i] for v in versions], dim) for i in positions}
    state = {name: torch.stack([v.state[name] for v in versions], dim) for name in parameters}
    dims = (
        {i: t.dim() - 1 if dim else 0 for i, t in values.items()},
        {n: t.dim() - 1 if dim else 0 for n, t in state.items()},
    )
    outputs, gradients = torch.vmap(both, in_dims=(0, *dims), randomness="same")(factors, values, state)
    return Results(list(outputs), list(gradients))


def _transformed(trial: Trial, run: Callable[[], Results], run_plain: Callable[[], Any] | None = None) -> Results:
    """The result under a transform of torch.func, or why it does not apply."""
    try:
        return run()
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        refused = not trial.subject.functions or any(words in str(error) for words in UNSUPPORTED)
        if refused and not trial.has_twin:
            raise DoesNotApply(one_line(error)[:200]) from error
        if run_plain is not None and (reason := refusal(run_plain, errors=(Exception,))):
            raise DoesNotApply(reason) from error
        raise


def per_sample_gradients(trial: Case) -> Iterator[Row]:
    """``vmap(grad(cost))`` over inputs, and over inputs with targets, gives each sample the gradients of itself alone,
    those of the arguments that the samples share included."""
    versions = trial.versions(trial.exact, 3)
    tensors = tuple(trial.exact.tensors())
    ran, reasons = 0, []
    for positions in dict.fromkeys([tensors[:1], tensors[:2]]):
        mapped = positions, ()
        if reason := refusal(_per_sample, versions, positions, True):
            reasons.append(reason)
            continue
        found = _per_sample(versions, positions, False)
        for n, version in enumerate(versions):
            at = _mixed(versions[0], version, mapped)
            leaves = at.leaves()
            right = torch.autograd.grad(sum((o.square().sum() for o in at.run(leaves)), torch.zeros(())), leaves)
            for leaf, gradient, reference in zip(trial.leaves, found, right, strict=True):
                yield trial.compared(leaf, gradient[n], reference, hint=f"per sample, {n}")
        ran += 1
    finish(ran, reasons)


def _per_sample(versions: Sequence[Setting], positions: Sequence[int], plain: bool) -> Sequence[Tensor]:
    at = versions[0]

    def gradients(*values: Tensor) -> Any:
        here = at.with_values([values[positions.index(i)] if i in positions else v for i, v in enumerate(at.values)])
        run = here.run_plain if plain else here.run

        def cost(*leaves: Tensor) -> Tensor:
            return torch.stack([o.square().sum() for o in run(leaves)]).sum()

        leaves = [here.values[leaf.position or 0] for leaf in at.subject.leaves]
        return torch.func.grad(cost, tuple(range(len(leaves))))(*leaves)

    stacked = [torch.stack([v.values[i] for v in versions]) for i in positions]
    return torch.vmap(gradients)(*stacked)


def compiled(trial: Trial, backend: str = "aot_eager") -> Iterator[Row]:
    """Under torch.compile the gradients are the same. A rule, which is taken as one graph, runs its own backward there:
    one that doubles the gradient still does."""
    at, right = trial.exact, trial.references.at()
    target = _doubled(trial.rule) if isinstance(trial, Case) else at.target
    reset_compiler()
    function = (lambda *leaves: at.call(target, leaves)) if trial.has_twin else as_function(at)
    run = torch.compile(function, fullgraph=trial.has_twin, backend=backend)
    found = at.results(lambda leaves: run(*leaves))
    if isinstance(trial, Case):
        found = Results(found.outputs, [g / 2 for g in found.gradients])
    yield from trial.same(found, Results(right.outputs, right.gradients), hint="under torch.compile")


def _doubled(rule: Any) -> Callable[..., Any]:
    formula = rule.backward

    class Doubled(rule):
        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            raw = formula(ctx, *upstream)
            if isinstance(raw, tuple):
                return tuple(None if r is None else 2 * r for r in raw)
            return 2 * raw

    if issubclass(rule, RuleWithByproducts):
        return lambda *args: output_of(rule, Doubled.apply(*args))
    return Doubled.apply


def compiled_to_machine_code(trial: Trial) -> Iterator[Row]:
    """The same with torch.compile's own backend, inductor."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise DoesNotApply("inductor needs a C++ compiler")
    return compiled(trial, "inductor")


def autocast(trial: Trial, dtype: torch.dtype = torch.bfloat16) -> Iterator[Row]:
    """Under autocast, value and gradients of a layer, and of a rule by that function of
    ``torch_manualbp.functional`` which runs it, have the dtypes of torch's, and its numbers to the rounding of the
    autocast dtype: for inputs in float32 and in that dtype. Gradients of a target are no further off than three times
    those of plain autograd."""
    trial.references.require_autograd()
    reasons = []
    settings = trial.under_autocast(dtype)
    for at in settings:
        run, run_plain = (_casting(at, run, dtype) for run in (at.run, at.run_plain))
        if reason := refusal(at.results, run_plain, errors=(Exception,)):
            reasons.append(f"torch takes no autocast to {name_of_dtype(dtype)} here: {reason}")
            continue
        found, torchs = at.results(run), at.results(run_plain)
        if trial.has_twin:
            slack = 8 * torch.finfo(dtype).eps / EPS / EXACT
            yield from trial.same(found, torchs, slack=slack, hint="wrong under autocast")
            with torch.autocast("cpu", dtype):  # as those have it who call backward() in it, too
                found, torchs = at.results(), at.results(at.run_plain)
            yield from trial.same(found, torchs, slack=slack, hint="wrong where backward is under autocast, too")
        else:
            yield from _as_near_as_autograd(trial, found, torchs, dtype)
    finish(len(settings) > len(reasons), reasons)


def _casting(at: Setting, run: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def under(leaves: Sequence[Tensor]) -> Any:
        with torch.autocast(at.subject.leaves[0].tensor.device.type, dtype):
            return run(leaves)

    return under


def _as_near_as_autograd(trial: Trial, found: Results, torchs: Results, dtype: torch.dtype) -> Iterator[Row]:
    expected = trial.references.at(torch.float32)
    for i, leaf in enumerate(trial.leaves):
        right = expected.gradients[i]
        scale = expected.scales[i] + largest(expected.scales[i])
        theirs, off = (error_of(r.gradients[i], right, scale, dtype) for r in (torchs, found))
        ok = off.ulps <= max(8.0, 3 * theirs.ulps)
        if not ok and trial.takes_any_side:
            at = trial.subject.setting(trial.subject.wide, torch.float32)
            sides = beside(at.run_plain, at.leaves(), at.upstream(expected.outputs))
            tolerance = max(8.0, 3 * theirs.ulps) * torch.finfo(dtype).eps * scale
            ok = is_between(found.gradients[i], right, tolerance, [s[i] for s in sides])
        figures = off.ulps, off.relative, theirs.ulps, off.where, "" if ok else "wrong under autocast"
        yield Row(leaf.name, "", OK if ok else FAILS, name_of_dtype(dtype), tuple(right.shape), *figures)


def runs_on_the_meta_device(trial: Trial) -> Iterator[Row]:
    """On the meta device outputs and gradients have the shapes and dtypes that they have with numbers; those of a layer
    torch's strides, too."""
    return _without_numbers(
        trial, trial.exact.mapped(lambda t: t.to("meta"), parameters=True), contextlib.nullcontext()
    )


def runs_on_fake_tensors(trial: Trial) -> Iterator[Row]:
    """Under ``FakeTensorMode`` outputs and gradients have the shapes and dtypes that they have with numbers; those of a
    layer torch's strides, too."""
    mode = fake_tensor_mode()
    return _without_numbers(trial, trial.exact.mapped(mode.from_tensor, parameters=True), mode)


def _without_numbers(trial: Trial, at: Setting, mode: Any) -> Iterator[Row]:
    def results(run: Callable[..., Any]) -> list[Tensor]:
        with mode:
            leaves = at.leaves()
            outputs = run(leaves)
            found = at.results(lambda _: outputs, leaves, [torch.ones_like(o) for o in outputs])
            return [*found.gradients, *found.outputs]

    if trial.owes_strides and (reason := refusal(results, at.run_plain)):
        raise DoesNotApply(reason)
    found, numbers = results(at.run), trial.references.own()
    names = [*(leaf.name for leaf in trial.leaves), *(f"output[{i}]" for i in range(len(numbers.outputs)))]
    device = at.values[at.tensors()[0]].device
    for name, t, plain in zip(names, found, (*numbers.gradients, *numbers.outputs), strict=True):
        got = (tuple(t.shape), t.dtype, t.device)
        right = (tuple(plain.shape), plain.dtype, device)
        yield trial.row(name, "" if got == right else f"it is {got}, and with numbers {right}")
    if trial.owes_strides:
        for name, t, torchs in zip(names, found, results(at.run_plain), strict=True):
            wrong = "" if t.stride() == torchs.stride() else f"its strides are {t.stride()}, torch's {torchs.stride()}"
            yield trial.row(name, wrong)
