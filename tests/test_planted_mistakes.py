"""The checks of the contract can fail: each mistake planted in a correct rule is caught by the checks that it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_manualbp.catalogue import CATALOGUE
from torch_manualbp.rules import Rule
from torch_manualbp.verify import contract
from torch_manualbp.verify.mistakes import BREACHES, MISTAKES

CAUGHT_BY_VALUE = [(b.rule, b.sample) for b in BREACHES if "first derivatives" in b.checks]


def name_of(value: Any) -> str:
    return str(getattr(value, "__name__", value))


@pytest.mark.parametrize(
    ("rule", "sample", "check"), [(b.rule, b.sample, check) for b in BREACHES for check in b.checks], ids=name_of
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
    assert {check for b in BREACHES for check in b.checks} == {check.name for check in contract.CHECKS}


def test_every_rule_has_a_mistake_of_its_own() -> None:
    wrong = [b.rule for b in BREACHES] + [m.target for m in MISTAKES if isinstance(m.target, type)]
    have = {base for rule in wrong for base in rule.__mro__[1:]}
    assert [row.name for row in CATALOGUE if row.rule not in have] == []
