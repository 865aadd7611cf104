"""Write a page that shows the backpropagation of a model: one HTML file, which asks for nothing from anywhere.

  torch-manualbp report "torch_manualbp.nn:Sequential(Linear(4, 2), Sigmoid(), Linear(2, 1))" \\
    --input "tensor([[1, 0.5, -1, 2]])" --target "ones(1, 1)" --output report.html
  torch-manualbp report my_package.models:Net --input "randn(32, 784)" --target "randint(10, (32,))" \\
    --loss CrossEntropyLoss --optimizer "Adam(lr=0.01)" --history run.json --verify

A chain of layers of up to 200 neurons is drawn neuron by neuron; of a larger model the layers are shown. After the
colon stands a name in that module, or a call of one with literal arguments: a model, its class, or a function that
returns it. Inputs and target are made of numbers and the functions of torch that make tensors, with the model's dtype
for numbers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from torch_manualbp._objects import (
    RefusedError,
    add_data,
    add_model,
    data_named,
    loss_named,
    model_named,
    optimizer_named,
    where_python_looks,
)
from torch_manualbp._text import one_line
from torch_manualbp.insight.page.make import report

__all__ = ["add_arguments", "main"]

MOST_BYTES = 256 * 2**20
"""The size of a history at most; what has no end, such as ``/dev/zero``, has more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp report``."""
    add = parser.add_argument
    add_model(parser, "MSELoss")
    add_data(parser)
    add("--optimizer", default="SGD(lr=0.1)", metavar="OPTIMIZER", help="of torch.optim (default: SGD(lr=0.1))")
    add("--history", type=Path, metavar="FILE", help="the statistics of a run, as JSON")
    add("--verify", action="store_true", help="verify the gradients, too, and show what was found")
    add("--samples", type=int, default=8, metavar="N", help="how many samples are shown one by one (default: 8)")
    add("--title", metavar="TEXT", help="of the page")
    add("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)")


def main(options: argparse.Namespace) -> int:
    """Write the page; 1 if the model does not run, 2 if the arguments name what is not there."""
    torch.manual_seed(options.seed)
    try:
        with where_python_looks():
            model = model_named(options.model)
            loss = loss_named(options.loss)
            optimizer = optimizer_named(options.optimizer, model)
        inputs, target = data_named(options.input, options.target, model)
        path = report(
            model,
            loss,
            inputs,
            target,
            options.output,
            optimizer=optimizer,
            verification=options.verify,
            history=None if options.history is None else _history(options.history),
            title=options.title,
            samples=options.samples,
        )
    except (RefusedError, ValueError) as error:
        return _say(" ".join(str(error).split()), 2)
    except OSError:
        raise  # the command line says it
    except Exception as error:  # whatever the user's model raises
        return _say(f"{options.model} and {options.loss} do not take these inputs: {one_line(error)}", 1)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB")
    return 0


def _history(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"argument --history: {path} is not JSON: {one_line(error)}") from error


def _say(message: str, status: int) -> int:
    print(f"torch-manualbp report: {message}", file=sys.stderr)
    return status
