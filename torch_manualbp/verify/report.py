"""What verification found: a row for each tensor and check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torch_manualbp._text import as_json, visible

__all__ = ["ADVICE", "ROBUSTNESS", "VALUE", "GradientError", "Report", "Row"]

OK, FAILS, ERROR, LEFT_OUT, DOES_NOT_APPLY = VERDICTS = ("ok", "fails", "error", "left out", "does not apply")

VALUE, ROBUSTNESS, ADVICE = KINDS = ("value", "robustness", "advice")
"""What a finding is: a wrong number; what does not bear every use (second derivatives, ∞, an empty batch, an upstream
gradient in another layout) or leaves work to the engine; or what is worth knowing."""

SCHEMA = 3
"""The version of the JSON."""

NUMBERS = ("error_ulps", "error_relative", "torch_ulps")
"""Fields of a row that are numbers, or null."""


class GradientError(AssertionError):
    """Gradients are not what they should be; the message is the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Row:
    """What one check found of one tensor."""

    name: str
    """The parameter or input whose gradient it is, such as ``fc1.weight`` or ``input[0]``; empty for what concerns the
    target as a whole."""
    check: str = ""
    verdict: str = OK
    """"ok", "fails", "error" (the check did not get to its end), "left out" or "does not apply"."""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    error_ulps: float | None = None
    """The largest error, in units in the last place of the dtype at the size of the terms that the entry sums up."""
    error_relative: float | None = None
    """The largest error next to the largest entry of the right gradient."""
    torch_ulps: float | None = None
    """The error in ulps of autograd's own gradient of the same forward in this dtype, where it was measured."""
    where: tuple[int, ...] | None = None
    """The index of the largest error."""
    hint: str = ""
    """What is wrong and which correction would make it right; or why it was left out; or what is worth knowing."""
    subject: str = ""
    """In a matrix the rule, layer or target that it is about; and which sample of it."""
    sample: str = ""
    kind: str = ""
    """The kind of what is wrong: "value", "robustness" or "advice"."""
    compares: bool = False
    """Whether the gradient was compared with a right one."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict not in (FAILS, ERROR)

    @property
    def ulps(self) -> float | None:
        """Short for ``error_ulps``."""
        return self.error_ulps

    def __str__(self) -> str:
        about = " ".join(part for part in (self.name, self.dtype) if part)
        error = "" if self.error_ulps is None else f" by {figure(self.error_ulps)} ulp"
        if self.where:
            error += f" at [{', '.join(map(str, self.where))}]"
        verdict = self.verdict if self.ok or self.kind in ("", VALUE) else f"{self.verdict} ({self.kind})"
        said = f"{self.check}: {about + ': ' if about else ''}{verdict}{error}{'; ' if self.hint else ''}"
        return visible(said + " ".join(self.hint.split()))


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`verify` found. ``print(report)`` shows a table: what is wrong first, then a line for each check."""

    target: str
    rows: tuple[Row, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """What holds for all rows, such as that the reference are finite differences."""
    strict: bool = False
    """Whether findings that are no wrong values count, too."""

    @property
    def verdict(self) -> str:
        """ "correct"; "wrong", a value is; or "not verified", no comparison of values ran to its end."""
        if any(not row.ok and row.kind in ("", VALUE) for row in self.rows):
            return "wrong"
        return "correct" if self._is_verified() else "not verified"

    def _is_verified(self) -> bool:
        return any(row.compares and row.verdict == OK for row in self.rows)

    @property
    def values_ok(self) -> bool:
        """Whether values were compared, and none is wrong."""
        return self.verdict == "correct"

    @property
    def ok(self) -> bool:
        """The same; and, if ``strict``, whether nothing else was found."""
        return self.values_ok and not (self.strict and self.failures)

    @property
    def sign(self) -> str:
        """✓, ✗, or ? where nothing was verified."""
        return "✓" if self.ok else "?" if self.verdict == "not verified" else "✗"

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that say what is wrong: wrong values, then robustness, then advice."""
        return tuple(sorted((row for row in self.rows if not row.ok), key=lambda row: KINDS.index(row.kind or VALUE)))

    @property
    def findings(self) -> tuple[tuple[Row, ...], ...]:
        """The failures by their cause: of each the row that shows it first, and those that follow from it.

        A tensor whose gradient is wrong at the inputs as they are is wrong in most other checks as well.
        """
        causes: dict[Any, list[Row]] = {}
        wrong = {row.name: row for row in reversed(self.failures) if row.kind in ("", VALUE)}
        for row in self.failures:
            follows = row.name in wrong or (not row.name and wrong)
            kind = VALUE if follows else row.kind or VALUE
            name = row.name if row.name in wrong or not follows else next(iter(reversed(wrong)))
            causes.setdefault((kind, name) if kind == VALUE else (kind, row.check, row.hint), []).append(row)
        return tuple(map(tuple, causes.values()))

    def raise_for_status(self) -> None:
        """Do nothing if all is well.

        Raises:
            GradientError: something is not; the message is the report.
        """
        if not self.ok:
            raise GradientError(self)

    def worst(self, n: int = 5) -> tuple[Row, ...]:
        """The n rows that are furthest off: what is wrong first, then by the error in ulps."""

        def badness(row: Row) -> tuple[int, float]:
            ulps = row.error_ulps
            rank = 0 if row.ok else len(KINDS) - KINDS.index(row.kind or VALUE)
            return rank, -1.0 if ulps is None else math.inf if math.isnan(ulps) else ulps

        return tuple(sorted(self.rows, key=badness, reverse=True)[:n])

    def counts(self) -> dict[str, int]:
        """How many rows have each verdict."""
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, as it is in JSON: a number that is not finite is null, and stands by its name under
        ``not_finite``."""
        rows = [_with_numbers(asdict(row)) for row in self.rows]
        about = {"schema": SCHEMA, "target": self.target, "ok": self.ok, "verdict": self.verdict}
        about |= {"strict": self.strict, "torch": str(torch.__version__), "seconds": self.seconds}
        return {**about, "counts": self.counts(), "notes": list(self.notes), "rows": rows}

    def to_json(self) -> str:
        """The report as JSON, in which what is a number is a number or null."""
        return as_json(self.as_dict())

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The columns and the cells: of each check what is wrong, or the largest error of all tensors."""
        columns = ["check", "tensor", "dtype", "error in ulp", "torch's", "relative", "where", "verdict", "hint"]
        cells: list[list[str]] = []
        for check in dict.fromkeys(row.check for row in self.rows):
            of_check = [row for row in self.rows if row.check == check]
            cells += map(_cells, _grouped(of_check))
        return columns, cells

    def __str__(self) -> str:
        columns, cells = self.table()
        widths = [max(len(line[i]) for line in (columns, *cells)) for i in range(len(columns) - 1)]
        lines = [
            "  ".join([*(f"{c:<{w}}" for c, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
            for line in (columns, *cells)
        ]
        return "\n".join([*self._said_first(), *lines, "", *map(visible, self.notes), self.summary()])

    def _said_first(self) -> list[str]:
        """Each cause in a line, which is what a test's summary shows of the report."""
        lines = []
        for first, *others in self.findings:
            checks = list(dict.fromkeys(row.check for row in others if row.check != first.check))
            more = f" (seen in {', '.join(checks[:4])}{' …' if checks[4:] else ''}, too)" if checks else ""
            lines.append(f"{first}{more}")
        return [*lines, ""] if lines else []

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def _repr_html_(self) -> str:
        from torch_manualbp import _html  # notebooks alone ask for it

        columns, cells = self.table()
        verdicts = [line[columns.index("verdict")] for line in cells]
        kinds = ["fails" if verdict in (FAILS, ERROR) else "" for verdict in verdicts]
        numbers = {columns.index(name) for name in ("error in ulp", "torch's", "relative")}
        return _html.section(
            _html.paragraph(f"{self.sign} {self.summary()}", "ok" if self.ok else "fails"),
            *map(_html.paragraph, filter(None, self._said_first())),
            _html.table(columns, cells, numbers, kinds=kinds),
            *(_html.paragraph(note, "soft") for note in self.notes),
        )

    def summary(self) -> str:
        """One line: whether it passed, and the counts."""
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.counts().items() if n)
        counts = counts or "nothing ran"
        kinds = [first.kind for first, *_ in self.findings]
        beside = [f"{kinds.count(kind)} of {kind}" for kind in (ROBUSTNESS, ADVICE) if kind in kinds]
        verdict = {"wrong": "WRONG", "not verified": "NOT VERIFIED"}.get(self.verdict, self.verdict)
        found = f", findings: {', '.join(beside)}" if beside else ""
        return f"{visible(self.target)}: {verdict}{found} ({counts}; {self.seconds:.2f} s)"


