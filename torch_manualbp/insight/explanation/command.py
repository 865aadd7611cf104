"""Say why the gradient of one weight is what it is: each factor of its chain, its number, and where it comes from.

  torch-manualbp explain my_package.models:net fc2.weight 1,1 --input "tensor([[1, .5, -1]])" --target "ones(1, 1)"
  torch-manualbp explain "torch_manualbp.nn:Sequential(Linear(4, 3), Tanh(), Linear(3, 3))" 0.weight 0,2 \\
    --input "randn(8, 4)" --target "randint(3, (8,))" --loss CrossEntropyLoss --output weight.html

After the colon stands a name in that module, or a call of one with literal arguments: a model, its class, or a function
that returns it. Inputs and target are made of numbers and the functions of torch that make tensors, with the model's
dtype for numbers. An index counts from 0; with a negative number it needs brackets, as in "(-1, 0)"."""

from __future__ import annotations

import argparse
import re
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
from torch_manualbp._output import print_to_the_end
from torch_manualbp._tables import write
from torch_manualbp._text import one_line
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.insight.explanation.explain import explain
from torch_manualbp.insight.explanation.result import Explanation

__all__ = ["add_arguments", "main"]

FORMATS = ("text", "markdown", "html", "json")
SUFFIXES = {".md": "markdown", ".html": "html", ".htm": "html", ".json": "json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torch-manualbp explain``."""
    add = parser.add_argument
    add_model(parser, "MSELoss")
    add("weight", metavar="PARAMETER", help="the name of a parameter, such as fc2.weight")
    add("index", metavar="INDEX", help="of its entry, such as 1,1 for row and column 1; they count from 0")
    add_data(parser)
    add("--paths", type=int, default=5, metavar="N", help="how many of the strongest paths are shown (default: 5)")
    add("--samples", type=int, default=5, metavar="N", help="how many samples are shown (default: 5)")
    add("--format", choices=FORMATS, help="what is written (default: what the name of --output says, or text)")
    add("--output", type=Path, metavar="FILE", help="write to this file instead")


def main(options: argparse.Namespace) -> int:
    """Print or write the explanation; 1 if the model cannot be run by rules, 2 if the arguments name what is not
    there."""
    torch.manual_seed(options.seed)
    try:
        with where_python_looks():
            model = model_named(options.model)
            loss = loss_named(options.loss)
        inputs, target = data_named(options.input, options.target, model)
        explanation = explain(
            model,
            loss,
            inputs,
            target,
            options.weight,
            _index(options.index),
            paths=options.paths,
            samples=options.samples,
        )
    except (RefusedError, ValueError, IndexError) as error:
        return _say(" ".join(str(error).split()), 2)
    except NotDerivableError as error:
        text = str(error)
        return _say(text.replace("\n ", "") if len(error.problems) == 1 else text, 1)
    except Exception as error:  # whatever the user's model raises
        return _say(f"{options.model} and {options.loss} do not take these inputs: {one_line(error)}", 1)
    suffix = "" if options.output is None else options.output.suffix
    written = _written(explanation, options.format or SUFFIXES.get(suffix, "text"))
    if options.output is None:
        print_to_the_end(written)
    else:
        write(options.output, written)
        print(f"{options.output}: {len(written.splitlines())} lines")
    return 0


def _say(message: str, status: int) -> int:
    print(f"torch-manualbp explain: {message}", file=sys.stderr)
    return status


def _index(text: str) -> tuple[int, ...]:
    inner = text.strip().removeprefix("(").removeprefix("[").removesuffix(")").removesuffix("]").strip()
    if not re.fullmatch(r"(-?\d+(\s*,\s*-?\d+)*\s*,?)?", inner):
        raise RefusedError(f"argument INDEX: {text!r} is no index, such as 1,1")
    return tuple(int(n) for n in re.findall(r"-?\d+", inner))


def _written(explanation: Explanation, form: str) -> str:
    if form == "markdown":
        return explanation.to_markdown()
    if form == "html":
        return explanation.to_html()
    return f"{explanation.to_json() if form == 'json' else explanation}\n"
