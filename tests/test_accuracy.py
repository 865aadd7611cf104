"""No rule is less accurate than torch by more than one ulp, anywhere in the range of a dtype."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor

from torch_manualbp import cli, rules
from torch_manualbp.catalogue import CATALOGUE, Make, Operation, Sample
from torch_manualbp.kernels import softmax
from torch_manualbp.rules import Rule
from torch_manualbp.verify import accuracy
from torch_manualbp.verify.accuracy import DTYPES, Accuracy, measure
from torch_manualbp.verify.measure import ulp

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def family(entry: Operation, dtype: torch.dtype) -> list[Hashable]:
    """``activation`` or another folder or file of rules, and the dtype; the contract's checks of accuracy, on one
    sample, take a rule of each file in each."""
    return [entry.rule.__module__.split(".")[2], dtype]


@pytest.mark.parametrize(
    ("entry", "dtype"),
    one_of_each(itertools.product(CATALOGUE, DTYPES), family),
    ids=lambda value: str(getattr(value, "name", value)).removeprefix("torch."),
)
def test_no_rule_is_worse_than_torch(entry: Operation, dtype: torch.dtype) -> None:
    try:
        found = measure(entry, dtype)
    except NotImplementedError as error:
        pytest.skip(f"torch has no kernel to compare with: {error}")
    assert found[0].result == "output"
    of_one_number = accuracy.SEEDS * len(accuracy.SCALES)  # alone, in one sample
    assert all(a.points > 100 or a.points == of_one_number for a in found)
    assert [a for a in found if not a.ok] == []


def of(rule: type[Rule]) -> Operation:
    (entry,) = (e for e in CATALOGUE if e.rule is rule)
    return entry


def long_rows(make: Make) -> Iterator[Sample]:
    yield Sample("long", (make(6, 1000), 1))
    yield Sample("long columns", (make(300, 7), 0))


def many_classes(make: Make) -> Iterator[Sample]:
    yield Sample("many classes", (make(6, 1000), make.indices(1000, 6), None, -100, "mean", 0.0))
    yield Sample("smoothed", (make(6, 300), make.indices(300, 6), None, -100, "sum", 0.1))


def probabilities_of_many_classes(make: Make) -> Iterator[Sample]:
    yield Sample("many classes", (make(6, 1000), make.probabilities(6, 1000, dim=1), None, -100, "mean", 0.0))


LONG = [
    (rules.Softmax, long_rows),
    (rules.Softmin, long_rows),
    (rules.LogSoftmax, long_rows),
    (rules.CrossEntropy, many_classes),
    (rules.CrossEntropyProbabilities, probabilities_of_many_classes),
]


@every_dtype
@pytest.mark.parametrize(("rule", "samples"), LONG, ids=lambda of: of.__name__)
def test_no_rule_is_worse_of_long_rows_that_have_other_formulas(
    rule: type[Rule], samples: Callable[[Make], Iterator[Sample]], dtype: torch.dtype
) -> None:
    assert all(max(t.shape) >= softmax.LONG for sample in samples(Make()) for t in sample.args[:1])
    assert [a for a in measure(replace(of(rule), samples=samples), dtype) if not a.ok] == []


def test_units_in_the_last_place() -> None:
    at = torch.tensor([1.0, 1.5, -2.0, 0.99, 0.0, 1e-40, 2.0**127, math.inf], dtype=torch.float64)
    spacing = [2.0**-23, 2.0**-23, 2.0**-22, 2.0**-24, 2.0**-149, 2.0**-149, 2.0**104, 2.0**104]
    assert ulp(at, torch.float32).tolist() == spacing
    numbers = at[:6].float()
    beyond = torch.nextafter(numbers.abs(), torch.tensor(math.inf)).double()
    assert torch.equal(beyond - numbers.double().abs(), ulp(numbers.double(), torch.float32))


class RoundedAtEveryStep(rules.Tanh):
    """1 − a² in the eight digits of bfloat16."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - a) * (1 + a)


