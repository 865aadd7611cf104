"""Activations of large tensors, whose formulas take fewer passes over memory or are compiled, equal those of small."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp import functional, nn, rules
from torch_manualbp.catalogue import CATALOGUE, Make, Operation
from torch_manualbp.rules import choice, evaluate
from torch_manualbp.rules.activation import Activation
from torch_manualbp.rules.evaluate import LARGE
from torch_manualbp.verify.accuracy import ulp

ROWS, COLUMNS = 200, 1000


@pytest.fixture(autouse=True)
def blocks_that_do_not_divide_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK", 1 << 16)


ELEMENTWISE = [entry for entry in CATALOGUE if issubclass(entry.rule, Activation)]


def numbers(dtype: torch.dtype, special: bool) -> tuple[Tensor, Tensor]:
    make = Make(dtype)
    z, g = 3 * make(ROWS, COLUMNS), make(ROWS, COLUMNS)
    if special:
        z[0, :5] = torch.tensor([math.inf, -math.inf, math.nan, 0, 3])
        g[1, :3] = torch.tensor([math.inf, -math.inf, math.nan])
        g[2, :100], z[2, 3] = math.inf, math.nan
    return z, g


def row_by_row(entry: Operation, z: Tensor, g: Tensor, options: tuple[float, ...]) -> Tensor:
    assert z.shape[1] < LARGE < z.numel()
    rows = zip(g.split(1), z.split(1), strict=True)
    return torch.cat([entry.rule.delta(g_row, z_row, *options) for g_row, z_row in rows])  # type: ignore[attr-defined]


def options_of(entry: Operation) -> Iterator[tuple[float, ...]]:
    for sample in entry.samples(Make()):
        if sample.name in ("matrix", "other options"):
            yield sample.args[1:]


def assert_equal_to_rounding(large: Tensor, small: Tensor) -> None:
    eps = torch.finfo(large.dtype).eps
    torch.testing.assert_close(large, small, rtol=8 * eps, atol=4 * eps, equal_nan=True)


@pytest.mark.parametrize("special", [False, True], ids=["numbers", "infinities and NaN"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entry", ELEMENTWISE, ids=lambda e: e.name)
def test_large_equals_small(entry: Operation, dtype: torch.dtype, special: bool) -> None:
    kept, g = numbers(dtype, special)
    for options in options_of(entry):
        if getattr(entry.rule, "keeps_output", False):
            kept = entry.rule.forward(kept, *options)
        with torch.no_grad():
            large = entry.rule.delta(g, kept, *options)  # type: ignore[attr-defined]
            assert_equal_to_rounding(large, row_by_row(entry, kept, g, options))


WRITTEN = [entry for entry in ELEMENTWISE if entry.rule.write_derivative is not None]  # type: ignore[attr-defined]


WITH_A_ZERO = (rules.SiLU, rules.GELU, rules.activation.GELUTanh)
"""Those whose f' has a zero, at which an ulp of z is any number of its own."""


def gradient_error(entry: Operation, rule: type[Activation] | None, z: Tensor, options: tuple[float, ...]) -> Tensor:
    """The error of f'(z) in ulps, of the rule or else of torch's function."""

    def gradient(function: Callable[..., Tensor], z: Tensor) -> Tensor:
        a = function(z := z.clone().requires_grad_(), *options)
        return torch.autograd.grad(a, z, torch.ones_like(a))[0].double()  # not of a sum, whose gradient is expanded

    reference = entry.rule.apply  # in float64, where torch's tanh formula of the GELU has no digits below z = −6
    exact = gradient(reference, z.double())
    error = (gradient(entry.twin if rule is None else rule.apply, z) - exact).abs()
    moved = gradient(reference, torch.nextafter(z, z.new_tensor(math.inf)).double())
    slack = (moved - exact).abs() if rule is not None and entry.rule in WITH_A_ZERO else 0
    return (error - slack) / ulp(exact, torch.float32)


def excess(entry: Operation, rule: type[Activation], z: Tensor, options: tuple[float, ...]) -> float:
    """By how much the worst error in an octave of z exceeds torch's worst there."""
    ours, theirs = gradient_error(entry, rule, z, options), gradient_error(entry, None, z, options)
    octave = 2 * torch.frexp(z.abs())[1] + z.signbit()
    return max((ours[octave == o].max() - theirs[octave == o].max()).item() for o in octave.unique())


def usual_numbers() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    wide = torch.empty(1 << 17).uniform_(-20, 20, generator=generator)
    return torch.cat([wide, wide / 5, wide / 1000])


@pytest.mark.parametrize("entry", WRITTEN, ids=lambda e: e.name)
def test_short_cuts_for_usual_numbers_lose_no_digits(entry: Operation) -> None:
    """The grid of test_accuracy has numbers beside them that forbid some of the short cuts."""
    for options in options_of(entry):
        assert excess(entry, entry.rule, usual_numbers(), options) <= 1  # type: ignore[arg-type]


class ExponentialInThreeDigits(rules.ELU):
    """As exp(z) = (1 + z / n)ⁿ."""

    @staticmethod
    def derivative(z: Tensor, alpha: float) -> Tensor:
        return (1 + z.clamp(max=0) / 1024).pow_(1024)

    write_derivative = None  # type: ignore[assignment]


