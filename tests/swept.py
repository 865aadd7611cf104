"""Upstream's database of operators, called as a step calls them: of each entry what comes of it by rules."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from test_operations import ByRules
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torch_manualbp.derive.operations import NoRule
from torch_manualbp.derive.tape import FLAT
from torch_manualbp.rules import Rule

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # that hypothesis, with which torch shuffles nothing here, is absent
    from torch.testing._internal.common_methods_invocations import op_db

ENTRIES = [op for op in op_db if op.supports_autograd and torch.float64 in op.supported_backward_dtypes("cpu")]
"""Those that have a gradient."""


def outcome(op: Any, sample: Any) -> str:
    """``"equal"``, ``"refused: why"``, ``"no rule"``, ``"different: how"``, or ``"torch raises"``."""
    try:
        expected, references = called(op, sample)
    except Exception:
        return "torch raises"
    try:
        with ByRules():
            results, gradients = called(op, sample)
    except NoRule as error:
        return f"refused: {error}"
    except Exception as error:
        return f"different: {type(error).__name__}: {error}"
    functions = [getattr(r.grad_fn, "_forward_cls", Tensor) for r in results if r.grad_fn is not None]
    if not all(issubclass(function, Rule) for function in functions) and op.name not in FLAT:  # a constant of a step
        return "no rule"
    try:
        torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-10, equal_nan=True)
        torch.testing.assert_close(gradients, references, rtol=1e-8, atol=1e-9, equal_nan=True, check_dtype=False)
    except AssertionError as error:
        return f"different: {error}"
    return "equal"


def called(op: Any, sample: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The results, and the gradients of what learns, 0 where there is none."""
    given = sample.transform(
        lambda t: t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t
    )
    inputs = tree_leaves((given.input, given.args, given.kwargs))
    learning = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    torch.manual_seed(0)
    results = [t for t in tree_leaves(op(given.input, *given.args, **given.kwargs)) if isinstance(t, Tensor)]
    learnt = [t for t in results if t.requires_grad]
    upstream = [torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape) for t in learnt]
    if not learnt:
        return results, []
    gradients = torch.autograd.grad(learnt, learning, upstream, allow_unused=True)
    return results, [torch.zeros_like(t) if g is None else g for t, g in zip(learning, gradients, strict=True)]


def samples(op: Any, number: int) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), number)


def title(op: Any) -> str:
    return f"{op.name}, {op.variant_test_name}" if op.variant_test_name else str(op.name)
