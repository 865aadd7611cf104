"""Every rule of the catalogue keeps what ``contract`` says that a rule owes."""

from __future__ import annotations

import math
import shutil

import contract
import pytest
import torch
from contract import Case

from torch_manualbp import rules
from torch_manualbp.rules import CATALOGUE, Entry, Make

CASES = list(contract.cases())
LOW_PRECISION = [torch.float32, torch.float16, torch.bfloat16]
TORN_AT_NAN = (rules.CELU, rules.ELU, rules.Hardshrink, rules.Hardtanh, rules.Softshrink)
IN_SINGLE_AND_DOUBLE = (rules.MultiLabelMargin, rules.MultiMargin)

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_the_catalogue_lists_every_rule() -> None:
    public = {r for r in vars(rules).values() if isinstance(r, type) and issubclass(r, rules.Rule)} - {
        rules.Rule,
        rules.Activation,
    }
    assert public == {entry.rule for entry in CATALOGUE}


@every_case
def test_equals_twin(case: Case) -> None:
    contract.equals_twin(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.entry.complex], ids=str)
def test_equals_twin_for_complex_numbers(case: Case) -> None:
    contract.equals_twin(case, torch.complex128)


@pytest.mark.parametrize("upstream_needs_gradient", [True, False], ids=["mixed", "constant upstream"])
@every_case
def test_second_derivatives(case: Case, upstream_needs_gradient: bool) -> None:
    contract.second_derivatives_equal_twins(case, upstream_needs_gradient)


@every_case
def test_raw_backward(case: Case) -> None:
    contract.raw_backward_is_well_formed(case)


@every_case
def test_gradcheck(case: Case) -> None:
    if "mean, empty batch" in case.sample:
        pytest.skip("the mean of nothing is NaN, and gradcheck holds NaN unequal to itself")
    contract.passes_gradcheck(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.entry.complex], ids=str)
def test_gradcheck_for_complex_numbers(case: Case) -> None:
    contract.passes_gradcheck(case, torch.complex128)


@every_case
def test_gradgradcheck(case: Case) -> None:
    if str(case) in ("CrossEntropy-mean, empty batch", "NegativeLogLikelihood-mean, empty batch"):
        pytest.skip("the derivative by the upstream gradient is 0/0, and gradcheck holds NaN unequal to itself")
    contract.passes_gradgradcheck(case)


@every_case
def test_forward_mode(case: Case) -> None:
    if "empty batch" in case.sample and not case.entry.rule.apply(*case.args()).dim():
        pytest.skip("torch.func.jacrev of an argument without entries fails for every function")
    contract.forward_mode_equals_reverse_mode(case)


@every_case
def test_upstream_strides(case: Case) -> None:
    contract.upstream_may_have_any_strides(case)


@every_case
def test_input_strides(case: Case) -> None:
    contract.inputs_may_have_any_strides(case)


@pytest.mark.parametrize(
    ("case", "mapped"), [(c, m) for c in CASES for m in contract.vmap_patterns(c)], ids=lambda p: str(p)
)
def test_vmap(case: Case, mapped: tuple[int, ...]) -> None:
    if reason := contract.why_torch_does_not_vmap(case, mapped):
        pytest.skip(f"torch's own function refuses: {reason}")
    contract.vmaps(case, mapped)


@every_case
def test_compile(case: Case) -> None:
    contract.compiles_with_our_backward(case)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_compile_to_machine_code(entry: Entry) -> None:
    contract.compiles_with_our_backward(next(contract.cases([entry])), backend="inductor")


@pytest.mark.parametrize(
    ("case", "needed"), [(c, n) for c in CASES for n in contract.subsets_of_needed(c)], ids=lambda p: str(p)
)
def test_keeps_no_more_than_torch(case: Case, needed: tuple[int, ...]) -> None:
    if case.entry.rule is rules.CrossEntropyProbabilities and needed == (2,):
        pytest.skip("for the class weights alone torch keeps the product s ⊙ y, which is no input; ours keeps s and y")
    if case.entry.rule is rules.MultiLabelSoftMargin and needed == (2,):
        pytest.skip("for the class weights alone torch keeps the losses of the entries, no input; ours keeps s and y")
    if case.entry.rule is rules.TripletMargin:
        pytest.skip("torch keeps r, which is no input; ours keeps the distances, which the norms before it keep anyway")
    contract.keeps_no_more_than_torch(case, needed)


@every_case
def test_frozen_arguments(case: Case) -> None:
    contract.frozen_arguments_change_nothing(case)


@every_case
def test_checkpointing_and_hooks(case: Case) -> None:
    contract.works_under_checkpointing_and_hooks(case)


@every_case
def test_changes_in_place(case: Case) -> None:
    contract.notices_changes_in_place(case)


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@every_case
def test_accuracy(case: Case, dtype: torch.dtype) -> None:
    if case.entry.rule in IN_SINGLE_AND_DOUBLE and dtype is not torch.float32:
        pytest.skip(f"torch refuses {dtype} here, and so does ours")
    contract.is_as_accurate_as_torch(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_case
def test_rounds_once(case: Case, dtype: torch.dtype) -> None:
    if case.entry.rule in IN_SINGLE_AND_DOUBLE:
        pytest.skip(f"torch refuses {dtype} here, and so does ours")
    if str(case) == "GELUTanh-four dimensions" and dtype is torch.bfloat16:
        pytest.skip("the sigmoid of float32 underflows at one of these z, where bfloat16 still has subnormal numbers")
    contract.rounds_once(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, *LOW_PRECISION], ids=str)
@pytest.mark.parametrize(
    "entry", [e for e in CATALOGUE if all(len(s.args) == 1 for s in e.samples(Make()))], ids=lambda e: e.name
)
def test_special_values(entry: Entry, dtype: torch.dtype) -> None:
    if entry.rule is rules.Softsign:
        pytest.skip(
            "torch's composite gives NaN, ∞ − ∞, at infinite z and for infinite upstream gradients; ours the limit"
        )
    if entry.rule is rules.SELU:
        pytest.skip("torch multiplies the upstream gradient by λα first; where that overflows, it has NaN for 0")
    contract.treats_special_values_as_torch(entry, dtype)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("case", [c for c in CASES if len(c.args()) > 1], ids=str)
def test_a_special_number_spreads_as_in_torch(case: Case, value: float) -> None:
    """One inf or NaN in the first argument makes NaN of the same entries of the gradients as in torch."""
    if case.entry.rule is rules.SoftMargin and not math.isnan(value):
        pytest.skip("where exp(−y s) overflows torch's gradient is inf / inf; ours is the limit")
    if case.entry.rule is rules.Bilinear and not math.isnan(value):
        pytest.skip("torch adds up ∞ and −∞ of the neurons, which is NaN; ours multiplies the sum with ∞")
    if math.isnan(value) and case.entry.rule in (
        rules.CELU,
        rules.ELU,
        rules.Hardshrink,
        rules.Hardtanh,
        rules.Softshrink,
    ):
        pytest.skip("at NaN torch's kernel says one thing in its vectors and another in the numbers left over")
    if case.entry.rule is rules.BinaryCrossEntropy:
        pytest.skip("torch refuses what is no probability, and so does ours")
    results = []
    for function in (case.entry.rule.apply, case.entry.twin):
        args = case.args()
        if not args[0].numel():
            pytest.skip("an argument without entries has no place for the number")
        with torch.no_grad():
            args[0].view(-1)[0] = value
        results.append(contract.gradients(function, args))
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "gradient")
