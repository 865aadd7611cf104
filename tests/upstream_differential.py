"""One call of ours against the same call of torch's: all that a user could see of either must be the same.

A call is prepared twice from one random state, so that both sides have tensors, weights and noise of their own and of
the same numbers. ``observe`` runs a side; ``assert_same_observation`` compares.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

EXACT = 1e-12
"""Largest difference that double precision may show, relative to the tensor's largest number or 1."""


@dataclass
class Call:
    """A function or a layer, and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def leaves(self) -> list[Tensor]:
        """The tensors that learn: arguments first, then parameters."""
        tensors = [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        if isinstance(self.function, torch.nn.Module):
            tensors += list(self.function.parameters())
        return [t for t in tensors if t.requires_grad]

    def through_copies(self) -> Call:
        """The same call on copies of its arguments that autograd follows, which may be changed in place."""
        self.args, self.kwargs = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, (self.args, self.kwargs))
        return self


WARNS_ONCE = "may require a zero-padded copy of the input"
"""What torch says of a convolution once in a process, and ours, which makes the same copy, never."""


@dataclass
class Observation:
    """What one side showed."""

    error: tuple[str, str, str] | None = None  # when, its class, its message
    warned: tuple[tuple[str, str], ...] = ()
    outputs: tuple[Any, ...] = ()
    same_object: tuple[bool, ...] = ()  # whether an output is the very first argument
    gradients: tuple[Tensor | None, ...] = ()
    arguments_after: tuple[Any, ...] = ()

    def tensors(self) -> list[tuple[str, Tensor | None]]:
        named: list[tuple[str, Tensor | None]] = [(f"output {i}", t) for i, t in enumerate(self.outputs)]
        named += [(f"gradient {i}", t) for i, t in enumerate(self.gradients)]
        return named + [(f"argument {i} after the call", t) for i, t in enumerate(self.arguments_after)]


Prepare = Callable[[], Call]


def fresh(values: Any) -> Any:
    """The values with tensors of their own memory: same numbers, strides and offset, and one where one was in two
    places."""
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:
            old = value.detach()
            new = torch.empty(0, dtype=old.dtype)
            new.set_(old.untyped_storage().clone(), old.storage_offset(), old.shape, old.stride())
            copies[id(value)] = new.requires_grad_(value.requires_grad)
        return copies[id(value)]

    return tree_map(copy, values)


def seed(number: int) -> None:
    """``torch.manual_seed`` for the CPU alone; for other devices it formats the stack, longer than most calls take."""
    torch.default_generator.manual_seed(number)


def observe(prepare: Prepare, *, in_place: bool = False, doubled: bool = False) -> Observation:
    """Prepare the call, run it, and pull a random upstream gradient back to everything that learns."""
    seed(0)
    call = prepare()
    if doubled:
        call = _in_double_precision(call)
    leaves = call.leaves()
    if in_place:
        call.through_copies()
    seen = Observation()
    with _every_warning() as record:
        seed(1)
        try:
            output = call.function(*call.args, **call.kwargs)
        except Exception as error:  # whatever torch raises, ours must
            seen.error = "forward", type(error).__name__, str(error)
        else:
            _look_at(seen, output, call, leaves)
    seen.warned = tuple((w.category.__name__, str(w.message)) for w in record if WARNS_ONCE not in str(w.message))
    return seen


def _look_at(seen: Observation, output: Any, call: Call, leaves: list[Tensor]) -> None:
    outputs, _ = tree_flatten(output)
    arguments = tree_leaves((call.args, call.kwargs))
    seen.outputs = tuple(outputs)
    seen.same_object = tuple(any(o is a for a in arguments) for o in outputs)
    seen.arguments_after = tuple(a for a in arguments if isinstance(a, Tensor))
    learning = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    if not learning or not leaves:
        return
    try:
        seen.gradients = torch.autograd.grad(learning, leaves, [upstream_for(o) for o in learning], allow_unused=True)
    except Exception as error:
        seen.error = "backward", type(error).__name__, str(error)


def upstream_for(output: Tensor) -> Tensor:
    """The same upstream gradient for each precision: numbers of four bits, laid out as the output is."""
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randint(1, 16, output.shape, generator=generator) / 8
    if output.dtype.is_complex:
        upstream = torch.complex(upstream, upstream.flip(0) if upstream.dim() else -upstream)
    return torch.empty_like(output, requires_grad=False).copy_(upstream)


@contextmanager
def _every_warning() -> Iterator[list[warnings.WarningMessage]]:
    """Warnings that torch gives once a process, too: the side that runs second must not find them spent."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            yield record
    finally:
        torch.set_warn_always(always)


