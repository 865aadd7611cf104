"""Hold gradients against autograd of the same forward in float64, and look at all that gradcheck does not.

  torch-manualbp verify my_package.ops:MyFunction --input "randn(8, 16)"
  torch-manualbp verify ./ops.py:MyFunction --input "randn(8, 16)" --kwargs dim=0 --reference ./ops.py:right
  torch-manualbp verify "torch_manualbp.nn:Linear(16, 4)" --input "randn(8, 16)" --json report.json
  torch-manualbp verify --self-test

After the colon stands a name in that module, or a call of one with literal arguments: an autograd.Function, a module,
its class, or a callable; an input is made of numbers and the functions of torch that make tensors. The exit status is 1
if a value is wrong (with --strict, if anything was found), and 2 if nothing could be compared. The self-test has this
and torch's own gradcheck look for planted mistakes, and takes a minute or two."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from torch_manualbp._objects import OF_THE_USERS, RefusedError, data, evaluated, seed, where_python_looks
from torch_manualbp._output import print_to_the_end
from torch_manualbp._progress import INTERRUPTED
from torch_manualbp._tables import write
from torch_manualbp._text import one_line
from torch_manualbp.verify.checks import CHECKS
from torch_manualbp.verify.report import Report
from torch_manualbp.verify.self_test import self_test
from torch_manualbp.verify.verifier import BUDGET_S, verify

__all__ = ["add_arguments", "add_judgement", "finish", "main", "target_named"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp verify``."""
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        metavar="package.module:Thing",
        help="or ./file.py:Thing, or ns::operator: what is verified",
    )
    add(
        "--input",
        action="append",
        metavar="EXPRESSION",
        help='such as "randn(8, 16)" or "randint(10, (8,))"; again for each input',
    )
    add(
        "--kwargs",
        action="append",
        default=[],
        metavar="NAME=EXPRESSION",
        help='an input by keyword, such as "dim=0" or "mask=ones(4, 4)"; again for each',
    )
    add("--dtype", choices=("float64", "float32", "bfloat16", "float16"), help="what the target computes in")
    add("--reference", metavar="package.module:name", help="what is differentiated in place of the target's forward")
    add("--batch", type=int, metavar="DIM", help="the dimension of samples that do not see each other")
    add_judgement(parser)
    add("--seed", type=seed, default=0, help="where random numbers start from (default: 0)")
    add("--self-test", action="store_true", help="say which planted mistakes are caught, by this and by gradcheck")
    add("--json", type=Path, metavar="FILE", help="write the report there")


def add_judgement(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is looked at, and what counts."""
    add = parser.add_argument
    add("--kinks", choices=("between", "autograd"), default="between", help="which derivative a kink has")
    names = ", ".join(check.name for check in CHECKS)
    add("--check", action="append", metavar="NAME", help=f"only this check, and others named so: {names}")
    add("--leave-out", action="append", default=[], metavar="NAME", help="not this check")
    add("--budget", type=_seconds, default=BUDGET_S, metavar="SECONDS", help=f"for all of it (default: {BUDGET_S:g})")
    add("--own-process", action="store_true", help="in a process of its own, ended where a kernel does not return")
    add("--strict", action="store_true", help="let findings that are no wrong values count, too")


def main(options: argparse.Namespace) -> int:
    """Verify and print. Returns 0, 1 if something is wrong, 2 if the arguments name what is not there."""
    if options.self_test:
        return _self_test(options)
    try:
        if options.target is None or options.input is None:
            missing = "package.module:Thing" if options.target is None else '--input, such as --input "randn(8, 16)"'
            raise RefusedError(f"what is missing is {missing}; or ask for --self-test")
        with where_python_looks():
            target = target_named(options.target)
            reference = None if options.reference is None else evaluated("--reference", options.reference)
        torch.manual_seed(options.seed)
        inputs = [data("--input", text) for text in options.input]
        keywords = dict(_keyword(text) for text in options.kwargs)
        if options.check and not set(options.check) - set(options.leave_out):
            raise RefusedError("argument --leave-out: no check is left")
        report = verify(
            target,
            *inputs,
            kwargs=keywords,
            reference=reference,
            dtype=None if options.dtype is None else getattr(torch, options.dtype),
            kinks=options.kinks,
            checks=options.check,
            leave_out=options.leave_out,
            batch=options.batch,
            budget_s=options.budget,
            strict=options.strict,
            own_process=options.own_process,
            seed=options.seed,
        )
    except (RefusedError, ValueError, TypeError) as error:
        print(f"torch-manualbp verify: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return finish(report, options.json)


def finish(report: Report, json: Path | None) -> int:
    """Print a report, write it, and return the exit status that it has."""
    _print(report)
    if json is not None:
        write(json, report.to_json() + "\n")
    return 2 if report.verdict == "not verified" else 0 if report.ok else 1


def _keyword(text: str) -> tuple[str, Any]:
    name, equals, expression = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise RefusedError(f"argument --kwargs: {text!r} is not of the form name=expression")
    return name.strip(), data("--kwargs", expression)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _self_test(options: argparse.Namespace) -> int:
    if options.target is not None or options.input is not None:
        print("torch-manualbp verify: argument --self-test: it takes no target and no input", file=sys.stderr)
        return 2
    result = self_test()
    print_to_the_end(f"{result}\n")
    if options.json is not None:
        write(options.json, result.to_json())
    return INTERRUPTED if result.interrupted else 0 if result.ok else 1


def target_named(text: str) -> Any:
    """A Function is its class, a module an object: of its class, or of what returns it, one is made."""
    if "::" in text and ".py:" not in text:
        return text
    target = evaluated("target", text)
    if not isinstance(target, type) or not issubclass(target, Module):
        return target
    try:
        return target()
    except OF_THE_USERS as error:
        raise RefusedError(f"argument target: {text}() raises {one_line(error)}: write its arguments") from error


def _print(report: Report) -> None:
    """Print it, as a table of rich if that is there and seen."""

    def in_colours(text: str) -> None:
        try:
            from torch_manualbp._tables import print_table

            columns, rows = report.table()
            print_table(report.target, columns, rows)
        except ImportError:
            print(text, end="")
        else:
            print(*report.notes, report.summary(), sep="\n")

    print_to_the_end(f"{report}\n", in_colours)
