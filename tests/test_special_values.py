"""NaN of either sign, ±∞, ±0 and subnormals under every activation, of every size and however it is evaluated: torch's
gradient of the same number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp import functional, nn
from torch_manualbp.catalogue import CATALOGUE, Make, Operation
from torch_manualbp.rules import Activation, compile_formulas, evaluate
from torch_manualbp.rules.evaluate import LARGE
from torch_manualbp.verify.claims.special import minus_nan, number_by_number, special_values

ELEMENTWISE = [entry for entry in CATALOGUE if issubclass(entry.rule, Activation)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def options_of(entry: Operation) -> Iterator[tuple[float, ...]]:
    seen = set()
    for sample in entry.samples(Make()):
        options = sample.args[1:]
        if options not in seen and sample.args[0].numel():
            seen.add(options)
            yield options
    if entry.name == "LeakyReLU":
        yield (2.0,)


@contextmanager
def written_down(how: str | None) -> Iterator[None]:
    before = evaluate.write_down(how)
    try:
        yield
    finally:
        evaluate.write_down(before)


def delta(entry: Operation, z: Tensor, g: Tensor, options: tuple[float, ...], how: str | None) -> Tensor:
    """δ as a backward evaluates it (None), or a derived step."""
    with torch.no_grad(), written_down(how):
        a = entry.rule.forward(z, *options)
        kept = a if entry.rule.keeps_output else z  # type: ignore[attr-defined]
        return entry.rule.delta(g, kept, *options)  # type: ignore[attr-defined]


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each special z with some upstream gradients that are numbers, and infinite ones."""
    values = torch.cat([special_values(dtype), minus_nan(dtype), torch.tensor([0.3, -0.3, 2.0, -2.0]).to(dtype)])
    upstream = torch.tensor([1.5, -0.25, math.inf, -math.inf]).to(dtype)
    z, g = torch.meshgrid(values, upstream, indexing="ij")
    return z.flatten(), g.flatten()


def torchs(entry: Operation, options: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """torch's function; of Hardsigmoid, whose twin is none because of its 1/6 in float32, at NaN."""
    if entry.name == "Hardsigmoid":
        return lambda z: torch.where(z.isnan(), F.hardsigmoid(z), entry.twin(z))
    return lambda z: entry.twin(z, *options)


def assert_as_torch(ours: Tensor, theirs: Tensor, z: Tensor, g: Tensor) -> None:
    eps = torch.finfo(ours.dtype).eps
    right = torch.isclose(ours, theirs, rtol=16 * eps, atol=4 * eps, equal_nan=True)
    right |= theirs.isnan() & ~z.isnan()  # ∞ − ∞ and 0 · ∞ in torch's formula, where ours may have the limit
    wrong = (~right).nonzero().flatten()[:1]
    assert not wrong.numel(), f"z = {z[wrong]}, g = {g[wrong]}: {ours[wrong]}, torch {theirs[wrong]}"


@pytest.mark.parametrize("how", [None, "lean", "rows", "pure"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entry", ELEMENTWISE, ids=lambda e: e.name)
def test_every_size(entry: Operation, dtype: torch.dtype, how: str | None) -> None:
    few_z, few_g = pairs(dtype)
    for options in options_of(entry):
        alone = number_by_number(torchs(entry, options), few_z, few_g)
        for size in (1, 17, few_z.numel(), LARGE - 1, LARGE, LARGE + 1, 2 * LARGE + 3):
            times = -(-size // few_z.numel())
            z, g, theirs = (t.repeat(times)[-size:] for t in (few_z, few_g, alone))
            assert_as_torch(delta(entry, z, g, options, how), theirs, z, g)
        strided = delta(entry, few_z.repeat_interleave(2)[::2], few_g.repeat_interleave(3)[::3], options, how)
        assert_as_torch(strided, alone, few_z, few_g)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "Hardtanh", "ELU", "SELU", "CELU", "Hardswish", "Hardsigmoid"])
def test_compiled_formulas(name: str) -> None:
    (entry,) = (e for e in ELEMENTWISE if e.name == name)
    few_z, few_g = pairs(torch.float32)
    options = next(options_of(entry))
    alone = number_by_number(torchs(entry, options), few_z, few_g)
    times = 2 * LARGE // few_z.numel() + 1
    z, g, theirs = (t.repeat(times) for t in (few_z, few_g, alone))
    compile_formulas()
    try:
        assert_as_torch(delta(entry, z, g, options, None), theirs, z, g)
    finally:
        compile_formulas(False)


@pytest.mark.parametrize("size", [4, 4 * LARGE])
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
@pytest.mark.parametrize("size", [16, 4 * LARGE])
def test_a_slope_that_is_no_number_is_lost_only_below_0(w: float, size: int) -> None:
    z = torch.linspace(-1, 1, size).requires_grad_()
    weight = torch.tensor([w])
    g = torch.full_like(z, 2.0)
    (ours,) = torch.autograd.grad(functional.prelu(z, weight), z, g)
    (theirs,) = torch.autograd.grad(torch.prelu(z, weight), z, g)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
