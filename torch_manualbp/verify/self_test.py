"""How many planted mistakes each way of checking a gradient finds: ``torch-manualbp verify --self-test``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torch_manualbp._progress import Counted
from torch_manualbp.verify.as_operator import as_operator
from torch_manualbp.verify.functions import is_function, run_forward
from torch_manualbp.verify.mistakes import MISTAKES, Mistake
from torch_manualbp.verify.outputs import outputs
from torch_manualbp.verify.report import VALUE
from torch_manualbp.verify.report import Row as Finding
from torch_manualbp.verify.verifier import verify

__all__ = ["TOOLS", "Row", "SelfTest", "Tool", "self_test"]

Tool = Callable[[Mistake, Any], str]
"""Looks at a target on the inputs of a mistake, and returns what it finds wrong, in one line, or nothing: ``""``."""


@dataclass(frozen=True)
class Row:
    """A mistake, and what each tool finds in it and in its correct twin."""

    mistake: Mistake
    found: Mapping[str, str]
    found_in_twin: Mapping[str, str]

    def verdict(self, tool: str) -> str:
        """ "caught", "missed", or "false alarm" where the tool refuses the correct twin too, and so tells nothing."""
        if self.found_in_twin[tool]:
            return "false alarm"
        return "caught" if self.found[tool] else "missed"


@dataclass(frozen=True)
class SelfTest:
    """What :func:`self_test` found."""

    rows: tuple[Row, ...]
    tools: tuple[str, ...]
    interrupted: bool = False
    """Whether Ctrl-C has come before the last mistake."""

    @property
    def ok(self) -> bool:
        """Whether ``verify`` caught every mistake and passed every twin."""
        return "verify" in self.tools and all(row.verdict("verify") == "caught" for row in self.rows)

    def count(self, tool: str, verdict: str = "caught") -> int:
        """How many mistakes have this verdict of the tool."""
        return sum(row.verdict(tool) == verdict for row in self.rows)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The columns, and a row for each mistake; the last one counts."""
        columns = ["mistake", "kind", "what is wrong", *self.tools]
        marks = {"caught": "✓", "missed": "·", "false alarm": "?"}
        rows = [
            [row.mistake.name, row.mistake.kind, row.mistake.what, *(marks[row.verdict(t)] for t in self.tools)]
            for row in self.rows
        ]
        return columns, [*rows, ["caught", "", f"of {len(self.rows)}", *(str(self.count(t)) for t in self.tools)]]

    def __str__(self) -> str:
        columns, rows = self.table()
        widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (columns, *rows)
        ]
        legend = "✓ caught  · missed  ? refuses the correct twin too"
        return "\n".join(line.rstrip() for line in (*lines, "", legend, *self._misses()))

    def _misses(self) -> list[str]:
        """What ``verify`` says of the twins that it refuses."""
        alarms = [row for row in self.rows if row.found_in_twin.get("verify")]
        return [f"false alarm: {row.mistake.name}: {row.found_in_twin['verify']}" for row in alarms]

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "ok": self.ok,
            "caught": {tool: self.count(tool) for tool in self.tools},
            "mistakes": [
                {
                    "name": row.mistake.name,
                    "kind": row.mistake.kind,
                    "what": row.mistake.what,
                    "verdicts": {tool: row.verdict(tool) for tool in self.tools},
                    "found": dict(row.found),
                    "found_in_twin": dict(row.found_in_twin),
                }
                for row in self.rows
            ],
        }


def self_test(mistakes: Sequence[Mistake] = MISTAKES, tools: Mapping[str, Tool] | None = None) -> SelfTest:
    """Have each tool look at each mistake and at its twin.

    Args:
        mistakes: all that are planted, by default.
        tools: names and tools; by default :data:`TOOLS`.
    """
    tools = TOOLS if tools is None else tools
    rows = []
    with Counted(mistakes, "self-test", lambda mistake: mistake.name) as todo:
        for mistake in todo:
            found, in_twin = (
                {name: tool(mistake, target) for name, tool in tools.items()}
                for target in (mistake.target, mistake.twin)
            )
            rows.append(Row(mistake, found, in_twin))
    return SelfTest(tuple(rows), tuple(tools), todo.interrupted)


