"""Which rule computes which torch function: every call of torch that a model's forward may be made of.

``OPERATIONS`` maps the function objects that a ``TorchFunctionMode`` sees to functions of the same signature that apply
rules, ``IN_PLACE`` the spellings that write over their first argument to the same, out of place. Of ``nn.functional``'s
functions with an ``inplace`` the result is out of place, too; :func:`is_in_place` tells.

Every number that depends on a tensor comes out of a rule, outside of autocast, whose casts stand beside them; so do
constants, such as the mask of a dropout. Where torch returns a view a rule returns a tensor of its own: a change of one
in place does not reach the other. Where no rule computes what the arguments ask for, :class:`NoRule` is raised.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp import functional, rules
from torch_manualbp._torch import TorchDispatchMode, parsed_to, without_torch_function
from torch_manualbp.catalogue import CATALOGUE, FAMILIES, named
from torch_manualbp.derive.composites import COMPOSITES, REFUSED, NoRule
from torch_manualbp.derive.expected import by_places
from torch_manualbp.derive.program import leaves_of
from torch_manualbp.functional import activation, recurrent
from torch_manualbp.functional.dropouts import left_out

__all__ = ["COMPOSED", "IN_PLACE", "OPERATIONS", "NoRule", "is_in_place"]

Function = Callable[..., Any]


# Arithmetic


def _sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return rules.Difference.apply(input, other, 0.0) if alpha == 1 else rules.Add.apply(input, other, -alpha)


def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _sub(other, input, alpha=alpha)


def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        raise NoRule(f"div with rounding_mode={rounding_mode!r} has no rule: its derivative is 0; detach its operands")
    return rules.Divide.apply(input, other)


def _rdiv(input: Any, other: Any) -> Tensor:
    return _div(other, input)


def _square(input: Tensor) -> Tensor:
    return rules.Power.apply(input, 2)


def _pow(input: Any, exponent: Any) -> Tensor:
    if isinstance(exponent, Tensor):
        return rules.PowerOf.apply(input, exponent)
    if exponent == 0:
        raise NoRule("pow with exponent 0 has no rule: it is 1 and its derivative 0; write torch.ones_like")
    return rules.Power.apply(input, exponent)


def _rpow(input: Tensor, other: Any) -> Tensor:
    return rules.PowerOf.apply(other, input)


def _where(condition: Tensor, input: Any, other: Any) -> Tensor:
    return rules.Where.apply(condition, input, other)


def _where_of(input: Any, condition: Tensor, other: Any) -> Tensor:
    return rules.Where.apply(condition, input, other)


def _itself(input: Tensor) -> Tensor:
    return input


# Products of matrices


def _rmatmul(input: Tensor, other: Tensor) -> Tensor:
    return rules.MatMul.apply(other, input)


# Shapes


def _reshaping(function: Function) -> Function:
    """torch works out the new shape, on a tensor without numbers."""

    def reshape(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
            raise NoRule("view as another dtype has no rule; write input.to(dtype) if the numbers are meant")
        with without_torch_function():  # of another tensor, too, only the shape is read
            shape = _shape(function(_without_numbers(input), *args, **kwargs))
        return rules.Reshape.apply(input, shape)

    return reshape


def _t(input: Tensor) -> Tensor:
    with without_torch_function():
        _without_numbers(input).t()  # which takes matrices and vectors alone
    return rules.Transpose.apply(input, 0, 1) if input.dim() == 2 else rules.Identity.apply(input)


def _T(input: Tensor) -> Tensor:
    return rules.Permute.apply(input, tuple(reversed(range(input.dim()))))


def _mT(input: Tensor) -> Tensor:
    return rules.Transpose.apply(input, -2, -1)


def _mH(input: Tensor) -> Tensor:
    if input.is_complex():
        raise NoRule("mH of complex numbers has no rule; write input.mT.conj()")
    return _mT(input)


def _permute(input: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    return rules.Permute.apply(input, _integers(*dims, *kwargs.values()))


def _movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    n = input.dim()
    at = dict(zip(_integers(destination), _integers(source), strict=True))
    at = {d % n: s % n for d, s in at.items()}
    others = iter(d for d in range(n) if d not in at.values())
    return rules.Permute.apply(input, tuple(at[d] if d in at else next(others) for d in range(n)))


def _expand(input: Tensor, *size: Any, **kwargs: Any) -> Tensor:
    return rules.Expand.apply(input, _integers(*size, *kwargs.values()))


def _expand_as(input: Tensor, other: Tensor) -> Tensor:
    return rules.Expand.apply(input, _shape(other))


def _contiguous(input: Tensor, *, memory_format: Any = torch.contiguous_format) -> Tensor:
    """Another layout has the same numbers."""
    if input.is_contiguous(memory_format=memory_format):
        return input
    if memory_format is not torch.contiguous_format:
        return rules.Identity.apply(input)
    # The layout decides the order in which a later dropout draws.
    return rules.Reshape.apply(rules.Reshape.apply(input, (input.numel(),)), _shape(input))


def _clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    return rules.Identity.apply(input)


# Several tensors, and parts


def _split(tensor: Tensor, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    return _parts(tensor, dim, lambda along: along.split(split_size))


def _split_with_sizes(input: Tensor, split_sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    return _parts(input, dim, lambda along: along.split(split_sizes))


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return _parts(input, dim, lambda along: along.chunk(chunks))


def _parts(input: Tensor, dim: int, cut: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Tensor, ...]:
    sizes = tuple(len(part) for part in cut(torch.empty(input.shape[dim], device="meta")))
    return rules.Split.apply(input, sizes, dim)


def _select(input: Tensor, dim: int, index: int) -> Tensor:
    return rules.Slice.apply(input, _along(input, dim, index))


def _narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    start = start if start >= 0 else start + input.shape[dim]
    return rules.Slice.apply(input, _along(input, dim, slice(start, start + length)))


def _index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    if not input.dim():
        return rules.Identity.apply(input)
    return rules.Index.apply(input, *[None] * (dim % input.dim()), index)


def _getitem(input: Tensor, index: Any) -> Tensor:
    """torch takes the index apart, however it is written; each of its own steps is then one of a rule."""
    grid = _Grid(input.dim())
    for step in _steps_of_index(input, index):
        if isinstance(step, list):
            input = rules.Index.apply(grid.of(input), *step)
            grid = _Grid(input.dim())
        elif not grid.takes(*step):
            input = grid.of(input)
            grid = _Grid(input.dim())
            grid.takes(*step)
    return grid.of(input)


def _setitem(input: Tensor, index: Any, value: Any) -> Tensor:
    """What the tensor is with these entries changed."""
    y = _cast(value, input.dtype) if isinstance(value, Tensor) else value
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        rest = input.dim() - index.dim()
        if not isinstance(value, Tensor) or value.dim() <= rest or value.numel() == 1:
            return _set_where(input, index, y, rest)
    return _set_by(_steps_of_index(input, by_places(index)), input, y)


def _filled(input: Tensor, value: Any) -> Tensor:
    return _cast(value, input.dtype).expand(input.shape) if torch.is_tensor(value) else torch.full_like(input, value)


def _zeroed(input: Tensor) -> Tensor:
    return torch.zeros_like(input)


def _set_where(input: Tensor, mask: Tensor, value: Any, rest: int) -> Tensor:
    mask = mask.reshape((*mask.shape, *[1] * rest))
    y = rules.Reshape.apply(value, ()) if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(y, Tensor) and y.dim():
        return rules.Where.apply(mask, y, input)
    return rules.MaskedFill.apply(input, mask, y)


def _set_by(steps: list[Any], input: Tensor, value: Any) -> Tensor:
    """The entries on a grid first, and of these those that tensors name."""
    grid, later = _Grid(input.dim()), list(steps)
    while later and not isinstance(later[0], list) and grid.takes(*later[0]):
        later.pop(0)
    if not later:
        return rules.Assign.apply(input, value, tuple(grid.items))
    part = grid.of(input)
    part = _put(part, later[0], value, later[1:]) if isinstance(later[0], list) else _set_by(later, part, value)
    is_whole = all(isinstance(item, slice) and item == slice(None) for item in grid.items)
    return part if is_whole else rules.Assign.apply(input, part, tuple(grid.items))


def _put(input: Tensor, index: list[Any], value: Any, later: list[Any]) -> Tensor:
    y = value if isinstance(value, Tensor) else input.new_full((), value)
    if later:
        y = _set_by(later, rules.Index.apply(input, *index), y)
    return rules.IndexPut.apply(input, y, False, *index)


class _Grid:
    """Integers, slices and None that come one after the other, as one index."""

    def __init__(self, dims: int) -> None:
        self.items: list[Any] = [slice(None)] * dims

    def takes(self, dim: int, item: Any) -> bool:
        """Put an item where this dimension of what is left is, unless another is there already."""
        left = [k for k, other in enumerate(self.items) if not isinstance(other, int)]
        k = left[dim] if dim < len(left) else len(self.items)
        if item is None:
            self.items.insert(k, None)
        elif self.items[k] != slice(None):
            return False
        else:
            self.items[k] = item
        return True

    def of(self, input: Tensor) -> Tensor:
        while self.items and self.items[-1] == slice(None):
            self.items.pop()
        return rules.Slice.apply(input, tuple(self.items)) if self.items else input


class _Steps(TorchDispatchMode):
    """Takes down what torch makes of an index: a dimension and the item for it, or the tensors of all dimensions."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = set(map(id, given))
        self.steps: list[Any] = []
        self.number: Tensor | None = None
        """The tensor without dimensions, of those that are given, whose number torch selects by."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled under this mode, and torch would import its compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        step, args_of_step = function.overloadpacket.__name__, args[1:]
        if step == "_local_scalar_dense":
            self.number = args[0] if id(args[0]) in self.given else None
        elif step == "select":
            dim, i = args_of_step
            self.steps.append((dim, i) if self.number is None else [*[None] * dim, self.number])
            self.number = None
        elif step == "slice":
            dim, start, end, stride = args_of_step + _WHOLE[len(args_of_step) :]
            self.steps.append(
                (dim, slice(start or None, None if end == _ENDLESS else end, stride if stride > 1 else None))
            )
        elif step == "unsqueeze":
            self.steps.append((*args_of_step, None))
        elif step == "index":
            self.steps.append(list(args_of_step[0]))
        return function(*args, **(kwargs or {}))


_ENDLESS = 2**63 - 1
_WHOLE: tuple[int, ...] = (0, 0, _ENDLESS, 1)
"""The arguments of a slice where torch leaves them away."""


def _steps_of_index(input: Tensor, index: Any) -> list[Any]:
    given = list(leaves_of(index, Tensor))
    if any(t.dtype in (torch.bool, torch.uint8) for t in given):
        raise NoRule("an index of booleans has no rule: the shape of its result depends on numbers; multiply by them")
    if not _is_plain(index):
        raise NoRule("an index of which torch reads numbers has no rule; write integers, or a tensor by itself")
    written = _Steps(given)
    with without_torch_function(), torch.no_grad(), written:
        input.new_empty(()).expand(input.shape)[index]
    used = {id(t) for step in written.steps if isinstance(step, list) for t in step}
    if not used.issuperset(map(id, given)):
        raise NoRule("an index of which torch reads numbers has no rule; write integers, or a tensor by itself")
    for step in written.steps:
        if isinstance(step, list):
            for k, t in reversed([*enumerate(step)]):
                if t is not None and not any(t is other for other in given):
                    step[k : k + 1] = _written_out(t)
    return written.steps


def _is_plain(item: Any) -> bool:
    """Whether no tensor is hidden in it."""
    if isinstance(item, tuple | list):
        return all(map(_is_plain, item))
    if isinstance(item, slice):
        return not any(True for _ in leaves_of(item, Tensor))
    return isinstance(item, Tensor | range | Number | EllipsisType | None) or hasattr(item, "dtype")


def _written_out(t: Tensor) -> list[Tensor]:
    """What torch has made of lists and arrays, as the program can make it: of booleans the places of those that are."""
    with without_torch_function():
        parts = t.nonzero(as_tuple=True) if t.dtype in (torch.bool, torch.uint8) else (t,)
        numbers = [(part.tolist(), part.shape) for part in parts]
    return [torch.tensor(n, dtype=torch.int64, device=t.device).reshape(shape) for n, shape in numbers]


def _along(input: Tensor, dim: int, i: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * (dim % input.dim()), i)


# Sums


def _sum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return rules.Sum.apply(_cast(input, dtype), _dims(dim), keepdim)


def _mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return rules.Mean.apply(_cast(input, dtype), _dims(dim), keepdim)


def _dims(dim: Any) -> tuple[int, ...] | None:
    """The dimensions to sum over; torch takes none at all for all of them."""
    return None if dim is None else _integers(dim) or None


def _sum_to_size(input: Tensor, *size: Any) -> Tensor:
    size = _integers(*size)
    lead = input.dim() - len(size)
    dims = (*range(lead), *(lead + i for i, n in enumerate(size) if n == 1 and input.shape[lead + i] != 1))
    summed = rules.Sum.apply(input, dims, True) if dims else input
    return rules.Reshape.apply(summed, size) if lead else summed


# Dropout


def _dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return functional.dropout(input, p, train)


def _feature_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return left_out(input, p, train, inplace=False, channels=2)


def _alpha_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return functional.alpha_dropout(input, p, train)


def _feature_alpha_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return functional.feature_alpha_dropout(input, p, train)


# Dtypes


def _cast(input: Tensor, dtype: torch.dtype | None) -> Tensor:
    return input if dtype in (None, input.dtype) else rules.Cast.apply(input, dtype)


def _casting(dtype: torch.dtype) -> Function:
    def cast(input: Tensor) -> Tensor:
        return _cast(input, dtype)

    return cast


def _to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    device, dtype, _, _ = parsed_to(*args, **kwargs)
    if device is not None and torch.empty(0, device=device).device != input.device:
        raise NoRule(f"to(device={str(device)!r}) has no rule; move the inputs and the model there beforehand")
    return rules.Cast.apply(input, dtype or input.dtype) if copy else _cast(input, dtype)


def _type(input: Tensor, dtype: Any) -> Tensor:
    return _cast(input, dtype if isinstance(dtype, torch.dtype) else torch.empty(0).type(dtype).dtype)


def _type_as(input: Tensor, other: Tensor) -> Tensor:
    return _to(input, other)


# Layers and losses


def _softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None, *, twin: Function
) -> Tensor:
    return twin(_cast(input, dtype), dim, _stacklevel)


def _torch_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None, *, twin: Function) -> Tensor:
    return twin(_cast(input, dtype), dim)


def _rrelu(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    if training and not input.is_contiguous():
        raise NoRule("rrelu of a tensor that is not contiguous has no rule; write input.reshape(input.shape) before it")
    return functional.rrelu(input, lower, upper, training)


def _gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """As ours, with the variance made of rules, too."""
    if not isinstance(var, Tensor):
        return functional.gaussian_nll_loss(input, target, var, full, eps, reduction)
    v = rules.Reshape.apply(var, (*var.shape, 1) if var.dim() < input.dim() else _shape(var))
    with torch.no_grad():
        v.clamp_(min=eps)
    r = rules.Difference.apply(input, target, 0.0)
    return rules.GaussianNegativeLogLikelihood.apply(r, v, full, reduction)


def _leaves_to_autograd(name: str, given: Mapping[str, Any]) -> str | None:
    """The argument with which ours leaves a part of the function to autograd."""
    if name in ("l1_loss", "mse_loss", "huber_loss") and given.get("weight") is not None:
        return "weight"
    if name == "kl_div":
        return next((flag for flag in ("size_average", "reduce") if given.get(flag) is not None), None)
    if name in ("embedding", "embedding_bag"):  # of which the second writes over the weight, which learns
        return next((option for option in ("sparse", "max_norm") if given.get(option) not in (None, False)), None)
    is_own = given.get("distance_function") not in (None, torch.pairwise_distance)
    return "distance_function" if name == "triplet_margin_with_distance_loss" and is_own else None


def _twin(name: str) -> Function:
    """The function of ours, out of place, where it is made of rules alone."""
    ours = getattr(functional, name)
    signature = inspect.signature(ours)

    is_running = False

    @functools.wraps(ours)
    def twin(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal is_running
        if is_running:  # ours hands on to torch's what it does not take, or what torch refuses
            raise NoRule(f"{name} of these arguments has no rule")
        given = signature.bind(*args, **kwargs)
        if reason := _leaves_to_autograd(name, given.arguments):
            raise NoRule(f"{name} with {reason}=… has no rule; leave it away, or write it out in operations that have")
        given.arguments.pop("inplace", None)
        try:
            is_running = True  # one tape runs at a time
            return ours(*given.args, **given.kwargs)
        finally:
            is_running = False

    return twin


# The tables

_SPELLED: Mapping[Function, str] = {
    _sub: "sub subtract __sub__",
    _rsub: "rsub __rsub__",
    _div: "div divide true_divide __div__ __truediv__",
    _rdiv: "__rdiv__ __rtruediv__",
    _square: "square",
    _pow: "pow __pow__",
    _rpow: "__rpow__",
    _itself: "positive __pos__",
    _rmatmul: "__rmatmul__",
    _t: "t",
    _permute: "permute",
    _movedim: "movedim moveaxis",
    _expand: "expand broadcast_to",
    _expand_as: "expand_as",
    _contiguous: "contiguous",
    _clone: "clone",
    _split: "split",
    _split_with_sizes: "split_with_sizes",
    _chunk: "chunk",
    _select: "select",
    _narrow: "narrow",
    _index_select: "index_select",
    _getitem: "__getitem__",
    _sum: "sum",
    _mean: "mean",
    _sum_to_size: "sum_to_size",
    _dropout: "dropout",
    _feature_dropout: "feature_dropout",
    _alpha_dropout: "alpha_dropout",
    _feature_alpha_dropout: "feature_alpha_dropout",
    _to: "to",
    _type: "type",
    _type_as: "type_as",
}
"""The names, of functions of torch and of methods, that each of these computes. Where the arguments of torch's function
are those of a rule, a row of the catalogue names it, and that of ``functional`` is another; these take more."""

_RESHAPES = "reshape view view_as reshape_as flatten ravel unflatten squeeze unsqueeze"
_CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
_CHANGE_SHAPES = ["squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_", "resize_as_"]
_AUGMENTED = {"iadd": "add", "isub": "sub", "imul": "mul", "idiv": "div", "itruediv": "div", "ipow": "pow"}

_KEYWORDS = {
    **{"axis": "dim", "axis0": "dim0", "axis1": "dim1", "keepdims": "keepdim", "split_size_or_sections": "split_size"},
    **{"self": "input", "mat2": "other", "vec": "other", "tensor": "other"},
}
"""Other names that torch has for some arguments."""


def _callable_as(name: str, function: Function) -> Function:
    """The function, with torch's other names for its arguments; a call that it has no place for is none of a rule."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        keywords = {k: value for k, value in kwargs.items() if (k, value) != ("out", None)}
        keywords = {k if k in signature.parameters else _KEYWORDS.get(k, k): v for k, v in keywords.items()}
        try:
            given = signature.bind(*args, **keywords)
        except TypeError as error:
            raise NoRule(f"{name} with these arguments has no rule: {error}") from None
        return function(*given.args, **given.kwargs)

    return call