def _in_double_precision(call: Call) -> Call:
    doubles: dict[int, Tensor] = {}  # a tensor in two places stays one

    def double(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return _double(value)
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        if id(value) not in doubles:
            doubles[id(value)] = value.detach().to(_double(value.dtype)).requires_grad_(value.requires_grad)
        return doubles[id(value)]

    call.args, call.kwargs = tree_map(double, (call.args, call.kwargs))
    if isinstance(call.function, torch.nn.Module):
        for parameter in (*call.function.parameters(), *call.function.buffers()):
            parameter.data = parameter.data.to(_double(parameter.dtype))
    return call


def _double(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


Errors = list[tuple[str, float, float]]
"""The tensor that erred, our error and torch's, in units of the last place of its largest number."""

FEW = 8.0
"""Units by which one call may be worse than torch's, where terms cancel."""


def assert_same_observation(
    ours: Observation,
    torchs: Observation,
    reference: Observation | None = None,
    errors: Errors | None = None,
    finite_where_torch_is_not: bool = False,
    exact: float = EXACT,
    lost: float = math.inf,
    gradients_in_any_order: bool = False,
) -> None:
    """``ours`` shows what ``torchs`` shows.

    In double precision numbers may differ by 1e-12 of the tensor's largest. In lower precision the reference is torch's
    own call on the same numbers in double precision; the errors of both go into ``errors``, for
    ``assert_no_less_accurate``, unless torch's own is above ``lost``. Without a reference (random noise is another in
    each precision) it is torch's result.
    """
    assert ours.error == torchs.error, f"error {ours.error}, torch's {torchs.error}"
    assert ours.warned == torchs.warned, f"warned {ours.warned}, torch {torchs.warned}"
    assert ours.same_object == torchs.same_object, "returns its argument where torch returns a new tensor, or reversely"
    names = [name for name, _ in torchs.tensors()]
    mine_names = [name for name, _ in ours.tensors()]
    assert mine_names == names, f"returns other tensors: {mine_names}, not {names}"
    references = {} if reference is None else dict(reference.tensors())
    for (name, mine), (_, torch_s) in zip(ours.tensors(), torchs.tensors(), strict=True):
        if mine is None or torch_s is None:
            assert mine is torch_s, f"{name}: {mine}, torch's is {torch_s}"
            continue
        _assert_same_layout(name, mine, torch_s, strides=not (gradients_in_any_order and "gradient" in name))
        true = references.get(name)
        if not mine.numel():
            continue
        if not (mine.is_floating_point() or mine.is_complex()):
            assert torch.equal(mine, torch_s), f"{name}: {mine}, not {torch_s}"
            continue
        if true is None or mine.dtype in (torch.float64, torch.complex128):
            true = torch_s
        try:
            error = _errors_of(mine.detach(), torch_s.detach(), true.detach(), finite_where_torch_is_not, exact, lost)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {failure}") from None
        if errors is not None and torch.finfo(mine.dtype).bits < 64:
            errors.append((name, *error))


def assert_no_less_accurate(errors: Errors, cancels: bool = False) -> None:
    """The worst error that ours shows of a tensor is no further from the reference than the worst of torch's, and one
    unit in the last place; the median, where the largest number itself cancels.

    The worst of all inputs together: both round more than once where terms cancel, and whose error is larger in one
    call is an accident.
    """
    representative = statistics.median if cancels else max
    for name in dict.fromkeys(name for name, _, _ in errors):
        mine = representative([ours for n, ours, _ in errors if n == name])
        torch_s = representative([torchs for n, _, torchs in errors if n == name])
        assert mine <= torch_s + 1, f"{name}: off by {mine:.2f} units in the last place, torch by {torch_s:.2f}"


def _assert_same_layout(name: str, ours: Any, torchs: Any, strides: bool) -> None:
    assert type(ours) is type(torchs), f"{name}: {type(ours)}, not {type(torchs)}"
    assert ours.shape == torchs.shape, f"{name}: shape {tuple(ours.shape)}, not {tuple(torchs.shape)}"
    assert ours.dtype == torchs.dtype, f"{name}: {ours.dtype}, not {torchs.dtype}"
    assert ours.requires_grad == torchs.requires_grad, f"{name}: requires_grad is {ours.requires_grad}"
    assert not strides or _strides(ours) == _strides(torchs), f"{name}: strides {ours.stride()}, not {torchs.stride()}"


def _strides(t: Tensor) -> list[int]:
    """The strides that lead to another entry; those of a dimension of one entry lead nowhere."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1] if t.numel() else []


def _errors_of(
    ours: Tensor, torchs: Tensor, true: Tensor, finite_where_torch_is_not: bool, exact: float, lost: float
) -> tuple[float, float]:
    """The largest errors of ours and of torch's, in units of the last place of the largest number."""
    epsilon, tiny = torch.finfo(ours.dtype).eps, torch.finfo(ours.dtype).tiny
    precise = torch.finfo(ours.dtype).bits == 64
    mine, torch_s, true = _real_numbers(ours), _real_numbers(torchs), _real_numbers(true)
    odd = ~torch_s.isfinite()
    if finite_where_torch_is_not:
        odd &= ~mine.isfinite()
    else:  # right where torch overflows on its way is no mistake
        odd &= ~(true.isfinite() & mine.isfinite())
    assert torch.equal(mine[odd].nan_to_num(3.0), torch_s[odd].nan_to_num(3.0)), "inf or NaN elsewhere than in torch"
    assert bool(mine[~odd].isfinite().all()), "inf or NaN where torch has a number"
    counted = ~odd & true.isfinite()
    if not counted.any():
        return 0.0, 0.0
    mine, torch_s, true = mine[counted], torch_s[counted], true[counted]
    scale = max(true.abs().max().item(), 1.0 if precise else tiny / epsilon)
    error, torchs_error = ((t - true).abs().nan_to_num().max().item() / scale for t in (mine, torch_s))
    if precise:
        assert error <= exact, f"off by {error:.3g} of the largest number"
        return 0.0, 0.0
    if torchs_error > lost:
        return 0.0, 0.0
    assert error <= torchs_error + FEW * epsilon, f"off by {error:.3g} of the largest number, torch {torchs_error:.3g}"
    return error / epsilon, torchs_error / epsilon


def _real_numbers(t: Tensor) -> Tensor:
    """All numbers, the imaginary parts of complex ones too."""
    return torch.view_as_real(t.resolve_conj()).double() if t.is_complex() else t.double()
