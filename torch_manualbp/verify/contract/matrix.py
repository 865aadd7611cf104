"""The matrix of the contract: a row for each rule, a column for each check."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase

import torch

from torch_manualbp._tables import write
from torch_manualbp.catalogue import CATALOGUE, Operation
from torch_manualbp.verify.contract.case import Case, cases
from torch_manualbp.verify.contract.check import CHECKS, Check, Outcome, check, check_of_exemption, run

__all__ = ["Matrix", "add_arguments", "contract_matrix", "main"]

PASS, FAIL = "✓", "✗"


@dataclass(frozen=True)
class Matrix:
    """What the contract's checks found of some rules.

    ``print(matrix)`` shows a row for each rule and a column for each check (of four rules or fewer, the other way
    round): ✓ passed on every sample, ✗ failed on one, and a letter for each reason why the check, or beside ✓ a part
    of it, does not apply. The reasons stand below.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o.rule for o in self.outcomes))

    @property
    def checks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o.check for o in self.outcomes))

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if o.verdict == "fail")

    @property
    def reasons(self) -> dict[str, str]:
        """The letter of each reason why something does not apply, in the order of the rows."""
        found = [r for o in self.outcomes if o.verdict != "fail" for r in o.reasons]
        return {reason: _letters(i) for i, reason in enumerate(dict.fromkeys(found))}

    def counts(self) -> dict[str, int]:
        """How many runs of a check on a sample passed, failed and do not apply."""
        return {v: sum(o.verdict == v for o in self.outcomes) for v in ("pass", "fail", "does not apply")}

    def cell(self, rule: str, check: str) -> str:
        """✓, ✗ or the letters of the reasons; empty where the check did not run."""
        here = [o for o in self.outcomes if o.rule == rule and o.check == check]
        return _cell(here, self.reasons)

    def raise_for_status(self) -> None:
        """Raise AssertionError with every failure, if there is one."""
        if self.failures:
            raise AssertionError("\n".join(_failure(o) for o in self.failures))

    def __str__(self) -> str:
        if len(self.rules) <= 4:
            return self._downwards()
        rows = self._rows()
        width = max(map(len, self.rules), default=0)
        columns = [max(map(len, (str(n), *(cells[n - 1] for _, cells in rows)))) for n, _ in self._numbered()]
        lines = [f"{n:>3}  {name}" for n, name in self._numbered()]
        lines.append("")
        header = [f"{n:^{w}}" for (n, _), w in zip(self._numbered(), columns, strict=True)]
        lines.append(" ".join([" " * width, *header]).rstrip())
        for rule, cells in rows:
            padded = [f"{cell:^{w}}" for cell, w in zip(cells, columns, strict=True)]
            lines.append(" ".join([f"{rule:<{width}}", *padded]).rstrip())
        lines += ["", *self._legend()]
        return "\n".join(lines)

    def _downwards(self) -> str:
        """A few rules side by side, a line for each check."""
        rows = self._rows()
        width = max(map(len, self.checks), default=0)
        lines = [" ".join([" " * width, *self.rules]).rstrip()]
        for n, name in self._numbered():
            cells = [f"{cells[n - 1]:<{len(rule)}}" for rule, cells in rows]
            lines.append(" ".join([f"{name:<{width}}", *cells]).rstrip())
        return "\n".join([*lines, "", *self._legend()])

    def to_markdown(self) -> str:
        """The matrix as a table of Markdown, the names of the numbered checks and the reasons below it."""
        lines = ["| rule | " + " | ".join(str(n) for n, _ in self._numbered()) + " |"]
        lines.append("| --- |" + " :-: |" * len(self.checks))
        lines += [f"| `{rule}` | " + " | ".join(cells) + " |" for rule, cells in self._rows()]
        lines += ["", *(f"{n}. {name}" for n, name in self._numbered())]
        return "\n".join([*lines, "", *(f"- {line}" for line in self._legend()), ""])

    def to_json(self) -> str:
        """Every outcome, and the counts."""
        return json.dumps(
            {"ok": self.ok, "counts": self.counts(), "outcomes": [asdict(o) for o in self.outcomes]},
            indent=1,
            ensure_ascii=False,
        )

    def _numbered(self) -> list[tuple[int, str]]:
        return list(enumerate(self.checks, start=1))

    def _rows(self) -> list[tuple[str, list[str]]]:
        reasons = self.reasons
        grouped: dict[tuple[str, str], list[Outcome]] = {}
        for o in self.outcomes:
            grouped.setdefault((o.rule, o.check), []).append(o)
        return [(r, [_cell(grouped.get((r, c), []), reasons) for c in self.checks]) for r in self.rules]

    def _legend(self) -> Iterator[str]:
        yield f"{PASS} passed, {FAIL} failed; a letter says why a check, or beside {PASS} a part of it, does not apply:"
        yield from (f"{letter}  {reason}" for reason, letter in self.reasons.items())
        yield ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items())
        yield from (_failure(o) for o in self.failures)


