"""torch.func's transforms, and torch.compile."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue import Make
from torch_manualbp.rules.rule import RuleWithByproducts, output_of
from torch_manualbp.verify.contract.case import (
    Case,
    DoesNotApply,
    assert_same,
    finish,
    gradients,
    leaves,
    refusal,
)
from torch_manualbp.verify.outputs import of_one_output

__all__ = [
    "compiles_to_machine_code",
    "compiles_with_our_backward",
    "hessians_agree",
    "jacobians_agree",
    "maps_per_sample_gradients",
    "vmap_patterns",
    "vmaps",
]


def jacobians_agree(case: Case) -> None:
    """jacfwd and jacrev of every argument agree."""
    _refuse_jacobians_of_nothing(case)
    args, positions = case.args(frozen=case.differentiable()), case.differentiable()
    forward = torch.func.jacfwd(case.apply, positions)(*args)
    reverse = torch.func.jacrev(case.apply, positions)(*args)
    for p, f, r in zip(positions, forward, reverse, strict=True):
        assert_same(f, r, f"Jacobian of argument {p}")


def hessians_agree(case: Case) -> None:
    """The Hessians of Σ output² forward over reverse, reverse over reverse and forward over forward agree."""
    _refuse_jacobians_of_nothing(case)
    args = case.args(frozen=case.differentiable())

    def cost(*args: Any) -> Tensor:
        output: Tensor = case.apply(*args)
        return (output * output).sum()

    for p in case.differentiable():
        forward_over_reverse = torch.func.hessian(cost, p)(*args)
        reverse_over_reverse = torch.func.jacrev(torch.func.jacrev(cost, p), p)(*args)
        assert_same(forward_over_reverse, reverse_over_reverse, f"Hessian of argument {p}")
        forward_over_forward = torch.func.jacfwd(torch.func.jacfwd(cost, p), p)(*args)
        assert_same(forward_over_forward, reverse_over_reverse, f"Hessian of argument {p}, forward over forward")


def _refuse_jacobians_of_nothing(case: Case) -> None:
    args = case.args()
    if not case.apply(*args).dim() and any(not t.numel() for t in leaves(args)):
        raise DoesNotApply("torch.func.jacrev of an argument without entries fails for every function")


def vmap_patterns(case: Case) -> list[tuple[int, ...]]:
    """Which arguments vmap maps over: all tensors, the first two as in per-sample gradients, and each alone."""
    tensors = tuple(i for i, a in enumerate(case.args()) if isinstance(a, Tensor))
    return list(dict.fromkeys([tensors, tensors[:2], *((t,) for t in tensors)]))


def vmaps(case: Case) -> None:
    """Gradients under vmap, over each pattern of arguments, equal those taken one sample at a time."""
    runs = [case.args(Make(seed=seed), frozen=case.differentiable()) for seed in range(3)]
    ours, theirs = (_vjp(function, case.differentiable()) for function in (case.apply, case.twin))
    ran, reasons = 0, []
    for mapped in vmap_patterns(case):
        args = [torch.stack([r[i] for r in runs]) if i in mapped else a for i, a in enumerate(runs[0])]
        in_dims = tuple(0 if i in mapped else None for i in range(len(args)))
        if reason := refusal(torch.func.vmap(theirs, in_dims=in_dims), *args):
            reasons.append(reason)
            continue
        batched = torch.func.vmap(ours, in_dims=in_dims)(*args)
        one_by_one = [ours(*(r[i] if i in mapped else a for i, a in enumerate(runs[0]))) for r in runs]
        for i, gradient in enumerate(batched):
            assert_same(gradient, torch.stack([o[i] for o in one_by_one]), f"gradient {i} mapped over {mapped}")
        ran += 1
    finish(ran, reasons)


def maps_per_sample_gradients(case: Case) -> None:
    """``vmap(grad(cost))`` over inputs, and over inputs with targets, gives each sample the gradients of itself alone,
    those of the arguments that the samples share included."""
    positions = case.differentiable()
    runs = [case.args(Make(seed=seed), frozen=positions) for seed in range(3)]
    tensors = tuple(i for i, a in enumerate(runs[0]) if isinstance(a, Tensor))
    ran, reasons = 0, []
    for mapped in dict.fromkeys([tensors[:1], tensors[:2]]):
        args = [torch.stack([r[i] for r in runs]) if i in mapped else a for i, a in enumerate(runs[0])]
        in_dims = tuple(0 if i in mapped else None for i in range(len(args)))

        def per_sample(function: Callable[..., Tensor], in_dims: tuple[int | None, ...] = in_dims) -> Any:
            return torch.func.vmap(torch.func.grad(_cost(function), positions), in_dims=in_dims)

        if reason := refusal(per_sample(case.twin), *args):
            reasons.append(reason)
            continue
        batched = per_sample(case.apply)(*args)
        for n, run in enumerate(runs):
            alone = [run[i] if i in mapped else a for i, a in enumerate(runs[0])]
            alone = [a.detach().requires_grad_() if i in positions else a for i, a in enumerate(alone)]
            expected = torch.autograd.grad(_cost(case.apply)(*alone), leaves(alone))
            for p, gradient, reference in zip(positions, batched, expected, strict=True):
                assert_same(gradient[n], reference, f"gradient of argument {p} for sample {n}")
        ran += 1
    finish(ran, reasons)


def _cost(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: function(*args).square().sum()


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

    rule = case.rule
    formula = rule.backward
    has_byproducts = issubclass(rule, RuleWithByproducts)

    class Doubled(rule):  # type: ignore[misc, valid-type]
        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            raw = formula(ctx, *upstream)
            if isinstance(raw, tuple):
                return tuple(None if r is None else 2 * r for r in raw)
            return 2 * raw

    def doubled(*args: Any) -> Any:
        return output_of(Doubled.apply(*args)) if has_byproducts else Doubled.apply(*args)

    torch._dynamo.reset()
    compiled = torch.compile(of_one_output(doubled), fullgraph=True, backend=backend)
    args = case.args()
    output, expected = compiled(*args), case.apply(*case.args())
    assert_same(output, expected, "compiled output")
    got = gradients(lambda *_: output, args)
    for gradient, reference in zip(got, gradients(case.apply, case.args()), strict=True):
        assert_same(gradient, 2 * reference, "compiled gradient, doubled")


def compiles_to_machine_code(case: Case) -> None:
    """The same with torch.compile's own backend, inductor."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise DoesNotApply("inductor needs a C++ compiler")
    compiles_with_our_backward(case, "inductor")
