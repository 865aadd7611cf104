"""What memory a program holds while it runs, what lives in each piece of it, and from which call to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from torch_manualbp import _html
from torch_manualbp._tables import as_markdown
from torch_manualbp.derive.plan import Plan
from torch_manualbp.derive.program import CONSTANT, MADE, Call, Memory, Value
from torch_manualbp.derive.source import let_go

__all__ = ["Buffer", "HeldMemory", "memory_of"]

WIDTH, ROW, LEFT = 640, 14, 220
"""Sizes of the picture, in pixels: the calls, a buffer, its names."""


@dataclass(frozen=True)
class Buffer:
    """A piece of memory."""

    bytes: int
    is_kept: bool
    """Whether it is made before the first step and stays; otherwise each step makes it, and lets it go."""

    lives: tuple[tuple[str, int, int], ...]
    """What lives in it, from the call that makes it to the last one that reads it."""

    until: int
    """The call after which it is let go."""

    @property
    def names(self) -> str:
        """What lives in it, one after another."""
        return ", ".join(name for name, _, _ in self.lives)


@dataclass(frozen=True)
class HeldMemory:
    """The memory that a program has beside parameters, state and data, the largest piece first.

    What torch and a compiler's kernels take for themselves within a call is not in it.
    """

    buffers: tuple[Buffer, ...]
    calls: int
    """How many calls a step makes."""

    given: int
    """Bytes of parameters, buffers, state and data that the program works on."""

    @property
    def peak(self) -> int:
        """Bytes at the call at which they are most."""
        made = [b for b in self.buffers if not b.is_kept]
        at = [sum(b.bytes for b in made if b.lives[0][1] <= call <= b.until) for call in range(self.calls)]
        return self.kept + max(at, default=0)

    @property
    def kept(self) -> int:
        """Bytes between two steps."""
        return sum(buffer.bytes for buffer in self.buffers if buffer.is_kept)

    def at(self, call: int) -> list[Buffer]:
        """The pieces whose numbers are still to be read, or are being made, at a call of the step, from 0."""
        return [b for b in self.buffers if any(first <= call <= last for _, first, last in b.lives)]

    @property
    def needed(self) -> int:
        """Bytes of numbers that are still to be read, at the call at which they are most."""
        return max((sum(b.bytes for b in self.at(call)) for call in range(self.calls)), default=0)

    def __str__(self) -> str:
        rows = [
            (b.names, f"{b.bytes:,}", "kept" if b.is_kept else "made", f"{b.lives[0][1]}–{max(i for *_, i in b.lives)}")
            for b in self.buffers
        ]
        head = f"{self.peak:,} bytes at most, {self.kept:,} of them kept between steps; "
        head += f"{self.needed:,} at most hold what is still read; parameters, state and data {self.given:,}\n\n"
        return head + as_markdown(("what lives there", "bytes", "", "calls"), rows)

    def svg(self) -> str:
        """A picture: a row for each piece, as high as it is, with what lives in it by the calls of a step."""
        height = ROW * len(self.buffers) + ROW
        scale = WIDTH / max(self.calls, 1)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH} {height}" '
            f'font-family="sans-serif" font-size="10">'
        ]
        for i, buffer in enumerate(self.buffers):
            y = i * ROW
            label = f"{buffer.names[:28]} {buffer.bytes:,}"
            parts.append(f'<text x="{LEFT - 4}" y="{y + 10}" text-anchor="end">{escape(label)}</text>')
            for name, first, last in buffer.lives:
                x, width = LEFT + first * scale, max((last - first + 1) * scale, 1)
                colour = "#4477aa" if buffer.is_kept else "#cc8844"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 1}" width="{width:.1f}" height="{ROW - 2}" fill="{colour}" '
                    f'stroke="white"><title>{escape(name)}: calls {first}–{last}</title></rect>'
                )
        return "\n".join([*parts, "</svg>"])

    def _repr_html_(self) -> str:
        return _html.section(_html.paragraph(str(self).split("\n", 1)[0]), _html.drawing(self.svg()))


def memory_of(plan: Plan, names: Mapping[Value, str], returned: Iterable[Value]) -> HeldMemory:
    """The memory of a planned program, whose values have these names, and which returns these."""
    once = [item for item in plan.once if isinstance(item, Call)]
    stays = {value.memory for value in plan.memory} | {memory for call in once for memory in call.made}
    lives: dict[Memory, dict[str, list[int]]] = {}
    sizes: dict[Memory, int] = {}
    given: dict[Memory, int] = {}
    for value in plan.memory:
        _add(value, sizes)
    for call in once:
        for value in call.results:
            if value.memory in call.made:
                _add(value, sizes)
    for i, call in enumerate(plan.steps):
        for value in (*call.arguments(), *call.results):
            if value.memory.origin not in (MADE, CONSTANT):
                _add(value, given)
                continue
            if value.memory in stays or value.memory in call.made:
                _add(value, sizes)
            if value.memory in sizes:
                span = lives.setdefault(value.memory, {}).setdefault(names.get(value, value.name) or "t", [i, i])
                span[1] = i
    numbers = {call: i for i, call in enumerate(plan.steps)}
    ends = {value.memory: numbers[call] for call, values in let_go(plan, returned).items() for value in values}
    end = len(plan.steps) - 1
    found = [
        Buffer(
            size,
            memory in stays,
            tuple((name, *span) for name, span in lives[memory].items()),  # type: ignore[misc]
            ends.get(memory, end),
        )
        for memory, size in sizes.items()
        if memory in lives
    ]
    found.sort(key=lambda buffer: -buffer.bytes)
    return HeldMemory(tuple(found), len(plan.steps), sum(given.values()))


def _add(value: Value, sizes: dict[Memory, int]) -> None:
    """Count the memory of a value, as large as the largest that lives there."""
    sizes[value.memory] = max(sizes.get(value.memory, 0), value.tensor.numel() * value.tensor.element_size())