def test_lost_digits_are_found() -> None:
    (entry,) = (e for e in ELEMENTWISE if e.rule is rules.ELU)
    assert excess(entry, ExponentialInThreeDigits, usual_numbers(), (1.0,)) > 100


def every_number(dtype: torch.dtype) -> Tensor:
    """All 2¹⁶ numbers of float16 or bfloat16, NaNs of both signs among them; in another dtype the same numbers."""
    of = torch.float16 if dtype == torch.float16 else torch.bfloat16
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(of).to(dtype)


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_that_passes_keeps_its_bits(dtype: torch.dtype) -> None:
    g = every_number(dtype)
    assert torch.equal(bits(choice.blocked_bits(g, torch.zeros_like(g))), bits(g))
    for number in (1, -1, 6, math.inf, -math.inf, math.nan, -0.0, torch.finfo(dtype).smallest_normal):
        blocked = torch.full_like(g, number)
        assert torch.equal(bits(choice.blocked_bits(g, blocked)), bits(torch.zeros_like(g)))


@pytest.mark.parametrize("bound", [0.1, 1 / 3, 0, 6, -0.1, math.inf, -math.inf, 1e-42])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_choices_compare_with_the_bound_and_not_with_a_rounded_one(dtype: torch.dtype, bound: float) -> None:
    z = every_number(dtype)
    for g in (torch.rand(z.shape).to(dtype) + 1, torch.full_like(z, math.inf), torch.full_like(z, math.nan)):
        wide = z if dtype == torch.float64 else z.float()
        with torch.no_grad():
            cases = [
                (choice.pass_above(g, z, bound), ~(wide <= bound)),
                (choice.pass_between(g, z, bound, 2.3), ~((wide <= bound) | (wide >= 2.3))),
                (choice.pass_between(g, z, -1e-44, bound), ~((wide <= -1e-44) | (wide >= bound))),
                (choice.pass_between(g, z, -abs(bound), abs(bound)), ~(wide.abs() >= abs(bound))),
                (choice.pass_between(g, z, bound, bound), z.isnan()),
                (choice.pass_beyond(g, z, bound), ~(z.abs() <= bound)),
                (choice.pass_positive(g, z.relu()), ~(z.relu() <= 0)),
            ]
        for passed, passes in cases:
            assert torch.equal(bits(passed), torch.where(passes, bits(g), 0))


def test_a_large_upstream_gradient_that_is_expanded_or_transposed() -> None:
    z = torch.randn(300, 400, dtype=torch.float64, requires_grad=True)
    for function in (functional.relu, functional.silu, functional.tanh, functional.hardtanh):
        for g in (torch.ones((), dtype=torch.float64).expand(300, 400), torch.randn(400, 300, dtype=torch.float64).t()):
            (strided,) = torch.autograd.grad(function(z), z, g)
            (plain,) = torch.autograd.grad(function(z), z, g.contiguous())
            torch.testing.assert_close(strided, plain, rtol=1e-14, atol=1e-14)


COMPILED = [rules.ReLU, rules.SiLU, rules.GELU, rules.Hardswish]


@pytest.fixture
def compiled_formulas() -> Iterator[None]:
    kernels.compile_formulas()
    yield
    kernels.compile_formulas(False)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("special", [False, True], ids=["numbers", "infinities and NaN"])
@pytest.mark.parametrize("rule", one_of_each(COMPILED, lambda rule: ["compiled"]), ids=lambda r: r.__name__)
def test_compiled_formulas_equal_the_plain(rule: type[Activation], special: bool, compiled_formulas: None) -> None:
    (entry,) = (e for e in ELEMENTWISE if e.rule is rule)
    kept, g = numbers(torch.float32, special)
    kept = rule.forward(kept) if rule.keeps_output else kept
    with torch.no_grad():
        assert_equal_to_rounding(rule.delta(g, kept), row_by_row(entry, kept, g, ()))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_compiled_formulas_take_any_options_dtypes_and_sizes(compiled_formulas: None) -> None:
    for i in range(1, 12):
        _assert_as_torch("LeakyReLU", torch.randn(LARGE), 0.01 * i)
    for dtype in DTYPES:
        for size in (LARGE, LARGE + 1):
            _assert_as_torch("ReLU6", torch.randn(size).to(dtype))
            _assert_as_torch("Hardtanh", torch.randn(size).to(dtype), -1, 1)
    for dtype in (torch.float16, torch.bfloat16):
        _assert_as_torch("Hardshrink", torch.full((LARGE,), 0.2).to(dtype), 0.2)  # the bound as the dtype rounds it


def _assert_as_torch(name: str, z: Tensor, *options: float) -> None:
    """The gradients of our layer and of torch's, through the layers."""
    g = torch.rand(z.shape).to(z.dtype) + 1
    leaf = z.clone().requires_grad_()
    ours, theirs = (
        torch.autograd.grad(getattr(library, name)(*options)(leaf), leaf, g)[0] for library in (nn, torch.nn)
    )
    assert_equal_to_rounding(ours, theirs)


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


SMALL_AND_LARGE = [64, 2 * LARGE]


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
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


class Half(Activation):
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
