"""Forward mode by every way that torch has to it, alone and together with reverse mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp.verify.case import upstream_for
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.trial import Trial, assert_same

__all__ = ["hessian_vector_products_agree", "tangents_agree"]

TOLERANCE = 1e-10


@dataclass(frozen=True)
class _Course:
    """A function of some of the leaves, where it is, and how these move."""

    function: Callable[..., Tensor]
    cost: Callable[..., Tensor]
    """Σ w ⊙ output², whose Hessian is not 0 where the function is linear."""

    at: tuple[Tensor, ...]
    tangents: tuple[Tensor, ...]
    about: str

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(range(len(self.at)))


def tangents_agree(trial: Trial) -> None:
    """The tangent of the output by ``func.jvp``, alone and under ``vmap``, ``jacfwd``, ``linearize`` and dual numbers,
    of all arguments and of each alone, whether they require a gradient or not, is the product with the Jacobian that
    reverse mode makes of the twin."""
    for theirs, courses in _courses(trial):
        expected = _jacobian_vector_product(theirs)
        for ours in courses:
            for name, way in _WAYS_TO_TANGENTS.items():
                what = f"tangent by {name}, {ours.about}"
                assert_same(way(ours).detach(), expected, what, TOLERANCE)
            if ours.about == ALL:  # which is slow, and takes no leaf that requires a gradient
                assert_same(_by_linearize(ours), expected, f"tangent by linearize, {ours.about}", TOLERANCE)


def hessian_vector_products_agree(trial: Trial) -> None:
    """The product of the Hessian of Σ w ⊙ output² with a vector by ``jvp(grad)``, ``grad(jvp)``, ``hessian`` and dual
    numbers through, or below, reverse mode is that of the twin, by reverse over reverse; and ``jvp(jvp)`` its product
    with the vector once more."""
    for theirs, courses in _courses(trial):
        expected = _hessian_vector_product(theirs)
        curvature = torch.stack([(h * t).sum() for h, t in zip(expected, theirs.tangents, strict=True)]).sum()
        for ours in courses:
            for name, way in _WAYS_TO_PRODUCTS.items():
                if name == "hessian" and any(not t.numel() for t in ours.at):
                    continue  # torch's own fails for every function
                for h, e in zip(way(ours), expected, strict=True):
                    got = torch.zeros_like(e) if h is None else h.detach()
                    assert_same(got, e, f"Hessian-vector product by {name}, {ours.about}", TOLERANCE)
            got = _jvp(lambda *at, o=ours: _jvp(o.cost, at, o.tangents), ours.at, ours.tangents)
            assert_same(got.detach(), curvature, f"jvp(jvp), {ours.about}", TOLERANCE)


ALL = "of all arguments, which require no gradient"


def _courses(trial: Trial) -> Iterator[tuple[_Course, list[_Course]]]:
    """The twin, and ours at inputs that require no gradient and at ones that do; of all arguments, of each alone."""
    at = trial.exact
    positions = tuple(range(len(trial.leaves)))
    if trial.joined()(*at.leaves()).isnan().any():
        raise DoesNotApply("the mean of nothing is NaN, and so are its tangents")
    for moved in dict.fromkeys([positions, *((p,) for p in positions)]):
        about = "of all arguments" if moved == positions else f"of {trial.leaves[moved[0]].name} alone"
        courses = [
            _course(trial.joined(), at.leaves(None if needs else []), moved, f"{about}, {which}")
            for needs, which in ((False, "which require no gradient"), (True, "which require one"))
        ]
        yield _course(trial.joined(plain=True), at.leaves(), moved, about), courses


def _course(apply: Callable[..., Tensor], args: Sequence[Any], moved: Sequence[int], about: str) -> _Course:
    def function(*at: Tensor) -> Tensor:
        full = list(args)
        for p, t in zip(moved, at, strict=True):
            full[p] = t
        return apply(*full)

    weights = upstream_for(apply(*args).detach(), seed=3)
    at = tuple(args[p] for p in moved)
    tangents = tuple(upstream_for(args[p].detach(), seed=p) for p in moved)
    return _Course(function, lambda *at: (weights * function(*at).square()).sum(), at, tangents, about)


def _jacobian_vector_product(c: _Course) -> Tensor:
    """J t by reverse mode alone: u Jᵀ… is linear in u, and J t the derivative of ⟨u J, t⟩ by u."""
    output = c.function(*c.at)
    u = torch.zeros_like(output).requires_grad_()
    pulled = torch.autograd.grad(output, c.at, u, create_graph=True)
    (product,) = torch.autograd.grad(_dot(pulled, c.tangents), u)
    return product


def _hessian_vector_product(c: _Course) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(c.cost(*c.at), c.at, create_graph=True)
    slope = _dot(gradients, c.tangents)
    return torch.autograd.grad(slope, c.at, allow_unused=True, materialize_grads=True)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _jvp(function: Callable[..., Any], at: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    return torch.func.jvp(function, at, tangents)[1]


def _along(jacobian: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """Σ_i J_i t_i, where J_i has the dimensions of t_i last."""
    pairs = zip(jacobian, tangents, strict=True)
    products = [J.flatten(J.dim() - t.dim()) @ t.flatten() if t.dim() else J * t for J, t in pairs]
    return torch.stack(products).sum(0)


def _by_vmap(c: _Course) -> Tensor:
    """One tangent out of several that are mapped over."""
    several = tuple(torch.stack([0 * t, t]) for t in c.tangents)
    return torch.func.vmap(lambda *tangents: _jvp(c.function, c.at, tangents))(*several)[1]


def _by_linearize(c: _Course) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # torch's, of its own graph
        tangent: Tensor = torch.func.linearize(c.function, *c.at)[1](*c.tangents)
    return tangent


def _by_dual_numbers(c: _Course) -> Tensor:
    with forward_ad.dual_level():
        dual = c.function(*map(forward_ad.make_dual, c.at, c.tangents))
        return _tangent(dual)


def _dual_through_reverse(c: _Course) -> Sequence[Tensor]:
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t.detach().requires_grad_(), v) for t, v in zip(c.at, c.tangents, strict=True)]
        gradients = torch.autograd.grad(c.cost(*dual), dual, create_graph=True)
        return [_tangent(g) for g in gradients]


def _reverse_through_dual(c: _Course) -> Sequence[Tensor | None]:
    leaves = [t.detach().requires_grad_() for t in c.at]
    with forward_ad.dual_level():
        slope = _tangent(c.cost(*map(forward_ad.make_dual, leaves, c.tangents)))
    return torch.autograd.grad(slope, leaves, allow_unused=True) if slope.requires_grad else [None] * len(leaves)


def _tangent(dual: Tensor) -> Tensor:
    """The tangent, of which torch makes None where it is 0 by all that it knows."""
    value, tangent = forward_ad.unpack_dual(dual)
    return torch.zeros_like(value) if tangent is None else tangent


def _by_hessian(c: _Course) -> Sequence[Tensor]:
    rows = torch.func.hessian(c.cost, c.positions)(*c.at)
    return [_along(row, c.tangents) for row in rows]


_WAYS_TO_TANGENTS: dict[str, Callable[[_Course], Tensor]] = {
    "jvp": lambda c: _jvp(c.function, c.at, c.tangents),
    "vmap(jvp)": _by_vmap,
    "jacfwd": lambda c: _along(torch.func.jacfwd(c.function, c.positions)(*c.at), c.tangents),
    "dual numbers": _by_dual_numbers,
}
_WAYS_TO_PRODUCTS: dict[str, Callable[[_Course], Sequence[Tensor | None]]] = {
    "jvp(grad)": lambda c: _jvp(torch.func.grad(c.cost, c.positions), c.at, c.tangents),
    "grad(jvp)": lambda c: torch.func.grad(lambda *at: _jvp(c.cost, at, c.tangents), c.positions)(*c.at),
    "hessian": _by_hessian,
    "dual numbers through autograd": _dual_through_reverse,
    "autograd through dual numbers": _reverse_through_dual,
}
