"""Objects that a command line names, ``package.module:expression``, and what commands print."""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from torch_manualbp import nn

__all__ = [
    "RefusedError",
    "data_named",
    "evaluated",
    "evaluated_in",
    "loss_named",
    "made",
    "model_named",
    "one_line",
    "optimizer_named",
    "print_to_the_end",
    "where_python_looks",
]


class RefusedError(Exception):
    """What a command does not take."""


@contextmanager
def where_python_looks() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def evaluated(argument: str, text: str) -> Any:
    """What ``package.module:expression`` is.

    Raises:
        RefusedError: it is of another form, or the module or the expression raises.
    """
    name, _, expression = text.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", name) or not expression.strip():
        raise RefusedError(f"argument {argument}: {text!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a module raises that is imported
        raise RefusedError(f"argument {argument}: {name} cannot be imported: {one_line(error)}") from error
    return evaluated_in(argument, expression, vars(module))


def evaluated_in(argument: str, expression: str, names: Mapping[str, Any]) -> Any:
    """What a Python expression is in these names.

    Raises:
        RefusedError: it raises.
    """
    try:
        return eval(expression, {**names})
    except Exception as error:  # whatever the user's own expression raises
        raise RefusedError(f"argument {argument}: {expression} raises {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The kind of the error and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def made(argument: str, given: Any, text: str) -> Any:
    """An object, given as such, as its class, or as a function that returns it.

    Raises:
        RefusedError: the class or function raises.
    """
    if isinstance(given, Module | Optimizer) or not callable(given):
        return given
    try:
        return given()
    except Exception as error:  # whatever a constructor raises
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
    loss = evaluated("--loss", text) if ":" in text else evaluated_in("--loss", text, vars(nn))
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
    optimizer = made("--optimizer", evaluated_in("--optimizer", text, of_model), text)
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
        evaluated_inputs = tuple(evaluated_in("--input", text, vars(torch)) for text in inputs)
        return evaluated_inputs, evaluated_in("--target", target, vars(torch))


@contextmanager
def _dtype_of(model: Module) -> Iterator[None]:
    """Numbers are of the model's dtype, where nothing else is said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next((p.dtype for p in model.parameters() if p.is_floating_point()), before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def print_to_the_end(text: str, in_colours: Callable[[str], None] | None = None) -> None:
    """Print a text of any letters and length, to a terminal by ``in_colours`` if that is given."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # a console of another encoding could not print δ
    try:
        if in_colours is not None and sys.stdout.isatty():
            in_colours(text)
        else:
            print(text, end="", flush=True)
    except BrokenPipeError:  # `| head` has seen enough, and the interpreter would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
