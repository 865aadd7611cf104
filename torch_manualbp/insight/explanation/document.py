"""An explanation as headings, formulas and tables, which :mod:`text`, :mod:`markdown` and :mod:`webpage` write.

What is said is said here; those modules know how each kind of block looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from torch_manualbp.insight.explanation.numbers import many, number, vector
from torch_manualbp.insight.symbols import COST, Notation, partial, plain, words

if TYPE_CHECKING:
    from torch_manualbp.insight.explanation.result import Explanation, Factor, MatrixChain, MatrixFactor, Path

__all__ = ["Block", "Formula", "Heading", "Paragraph", "Table", "document"]

DOT = plain(" · ")
NOTHING = words("")

IN_FULL, BRIEF = 4, 6
"""Numbers of a vector or matrix up to which they have all digits, and how many they have where there are more."""


@dataclass(frozen=True)
class Heading:
    """The first is that of the page."""

    level: int
    content: Notation


@dataclass(frozen=True)
class Paragraph:
    content: Notation


@dataclass(frozen=True)
class Formula:
    """An equation of several lines: left, and what it equals."""

    left: Notation
    right: tuple[Notation, ...]


@dataclass(frozen=True)
class Table:
    """The columns of ``numbers`` are set flush right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Notation, ...], ...]
    numbers: frozenset[int]
    continued: frozenset[int] = frozenset()
    """Rows that go on with the one before them."""


Block = Heading | Paragraph | Formula | Table


def document(e: Explanation) -> list[Block]:
    """The blocks, in order."""
    return [*_beginning(e), *_chain(e), *_samples(e), *_matrices(e), *_paths(e), *_end(e)]


def _beginning(e: Explanation) -> Iterator[Block]:
    d = e.significant
    gradient = partial(e.symbol)
    yield Heading(1, gradient + " = " + number(e.value, d))
    meaning = e.legend[0][1]
    yield Paragraph(
        e.symbol
        + words(f" is {meaning}, which is ")
        + number(e.weight, d)
        + words(". The cost is ")
        + COST
        + " = "
        + number(e.cost, d)
        + words(".")
    )
    if not e.count:
        yield Paragraph(
            words("No term has it: there is no sample, or each derivative by it is 0. A sum over none is 0.")
        )


def _chain(e: Explanation) -> Iterator[Block]:
    if not e.samples:
        return
    d = e.significant
    strongest = next(sample for sample in e.samples if sample.factors is e.factors)
    if e.count == 1:
        yield Heading(2, words("The chain"))
        left = partial(e.symbol)
    else:
        yield Heading(2, words(f"The chain of the strongest term, {strongest.place}"))
        left = words("its term of ") + partial(e.symbol)
    symbols = DOT.joined(factor.symbol for factor in strongest.factors)
    yield Formula(left, (symbols, _product(strongest.factors, d), number(strongest.value, d)))
    rows = [(f.symbol, number(f.value, d), f.origin) for f in strongest.factors]
    rows.append((words("product"), number(strongest.value, d), NOTHING))
    if e.count == 1:
        rows.append(_autograd(e))
    yield Table(("factor", "number", "where it comes from"), tuple(rows), frozenset({1}))


def _samples(e: Explanation) -> Iterator[Block]:
    if e.count < 2:
        return
    d = e.significant
    hidden = e.count_hidden
    title = f"The sum of all {many(e.count)} terms"
    yield Heading(2, words(title + (f", of which the {len(e.samples)} strongest are shown" if hidden else "")))
    rows = [(words(sample.place), number(sample.value, d), _product(sample.factors, d)) for sample in e.samples]
    if hidden:
        rows.append((words(f"the other {many(hidden)}"), number(e.rest, d), NOTHING))
    rows.append((words("sum"), number(e.value, d), NOTHING))
    rows.append(_autograd(e))
    yield Table(("term", "product", "of"), tuple(rows), frozenset({1}))


def _autograd(e: Explanation) -> tuple[Notation, Notation, Notation]:
    apart = words("difference ") + number(e.difference, 2)
    return words("autograd"), number(e.autograd, e.significant), apart


def _matrices(e: Explanation) -> Iterator[Block]:
    if not e.count_chains or _is_the_chain(e):
        return
    of = "" if e.count == 1 else f", {e.searched[0]}"
    if not e.chains:
        ways = f"There are {many(e.count_chains)} ways through the layers, and as many products of matrices."
        yield Paragraph(words(ways))
        return
    if e.count_paths == 1:
        yield Heading(2, words(f"The whole chain, from the loss on{of}"))
    elif len(e.chains) == 1:
        yield Heading(2, words(f"As a product of matrices{of}"))
    else:
        yield Heading(2, words(f"As a sum of {len(e.chains)} products of matrices, one for each way{of}"))
    for chain in e.chains:
        left = partial(e.symbol) if e.count == len(e.chains) == 1 else words("a part of ") + partial(e.symbol)
        symbols = DOT.joined(factor.symbol for factor in chain.factors)
        yield Formula(left, (symbols, number(chain.value, e.significant)))
        yield Table(
            ("factor", "shape", "numbers", "product up to here", "what it is"),
            tuple(_matrix_rows(chain, e.significant)),
            frozenset(),
        )


