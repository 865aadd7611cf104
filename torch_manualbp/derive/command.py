"""Print a model's training step without autograd: forward, loss, backward and update, line by line, in formulas.

  torch-manualbp derive "torch_manualbp.nn:Sequential(Linear(784, 128), ReLU(), Linear(128, 10))" --input 64,784
  torch-manualbp derive my_package.models:Net --input 64,3 --loss MSELoss --optimizer AdamW --output step.py

After the colon stands a name in that module, or a call of one with literal arguments: a model, its class, or a function
that returns it. The numbers do not matter: data are zeros; learning rates and the like are arguments of the step."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_manualbp._files import check_writable, write_text
from torch_manualbp._objects import (
    RefusedError,
    add_model,
    loss_named,
    model_named,
    optimizer_named,
    where_python_looks,
)
from torch_manualbp._output import print_to_the_end
from torch_manualbp._text import one_line
from torch_manualbp.derive.listed import operations
from torch_manualbp.derive.step import TrainStep
from torch_manualbp.derive.tape import NotDerivableError

__all__ = ["add_arguments", "main"]

OF_CLASSES = (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss, torch.nn.MultiMarginLoss)
"""Losses whose target are the indices of classes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp derive``."""
    add = parser.add_argument
    add_model(parser, "CrossEntropyLoss")
    shape = "SHAPE[:DTYPE]"
    add(
        "--input",
        action="append",
        required=True,
        metavar=shape,
        help="of a batch, such as 64,784; again for each input",
    )
    add("--target", metavar=shape, help="such as 64:int64 (default: what the loss takes for the model's output)")
    add("--optimizer", default="SGD", metavar="OPTIMIZER", help="of torch.optim, such as 'SGD(momentum=0.9)'")
    add("--program", action="store_true", help="what runs instead of the formulas: memory planned, written in place")
    add("--compile", action="store_true", help="what runs, in the form for torch.compile, which plans memory itself")
    add("--operations", action=_Operations, help="print which functions of torch a step takes, and what it refuses")
    add("--output", type=Path, metavar="FILE", help="write the text to this file instead: it imports torch alone")


class _Operations(argparse.Action):
    """Prints a list, whatever else is given."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=options.get("help"))

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        print_to_the_end(operations())
        parser.exit()


def main(options: argparse.Namespace) -> int:
    """Print or write the step; 1 if there is none, 2 if the arguments name what is not there."""
    if options.output is not None:
        check_writable(options.output)  # before the work of deriving
    try:
        with where_python_looks():
            model = model_named(options.model)
            loss = loss_named(options.loss)
            step = _step(model, loss, optimizer_named(options.optimizer, model), options.compile)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        inputs = tuple(_zeros("--input", text, dtype) for text in options.input)
        target = None if options.target is None else _zeros("--target", options.target, dtype)
    except RefusedError as error:
        return _say(str(error), 2)
    given = ", ".join(map(_form, inputs))
    try:
        if target is None:
            with torch.no_grad():
                target = _target(loss, model(*inputs))
        given += f" and a target {_form(target)}"
        text = step.derive(inputs, target, program=options.program or options.compile)
    except RefusedError as error:
        return _say(str(error), 2)
    except NotDerivableError as error:
        text = str(error)
        return _say(text.replace("\n ", "") if len(error.problems) == 1 else text, 1)
    except Exception as error:
        return _say(f"{options.model} and {options.loss} do not take {given}: {one_line(error)}", 1)
    if options.output is None:
        print_to_the_end(text, _print_in_colours)
    else:
        write_text(options.output, text)
        print(f"{options.output}: {len(text.splitlines())} lines")
    return 0


def _say(message: str, status: int) -> int:
    print(f"torch-manualbp derive: {message}", file=sys.stderr)
    return status


def _step(model: Module, loss: Any, optimizer: Optimizer, compile: bool) -> TrainStep:
    try:
        return TrainStep(model, loss, optimizer, compile=compile)
    except ValueError as error:  # of an optimizer that calls the step itself
        raise RefusedError(" ".join(str(error).split())) from error


def _zeros(argument: str, text: str, dtype: torch.dtype) -> Tensor:
    match = re.fullmatch(r"(\d+(?:,\d+)*)(?::(\w+))?", text.replace(" ", ""))
    if match is None:
        raise RefusedError(f"argument {argument}: {text!r} is no shape, such as 64,784 or 64:int64")
    shape, name = match.groups()
    found = dtype if name is None else getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise RefusedError(f"argument {argument}: {name!r} is no dtype of torch, such as float32 or int64")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dtypes that torch is about to drop
            return torch.zeros([int(n) for n in shape.split(",")], dtype=found)
    except Exception as error:  # more numbers than there is memory for, or a dtype that has no zeros
        raise RefusedError(f"argument {argument}: there can be no tensor {text}: {one_line(error)[:200]}") from error


def _target(loss: Any, output: Any) -> Tensor:
    """Zeros such as the loss takes for this output."""
    if not isinstance(output, Tensor):
        raise RefusedError(f"argument --target: it is needed, as the model returns a {type(output).__name__}")
    if isinstance(loss, OF_CLASSES):
        return torch.zeros(output.shape[:-1] if output.dim() == 1 else output.shape[:1] + output.shape[2:]).long()
    dtype = torch.int64 if isinstance(loss, torch.nn.MultiLabelMarginLoss) else output.dtype
    return torch.zeros_like(output, dtype=dtype)


def _form(t: Tensor) -> str:
    return f"{','.join(map(str, t.shape))}:{str(t.dtype).removeprefix('torch.')}"


def _print_in_colours(python: str) -> None:
    try:
        from rich.console import Console
        from rich.syntax import Syntax
    except ImportError:  # it is as good to read without
        print(python, end="", flush=True)
        return
    text = Syntax(python, "python", theme="ansi_dark").highlight(python)
    Console().print(text, end="", soft_wrap=True)
