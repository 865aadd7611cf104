"""Hold the gradients of every layer of a model, of its loss and of the whole, against autograd in float64, and the
whole loss against finite differences.

  torch-manualbp verify-model my_package.models:net --input "randn(8, 4)" --target "zeros(8, 1)"
  torch-manualbp verify-model ./net.py:Net --input "randn(8, 4)" --target "randint(3, (8,))" --loss CrossEntropyLoss

After the colon stands a name in that module, or a call of one with literal arguments: a model, its class, or a function
that returns it. The exit status is 1 if a value is wrong (with --strict, if anything was found), and 2 if nothing could
be compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from torch_manualbp._objects import (
    RefusedError,
    add_data,
    add_model,
    data_named,
    loss_named,
    model_named,
    where_python_looks,
)
from torch_manualbp.verify.command import add_judgement, finish
from torch_manualbp.verify.models import verify_model

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp verify-model``."""
    add_model(parser, "MSELoss")
    add_data(parser)
    parser.add_argument("--layer", action="append", metavar="PATH", help="only this layer, and others named so")
    add_judgement(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")


def main(options: argparse.Namespace) -> int:
    """Verify and print. Returns 0, 1 if something is wrong, 2 if nothing could be compared, or is not there."""
    torch.manual_seed(options.seed)
    try:
        with where_python_looks():
            model = model_named(options.model)
            loss = loss_named(options.loss)
        inputs, target = data_named(options.input, options.target, model)
        report = verify_model(
            model,
            inputs,
            target,
            loss,
            layers=options.layer,
            checks=options.check,
            leave_out=options.leave_out,
            budget_s=options.budget,
            kinks=options.kinks,
            strict=options.strict,
            own_process=options.own_process,
            seed=options.seed,
        )
    except (RefusedError, ValueError, TypeError) as error:
        print(f"torch-manualbp verify-model: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return finish(report, options.json)
