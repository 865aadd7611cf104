"""The contract: what every rule owes, one function for each claim, and the matrix of rules and claims.

A rule is held to it by being listed in a catalogue, ours or one's own::

    from torch_manualbp.verify import contract_matrix

    print(contract_matrix([Operation(MyRule, the_same_in_torch_operations, samples)]))

``CHECKS`` are the claims in the order of the matrix's columns; each takes a :class:`Case`, a rule with one of its
samples, and raises AssertionError where the rule breaks the claim, or :class:`DoesNotApply` with the reason.
"""

from torch_manualbp.verify.contract.case import (
    EXACT,
    Case,
    DoesNotApply,
    assert_same,
    case_of,
    cases,
    gradients,
    leaves,
    upstream_for,
)
from torch_manualbp.verify.contract.check import CHECKS, Check, Outcome, check, run
from torch_manualbp.verify.contract.matrix import Matrix, contract_matrix
from torch_manualbp.verify.contract.memory import bytes_kept

__all__ = [
    "CHECKS",
    "EXACT",
    "Case",
    "Check",
    "DoesNotApply",
    "Matrix",
    "Outcome",
    "assert_same",
    "bytes_kept",
    "case_of",
    "cases",
    "check",
    "contract_matrix",
    "gradients",
    "leaves",
    "run",
    "upstream_for",
]