def _applying(rule: type[rules.Rule], arguments: Callable[..., tuple[Any, ...]]) -> Function:
    """The rule, called as torch's function is."""

    @functools.wraps(arguments)
    def apply(*args: Any, **kwargs: Any) -> Any:
        return rule.apply(*arguments(*args, **kwargs))

    return apply


def _operations() -> dict[Any, Function]:
    table: dict[Any, Function] = {}
    for operation in CATALOGUE:
        if operation.arguments is not None:
            function = _applying(operation.rule, operation.arguments)
            for name in operation.functions.split():
                found = [*named(name, torch, Tensor), *_special(name)]
                table.update(dict.fromkeys(found, _callable_as(name, function)))
    for function, names in _SPELLED.items():
        for name in names.split():
            table.update(dict.fromkeys(named(name, torch, Tensor), _callable_as(name, function)))
    for name in _RESHAPES.split():
        for f in named(name, torch, Tensor):
            table[f] = _callable_as(name, _reshaping(f))
    for name, dtype in _CASTS.items():
        table[getattr(Tensor, name)] = _callable_as(name, _casting(dtype))
    for name, function in (("T", _T), ("mT", _mT), ("mH", _mH)):
        table[getattr(Tensor, name).__get__] = _callable_as(name, function)
    for names, todo in REFUSED.items():
        for name in names.split():
            table.update(dict.fromkeys(_everywhere(name), _refusing(name, todo)))
    for function, names in COMPOSITES.items():
        for name in names.split():
            table.update(dict.fromkeys(_everywhere(name), _callable_as(name, function)))
    table[torch.where], table[Tensor.where] = _callable_as("where", _where), _callable_as("where", _where_of)
    for name in functional.__all__:
        twin = _own_twin(name) or _twin(name)
        elsewhere = name in activation.__all__ + recurrent.__all__
        hosts = (F, functional, torch, Tensor) if elsewhere else (F, functional)
        table.update(dict.fromkeys(named(name, *hosts), _callable_as(name, twin)))
    for name in ("softmax", "log_softmax"):
        softmax = functools.partial(_torch_softmax, twin=getattr(functional, name))
        table.update(dict.fromkeys(named(name, torch, Tensor), _callable_as(name, softmax)))
    return table


