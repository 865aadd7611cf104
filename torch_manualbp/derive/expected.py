"""Numbers that forward reads: a branch on a mask, the lengths of a batch, how many entries a mask has.

What is read is a part of what a program is derived for, as shapes are. The program asks the same question where forward
asked it, before it has changed anything: ``expect(bool(mask.all()), True)``. Where the answer is another one, the step
runs the program that is for that answer, or derives it. Whole numbers and truth values are read so, and shapes that
follow from them; a real number is another one at nearly each step, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.derive.program import Answer, Call, leaves_of, mapped, words

__all__ = [
    "ANSWERED",
    "COUNTED",
    "EXPECT",
    "UNIQUE",
    "OtherNumbersError",
    "answers_of",
    "by_places",
    "has_sizes",
    "is_answer",
    "is_counted",
    "with_whole_sizes",
]

ENTRIES = 1 << 12
"""How many numbers of a list are read at most."""

ANSWERED = words("__bool__ __int__ __index__ __float__ __contains__ item tolist equal allclose is_nonzero")
"""What returns numbers of Python."""

EXPECT = [
    "def expect(found, wanted):",
    '    """What is read of the numbers is part of what a step is derived for."""',
    "    if found != wanted:",
    '        raise ValueError("this step is for %r, and here it is %r: derive another" % (wanted, found))',
]


class OtherNumbersError(Exception):
    """A program is for other numbers than those that are there."""

    def __init__(self, met: list[Any]) -> None:
        super().__init__(f"{met[-1]!r} is read")
        self.met = met
        """What the program has read, the last of it unexpected."""


def is_answer(value: Any) -> bool:
    """Whether a program may be derived for this."""
    if isinstance(value, list | tuple):
        return _count(value) <= ENTRIES and all(map(is_answer, value))
    return isinstance(value, bool | int)


def _count(value: Any) -> int:
    return sum(map(_count, value)) if isinstance(value, list | tuple) else 1


def answers_of(calls: list[Call]) -> list[Answer]:
    """What a program expects, in order."""
    return [call.answer for call in calls if call.answer is not None]


# Functions whose result has a shape that follows from numbers, by others whose shape is known once those are read


def _places(mask: Tensor) -> Tensor:
    """Where the entries stand that are not 0, a row each."""
    return torch.nonzero_static(mask, size=int(torch.count_nonzero(mask)))


def _nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    return _places(input).unbind(1) if as_tuple else _places(input)


def _where(condition: Tensor) -> Any:
    return _places(condition).unbind(1)


def _masked_select(input: Tensor, mask: Tensor) -> Tensor:
    x, m = torch.broadcast_tensors(input, mask)
    return x[m]


def by_places(index: Any) -> Any:
    """An index with the places of the entries for a mask, and with whole numbers for tensors in slices."""
    if isinstance(index, tuple):
        return tuple(item for part in index for item in _by_places(part))
    parts = _by_places(index)
    return parts[0] if len(parts) == 1 else tuple(parts)


def _by_places(item: Any) -> list[Any]:
    if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
        return list(_places(item).unbind(1)) if item.dim() else [bool(item)]
    if isinstance(item, slice):
        return [slice(*map(_whole, (item.start, item.stop, item.step)))]
    return [item]


def _whole(item: Any) -> Any:
    if not isinstance(item, Tensor):
        return item
    return int(item) if item.numel() == 1 else item.tolist()


def _getitem(input: Tensor, index: Any) -> Tensor:
    return input[by_places(index)]


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    return F.one_hot(tensor, int(tensor.max()) + 1)


def _bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    n = max(minlength, int(input.max()) + 1 if input.numel() else 0)
    total = torch.zeros(n, dtype=torch.int64 if weights is None else weights.dtype, device=input.device)
    return torch.scatter_add(total, 0, input.long(), torch.ones_like(input).long() if weights is None else weights)


def _repeat_interleave(
    input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    if repeats is None:
        return torch.repeat_interleave(input, output_size=int(input.sum()))
    n = input.numel() if dim is None else input.shape[dim]
    size = int(repeats.sum()) * (n if repeats.numel() == 1 else 1)
    repeats = repeats.expand(n) if repeats.numel() == 1 else repeats
    return torch.repeat_interleave(input, repeats, dim, output_size=size)


COUNTED: Mapping[str, Callable[..., Any]] = {
    "nonzero": _nonzero,
    "argwhere": _places,
    "where": _where,
    "masked_select": _masked_select,
    "__getitem__": _getitem,
    "one_hot": _one_hot,
    "bincount": _bincount,
    "repeat_interleave": _repeat_interleave,
}

_MADE_OF_SIZES = words("arange linspace logspace range zeros ones empty full rand randn randint randperm eye")
_SIZED = words(
    "view reshape expand repeat tile unflatten split chunk narrow select tensor_split roll "
    "new_zeros new_ones new_empty new_full broadcast_to"
)
UNIQUE = words("unique unique_consecutive _unique2")


def is_counted(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the shape of the result is a matter of numbers."""
    if name in ("nonzero", "argwhere", "masked_select", "bincount") or name in UNIQUE:
        return True
    if name == "__getitem__":
        items = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        masks = any(item.dtype in (torch.bool, torch.uint8) for item in leaves_of(items, Tensor))
        return masks or any(True for item in items if isinstance(item, slice) for _ in leaves_of(item, Tensor))
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "one_hot":
        return (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1
    if name == "repeat_interleave":
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats", args[0] if len(args) == 1 else None)
        return isinstance(repeats, Tensor) and kwargs.get("output_size") is None
    return has_sizes(name, args, kwargs)


def has_sizes(name: str, args: Any, kwargs: Any) -> bool:
    """Whether tensors stand where sizes do."""
    return name in _MADE_OF_SIZES | _SIZED and any(True for _ in leaves_of(_sizes(name, args, kwargs), Tensor))


def _sizes(name: str, args: Any, kwargs: Any) -> Any:
    given = args[:1] if name == "full" else args if name in _MADE_OF_SIZES else args[1:]
    if name == "new_full":
        given = args[1:2]
    return given, {key: value for key, value in kwargs.items() if key not in ("out", "fill_value")}


def with_whole_sizes(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with the numbers of tensors where sizes stand."""
    first = 0 if name in _MADE_OF_SIZES else 1
    last = {"full": 1, "new_full": 2}.get(name, len(args))
    mended = tuple(mapped(arg, Tensor, _whole) if first <= i < last else arg for i, arg in enumerate(args))
    return mended, {
        key: arg if key in ("out", "fill_value") else mapped(arg, Tensor, _whole) for key, arg in kwargs.items()
    }
