"""No rule and no layer keeps more bytes for backward than ATen: counted by saved-tensor hooks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp.bench.layers import Case, panel
from torch_manualbp.catalogue import CATALOGUE, Operation
from torch_manualbp.rules import ReLU
from torch_manualbp.verify import contract
from torch_manualbp.verify.claims.memory import bytes_kept
from torch_manualbp.verify.report import DOES_NOT_APPLY, FAILS, OK

BYTES_KEPT = contract.check("bytes kept")


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_a_rule_keeps_no_more_than_atens(entry: Operation) -> None:
    """Of every sample, whichever of its tensors are frozen."""
    rows = [contract.run(BYTES_KEPT, case) for case in contract.cases([entry])]
    assert rows
    assert not [str(row) for row in rows if row.verdict not in (OK, DOES_NOT_APPLY)]


class ReLUThatKeepsBoth(ReLU):
    """z, and a."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[0])


def test_a_rule_that_keeps_more_is_found() -> None:
    (entry,) = (entry for entry in CATALOGUE if entry.rule is ReLU)
    row = contract.run(BYTES_KEPT, next(contract.cases([replace(entry, rule=ReLUThatKeepsBoth)])))
    assert row.verdict == FAILS
    assert "keeps" in row.hint


@pytest.mark.parametrize("case", one_of_each(panel(), lambda case: [case.name]), ids=lambda case: case.layer)
def test_a_layer_keeps_no_more_than_atens(case: Case) -> None:
    """At a usual size."""
    torch.manual_seed(0)
    inputs = case.inputs()
    ours, stock = case.build(nn), case.build(torch.nn)
    ours.load_state_dict(stock.state_dict())
    kept, of_torch = (bytes_kept(layer, inputs) for layer in (ours, stock))
    assert kept <= of_torch
