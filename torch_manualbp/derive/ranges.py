"""One program for a range of sizes: batches of any number of samples, sequences of any length.

Programs of two sizes m and n of the data are compared, statement by statement. Where they have other numbers, these are
numbers of the size,

::

    a n + b        a n        c / n        a n / (a n − 1)

that both programs agree with, to the last digit; where they differ in anything else, each stays as it is. What comes of
it is a program with the size in the place of its numbers, compiled once. For every further size it is built, in memory
that all sizes share, and held against autograd on the first batch of that size before it changes a parameter, as a
program is that was derived for it.
"""

from __future__ import annotations

import functools
import linecache
import operator
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_manualbp._torch import pytree
from torch_manualbp.derive.program import Value, number_name

if TYPE_CHECKING:
    from torch_manualbp.derive.derived import Derived

__all__ = ["Range", "Sizes", "alike_but_for_sizes", "sizes_of"]

_TOKENS = re.compile(r"[^\W\d]\w*|\d+\.?\d*(?:e[-+]?\d+)?|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|.", re.DOTALL)
_NUMBER = re.compile(r"\d+\.?\d*(?:e[-+]?\d+)?")
_NAME = re.compile(r"c_\w+|(?:minus_)?(?:one|two|zero|half|three|six)_*")
"""Names that are made of numbers."""

_MEMORY = re.compile(r"^    \w+ = torch\.empty\(")
NOTE = "  # "
N, ROOM = "size_of_data", "room_for"
"""What the size is called in a program, and what gives it memory."""

Sizes = tuple[int, ...]
Expression = Callable[[int], int | float]


def sizes_of(inputs: Any, target: Any) -> Sizes | None:
    """The sizes of all tensors of the data, if nothing but these says how they lie in memory."""
    leaves = [t for t in pytree.tree_leaves((inputs, target)) if isinstance(t, Tensor)]
    if not all(t.is_contiguous() and t.numel() for t in leaves):
        return None
    return tuple(size for t in leaves for size in t.shape)


def alike_but_for_sizes(a: Any, b: Any) -> bool:
    """Whether two forms of data differ in nothing but sizes."""
    if isinstance(a, torch.Size) or isinstance(b, torch.Size):
        return type(a) is type(b) and len(a) == len(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple) and len(a) == len(b) and a and isinstance(a[0], torch.Size):  # what _form says of a tensor
        return alike_but_for_sizes(a[0], b[0]) and len(a[1]) == len(b[1]) and a[2:] == b[2:]
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(alike_but_for_sizes, a, b))
    return bool(a == b)


@dataclass(frozen=True)
class _Part:
    """A number of the program that follows from the size: how it is written, and what it is at each."""

    text: str
    at: Expression

    @classmethod
    def of(cls, first: str, second: str, m: int, n: int) -> _Part | None:
        """What is ``first`` at m and ``second`` at n."""
        if first.isdigit() and second.isdigit():
            return cls._whole(int(first), int(second), m, n)
        found = float(first), float(second)
        for part in cls._fractions(*found, m, n):
            if (part.at(m), part.at(n)) == found:
                return part
        return None

    @classmethod
    def _whole(cls, first: int, second: int, m: int, n: int) -> _Part | None:
        a, rest = divmod(second - first, n - m)
        b = first - a * m
        if rest:
            return None
        return cls(f"({a} * {N} + {b})", functools.partial(_linear, a, b))

    @classmethod
    def _fractions(cls, first: float, second: float, m: int, n: int) -> Iterator[_Part]:
        for c in dict.fromkeys((first * m, second * n, round(first * m, 9))):
            yield cls(f"({c!r} / {N})", functools.partial(_over, c, 1))
        yield cls(f"({first / m!r} * {N})", functools.partial(operator.mul, first / m))
        for c in (1, 2):
            counts = [round(c / x) if x else 0 for x in (first, second)]
            a = counts[0] // m
            if a and counts == [a * m, a * n]:
                yield cls(f"({c} / ({a} * {N}))", functools.partial(_over, c, a))
        if first > 1 and second > 1:
            a = round(first / (first - 1)) // m
            if a:
                yield cls(f"({a} * {N} / ({a} * {N} - 1))", functools.partial(_unbiased, a))


def _over(c: float, a: int, n: int) -> float:
    return c / (a * n)


def _unbiased(a: int, n: int) -> float:
    return a * n / (a * n - 1)


