"""Layers do in their surroundings what torch's do, and the checks that say so catch the mistakes planted for them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Hashable, Iterator
from functools import partial

import pytest
import torch
from ordinary import one_of_each

from torch_manualbp.verify import Matrix, Row
from torch_manualbp.verify.check import Check, run
from torch_manualbp.verify.mistakes import layers as mistakes
from torch_manualbp.verify.report import DOES_NOT_APPLY, OK
from torch_manualbp.verify.surroundings import CHECKS, LAYERS, Layer, distributed, layers, ours, tracing

ROWS = layers()


def settle(row: Row) -> None:
    """Fail or skip for the reason given."""
    assert row.ok, row
    if row.verdict == DOES_NOT_APPLY:
        pytest.skip(row.hint)


def test_the_table_lists_every_class() -> None:
    missing = ours() - {layer.class_name for layer in LAYERS}
    assert not missing, f"no row in torch_manualbp.verify.surroundings.LAYERS for {sorted(missing)}"


def kinds(layer: Layer, check: Check) -> list[Hashable]:
    """The check with the file that the layer stands in."""
    return [(check.name, mistakes.module_of(layer))]


@pytest.mark.parametrize(("layer", "check"), one_of_each(itertools.product(ROWS, CHECKS), kinds), ids=str)
def test_surroundings(layer: Layer, check: Check) -> None:
    settle(run(check, layer))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "name", one_of_each(["Linear", "Sigmoid", "CrossEntropyLoss with weights"], lambda name: ["compiled"])
)
def test_compiles_to_machine_code(name: str) -> None:
    settle(run(Check("inductor", partial(tracing.compiles, backend="inductor")), mistakes.row(name)))


def test_in_two_processes() -> None:
    """A layer of each kind passes, and each check applies to one; what was planted is caught."""
    found = [
        rows[0] for rows in distributed.run_in_two_processes("torch_manualbp.verify.mistakes.layers:IN_TWO_PROCESSES")
    ]
    sound = len(mistakes.SOUND) * len(distributed.CHECKS)
    assert [row for row in found[:sound] if not row.ok] == []
    names = {check.name for check in distributed.CHECKS}
    assert {row.check for row in found[:sound] if row.verdict == OK} == names
    failed = {(row.check, row.subject) for row in found[sound:] if not row.ok}
    assert {check for check, _ in failed} == names
    assert ("DTensors", "MSELoss") in failed
    assert ("FSDP2", "MSELoss") not in failed  # it is wrong on DTensors alone


@pytest.mark.slow
def test_every_layer_in_two_processes() -> None:
    found = [rows[0] for rows in distributed.run_in_two_processes()]
    assert {row.sample for row in found} == {layer.name for layer in ROWS}
    assert [row for row in found if not row.ok] == []


@pytest.mark.parametrize(("name", "layer"), mistakes.BY_CHECK, ids=lambda v: v if isinstance(v, str) else str(v))
def test_catches_what_was_planted(name: str, layer: Layer) -> None:
    (check,) = (c for c in CHECKS if c.name == name)
    assert run(check, mistakes.row(layer.name)).verdict == OK
    found = run(check, layer)
    assert not found.ok, found


def test_every_check_has_a_planted_mistake() -> None:
    assert {name for name, _ in mistakes.BY_CHECK} == {check.name for check in CHECKS}


def test_prints_a_matrix() -> None:
    chosen = [c for c in CHECKS if c.name in ("deepcopy", "inplace")]
    rows = [
        mistakes.row("ReLU"),
        mistakes.row("Linear").with_mistake(Linear=mistakes.SharesParameters),
    ]
    matrix = Matrix("layers", tuple(run(check, layer) for layer in rows for check in chosen))
    assert not matrix.ok
    assert {verdict: n for verdict, n in matrix.counts().items() if n} == {"ok": 2, "fails": 1, "does not apply": 1}
    assert matrix.cell("ReLU", "deepcopy") == "✓"
    assert matrix.cell("Linear", "deepcopy") == "✗"
    assert "torch's class has no inplace" in str(matrix)
    assert "✗ Linear Linear: deepcopy: fails; the copy shares memory with the layer" in str(matrix)


@pytest.fixture(autouse=True)
def forgets_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()