class _Verify:
    """``verify`` on the inputs that somebody would give; with ``torch``'s derivative on kinks where that is meant.

    Of the twin a wrong value counts; of the mistake each finding that the twin has not, such as that a Function that
    nobody wrapped for it raises under autocast.
    """

    def __init__(self) -> None:
        self._of_twins: dict[str, list[Finding]] = {}

    def __call__(self, mistake: Mistake, target: Any) -> str:
        kinks = "autograd" if mistake.kind == "kink" else "between"
        if mistake.name not in self._of_twins:
            twins = verify(mistake.twin, *mistake.args(), kinks=kinks).failures
            self._of_twins[mistake.name] = list(twins)
        of_twin = self._of_twins[mistake.name]
        known = {row.check for row in of_twin}
        if target is mistake.twin:
            found = [row for row in of_twin if row.kind == VALUE]
        else:
            failures = verify(target, *mistake.args(), kinks=kinks).failures
            found = [row for row in failures if row.kind == VALUE or row.check not in known]
        return f"{', '.join(dict.fromkeys(row.check for row in found))}: {found[0]}" if found else ""


def _by_gradcheck(check: Callable[..., bool], **settings: Any) -> Tool:
    """As most people call it: on one set of inputs in float64. Random numbers are the same at every call."""

    def tool(mistake: Mistake, target: Any) -> str:
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is unusual of the inputs is meant
                check(_seeded(target), mistake.args(), **settings)
        except Exception as error:  # its own, or one of the target's, which nobody would overlook either
            return _first_line(error)
        return ""

    return tool


def _by_opcheck(mistake: Mistake, target: Any) -> str:
    """``torch.library.opcheck`` of an operator that is made of it: schema, fake tensors, autograd, AOT dispatch."""
    args = mistake.args()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), as_operator(target, args) as operator:
            warnings.simplefilter("ignore")
            found = torch.library.opcheck(operator, args, raise_exception=False)
    except TypeError:  # it takes what no operator does
        return ""
    wrong = [f"{test}: {said}" for test, said in found.items() if said != "SUCCESS"]
    return " ".join(wrong[0].split())[:200] if wrong else ""


def _by_allclose(mistake: Mistake, target: Any) -> str:
    """``torch.allclose`` of the gradients in float32 with autograd's of the same forward, with its own tolerances."""
    try:
        gradients = _gradients(_seeded(target), mistake)
    except Exception as error:
        return _first_line(error)
    references = _gradients(_seeded(_forward(mistake.twin)), mistake)
    for i, (gradient, reference) in enumerate(zip(gradients, references, strict=True)):
        if (gradient is None) != (reference is None):
            return f"gradient {i} is {'None' if gradient is None else 'not None'}"
        if gradient is not None and reference is not None and not torch.allclose(gradient, reference):
            return f"gradient {i} is off by {(gradient - reference).abs().max().item():.1e}"
    return ""


def _gradients(function: Callable[..., Any], mistake: Mistake) -> tuple[Tensor | None, ...]:
    with torch.random.fork_rng(devices=[]):
        args = mistake.args(torch.float32)
        leaves = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
        results = outputs(function(*args))
        torch.manual_seed(1)
        return torch.autograd.grad(results, leaves, [torch.randn_like(r) for r in results], allow_unused=True)


def _seeded(target: Any) -> Callable[..., Any]:
    """The target as a function whose random numbers are the same at every call."""
    function: Any = target.apply if is_function(target) else target

    def call(*args: Any) -> Any:
        torch.manual_seed(0)
        return function(*args)

    return call


def _forward(target: Any) -> Callable[..., Any]:
    """The forward alone, for autograd to differentiate."""
    return (lambda *args: run_forward(target, args)) if is_function(target) else target


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


TOOLS: dict[str, Tool] = {
    "verify": _Verify(),
    "gradcheck": _by_gradcheck(gradcheck),
    "gradcheck, fast": _by_gradcheck(gradcheck, fast_mode=True),
    "gradgradcheck": _by_gradcheck(gradgradcheck),
    "opcheck": _by_opcheck,
    "allclose": _by_allclose,
}
"""What is compared, by name."""
