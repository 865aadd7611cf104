"""What a rule owes: one function a claim. Each raises AssertionError where a rule of the catalogue breaks the claim.

``test_contract.py`` runs them over the catalogue, ``test_planted_mistakes.py`` over rules with a known mistake.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from torch_manualbp.rules import CATALOGUE, Entry, Make, Rule

EXACT = 1e-12
"""Largest difference, relative to the tensor's largest number or 1, that float64 may show against the torch twin."""


@dataclass(frozen=True)
class Case:
    """A rule of the catalogue and the name of one of its samples."""

    entry: Entry
    sample: str

    def __str__(self) -> str:
        return f"{self.entry.name}-{self.sample}"

    def with_rule(self, rule: type[Rule]) -> Case:
        return Case(replace(self.entry, rule=rule), self.sample)

    def args(self, make: Make | None = None, frozen: Sequence[int] = ()) -> list[Any]:
        """Fresh arguments; those that can take a gradient are leaves that do, unless frozen."""
        (sample,) = (s for s in self.entry.samples(make or Make()) if s.name == self.sample)
        positions = set(self.entry.differentiable(sample)) - set(frozen)
        return [a.requires_grad_(i in positions) if isinstance(a, Tensor) else a for i, a in enumerate(sample.args)]

    def differentiable(self) -> tuple[int, ...]:
        return tuple(i for i, a in enumerate(self.args()) if isinstance(a, Tensor) and a.requires_grad)


def cases(entries: Sequence[Entry] = CATALOGUE) -> Iterator[Case]:
    for entry in entries:
        for sample in entry.samples(Make()):
            yield Case(entry, sample.name)


def case(rule: type[Rule], sample: str) -> Case:
    (entry,) = (e for e in CATALOGUE if e.rule is rule)
    return Case(entry, sample)


def leaves(args: Sequence[Any]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad]


def upstream_for(output: Tensor, seed: int = 7) -> Tensor:
    return Make(output.dtype, output.device, seed)(*output.shape)


def gradients(
    function: Callable[..., Tensor], args: Sequence[Any], upstream: Tensor | None = None
) -> tuple[Tensor, ...]:
    output = function(*args)
    return torch.autograd.grad(output, leaves(args), upstream_for(output) if upstream is None else upstream)


def assert_same(actual: Tensor, expected: Tensor, what: str, tolerance: float = EXACT) -> None:
    """Equal in shape and dtype, in the places of NaN and infinities, and elsewhere to the tolerance."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    if not expected.numel():
        return
    finite = expected.isfinite()
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN elsewhere than expected"
    odd = ~finite & ~expected.isnan()
    assert torch.equal(actual[odd], expected[odd]), f"{what}: infinities differ"
    if finite.any():
        scale = max(1.0, expected[finite].abs().max().item())
        difference = (actual[finite] - expected[finite]).abs().max().item() / scale
        assert difference <= tolerance, f"{what}: differs by {difference:.3g}"


def equals_twin(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """Value and gradients are the torch twin's to 1e-12 in float64."""
    ours, theirs = case.args(Make(dtype)), case.args(Make(dtype))
    output, expected = case.entry.rule.apply(*ours), case.entry.twin(*theirs)
    assert_same(output, expected, "output")
    upstream = upstream_for(expected)
    pairs = zip(
        case.differentiable(),
        torch.autograd.grad(output, leaves(ours), upstream),
        torch.autograd.grad(expected, leaves(theirs), upstream),
        strict=True,
    )
    for position, gradient, reference in pairs:
        assert_same(gradient, reference, f"gradient of argument {position}")


