"""A planned program as Python that imports torch alone."""

from __future__ import annotations

import ast
import base64
import functools
import keyword
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from torch_manualbp._torch import nn_functions, variable_functions
from torch_manualbp.derive.expected import EXPECT
from torch_manualbp.derive.faster import LITERAL
from torch_manualbp.derive.plan import Plan
from torch_manualbp.derive.program import (
    MADE,
    Blocks,
    Call,
    Formula,
    Kernel,
    Memory,
    Text,
    Value,
    mapped,
    values_in,
    words,
)
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.kernels.products import onednn_linear

__all__ = ["Given", "Names", "Source", "shape_of", "statement", "write_source"]

LARGE = 1 << 16
"""Bytes from which on a tensor that a step makes is let go when nobody reads it any more; others at its end."""

WIDTH = 88
"""The column that shapes stand in."""

GIVEN = words("torch F math slice range float int bool complex ValueError parameters state")
"""The names that a program uses and does not make."""

RESERVED = words("_ expect onednn_linear build step lr momentum dampening weight_decay beta1 beta2 eps __debug__")
RESERVED |= words("norm_of_all adam adam_amsgrad adam_maximizing adam_amsgrad_maximizing")
RESERVED |= words("adamw adamw_amsgrad adamw_maximizing adamw_amsgrad_maximizing")

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

        self.names: dict[Value, str] = {}
        """What the values are called, while the program is assembled."""

        self.tree: ast.Module | None = None
        """The text as Python's parser has found it."""

        self.update: list[tuple[int, Blocks | None]] = []
        """The lines of the update, from 1, each with the loop that it stands in."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def text_with(self, tensors: Mapping[str, Tensor]) -> str:
        """The text with the numbers of the tensors in it that are neither parameters nor buffers."""
        lines = [*self.lines]
        for key, line in self.held.items():
            wanted = f"parameters[{key!r}]"
            replaced = f"parameters.get({key!r}, {_literal(tensors[key].detach())})"
            lines[line - 1] = lines[line - 1].replace(wanted, replaced, 1)
        return "\n".join(lines) + "\n"

    def add(self, line: str = "", indent: int = 0, note: str = "") -> None:
        """A statement, or an empty line."""
        if line:
            self._statements.append(len(self.lines) + 1)
        line = " " * indent + line
        if note:
            line = f"{line:<{WIDTH}}  # {note}" if len(line) < WIDTH else f"{line}  # {note}"
        self.lines.append(line.rstrip())

    def function(self, lines: list[str]) -> None:
        """A function of the text's own."""
        self.add()
        self.add()
        for line in lines:
            self.add(line)

    def comment(self, text: str, indent: int) -> None:
        """A line for the reader, of whatever text."""
        self.lines.append(" " * indent + "# " + _printable(text).rstrip())

    def check(self) -> None:
        """Have Python's parser find in the text what was written, whatever modules and parameters are called.

        Raises:
            AssertionError: it finds something else, which is a mistake of this package.
        """
        try:
            self.tree = tree = ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            raise AssertionError(f"{_NOT_WRITTEN.format(getattr(error, 'lineno', 1))}: {error}") from error
        nodes = _nodes_of(tree)
        _assert(ast.get_docstring(tree, clean=False) == self._docstring, tree.body[0])
        _assert(isinstance(tree.body[-1], ast.FunctionDef) and tree.body[-1].name == "build", tree.body[-1])
        for statement in tree.body[1:-1]:
            is_ours = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "onednn_linear"
            _assert(is_ours or isinstance(statement, ast.Import | ast.FunctionDef), statement)
        lines = sorted(getattr(node, "lineno", 0) for node in nodes if isinstance(node, ast.stmt))
        _assert(lines == self._statements, tree.body[-1])
        by_kind: dict[type[ast.AST], list[Any]] = {}
        for node in nodes:
            by_kind.setdefault(type(node), []).append(node)
        names = by_kind.get(ast.Name, [])
        known = {*GIVEN, *(node.name for node in by_kind[ast.FunctionDef]), *(node.arg for node in by_kind[ast.arg])}
        known.update(node.id for node in names if isinstance(node.ctx, ast.Store))
        for kind in by_kind:
            _assert(issubclass(kind, _WRITTEN), by_kind[kind][0])
        for node in names:
            _assert(node.id in known, node)
        for node in by_kind.get(ast.Attribute, []):
            _assert(not hasattr(object, node.attr), node)
        for node in by_kind.get(ast.Import, []):
            _assert({item.name for item in node.names} <= _IMPORTED, node)


