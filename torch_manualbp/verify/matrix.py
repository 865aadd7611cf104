"""A matrix of subjects and claims: a row for each rule, layer or target, a column for each check."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch

from torch_manualbp._objects import RefusedError, data, where_python_looks
from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import write
from torch_manualbp._text import visible
from torch_manualbp.catalogue import CATALOGUE, Operation
from torch_manualbp.verify import contract
from torch_manualbp.verify.case import cases
from torch_manualbp.verify.check import Check, named, outcomes
from torch_manualbp.verify.checks import FOR_A_MATRIX
from torch_manualbp.verify.command import target_named
from torch_manualbp.verify.report import DOES_NOT_APPLY, OK, Report, Row
from torch_manualbp.verify.restore import undisturbed
from torch_manualbp.verify.subject import Subject
from torch_manualbp.verify.surroundings import CHECKS, Layer, distributed, layers
from torch_manualbp.verify.trial import Target

__all__ = ["Matrix", "add_arguments", "contract_matrix", "main", "surroundings_matrix", "target_matrix"]

PASS, FAIL = "✓", "✗"


class Matrix(Report):
    """What some checks found of some rules, layers or targets.

    ``print(matrix)`` shows a row for each subject and a column for each check (of four subjects or fewer, the other way
    round): ✓ holds on every sample, ✗ fails on one, and a letter for each reason why the check, or beside ✓ a part
    of it, does not apply. The reasons stand below.
    """

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.subject for row in self.rows))

    @property
    def checks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.check for row in self.rows))

    @property
    def reasons(self) -> dict[str, str]:
        """The letter of each reason why something does not apply, in the order of the rows."""
        found = dict.fromkeys(row.hint for row in self.rows if row.verdict == DOES_NOT_APPLY)
        return {reason: _letters(i) for i, reason in enumerate(found)}

    def _is_verified(self) -> bool:
        """Each check of a matrix is a claim of its own, of values or not: one that holds is verified."""
        return any(row.verdict == OK for row in self.rows)

    def cell(self, subject: str, check: str) -> str:
        """✓, ✗ or the letters of the reasons; empty where the check did not run."""
        return self._cells()[subject, check]

    def as_dict(self) -> dict[str, Any]:
        rows = [{n: getattr(r, n) for n in ("subject", "sample", "check", "verdict", "hint")} for r in self.rows]
        return {"ok": self.ok, "torch": str(torch.__version__), "counts": self.counts(), "rows": rows}

    def __str__(self) -> str:
        cells, names, subjects = self._cells(), self.checks, self.subjects
        if len(subjects) <= 4:
            lines = [["", *subjects], *([name, *(cells[s, name] for s in subjects)] for name in names)]
            return "\n".join([*_aligned(lines), "", *self._legend()])
        lines = [
            ["", *(str(n + 1) for n in range(len(names)))],
            *([s, *(cells[s, n] for n in names)] for s in subjects),
        ]
        numbered = [f"{n:>3}  {name}" for n, name in enumerate(names, start=1)]
        return "\n".join([*numbered, "", *_aligned(lines), "", *self._legend()])

    def to_markdown(self) -> str:
        """The matrix as a table of Markdown, the names of the numbered checks and the reasons below it."""
        cells, names = self._cells(), self.checks
        lines = ["| subject | " + " | ".join(str(n + 1) for n in range(len(names))) + " |"]
        lines.append("| --- |" + " :-: |" * len(names))
        lines += [f"| `{s}` | " + " | ".join(cells[s, name] for name in names) + " |" for s in self.subjects]
        lines += ["", *(f"{n}. {name}" for n, name in enumerate(names, start=1))]
        return "\n".join([*lines, "", *(f"- {line}" for line in self._legend()), ""])

    def _repr_html_(self) -> str:
        from torch_manualbp import _html  # notebooks alone ask for it

        cells, subjects, checks = self._cells(), self.subjects, self.checks
        of_few = len(subjects) <= 4
        lines, columns = (checks, subjects) if of_few else (subjects, checks)
        rows = [[line, *(cells[(c, line) if of_few else (line, c)] for c in columns)] for line in lines]
        kinds = ["fails" if FAIL in row else "" for row in rows]
        turned = () if of_few else range(1, len(columns) + 1)
        legend = [_html.paragraph(line, "fails" if line.startswith(FAIL) else "soft") for line in self._legend()]
        return _html.section(_html.table(["", *columns], rows, turned=turned, kinds=kinds), *legend)

    def _cells(self) -> dict[tuple[str, str], str]:
        reasons = self.reasons
        found: dict[tuple[str, str], list[Row]] = {(s, c): [] for s in self.subjects for c in self.checks}
        for row in self.rows:
            found[row.subject, row.check].append(row)
        return {where: _cell(rows, reasons) for where, rows in found.items()}

    def _legend(self) -> Iterator[str]:
        yield f"{PASS} holds, {FAIL} fails; a letter says why a check, or beside {PASS} a part of it, does not apply:"
        yield from (f"{letter}  {visible(reason)}" for reason, letter in self.reasons.items())
        yield ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items() if count)
        yield from (f"{FAIL} {' '.join(filter(None, (row.subject, row.sample)))}: {row}" for row in self.failures)


def _cell(rows: Sequence[Row], reasons: dict[str, str]) -> str:
    if not all(row.ok for row in rows):
        return FAIL
    letters = sorted({reasons[r.hint] for r in rows if r.verdict == DOES_NOT_APPLY}, key=lambda x: (len(x), x))
    return (PASS if any(row.verdict == OK for row in rows) else "") + ",".join(letters)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        " ".join([f"{first:<{widths[0]}}", *(f"{c:^{w}}" for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for first, *rest in lines
    ]


def _letters(i: int) -> str:
    """a, b, …, z, aa, ab, …"""
    high, low = divmod(i, 26)
    return (_letters(high - 1) if high else "") + ascii_lowercase[low]


def contract_matrix(
    entries: Iterable[Operation] = CATALOGUE,
    checks: Iterable[str | Check] | None = None,
    *,
    all_samples: bool = False,
) -> Matrix:
    """Hold every rule of a catalogue to the contract.

    Args:
        entries: the rules, each with its torch twin and its samples.
        checks: names of the checks to run; by default all of ``contract.CHECKS``.
        all_samples: whether also torch.compile, at about a second a sample, runs on more than each rule's first.
    """
    chosen = [contract.check(c) if isinstance(c, str) else c for c in checks or contract.CHECKS]

    def rows() -> Iterator[Row]:
        for entry in entries:
            for key in entry.exempt:
                contract.check_of_exemption(entry, key)
            of_rule = list(cases([entry]))
            for c in chosen:
                for case in of_rule if all_samples or not c.slow else of_rule[:1]:
                    yield from outcomes(c, case)

    return _matrix("rules", rows())


def surroundings_matrix(
    table: Sequence[Layer] | None = None, checks: Iterable[Check] = CHECKS, *, two_processes: bool = True
) -> Matrix:
    """Hold every layer of ours to torch's in all surroundings, those of two processes included if asked.

    Args:
        table: the layers; by default every one of ours. Those of two processes are of the default table always.
    """

    def rows() -> Iterator[Row]:
        for layer in layers(table):
            for check in checks:
                yield from outcomes(check, layer)
        if two_processes:
            for found in distributed.run_in_two_processes():
                yield from found

    return _matrix("layers", rows())


def target_matrix(trial: Target, checks: Iterable[Check] = FOR_A_MATRIX) -> Matrix:
    """Hold a Function, a module or a callable to what a rule owes, as far as that can be claimed of it."""
    few = trial.shrunk()
    return _matrix(trial.subject.name, (row for check in checks for row in outcomes(check, few)))


def _matrix(name: str, rows: Iterable[Row]) -> Matrix:
    start = time.perf_counter()
    with _one_thread(), undisturbed():
        return Matrix(name, tuple(rows), time.perf_counter() - start)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are tiny, which several threads make slower: ten minutes for one, on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp matrix``."""
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        metavar="package.module:NAME",
        help="a catalogue of your own, by default this package's; with --input a Function, a module or a callable",
    )
    add("--input", action="append", metavar="EXPRESSION", help='of a target, such as "randn(8, 16)"; again for each')
    add("--layers", action="store_true", help="hold the layers to torch's in their surroundings instead")
    add("--rule", action="append", metavar="NAME", help="run this rule alone (may be repeated)")
    add("--check", action="append", metavar="NAME", help="run this check alone (may be repeated)")
    add("--all-samples", action="store_true", help="compile every sample, at about a second each")
    add("--json", type=Path, metavar="FILE", help="write every outcome to this file")
    add("--markdown", type=Path, metavar="FILE", help="write the table to this file")


