"""Measure the error of every rule and of its torch twin, in units in the last place (ulps) of a float64 reference.

The reference is the twin in float64 on the same numbers and the same upstream gradient. A rule whose entries do not mix
is measured on a grid: every number that float16 or bfloat16 has, every exponent of float32, subnormals, ±inf, NaN and
the neighbours of the kinks; several arguments are crossed. Every rule is measured on its samples at several scales.

A rule is worse than torch where, in some octave of its arguments, its largest error exceeds torch's by more than one
ulp, not counting the ulps by which the result itself moves when the arguments move by one, nor, where entries are sums
that cancel, one ulp of the largest entry and of each entry of the upstream gradient, which all terms have in them: next
to a zero of the result both are off by what chance wants. Batch norm's gradient over three entries, which is 10⁻³ of
its terms, is off by up to 1.9 ulps of the largest of them, and torch's by up to 2.3. Torch's error there is the largest
of several, on the numbers and on neighbours of them. A rule is worse also where more of its results than of torch's
are lost to an overflow on the way: infinite or NaN, and should be neither. Where torch has NaN of numbers even in
float64, nothing is right or wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import as_markdown, print_table, require_tables, write
from torch_manualbp._text import near
from torch_manualbp.catalogue import CATALOGUE, Make, Operation, Sample
from torch_manualbp.verify.measure import LOST, errors_in_ulps, ulp
from torch_manualbp.verify.outputs import joined
from torch_manualbp.verify.subject import is_number, name_of_dtype

__all__ = ["DTYPES", "Accuracy", "add_arguments", "main", "measure"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

CROSSED = 1 << 16
"""Points of a grid of several arguments, about."""

SCALES = (1e-3, 1.0, 30.0)
"""What samples are multiplied by."""

SEEDS = 5


@dataclass(frozen=True)
class Accuracy:
    """The error of one result of a rule in one dtype, next to torch's; in ulps."""

    rule: str
    dtype: str
    result: str
    """"output" or "gradient of argument i"."""
    points: int
    ours: float
    """The largest error."""
    torch: float
    ours_999: float
    """The error that 99.9 % of the points do not exceed."""
    torch_999: float
    excess: float
    """By how much the worst octave exceeds torch's worst there; above 1 the rule is worse."""
    gain: float
    """The same the other way round; above 1 the rule is better."""
    where: str
    """The arguments, and ours, torch's and the right result, at the point of the excess."""
    lost: int
    """How many results are infinite or NaN that should be numbers in the range of the dtype."""
    torch_lost: int

    @property
    def ok(self) -> bool:
        """Whether the rule is not worse than torch by more than one ulp."""
        return self.excess <= 1 and self.lost <= self.torch_lost


@dataclass(frozen=True)
class _Points:
    """One result at some points: errors in ulps, what else may explain them, and the octave of each point."""

    result: str
    ours: Tensor
    torch: Tensor
    slack: Tensor
    octave: Tensor
    describe: Callable[[int], str]


def measure(entry: Operation, dtype: torch.dtype) -> list[Accuracy]:
    """The accuracy of the output and of every gradient of a rule.

    Raises:
        NotImplementedError: torch has no kernel of the twin for this dtype.
    """
    points: dict[str, list[_Points]] = {}
    for number, group in enumerate(_all_points(entry, dtype)):
        for p in group:
            octave = p.octave + (number << 48)  # never one with those of other calls
            points.setdefault(p.result, []).append(_Points(p.result, p.ours, p.torch, p.slack, octave, p.describe))
    return [_accuracy(entry, dtype, result, of_result) for result, of_result in points.items()]


def _accuracy(entry: Operation, dtype: torch.dtype, result: str, points: Sequence[_Points]) -> Accuracy:
    ours, theirs, slack, octave = (
        torch.cat([getattr(p, name) for p in points]) for name in ("ours", "torch", "slack", "octave")
    )
    if not ours.numel():
        return Accuracy(entry.name, name_of_dtype(dtype), result, 0, 0, 0, 0, 0, 0, 0, "", 0, 0)
    _, octave = octave.unique(return_inverse=True)
    lost, torch_lost = ours == LOST, theirs == LOST
    mine, torchs = ours.where(~lost, 0), theirs.where(~torch_lost, 0)
    excess = _excess(mine, torchs, slack, octave, torch_lost)
    worst = int(excess.argmax())
    index, part = worst, iter(points)
    of_worst = next(part)
    while index >= of_worst.ours.numel():
        index -= of_worst.ours.numel()
        of_worst = next(part)
    return Accuracy(
        rule=entry.name,
        dtype=name_of_dtype(dtype),
        result=result,
        points=ours.numel(),
        ours=mine.max().item(),
        torch=torchs.max().item(),
        ours_999=_percentile(mine),
        torch_999=_percentile(torchs),
        excess=excess[worst].item(),
        gain=_excess(torchs, mine, slack, octave, lost).max().item(),
        where=of_worst.describe(index),
        lost=int(lost.sum()),
        torch_lost=int(torch_lost.sum()),
    )