def _cell(here: Sequence[Outcome], reasons: dict[str, str]) -> str:
    if any(o.verdict == "fail" for o in here):
        return FAIL
    letters = sorted({reasons[r] for o in here for r in o.reasons}, key=lambda x: (len(x), x))
    return (PASS if any(o.verdict == "pass" for o in here) else "") + ",".join(letters)


def _failure(o: Outcome) -> str:
    return f"{FAIL} {o.rule}, {o.check}, {o.sample}: {'; '.join(o.reasons)}"


def _letters(i: int) -> str:
    """a, b, …, z, aa, ab, …"""
    high, low = divmod(i, 26)
    return (_letters(high - 1) if high else "") + ascii_lowercase[low]


def contract_matrix(
    entries: Iterable[Operation] = CATALOGUE,
    checks: Iterable[str | Check] | None = None,
    *,
    all_samples: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Matrix:
    """Hold every rule of a catalogue to the contract.

    Args:
        entries: the rules, each with its torch twin and its samples.
        checks: names of the checks to run; by default all of ``CHECKS``.
        all_samples: whether also torch.compile, at about a second a sample, runs on more than each rule's first.
        progress: is called with the name of each rule as it begins.
    """
    chosen = CHECKS if checks is None else tuple(check(c) if isinstance(c, str) else c for c in checks)
    outcomes: list[Outcome] = []
    with _one_thread():
        for entry in entries:
            _refuse_unknown_exemptions(entry)
            if progress is not None:
                progress(entry.name)
            outcomes += _row(entry, chosen, all_samples)
    return Matrix(tuple(outcomes))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are tiny, which several threads make slower: ten minutes for one, on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(entry: Operation, checks: Sequence[Check], all_samples: bool) -> Iterator[Outcome]:
    of_rule: list[Case] = list(cases([entry]))
    for c in checks:
        for case in of_rule if all_samples or not c.slow else of_rule[:1]:
            yield run(c, case)


def _refuse_unknown_exemptions(entry: Operation) -> None:
    for key in entry.exempt:
        check_of_exemption(entry, key)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp matrix``."""
    parser.add_argument(
        "catalogue", nargs="?", help="package.module:NAME of a catalogue of your own; by default this package's"
    )
    parser.add_argument(
        "--layers", action="store_true", help="hold the layers to torch's in their surroundings instead"
    )
    parser.add_argument("--rule", action="append", metavar="NAME", help="run this rule alone (may be repeated)")
    parser.add_argument("--check", action="append", metavar="NAME", help="run this check alone (may be repeated)")
    parser.add_argument("--all-samples", action="store_true", help="compile every sample, at about a second each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to this file")


def main(args: argparse.Namespace) -> int:
    """Print the matrix; 0 if nothing failed, 1 if something did, 2 if the arguments name what is not there."""
    if args.layers:
        if args.catalogue or args.rule or args.check or args.all_samples:
            print("torch-manualbp matrix: --layers takes all layers and checks, and no catalogue", file=sys.stderr)
            return 2
        from torch_manualbp.verify.surroundings import surroundings_matrix  # which builds on this module

        return _finish(surroundings_matrix(), args)
    try:
        entries = _catalogue(args.catalogue)
        if args.rule:
            known = {e.name for e in entries}
            if unknown := [name for name in args.rule if name not in known]:
                raise ValueError(f"no rule is named {unknown[0]!r}; there are: {', '.join(sorted(known))}")
            entries = [e for e in entries if e.name in args.rule]
        chosen = [check(name) for name in args.check] if args.check else None
    except (ValueError, ImportError) as error:
        print(f"torch-manualbp matrix: {error}", file=sys.stderr)
        return 2
    progress = _show_progress if sys.stderr.isatty() else None
    return _finish(contract_matrix(entries, chosen, all_samples=args.all_samples, progress=progress), args)


def _finish(matrix: Matrix, args: argparse.Namespace) -> int:
    print(matrix)
    if args.json is not None:
        write(args.json, matrix.to_json() + "\n")
    if args.markdown is not None:
        write(args.markdown, matrix.to_markdown())
    return 0 if matrix.ok else 1


def _show_progress(rule: str) -> None:
    print(f"\r{rule:<40}", end="", file=sys.stderr, flush=True)


def _catalogue(where: str | None) -> Sequence[Operation]:
    if where is None:
        return CATALOGUE
    module_name, _, name = where.partition(":")
    if not name:
        raise ValueError(f"{where!r} names no catalogue; write package.module:NAME")
    sys.path.insert(0, "")  # as python -m does: the user's module lies in the current directory
    try:
        catalogue = getattr(importlib.import_module(module_name), name, None)
    finally:
        sys.path.remove("")
    if not isinstance(catalogue, list | tuple) or not all(isinstance(e, Operation) for e in catalogue):
        raise ValueError(f"{where!r} is no list or tuple of Operation")
    return catalogue
