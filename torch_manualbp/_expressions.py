"""Expressions of a command line: read as Python, and followed node by node, where ``eval`` would run anything.

There are literals, tuples, lists and dictionaries, arithmetic, comparisons, indices, and calls of what has a name. The
names are those that are handed over; Python's own functions are not among them, except for ``float("nan")`` and its
like.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping
from types import EllipsisType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

__all__ = ["data_names", "evaluate"]

UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
NUMBERS = {"bool": bool, "complex": complex, "float": float, "int": int}
MOST_BITS = 4096
"""Bits of a whole number at most: 9**9**9 would take hours."""
MOST_ENTRIES = 1_000_000
"""Entries at most of a list that is repeated."""


def _words(text: str) -> list[str]:
    return text.split()


FUNCTIONS = _words("""
    arange bernoulli eye full full_like linspace logspace multinomial normal ones ones_like poisson rand rand_like
    randint randint_like randn randn_like randperm tensor zeros zeros_like
    abs angle argmax argmin argsort block_diag cat clamp concat conj cos cosh cumprod cumsum device diag diag_embed
    einsum exp expm1 flip floor hstack imag kron log log1p log_softmax matmul max maximum mean min minimum mm nan_to_num
    outer permute polar prod real reshape roll round rsqrt sigmoid sign sin sinh softmax sort sqrt square squeeze stack
    std sum tanh transpose tril triu unsqueeze var view_as_complex view_as_real vstack where
""")
CONSTANTS = _words("channels_last channels_last_3d contiguous_format e inf nan newaxis pi preserve_format strided")
OF_FUNCTIONAL = _words("log_softmax logsigmoid normalize one_hot pad relu sigmoid softmax softplus tanh")
METHODS = {
    *(name for name in FUNCTIONS if hasattr(Tensor, name)),
    *_words("""
    H T add bfloat16 bool byte chunk clone contiguous cdouble cfloat detach div double dtype exponential_ expand fill_
    flatten float fmod half index_fill int log_normal_ long mH mT masked_fill movedim mul narrow ndim neg new_full
    new_ones new_tensor new_zeros norm normal_ pow random_ repeat repeat_interleave requires_grad_ select shape short
    size split sub swapaxes t take to tolist type type_as unbind unflatten unfold uniform_ view
    """),
}
"""Methods of tensors."""


def data_names() -> dict[str, Any]:
    """What data may be made of: functions of torch that make and change tensors, dtypes, and a few constants.

    ``torch.`` may stand before each of them.
    """
    names = {name: getattr(torch, name) for name in (*FUNCTIONS, *CONSTANTS)}
    names |= {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    functional = {name: getattr(torch.nn.functional, name) for name in OF_FUNCTIONAL}
    names |= {"one_hot": functional["one_hot"], "nn": SimpleNamespace(functional=SimpleNamespace(**functional))}
    return {**names, "torch": SimpleNamespace(**names)}


def evaluate(text: str, names: Mapping[str, Any], *, own_code: bool = False) -> Any:
    """What the expression is in these names.

    Args:
        own_code: the names are those of a module that the user has asked for, so that every attribute in them may be
            followed; otherwise those of tensors, listed here, are.

    Raises:
        SyntaxError, NameError, AttributeError: it is no expression; a name or an attribute is not there or not listed.
        ValueError: it holds something else than is said above.
        Exception: whatever a function raises that is called.
    """
    return _Evaluation(names, own_code).value(ast.parse(text.strip(), mode="eval").body)


class _Evaluation:
    def __init__(self, names: Mapping[str, Any], own_code: bool) -> None:
        self.names = names
        self.own_code = own_code

    def value(self, node: ast.expr) -> Any:
        """What a node is."""
        match node:
            case ast.Constant(value=bool() | int() | float() | complex() | str() | EllipsisType() | None):
                return node.value
            case ast.Name(id=name):
                return self._name(name)
            case ast.Attribute(value=of, attr=name):
                return self._attribute(self.value(of), name)
            case ast.Call(func=ast.Name() | ast.Attribute() as function):
                return self._call(function, node)
            case ast.Tuple(elts=entries):
                return tuple(map(self.value, entries))
            case ast.List(elts=entries):
                return list(map(self.value, entries))
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return {self.value(k): self.value(v) for k, v in zip(keys, values, strict=True) if k is not None}
            case ast.UnaryOp(op=op, operand=operand):
                return UNARY[type(op)](self.value(operand))
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in BINARY:
                return self._binary(operation, self.value(left), self.value(right))
            case ast.Compare(left=left, ops=[comparison], comparators=[right]) if type(comparison) in COMPARISONS:
                return COMPARISONS[type(comparison)](self.value(left), self.value(right))
            case ast.Subscript(value=of, slice=index):
                return self.value(of)[self.value(index)]
            case ast.Slice(lower=lower, upper=upper, step=step):
                return slice(*(None if part is None else self.value(part) for part in (lower, upper, step)))
        raise ValueError(f"{ast.unparse(node)!r} is no literal, arithmetic, or call of a name with such arguments")

    def _name(self, name: str) -> Any:
        if name not in self.names or name.startswith("__"):
            near = difflib.get_close_matches(name, [n for n in self.names if not n.startswith("_")], 1)
            raise NameError(f"name {name!r} is not defined{f'; did you mean {near[0]!r}?' if near else ''}")
        return self.names[name]

    def _attribute(self, of: Any, name: str) -> Any:
        listed = name in vars(of) if isinstance(of, SimpleNamespace) else isinstance(of, Tensor) and name in METHODS
        if name.startswith("__") or not (listed or self.own_code):
            kind = "torch" if isinstance(of, SimpleNamespace) else type(of).__name__
            raise AttributeError(f"{name!r} of {kind} may not be used here")
        return getattr(of, name)

    def _call(self, function: ast.Name | ast.Attribute, node: ast.Call) -> Any:
        number = NUMBERS.get(function.id) if isinstance(function, ast.Name) else None
        # torch.float is a dtype, which nobody calls.
        plain = number is not None and isinstance(self.names.get(number.__name__), torch.dtype | None)
        called = number if plain else self.value(function)
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"{ast.unparse(node)!r}: write its keywords one by one")
        keywords = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        return called(*map(self.value, node.args), **keywords)  # type: ignore[misc]

    def _binary(self, operation: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(left, str | bytes) or isinstance(right, str | bytes):
            raise ValueError("there is no arithmetic of strings here")
        whole = isinstance(left, int) and isinstance(right, int)
        if isinstance(operation, ast.Pow) and whole and abs(left) > 1 and left.bit_length() * right > MOST_BITS:
            raise ValueError(f"{left} ** {right} is too large a number")
        if isinstance(operation, ast.Mult):
            for several, times in ((left, right), (right, left)):
                if isinstance(several, list | tuple) and isinstance(times, int) and len(several) * times > MOST_ENTRIES:
                    raise ValueError(f"a list of {len(several)} entries, {times} times, is too long")
        return BINARY[type(operation)](left, right)
