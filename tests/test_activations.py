"""What activations do beside the contract, small and large: special numbers, bounds, in place, random slopes."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp import functional, nn
from torch_manualbp.kernels.dispatch import LARGE_ELEMENTS as LARGE
from torch_manualbp.rules import Elementwise
from torch_manualbp.verify.claims.special import minus_nan

SIZES = [64, 2 * LARGE]


def _assert_as_torch(name: str, z: Tensor, *options: float) -> None:
    """The gradients of our layer and of torch's."""
    g = torch.rand(z.shape).to(z.dtype) + 1
    leaf = z.clone().requires_grad_()
    ours, theirs = (
        torch.autograd.grad(getattr(library, name)(*options)(leaf), leaf, g)[0] for library in (nn, torch.nn)
    )
    eps = torch.finfo(z.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=8 * eps, atol=4 * eps, equal_nan=True)


@pytest.mark.parametrize("bound", [0.1, 1 / 3, 0, 6, -0.1, 1e-42])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_bounds_are_rounded_where_torch_rounds_them(dtype: torch.dtype, bound: float) -> None:
    """At every number of the dtype."""
    z = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    z = z[~z.isnan()]
    _assert_as_torch("Threshold", z, bound, 0.5)
    _assert_as_torch("Hardtanh", z, bound, 7.3)
    _assert_as_torch("Hardtanh", z, -7.3, bound)
    _assert_as_torch("Hardshrink", z, abs(bound))
    _assert_as_torch("Softshrink", z, abs(bound))


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 1.0])
def test_celu_of_any_alpha(alpha: float) -> None:
    _assert_as_torch("CELU", torch.linspace(-3, 3, 2 * LARGE), alpha)


def test_bounds_next_to_0_where_subnormals_are_flushed() -> None:
    z = torch.randn(2 * LARGE).relu()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        _assert_as_torch("Hardshrink", z, 0.0)
        _assert_as_torch("Softshrink", z, 0.0)
        _assert_as_torch("Hardtanh", -z, -1.0, 0.0)
        _assert_as_torch("ReLU6", z)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["Hardtanh", "ReLU", "ReLU6", "Hardswish", "ELU", "GELU", "LeakyReLU", "Hardshrink"])
def test_forward_over_reverse_by_dual_numbers(name: str, size: int) -> None:
    start, tangent = torch.randn(2, size, dtype=torch.float64)
    products = []
    for library in (nn, torch.nn):
        with forward_ad.dual_level():
            z = forward_ad.make_dual(start.clone().requires_grad_(), tangent)
            (dz,) = torch.autograd.grad(getattr(library, name)()(z).square().sum(), z)
            products.append(forward_ad.unpack_dual(dz).tangent)
    torch.testing.assert_close(products[0], products[1], rtol=1e-6, atol=1e-6)  # Hardswish has float32 constants


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "name",
    one_of_each(["Hardtanh", "Hardshrink", "Hardsigmoid", "PReLU", "LeakyReLU"], lambda name: ["compiled"]),
)
def test_compiled_choices_make_no_nan_of_a_gradient_that_is_0(name: str) -> None:
    layer = getattr(nn, name)()
    z = torch.tensor([math.nan, 0.5] * 8, requires_grad=True)
    torch.compile(lambda z: torch.where(z.isnan(), 0, layer(z)).sum(), fullgraph=True)(z).backward()
    assert z.grad is not None
    assert not z.grad.isnan().any()


class Half(Elementwise):
    """a = z² / 2, whose derivative is what the rule keeps."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z * z / 2

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return z


@pytest.mark.parametrize("shape", [(5, 4), (200, 1000)], ids=["small", "large"])
def test_a_derivative_may_be_what_is_kept(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, requires_grad=True)
    before, g = z.detach().clone(), torch.randn(shape)
    (dz,) = torch.autograd.grad(Half.apply(z), z, g)
    assert torch.equal(z.detach(), before)
    assert torch.equal(dz, before * g)


def test_rrelu_draws_as_torch_does() -> None:
    z = torch.randn(64, 32)
    torch.manual_seed(3)
    ours = functional.rrelu(z, 0.1, 0.4, training=True)
    torch.manual_seed(3)
    theirs = torch.nn.functional.rrelu(z, 0.1, 0.4, training=True)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "name",
    ["celu", "elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu6", "silu"],
)
def test_in_place(name: str) -> None:
    """The same numbers in the very input, whose old ones backward still has."""
    results = []
    for module, in_place in ((functional, True), (functional, False), (torch.nn.functional, True)):
        z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        x = z * 1
        a = getattr(module, name)(x, inplace=in_place)
        assert (a is x) == in_place
        results.append((a.detach(), *torch.autograd.grad((a * a).sum(), z)))
    if name == "hardsigmoid":  # whose gradient in torch has 1/6 in float32 even for float64
        torch.testing.assert_close(results.pop()[1], results[0][1], rtol=1e-7, atol=0)
    for value in results[1:]:
        torch.testing.assert_close(value, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "tanhshrink"])
def test_large_complex_tensors(name: str) -> None:
    """As large as those whose gradients take a short cut where all are finite."""
    results = []
    for module in (functional, torch.nn.functional):
        z = torch.randn(300, 1000, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)).requires_grad_()
        results.append(torch.autograd.grad(getattr(module, name)(z).abs().sum(), z)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [1, -1], ids=["+", "-"])
@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "Hardtanh", "ELU", "Threshold", "Hardshrink", "SELU"])
def test_the_gradient_passes_at_nan(name: str, sign: int, size: int) -> None:
    layer = getattr(nn, name)(0.1, 0.2) if name == "Threshold" else getattr(nn, name)()
    z = torch.full((size,), math.nan).abs() if sign > 0 else minus_nan(torch.float32).repeat(size)
    assert z.signbit().all() == (sign < 0)
    g = torch.full_like(z, 3.0)
    (dz,) = torch.autograd.grad(layer(z.requires_grad_()), z, g)
    torch.testing.assert_close(dz, g * (1.0507009873554805 if name == "SELU" else 1))


@pytest.mark.parametrize("w", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", SIZES)
def test_a_slope_that_is_no_number_is_lost_only_below_0(w: float, size: int) -> None:
    z = torch.linspace(-1, 1, size).requires_grad_()
    weight = torch.tensor([w])
    g = torch.full_like(z, 2.0)
    (ours,) = torch.autograd.grad(functional.prelu(z, weight), z, g)
    (theirs,) = torch.autograd.grad(torch.prelu(z, weight), z, g)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("upstream", [math.nan, math.inf])
def test_a_slope_that_learns_hears_nothing_from_where_it_has_no_part(upstream: float) -> None:
    z, da = torch.tensor([[0.5, -1.0], [2.0, -3.0]]).double(), torch.ones(2, 2).double()
    da[0, 0] = upstream
    gradients = []
    for prelu in (torch.nn.functional.prelu, functional.prelu):
        w = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(prelu(z, w), w, da)[0])
    assert gradients[0] == -4
    assert gradients[1] == -4
