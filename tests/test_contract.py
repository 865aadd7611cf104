"""Every rule of the catalogue keeps what ``torch_manualbp.verify.contract`` says that a rule owes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Hashable, Iterator
from dataclasses import replace

import pytest
import torch
from ordinary import kinds_of_samples, one_of_each

from torch_manualbp.catalogue import CATALOGUE, Operation
from torch_manualbp.verify import contract
from torch_manualbp.verify.contract import CHECKS, Case, Check, check_of_exemption
from torch_manualbp.verify.report import DOES_NOT_APPLY

CASES = list(contract.cases())
CHECKED = [(case, check) for case in CASES for check in CHECKS if not check.slow]
KINDS = {entry.name: kinds_of_samples(entry) for entry in CATALOGUE}
OF_OPTIONS = {"first derivatives", "second derivatives", "raw backward", "forward mode"}
"""What the options of a rule change: its formulas. In an ordinary run the other checks take one rule of each file."""
FIRST = {case.entry.name: case for case in reversed(CASES)}
COMPILERS = [check for check in CHECKS if check.slow]
EXEMPTIONS = [(entry, key) for entry in CATALOGUE for key in entry.exempt]


def kinds(case: Case, check: Check) -> Iterator[Hashable]:
    """The check with the rule and with each value of its options, or with the file that the rule stands in."""
    if check.name in OF_OPTIONS:
        yield check.name, case.entry.name
        yield from ((check.name, option) for option in KINDS[case.entry.name][case.sample])
    else:
        yield check.name, case.rule.__module__


@pytest.mark.parametrize(("case", "check"), one_of_each(CHECKED, kinds), ids=str)
def test_contract(case: Case, check: Check) -> None:
    hold(case, check)


def family(case: Case) -> list[str]:
    """``linear``, ``activation``, ``loss`` or ``structure``: a compiler takes seconds for a rule."""
    return case.rule.__module__.split(".")[2:3]


@pytest.mark.parametrize("check", COMPILERS, ids=str)
@pytest.mark.parametrize("case", one_of_each(reversed(FIRST.values()), family), ids=str)
def test_compiles(case: Case, check: Check) -> None:
    hold(case, check)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in FIRST.values()], ids=str)
def test_compiles_every_sample(case: Case) -> None:
    hold(case, COMPILERS[0])


def hold(case: Case, check: Check) -> None:
    row = contract.run(check, case)
    assert row.ok, row
    if row.verdict == DOES_NOT_APPLY:
        pytest.skip(row.hint)


@pytest.mark.parametrize(("entry", "key"), EXEMPTIONS, ids=[f"{entry.name}-{key}" for entry, key in EXEMPTIONS])
def test_an_exemption_is_needed(entry: Operation, key: str) -> None:
    """Without it the check fails, on some sample; and it is the exemption of a check that there is."""
    check = check_of_exemption(entry, key)
    without = replace(entry, exempt={k: reason for k, reason in entry.exempt.items() if k != key})
    words = key.split(", ")
    cases = sorted(contract.cases([without]), key=lambda case: -sum(word in str(case) for word in words))
    assert any(not contract.run(check, case).ok for case in cases)


def test_verification_is_imported_on_demand() -> None:
    program = "import sys, torch_manualbp; print('torch_manualbp.verify' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_special_values_are_what_they_are_called() -> None:
    from torch_manualbp.verify.claims.special import special_values

    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        values = special_values(dtype)
        assert values.isnan().sum() == 1
        assert values.isinf().sum() == 2
        subnormal = (values != 0) & (values.abs() < torch.finfo(dtype).tiny)
        assert subnormal.sum() == 2