class Cancels(rules.Tanh):
    """1 − a², where (1 − a)(1 + a) keeps the digits."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - a * a)


class LosesTheSmall(rules.SoftMargin):
    """Takes exp(−y s) for 0 as soon as it is a subnormal number."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ds, *rest = rules.SoftMargin.backward(ctx, g)
        return (ds.where(ds.abs() >= torch.finfo(ds.dtype).tiny, 0), *rest)


class OverflowsOnTheWay(rules.MeanSquaredError):
    """Divides a sum of squares that overflows."""

    @staticmethod
    def forward(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        return ((s * 2 - y * 2) * (s * 2 - y * 2)).mul(0.25) if reduction == "none" else torch.zeros(())


class LosesNaN(rules.ReLU):
    """Blocks the gradient at NaN, which torch lets pass."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return torch.where(a > 0, da, 0)


class SignOfInfinity(rules.BinaryCrossEntropy):
    """∂C/∂y of the other sign where it is infinite, and right elsewhere."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ds, dy, *rest = rules.BinaryCrossEntropy.backward(ctx, g)
        return (ds, dy if dy is None else torch.where(dy.isinf(), -dy, dy), *rest)


@pytest.mark.parametrize(
    ("mistake", "dtype", "result"),
    [
        (RoundedAtEveryStep, torch.bfloat16, "gradient of argument 0"),
        (RoundedAtEveryStep, torch.float16, "gradient of argument 0"),
        (Cancels, torch.float32, "gradient of argument 0"),
        (LosesTheSmall, torch.float32, "gradient of argument 0"),
        (OverflowsOnTheWay, torch.float32, "output"),
        (LosesNaN, torch.float16, "gradient of argument 0"),
        (SignOfInfinity, torch.float32, "gradient of argument 1"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value).removeprefix("torch."),
)
def test_catches(mistake: type[Rule], dtype: torch.dtype, result: str) -> None:
    sound = mistake.__mro__[1]
    assert issubclass(sound, Rule)
    (found,) = (a for a in measure(replace(of(sound), rule=mistake), dtype) if a.result == result)
    assert not found.ok


def test_a_better_rule_is_better() -> None:
    gradient = measure(of(rules.VectorNorm), torch.float16)[1]
    assert gradient.ok
    assert gradient.gain > 1000
    gradient = measure(of(rules.BinaryCrossEntropy), torch.float16)[1]
    assert gradient.ok
    assert gradient.lost < gradient.torch_lost  # which divides by 10⁻¹², and that is 0 in float16


def test_one_result_lost_more_than_torch_loses_is_worse() -> None:
    fine = Accuracy("Rule", "float32", "output", 9, 1, 1, 1, 1, excess=0.5, gain=0, where="", lost=2, torch_lost=2)
    assert fine.ok
    assert not replace(fine, lost=3).ok
    assert not replace(fine, excess=1.01).ok


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, table = tmp_path / "accuracy.json", tmp_path / "accuracy.md"
    arguments = ["--rule", "ReLU", "Tanh", "--dtype", "float16", "--json", str(figures), "--markdown", str(table)]
    assert cli.main(["accuracy", *arguments]) == 0
    assert "0 of 4 results worse than torch's by more than one ulp" in capsys.readouterr().out
    written = json.loads(figures.read_text())
    assert written.keys() == {"torch", "rows", "not measured"}
    assert [(r["rule"], r["result"], r["ok"]) for r in written["rows"]] == [
        ("ReLU", "output", True),
        ("ReLU", "gradient of argument 0", True),
        ("Tanh", "output", True),
        ("Tanh", "gradient of argument 0", True),
    ]
    assert all(r.keys() == set(Accuracy.__dataclass_fields__) | {"ok"} for r in written["rows"])
    assert table.read_text().count("| float16 |") == 4


def test_command_fails_for_a_rule_that_is_worse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "CATALOGUE", [replace(of(rules.Tanh), rule=Cancels)])
    assert cli.main(["accuracy", "--dtype", "float32"]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 results worse than torch's by more than one ulp" in printed
    assert "Cancels, float32, gradient of argument 0: (" in printed


def test_command_names_the_rule_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["accuracy", "--rule", "Sigmod"]) == 2
    assert "argument --rule: no rule 'Sigmod'; near it: Sigmoid" in capsys.readouterr().err
