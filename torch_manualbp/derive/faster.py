"""Calls in a form that torch makes faster, or in one that does without a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import nn_functions
from torch_manualbp.derive.passes import ALLOCATIONS, FILLED
from torch_manualbp.derive.program import Call, Program, Value, words

__all__ = ["LITERAL", "rewritten", "without_likeness"]

LITERAL = 1 << 14
"""Numbers of a NumPy array up to which it is written out."""

NUMBERS = {**dict.fromkeys(words("add sub mul div add_ sub_ mul_ div_ gt ge lt le eq ne"), 2), "where": 3}
"""Operations, with how many arguments, of whose last two a Python number is a tensor of no dimension in disguise: made
once, it saves 1.7 of 2.7 µs a call."""


def without_likeness(call: Call) -> Call:
    """``torch.zeros(shape)`` for ``torch.zeros_like(t)``: of t it takes the shape alone."""
    name = call.name
    t = call.results[0].tensor if call.results and not call.written else None
    if t is not None and call.function in (torch.tensor, torch.as_tensor, torch.asarray):
        data = next(iter((*call.args, *call.kwargs.values())))
        if type(data).__module__ == "numpy" and data.size <= LITERAL:
            call.function, call.args, call.kwargs = torch.tensor, (data.tolist(),), _options(t)
        return call
    number = call.args[-1] if name in ("full", "new_full", "full_like") and call.args else None
    if t is not None and t.is_contiguous() and type(number) in (bool, int, float):
        call.function, call.args, call.kwargs = torch.full, (tuple(t.shape), number), _options(t)
        return call
    if t is None or (name not in ALLOCATIONS and name not in FILLED):
        return call
    if not t.is_contiguous():
        if name in ALLOCATIONS:
            call.function, call.args, call.kwargs = torch.empty_strided, (tuple(t.shape), t.stride()), _options(t)
        return call
    function = torch.empty if name in ALLOCATIONS else torch.zeros if FILLED[name] == 0 else torch.ones
    call.function, call.args, call.kwargs = function, (tuple(t.shape),), _options(t)
    return call


def _options(t: Tensor) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": t.dtype}  # always: torch.set_default_dtype may say anything later
    return options if t.device.type == "cpu" else {**options, "device": t.device}


def rewritten(call: Call, program: Program) -> Call:
    """The same in a form that is called faster, or that takes ``out=``."""
    name, args = call.name, call.args
    if call.kwargs.get("inplace") is False:
        call.kwargs = {key: value for key, value in call.kwargs.items() if key != "inplace"}
    if name == "relu" and not call.kwargs and not call.written:
        call.function, call.args = torch.clamp_min, (args[0], 0)
    elif name in ("rsub",) and len(args) == 2 and not call.kwargs and isinstance(args[1], int | float):
        call.function, call.args = torch.sub, (args[1], args[0])
    if len(args) == NUMBERS.get(call.name) and not {*call.kwargs} - {"out"}:
        numbers = [i for i, arg in enumerate(call.args) if type(arg) in (int, float)]
        others = [arg.tensor for arg in call.args[len(args) - 2 :] if isinstance(arg, Value)]
        if len(numbers) == len(others) == 1 and _keeps_digits(call.args[numbers[0]], others[0].dtype):
            number = program.number(call.args[numbers[0]], others[0])
            call.args = tuple(number if i == numbers[0] else arg for i, arg in enumerate(call.args))
            if "out" not in call.kwargs and not call.written:
                call.function = getattr(torch, call.name)
    direct = _DIRECT.get(call.function)
    if direct is not None:
        direct(call)
    return call


def _keeps_digits(number: float, dtype: torch.dtype) -> bool:
    """Whether the operation does the same with the number as a tensor of this dtype: those of fewer digits compute in
    float32, and integers would be made of a float."""
    return dtype in (torch.float32, torch.float64) or (dtype == torch.int64 and isinstance(number, int))


def _directly(function: Any, *names: str, **defaults: Any) -> Callable[[Call], None]:
    """Call ``function``, which is written in C++, where torch.nn.functional's checks take longer than the sum."""

    def rewrite(call: Call) -> None:
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        given = {name: value for name, value in given.items() if name in defaults or value is not None}
        if not set(given) <= {*names, *defaults}:
            return
        values = [given.get(name, defaults.get(name)) for name in defaults]
        tensors = [given[name] for name in names]
        if tensors[0].tensor.shape != tensors[1].tensor.shape and function is nn_functions.mse_loss:
            return
        values = [_REDUCTION[v] if isinstance(v, str) else v for v in values]
        call.function, call.args, call.kwargs = function, (*tensors, *values), {}

    return rewrite


_REDUCTION = {"none": 0, "mean": 1, "sum": 2}
_F = torch.nn.functional
_DIRECT: dict[Any, Callable[[Call], None]] = {
    _F.mse_loss: _directly(nn_functions.mse_loss, "input", "target", reduction="mean"),
    _F.cross_entropy: _directly(
        nn_functions.cross_entropy_loss,
        "input",
        "target",
        weight=None,
        reduction="mean",
        ignore_index=-100,
        label_smoothing=0.0,
    ),
    _F.nll_loss: _directly(
        nn_functions.nll_loss_nd, "input", "target", weight=None, reduction="mean", ignore_index=-100
    ),
    _F.binary_cross_entropy: _directly(
        nn_functions.binary_cross_entropy, "input", "target", weight=None, reduction="mean"
    ),
}