def second_derivatives_equal_twins(case: Case, upstream_needs_gradient: bool) -> None:
    """Second and mixed derivatives are the torch twin's, also where the upstream gradient needs none of its own."""
    ours = _second_derivatives(case.entry.rule.apply, case.args(), upstream_needs_gradient)
    theirs = _second_derivatives(case.entry.twin_for_second or case.entry.twin, case.args(), upstream_needs_gradient)
    for i, (derivative, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert_same(derivative, reference, f"second derivative {i}", tolerance=1e-11)


def _second_derivatives(
    function: Callable[..., Tensor], args: Sequence[Any], upstream_needs_gradient: bool
) -> list[Tensor]:
    output = function(*args)
    upstream = upstream_for(output).requires_grad_(upstream_needs_gradient)
    inputs = leaves(args)
    first = torch.autograd.grad(output, inputs, upstream, create_graph=True)
    contracted = sum((g * upstream_for(g, seed=i)).sum() for i, g in enumerate(first))
    wrt = [*inputs, upstream] if upstream_needs_gradient else inputs
    assert isinstance(contracted, Tensor)
    if not contracted.requires_grad:  # the operation is linear
        return [torch.zeros_like(t) for t in wrt]
    second = torch.autograd.grad(contracted, wrt, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, second, strict=True)]


def raw_backward_is_well_formed(case: Case) -> None:
    """``backward`` itself returns one entry per argument: None exactly where nothing is needed, elsewhere a gradient of
    the argument's shape, dtype and device. The engine would repair some of that in silence."""
    positions = case.differentiable()
    for needed in itertools.chain([positions], ([p] for p in positions)):
        args = case.args(frozen=[p for p in positions if p not in needed])
        output = case.entry.rule.apply(*args)
        assert output.grad_fn is not None
        raw = output.grad_fn.apply(upstream_for(output))
        raw = raw if isinstance(raw, tuple) else (raw,)
        assert len(raw) == len(args), f"{len(raw)} gradients for {len(args)} arguments"
        for i, (gradient, arg) in enumerate(zip(raw, args, strict=True)):
            if i not in needed:
                assert gradient is None, f"argument {i} needs no gradient and got one"
                continue
            assert isinstance(gradient, Tensor), f"argument {i} needs a gradient and got {gradient}"
            about = gradient.shape, gradient.dtype, gradient.device
            assert about == (arg.shape, arg.dtype, arg.device), f"argument {i}: gradient is {about}"


