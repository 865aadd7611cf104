"""The command line: ``torch-manualbp``, or ``python -m torch_manualbp``.

A command is a line of ``COMMANDS`` and a module with ``add_arguments(parser)`` and ``main(options) -> status``, which
is imported when the command is run.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch_manualbp import __version__
from torch_manualbp._files import check_writable, is_to_be_lost
from torch_manualbp._output import discard_output
from torch_manualbp._text import one_line

__all__ = ["main"]

PROGRAM = "torch-manualbp"

COMMANDS: dict[str, tuple[str, str]] = {  # the words: the module, what it does
    "derive": ("torch_manualbp.derive.command", "print a model's training step as a program without autograd"),
    "verify": ("torch_manualbp.verify.command", "verify the gradients of a module, a Function or a callable"),
    "verify-model": ("torch_manualbp.verify.model_command", "verify the gradients of every layer of a model"),
    "explain": ("torch_manualbp.insight.explanation.command", "say why the gradient of one weight is what it is"),
    "report": ("torch_manualbp.insight.page.command", "write a page that shows the backpropagation of a model"),
    "bench insight": ("torch_manualbp.bench.insight", "time what the statistics of a run cost"),
    "bench kernels": ("torch_manualbp.bench.kernels", "time formulas as they stand, in blocks, compiled, by kernels"),
    "bench layers": ("torch_manualbp.bench.layers", "time the layers against stock torch.nn"),
    "bench lightning": ("torch_manualbp.bench.under_lightning", "time training steps under Lightning's Trainer"),
    "bench step": ("torch_manualbp.bench.step", "time a training step against stock PyTorch"),
    "bench verify": ("torch_manualbp.bench.verification", "time the verification of gradients"),
    "layers": ("torch_manualbp.layers", "print the layers with their formulas"),
    "matrix": ("torch_manualbp.verify.matrix", "hold rules and layers, or a target of yours, to the contract"),
    "accuracy": ("torch_manualbp.verify.accuracy", "measure the error of every rule next to torch's, in ulps"),
}

GROUPS = {"bench": "time what this package does"}
"""What the first words of commands of two words have in common."""


FILES = ("json", "markdown", "output")
"""Options that name a file to be written."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, which a page of usage would bury."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 if it found or hit what is wrong, 2 for what it does not take, 130
    if interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A console of another encoding could not print δ, and none a lone surrogate.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    command, rest = _command(arguments)
    try:
        status = _run(command, rest)
    except BrokenPipeError:  # nobody reads on
        status = 1
    except KeyboardInterrupt:
        status = _say(command, "interrupted", 130)
    except (ImportError, OSError) as error:
        status = _say(command, error, 1)
    except Exception as error:
        if sys.flags.dev_mode:  # python -X dev
            raise
        status = _say(command, one_line(error), 1)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # a full disk; the interpreter would try once more at its end
        discard_output()
        return status if status or isinstance(error, BrokenPipeError) else _say(command, error, 1)
    return status


def _run(command: str, arguments: Sequence[str]) -> int:
    module_name, does = COMMANDS[command]
    module: Any = importlib.import_module(module_name)
    parser = Parser(
        prog=f"{PROGRAM} {command}",
        description=module.__doc__ or does,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    files = [action for action in parser._actions if action.dest in FILES]
    if files:
        parser.add_argument("--force", action="store_true", help="write over a file that exists")
    options = parser.parse_args(arguments)
    given = {action.option_strings[0]: getattr(options, action.dest) for action in files}
    refusal = _refusal_of_files({option: path for option, path in given.items() if path is not None}, options)
    if refusal is not None:
        return _say(command, refusal, 2)
    try:
        status: int = module.main(options)
    except SystemExit as exit:  # of code of the user's, which is not to say that all is well
        return _say(command, one_line(exit), 1)
    return status


def _say(command: str, what: object, status: int) -> int:
    print(f"{PROGRAM} {command}: {' '.join(str(what).split())}", file=sys.stderr)
    return status


def _refusal_of_files(given: Mapping[str, Path], options: argparse.Namespace) -> str | None:
    """What is said before any work where a file would be lost.

    Raises:
        OSError: one cannot be written.
    """
    for option, path in given.items():
        check_writable(path, make_folder=True)
        if is_to_be_lost(path) and not options.force:
            return f"argument {option}: {path} exists; --force writes over it"
    if len(set(map(os.path.realpath, given.values()))) < len(given):
        return f"arguments {' and '.join(given)}: these are one file"
    return None


def _command(arguments: Sequence[str] | None) -> tuple[str, list[str]]:
    """Which command is meant, and what is left for it to read."""
    description = "Explicit backpropagation for PyTorch. Each command has its own --help."
    parser = Parser(prog=PROGRAM, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    first = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    groups: dict[str, Any] = {}
    for command, (_, does) in COMMANDS.items():
        group, _, word = command.rpartition(" ")
        if group and group not in groups:
            of_group = first.add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
            groups[group] = of_group.add_subparsers(metavar="command", required=True, parser_class=Parser)
        # What follows, --help included, is the command's own to read.
        leaf = (groups[group] if group else first).add_parser(word, help=does, add_help=False, allow_abbrev=False)
        leaf.set_defaults(command=command)
    options, rest = parser.parse_known_args(arguments)
    return options.command, rest
