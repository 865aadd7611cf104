"""A planned program as Python that imports torch alone."""

from __future__ import annotations

import ast
import functools
import keyword
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from torch_manualbp.derive.plan import LITERAL, Plan
from torch_manualbp.derive.program import Blocks, Call, Formula, Text, Value, mapped, values_in, words
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.kernels.products import onednn_linear

__all__ = ["Source", "write_source"]

WIDTH = 88
"""The column that shapes stand in."""

GIVEN = words("torch F slice range float int bool complex parameters state")
"""The names that a program uses and does not make."""

RESERVED = words("_ onednn_linear build step lr momentum dampening weight_decay beta1 beta2 eps __debug__")

INFIX = {"__add__": "+", "__sub__": "-", "__mul__": "*", "__truediv__": "/", "__matmul__": "@", "__eq__": "=="}
INFIX |= {"__ne__": "!=", "__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">=", "__and__": "&", "__or__": "|"}
REVERSED = {"__rsub__": "-", "__rtruediv__": "/", "__rdiv__": "/", "__radd__": "+", "__rmul__": "*"}
ASSIGNED = {"__iadd__": "+=", "__isub__": "-=", "__imul__": "*=", "__itruediv__": "/="}


class Source:
    """The lines of a program, and where its sections begin."""

    def __init__(self, heading: list[str]) -> None:
        self._docstring = "\n".join(map(_printable, heading)) + "\n"
        text = self._docstring.replace("\\", "\\\\").replace('"', '\\"')
        self.lines: list[str] = f'"""{text}"""'.split("\n")
        self._statements = [1]
        """The lines, from 1, on which one begins."""

        self.held: dict[str, int] = {}
        """The lines, from 1, of tensors by name that are neither parameters nor buffers."""

        self.sections: dict[str, int] = {}
        """The line, from 1, on which a section of the step begins."""

        self.update: list[tuple[int, Blocks | None]] = []
        """The lines of the update, from 1, each with the loop that it stands in."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def add(self, line: str = "", indent: int = 0, note: str = "") -> None:
        """A statement, or an empty line."""
        if line:
            self._statements.append(len(self.lines) + 1)
        line = " " * indent + line
        if note:
            line = f"{line:<{WIDTH}}  # {note}" if len(line) < WIDTH else f"{line}  # {note}"
        self.lines.append(line.rstrip())

    def comment(self, text: str, indent: int) -> None:
        """A line for the reader, of whatever text."""
        self.lines.append(" " * indent + "# " + _printable(text).rstrip())

    def check(self) -> None:
        """Have Python's parser find in the text what was written, whatever modules and parameters are called.

        Raises:
            AssertionError: it finds something else, which is a mistake of this package.
        """
        try:
            tree = ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            raise AssertionError(f"{_NOT_WRITTEN.format(getattr(error, 'lineno', 1))}: {error}") from error
        nodes = list(ast.walk(tree))
        _assert(ast.get_docstring(tree, clean=False) == self._docstring, tree.body[0])
        _assert(isinstance(tree.body[-1], ast.FunctionDef) and tree.body[-1].name == "build", tree.body[-1])
        for statement in tree.body[1:-1]:
            is_ours = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "onednn_linear"
            _assert(is_ours or isinstance(statement, ast.Import), statement)
        lines = sorted(getattr(node, "lineno", 0) for node in nodes if isinstance(node, ast.stmt))
        _assert(lines == self._statements, tree.body[-1])
        by_kind: dict[type[ast.AST], list[Any]] = {}
        for node in nodes:
            by_kind.setdefault(type(node), []).append(node)
        names = by_kind.get(ast.Name, [])
        known = {*GIVEN, "step", *(node.arg for node in by_kind[ast.arg])}
        known.update(node.id for node in names if isinstance(node.ctx, ast.Store))
        for kind in by_kind:
            _assert(issubclass(kind, _WRITTEN), by_kind[kind][0])
        for node in names:
            _assert(node.id in known, node)
        for node in by_kind.get(ast.Attribute, []):
            _assert(not hasattr(object, node.attr), node)
        for node in by_kind.get(ast.Import, []):
            _assert({item.name for item in node.names} <= _IMPORTED, node)


_IMPORTED = {"torch", "torch.nn.functional"}
_WRITTEN = (
    *(ast.Module, ast.Import, ast.alias, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.For, ast.If),
    *(ast.Assign, ast.AugAssign, ast.Expr, ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Slice, ast.Name),
    *(ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.ListComp, ast.comprehension, ast.BinOp, ast.UnaryOp),
    *(ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)
"""The kinds of syntax in a program."""


_NOT_WRITTEN = "line {} of the derived program is not what was to be written, which is a mistake of torch_manualbp"


def _assert(is_right: bool, node: ast.AST) -> None:
    if not is_right:
        raise AssertionError(_NOT_WRITTEN.format(getattr(node, "lineno", 1)))


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
    held: Collection[str] = (),
) -> Source:
    """Write ``build(parameters, state)``, which returns the step."""
    loops = list(dict.fromkeys(call.blocks for call in plan.steps if call.blocks is not None))
    names_of_loops = [name for loop in loops for name in (loop.name, loop.variable)]
    given = [*parameters.values(), *state.values(), *constants.values(), *inputs]
    names = _names(plan, given, [*settings, *names_of_loops])
    source = Source(heading)
    add = source.add
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
        if key in held:
            source.held[key] = len(source.lines)
    for key, value in state.items():
        add(f"{names[value]} = state[{key!r}]", 4, shape_of(value))
    for key, value in constants.items():
        if value.number is None:
            add(f"{names[value]} = parameters[{key!r}]", 4, shape_of(value))
            source.held[key] = len(source.lines)
        else:
            add(f"{names[value]} = {_number(value)}", 4)
    if plan.memory:
        add()
        source.comment("Memory, made once", 4)
        for value in plan.memory:
            add(f"{names[value]} = {_empty(value)}", 4)
    if plan.once:
        add()
        source.comment("Views of it, values in the memory of others, and what never changes", 4)
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
            source.comment(f"---- {section} " + "-" * (60 - len(section)), 8)
            if section in ("update", "gradients") and skips:
                add(f"if not torch.isfinite({names[returns[0]]}):", 8)
                add(f"return {', '.join(names[value] for value in returns)}", 12)
                source.sections[section] = len(source.lines)
        if call.title != title:
            title = call.title
            if title:
                head, *formula = title
                head = " ".join(head.split())
                source.comment(head + (f":   {formula[0]}" if formula else ""), 8)
                for line in formula[1:]:
                    source.comment(" " * (len(head) + 4) + line, 8)
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
    source.check()
    return source


def shape_of(value: Value) -> str:
    """A shape, and the dtype if it is not float32, in the way of a comment."""
    t = value.tensor
    dtype = "" if t.dtype == torch.float32 else f" {str(t.dtype).removeprefix('torch.')}"
    return f"({', '.join(map(str, t.shape))}{',' if t.dim() == 1 else ''}){dtype}"


def _names(plan: Plan, given: Iterable[Value], settings: Iterable[str]) -> dict[Value, str]:
    """A name for each value, no two the same, and none that of a hyperparameter."""
    names: dict[Value, str] = {}
    free = _Names(settings)
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
            names[unnamed] = free(wanted)
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


class _Names:
    """Names as Python reads them, each once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {*GIVEN, *RESERVED, *keyword.kwlist, *taken}
        self._last: dict[str, int] = {}

    def __call__(self, wanted: str) -> str:
        """The name, with a number where another value has it."""
        name = wanted = _identifier(wanted) or "t"
        stem, n = ("t", 1) if wanted == "t" else (f"{wanted}_", 2)
        if wanted == "t" or wanted in self._taken:
            n = self._last.get(stem, n)
            while f"{stem}{n}" in self._taken:
                n += 1
            self._last[stem] = n
            name = f"{stem}{n}"
        self._taken.add(name)
        return name


def _identifier(name: str) -> str:
    """The name in the letters that Python reads it in, and others as ``_``."""
    for flags in (re.UNICODE, re.ASCII):
        name = re.sub(r"\W", "_", unicodedata.normalize("NFKC", name), flags=flags)
        name = name if not name[:1].isdigit() else f"p_{name}"
        if name.isidentifier() and unicodedata.is_normalized("NFKC", name):
            break
    return name


def _printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
        written = f"{_function(plan.with_out[call], call.name)}({', '.join(args)}, out={names[plan.into[call]]})"
        result = call.results[0]  # may come to stand where a tensor of this step stood
        return written if plan.into[call] is result else f"{names[result]} = {written}"
    expression = _expression(call, names)
    if call.written and not call.made:
        return expression
    if call.returned is not None:
        return f"{_targets(call.returned, names)} = {expression}"
    targets = ", ".join(names[value] for value in call.results)
    return f"{targets}{',' if call.is_tuple and len(call.results) == 1 else ''} = {expression}"


def _targets(returned: Any, names: dict[Value, str]) -> str:
    """The names of what a call returns, as it returns it."""
    if isinstance(returned, tuple | list):
        items = [_targets(item, names) for item in returned]
        nested = [f"({item})" if isinstance(r, tuple | list) else item for item, r in zip(items, returned, strict=True)]
        return ", ".join(nested) + ("," if len(items) == 1 else "")
    return names[returned] if isinstance(returned, Value) else "_"


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


@functools.lru_cache(1024)
def _function(function: Any, name: str) -> str:
    """A name under which torch has the function."""
    if function is onednn_linear:
        return "onednn_linear"
    if type(function).__name__ in ("OpOverload", "OpOverloadPacket"):
        return f"torch.ops.{function}"
    for place, module in _MODULES.items():
        public = name.removeprefix(f"{place.removeprefix('torch.')}_")
        if getattr(module, public, None) == function:
            return f"{place}.{public}"
    what = "torch has no function of this name"
    raise _refusal(resolve_name(function) or name, what, "write it out, or write a Rule for it")


_MODULES: dict[str, Any] = {
    "F": torch.nn.functional,
    "torch": torch,
    "torch._C._nn": torch._C._nn,
    "torch._C._VariableFunctions": torch._C._VariableFunctions,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
    "torch.masked": torch.masked,
}
"""Where a program finds what it calls."""


def _refusal(function: str, what: str, todo: str) -> NotDerivableError:
    return NotDerivableError([("", f"{_printable(function)}: {_printable(what)}", todo)])


def _uses_functional(plan: Plan) -> bool:
    functions = [plan.with_out.get(call, call.function) for call in plan.calls]
    return any(getattr(torch.nn.functional, getattr(f, "__name__", ""), None) == f for f in functions)


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
    if isinstance(arg, slice):
        return f"slice({_text(arg.start, names)}, {_text(arg.stop, names)}, {_text(arg.step, names)})"
    if isinstance(arg, range):
        return f"range({arg.start}, {arg.stop}, {arg.step})"
    return _constant(arg)


def _constant(arg: Any) -> str:
    """What evaluates to the same, of each kind of constant that torch takes."""
    if arg is ...:
        return "..."
    if arg is None or isinstance(arg, bool | torch.dtype | torch.layout | torch.memory_format):
        return repr(arg)
    if isinstance(arg, int):  # an enumeration's, too
        return int.__repr__(arg)
    if isinstance(arg, float):
        return float.__repr__(arg) if abs(arg) < float("inf") else f'float("{float.__repr__(arg)}")'
    if isinstance(arg, complex):
        return f"complex({_constant(arg.real)}, {_constant(arg.imag)})"
    if isinstance(arg, str):
        text = repr(str.__str__(arg))
        return text if '"' in text or "\\'" in text else f'"{text[1:-1]}"'  # as this code base writes them
    if isinstance(arg, torch.device):
        return f'"{arg}"'
    if isinstance(arg, type) and arg in (bool, int, float, complex):
        return arg.__name__
    if type(arg).__module__ == "numpy" and hasattr(arg, "tolist"):
        return _array(arg)
    raise _refusal(
        f"an argument that is a {type(arg).__name__}",
        "no program can hold it",
        "give torch numbers, texts and tensors, or write the function out",
    )


def _array(array: Any) -> str:
    """A NumPy number, or an array as a tensor."""
    if not array.shape:
        return _constant(array.item())
    if array.size > LITERAL:
        what = f"a NumPy array of {array.size} numbers"
        raise _refusal(what, "too long to be written out", "make it a buffer of the model")
    return f"torch.tensor({_text(array.tolist(), {})}, dtype={torch.from_numpy(array.copy()).dtype})"


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
            texts.append(_text(_of_index(item), names))
    return ", ".join(texts) + ("," if isinstance(index, tuple) and len(items) == 1 else "") or "()"


def _of_index(item: Any) -> Any:
    """With arrays in the dtype that torch gives them in an index; one of no dimension is a tensor there."""
    if isinstance(item, tuple | list):
        return type(item)(map(_of_index, item))
    if type(item).__name__ != "ndarray":
        return item
    integers = item if item.dtype in ("bool", "uint8") else item.astype("int64")
    return integers if item.shape else Text(f"torch.tensor({integers.item()})")


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
    return f"torch.tensor({_constant(value.number)}{options})"


def used_values(plan: Plan) -> set[Value]:
    """All values that the calls of the plan are about."""
    return {value for call in plan.calls for value in [*values_in((call.args, call.kwargs)), *call.results]}
