"""Every registered kernel, formulas in blocks and compiled formulas compute what the rules' formulas say."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor
from torch.utils import _pytree as pytree

from torch_manualbp import kernels, rules
from torch_manualbp.catalogue import CATALOGUE, Make, Operation
from torch_manualbp.cli import main
from torch_manualbp.kernels import blocks, dispatch
from torch_manualbp.kernels.compiled import compiled
from torch_manualbp.rules import Elementwise
from torch_manualbp.rules.recording import recorded_by
from torch_manualbp.rules.rule import evaluate_by
from torch_manualbp.verify import contract
from torch_manualbp.verify.claims.special import minus_nan, special_values
from torch_manualbp.verify.measure import ulp

Formula = Callable[..., Any]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

MODULES = [module for module in vars(kernels).values() if isinstance(module, ModuleType)] + [blocks]
THRESHOLDS = [(m, name) for m in MODULES for name, value in vars(m).items() if name.isupper() and type(value) is int]
"""Sizes from which on a kernel computes in another way."""


@dataclass
class Call:
    """A formula with arguments that a rule gave it."""

    entry: Operation
    formula: Formula
    structure: Any
    args: tuple[Any, ...]
    dtype: torch.dtype
    """What the rule was given; within it, formulas compute in wider numbers."""

    @property
    def is_entrywise(self) -> bool:
        """Whether it is δ of tensors of one shape."""
        return issubclass(self.entry.rule, Elementwise) and self.structure == "entries"


@contextlib.contextmanager
def evaluated_by(dispatcher: Any) -> Iterator[None]:
    evaluate_by(dispatcher)
    try:
        yield
    finally:
        evaluate_by(dispatch.dispatch)


def calls_of(entry: Operation, args: tuple[Any, ...], positions: tuple[int, ...], upstream: Any = None) -> list[Call]:
    """The formulas that forward, with a gradient to come and without, and backward of a rule evaluate."""
    calls: list[Call] = []
    dtype = next(arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point())

    def record(formula: Formula, structure: Any, args: tuple[Any, ...]) -> Any:
        given = tuple(arg.detach().clone() if isinstance(arg, Tensor) else arg for arg in args)
        calls.append(Call(entry, formula, structure, given, dtype))
        return formula(*args)

    leaves = [
        a.detach().clone().requires_grad_(i in positions) if isinstance(a, Tensor) else a for i, a in enumerate(args)
    ]
    with evaluated_by(record):
        with torch.no_grad():
            entry.rule.apply(*leaves)
        outputs = pytree.tree_leaves(entry.rule.apply(*leaves))
        g = [torch.randn_like(a) if upstream is None else upstream for a in outputs]
        learning = [leaves[i] for i in positions]
        if learning and outputs[0].requires_grad:
            torch.autograd.grad(outputs, learning, g, allow_unused=True)
    return calls


def on_samples(entry: Operation, dtype: torch.dtype) -> Iterator[Call]:
    for sample in entry.samples(Make(dtype)):
        if not any(isinstance(arg, Tensor) and not arg.numel() for arg in sample.args):
            try:
                yield from calls_of(entry, sample.args, entry.differentiable(sample))
            except NotImplementedError:  # torch has no kernel of this dtype
                return


def numbers(dtype: torch.dtype, upstream_is_finite: bool) -> tuple[Tensor, Tensor]:
    """z and ∂C/∂a: the special ones crossed, numbers of all sizes, and the neighbours of the kinks."""
    special = torch.cat([special_values(dtype), minus_nan(dtype)])
    kinks = torch.tensor([0.1, 0.5, 1, 2.5, 3, 6], dtype=dtype)
    near = torch.cat([kinks, *[torch.nextafter(kinks, kinks.new_tensor(to)) for to in (math.inf, -math.inf)]])
    usual = torch.cat([torch.randn(1000) * scale for scale in (1e-3, 1, 30)]).to(dtype)
    values = torch.cat([special, near, -near])
    factors = torch.cat([special, torch.tensor([1.5, -0.25]).to(dtype)])
    factors = factors[factors.isfinite()] if upstream_is_finite else factors
    z, g = (t.flatten() for t in torch.meshgrid(values, factors, indexing="ij"))
    return torch.cat([usual, z]), torch.cat([torch.randn(usual.shape).to(dtype), g])


def on_numbers(entry: Operation, dtype: torch.dtype) -> Iterator[Call]:
    """δ of an entrywise rule with all of its options."""
    options = {sample.args[1:] for sample in entry.samples(Make())}
    if entry.rule is rules.LeakyReLU:
        options |= {(2.0,), (0.0,), (0.3,), (-3.3,)}
    for given in sorted(options):
        for upstream_is_finite in (True, False):
            z, g = numbers(dtype, upstream_is_finite)
            yield from (call for call in calls_of(entry, (z, *given), (0,), g) if call.is_entrywise)


def all_calls(entry: Operation, dtype: torch.dtype) -> list[Call]:
    calls = list(on_samples(entry, dtype))
    return calls + list(on_numbers(entry, dtype)) if issubclass(entry.rule, Elementwise) else calls


def as_wide(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


def hold(call: Call, evaluate: Formula, ulps: int = 4) -> bool:
    """Hold ``evaluate`` to the formula. Returns whether it took these arguments.

    Its error may be so many ulps more than twice the formula's own, the largest in the octave where entries are apart:
    the formula, too, has another error in vectors than in the numbers left over.
    """
    with torch.no_grad(), evaluated_by(None):
        plain = call.formula(*call.args)
        exact = call.formula(*map(as_wide, call.args))
    given = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in call.args)
    with torch.no_grad():
        found = evaluate(*given)
    if found is NotImplemented:
        return False
    for before, after in zip(call.args, given, strict=True):
        if isinstance(before, Tensor):
            torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True, msg="an argument is changed")
    results = [[t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)] for result in (found, plain, exact)]
    for ours, formula, reference in zip(*results, strict=True):
        assert ours.dtype == formula.dtype
        assert ours.shape == formula.shape
        _hold_numbers(call, ours, formula, reference, ulps)
    return True


def _hold_numbers(call: Call, ours: Tensor, plain: Tensor, exact: Tensor, ulps: int) -> None:
    if not plain.is_floating_point():
        assert torch.equal(ours, plain)
        return
    dtype = plain.dtype
    overflows = exact.abs() > torch.finfo(dtype).max * (1 - 4 * torch.finfo(dtype).eps)
    assert torch.equal(ours.isnan() & ~overflows, plain.isnan() & ~overflows), _at("NaN", call, ours, plain)
    assert torch.equal(ours.isinf() & ~overflows, plain.isinf() & ~overflows), _at("∞", call, ours, plain)
    number = ours.isfinite() & plain.isfinite() & exact.isfinite()
    unit = ulp(exact, call.dtype) if call.is_entrywise else ulp(exact, call.dtype).amax().expand_as(exact)
    slack, octave = torch.zeros_like(exact), torch.zeros_like(exact, dtype=torch.int32)
    if call.is_entrywise:
        upstream, kept, *_ = call.args
        octave = 2 * torch.frexp(kept.nan_to_num())[1] + kept.signbit()
        if call.entry.rule.is_piecewise_linear:  # type: ignore[attr-defined]
            assert torch.equal(ours[plain == upstream], upstream[plain == upstream]), "what passes is changed"
        if call.entry.cancels or call.entry.rule is rules.Hardswish:  # next to a zero of f' its terms' last digits show
            wide = torch.promote_types(dtype, torch.float32)
            slack = 4 * torch.finfo(wide).eps * upstream.double().abs().nan_to_num()
    errors = [(((t.double() - exact).abs() - slack).clamp(min=0) / unit).where(number, 0) for t in (ours, plain)]
    for o in octave.unique():
        mine, formulas = (error.where(octave == o, 0).max() for error in errors)
        assert mine <= 2 * formulas + ulps, f"{call.formula.__qualname__}: {mine:.1f} ulp, the formula {formulas:.1f}"


def _at(what: str, call: Call, ours: Tensor, plain: Tensor) -> str:
    return f"{call.formula.__qualname__}: {what} is {ours[ours.isfinite() != plain.isfinite()]}"


KERNELS = [(table, formula) for table in ("LARGE", "STEPS") for formula in getattr(dispatch, table)]
SIZES = {"as they are": None, "3": 3, "7": 7}
"""What thresholds are set to: samples have dimensions of 1 to 8, and up to 200 numbers."""


def set_thresholds(patch: pytest.MonkeyPatch, to: int | None) -> None:
    for module, name in THRESHOLDS if to is not None else ():
        patch.setattr(module, name, to)


def hold_registered(table: str, formula: Formula, dtype: torch.dtype) -> int:
    """How many calls the kernel took."""
    taken = 0
    for entry in CATALOGUE:
        for call in CALLS(entry, dtype):
            if call.formula is formula:
                kernel = getattr(dispatch, table)[formula]
                for how in ("lean", "rows") if table == "STEPS" else (None,):
                    with recorded_by(None if how is None else SimpleNamespace(how=how)):
                        taken += hold(call, kernel)
    return taken


_calls: dict[tuple[Operation, torch.dtype], list[Call]] = {}


def CALLS(entry: Operation, dtype: torch.dtype) -> list[Call]:
    if (entry, dtype) not in _calls:
        _calls[entry, dtype] = all_calls(entry, dtype)
    return _calls[entry, dtype]


@pytest.mark.parametrize(
    ("size", "table", "formula"),
    one_of_each(
        ((size, *kernel) for size in SIZES for kernel in KERNELS),
        lambda size, table, formula: [size, (table, formula)],
    ),
    ids=lambda value: getattr(value, "__qualname__", value),
)
def test_kernels(size: str, table: str, formula: Formula, monkeypatch: pytest.MonkeyPatch) -> None:
    set_thresholds(monkeypatch, SIZES[size])
    assert sum(hold_registered(table, formula, dtype) for dtype in DTYPES)


@pytest.mark.parametrize(
    ("entry", "block"),
    one_of_each(itertools.product(CATALOGUE, [7, 1, 20]), lambda entry, block: [entry.name, block]),
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_blocks(entry: Operation, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    for dtype in DTYPES:
        for call in on_samples(entry, dtype):
            assert hold(call, lambda *args, call=call: dispatch.BLOCKS[call.structure](call.formula, args))


def by_torch_compile(call: Call) -> bool:
    torch._dynamo.reset()
    # Its exp, tanh and log are others than those of torch's operations: 23 ulp in a Mish of float64.
    return hold(call, lambda *args: compiled(call.formula, args), ulps=32)


ENTRYWISE = [entry for entry in CATALOGUE if issubclass(entry.rule, Elementwise)]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@needs_compiler
@pytest.mark.parametrize("rule", [rules.Hardtanh, rules.SiLU], ids=lambda rule: rule.__name__)
def test_compiled(rule: type[Elementwise]) -> None:
    (entry,) = (entry for entry in ENTRYWISE if entry.rule is rule)
    assert by_torch_compile(next(on_numbers(entry, torch.float32)))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_all_compiled(entry: Operation, dtype: torch.dtype) -> None:
    for call in CALLS(entry, dtype):
        if call.structure == "entries":
            by_torch_compile(call)


@needs_compiler
@pytest.mark.slow
def test_one_compiled_formula_takes_any_options_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LARGE_ELEMENTS", 1)
    monkeypatch.setattr("torch_manualbp.kernels.compiled._compiles_formulas", True)
    for entry in ENTRYWISE:
        if entry.rule in (rules.LeakyReLU, rules.Hardtanh):
            for size in (1, 15, 16, 17, 100):
                for option in (0.1, 0.2, 0.3):
                    options = (option,) if entry.rule is rules.LeakyReLU else (-option, option)
                    for call in calls_of(entry, (torch.randn(size), *options), (0,)):
                        assert hold(call, lambda *args, call=call: dispatch.dispatch(call.formula, "entries", args))


def relu_of_finite(da: Tensor, a: Tensor) -> Tensor:
    return da * (a > 0)


def relu_blocked_at_nan(da: Tensor, a: Tensor) -> Tensor:
    return torch.where(a > 0, da, 0)


def relu_that_passes_at_0(da: Tensor, a: Tensor) -> Tensor:
    return torch.where(a < 0, 0, da)


def relu_that_forgets_the_last(da: Tensor, a: Tensor) -> Tensor:
    delta = torch.zeros_like(da)
    delta[:-1] = torch.where(a <= 0, 0, da)[:-1]
    return delta


def relu_in_place(da: Tensor, a: Tensor) -> Tensor:
    return da.masked_fill_(a <= 0, 0)


def tanh_that_rounds_the_square(da: Tensor, a: Tensor) -> Tensor:
    return da * (1 - a * a)


def silu_in_low_precision(da: Tensor, z: Tensor) -> Tensor:
    sigma = torch.sigmoid(z)
    return da * (sigma * (1 + z * (1 - sigma)))


def elu_in_three_digits(da: Tensor, z: Tensor, alpha: float) -> Tensor:
    """exp(z) = (1 + z / n)ⁿ."""
    return da * torch.where(z <= 0, alpha * (1 + z.clamp(max=0) / 1024) ** 1024, 1)


def gelu_by_tanh(da: Tensor, z: Tensor) -> Tensor:
    return rules.activation.GELUTanh.delta(da, z)


def softplus_without_its_threshold(da: Tensor, z: Tensor, beta: float, threshold: float) -> Tensor:
    return da * torch.sigmoid(beta * z)


def leaky_relu_by_a_sum(da: Tensor, z: Tensor, slope: float) -> Tensor:
    return da * torch.gt(z, 0).to(z.dtype).mul_(1 - slope).add_(slope)


PLANTED = {
    relu_of_finite: rules.ReLU,
    relu_blocked_at_nan: rules.ReLU,
    relu_that_passes_at_0: rules.ReLU,
    relu_that_forgets_the_last: rules.ReLU,
    relu_in_place: rules.ReLU,
    tanh_that_rounds_the_square: rules.Tanh,
    silu_in_low_precision: rules.SiLU,
    elu_in_three_digits: rules.ELU,
    gelu_by_tanh: rules.GELU,
    softplus_without_its_threshold: rules.Softplus,
    leaky_relu_by_a_sum: rules.LeakyReLU,
}


@pytest.mark.parametrize("kernel", PLANTED, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_is_found(kernel: Formula, monkeypatch: pytest.MonkeyPatch) -> None:
    formula: Any = PLANTED[kernel].delta
    monkeypatch.setitem(dispatch.LARGE, formula.__wrapped__, kernel)
    with pytest.raises(AssertionError):
        sum(hold_registered("LARGE", formula.__wrapped__, dtype) for dtype in DTYPES)


def test_a_kernel_is_tested_by_being_registered() -> None:
    assert {formula for table, formula in KERNELS if table == "LARGE"} == set(dispatch.LARGE)
    assert {formula for table, formula in KERNELS if table == "STEPS"} == set(dispatch.STEPS)


QUICK = [check for check in contract.CHECKS if not check.slow]
CASES = list(contract.cases())
MATRICES = [case for case in CASES if case.sample == "matrix" and case.entry in ENTRYWISE]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of 20 numbers are large, and three blocks."""
    set_thresholds(monkeypatch, 7)
    monkeypatch.setattr(dispatch, "LARGE_ELEMENTS", 1)