def _linear(a: int, b: int, n: int) -> int:
    return a * n + b


@dataclass
class _Text:
    """The text of two programs, with numbers that follow from the size."""

    statements: list[list[str | _Part]] = field(default_factory=list)
    notes: list[list[str | _Part]] = field(default_factory=list)
    names: dict[str, tuple[str, _Part]] = field(default_factory=dict)
    """By names that are made of numbers what is in their place, and the number."""

    @classmethod
    def of(cls, first: Sequence[str], second: Sequence[str], m: int, n: int) -> _Text | None:
        """What is the first at m and the second at n."""
        if len(first) != len(second):
            return None
        text = cls()
        renamed: dict[str, str] = {}
        for a, b in zip(first, second, strict=True):
            statement, note = a.split(NOTE)[0], a[len(a.split(NOTE)[0]) :]
            other, other_note = b.split(NOTE)[0], b[len(b.split(NOTE)[0]) :]
            if a.lstrip().startswith("#"):
                statement, note, other, other_note = "", a, "", b
            tokens = _compared(statement.rstrip(), other.rstrip(), m, n, renamed)
            if tokens is None or N in tokens or ROOM in tokens:
                return None
            text.statements.append(tokens)
            text.notes.append(_compared(note, other_note, m, n, None) or [])
        if len(set(renamed.values())) != len(renamed):
            return None
        return text if text._named(first, renamed) else None

    def _named(self, lines: Sequence[str], renamed: dict[str, str]) -> bool:
        """Find the numbers of the names that are not the same in both."""
        for name, other in renamed.items():
            if name == other:
                continue
            at = next((i for i, line in enumerate(lines) if line.startswith(f"    {name} = torch.tensor(")), None)
            parts = [] if at is None else [item for item in self.statements[at] if isinstance(item, _Part)]
            if len(parts) != 1:
                return False
            self.names[name] = f"number_{len(self.names) + 1}", parts[0]
        return True

    def parts(self) -> set[str]:
        """The numbers that follow from the size, as they are written."""
        return {item.text for line in self.statements for item in line if isinstance(item, _Part)}

    def generic(self) -> list[str]:
        """The lines with n in them."""
        return ["".join(self._token(item, None) for item in line) for line in self.statements]

    def at(self, n: int) -> list[str]:
        """The lines of a size."""
        lines = []
        for statement, note in zip(self.statements, self.notes, strict=True):
            code = "".join(self._token(item, n) for item in statement)
            said = "".join(self._token(item, n) for item in note)
            lines.append(f"{code:<88}{said}" if code and said else code or said)
        return lines

    def _token(self, item: str | _Part, n: int | None) -> str:
        if isinstance(item, _Part):
            return item.text if n is None else repr(item.at(n))
        if item in self.names:
            name, part = self.names[item]
            return name if n is None else number_name(part.at(n))
        return item


def _compared(a: str, b: str, m: int, n: int, renamed: dict[str, str] | None) -> list[str | _Part] | None:
    """The tokens of two lines, None where they differ in another way than by the size."""
    if a == b and renamed is None:
        return [a]
    ours, theirs = _TOKENS.findall(a), _TOKENS.findall(b)
    if len(ours) != len(theirs):
        return None
    found: list[str | _Part] = []
    for x, y in zip(ours, theirs, strict=True):
        item: str | _Part | None = x
        if renamed is not None and _NAME.fullmatch(x):
            if renamed.setdefault(x, y) != y or (x != y and not _NAME.fullmatch(y)):
                return None
        elif x != y:
            item = _Part.of(x, y, m, n) if _NUMBER.fullmatch(x) and _NUMBER.fullmatch(y) else None
        if item is None:
            return None
        found.append(item)
    return found


class _Rooms:
    """Memory that the programs of all sizes compute in, one after another."""

    def __init__(self, built: list[Derived]) -> None:
        self._rooms: list[Tensor] = []
        self._built = built

    def __call__(self, number: int, *shape: Any, dtype: torch.dtype, device: Any = None) -> Tensor:
        """The room of this number, in a shape."""
        sizes = shape[0] if shape and isinstance(shape[0], tuple) else shape
        count = 1
        for size in sizes:
            count *= size
        if number == len(self._rooms):
            self._rooms.append(torch.empty(count, dtype=dtype, device=device))
        elif self._rooms[number].numel() < count:
            for derived in self._built:  # of which no two run at a time
                derived.release()
            self._rooms[number] = torch.empty(count, dtype=dtype, device=device)
        return self._rooms[number][:count].view(sizes)


