"""What a function of torch's lets its caller change between forward and backward, ours does too: a drop-in must not
make an error of a program that ran."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import upstream
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from upstream_differential import EXACT, fresh, upstream_for

pytestmark = pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides",  # torch's, of kl_div's own default
    "ignore:.nn.functional.upsample",  # torch's, of an older name
)

MOST = 60
"""Samples of an entry that are run."""

KEEPS = {
    "nn.functional.cosine_similarity": {1},  # torch keeps both over their lengths; ours keeps the two, and no third
    "nn.functional.instance_norm": {3},  # torch keeps copies of w, one a sample; ours keeps w
    "nn.functional.embedding_bag": {1},  # torch keeps copies of the indices; ours keeps them
    "nn.functional.linear_cross_entropy": {0, 1, 2},  # torch keeps all scores; ours keeps x, W and y
}
"""The tensors of which torch keeps copies and ours itself, to spare the memory: to change them is an error, in words,
and never another gradient."""


def cases() -> Iterator[Any]:
    for op in upstream.OPS:
        if torch.float64 in op.supported_backward_dtypes("cpu") and not upstream.is_random(op):
            yield pytest.param(op, id=op.formatted_name)


def after_change(function: Any, call: Any, position: int | None, learning: int) -> tuple[Tensor | None, ...] | None:
    """The gradients after the tensor at ``position`` was changed, or None if that is an error."""
    args, kwargs = fresh(call)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    for t in tensors[learning:]:
        t.requires_grad_(False)
    leaves = [t for t in tensors if t.requires_grad]
    output = function(*args, **kwargs)
    if position is not None:
        with torch.no_grad():
            tensors[position].copy_(tensors[position] * 0)
    try:
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        return torch.autograd.grad(outputs, leaves, [upstream_for(t) for t in outputs], allow_unused=True)
    except RuntimeError as error:
        if not re.search("modified (by an inplace operation|inplace)", str(error)):
            raise
        return None


def compare(function: Any, torchs: Any, sample: Any, keeps: Collection[int] = ()) -> int:
    """Change each tensor of a sample in turn, with all that learn and with the input alone."""
    call = tree_map(lambda t: t, ((sample.input, *sample.args), sample.kwargs))
    tensors = [t for t in tree_leaves(call) if isinstance(t, Tensor)]
    ran = 0
    for learning in {1, len(tensors)} if tensors[0].requires_grad else set():
        expected = after_change(function, call, None, learning)
        for position, tensor in enumerate(tensors):
            if not tensor.numel() or after_change(torchs, call, position, learning) is None:
                continue
            mine = after_change(function, call, position, learning)
            if mine is None and position in keeps:
                continue
            ran += 1
            assert mine is not None, f"torch allows to change tensor {position} of {sample}, and ours does not"
            assert expected is not None
            for gradient, before in zip(mine, expected, strict=True):
                if gradient is None or before is None:
                    assert gradient is before
                    continue
                torch.testing.assert_close(gradient, before, rtol=EXACT, atol=EXACT, equal_nan=True)
    return ran


def test_an_argument_that_is_kept_is_caught() -> None:
    """z² keeps z, which a sigmoid does not."""
    (op,) = (o for o in upstream.OPS if o.full_name == "sigmoid")
    sample = next(iter(op.sample_inputs("cpu", torch.float64, requires_grad=True)))
    assert compare(op.op, torch.sigmoid, sample) == 1
    with pytest.raises(AssertionError, match="torch allows to change tensor 0"):
        compare(lambda z: op.op(z) + z * z, torch.sigmoid, sample)


@pytest.mark.parametrize("op", list(cases()))
def test_every_function(op: Any) -> None:
    ran = 0
    for sample in islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), MOST):
        ran += compare(op.op, upstream.torch_function(op), sample, KEEPS.get(op.full_name, ()))
    upstream.RAN["arguments changed before backward, where torch's function allows it"] += ran