def passes_gradcheck(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """Finite differences agree in reverse mode, forward mode and both under vmap."""
    assert gradcheck(
        case.entry.rule.apply,
        case.args(Make(dtype)),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def passes_gradgradcheck(case: Case) -> None:
    """Finite differences of the backward agree in reverse over reverse and forward over reverse."""
    assert gradgradcheck(case.entry.rule.apply, case.args(), check_fwd_over_rev=True, check_batched_grad=True)


def forward_mode_equals_reverse_mode(case: Case) -> None:
    """jacfwd and jacrev of every argument agree, and so do the Hessians forward over reverse and reverse over it."""
    args, positions = case.args(frozen=case.differentiable()), case.differentiable()
    forward = torch.func.jacfwd(case.entry.rule.apply, positions)(*args)
    reverse = torch.func.jacrev(case.entry.rule.apply, positions)(*args)
    for p, f, r in zip(positions, forward, reverse, strict=True):
        assert_same(f, r, f"Jacobian of argument {p}")

    def cost(*args: Any) -> Tensor:
        output: Tensor = case.entry.rule.apply(*args)
        return (output * output).sum()

    p = positions[0]
    forward_over_reverse = torch.func.hessian(cost, p)(*args)
    reverse_over_reverse = torch.func.jacrev(torch.func.jacrev(cost, p), p)(*args)
    assert_same(forward_over_reverse, reverse_over_reverse, "Hessian")
    forward_over_forward = torch.func.jacfwd(torch.func.jacfwd(cost, p), p)(*args)
    assert_same(forward_over_forward, reverse_over_reverse, "Hessian, forward over forward")


def upstream_may_have_any_strides(case: Case) -> None:
    """An expanded and a transposed upstream gradient give what the same numbers give laid out plainly."""
    shape = case.entry.rule.apply(*case.args()).shape
    expanded = torch.tensor(0.7, dtype=torch.float64).expand(shape)
    strided = upstream_for(torch.empty(shape[::-1], dtype=torch.float64)).permute(list(reversed(range(len(shape)))))
    skipping = upstream_for(torch.empty(*shape, 2, dtype=torch.float64))[..., 0]
    for upstream in (expanded, strided, skipping):
        got = gradients(case.entry.rule.apply, case.args(), upstream)
        plain = gradients(case.entry.rule.apply, case.args(), upstream.clone(memory_format=torch.contiguous_format))
        for g, p in zip(got, plain, strict=True):
            assert_same(g, p, f"upstream strides {upstream.stride()}")


def inputs_may_have_any_strides(case: Case) -> None:
    """Transposed and sliced arguments give what the same numbers give laid out plainly."""

    def spread(t: Tensor) -> Tensor:
        wide = torch.zeros(*t.shape[::-1], 2, dtype=t.dtype)
        view = wide[..., 1].permute(*reversed(range(t.dim())))
        view.copy_(t.detach())
        return view.requires_grad_(t.requires_grad)

    args = [spread(a) if isinstance(a, Tensor) and a.dim() else a for a in case.args()]
    for g, p in zip(gradients(case.entry.rule.apply, args), gradients(case.entry.rule.apply, case.args()), strict=True):
        assert_same(g, p, "gradient of strided arguments")


def vmap_patterns(case: Case) -> list[tuple[int, ...]]:
    """Which arguments vmap maps over: all tensors, the first two as in per-sample gradients, and each alone."""
    tensors = tuple(i for i, a in enumerate(case.args()) if isinstance(a, Tensor))
    return list(dict.fromkeys([tensors, tensors[:2], *((t,) for t in tensors)]))


def vmaps(case: Case, mapped: tuple[int, ...]) -> None:
    """Gradients under vmap equal those taken one sample at a time."""
    runs = [case.args(Make(seed=seed), frozen=case.differentiable()) for seed in range(3)]
    args = [torch.stack([r[i] for r in runs]) if i in mapped else a for i, a in enumerate(runs[0])]
    vjp = _vjp(case.entry.rule.apply, case.differentiable())
    batched = torch.func.vmap(vjp, in_dims=tuple(0 if i in mapped else None for i in range(len(args))))(*args)
    one_by_one = [vjp(*(r[i] if i in mapped else a for i, a in enumerate(runs[0]))) for r in runs]
    for i, gradient in enumerate(batched):
        assert_same(gradient, torch.stack([o[i] for o in one_by_one]), f"gradient {i}")


def why_torch_does_not_vmap(case: Case, mapped: tuple[int, ...]) -> str | None:
    """What torch says of the gradients of the twin under the same vmap, if it refuses."""
    args = [torch.stack([a] * 3) if i in mapped else a for i, a in enumerate(case.args(frozen=case.differentiable()))]
    vjp = _vjp(case.entry.twin, case.differentiable())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of slow or deprecated ways
            torch.func.vmap(vjp, in_dims=tuple(0 if i in mapped else None for i in range(len(args))))(*args)
    except (RuntimeError, ZeroDivisionError) as error:
        return str(error).split(". ")[0]
    return None


def _vjp(function: Callable[..., Tensor], positions: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    def vjp(*args: Any) -> tuple[Tensor, ...]:
        def run(*moved: Tensor) -> Tensor:
            full = list(args)
            for p, m in zip(positions, moved, strict=True):
                full[p] = m
            return function(*full)

        output, pull = torch.func.vjp(run, *(args[p] for p in positions))  # type: ignore[misc]
        gradients: tuple[Tensor, ...] = pull(torch.ones_like(output))
        return gradients

    return vjp


def compiles_with_our_backward(case: Case, backend: str = "aot_eager") -> None:
    """torch.compile(fullgraph=True) takes the rule and runs its backward: one that doubles the gradient still does."""

    rule = case.entry.rule
    formula = rule.backward

    class Doubled(rule):  # type: ignore[misc, valid-type]
        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            raw = formula(ctx, *upstream)
            if isinstance(raw, tuple):
                return tuple(None if r is None else 2 * r for r in raw)
            return 2 * raw

    torch._dynamo.reset()
    expected = gradients(rule.apply, case.args())
    for compiled_rule, factor in ((rule, 1), (Doubled, 2)):
        compiled = torch.compile(_apply(compiled_rule), fullgraph=True, backend=backend)
        for gradient, reference in zip(gradients(compiled, case.args()), expected, strict=True):
            assert_same(gradient, factor * reference, f"compiled gradient, doubled {factor} times")


def _apply(rule: type[Rule]) -> Callable[..., Tensor]:
    def apply(*args: Any) -> Tensor:
        output: Tensor = rule.apply(*args)
        return output

    return apply


def subsets_of_needed(case: Case) -> list[tuple[int, ...]]:
    """Every set of arguments that may need a gradient while the others are frozen."""
    positions = case.differentiable()
    return [c for n in range(1, len(positions) + 1) for c in itertools.combinations(positions, n)]


def keeps_no_more_than_torch(case: Case, needed: tuple[int, ...]) -> None:
    """The rule keeps no more bytes for backward than the torch twin."""
    frozen = [p for p in case.differentiable() if p not in needed]
    ours = _bytes_kept(case.entry.rule.apply, case.args(frozen=frozen))
    theirs = _bytes_kept(case.entry.twin, case.args(frozen=frozen))
    assert ours <= theirs, f"keeps {ours} bytes, torch {theirs}"


def _bytes_kept(function: Callable[..., Tensor], args: Sequence[Any]) -> int:
    """Bytes of the storages that the graph of one call holds."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function(*args)
        del output
    return sum(kept.values())


def frozen_arguments_change_nothing(case: Case) -> None:
    """With all but one argument frozen, that one's gradient is the same to the bit."""
    positions = case.differentiable()
    every = gradients(case.entry.rule.apply, case.args())
    for p, expected in zip(positions, every, strict=True):
        (alone,) = gradients(case.entry.rule.apply, case.args(frozen=[q for q in positions if q != p]))
        assert torch.equal(alone, expected) or alone.isnan().any(), f"argument {p} alone has another gradient"


def works_under_checkpointing_and_hooks(case: Case) -> None:
    """Gradients are the same to the bit under both kinds of checkpointing and with saved tensors moved away."""
    expected = gradients(case.entry.rule.apply, case.args())

    def moved(*args: Any) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
            output: Tensor = case.entry.rule.apply(*args)
            return output

    def reentrant_needs_a_leaf(reentrant: bool) -> Callable[..., Tensor]:
        return lambda *args: checkpoint(case.entry.rule.apply, *args, use_reentrant=reentrant)

    for function in (moved, reentrant_needs_a_leaf(False)):
        for gradient, reference in zip(gradients(function, case.args()), expected, strict=True):
            assert_same(gradient, reference, "gradient", tolerance=0)
    args = case.args()  # the reentrant kind works with backward() alone
    output = reentrant_needs_a_leaf(True)(*args)
    output.backward(upstream_for(output))
    for leaf, reference in zip(leaves(args), expected, strict=True):
        assert leaf.grad is not None
        assert_same(leaf.grad, reference, "gradient", tolerance=0)


def notices_changes_in_place(case: Case) -> None:
    """Changing a tensor that backward needs is an error; backward never runs on changed numbers."""
    expected = gradients(case.entry.rule.apply, case.args())
    for position, arg in enumerate(case.args()):
        if not isinstance(arg, Tensor) or not arg.is_floating_point() or not arg.numel():
            continue
        args = case.args()
        output = case.entry.rule.apply(*args)
        with torch.no_grad():
            args[position].add_(1)
        try:
            got = torch.autograd.grad(output, leaves(args), upstream_for(output))
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            continue
        for gradient, reference in zip(got, expected, strict=True):
            assert_same(gradient, reference, f"gradient after argument {position} changed", tolerance=0)


def errors_in_ulps(case: Case, apply: Callable[..., Tensor], dtype: torch.dtype, seeds: int = 10) -> Tensor:
    """The error of every entry of every gradient in ``dtype``, in units of the last place of the reference: the
    twin in float64 on the same numbers and the same upstream gradient."""
    errors = []
    for seed in range(seeds):
        low = case.args(Make(dtype, seed=seed))
        output = apply(*low)
        upstream = upstream_for(output)
        high = [a.detach().double().requires_grad_(a.requires_grad) if _floating(a) else a for a in low]
        expected = gradients(case.entry.twin, high, upstream.double())
        for gradient, reference in zip(torch.autograd.grad(output, leaves(low), upstream), expected, strict=True):
            errors.append(((gradient.double() - reference).abs() / _ulp(reference, dtype)).flatten())
    return torch.cat(errors)


def is_as_accurate_as_torch(case: Case, dtype: torch.dtype) -> None:
    """No gradient is further from the float64 reference than torch's own by more than one ulp; in the median where
    terms cancel, since the worst entry is then an accident of rounding for both."""
    ours = errors_in_ulps(case, case.entry.rule.apply, dtype)
    theirs = errors_in_ulps(case, case.entry.twin, dtype)
    if not ours.numel():
        return
    mine, torchs = (ours.median(), theirs.median()) if case.entry.cancels else (ours.max(), theirs.max())
    assert mine <= torchs + 1, f"off by {mine:.2f} ulp where torch is off by {torchs:.2f}"


SPECIAL = (0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"))


def special_values(dtype: torch.dtype) -> Tensor:
    """±0, ±1, the smallest and largest numbers of the dtype, a subnormal, ±inf, NaN."""
    info = torch.finfo(dtype)
    edges = (info.tiny, -info.tiny, info.tiny / 4, -info.tiny / 4, info.max, info.min, info.eps, -info.eps)
    return torch.tensor([*SPECIAL, *edges], dtype=torch.float64).to(dtype)


def treats_special_values_as_torch(entry: Entry, dtype: torch.dtype) -> None:
    """An elementwise rule gives torch's value and gradient for every pair of a special input and a special upstream."""
    values = special_values(dtype)
    z, upstream = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    output, expected = entry.rule.apply(ours), entry.twin(theirs)
    assert_same(output, expected, "value", tolerance=0)
    number = ~expected.isnan()
    assert torch.equal(output.signbit()[number], expected.signbit()[number]), "a zero has the other sign"
    (gradient,) = torch.autograd.grad(output, ours, upstream)
    (reference,) = torch.autograd.grad(expected, theirs, upstream)
    # At NaN some of torch's kernels say one thing in their vectors and another in the numbers left over.
    apart = [z[i : i + 1].clone().requires_grad_() for i in range(len(z))]
    alone = torch.cat([torch.autograd.grad(entry.twin(x), x, upstream[i : i + 1])[0] for i, x in enumerate(apart)])
    info = torch.finfo(dtype)
    as_vector, as_number = (
        torch.isclose(gradient, answer, rtol=2 * info.eps, atol=2 * info.eps * info.tiny, equal_nan=True)
        for answer in (reference, alone)
    )
    assert (as_vector | as_number).all(), "gradient: neither of torch's two answers"


def rounds_once(case: Case, dtype: torch.dtype) -> None:
    """In float16 and bfloat16 the formula is, to one ulp, what it is in float64 on the very numbers that it kept."""
    args = case.args(Make(dtype))
    output = case.entry.rule.apply(*args)
    node, upstream = output.grad_fn, upstream_for(output)
    assert node is not None
    kept = tuple(t.double() if _floating(t) else t for t in node.saved_tensors)
    ctx = SimpleNamespace(**vars(node), saved_tensors=kept, needs_input_grad=node.needs_input_grad)
    exact = case.entry.rule.backward(ctx, upstream.double())
    exact = [g for g in (exact if isinstance(exact, tuple) else (exact,)) if g is not None]
    for gradient, reference in zip(torch.autograd.grad(output, leaves(args), upstream), exact, strict=True):
        if not reference.numel():
            continue
        error = ((gradient.double() - reference).abs() / _ulp(reference.double(), dtype)).max()
        assert error <= 1, f"off by {error:.2f} ulp of itself in float64"


def _ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit of the last place that ``dtype`` has at each entry."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** reference.abs().clamp_min(info.tiny).log2().floor()


def _floating(a: Any) -> bool:
    return isinstance(a, Tensor) and a.is_floating_point()