def _everywhere(name: str) -> list[Any]:
    """What torch calls so; a name may have a room of torch before it, such as ``linalg.norm``."""
    room, _, own = name.rpartition(".")
    if room:
        return named(own, operator.attrgetter(room)(torch))
    return [*named(name, torch, Tensor), *_special(name)]


def _refusing(name: str, todo: str) -> Function:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NoRule(f"{name} has no rule; {todo}")

    return refuse


def _special(name: str) -> list[Any]:
    """What torch.special has by this name."""
    return named(name, torch.special)


def _own_twin(name: str) -> Function | None:
    if name in ("softmax", "softmin", "log_softmax"):
        return functools.partial(_softmax, twin=getattr(functional, name))
    return _rrelu if name == "rrelu" else _gaussian_nll_loss if name == "gaussian_nll_loss" else None


def _in_place() -> dict[Any, Function]:
    table: dict[Any, Function] = {}
    for name in dir(Tensor):
        plain = getattr(Tensor, name[:-1], None)
        is_one = name.endswith("_") and not name.startswith("_") and name not in _CHANGE_SHAPES
        if is_one and plain in OPERATIONS and name[:-1] not in " ".join(REFUSED).split():
            table.update(dict.fromkeys(named(name, torch, Tensor), OPERATIONS[plain]))
    for name, of in _AUGMENTED.items():
        table.update(dict.fromkeys(named(f"__{name}__", Tensor), OPERATIONS[getattr(Tensor, of)]))
    for operation in FAMILIES["activations"]:
        for name in operation.functions.split():
            plain_ones = named(name, functional, torch)
            table.update(dict.fromkeys(named(f"{name}_"), OPERATIONS[plain_ones[0]]))
    for name, function in (("zero_", _zeroed), ("fill_", _filled)):
        table.update(dict.fromkeys(named(name, torch, Tensor), _callable_as(name, function)))
    table[Tensor.__setitem__] = _callable_as("__setitem__", _setitem)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        table[getattr(torch, f"{name}_")] = OPERATIONS[getattr(torch, name)]
    return table


OPERATIONS: dict[Any, Function] = _operations()
"""For each function of torch one of the same signature that applies rules."""

IN_PLACE: dict[Any, Function] = _in_place()
"""For each function that writes over its first argument one that returns what it writes."""

COMPOSED = frozenset(
    function
    for names in (*COMPOSITES.values(), "__setitem")
    for name in names.split()
    for function in [getattr(Tensor, f"{name}_", None), getattr(Tensor, f"{name}__", None)]
    if function in IN_PLACE
)
"""Those whose result is made of others, and of which torch's own is called where nothing is learnt."""


def is_in_place(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call writes its result over its first argument."""
    if function in IN_PLACE:
        return True
    names = list(inspect.signature(OPERATIONS[function]).parameters) if function in OPERATIONS else []
    if "inplace" not in names:
        return False
    position = names.index("inplace")
    return bool(args[position] if len(args) > position else kwargs.get("inplace", False))


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def _without_numbers(t: Tensor) -> Tensor:
    return torch.empty(t.shape, device="meta")


def _integers(*given: Any) -> tuple[int, ...]:
    """Integers, or one sequence of them."""
    with contextlib.suppress(TypeError):
        return tuple(map(operator.index, given))
    return tuple(map(operator.index, *given))
