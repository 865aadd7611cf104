"""No test over PyTorch's databases is one that cannot fail: each must catch a mistake that is planted in our layer."""

from __future__ import annotations

import ast
import copy
import inspect
import re
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
import test_upstream_differential
import test_upstream_modules
import test_upstream_ops
import upstream
from planted_upstream import DIFFERENTIAL, MISTAKES, LaysItsInputOut

from torch_manualbp import nn

MODULES = (test_upstream_modules, test_upstream_ops)
ENTRIES = (*upstream.MODULES, *upstream.OWN_MODULES, *upstream.OPS)


@pytest.fixture(autouse=True)
def uncounted() -> Iterator[None]:
    """What runs here is no run of the databases over our layers."""
    before = dict(upstream.RAN)
    yield
    upstream.RAN.clear()
    upstream.RAN.update(before)


def written_tests() -> set[str]:
    """Class and name of every test as it is written, of which upstream makes one for each entry and dtype."""
    return {
        f"{cls.name}CPU.{test.name}"
        for module in MODULES
        for cls in ast.parse(inspect.getsource(module)).body
        if isinstance(cls, ast.ClassDef) and cls.name.startswith("Test")
        for test in cls.body
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test")
    }


def test_every_upstream_test_has_a_mistake_to_catch() -> None:
    assert {test for test, _, _, _ in MISTAKES} == written_tests()


def entry_of(name: str) -> Any:
    (entry,) = (e for e in ENTRIES if name.startswith(f"{getattr(e, 'formatted_name', e.name.replace('.', '_'))}_cpu"))
    return entry


def complaints(test: str, name: str) -> str:
    """What the test says of the entry that ``name`` ends with; nothing if it passes."""
    cls_name, method = test.split(".")
    cls = next(vars(module)[cls_name] for module in MODULES if cls_name in vars(module))
    result = unittest.TestResult()
    cls(f"{method}_{name}").run(result)
    assert result.testsRun == 1
    assert not result.skipped
    return "\n".join(text for _, text in (*result.failures, *result.errors))


@pytest.mark.parametrize(
    ("test", "name", "mistaken", "says"),
    MISTAKES,
    ids=[f"{test}-{getattr(m, '__name__', m)}" for test, _, m, _ in MISTAKES],
)
def test_caught(test: str, name: str, mistaken: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not complaints(test, name)  # without the mistake
    attribute, value = planted(entry_of(name), mistaken, "inplace" in test or "variant_consistency" in test)
    monkeypatch.setattr(entry_of(name), attribute, value)
    said = complaints(test, name)
    assert re.search(says, said), said or "nothing"


def planted(entry: Any, mistaken: Any, in_place: bool) -> tuple[str, Any]:
    """Which attribute of the entry the mistake stands in, and what to put there: a class has the name of ours."""
    if not isinstance(mistaken, type):
        return "inplace_variant" if in_place else "op", mistaken
    return "module_cls", type(entry.module_cls.__name__, (mistaken,), {"__module__": __name__})


def test_every_differential_test_has_a_mistake_to_catch() -> None:
    body = ast.parse(inspect.getsource(test_upstream_differential)).body
    written = {t.name for t in body if isinstance(t, ast.FunctionDef) and t.name.startswith("test")}
    assert {test for test, *_ in DIFFERENTIAL} | {"test_linear_of_a_transposed_input"} == written


@pytest.mark.parametrize(
    ("test", "name", "mistaken", "args", "says"), DIFFERENTIAL, ids=[test for test, *_ in DIFFERENTIAL]
)
def test_caught_by_comparison(test: str, name: str, mistaken: Any, args: tuple[Any, ...], says: str) -> None:
    function = getattr(test_upstream_differential, test)
    (entry,) = (e for e in ENTRIES if getattr(e, "full_name", e.name) == name)
    function(entry, *args)
    wrong = copy.copy(entry)
    attribute, value = planted(entry, mistaken, "in_place" in test)
    setattr(wrong, attribute, value)
    with pytest.raises(AssertionError, match=says):
        function(wrong, *args)


def test_another_layout_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn, "Linear", LaysItsInputOut)
    with pytest.raises(AssertionError, match="gradient 0: strides"):
        test_upstream_differential.test_linear_of_a_transposed_input((4, 5), bias=True)
