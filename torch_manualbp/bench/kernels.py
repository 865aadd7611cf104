"""Time the ways to evaluate a formula of a layer: as it stands, in blocks, compiled, by the kernel that is registered
for it, and torch's own backward; interleaved in one process.

A kernel earns its place where the formula, as it stands or in blocks, takes 1.3 times as long or more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import require_tables
from torch_manualbp._text import near
from torch_manualbp._torch import TorchDispatchMode, reset_compiler
from torch_manualbp.bench.allocator import keep_freed_memory
from torch_manualbp.bench.command import add_files, add_rounds, count, microseconds, publish
from torch_manualbp.bench.layers import Case, panel
from torch_manualbp.bench.timing import Comparison, Stopwatch, compare
from torch_manualbp.kernels import dispatch
from torch_manualbp.kernels.compiled import compiled
from torch_manualbp.rules.rule import Structure, evaluate_by

__all__ = ["EARNS", "Row", "add_arguments", "calls_of", "main", "measure"]

EARNS = 1.3
"""How many times as long as a kernel the formula takes, as it stands or in blocks, where the kernel is kept."""

Call = tuple[Callable[..., Any], Structure, tuple[Any, ...]]
"""A formula, the parts of it that can be computed apart, and its arguments."""


@dataclass(frozen=True)
class Row:
    """What was measured of a formula; times in microseconds, None for a way that there is not."""

    formula: str
    layer: str
    size: str
    torch: float
    plain: float
    blocks: float | None
    compiled: float | None
    kernel: float | None
    step: float | None
    """The kernel of recorded steps."""

    gain: float | None
    """How many times as long as the kernel the formula takes, as it stands or in blocks."""

    step_gain: float | None
    """How many times as long as the step's kernel the formula takes as it stands."""

    calls: int
    step_calls: int | None
    """How many operations of torch the formula is, and the step's kernel."""

    @property
    def earns(self) -> bool | None:
        """Whether the kernel is worth its lines, if there is one."""
        return None if self.gain is None else self.gain >= EARNS


def calls_of(case: Case, inputs: tuple[Any, ...]) -> list[Call]:
    """The formulas that forward and backward of our layer evaluate, each once."""
    calls: dict[Callable[..., Any], Call] = {}

    def record(formula: Callable[..., Any], structure: Structure, args: tuple[Any, ...]) -> Any:
        calls.setdefault(formula, (formula, structure, args))
        return formula(*args)

    with _evaluated_by(record):
        y = case.build(nn)(*inputs)
        y.backward(torch.randn_like(y))
    return list(calls.values())


def measure(case: Case, call: Call, inputs: tuple[Any, ...], rounds: int, compiles: bool = True) -> Row:
    """Time all ways to evaluate this formula, and torch's backward of the layer."""
    formula, structure, args = call
    args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
    kernel, step = dispatch.LARGE.get(formula), dispatch.STEPS.get(formula)
    is_large = args[0].numel() >= dispatch.LARGE_ELEMENTS
    ways = {"torch": _torchs_backward(case, inputs), "plain": _stopwatch(formula, args, None)}
    if is_large and structure != "whole":
        ways["blocks"] = _stopwatch(lambda *args: dispatch.BLOCKS[structure](formula, args), args, None)
    if is_large and structure == "entries" and compiles:
        reset_compiler()
        if _takes(lambda *args: compiled(formula, args), args):
            ways["compiled"] = _stopwatch(lambda *args: compiled(formula, args), args, None)
    if is_large and kernel is not None and _takes(kernel, args):
        ways["kernel"] = _stopwatch(kernel, args, dispatch.dispatch)
    if step is not None:
        ways["step"] = _stopwatch(step, args, None)
    found = compare(ways, rounds)
    times = {way: found.seconds(way) * 1e6 for way in ways}
    return Row(
        formula=formula.__qualname__.removesuffix(".delta"),
        layer=case.layer,
        size=case.size,
        torch=times["torch"],
        plain=times["plain"],
        blocks=times.get("blocks"),
        compiled=times.get("compiled"),
        kernel=times.get("kernel"),
        step=times.get("step"),
        gain=_gain(found, "kernel", [way for way in ("plain", "blocks") if way in ways]) if "kernel" in ways else None,
        step_gain=_gain(found, "step", ["plain"]) if "step" in ways else None,
        calls=_operations(formula, args),
        step_calls=None if step is None else _operations(step, args),
    )