class _Form:
    """A program of any size.

    Args:
        first: that of one size.
        text: its lines and those of another one.
    """

    def __init__(self, first: Derived, text: _Text) -> None:
        self._base, self._text = first, text
        self._built: list[Derived] = []
        self._rooms = _Rooms(self._built)
        lines, count = [], 0
        for line in text.generic():
            if _MEMORY.match(line):
                line = line.replace("torch.empty(", f"{ROOM}({count}, ", 1)
                count += 1
            lines.append(line.replace("def build(parameters, state", f"def build({N}, {ROOM}, parameters, state", 1))
        self._build = first.build_of("\n".join(lines) + "\n")
        weakref.finalize(self, linecache.cache.pop, self._build[1], None)

    def at(self, n: int, article: Callable[[int], Any]) -> Derived:
        """The program of a size."""
        lines = self._text.at(n)
        derived = self._base.of_size(lines, self._build, (n, self._rooms), lambda: article(n))
        self._built.append(derived)
        return derived


class Range:
    """The programs of two sizes, and with them those of all others.

    Args:
        sides: the two programs, and their sizes.
        forms: the program and the one that is held against autograd in its place, of any size.
        main: which of the sizes of the data is the size.
        formulas: how the others follow from it.
    """

    def __init__(
        self, sides: tuple[Derived, Derived, int, int], forms: tuple[_Form, _Form], main: int, formulas: Any
    ) -> None:
        self._sides, self._main, self._formulas = sides, main, formulas
        self._program, self._twin = forms

    @classmethod
    def of(cls, first: Derived, second: Derived, sizes: Sizes, others: Sizes) -> Range | None:
        """The range of two programs; None if these are not one but for sizes.

        Args:
            sizes, others: of the data of the two.
        """
        varying = [i for i, (a, b) in enumerate(zip(sizes, others, strict=True)) if a != b]
        if not varying or first.twin is None or second.twin is None:
            return None
        m, n = sizes[varying[0]], others[varying[0]]
        formulas = []
        for a, b in zip(sizes, others, strict=True):
            slope, rest = divmod(b - a, n - m)
            if rest:
                return None
            formulas.append((slope, a - slope * m))
        if min(m, n) < 2 or not _may_be_one(first, second) or not _may_be_one(first.twin, second.twin):
            return None
        texts = [
            _Text.of(a.source.lines, b.source.lines, m, n) for a, b in ((first, second), (first.twin, second.twin))
        ]
        program, twin = texts
        if program is None or twin is None or not program.parts() <= twin.parts():
            return None  # so that all that follows from the size is held against autograd at each
        return cls((first, second, m, n), (_Form(first, program), _Form(first.twin, twin)), varying[0], formulas)

    def size_of(self, sizes: Sizes) -> int | None:
        """The size of such data, if it is one of the range."""
        n = sizes[self._main]
        is_one = n > 1 and [a * n + b for a, b in self._formulas] == list(sizes)
        return n if is_one else None

    def at(self, n: int) -> Derived:
        """The program of a size, and with it the one that is held against autograd."""
        derived = self._program.at(n, self._article)
        derived.twin = self._twin.at(n, self._article)
        return derived

    def _article(self, n: int) -> list[str] | None:
        """The formulas of a size."""
        first, second, a, b = self._sides
        text = _Text.of(first.article.source.lines, second.article.source.lines, a, b)
        return None if text is None else text.at(n)


def _may_be_one(first: Derived, second: Derived) -> bool:
    """Whether two programs have the same tensors beside parameters and data, and return the same beside tensors."""
    if first.answers or second.answers or first.kernels or second.kernels or first.uneven or second.uneven:
        return False
    if [*first.tensors] != [*second.tensors]:
        return False
    for name, t in first.tensors.items():
        other = second.tensors[name]
        is_same = t is other or (t.shape == other.shape and t.dtype == other.dtype and torch.equal(t, other))
        if not is_same:
            return False
    plain = [[leaf for leaf in of.leaves_of_output if not isinstance(leaf, Value)] for of in (first, second)]
    if plain[0] != plain[1] or any(isinstance(leaf, int | float) for leaf in plain[0]):
        return False
    return [repr(loop) for _, loop in first.source.update] == [repr(loop) for _, loop in second.source.update]