def _excess(mine: Tensor, others: Tensor, slack: Tensor, octave: Tensor, lost: Tensor) -> Tensor:
    """By how much each error exceeds the slack and the largest of the others in its octave; where some of those are
    lost, and the rest may overflow as it should, in the next octaves that have all as well."""
    finite = others.where(others.isfinite(), 0)
    largest = torch.zeros(int(octave.max()) + 1, dtype=torch.float64).scatter_reduce(0, octave, finite, "amax")
    number = torch.arange(len(largest))
    whole = torch.zeros_like(number).index_add(0, octave, lost.long()) == 0
    below = torch.where(whole, number, 0).cummax(0).values
    above = torch.where(whole, number, len(number) - 1).flip(0).cummin(0).values.flip(0)
    largest = torch.maximum(largest, torch.maximum(largest[below], largest[above]))
    unlike = torch.where(others.isinf(), 0, math.inf)  # neither ∞ nor NaN as it should be, and the other is
    return torch.where(mine.isinf(), unlike, mine - slack - largest[octave])


def _percentile(errors: Tensor) -> float:
    return errors.sort().values[math.ceil(0.999 * errors.numel()) - 1].item()


def _all_points(entry: Operation, dtype: torch.dtype) -> Iterator[list[_Points]]:
    samples = list(entry.samples(Make()))
    seen, gridded = set(), set()
    for sample in samples:
        options = repr([a for a in sample.args if not isinstance(a, Tensor)])
        absent = tuple(a is None for a in sample.args)
        if (options, absent) in seen or not _is_pointwise(entry, sample):
            continue
        seen.add((options, absent))
        gridded.add(sample.name)
        for upstream in ("ones", "random"):
            yield _on_grid(entry, sample, dtype, upstream)
    for sample in samples:
        for scale in (1.0,) if sample.name in gridded else SCALES:
            group = _on_samples(entry, sample.name, dtype, scale)
            if group:
                yield group


# Grids


def _gridded(sample: Sample) -> list[int]:
    """The arguments that a grid replaces. One number alone is an option in the form of a tensor."""
    return [i for i, a in enumerate(sample.args) if is_number(a) and (a.numel() > 1 or not a.dim())]


def _is_pointwise(entry: Operation, sample: Sample) -> bool:
    """Whether each entry of the output depends on one entry of each argument: by its Jacobians, which are diagonal."""
    positions = _gridded(sample)
    if not positions or any(sample.args[i].is_complex() for i in positions):
        return False
    if not isinstance(entry.twin(*sample.args), Tensor):
        return False  # several outputs are parts of what goes in
    generator = torch.Generator().manual_seed(0)
    args = list(sample.args)
    for i in positions:
        flat = sample.args[i].flatten()
        args[i] = flat[torch.randint(flat.numel(), (7,), generator=generator)] if flat.numel() else flat
        if not flat.numel():
            return False
    learning = [i for i in positions if i in entry.differentiable(sample)]
    try:
        jacobians = torch.autograd.functional.jacobian(
            lambda *moved: entry.twin(*_replaced(args, learning, moved)), tuple(args[i] for i in learning)
        )
    except (RuntimeError, ValueError, IndexError):
        return False  # it takes no single row of numbers
    return all(j.shape == (7, 7) and not (j - j.diag().diag()).any() for j in jacobians)


