"""Objects that a command line names, ``package.module:expression``, and data."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from torch_manualbp import nn
from torch_manualbp._expressions import data_names, evaluate
from torch_manualbp._text import one_line

__all__ = [
    "RefusedError",
    "add_data",
    "add_model",
    "data",
    "data_named",
    "evaluated",
    "loss_named",
    "made",
    "model_named",
    "optimizer_named",
    "seed",
    "where_python_looks",
]


OF_THE_USERS = (Exception, SystemExit)
"""Whatever the user's own code raises: a module may end the process when it is imported, as a script does."""


class RefusedError(Exception):
    """What a command does not take."""


def add_model(parser: argparse.ArgumentParser, loss: str) -> None:
    """The arguments by which a command is told a model and a loss."""
    parser.add_argument("model", metavar="package.module:model", help="where the model is")
    about = f"of torch_manualbp.nn, or package.module:loss (default: {loss})"
    parser.add_argument("--loss", default=loss, metavar="LOSS", help=about)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options by which a command is told the data, too."""
    add, expression = parser.add_argument, "EXPRESSION"
    about = 'such as "randn(8, 4)"; again for each input'
    add("--input", action="append", required=True, metavar=expression, help=about)
    add("--target", required=True, metavar=expression, help='what the loss compares with, such as "zeros(8, 1)"')
    add("--seed", type=seed, default=0, help="where random numbers start from (default: 0)")


@contextlib.contextmanager
def where_python_looks() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a module that was imported has changed the path
            sys.path.remove(folder)


def evaluated(argument: str, text: str) -> Any:
    """What ``package.module:expression``, or ``./file.py:expression``, is: a name in the module, or a call of one with
    literal arguments.

    Raises:
        RefusedError: it is of another form, or the module or the expression raises.
    """
    name, _, expression = text.partition(":")
    is_file = name.endswith(".py")
    if not (is_file or re.fullmatch(r"\w+(\.\w+)*", name)) or not expression.strip():
        raise RefusedError(f"argument {argument}: {text!r} is not of the form package.module:name")
    try:
        module = _of_file(name) if is_file else importlib.import_module(name)
    except OF_THE_USERS as error:
        raise RefusedError(f"argument {argument}: {name} cannot be imported: {one_line(error)}") from error
    try:
        return _evaluated(argument, expression, vars(module), own_code=True)
    except RefusedError as error:
        near = difflib.get_close_matches(expression, [n for n in vars(module) if not n.startswith("_")], 1)
        if "NameError" not in str(error) or "did you mean" in str(error) or not near:
            raise
        raise RefusedError(f"{error}: did you mean {near[0]!r}?") from error


def _of_file(path: str) -> ModuleType:
    """The module that a file is, such as ``./ops.py``."""
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not os.path.exists(path):
        raise ImportError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


def data(argument: str, text: str) -> Any:
    """What an expression is in the names of torch that make data, see :mod:`torch_manualbp._expressions`.

    Raises:
        RefusedError: it is none, or it raises.
    """
    return _evaluated(argument, text, data_names())


def _evaluated(argument: str, expression: str, names: Mapping[str, Any], *, own_code: bool = False) -> Any:
    try:
        return evaluate(expression, names, own_code=own_code)
    except OF_THE_USERS as error:
        shown = expression if len(expression) <= 200 else f"{expression[:197]}..."
        raise RefusedError(f"argument {argument}: {shown} raises {one_line(error)}") from error


def made(argument: str, given: Any, text: str) -> Any:
    """An object, given as such, as its class, or as a function that returns it.

    Raises:
        RefusedError: the class or function raises.
    """
    if isinstance(given, Module | Optimizer) or not callable(given):
        return given
    try:
        return given()
    except OF_THE_USERS as error:
        raise RefusedError(f"argument {argument}: {text}() raises {one_line(error)}") from error


def model_named(text: str) -> Module:
    """A model, given as ``package.module:model``.

    Raises:
        RefusedError: there is none.
    """
    model = made("model", evaluated("model", text), text)
    if not isinstance(model, Module):
        raise RefusedError(f"argument model: {text} is of class {type(model).__name__}, and not a torch.nn.Module")
    return model


def loss_named(text: str) -> Any:
    """A loss, given in the names of ``torch_manualbp.nn``, or as ``package.module:loss``.

    Raises:
        RefusedError: there is none.
    """
    of_ours = {name: value for name, value in vars(nn).items() if isinstance(value, type)}
    loss = evaluated("--loss", text) if ":" in text else _evaluated("--loss", text, data_names() | of_ours)
    loss = made("--loss", loss, text) if isinstance(loss, type) else loss
    if not callable(loss):
        raise RefusedError(
            f"argument --loss: {text} is of class {type(loss).__name__}, and not a function of (output, target)"
        )
    return loss


def optimizer_named(text: str, model: Module) -> Optimizer:
    """An optimizer of the model's parameters, given in the names of ``torch.optim``.

    Raises:
        RefusedError: there is none.
    """
    classes = {name: cls for name, cls in vars(torch.optim).items() if isinstance(cls, type) and name != "Optimizer"}
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_model = {name: functools.partial(cls, parameters) for name, cls in classes.items()}
    optimizer = made("--optimizer", _evaluated("--optimizer", text, of_model), text)
    if not isinstance(optimizer, Optimizer):
        raise RefusedError(
            f"argument --optimizer: {text} is of class {type(optimizer).__name__}, and not a torch.optim.Optimizer"
        )
    return optimizer


def data_named(inputs: Sequence[str], target: str, model: Module) -> tuple[tuple[Any, ...], Any]:
    """Inputs and target, given as expressions in the names of torch, with the model's dtype for numbers.

    Raises:
        RefusedError: one of them raises.
    """
    with _dtype_of(model):
        return tuple(data("--input", text) for text in inputs), data("--target", target)


@contextlib.contextmanager
def _dtype_of(model: Module) -> Iterator[None]:
    """Numbers are of the model's dtype, where nothing else is said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next((p.dtype for p in model.parameters() if p.is_floating_point()), before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def seed(text: str) -> int:
    """The type of an option that random numbers start from."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**64 - 1")
    return number
