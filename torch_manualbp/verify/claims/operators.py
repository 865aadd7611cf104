"""What an operator of ``torch.library`` owes beside right gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp._torch import pytree
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.functions import is_custom_operator
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.numeric import directions
from torch_manualbp.verify.report import ROBUSTNESS, VALUE, Row
from torch_manualbp.verify.trial import Trial

__all__ = ["opcheck", "tangents_of_values"]

TESTS = {
    "test_schema": "its schema is not what it does",
    "test_autograd_registration": "its derivative is registered where autograd does not look for it",
    "test_faketensor": "its fake implementation has other shapes, strides or dtypes",
    "test_aot_dispatch_dynamic": "it is another function under AOT dispatch, which torch.compile is made of",
}


def opcheck(trial: Trial) -> Iterator[Row]:
    """An operator of ``torch.library`` passes ``torch.library.opcheck``: its schema, its fake tensors, the registration
    of its derivative, and AOT dispatch."""
    target: Any = trial.subject.target
    if not is_custom_operator(target):
        raise DoesNotApply("it is no operator of torch.library")
    at = trial.subject.setting(trial.subject.dtype)
    values = list(at.values)
    for leaf, tensor in zip(at.present, at.leaves(), strict=True):
        values[leaf.position or 0] = tensor
    args, kwargs = pytree.tree_unflatten(values, at.subject._form)
    found = torch.library.opcheck(target, args, kwargs, raise_exception=False)
    for test, said in found.items():
        wrong = "" if said == "SUCCESS" else f"{TESTS.get(test, test)}: {' '.join(str(said).split())}"
        yield trial.row("", wrong[:400], kind=ROBUSTNESS if wrong else "")


def tangents_of_values(trial: Trial) -> Iterator[Row]:
    """Forward mode of what autograd does not see into is no silent 0: where outputs move along a direction, the tangent
    is theirs, or there is an error."""
    if not trial.references.is_numeric:
        raise DoesNotApply("autograd sees into it: see the adjoint identity")
    at = trial.exact
    start = at.leaves([])
    along = directions(start, seed=4)
    with forward_ad.dual_level():
        duals = at.run([forward_ad.make_dual(t, v) for t, v in zip(start, along, strict=True)])
        tangents = [forward_ad.unpack_dual(d).tangent for d in duals]
        tangents = [None if t is None else t.clone() for t in tangents]
    h = 2.0**-12
    with torch.no_grad():
        ahead, behind = (at.run([t + s * h * v for t, v in zip(start, along, strict=True)]) for s in (1, -1))
    for i, (a, b, tangent) in enumerate(zip(ahead, behind, tangents, strict=True)):
        slope = (a - b) / (2 * h)
        moved: Tensor = torch.zeros_like(slope) if tangent is None else tangent
        off, size = largest(moved - slope), largest(slope)
        wrong = ""
        if off > 1e-3 * size + 1e4 * trial.eps:
            wrong = "the tangent is 0 in silence" if not moved.any() else "the tangent is another than the values have"
        yield trial.row(f"output[{i}]", wrong, kind=VALUE if wrong and moved.any() else ROBUSTNESS if wrong else "")
