"""What the contract's samples, all of one dtype, do not show of the structural rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_manualbp import rules
from torch_manualbp.catalogue import Make
from torch_manualbp.rules import Rule
from torch_manualbp.verify.contract import assert_same, leaves, upstream_for

double, single, complex_ = Make(), Make(torch.float32), Make(torch.complex128)

MIXED: dict[str, tuple[type[Rule], Callable[..., Tensor], tuple[Any, ...]]] = {
    "Add": (rules.Add, lambda x, y, alpha: torch.add(x, y, alpha=alpha), (double(5, 4), single(4), 0.5)),
    "Difference": (rules.Difference, lambda s, y, _: s - y, (single(5, 4), double(4), 0.0)),
    "Multiply": (rules.Multiply, torch.mul, (double(5, 4), single(4))),
    "Multiply, complex": (rules.Multiply, torch.mul, (double(5, 4), complex_(4))),
    "Multiply by a complex number": (rules.Multiply, torch.mul, (double(5, 4), 2 - 1j)),
    "Divide": (rules.Divide, torch.div, (single(5, 4), double.positive(5, 4))),
    "Divide, complex": (rules.Divide, torch.div, (double(5, 4), complex_(5, 4) + 3)),
    "Cat": (rules.Cat, lambda dim, *t: torch.cat(t, dim), (1, double(5, 2), single(5, 3))),
    "Cat with nothing": (rules.Cat, lambda dim, *t: torch.cat(t, dim), (1, double(5, 2), double(0), double(5, 3))),
    "Stack": (rules.Stack, lambda dim, *t: torch.stack(t, dim), (0, double(5, 4), single(5, 4))),
    "Cast": (rules.Cast, Tensor.to, (double(5, 4), torch.bfloat16)),
    "Cast to complex": (rules.Cast, Tensor.to, (double(5, 4), torch.complex64)),
}


@pytest.mark.parametrize("name", MIXED)
def test_each_argument_has_a_gradient_of_its_dtype(name: str) -> None:
    """Of ``backward`` itself, since the engine would cast in silence."""
    rule, twin, given = MIXED[name]
    args = [a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in given]
    output, expected = rule.apply(*args), twin(*args)
    assert_same(output, expected, "output", tolerance=0)
    upstream = upstream_for(expected)
    raw = [g for g in output.grad_fn.apply(upstream) if g is not None]
    for gradient, reference in zip(raw, torch.autograd.grad(expected, leaves(args), upstream), strict=True):
        assert_same(gradient, reference, "gradient", tolerance=1e-6 if reference.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_powers_of_zero_and_to_zero(dtype: torch.dtype) -> None:
    """Where a factor of the formula is infinite and the gradient is 0; there are no finite differences."""
    numbers = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, -2.0], dtype=dtype)
    exponents = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.0, 0.0], dtype=dtype)
    args = [t.requires_grad_() for t in (numbers, exponents)]
    output, expected = rules.PowerOf.apply(*args), torch.pow(*args)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    for gradient, reference in zip(
        *(torch.autograd.grad(z, args, torch.ones_like(z)) for z in (output, expected)), strict=True
    ):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=0, equal_nan=True)
