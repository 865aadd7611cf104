"""What verification found: a row for each tensor and check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torch_manualbp._text import as_json, visible, with_words

__all__ = ["GradientError", "Report", "Row"]

OK, FAILS, ERROR, LEFT_OUT, DOES_NOT_APPLY = VERDICTS = ("ok", "fails", "error", "left out", "does not apply")


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
        said = f"{self.check}: {about + ': ' if about else ''}{self.verdict}{error}{'; ' if self.hint else ''}"
        return visible(said + " ".join(self.hint.split()))


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`verify` found. ``print(report)`` shows a table: what is wrong first, then a line for each check."""

    target: str
    rows: tuple[Row, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """What holds for all rows, such as that the reference are finite differences."""

    @property
    def ok(self) -> bool:
        """Whether no check failed or crashed."""
        return all(row.ok for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that say what is wrong."""
        return tuple(row for row in self.rows if not row.ok)

    def raise_for_status(self) -> None:
        """Do nothing if all is well.

        Raises:
            GradientError: something is not; the message is the report.
        """
        if not self.ok:
            raise GradientError(self)

    def worst(self, n: int = 5) -> tuple[Row, ...]:
        """The n rows that are furthest off: what is wrong first, then by the error in ulps."""

        def badness(row: Row) -> tuple[bool, float]:
            ulps = row.error_ulps
            return not row.ok, -1.0 if ulps is None else math.inf if math.isnan(ulps) else ulps

        return tuple(sorted(self.rows, key=badness, reverse=True)[:n])

    def counts(self) -> dict[str, int]:
        """How many rows have each verdict."""
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, as it is in JSON."""
        rows = [with_words(asdict(row)) for row in self.rows]
        about = {"target": self.target, "ok": self.ok, "torch": str(torch.__version__), "seconds": self.seconds}
        return {**about, "counts": self.counts(), "notes": list(self.notes), "rows": rows}

    def to_json(self) -> str:
        """The report as JSON; numbers that are not finite are the words ``"nan"``, ``"inf"`` and ``"-inf"``."""
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
        return "\n".join([*lines, "", *map(visible, self.notes), self.summary()])

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def _repr_html_(self) -> str:
        from torch_manualbp import _html  # notebooks alone ask for it

        columns, cells = self.table()
        verdicts = [line[columns.index("verdict")] for line in cells]
        kinds = ["fails" if verdict in (FAILS, ERROR) else "" for verdict in verdicts]
        numbers = {columns.index(name) for name in ("error in ulp", "torch's", "relative")}
        summary = _html.paragraph(f"{'✓' if self.ok else '✗'} {self.summary()}", "ok" if self.ok else "fails")
        return _html.section(
            summary, *map(_html.paragraph, self.notes), _html.table(columns, cells, numbers, kinds=kinds)
        )

    def summary(self) -> str:
        """One line: whether it passed, and the counts."""
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.counts().items() if n)
        target = visible(self.target)
        return f"{target}: {'correct' if self.ok else 'WRONG'} ({counts or 'nothing ran'}; {self.seconds:.2f} s)"


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
