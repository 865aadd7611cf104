"""Autocast, the meta device and fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torch_manualbp import functional
from torch_manualbp.catalogue import Make
from torch_manualbp.verify.contract.case import Case, DoesNotApply, assert_same, leaves, refusal, upstream_for

__all__ = ["autocasts_as_torch", "runs_on_fake_tensors", "runs_on_the_meta_device"]


class _Ours(TorchFunctionMode):
    """Calls ``torch_manualbp.functional.x`` for every call of ``torch.nn.functional.x``, ``torch.x`` or a method x."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in functional.__all__ and any(getattr(p, name, None) is func for p in (F, torch, Tensor)):
            func = getattr(functional, name)
        return func(*args, **(kwargs or {}))


def autocasts_as_torch(case: Case, dtype: torch.dtype) -> None:
    """Under autocast, value and gradients of the function of ``torch_manualbp.functional`` that runs the rule have the
    dtypes of torch's, and its numbers to the rounding of the autocast dtype: for arguments in float32 and in the
    autocast dtype. A rule that no such function runs is held to this itself, for arguments in float32."""
    ours = _through(_Ours(), case.twin)
    runs_the_rule = getattr(ours(*case.args()).grad_fn, "_forward_cls", None) is case.rule
    ran = 0
    for given in (torch.float32, dtype) if runs_the_rule else (torch.float32,):
        if refusal(_under_autocast, case, case.twin, dtype, given):
            continue
        results = (
            _under_autocast(case, function, dtype, given)
            for function in (ours if runs_the_rule else case.apply, case.twin)
        )
        for i, (got, expected) in enumerate(zip(*results, strict=True)):
            what = f"{'gradient ' + str(i - 1) if i else 'output'} of arguments in {given}"
            assert_same(got, expected, what, tolerance=8 * torch.finfo(dtype).eps)
        ran += 1
    if not ran:
        raise DoesNotApply(f"torch takes no autocast to {str(dtype).removeprefix('torch.')} here")


def _through(mode: TorchFunctionMode, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def through(*args: Any) -> Tensor:
        with mode:
            return function(*args)

    return through


def _under_autocast(
    case: Case, function: Callable[..., Tensor], dtype: torch.dtype, given: torch.dtype
) -> tuple[Tensor, ...]:
    args = case.args(Make(given))
    with torch.autocast("cpu", dtype):
        output = function(*args)
    return output, *torch.autograd.grad(output, leaves(args), upstream_for(output))


def runs_on_the_meta_device(case: Case) -> None:
    """On the meta device output and gradients have the shapes and dtypes that they have with numbers."""
    expected = _results(case, case.args())
    _has_the_shapes_of_numbers(_results(case, case.args(Make(device="meta"))), expected, "meta")


def runs_on_fake_tensors(case: Case) -> None:
    """Under ``FakeTensorMode`` output and gradients have the shapes and dtypes that they have with numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    args = case.args()
    expected = _results(case, args)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        _has_the_shapes_of_numbers(_results(case, fake), expected, "cpu")


def _results(case: Case, args: Sequence[Any]) -> tuple[Tensor, ...]:
    output = case.apply(*args)
    return output, *torch.autograd.grad(output, leaves(args), torch.ones_like(output))


def _has_the_shapes_of_numbers(results: Sequence[Tensor], expected: Sequence[Tensor], device: str) -> None:
    for i, (result, plain) in enumerate(zip(results, expected, strict=True)):
        what = f"gradient {i - 1}" if i else "output"
        assert result.shape == plain.shape, f"{what}: shape {tuple(result.shape)}, with numbers {tuple(plain.shape)}"
        assert result.dtype == plain.dtype, f"{what}: {result.dtype}, with numbers {plain.dtype}"
        assert result.device.type == device, f"{what} is on {result.device}"