def _on_grid(entry: Operation, sample: Sample, dtype: torch.dtype, upstream: str) -> list[_Points]:
    positions = _gridded(sample)
    options = [float(a) for a in sample.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    drawn = [[s.args[i] for s in entry.samples(Make()) if isinstance(s.args[i], Tensor)] for i in positions]
    values = [
        _values(torch.cat([t.double().flatten() for t in of_one]), sample.args[i].dtype, dtype, options, len(positions))
        for i, of_one in zip(positions, drawn, strict=True)
    ]
    grids = torch.meshgrid(*values, indexing="ij") if len(values) > 1 else values
    args = list(sample.args)
    for i, grid in zip(positions, grids, strict=True):
        args[i] = grid.flatten()
    args = [a.to(dtype) if is_number(a) else a for a in args]
    n = args[positions[0]].numel()
    g = torch.ones(n) if upstream == "ones" else torch.randn(n, generator=torch.Generator().manual_seed(1))
    learning = [i for i in entry.differentiable(sample) if i in positions]
    octave = torch.zeros(n, dtype=torch.int64)
    for i in positions:
        if is_number(args[i]):
            octave = octave * 4096 + _octave(args[i], 16 if len(positions) > 1 else 1)
    return _compared(entry, args, learning, g.to(dtype), octave, pointwise=True)


def _values(drawn: Tensor, kind: torch.dtype, dtype: torch.dtype, options: Sequence[float], arguments: int) -> Tensor:
    """The numbers of one argument: all of the dtype, on the part of the line that its samples are drawn from."""
    few = drawn.unique()
    if not kind.is_floating_point or len(few) <= 2:
        return few.to(kind if not kind.is_floating_point else dtype)
    values = _every_number(dtype) if arguments == 1 else _spread(dtype, round(CROSSED ** (1 / arguments)))
    if arguments == 1:
        values = torch.cat([values, _around([*options, 0.5, 1, 2, 3, 6, 20], dtype)])
    if drawn.min() >= 0:
        values = values[(values >= 0) & (values < math.inf)]
        if drawn.max() <= 1:
            values = values[values <= 1]
            values = torch.cat([values, (1 - values.double()).to(dtype)])
    return values


def _every_number(dtype: torch.dtype) -> Tensor:
    """All 65536 of a dtype of 16 bits; of float32 some of every exponent and sign, and a dense range about 0."""
    if dtype != torch.float32:
        return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    generator = torch.Generator().manual_seed(0)
    exponents = torch.arange(-256, 256).unsqueeze(1) << 23  # with the sign in bit 31
    mantissas = torch.randint(1 << 23, (512, 256), generator=generator)
    mantissas[:, :3] = torch.tensor([0, 1, (1 << 23) - 1])
    bits = (exponents | mantissas).to(torch.int32).flatten()
    dense = torch.empty(1 << 15).uniform_(-30, 30, generator=generator)
    return torch.cat([bits.view(torch.float32), dense])


def _spread(dtype: torch.dtype, n: int) -> Tensor:
    """About n numbers: most of them of usual size, the others of all exponents, and the special ones."""
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(0)
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, info.tiny, info.tiny * info.eps * 3, info.max]
    rest = max(n - len(special), 8)
    usual = torch.randn(rest - rest // 3, generator=generator, dtype=torch.float64) * 3
    exponents = torch.empty(rest // 3, dtype=torch.float64).uniform_(
        math.log2(info.tiny), math.log2(info.max), generator=generator
    )
    signs = torch.randint(2, exponents.shape, generator=generator) * 2 - 1
    return torch.cat([torch.tensor(special, dtype=torch.float64), usual, signs * exponents.exp2()]).to(dtype)


def _around(centres: Sequence[float], dtype: torch.dtype) -> Tensor:
    """The centres, which a kink may lie at, and their neighbours on both sides, with both signs."""
    at = torch.tensor([c for c in centres if math.isfinite(c)], dtype=dtype).unsqueeze(1)
    near = (at.double() + ulp(at.double(), dtype) * torch.arange(-16, 17)).to(dtype).flatten()
    return torch.cat([near, -near])


def _octave(t: Tensor, width: int) -> Tensor:
    """A number from 0 to 4095 for the sign and the exponent, or for one of ``width`` neighbouring exponents."""
    _, exponent = torch.frexp(t.double().abs().nan_to_num(0, 0))
    octave = ((exponent.long() + 1024) // width) * 2 + t.signbit().long() + 3
    octave = torch.where(t == 0, 0, octave)
    return torch.where(t.isinf(), 1, torch.where(t.isnan(), 2, octave))


# Samples


def _on_samples(entry: Operation, name: str, dtype: torch.dtype, scale: float) -> list[_Points]:
    """All seeds of one sample, its numbers multiplied by the scale where they may be."""
    points: dict[str, list[_Points]] = {}
    for seed in range(SEEDS):
        (sample,) = (s for s in entry.samples(Make(dtype, seed=seed)) if s.name == name)
        args = list(sample.args)
        if any(isinstance(a, Tensor) and not a.numel() for a in args):
            return []
        for i in entry.differentiable(sample):
            drawn = args[i].double()
            if drawn.min() < 0:  # and not of a part of the line alone
                args[i] = (drawn * scale).to(dtype)
        output = joined(entry.twin(*[a.double() if is_number(a) else a for a in args]))
        if not output.numel():
            return []
        g = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for p in _compared(entry, args, list(entry.differentiable(sample)), g, None, pointwise=False):
            points.setdefault(p.result, []).append(p)
    return [p for of_result in points.values() for p in of_result]


# Errors


def _compared(
    entry: Operation, args: Sequence[Any], learning: list[int], g: Tensor, octave: Tensor | None, pointwise: bool
) -> list[_Points]:
    """Both errors of the output and of each gradient."""
    dtype = g.dtype
    wide = [a.double() if is_number(a) else a for a in args]
    try:
        theirs = _results(entry.twin, args, learning, g)
    except RuntimeError as error:
        if "not implemented for" in str(error):
            raise NotImplementedError(str(error)) from None
        raise
    ours = _results(entry.rule.apply, args, learning, g)
    references = _results(entry.reference or entry.twin, wide, learning, g.double())
    doubles = _results(entry.rule.apply, wide, learning, g.double())
    moved = _moved_pointwise(entry, wide, learning, g, dtype) if pointwise else _moved(entry, wide, learning, g, dtype)
    has_nan = _have_nan(args, pointwise)
    if pointwise and learning == [0] and has_nan.any() and sum(isinstance(a, Tensor) for a in args) == 1:
        # To how many ulps is seen at the numbers beside it; here it is either of torch's two answers.
        rounding = 4 * torch.finfo(dtype).eps
        references = [
            torch.where(has_nan & torch.isclose(mine.double(), few, rtol=rounding, atol=0), mine.double(), reference)
            for mine, reference, few in zip(ours, references, _few_by_few(entry.twin, wide, g, has_nan), strict=True)
        ]
    names = ["output", *(f"gradient of argument {i}" for i in learning)]
    torchs_errors = [errors_in_ulps(t, r, has_nan) for t, r in zip(theirs, references, strict=True)]
    if entry.cancels and not pointwise:
        for errors, beside in zip(torchs_errors, _errors_beside(entry, args, learning, g), strict=True):
            torch.maximum(errors, beside.where(errors != LOST, LOST), out=errors)
    points = []
    for name, mine, torchs, torchs_error, reference, double, by_arguments in zip(
        names, ours, theirs, torchs_errors, references, doubles, moved, strict=True
    ):
        spacing = ulp(reference, dtype)
        # In float64 too a twin loses digits, next to numbers of size 1 those after about the 46th. There it is no
        # reference beyond its distance from our formula, whose own rounding in the dtype comes on top.
        doubt = (double - reference).abs().nan_to_num(0, 0)
        doubt = doubt.where(doubt <= 2.0**-46 * g.double().abs().max().clamp_min(1), 0)
        doubt = doubt * (1 + 4 * torch.finfo(dtype).eps)
        if entry.cancels and not pointwise:
            by_arguments = by_arguments + ulp(reference.abs().max(), dtype)
        slack = ((by_arguments + doubt) / spacing).nan_to_num(0, 0).flatten()
        flat = [t.flatten() for t in (mine.double(), torchs.double(), reference)]
        octaves = torch.zeros_like(slack, dtype=torch.int64) if octave is None else octave
        points.append(
            _Points(
                name,
                errors_in_ulps(mine, reference, has_nan).flatten(),
                torchs_error.flatten(),
                slack,
                octaves,
                _describer(args, flat, pointwise),
            )
        )
    return points


def _errors_beside(entry: Operation, args: Sequence[Any], learning: Sequence[int], g: Tensor) -> list[Tensor]:
    """Torch's largest finite errors where the numbers and the upstream gradient are moved by an ulp, four times."""
    generator = torch.Generator().manual_seed(3)

    def moved(t: Tensor) -> Tensor:
        signs = torch.randint(2, t.shape, generator=generator) * 2 - 1
        return (t.double() + signs * ulp(t.double(), g.dtype)).to(g.dtype)

    draws = []
    for _ in range(4):
        beside, upstream = _replaced(args, learning, [moved(args[i]) for i in learning]), moved(g)
        wide = [a.double() if is_number(a) else a for a in beside]
        found = _results(entry.twin, beside, learning, upstream)
        right = _results(entry.reference or entry.twin, wide, learning, upstream.double())
        draws.append([errors_in_ulps(f, r) for f, r in zip(found, right, strict=True)])
    return [torch.stack([e.where(e.isfinite(), 0) for e in errors]).amax(0) for errors in zip(*draws, strict=True)]


def _results(function: Callable[..., Any], args: Sequence[Any], learning: Sequence[int], g: Tensor) -> list[Tensor]:
    """The output and the gradients."""
    leaves = [args[i].detach().clone().requires_grad_() for i in learning]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of shapes that broadcast
        output = joined(function(*_replaced(args, learning, leaves)))
    if not leaves:
        return [output]
    return [output.detach(), *torch.autograd.grad(output, leaves, g.to(output.dtype).expand(output.shape))]


def _few_by_few(twin: Callable[..., Any], wide: Sequence[Any], g: Tensor, where: Tensor) -> list[Tensor]:
    """The results at some numbers, and 0 elsewhere, from fewer of them at a time than a vector of the processor has.

    At NaN some of torch's kernels say one thing in their vectors and another in the numbers left over.
    """
    z, *options = wide
    results = [torch.zeros_like(z), torch.zeros_like(z)]
    for some in where.nonzero().flatten().split(3):
        for total, part in zip(results, _results(twin, [z[some], *options], [0], g[some].double()), strict=True):
            total[some] = part
    return results


def _moved_pointwise(
    entry: Operation, wide: Sequence[Any], learning: Sequence[int], g: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """By how much each result of the reference moves when each argument moves by one ulp: by its derivatives."""
    leaves = [wide[i].detach().clone().requires_grad_() for i in learning]
    output = (entry.twin_for_second or entry.twin)(*_replaced(wide, learning, leaves))
    gradients = torch.autograd.grad(output, leaves, g.double().expand(output.shape), create_graph=True)
    moved = []
    for result in (output, *gradients):
        total = torch.zeros_like(result)
        if result.requires_grad:
            derivatives = torch.autograd.grad(
                result, leaves, torch.ones_like(result), retain_graph=True, allow_unused=True
            )
            for derivative, leaf in zip(derivatives, leaves, strict=True):
                if derivative is not None:
                    total = total + (derivative * ulp(leaf.detach(), dtype)).abs().nan_to_num(0, 0)
        moved.append(total.detach())
    return moved


def _moved(
    entry: Operation, wide: Sequence[Any], learning: Sequence[int], g: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The same where every entry depends on all: by the largest difference that random moves make."""
    start = _results(entry.twin, wide, learning, g.double())
    moved = [torch.zeros_like(t) for t in start]
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        args = list(wide)
        for i in learning:
            signs = torch.randint(2, wide[i].shape, generator=generator) * 2 - 1
            args[i] = wide[i] + signs * ulp(wide[i], dtype)
        upstream = g.double()
        if entry.cancels:
            signs = torch.randint(2, g.shape, generator=generator) * 2 - 1
            upstream = upstream + signs * ulp(upstream, dtype)
        for total, there, here in zip(moved, _results(entry.twin, args, learning, upstream), start, strict=True):
            torch.maximum(total, (there - here).abs().nan_to_num(0, 0), out=total)
    return moved


def _describer(args: Sequence[Any], results: Sequence[Tensor], pointwise: bool) -> Callable[[int], str]:
    def describe(index: int) -> str:
        shown = [
            f"{a[index].item():.9g}" if pointwise and isinstance(a, Tensor) and a.dim() else _brief(a) for a in args
        ]
        mine, torchs, reference = (f"{t[index].item():.9g}" for t in results)
        return f"({', '.join(shown)}): ours {mine}, torch {torchs}, right {reference}"

    return describe


def _brief(a: Any) -> str:
    return f"{tuple(a.shape)}" if isinstance(a, Tensor) and a.dim() else f"{a.item() if isinstance(a, Tensor) else a}"


def _have_nan(args: Sequence[Any], pointwise: bool) -> Tensor:
    """Whether each point has NaN among its arguments; of samples, which have none, that not."""
    has_nan = torch.tensor(False)
    if pointwise:
        for a in args:
            if is_number(a):
                has_nan = has_nan | a.isnan()
    return has_nan


def _replaced(args: Sequence[Any], positions: Sequence[int], tensors: Sequence[Tensor]) -> list[Any]:
    replaced = list(args)
    for i, t in zip(positions, tensors, strict=True):
        replaced[i] = t
    return replaced


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--rule", nargs="+", metavar="NAME", help="only these, such as Sigmoid CrossEntropy (default: all)")
    dtypes = [name_of_dtype(dtype) for dtype in DTYPES]
    add("--dtype", nargs="+", choices=dtypes, default=dtypes, help="only these (default: all three)")
    add("--json", type=Path, metavar="FILE", help="write all figures there, those of each argument and of the output")
    add("--markdown", type=Path, metavar="FILE", help="write the table there")


def main(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if some rule is worse than torch."""
    require_tables()
    names = [entry.name for entry in CATALOGUE]
    for wanted in options.rule or ():
        if wanted not in names:
            alike = near(wanted, names)
            message = f"argument --rule: no rule {wanted!r}; {'near it' if alike else 'choose'}: "
            print(f"torch-manualbp accuracy: {message}{', '.join(alike or names)}", file=sys.stderr)
            return 2
    torch.set_num_threads(1)  # on a busy machine two threads, which wait for each other, take longer than one
    found: list[Accuracy] = []
    cells: list[list[str]] = []
    without: list[str] = []
    entries = [entry for entry in CATALOGUE if not options.rule or entry.name in options.rule]
    cases = [(entry, d) for entry in entries for d in DTYPES if name_of_dtype(d) in options.dtype]
    with Counted(cases, "accuracy", lambda case: f"{case[0].name} {name_of_dtype(case[1])}") as todo:
        for entry, dtype in todo:
            try:
                of_rule = measure(entry, dtype)
            except NotImplementedError as error:
                without.append(f"{entry.name}, {name_of_dtype(dtype)}: {error}")
                continue
            found += of_rule
            for about, rows in (("value", of_rule[:1]), ("gradients", of_rule[1:])):
                if rows:
                    cells.append(_line(entry.name, name_of_dtype(dtype), about, rows))
    columns = ["rule", "dtype", "", "points", "ours max", "torch max", "ours 99.9 %", "torch 99.9 %"]
    columns += ["ours lost", "torch lost", "verdict"]
    print_table(f"Errors in ulps, ours and torch {torch.__version__}'s", columns, cells)
    worse = [a for a in found if not a.ok]
    for accuracy in worse:
        print(f"{accuracy.rule}, {accuracy.dtype}, {accuracy.result}: {accuracy.where}")
    for reason in without:
        print(f"not measured: {reason}")
    summary = f"{len(worse)} of {len(found)} results worse than torch's by more than one ulp"
    print(summary)
    if options.json:
        rows_as_json = [asdict(a) | {"ok": a.ok} for a in found]
        write(options.json, {"torch": torch.__version__, "rows": rows_as_json, "not measured": without})
    if options.markdown:
        write(options.markdown, as_markdown(columns, cells) + f"\n{summary}\n")
    return INTERRUPTED if todo.interrupted else 1 if worse else 0


def _line(rule: str, dtype: str, about: str, rows: Sequence[Accuracy]) -> list[str]:
    figures = [max(getattr(a, name) for a in rows) for name in ("ours", "torch", "ours_999", "torch_999")]
    lost, torch_lost = sum(a.lost for a in rows), sum(a.torch_lost for a in rows)
    gain = max(a.gain for a in rows)
    verdict = f"better, by up to {_figure(gain)}" if gain > 1 else "fewer lost" if lost < torch_lost else "as torch"
    if not all(a.ok for a in rows):
        verdict = f"worse, by up to {_figure(max(a.excess for a in rows))}"
    counts = f"{lost:,}", f"{torch_lost:,}"
    return [rule, dtype, about, f"{sum(a.points for a in rows):,}", *map(_figure, figures), *counts, verdict]


def _figure(ulps: float) -> str:
    return f"{ulps:.2f}" if ulps < 1000 else f"{ulps:.1e}"
