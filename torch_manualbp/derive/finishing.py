"""The rest of an update that an exception comes into, so that no parameter is left half updated.

The exception's traceback names the line of the program that it came on, and the versions of tensors tell which of the
lines before it are done: a signal may come between a line's work and the next line.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType

from torch import Tensor

from torch_manualbp.derive.program import Blocks
from torch_manualbp.derive.source import Source

__all__ = ["Update"]

_version: Callable[[Tensor], int] = operator.attrgetter("_version")


@dataclass(frozen=True)
class Statement:
    """A line of the update, in the turn of the loop that it stands in."""

    line: int
    writes: list[Tensor]
    loop: Blocks | None = None
    rows: slice | None = None
    head: int = 0
    """The line of the loop."""

    def is_ahead(self, line: int, turns: dict[str, slice | None]) -> bool:
        """Whether it is still to be done when an exception comes on this line and the loops are in these turns."""
        if self.loop is None or self.rows is None:
            return self.line >= line
        now = turns[self.loop.variable]
        if now != self.rows:
            return now is None or self.rows.start > now.start
        return self.line >= line > self.head  # at the head its turn is over


class Update:
    """The update of a program, line by line.

    Args:
        source: the program.
        filename: what its code says that it is in.
        changes: what each line changes: parameters, and state by its key.
        state: the state by its key.
    """

    def __init__(
        self, source: Source, filename: str, changes: Sequence[Sequence[Tensor | str]], state: Mapping[str, Tensor]
    ) -> None:
        self._source = source
        self._filename = filename
        self._written = [[state[t] if isinstance(t, str) else t for t in changed] for changed in changes]
        self._firsts = list({id(s.writes[0]): s.writes[0] for s in self._statements() if s.writes}.values())
        """The first tensor that each line changes."""

    def versions(self) -> list[int]:
        """What tells later which lines were done since."""
        return list(map(_version, self._firsts))

    def finish(self, traceback: TracebackType | None, versions: list[int]) -> bool:
        """Make what is left of an update that has begun. Returns whether there was one."""
        frame, line = self._where(traceback)
        first = self._source.sections.get("update")
        if frame is None or first is None or line <= first:
            return False
        statements = list(self._statements())
        turns = {
            loop.variable: frame.f_locals.get(loop.variable) for _, loop in self._source.update if loop is not None
        }
        reached = next((i for i, it in enumerate(statements) if it.is_ahead(line, turns)), len(statements))
        namespace = {**frame.f_globals, **frame.f_locals}
        for statement in statements[max(reached, self._done(statements, versions)) :]:
            if statement.loop is not None:
                namespace[statement.loop.variable] = statement.rows
            exec(self._source.lines[statement.line - 1].strip(), namespace)
        return True

    def _statements(self) -> Iterator[Statement]:
        """The update, with its loops unrolled."""
        lines = zip(self._source.update, self._written, strict=True)
        for loop, of_loop in itertools.groupby(lines, key=lambda item: item[0][1]):
            body = [(line, writes) for (line, _), writes in of_loop]
            for rows in [None] if loop is None else loop.slices():
                for line, writes in body:
                    yield Statement(line, writes, loop, rows, head=body[0][0] - 1)

    def _done(self, statements: list[Statement], versions: list[int]) -> int:
        """How many of them are done for certain, as the versions show of the tensors that they have changed."""
        counts = {id(t): t._version - before for t, before in zip(self._firsts, versions, strict=True)}
        done = 0
        for i, statement in enumerate(statements):
            for t in statement.writes:
                counts[id(t)] = counts.get(id(t), 0) - 1
            if statement.writes and counts[id(statement.writes[0])] >= 0:
                done = i + 1
        return done

    def _where(self, traceback: TracebackType | None) -> tuple[FrameType | None, int]:
        while traceback is not None:
            code = traceback.tb_frame.f_code
            if code.co_filename == self._filename and code.co_name == "step":
                return traceback.tb_frame, traceback.tb_lineno
            traceback = traceback.tb_next
        return None, 0
