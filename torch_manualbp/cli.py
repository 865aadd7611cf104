"""The command line: ``torch-manualbp``, or ``python -m torch_manualbp``.

A command is a line of ``COMMANDS`` and a module with ``add_arguments(parser)`` and ``main(options) -> status``, which
is imported when the command is run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from torch_manualbp import __version__

__all__ = ["main"]

PROGRAM = "torch-manualbp"

COMMANDS: dict[str, tuple[str, str]] = {  # the words: the module, what it does
    "derive": ("torch_manualbp.derive.command", "print a model's training step as a program without autograd"),
    "verify": ("torch_manualbp.verify.command", "verify the gradients of a module, a Function or a callable"),
    "explain": ("torch_manualbp.insight.explanation.command", "say why the gradient of one weight is what it is"),
    "report": ("torch_manualbp.insight.page.command", "write a page that shows the backpropagation of a model"),
    "bench insight": ("torch_manualbp.bench.insight", "time what the statistics of a run cost"),
    "bench layers": ("torch_manualbp.bench.layers", "time the layers against stock torch.nn"),
    "bench step": ("torch_manualbp.bench.step", "time a training step against stock PyTorch"),
    "bench verify": ("torch_manualbp.bench.verification", "time the verification of gradients"),
    "matrix": ("torch_manualbp.verify.contract.matrix", "hold every rule and layer to the contract"),
    "accuracy": ("torch_manualbp.verify.accuracy", "measure the error of every rule next to torch's, in ulps"),
}

GROUPS = {"bench": "time what this package does"}
"""What the first words of commands of two words have in common."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, which a page of usage would bury."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 if it found or hit what is wrong, 2 for what it does not take, 130
    if interrupted."""
    command, rest = _command(arguments)
    module_name, does = COMMANDS[command]
    try:
        module: Any = importlib.import_module(module_name)
        parser = Parser(
            prog=f"{PROGRAM} {command}",
            description=module.__doc__ or does,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(parser)
        status: int = module.main(parser.parse_args(rest))
    except (ImportError, OSError) as error:
        print(f"{PROGRAM} {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM} {command}: interrupted", file=sys.stderr)
        return 130
    return status


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