def _with_numbers(row: dict[str, Any]) -> dict[str, Any]:
    lost = {name: str(row[name]) for name in NUMBERS if row[name] is not None and not math.isfinite(row[name])}
    lists = {name: list(value) for name, value in row.items() if isinstance(value, tuple)}
    return {**row, **dict.fromkeys(lost), **lists, "not_finite": lost}


def _grouped(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Each failure by itself; what is well together, as are those of one verdict for one reason."""
    for row in rows:
        if not row.ok:
            yield [row]
    alike: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.ok:
            alike.setdefault((row.verdict, row.hint, row.dtype), []).append(row)
    yield from alike.values()


def _cells(rows: Sequence[Row]) -> list[str]:
    worst = max(rows, key=lambda row: -1.0 if row.error_ulps is None else row.error_ulps)
    names = list(dict.fromkeys(row.name for row in rows if row.name))
    name = worst.name if len(names) <= 1 else f"{worst.name or names[0]} and {len(names) - 1} more"
    where = "" if not worst.where or worst.error_ulps == 0 else f"[{', '.join(map(str, worst.where))}]"
    figures = [worst.error_ulps, worst.torch_ulps, worst.error_relative]
    shown = ["" if value is None else figure(value) for value in figures]
    cells = [worst.check, name, worst.dtype, *shown, where, worst.verdict, " ".join(worst.hint.split())]
    return list(map(visible, cells))


def figure(value: float) -> str:
    """A number in a few digits."""
    return "0" if value == 0 else f"{value:.2f}" if 0.01 <= value < 1000 else f"{value:.1e}"