def _gain(found: Comparison, kernel: str, ways: list[str]) -> float:
    return min(found.ratio(way, kernel) for way in ways)


def _takes(kernel: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    with torch.no_grad():
        return kernel(*args) is not NotImplemented


def _stopwatch(function: Callable[..., Any], args: tuple[Any, ...], dispatcher: Any) -> Stopwatch:
    def run(repeats: int) -> tuple[float]:
        with torch.no_grad(), _evaluated_by(dispatcher):
            start = perf_counter()
            for _ in range(repeats):
                function(*args)
            return (perf_counter() - start,)

    return run


def _torchs_backward(case: Case, inputs: tuple[Any, ...]) -> Stopwatch:
    """Its one node, or the engine's way through several."""
    y = case.build(torch.nn)(*inputs)
    upstream, node = torch.randn_like(y), y.grad_fn
    assert node is not None
    learning = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    is_one = all(further is None or "AccumulateGrad" in further.name() for further, _ in node.next_functions)

    def run(repeats: int) -> tuple[float]:
        with torch.no_grad():
            start = perf_counter()
            for _ in range(repeats):
                node(upstream) if is_one else torch.autograd.grad(y, learning, upstream, retain_graph=True)
            return (perf_counter() - start,)

    return run


@contextmanager
def _evaluated_by(dispatcher: Any) -> Iterator[None]:
    evaluate_by(dispatcher)
    try:
        yield
    finally:
        evaluate_by(dispatch.dispatch)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func is not torch.ops.aten.empty_like.default  # whose memory is planned
        return func(*args, **(kwargs or {}))


def _operations(function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    with torch.no_grad(), _evaluated_by(None), _Counter() as counter:
        function(*args)
    return counter.count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    help = "only the formulas of these layers, such as ReLU GELU Softmax (default: all)"
    parser.add_argument("--rule", nargs="+", metavar="NAME", help=help)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled formulas")
    parser.add_argument("--threads", type=count, metavar="N", help="threads of torch (default: torch's own choice)")
    help = "hand freed memory back to the system, as malloc may: what blocks are for"
    parser.add_argument("--return-memory", action="store_true", help=help)
    add_rounds(parser, 9)
    add_files(parser)


def main(options: argparse.Namespace) -> int:
    """Time and print; a kernel that does not earn its place is a finding."""
    require_tables()
    if not options.return_memory:
        keep_freed_memory()
    cases = list(panel())
    names = sorted({case.name for case in cases})
    for wanted in options.rule or ():
        if wanted not in names:
            alike = near(wanted, names)
            message = f"argument --rule: no layer {wanted!r}; {'near it' if alike else 'choose'}: "
            print(f"torch-manualbp bench kernels: {message}{', '.join(alike or names)}", file=sys.stderr)
            return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    seen = set()
    cases = [case for case in cases if options.rule is None or case.name in options.rule]
    with Counted(cases, "bench kernels", lambda case: f"{case.name} {case.size}") as todo:
        for case in todo:
            torch.manual_seed(0)
            inputs = case.inputs()
            for call in calls_of(case, inputs):
                formula, structure, _ = call
                if (structure == "whole" and formula not in dispatch.LARGE) or (formula, case.size) in seen:
                    continue
                seen.add((formula, case.size))
                rows.append(measure(case, call, inputs, options.rounds, not options.no_compile))
                todo.say(*_cells(rows[-1]))
    publish(options, f"Formulas in µs; a kernel earns its place from {EARNS}", COLUMNS, list(map(_cells, rows)), rows)
    return INTERRUPTED if todo.interrupted else 0


COLUMNS = "formula", "size", "torch", "plain", "blocks", "compiled", "kernel", "gain", "", "step", "gain", "calls"


def _cells(row: Row) -> list[str]:
    times = [row.torch, row.plain, row.blocks, row.compiled, row.kernel]
    earns = {None: "", True: "earned", False: "not earned"}[row.earns]
    calls = f"{row.calls}" if row.step_calls is None else f"{row.calls} → {row.step_calls}"
    step = [_figure(row.step), "–" if row.step_gain is None else f"{row.step_gain:.2f}", calls]
    gain = "–" if row.gain is None else f"{row.gain:.2f}"
    return [row.formula, row.size, *map(_figure, times), gain, earns, *step]


def _figure(time: float | None) -> str:
    return "–" if time is None else microseconds(time)
