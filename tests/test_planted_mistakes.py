"""The checks of the contract can fail: each mistake planted in a correct rule is caught by the checks that it names."""

from __future__ import annotations

from typing import Any

import planted_losses
import planted_margins
import planted_rules
import planted_structure
import planted_surroundings
import pytest
import torch
from planted import Mistake

from torch_manualbp.rules import Rule
from torch_manualbp.verify import contract

MISTAKES: list[Mistake] = [
    *planted_rules.MISTAKES,
    *planted_losses.MISTAKES,
    *planted_margins.MISTAKES,
    *planted_structure.MISTAKES,
    *planted_surroundings.MISTAKES,
]
CAUGHT_BY_VALUE = [(rule, sample) for rule, sample, checks in MISTAKES if "first derivatives" in checks]


def name_of(value: Any) -> str:
    return str(getattr(value, "__name__", value))


@pytest.mark.parametrize(
    ("rule", "sample", "check"), [(r, s, check) for r, s, checks in MISTAKES for check in checks], ids=name_of
)
def test_caught(rule: type[Rule], sample: str, check: str) -> None:
    correct = contract.case_of(rule.__mro__[1], sample)
    outcome = contract.run(contract.check(check), correct)
    assert outcome.verdict == "ok", outcome  # the check passes the rule without the mistake
    assert not contract.run(contract.check(check), correct.with_rule(rule)).ok


@pytest.mark.parametrize(("rule", "sample"), CAUGHT_BY_VALUE, ids=name_of)
def test_a_mistake_is_wrong_and_not_broken(rule: type[Rule], sample: str) -> None:
    """Each gives gradients, and not an error of its own making that any check would take for the mistake."""
    case = contract.case_of(rule.__mro__[1], sample).with_rule(rule)
    args = case.args()
    output = case.apply(*args)
    torch.autograd.grad(output, contract.leaves(args), contract.upstream_for(output), allow_unused=True)


def test_every_check_catches_a_mistake() -> None:
    assert {check for _, _, checks in MISTAKES for check in checks} == {check.name for check in contract.CHECKS}
