"""The cost of a pass as plain data: its formula, as its rule's docstring has it, and the numbers in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.insight.network import is_of_loss
from torch_manualbp.insight.page.numbers import for_script
from torch_manualbp.insight.trace import Quantity, Stage, Trace
from torch_manualbp.rules import CrossEntropy, MeanSquaredError, Rule

__all__ = ["cost_data"]


def cost_data(trace: Trace, samples: int) -> dict[str, Any]:
    """The formula of the cost and of its derivative, and where they are known the terms of it, by sample and output.

    ::

        of the squared error     s, y, s − y, (s − y)², 2 (s − y)
        of cross-entropy         s, p = softmax(s), y as 0 or 1, −y log p, p − y
    """
    stages = [stage for stage in trace.stages if is_of_loss(trace, stage)]
    empty: dict[str, Any] = {"formula": [], "derivative": [], "n": None, "columns": [], "rows": [], "is_class": False}
    if len(stages) != 1:
        made_of = ", ".join(stage.rule.__name__ for stage in stages)
        return {**empty, "formula": [f"C is made by {made_of}"] if made_of else []}
    (stage,) = stages
    formula, derivative = _formulas(stage.rule)
    terms = _terms(stage)
    if terms is None:
        return {**empty, "formula": formula, "derivative": derivative}
    first = [column[:samples].double().tolist() for column in terms.columns.values()]
    rows = [
        [[for_script(v) for v in line] for line in zip(*of_row, strict=True)] for of_row in zip(*first, strict=True)
    ]
    over = " / n" if terms.n > 1 else ""
    return {
        "formula": [line.format(over) for line in terms.formula],
        "derivative": [terms.derivative.format(over)],
        "n": terms.n,
        "columns": list(terms.columns),
        "rows": rows,
        "is_class": terms.is_class,
    }


def _formulas(rule: type[Rule]) -> tuple[list[str], list[str]]:
    """What stands before the ⇒ of the docstring's formulas, and ∂C/∂s after it."""
    lines = inspect.cleandoc(rule.__doc__ or "").splitlines()
    formulas = [line.strip() for line in lines if line.startswith("    ")]
    if "⇒" not in formulas:
        return [], []
    at = formulas.index("⇒")
    before = [" ".join(part.split()) for line in formulas[:at] for part in re.split(r" {3,}(?=C )", line)]
    # g is the gradient that comes from above: at the cost itself it is 1
    after = [re.sub(r" g\b", "", line) for line in formulas[at + 1 :] if line.startswith("∂C/∂s")]
    return before, after


@dataclass(frozen=True)
class _Terms:
    """What a cost consists of."""

    formula: tuple[str, ...]
    derivative: str
    columns: Mapping[str, Tensor]
    """Each with a row for each sample."""

    n: int
    """What the sum of all terms is divided by."""

    is_class: bool


def _terms(stage: Stage) -> _Terms | None:
    """The costs whose terms are known, on rows of real numbers."""
    s, y = (arg.tensor if isinstance(arg, Quantity) else arg for arg in stage.args[:2])
    if s.dim() not in (1, 2) or not s.is_floating_point():
        return None
    if stage.rule is MeanSquaredError and stage.args[2] in ("mean", "sum") and not y.is_complex():
        s, y = (t.double() for t in torch.broadcast_tensors(s, y))
        columns = {"s": s, "y": y, "s − y": s - y, "(s − y)²": (s - y) ** 2, "2 (s − y)": 2 * (s - y)}
        n = s.numel() if stage.args[2] == "mean" else 1
        return _Terms(("C = Σ (s − y)²{}",), "∂C/∂s = 2 (s − y){}", _in_rows(columns), n, False)
    if stage.rule is CrossEntropy and _is_plain(stage.args, y):
        s = s.double()
        p, q = s.softmax(-1), torch.nn.functional.one_hot(y, s.shape[-1]).double()
        terms = -s.log_softmax(-1).masked_fill(q == 0, 0)
        columns = {"s": s, "p": p, "y": q, "−y log p": terms, "p − y": p - q}
        n = y.numel() if stage.args[4] == "mean" else 1
        return _Terms(("p = softmax(s)", "C = −Σ y log p{}"), "∂C/∂s = (p − y){}", _in_rows(columns), n, True)
    return None


def _is_plain(args: Sequence[Any], y: Tensor) -> bool:
    """Whether the cross-entropy has neither weights nor smoothing, and counts every sample."""
    return args[2] is None and not bool((y == args[3]).any()) and args[4] in ("mean", "sum") and args[5] == 0


def _in_rows(columns: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: t.unsqueeze(0) if t.dim() == 1 else t for name, t in columns.items()}
