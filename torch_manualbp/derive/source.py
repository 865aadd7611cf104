"""A planned program as Python that imports torch alone."""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.derive.plan import Plan, function_with_out
from torch_manualbp.derive.program import Blocks, Call, Formula, Text, Value, mapped, values_in, words
from torch_manualbp.rules.products import onednn_linear

__all__ = ["Source", "write_source"]

WIDTH = 88
"""The column that shapes stand in."""

RESERVED = words(
    "torch F slice range float onednn_linear parameters state build step "
    "lr momentum dampening weight_decay beta1 beta2 eps"
)

INFIX = {"__add__": "+", "__sub__": "-", "__mul__": "*", "__truediv__": "/", "__matmul__": "@", "__eq__": "=="}
INFIX |= {"__ne__": "!=", "__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">=", "__and__": "&", "__or__": "|"}
REVERSED = {"__rsub__": "-", "__rtruediv__": "/", "__rdiv__": "/", "__radd__": "+", "__rmul__": "*"}
ASSIGNED = {"__iadd__": "+=", "__isub__": "-=", "__imul__": "*=", "__itruediv__": "/="}


class Source:
    """The lines of a program, and where its sections begin."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sections: dict[str, int] = {}
        """The line, from 1, on which a section of the step begins."""

        self.update: list[tuple[int, Blocks | None]] = []
        """The lines of the update, from 1, each with the loop that it stands in."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def add(self, line: str = "", indent: int = 0, note: str = "") -> None:
        line = " " * indent + line
        if note:
            line = f"{line:<{WIDTH}}  # {note}" if len(line) < WIDTH else f"{line}  # {note}"
        self.lines.append(line.rstrip())


def write_source(
    plan: Plan,
    parameters: dict[str, Value],
    state: dict[str, Value],
    constants: dict[str, Value],
    inputs: list[Value],
    settings: list[str],
    returns: tuple[Value, ...],
    heading: list[str],
    skips: bool = False,
) -> Source:
    """Write ``build(parameters, state)``, which returns the step."""
    loops = list(dict.fromkeys(call.blocks for call in plan.steps if call.blocks is not None))
    names_of_loops = [name for loop in loops for name in (loop.name, loop.variable)]
    given = [*parameters.values(), *state.values(), *constants.values(), *inputs]
    names = _names(plan, given, [*settings, *names_of_loops])
    source = Source()
    add = source.add
    add(f'"""{heading[0]}')
    for line in heading[1:]:
        add(line)
    add('"""')
    add()
    add("import torch")
    if _uses_functional(plan):
        add("import torch.nn.functional as F")
    if _uses_onednn(plan):
        add()
        add("onednn_linear = torch.ops.mkldnn._linear_pointwise  # a Wᵀ + b of (a, W, b, ...), here faster than BLAS")
    add()
    add()
    add("def build(parameters, state):")
    add('"""The step on these parameters, by name, which it changes in place."""', 4)
    for key, value in parameters.items():
        add(f"{names[value]} = parameters[{key!r}].detach()", 4, shape_of(value))
    for key, value in state.items():
        add(f"{names[value]} = state[{key!r}]", 4, shape_of(value))
    for key, value in constants.items():
        if value.number is None:
            add(f"{names[value]} = parameters[{key!r}]", 4, shape_of(value))
        else:
            add(f"{names[value]} = {_number(value)}", 4)
    if plan.memory:
        add()
        add("# Memory, made once", 4)
        for value in plan.memory:
            add(f"{names[value]} = {_empty(value)}", 4)
    if plan.once:
        add()
        add("# Views of it, values in the memory of others, and what never changes", 4)
        for item in plan.once:
            if isinstance(item, Call):
                add(_statement(item, names, plan), 4, _made(item))
                continue
            value, other = item
            reshaped = "" if other.tensor.shape == value.tensor.shape else f".view({_shape(value)})"
            add(f"{names[value]} = {names[other]}{reshaped}", 4, "in the same memory")
    for each in loops:
        add(f"{each.name} = [slice(i, i + {each.rows}) for i in range(0, {each.of}, {each.rows})]", 4)
    add()
    add(f"def step({', '.join([*(names[value] for value in inputs), *settings])}):", 4)
    section = ""
    title: tuple[str, ...] = ()
    loop: Blocks | None = None
    for call in plan.steps:
        if call.section != section:
            section, title = call.section, ()
            loop = None
            if source.lines[-1].strip() and not source.lines[-1].strip().startswith("def "):
                add()
            source.sections[section] = len(source.lines) + 1
            add(f"# ---- {section} " + "-" * (60 - len(section)), 8)
            if section == "update" and skips:
                add(f"if not torch.isfinite({names[returns[0]]}):", 8)
                add(f"return {', '.join(names[value] for value in returns)}", 12)
                source.sections[section] = len(source.lines)
        if call.title != title:
            title = call.title
            if title:
                head, *formula = title
                head = " ".join(head.split())
                add(f"# {head}" + (f":   {formula[0]}" if formula else ""), 8)
                for line in formula[1:]:
                    add(f"#{' ' * (len(head) + 5)}{line}", 8)
        if call.blocks is not loop:
            loop = call.blocks
            if loop is not None:
                add(f"for {loop.variable} in {loop.name}:", 8, f"{loop.rows} of {loop.of} rows at a time")
        add(_statement(call, names, plan), 8 if loop is None else 12, _made(call))
        if section == "update":
            source.update.append((len(source.lines), loop))
    values = [names[value] for value in returns]
    if source.lines[-1].strip():
        add()
    add(f"return {', '.join(values)}", 8)
    source.sections["return"] = len(source.lines)
    add()
    add("return step", 4)
    return source


def shape_of(value: Value) -> str:
    """A shape, and the dtype if it is not float32, in the way of a comment."""
    t = value.tensor
    dtype = "" if t.dtype == torch.float32 else f" {str(t.dtype).removeprefix('torch.')}"
    return f"({', '.join(map(str, t.shape))}{',' if t.dim() == 1 else ''}){dtype}"


def _names(plan: Plan, given: Iterable[Value], settings: Iterable[str]) -> dict[Value, str]:
    """A name for each value, no two the same, and none that of a hyperparameter."""
    names: dict[Value, str] = {}
    taken = {*RESERVED, *settings}
    views = {}
    for call in plan.calls:
        if call.is_view and len(call.results) == 1 and call.args and isinstance(call.args[0], Value):
            views[call.results[0]] = call
            base = call.args[0]
            if call.results[0].is_named and not base.name:
                base.name = f"{call.results[0].name}_{call.name}"
    used = [*given]
    for call in plan.calls:
        used += [*call.arguments(), *call.results]
    used += plan.memory

    for value in sorted(dict.fromkeys(used), key=lambda value: not value.is_named):
        for unnamed in _with_bases(value, views, names):
            wanted = unnamed.name or "t"
            if not unnamed.name and unnamed in views:
                wanted = f"{names[views[unnamed].args[0]]}_{views[unnamed].name}"
            names[unnamed] = _free(wanted, taken)
            taken.add(names[unnamed])
    return names


def _with_bases(value: Value, views: dict[Value, Call], names: dict[Value, str]) -> list[Value]:
    """The value, and before it what it is a view of, as far as they have no name."""
    chain = []
    while value not in names:
        chain.append(value)
        if value.name or value not in views:
            break
        value = views[value].args[0]
    return chain[::-1]


def _free(wanted: str, taken: set[str]) -> str:
    """The name, with a number where another value has it."""
    if wanted != "t" and wanted not in taken and not keyword.iskeyword(wanted):
        return wanted
    stem, n = (wanted, 1) if wanted == "t" else (f"{wanted}_", 2)
    while f"{stem}{n}" in taken:
        n += 1
    return f"{stem}{n}"


def _statement(call: Call, names: dict[Value, str], plan: Plan) -> str:
    name = getattr(call.function, "__name__", "")
    if name in ASSIGNED:
        return f"{_text(call.args[0], names)} {ASSIGNED[name]} {_text(call.args[1], names)}"
    if name == "__setitem__":
        target, index, item = call.args
        return f"{_text(target, names)}[{_index(index, names)}] = {_text(item, names)}"
    if call in plan.into:
        args = [_text(arg, names) for arg in call.args]
        args += [f"{key}={_text(arg, names)}" for key, arg in call.kwargs.items()]
        written = f"{_function(function_with_out(call), call.name)}({', '.join(args)}, out={names[plan.into[call]]})"
        result = call.results[0]  # may come to stand where a tensor of this step stood
        return written if plan.into[call] is result else f"{names[result]} = {written}"
    expression = _expression(call, names)
    if call.written:
        return expression
    targets = ", ".join(names[value] for value in call.results)
    return f"{targets}{',' if call.is_tuple and len(call.results) == 1 else ''} = {expression}"


def _expression(call: Call, names: dict[Value, str]) -> str:
    function, name = call.function, getattr(call.function, "__name__", "")
    args = [_text(arg, names) for arg in call.args]
    keywords = [f"{key}={_text(arg, names)}" for key, arg in call.kwargs.items()]
    if name == "__get__":
        return f"{args[0]}.{call.name}"
    if name == "__getitem__":
        return f"{args[0]}[{_index(call.args[1], names)}]"
    if name in INFIX and len(args) == 2:
        return f"{args[0]} {INFIX[name]} {args[1]}"
    if name in REVERSED and len(args) == 2:
        return f"{args[1]} {REVERSED[name]} {args[0]}"
    if name == "__neg__":
        return f"-{args[0]}"
    if name == "__invert__":
        return f"~{args[0]}"
    if getattr(Tensor, name, None) is function or _is_method(function, name):
        return f"{args[0]}.{name}({', '.join([*args[1:], *keywords])})"
    return f"{_function(function, name)}({', '.join([*args, *keywords])})"


def _is_method(function: Any, name: str) -> bool:
    return type(function).__name__ == "method_descriptor" and hasattr(Tensor, name)


def _function(function: Any, name: str) -> str:
    """The public name of a function of torch."""
    if getattr(torch.nn.functional, name, None) is function:
        return f"F.{name}"
    if getattr(torch, name, None) is function:
        return f"torch.{name}"
    if getattr(torch._C._nn, name, None) is function:
        return f"torch._C._nn.{name}"
    if function is onednn_linear:
        return "onednn_linear"
    for module in ("linalg", "special", "fft"):
        public = name.removeprefix(f"{module}_")
        if getattr(getattr(torch, module), public, None) is function:
            return f"torch.{module}.{public}"
    if type(function).__name__ in ("OpOverload", "OpOverloadPacket"):
        return f"torch.ops.{function}"
    return f"torch.{name}"


def _uses_functional(plan: Plan) -> bool:
    functions = [function_with_out(call) if call in plan.into else call.function for call in plan.calls]
    return any(_function(f, getattr(f, "__name__", "")).startswith("F.") for f in functions)


def _uses_onednn(plan: Plan) -> bool:
    texts: list[str] = []
    for call in plan.steps:
        mapped((call.args, call.kwargs), Formula, lambda formula: texts.append(formula.text))
    return any(call.function is onednn_linear for call in plan.calls) or any("onednn_linear" in text for text in texts)


def _text(arg: Any, names: dict[Value, str]) -> str:
    if isinstance(arg, Value):
        return names[arg]
    if isinstance(arg, Formula):
        return arg.text.format(*(names[value] for value in arg.values))
    if isinstance(arg, Text):
        return arg.text
    if isinstance(arg, tuple):
        items = [_text(item, names) for item in arg]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(arg, list):
        return f"[{', '.join(_text(item, names) for item in arg)}]"
    if isinstance(arg, torch.device):
        return repr(str(arg))
    if type(arg).__module__ == "numpy" and hasattr(arg, "item"):
        return _text(arg.item(), names)
    if isinstance(arg, float) and arg in (float("inf"), float("-inf")):
        return f'float("{arg}")'
    if isinstance(arg, float) and arg != arg:
        return 'float("nan")'
    if isinstance(arg, str):
        return '"' + repr("'" + arg)[2:-1] + '"'  # as this code base writes them
    return repr(arg)


def _index(index: Any, names: dict[Value, str]) -> str:
    items = index if isinstance(index, tuple) else (index,)
    texts = []
    for item in items:
        if isinstance(item, slice):
            parts = ["" if part is None else _text(part, names) for part in (item.start, item.stop, item.step)]
            texts.append(":".join(parts if parts[2] else parts[:2]))
        elif item is Ellipsis:
            texts.append("...")
        else:
            texts.append(_text(item, names))
    return ", ".join(texts) + ("," if isinstance(index, tuple) and len(items) == 1 else "") or "()"


def _made(call: Call) -> str:
    if not call.results:
        return ""
    return ", ".join(shape_of(value) for value in call.results)


def _shape(value: Value) -> str:
    return ", ".join(map(str, value.tensor.shape)) or "()"


def _empty(value: Value) -> str:
    t = value.tensor
    options = f", dtype={t.dtype}" + ("" if t.device.type == "cpu" else f", device={str(t.device)!r}")
    if t.is_contiguous():
        return f"torch.empty({_shape(value)}{options})"
    if t.dim() == 2:
        return f"torch.empty({t.shape[1]}, {t.shape[0]}{options}).t()"
    return f"torch.empty_strided({tuple(t.shape)}, {t.stride()}{options})"


def _number(value: Value) -> str:
    t = value.tensor
    options = f", dtype={t.dtype}" + ("" if t.device.type == "cpu" else f", device={str(t.device)!r}")
    return f"torch.tensor({value.number!r}{options})"


def used_values(plan: Plan) -> set[Value]:
    """All values that the calls of the plan are about."""
    return {value for call in plan.calls for value in [*values_in((call.args, call.kwargs)), *call.results]}