def _is_the_chain(e: Explanation) -> bool:
    """Whether the one product of matrices is that of the numbers that the chain above it has."""
    if len(e.chains) != 1:
        return False
    factors = [factor.numbers for factor in e.chains[0].factors]
    numbers = [float(t) for t in factors if t is not None and t.numel() == 1]
    return len(numbers) == len(factors) and numbers == [factor.value for factor in e.factors]


def _matrix_rows(chain: MatrixChain, digits: int) -> Iterator[tuple[Notation, ...]]:
    for i, factor in enumerate(chain.factors):
        shape = "×".join(map(str, factor.shape)) or "1"
        so_far = _so_far(chain, i, factor, digits)
        origin = words("as above") if i == len(chain.factors) - 1 else factor.origin  # the chain's own last factor
        yield factor.symbol, words(shape), _numbers(factor.numbers, digits), so_far, origin


def _so_far(chain: MatrixChain, i: int, factor: MatrixFactor, digits: int) -> Notation:
    if i == 0:
        return NOTHING
    if i == len(chain.factors) - 1:
        return number(chain.value, digits)
    return _numbers(factor.up_to_here, digits)


def _numbers(numbers: Tensor | None, digits: int) -> Notation:
    if numbers is None:
        return words("…")
    flat = numbers.reshape(()) if numbers.numel() == 1 else numbers
    return vector(flat, digits if numbers.numel() <= IN_FULL else min(digits, BRIEF))


def _paths(e: Explanation) -> Iterator[Block]:
    if not e.paths or (e.count_paths == 1 and e.chains):  # of one path the product of matrices says it all
        return
    d = e.significant
    zero = e.count_paths - e.count_nonzero_paths
    those = "the strongest term" if len(e.searched) == 1 else f"the {len(e.searched)} strongest terms"
    of = f" of {those}" if e.count > len(e.searched) else ""
    every = ("The only path" if e.count_paths == 1 else f"All {many(e.count_paths)} paths") + of
    strongest = "strongest" if len(e.paths) == 1 else f"{len(e.paths)} strongest"
    some = f"The {strongest} of {many(e.count_paths)} paths{of}"
    yield Heading(2, words(every if len(e.paths) == e.count_paths else some))
    shown = sum(path.value for path in e.paths)
    known = f"The {len(e.paths)} shown sum up to " if len(e.paths) > 1 else "The one shown is "
    sentence = words(known) + number(shown, d)
    if e.value and abs(e.share(shown)) < 1e9:
        sentence += words(f", which is {_percent(e.share(shown))} of ") + partial(e.symbol)
    sentence += words(".")
    if zero:
        sentence += words(f" In {many(zero)} of all the product is 0.")
    yield Paragraph(sentence)
    rows = tuple(row for i, path in enumerate(e.paths, 1) for row in _path_rows(e, i, path))
    continued = frozenset(i for i in range(len(rows)) if i % 3)
    yield Table(("", "product", "share", "path and factors"), rows, frozenset({1, 2}), continued)


def _path_rows(e: Explanation, i: int, path: Path) -> Iterator[tuple[Notation, ...]]:
    neurons = plain(" → ").joined(path.neurons)
    where = words(f"{path.place}: ") if path.place else NOTHING
    share = words(_percent(e.share(path.value)))
    yield words(str(i)), number(path.value, e.significant), share, where + neurons
    symbols = DOT.joined(factor.symbol for factor in path.factors)
    yield NOTHING, NOTHING, NOTHING, symbols
    yield NOTHING, NOTHING, NOTHING, _product(path.factors, e.significant)


def _end(e: Explanation) -> Iterator[Block]:
    for note in e.notes:
        yield Paragraph(words(note))
    if len(e.legend) > 1:
        yield Heading(2, words("The symbols"))
        rows = tuple((notation, words(what)) for notation, what in e.legend)
        yield Table(("symbol", "is"), rows, frozenset())


def _product(factors: Sequence[Factor], digits: int) -> Notation:
    return DOT.joined(_in_brackets(factor.value, digits, i) for i, factor in enumerate(factors))


def _in_brackets(value: float, digits: int, place: int) -> Notation:
    written = number(value, digits)
    return plain("(") + written + ")" if place and value < 0 else written


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