def _nodes_of(tree: ast.AST) -> list[ast.AST]:
    """All nodes, in half of the time that ``ast.walk`` takes."""
    nodes, left = [], [tree]
    while left:
        node = left.pop()
        nodes.append(node)
        for name in node._fields:
            item = getattr(node, name, None)
            if type(item) is list:
                left += [child for child in item if isinstance(child, ast.AST)]
            elif isinstance(item, ast.AST) and not isinstance(item, ast.expr_context):
                left.append(item)
    return nodes


_IMPORTED = {"torch", "torch.nn.functional", "math"}
_WRITTEN = (
    *(ast.Module, ast.Import, ast.alias, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.For, ast.If),
    *(*(ast.Nonlocal, ast.Delete), ast.Raise),
    *(ast.Assign, ast.AugAssign, ast.Expr, ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Slice, ast.Name),
    *(ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.ListComp, ast.comprehension, ast.BinOp, ast.UnaryOp),
    *(ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)
"""The kinds of syntax in a program."""


_NOT_WRITTEN = "line {} of the derived program is not what was to be written, which is a mistake of torch_manualbp"


def _assert(is_right: bool, node: ast.AST) -> None:
    if not is_right:
        raise AssertionError(_NOT_WRITTEN.format(getattr(node, "lineno", 1)))


@dataclass(frozen=True)
class Given:
    """What a program takes and returns."""

    parameters: dict[str, Value]
    state: dict[str, Value]
    constants: dict[str, Value]
    inputs: list[Value]
    settings: list[str]
    """The hyperparameters, by name."""

    returns: tuple[Value, ...]
    """The loss first."""

    skips: str = ""
    """The section before which a loss that is not finite ends the step, if it is to."""

    held: Collection[str] = ()
    """Which of the parameters are neither parameters nor buffers of the model."""

    finite: Value | None = None
    """What is not finite where the step ends there, if it is not the loss."""

    processes: int = 1
    """How many processes make the step together."""

    def values(self) -> list[Value]:
        """What the program is given."""
        return [*self.parameters.values(), *self.state.values(), *self.constants.values(), *self.inputs]


def write_source(
    plan: Plan, given: Given, heading: list[str], functions: Callable[[Source], None] = lambda source: None
) -> Source:
    """Write ``build(parameters, state)``, which returns the step; before it what ``functions`` writes."""
    loops = list(dict.fromkeys(call.blocks for call in plan.steps if call.blocks is not None))
    names_of_loops = [name for loop in loops for name in (loop.name, loop.variable)]
    names = _names(plan, given.values(), [*given.settings, *names_of_loops, *plan.kernels.values()])
    source = Source(heading)
    source.names = names
    write_imports(source, _uses_functional(plan), _uses_onednn(plan), bool(given.skips))
    write_expect(source, plan.steps)
    functions(source)
    write_given(source, given, names)
    _write_memory(source, plan, names)
    for loop in loops:
        source.add(f"{loop.name} = [slice(i, i + {loop.rows}) for i in range(0, {loop.of}, {loop.rows})]", 4)
    write_signature(source, given, names)
    sections = Sections(source, given, names)
    ends = let_go(plan, given.returns)
    for call in plan.steps:
        indent = sections.go_to(call)
        source.add(statement(call, names, plan), indent, _made(call))
        if call in ends:
            source.add(f"del {', '.join(names[value] for value in ends[call])}", indent)
        if call.section == "update":
            source.update.append((len(source.lines), call.blocks))
    write_return(source, given, names)
    return source


def let_go(plan: Plan, returned: Iterable[Value]) -> dict[Call, list[Value]]:
    """What a step has made and nobody reads any more, by the last call that does: large tensors, whose memory the next
    ones get while it is in the cache."""
    stays = {value.memory for value in plan.memory} | {value.memory for value in returned}
    stays |= {m for item in plan.once for m in (item.made if isinstance(item, Call) else (item[0].memory,))}
    bound: dict[Memory, list[Value]] = {}
    last: dict[Memory, Call] = {}
    for call in plan.steps:
        for value in call.results:
            if value.memory.origin == MADE and value.memory not in stays and (not call.written or call in plan.into):
                bound.setdefault(value.memory, []).append(value)
        for value in (*call.arguments(), *call.results):
            last[value.memory] = call
    found: dict[Call, list[Value]] = {}
    for memory, values in bound.items():
        call = last[memory]
        is_large = any(v.tensor.numel() * v.tensor.element_size() >= LARGE for v in values)
        if is_large and call.section in ("forward", "loss", "backward") and call.blocks is None:
            found.setdefault(call, []).extend(dict.fromkeys(values))
    return found


def write_imports(source: Source, functional: bool, onednn: bool = False, skips: bool = False) -> None:
    source.add()
    if skips:
        source.add("import math")
        source.add()
    source.add("import torch")
    if functional:
        source.add("import torch.nn.functional as F")
    if onednn:
        source.add()
        note = "a Wᵀ + b of (a, W, b, ...), here faster than BLAS"
        source.add(f"onednn_linear = torch.ops.mkldnn._linear_pointwise  # {note}")


def write_expect(source: Source, calls: list[Call]) -> None:
    """The function that ends a step of other numbers than it is for, where there is one to call."""
    if any(call.answer is not None for call in calls):
        source.function(EXPECT)


def write_given(source: Source, given: Given, names: dict[Value, str]) -> None:
    """The head of ``build``, and a name for each tensor that it is given."""
    add = source.add
    add()
    add()
    if given.processes == 1:
        add("def build(parameters, state):")
        add('"""The step on these parameters, by name, which it changes in place."""', 4)
    else:
        add("def build(parameters, state, group=None):")
        add(f'"""The step on these parameters, by name, with the {given.processes} processes of a group."""', 4)
    for key, value in given.parameters.items():
        add(f"{names[value]} = parameters[{key!r}].detach()", 4, shape_of(value))
        if key in given.held:
            source.held[key] = len(source.lines)
    for key, value in given.state.items():
        add(f"{names[value]} = state[{key!r}]", 4, shape_of(value))
    for key, value in given.constants.items():
        if value.number is None:
            add(f"{names[value]} = parameters[{key!r}]", 4, shape_of(value))
            source.held[key] = len(source.lines)
        else:
            add(f"{names[value]} = {_number(value)}", 4)


def _write_memory(source: Source, plan: Plan, names: dict[Value, str]) -> None:
    """What is made before the first step."""
    if plan.memory:
        source.add()
        source.comment("Memory, made once", 4)
        for value in plan.memory:
            source.add(f"{names[value]} = {_empty(value)}", 4)
    if plan.once:
        source.add()
        source.comment("Views of it, values in the memory of others, and what never changes", 4)
        for item in plan.once:
            if isinstance(item, Call):
                source.add(statement(item, names, plan), 4, _made(item))
                continue
            value, other = item
            reshaped = "" if other.tensor.shape == value.tensor.shape else f".view({_shape(value)})"
            source.add(f"{names[value]} = {names[other]}{reshaped}", 4, "in the same memory")


def write_signature(source: Source, given: Given, names: dict[Value, str]) -> None:
    source.add()
    source.add(f"def step({', '.join([*(names[value] for value in given.inputs), *given.settings])}):", 4)


def write_return(source: Source, given: Given, names: dict[Value, str]) -> None:
    """The end of the step, and of ``build``."""
    if source.lines[-1].strip():
        source.add()
    source.add(f"return {', '.join(names[value] for value in given.returns)}", 8)
    source.sections["return"] = len(source.lines)
    source.add()
    source.add("return step", 4)


class Sections:
    """The headings of a step: its sections, layers with their formulas, and loops."""

    def __init__(self, source: Source, given: Given, names: dict[Value, str]) -> None:
        self._source = source
        self._given, self._names = given, names
        self._section = ""
        self._title: tuple[str, ...] = ()
        self._loop: Blocks | None = None

    def go_to(self, call: Call) -> int:
        """Write what stands above a call where it begins something new. Returns how far it is indented."""
        if call.section != self._section:
            self._begin(call.section)
        if call.title != self._title:
            self._title = call.title
            self._write_title(call.title)
        if call.blocks is not self._loop:
            self._loop = loop = call.blocks
            if loop is not None:
                self._source.add(f"for {loop.variable} in {loop.name}:", 8, f"{loop.rows} of {loop.of} rows at a time")
        return 8 if self._loop is None else 12

    def _begin(self, section: str) -> None:
        source = self._source
        self._section, self._title, self._loop = section, (), None
        if source.lines[-1].strip() and not source.lines[-1].strip().startswith(("def ", "nonlocal ")):
            source.add()
        source.sections[section] = len(source.lines) + 1
        source.comment(f"---- {section} " + "-" * (60 - len(section)), 8)
        if section == self._given.skips:
            returned = [self._names[value] for value in self._given.returns]
            finite = returned[0] if self._given.finite is None else self._names[self._given.finite]
            source.add(f"if not math.isfinite({finite}.item()):", 8)  # torch.isfinite takes 5 µs
            source.add(f"return {', '.join(returned)}", 12)
            source.sections[section] = len(source.lines)

    def _write_title(self, title: tuple[str, ...]) -> None:
        if not title:  # what follows belongs to no layer
            if self._source.lines[-1].strip():
                self._source.add()
            return
        head, *formula = title
        head = " ".join(head.split())
        self._source.comment(head + (f":   {formula[0]}" if formula else ""), 8)
        for line in formula[1:]:
            self._source.comment(" " * (len(head) + 4) + line, 8)


def shape_of(value: Value) -> str:
    """A shape, and the dtype if it is not float32, in the way of a comment."""
    t = value.tensor
    dtype = "" if t.dtype == torch.float32 else f" {str(t.dtype).removeprefix('torch.')}"
    return f"({', '.join(map(str, t.shape))}{',' if t.dim() == 1 else ''}){dtype}"


def _names(plan: Plan, given: Iterable[Value], settings: Iterable[str]) -> dict[Value, str]:
    """A name for each value, no two the same, and none that of a hyperparameter."""
    names: dict[Value, str] = {}
    free = Names(settings)
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


class Names:
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


def statement(call: Call, names: dict[Value, str], plan: Plan) -> str:
    """A call as a line of the text."""
    name = getattr(call.function, "__name__", "")
    if call in plan.kernels:
        return f"{plan.kernels[call]}({', '.join(names[value] for value in (*call.args, *call.results))})"
    if name in ASSIGNED:
        return f"{_text(call.args[0], names)} {ASSIGNED[name]} {_text(call.args[1], names)}"
    if name == "__setitem__":
        target, index, item = call.args
        return f"{_text(target, names)}[{index_text(index, lambda item: _text(item, names))}] = {_text(item, names)}"
    if call in plan.into:
        args = [_text(arg, names) for arg in call.args]
        args += [f"{key}={_text(arg, names)}" for key, arg in call.kwargs.items()]
        written = f"{function_text(plan.with_out[call], call.name)}({', '.join(args)}, out={names[plan.into[call]]})"
        result = call.results[0]  # may come to stand where a tensor of this step stood
        return written if plan.into[call] is result else f"{names[result]} = {written}"
    if call.answer is not None:
        return f"expect({question_text(call, lambda item: _text(item, names))}, {_text(call.answer.value, names)})"
    expression = _expression(call, names)
    if call.written and not call.made:
        return expression
    if call.returned is not None:
        return f"{targets_text(call.returned, names)} = {expression}"
    targets = ", ".join(names[value] for value in call.results)
    return f"{targets}{',' if call.is_tuple and len(call.results) == 1 else ''} = {expression}"


def question_text(call: Call, text: Callable[[Any], str]) -> str:
    """What is asked of tensors, as Python has it."""
    name, args = getattr(call.function, "__name__", ""), [text(arg) for arg in call.args]
    if name in _ASKED:
        return f"{_ASKED[name]}({args[0]})"
    if name == "__contains__":
        return f"{args[1]} in {args[0]}"
    if name == "__get__":
        return f"{args[0]}.{call.name}"
    args += [f"{key}={text(arg)}" for key, arg in call.kwargs.items()]
    if name in ("item", "tolist"):
        return f"{args[0]}.{name}()"
    return f"torch.{name}({', '.join(args)})"


_ASKED = {"__bool__": "bool", "__int__": "int", "__index__": "int", "__float__": "float"}


def targets_text(returned: Any, names: dict[Value, str]) -> str:
    """The names of what a call returns, as it returns it."""
    if isinstance(returned, tuple | list):
        items = [targets_text(item, names) for item in returned]
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
        return f"{args[0]}[{index_text(call.args[1], lambda item: _text(item, names))}]"
    if name in INFIX and len(args) == 2:
        return f"{args[0]} {INFIX[name]} {args[1]}"
    if name in REVERSED and len(args) == 2:
        return f"{args[1]} {REVERSED[name]} {args[0]}"
    if name in ("__pow__", "__rpow__") and len(args) == 2:
        base, exponent = args if name == "__pow__" else args[::-1]
        return f"torch.pow({base}, {exponent})"
    if name == "__neg__":
        return f"-{args[0]}"
    if name == "wait":  # of torch.distributed.Work
        return f"{args[0]}.wait()"
    if name == "__invert__":
        return f"~{args[0]}"
    if getattr(Tensor, name, None) is function or is_method(function, name):
        return f"{args[0]}.{name}({', '.join([*args[1:], *keywords])})"
    return f"{function_text(function, name)}({', '.join([*args, *keywords])})"


def is_method(function: Any, name: str) -> bool:
    return type(function).__name__ == "method_descriptor" and hasattr(Tensor, name)


@functools.lru_cache(1024)
def function_text(function: Any, name: str) -> str:
    """A name under which torch has the function."""
    if function is onednn_linear:
        return "onednn_linear"
    if function is Tensor.__pow__:  # which has another function's name
        return "torch.pow"
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
    "torch._C._nn": nn_functions,
    "torch._C._VariableFunctions": variable_functions,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
    "torch.masked": torch.masked,
    "torch.distributed": torch.distributed,
}
"""Where a program finds what it calls."""


