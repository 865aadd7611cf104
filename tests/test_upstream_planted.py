"""The differential test can fail: each mistaken drop-in here must be caught, and named for what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import test_upstream_differential as differential
import torch
import upstream
from torch import Tensor
from upstream_differential import Call, assert_no_less_accurate, assert_same_observation, observe

from torch_manualbp import functional, nn, rules


class SlightlyWrong(rules.Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return rules.Sigmoid.backward(ctx, da) * (1 + 1e-10)


class WrongByAHalf(rules.Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * a * (1 - a) * 1.5


class TwoPercentOff(rules.Tanh):
    """Three units in the last place of bfloat16."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return rules.Tanh.backward(ctx, da) * 1.02


def gradient_of_another_layout(z: Tensor) -> Tensor:
    class Transposes(rules.Sigmoid):
        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            gradient = rules.Sigmoid.backward(ctx, da)
            return gradient.t().contiguous().t() if gradient.dim() == 2 else gradient

    return Transposes.apply(z)


def warns(z: Tensor) -> Tensor:
    warnings.warn("slow", UserWarning, stacklevel=2)
    return functional.sigmoid(z)


SIGMOIDS: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype, str]] = {
    "a gradient off by 1e-10": (SlightlyWrong.apply, torch.float64, "gradient 0: off by"),
    "a gradient off by a half, in bfloat16": (WrongByAHalf.apply, torch.bfloat16, "gradient 0: off by"),
    "a wider dtype": (lambda z: functional.sigmoid(z.double()), torch.float32, "output 0: torch.float64"),
    "a transposed output": (
        lambda z: functional.sigmoid(z).t().contiguous().t() if z.dim() == 2 else functional.sigmoid(z),
        torch.float64,
        "output 0: strides",
    ),
    "a transposed gradient": (gradient_of_another_layout, torch.float64, "gradient 0: strides"),
    "a detached output": (lambda z: functional.sigmoid(z).detach(), torch.float64, "returns other tensors"),
    "a view of the input": (
        lambda z: z.detach().copy_(functional.sigmoid(z.detach())) if not z.requires_grad else functional.sigmoid(z),
        torch.float64,
        "argument 0 after the call",
    ),
    "a warning": (warns, torch.float64, "warned"),
    "NaN for infinity": (lambda z: functional.sigmoid(z) + 0 * (z * 1e308), torch.float64, "inf or NaN|off by"),
}


@pytest.mark.parametrize(("mistaken", "dtype", "says"), SIGMOIDS.values(), ids=SIGMOIDS)
def test_a_mistaken_sigmoid(mistaken: Callable[[Tensor], Tensor], dtype: torch.dtype, says: str) -> None:
    (op,) = (o for o in upstream.OPS if o.full_name == "sigmoid")
    how = {"reference": dtype == torch.float64}
    differential.compare_op(op, functional.sigmoid, torch.sigmoid, dtype, **how)
    with pytest.raises(AssertionError, match=says):
        differential.compare_op(op, mistaken, torch.sigmoid, dtype, **how)


def test_a_tanh_some_units_off() -> None:
    """Each call alone is within the few units that cancellation may cost; the worst of all is not."""
    (op,) = (o for o in upstream.OPS if o.full_name == "tanh")
    with pytest.raises(AssertionError, match="units in the last place"):
        differential.compare_op(op, TwoPercentOff.apply, torch.tanh, torch.bfloat16, reference=False)


def test_another_message() -> None:
    def calls(function: Callable[..., Any]) -> Any:
        return observe(lambda: Call(function, (torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64))))

    right, torchs = calls(functional.mse_loss), calls(torch.nn.functional.mse_loss)
    assert_same_observation(right, torchs)

    def another_message(*args: Any) -> Tensor:
        try:
            return functional.mse_loss(*args)
        except RuntimeError:
            raise RuntimeError("shapes differ") from None

    def another_class(*args: Any) -> Tensor:
        try:
            return functional.mse_loss(*args)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    for mistaken in (another_message, another_class):
        with pytest.raises(AssertionError, match="error"):
            assert_same_observation(calls(mistaken), torchs)


class ForgetsItsBias(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight)


class LearnsNoBias(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, None if self.bias is None else self.bias.detach())


class SumsAlways(nn.MSELoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(input, target, reduction="sum")


class ReturnsACopy(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input)


@pytest.mark.parametrize(
    ("mistaken", "says"),
    [
        (ForgetsItsBias, "output 0: off by|gradient"),
        (LearnsNoBias, "gradient 2: None"),
        (SumsAlways, "off by|shape"),
        (ReturnsACopy, "returns its argument|argument 0 after"),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_a_mistaken_layer(mistaken: type[torch.nn.Module], says: str) -> None:
    base = mistaken.__mro__[1]
    (info,) = (i for i in upstream.MODULES if i.module_cls is base)
    changed = {"inplace": True} if base is nn.ReLU else {}

    def run(cls: type[torch.nn.Module]) -> None:
        mine = differential.module_calls(info, cls, torch.float64, training=True, **changed)
        torchs = differential.module_calls(info, upstream.torch_class(info), torch.float64, training=True, **changed)
        for o, t in zip(mine, torchs, strict=True):
            assert_no_less_accurate(differential.compare(o, t, None, in_place=bool(changed)))

    run(base)
    with pytest.raises(AssertionError, match=says):
        run(mistaken)
