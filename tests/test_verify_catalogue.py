"""verify raises no false alarm: every rule of the catalogue passes on each of its samples, and every differentiable
module of PyTorch's database. It finds the gradients that by convention are no derivatives."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from ordinary import one_of_each

from torch_manualbp.verify import contract, verify

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)
    from torch.testing._internal.common_modules import module_db

KNOWN = {"CTCLoss": ["finite differences"]}
"""What torch's own module fails for good reason: ATen's gradient is that of a log-softmax and the loss together."""

NOT_DERIVATIVES = {"EmbeddingBag": ["options"]}
"""Rules that have an option with which by convention their gradient is no derivative: one by frequency."""

NO_NUMBER = {"Acosh": ["kinks"]}
"""Below 1, where acosh is NaN, our gradient is NaN, too, and that of torch's formula a number."""

FEW = 4
"""How many inputs of a module in the database are taken: one has 905."""

CASES = list(contract.cases())


def kinds(case: contract.Case) -> list[str]:
    """Its rule; one convolution stands for both, for whose many shapes oneDNN makes kernels for 10 s."""
    return [case.entry.name.removeprefix("Transposed")]


@pytest.mark.parametrize("case", one_of_each(CASES, kinds), ids=str)
def test_a_rule_passes(case: contract.Case) -> None:
    report = verify(case.rule, *case.args(), leave_out=(NOT_DERIVATIVES | NO_NUMBER).get(case.entry.name, []))
    assert report.ok is not bool(case.exempt("gradcheck")), report


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("info", module_db, ids=lambda info: info.name)
def test_a_module_passes(info: Any, training: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"device": "cpu", "dtype": torch.float64, "requires_grad": True, "training": training}
        inputs = [i for i in info.module_inputs_func(info, **options) if i.forward_input is not None]
        without = KNOWN.get(info.module_cls.__name__, [])
        for one in inputs[:: max(1, len(inputs) // FEW)]:
            made = one.constructor_input
            module = info.module_cls(*made.args, **made.kwargs).double().train(training)
            report = verify(module, *one.forward_input.args, kwargs=one.forward_input.kwargs, leave_out=without)
            assert report.ok, f"{one.desc}: {report}"
