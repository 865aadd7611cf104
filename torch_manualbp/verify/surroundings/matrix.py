"""The matrix of the layers: a row for each class of ours, a column for each check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch_manualbp.verify.surroundings import distributed, objects, tensors, tracing
from torch_manualbp.verify.surroundings.layers import Layer, layers
from torch_manualbp.verify.surroundings.outcome import Check, Outcome, run

__all__ = ["CHECKS", "Matrix", "surroundings_matrix"]

CHECKS: tuple[Check, ...] = (
    Check("repr, state_dict, attributes", objects.is_torchs_twin),
    Check("deepcopy", objects.copies),
    Check("pickle, torch.save", objects.pickles),
    Check("weight_norm", objects.normalizes_weights),
    Check("spectral_norm", objects.normalizes_spectrum),
    Check("functional_call, vmap(grad)", objects.calls_with_other_weights),
    Check("inplace", tensors.works_in_place),
    Check("__torch_function__ subclass", tensors.lets_subclasses_take_over),
    Check("__torch_dispatch__ subclass", tensors.dispatches_to_subclasses),
    Check("strides", tensors.keeps_strides),
    Check("channels_last", tensors.keeps_channels_last),
    Check("autocast, bfloat16", tensors.autocasts_to_bfloat16),
    Check("autocast, float16", tensors.autocasts_to_float16),
    Check("saved-tensor hooks", tensors.lets_hooks_move_what_it_keeps),
    Check("checkpoint", tensors.checkpoints),
    Check("torch.compile(fullgraph=True)", tracing.compiles),
    Check("torch.export", tracing.exports),
    Check("torch.export, strict", tracing.exports_strictly),
    Check("torch.jit.trace", tracing.traces),
    Check("torch.fx.symbolic_trace", tracing.traces_symbolically),
    Check("meta device", tracing.runs_on_the_meta_device),
    Check("FakeTensorMode", tracing.runs_on_fake_tensors),
)
"""What runs in one process, in the order of the columns; :data:`distributed.CHECKS` follow."""


@dataclass(frozen=True)
class Matrix:
    """What the checks found of the layers.

    ``print(matrix)`` shows a row for each class and a column for each check: ✓ passed in every row of the table, ✗
    failed in one, and a number for each reason why the check, or next to ✓ a part of it, does not apply.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(o.verdict != "fail" for o in self.outcomes)

    def counts(self) -> dict[str, int]:
        """How many runs of a check passed, failed and do not apply."""
        found = Counter(o.verdict for o in self.outcomes)
        return {verdict: found[verdict] for verdict in ("pass", "fail", "does not apply")}

    def __str__(self) -> str:
        checks = list(dict.fromkeys(o.check for o in self.outcomes))
        classes = list(dict.fromkeys(o.rule for o in self.outcomes))
        width = max(map(len, classes), default=0)
        cells = [[self._cell(c, check) for check in checks] for c in classes]
        widths = [max(len(str(n)), *(len(row[n]) for row in cells)) for n in range(len(checks))] if cells else []
        lines = [f"{_letter(n):>2}  {check}" for n, check in enumerate(checks)]
        lines += ["", " ".join([" " * width, *(f"{_letter(n):^{w}}" for n, w in enumerate(widths))]).rstrip()]
        for name, row in zip(classes, cells, strict=True):
            padded = [f"{cell:^{w}}" for cell, w in zip(row, widths, strict=True)]
            lines.append(" ".join([f"{name:<{width}}", *padded]).rstrip())
        return "\n".join([*lines, "", *self._legend()])

    def _cell(self, class_name: str, check: str) -> str:
        here = [o for o in self.outcomes if o.rule == class_name and o.check == check]
        if any(o.verdict == "fail" for o in here):
            return "✗"
        numbers = sorted({self._reasons()[reason] for o in here for reason in o.reasons})
        return ("✓" if any(o.verdict == "pass" for o in here) else "") + ",".join(map(str, numbers))

    def _reasons(self) -> dict[str, int]:
        found = [r for o in self.outcomes if o.verdict != "fail" for r in o.reasons]
        return {reason: n for n, reason in enumerate(dict.fromkeys(found), start=1)}

    def _legend(self) -> Iterator[str]:
        yield "✓ passed, ✗ failed; a number says why a check, or beside ✓ a part of it, does not apply:"
        yield from (f"{n:>3}  {reason}" for reason, n in self._reasons().items())
        yield ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items())
        for o in self.outcomes:
            if o.verdict == "fail":
                yield f"✗ {o.sample}, {o.check}: {'; '.join(o.reasons)}"


def _letter(n: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[n]


def surroundings_matrix(
    table: Sequence[Layer] | None = None, checks: Iterable[Check] = CHECKS, *, two_processes: bool = True
) -> Matrix:
    """Hold every layer of ours to torch's in all surroundings, those of two processes included if asked.

    Args:
        table: the layers; by default every one of ours. Those of two processes are of the default table always.
    """
    outcomes = [run(check, layer) for layer in layers(table) for check in checks]
    if two_processes:
        outcomes += distributed.run_in_two_processes()
    return Matrix(tuple(outcomes))


if __name__ == "__main__":
    matrix = surroundings_matrix()
    print(matrix)
    raise SystemExit(not matrix.ok)
