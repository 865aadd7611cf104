"""A rule with byproducts, written as :class:`RuleWithByproducts` says, works wherever a Function may be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torch_manualbp.catalogue import Make, Operation, Sample
from torch_manualbp.rules.rule import RuleWithByproducts
from torch_manualbp.verify import contract_matrix, verify


class LogSumExp(RuleWithByproducts):
    """C = log Σ exp z  ⇒  ∂C/∂z = g p. Kept: p = softmax(z), a byproduct."""

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.logsumexp(z, -1), torch.softmax(z, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        _, p = output
        ctx.save_for_backward(p)
        ctx.save_for_forward(p)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dp: Tensor | None) -> Tensor | None:
        (p,) = ctx.saved_tensors
        parts = [] if g is None else [g.unsqueeze(-1) * p]
        if dp is not None:
            parts.append(_softmax_product(p, dp))
        return sum(parts[1:], start=parts[0]) if parts else None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor]:
        (p,) = ctx.saved_tensors
        return (p * dz).sum(-1), _softmax_product(p, dz)


def _softmax_product(p: Tensor, d: Tensor) -> Tensor:
    return p * (d - (p * d).sum(-1, keepdim=True))


class SineOfProduct(RuleWithByproducts):
    """z = sin(x y) of two tensors. Kept: cos(x y), a byproduct, and of x and y what the needed gradients use."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(x * y), torch.cos(x * y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        (x, y), (z, cosine) = inputs, output
        needs_dx, needs_dy = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_dy else None, y if needs_dx else None, z, cosine)
        ctx.save_for_forward(x, y, z, cosine)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, dcosine: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, y, z, cosine = ctx.saved_tensors
        needs_dx, needs_dy = ctx.needs_input_grad
        dproduct = 0 if dz is None else dz * cosine
        if dcosine is not None:
            dproduct = dproduct - dcosine * z
        return dproduct * y if needs_dx else None, dproduct * x if needs_dy else None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor, Tensor]:
        x, y, z, cosine = ctx.saved_tensors
        dproduct = (0 if dx is None else dx * y) + (0 if dy is None else x * dy)
        return cosine * dproduct, -z * dproduct


Y = Make(seed=5)(3, 4)
RULES: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (LogSumExp.apply, lambda z: torch.logsumexp(z, -1)),
    (lambda z: SineOfProduct.apply(z, Y), lambda z: torch.sin(z * Y)),
    (lambda z: SineOfProduct.apply(z, 2 * z), lambda z: torch.sin(z * (2 * z))),
]


def total(f: Callable[..., Tensor], z: Tensor) -> Tensor:
    return f(z).sum()


def dual(f: Callable[..., Tensor], z: Tensor, t: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(z, t))).tangent


def twice(f: Callable[..., Tensor], z: Tensor, t: Tensor) -> Tensor:
    leaf = z.detach().requires_grad_()
    (dz,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
    return torch.autograd.grad((dz * t).sum(), leaf)[0]


def compiled(f: Callable[..., Tensor], z: Tensor, t: Tensor) -> Tensor:
    torch._dynamo.reset()
    leaf = z.detach().requires_grad_()
    output = torch.compile(lambda z: f(z).square(), fullgraph=True, backend="aot_eager")(leaf)
    return torch.autograd.grad(output.sum(), leaf)[0]


WAYS: dict[str, Callable[[Callable[..., Tensor], Tensor, Tensor], Any]] = {
    "value": lambda f, z, t: f(z),
    "grad": lambda f, z, t: grad(lambda z: f(z).sum())(z),
    "vjp": lambda f, z, t: vjp(f, z)[1](torch.ones_like(f(z)))[0],
    "jacrev": lambda f, z, t: jacrev(f)(z),
    "jvp": lambda f, z, t: jvp(f, (z,), (t,))[1],
    "jacfwd": lambda f, z, t: jacfwd(f)(z),
    "vmap(grad)": lambda f, z, t: vmap(grad(lambda z: f(z[None].expand(3, 4))[0].sum()))(z),
    "vmap(jvp)": lambda f, z, t: vmap(lambda t: jvp(f, (z,), (t,))[1])(torch.stack([t, z])),
    "hessian": lambda f, z, t: hessian(lambda z: f(z).sum())(z),
    "jvp(grad)": lambda f, z, t: jvp(grad(partial(total, f)), (z,), (t,))[1],
    "grad(jvp)": lambda f, z, t: grad(lambda z: jvp(f, (z,), (t,))[1].sum())(z),
    "jacfwd(jacfwd)": lambda f, z, t: jacfwd(jacfwd(lambda z: f(z).sum()))(z),
    "forward_ad": dual,
    "double backward": twice,
    "torch.compile": compiled,
}


@pytest.mark.parametrize("needs_gradient", [False, True], ids=["constant", "leaf"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_every_transform(rule: int, way: str, needs_gradient: bool) -> None:
    ours, theirs = RULES[rule]
    make = Make()
    z, t = make(3, 4).requires_grad_(needs_gradient), make(3, 4)
    torch.testing.assert_close(WAYS[way](ours, z, t), WAYS[way](theirs, z, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", range(len(RULES)))
def test_finite_differences_agree(rule: int) -> None:
    ours, _ = RULES[rule]
    z = Make()(3, 4).requires_grad_()
    assert gradcheck(ours, (z,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(ours, (z,), check_fwd_over_rev=True, check_batched_grad=True)


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(3, 4),))


def test_it_passes_the_contract_and_verify() -> None:
    matrix = contract_matrix([Operation(LogSumExp, lambda z: torch.logsumexp(z, -1), _samples)])
    # Where the softmax is NaN torch has exp(z − C), and of complex numbers there is no softmax.
    assert {o.check for o in matrix.failures} == {"infinities", "complex numbers"}
    assert verify(LogSumExp, Make()(3, 4).requires_grad_()).ok


def test_backward_gets_none_for_the_gradient_that_is_not_there() -> None:
    seen: list[tuple[bool, ...]] = []

    class Watched(LogSumExp):
        @staticmethod
        def backward(ctx: Any, *upstreams: Tensor | None) -> Any:
            seen.append(tuple(g is None for g in upstreams))
            return LogSumExp.backward(ctx, *upstreams)

    z = Make()(3, 4).requires_grad_()
    (dz,) = torch.autograd.grad(Watched.apply(z).sum(), z, create_graph=True)
    torch.autograd.grad(dz.square().sum(), z)
    assert seen == [(False, True), (True, False)]
    seen.clear()
    vjp(Watched.apply, z.detach())[1](torch.ones(3, dtype=torch.float64))
    assert seen == [(False, True)]