@pytest.mark.parametrize("case", MATRICES, ids=str)
def test_the_contract_with_kernels(case: contract.Case, forced: None) -> None:
    _hold_to_contract(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in MATRICES], ids=str)
def test_the_contract_with_all_kernels(case: contract.Case, forced: None) -> None:
    _hold_to_contract(case)


def _hold_to_contract(case: contract.Case) -> None:
    rows = [contract.run(check, case) for check in QUICK]
    broken = [str(row) for row in rows if not row.ok]
    assert not broken, broken


def test_an_upstream_gradient_with_gaps_or_a_negative_bit() -> None:
    z = torch.randn(300, 400, dtype=torch.float64, requires_grad=True)
    a = torch.randn(300, 400, dtype=torch.complex128)
    upstream = [torch.ones((), dtype=torch.float64).expand(300, 400), torch.randn(400, 300, dtype=torch.float64).t()]
    for entry in ENTRYWISE:
        (options, *_) = (sample.args[1:] for sample in entry.samples(Make()))
        for g in (*upstream, a.conj().imag):
            given, plain = (torch.autograd.grad(entry.rule.apply(z, *options), z, t)[0] for t in (g, g.clone()))
            torch.testing.assert_close(given, plain, rtol=1e-14, atol=1e-14, equal_nan=True)  # a log's below 0


def test_bench_kernels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All ways to evaluate a formula are timed, where there are kernels."""
    found = tmp_path / "rows.json"
    arguments = ["bench", "kernels", "--rule", "ReLU", "--rounds", "1", "--no-compile", "--return-memory"]
    assert main([*arguments, "--json", str(found)]) == 0
    large, small = json.loads(found.read_text())["rows"]
    assert (large["formula"], large["size"], small["size"]) == ("ReLU", "512×4096", "32×64")
    assert all(large[way] > 0 for way in ("torch", "plain", "blocks", "kernel", "step", "gain"))
    assert (small["blocks"], small["kernel"], large["compiled"]) == (None, None, None)
    assert main(["bench", "kernels", "--rule", "RelU"]) == 2
    assert "near it: ReLU" in capsys.readouterr().err