def main(args: argparse.Namespace) -> int:
    """Print the matrix; 0 if nothing failed and something held, 1 if not, 2 if the arguments name what is not there."""
    args.interrupted = False
    try:
        matrix = _asked_for(args)
    except (RefusedError, ValueError, TypeError, ImportError) as error:
        print(f"torch-manualbp matrix: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(matrix)
    if args.json is not None:
        write(args.json, matrix.to_json() + "\n")
    if args.markdown is not None:
        write(args.markdown, matrix.to_markdown())
    return INTERRUPTED if args.interrupted else 0 if matrix.ok else 1


def _asked_for(args: argparse.Namespace) -> Matrix:
    if args.layers:
        if args.target or args.rule or args.check or args.all_samples or args.input:
            raise ValueError("--layers takes all layers and checks, and no catalogue")
        return surroundings_matrix()
    if args.input:
        if args.target is None or args.rule or args.all_samples:
            raise ValueError("--input is of a target: write package.module:Thing, and no rule")
        with where_python_looks():
            target = target_named(args.target)
        trial = Target(Subject(target, [data("--input", text) for text in args.input]))
        return target_matrix(trial, named(FOR_A_MATRIX, args.check) if args.check else FOR_A_MATRIX)
    entries = _catalogue(args.target)
    if args.rule:
        known = {e.name for e in entries}
        if unknown := [name for name in args.rule if name not in known]:
            raise ValueError(f"no rule is named {unknown[0]!r}; there are: {', '.join(sorted(known))}")
        entries = [e for e in entries if e.name in args.rule]
    rows: list[Row] = []
    start = time.perf_counter()
    with Counted(entries, "matrix", lambda entry: entry.name) as todo:
        for entry in todo:
            rows += contract_matrix([entry], args.check, all_samples=args.all_samples).rows
    args.interrupted = todo.interrupted
    return Matrix("rules", tuple(rows), time.perf_counter() - start)


def _catalogue(where: str | None) -> Sequence[Operation]:
    if where is None:
        return CATALOGUE
    module_name, _, name = where.partition(":")
    if not name:
        raise ValueError(f"{where!r} names no catalogue; write package.module:NAME")
    with where_python_looks():
        catalogue = getattr(importlib.import_module(module_name), name, None)
    if not isinstance(catalogue, list | tuple) or not all(isinstance(e, Operation) for e in catalogue):
        raise ValueError(f"{where!r} is no list or tuple of Operation; of a target write its --input, too")
    return catalogue