def _refusal(function: str, what: str, todo: str) -> NotDerivableError:
    return NotDerivableError([("", f"{_printable(function)}: {_printable(what)}", todo)])


def uses_functional(function: Any) -> bool:
    """Whether it is written as one of torch.nn.functional."""
    return getattr(torch.nn.functional, getattr(function, "__name__", ""), None) == function


def _uses_functional(plan: Plan) -> bool:
    inner = [c for call in plan.steps if isinstance(call.function, Kernel) for c in call.function.calls]
    return any(uses_functional(plan.with_out.get(call, call.function)) for call in (*plan.calls, *inner))


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
    return argument_text(arg, lambda item: _text(item, names))


def argument_text(arg: Any, text: Callable[[Any], str]) -> str:
    """A constant, or a tuple, list or slice of items of which ``text`` is the text."""
    if isinstance(arg, tuple):
        items = [text(item) for item in arg]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(arg, list):
        return f"[{', '.join(text(item) for item in arg)}]"
    if isinstance(arg, slice):
        return f"slice({text(arg.start)}, {text(arg.stop)}, {text(arg.step)})"
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


def index_text(index: Any, text: Callable[[Any], str]) -> str:
    """What stands between brackets, of items of which ``text`` is the text."""
    items = index if isinstance(index, tuple) else (index,)
    texts = []
    for item in items:
        if isinstance(item, slice):
            parts = ["" if part is None else text(part) for part in (item.start, item.stop, item.step)]
            texts.append(":".join(parts if parts[2] else parts[:2]))
        elif item is Ellipsis:
            texts.append("...")
        else:
            texts.append(text(_of_index(item)))
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
    if not call.results or call.name == "all_reduce":
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


def _literal(t: Tensor) -> str:
    """An expression of the tensor's numbers, which needs torch alone."""
    if t.numel() <= 64 and not t.is_complex() and torch.isfinite(t.float()).all():
        return f"torch.tensor({t.tolist()!r}, dtype={t.dtype})"
    raw = t.detach().cpu().contiguous().view(torch.uint8) if t.dim() else t.detach().cpu().reshape(1).view(torch.uint8)
    packed = base64.b85encode(zlib.compress(bytes(raw.reshape(-1).tolist()))).decode()
    unpacked = f'__import__("zlib").decompress(__import__("base64").b85decode({packed!r}))'
    return f"torch.frombuffer(bytearray({unpacked}), dtype={t.dtype}).view({tuple(t.shape)})"
