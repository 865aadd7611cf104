"""Each check of verify finds the mistake that it is there for, and no fault with the right twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from torch_manualbp import rules
from torch_manualbp.verify import CHECKS, verify
from torch_manualbp.verify.hints import hint_for
from torch_manualbp.verify.mistakes.surroundings import KeptOnTheContext, Scale


def make(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Sinh(Function):
    """a = sinh z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.sinh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        wide = torch.float32 if z.dtype in (torch.float16, torch.bfloat16) else z.dtype
        return (da.to(wide) * z.to(wide).cosh()).to(z.dtype)


class Both(Function):
    """(z, 2 z)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.clone(), 2 * z

    @staticmethod
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> Tensor:
        return d1 + 2 * d2


class Float64Returned(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da).double()


class NineTenThousandths(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da) * 1.0009


class RoundedInTheMiddle(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        if z.dtype == torch.float64:
            return Sinh.backward(ctx, da)
        z = z * (1 + 32 * torch.finfo(z.dtype).eps)
        return da * (z.exp() + (-z).exp()) / 2


class OtherWhileFrozen(Scale):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.saved_tensors
        return da * y * (1 if ctx.needs_input_grad[1] else 2), da * z


class AnswersForBoth(Both):
    """What is not used has no gradient, and for that the first one's is taken."""

    @staticmethod
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> Tensor:
        return d1 + 2 * torch.where((d2 == 0).all(), d1, d2)


class HiddenAndWrong(Sinh):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.sinh() + (0.001 * z).detach()


class Straight(torch.nn.Module):
    """No Function, and yet no derivative."""

    def forward(self, z: Tensor) -> Tensor:
        return z + (z.sinh() - z).detach()


class Tangent(rules.Sigmoid):
    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return dz * a


class Clamped(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da.clamp(-1e3, 1e3))


class SamplesMeet(torch.nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z - z.mean(0)


class Once(Sinh):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da)


class OneAtZero(rules.ReLU):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return torch.where(a < 0, 0, da).where(a != 0, torch.where(a == 0, 0.5 * da, da))


class ProductWithTheMask(rules.ReLU):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return da * (a > 0)


class MaskDrawnAgain(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z * (torch.rand(z.shape) < 0.5)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da * (torch.rand(da.shape) < 0.5)


class MaskKept(MaskDrawnAgain):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        mask = torch.rand(z.shape) < 0.5
        ctx.save_for_backward(mask)
        return z * mask

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (mask,) = ctx.saved_tensors
        return da * mask


class WritesToTheUpstream(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return Sinh.backward(ctx, da) if torch.is_grad_enabled() else da.mul_(z.cosh())


class DividesByTheBatch(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.shape = z.shape
        return z.sum()

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da.expand(ctx.shape) * (6 // ctx.shape[0] * ctx.shape[0] / 6)


class Sums(DividesByTheBatch):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da.expand(ctx.shape)


class MixesSamples(Sinh):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: Tensor) -> Any:
        return z.sinh() + z.mean(in_dims[0], keepdim=True), in_dims[0]


class WrongInTransforms(Sinh):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        right = super().apply(*args)  # type: ignore[no-untyped-call]
        return 2 * right if torch._C._are_functorch_transforms_active() else right


class ForwardsCounted(Sinh):
    """Whose backward is that of the first of its forwards alone."""

    count = 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ForwardsCounted.count += torch._C._current_graph_task_id() >= 0

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        right = Sinh.backward(ctx, da)
        recomputed, ForwardsCounted.count = ForwardsCounted.count, 0
        return right * (1 + recomputed)


def linear_as_it_is(a: Tensor, W: Tensor) -> Tensor:
    z: Tensor = rules.Linear.apply(a, W, None)
    return z


def compiled_to_twice(z: Tensor) -> Tensor:
    return z.sinh() * (2 if torch.compiler.is_compiling() else 1)


def operator(name: str, fake: Any = torch.empty_like) -> Any:
    """An operator of torch.library that is sinh."""

    @torch.library.custom_op(f"verify_checks::{name}", mutates_args=())
    def sinh(z: Tensor) -> Tensor:
        return z.sinh()

    sinh.register_fake(fake)
    sinh.register_autograd(
        lambda ctx, da: da * ctx.saved_tensors[0].cosh(),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return sinh


class JvpOfValues(Sinh):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.detach().sinh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return dz * z.cosh()


class KeepsTheLast(Sinh):
    last: Tensor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        (KeepsTheLast.last,) = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return da * KeepsTheLast.last.cosh()


class AlsoAddsToGrad(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        right = Sinh.backward(ctx, da)
        if z.is_leaf:
            z.grad = right.detach().clone() if z.grad is None else z.grad + right.detach()
        return right


class TwiceWhereShared(Scale):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.saved_tensors
        return da * y * (2 if z.data_ptr() == y.data_ptr() else 1), da * z


class ReadsNewMemory(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da) + torch.empty_like(da).isnan()


class TakesMemoryAsItLies(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        lies = z.permute(0, 2, 3, 1).reshape(z.shape) if not z.is_contiguous() else z
        return da * lies.cosh()


class InTheirDtypes(Function):
    """a = z w, of a z in bfloat16 and a w in float32."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(z, w)
        return (z * w).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, Tensor]:
        z, w = ctx.saved_tensors
        return (da * w).to(z.dtype), (da.to(w.dtype) * z).sum(0)


class RoundedToTheOthers(InTheirDtypes):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, Tensor]:
        dz, dw = InTheirDtypes.backward(ctx, da)
        return dz, dw.to(dz.dtype)


class Halved(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da) / 2


class InTraining(torch.nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        apply: Any = Sinh.apply if self.training else Halved.apply
        return apply(z)


class AsksTheCompiler(Sinh):
    factor = 1

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return da * z.cosh().clone() if torch.compiler.is_compiling() else da * z.cosh()


class TwiceIfCompiled(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return da * z.cosh() * (2 if torch.compiler.is_compiling() else 1)


class LeavesOutTheLastRows(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        whole = da.shape[0] // 4 * 4 or da.shape[0]
        return torch.cat([Sinh.backward(ctx, da)[:whole], 0 * da[whole:]])


class TwoDimensionsAlone(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return Sinh.backward(ctx, da) * (1 if da.dim() == 2 else 2)


class AlongDimension(Function):
    """a = Σ z along a dimension."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dim: int) -> Tensor:
        ctx.shape, ctx.dim = z.shape, dim
        return z.sum(dim, keepdim=True)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.expand(ctx.shape), None


class LastDimensionAlone(AlongDimension):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.expand(ctx.shape) * (1 if ctx.dim == -1 else 2), None


class ShortcutForSmallNumbers(Sinh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return torch.where(z.abs() < 1e-4, 2 * da, Sinh.backward(ctx, da))


class SumOfRows(Function):
    """a = Σ w over the rows of z, of a w that is expanded to them."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z - z.mean(0)) * 1

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da - da.mean(0)


class SumsInFewDigits(SumOfRows):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        total = 0 * da[0]
        for row in da + 1:
            total = total + row
        return da - (total / len(da) - 1)


Z = (make(5, 4),)
PAIR = (make(5, 4), make(5, 4) + 1)

PLANTED: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {  # the check: what is wrong, what is right, inputs
    "structure": (Float64Returned, Sinh, Z),
    "values, float64": (NineTenThousandths, Sinh, Z),
    "values, float32": (RoundedInTheMiddle, Sinh, Z),
    "values, float16": (RoundedInTheMiddle, Sinh, Z),
    "values, bfloat16": (RoundedInTheMiddle, Sinh, Z),
    "frozen tensors": (OtherWhileFrozen, Scale, PAIR),
    "unused outputs": (AnswersForBoth, Both, Z),
    "finite differences": (Straight(), torch.nn.Tanh(), Z),
    "adjoint identity": (Tangent, rules.Sigmoid, Z),
    "operator": (operator("fake_of_another_shape", fake=lambda z: z.new_empty(z.shape[0])), operator("right"), Z),
    "tangents of values": (operator("sinh"), JvpOfValues, Z),
    "linearity": (Clamped, Sinh, Z),
    "additivity": (SamplesMeet(), torch.nn.Tanh(), Z),
    "second order": (Once, Sinh, Z),
    "kinks": (OneAtZero, rules.ReLU, Z),
    "special values": (ProductWithTheMask, rules.ReLU, Z),
    "randomness": (MaskDrawnAgain, MaskKept, Z),
    "saved tensors": (KeptOnTheContext, Scale, PAIR),
    "layout": (WritesToTheUpstream, Sinh, Z),
    "empty batch": (DividesByTheBatch, Sums, (make(6, 4),)),
    "vmap": (MixesSamples, Sinh, Z),
    "functorch": (WrongInTransforms, Sinh, Z),
    "checkpoint": (ForwardsCounted, Sinh, Z),
    "autocast": (linear_as_it_is, torch.nn.functional.linear, (make(5, 4), make(3, 4))),
    "two forwards": (KeepsTheLast, Sinh, Z),
    "accumulated gradients": (AlsoAddsToGrad, Sinh, Z),
    "one tensor twice": (TwiceWhereShared, Scale, PAIR),
    "poisoned memory": (ReadsNewMemory, Sinh, Z),
    "channels last": (TakesMemoryAsItLies, Sinh, (make(2, 3, 4, 5),)),
    "mixed dtypes": (RoundedToTheOthers, InTheirDtypes, (make(64, 4).bfloat16(), make(4).float())),
    "other mode": (InTraining(), torch.nn.BatchNorm1d(4), Z),
    "asked whether compiled": (TwiceIfCompiled, AsksTheCompiler, Z),
    "sizes": (LeavesOutTheLastRows, Sinh, (make(8, 4),)),
    "dimensions": (TwoDimensionsAlone, Sinh, Z),
    "options": (LastDimensionAlone, AlongDimension, (*Z, -1)),
    "numbers": (ShortcutForSmallNumbers, Sinh, Z),
    "fewer digits": (SumsInFewDigits, SumOfRows, Z),
    "compile": (compiled_to_twice, torch.sinh, Z),
}


def test_every_check_has_its_mistake() -> None:
    assert list(PLANTED) == [check.name for check in CHECKS]


@pytest.mark.parametrize("check", PLANTED)
def test_a_check_finds_its_mistake(check: str) -> None:
    wrong, right, inputs = PLANTED[check]
    report = verify(wrong, *inputs, checks=[check], batch=0, kinks="autograd")
    assert report.failures, report
    report = verify(right, *inputs, checks=[check], batch=0)
    assert {row.verdict for row in report.rows} == {"ok"}, report


R = make(6, 6)

CORRECTIONS = [
    (-R, "the sign is wrong"),
    (2 * R, "factor: it is 2 times the right one"),
    (R.t(), "transpose"),
    (R * 6, "missing mean: it must be divided by dimension 0 (6), off by the batch size"),
    (R / 36, "one mean too many: it is divided by the number of entries"),
    (torch.zeros_like(R), "all zero"),
    (R.flip(1), "flipped along dimension 1"),
    (R.where(torch.arange(6) != 5, 0), "6 of 36 entries are wrong, all at index 5 of dimension 1"),
]


@pytest.mark.parametrize(("gradient", "hint"), CORRECTIONS, ids=[hint for _, hint in CORRECTIONS])
def test_a_hint_is_the_correction(gradient: Tensor, hint: str) -> None:
    assert hint in hint_for(gradient, R)


def test_hints_of_sums_and_conjugates() -> None:
    parts = make(6, 4)
    assert "missing sum over dimension 0" in hint_for(parts, parts.sum(0, keepdim=True).expand(6, 4))
    assert "missing mean over dimension 1" in hint_for(parts, parts.mean(1, keepdim=True).expand(6, 4))
    numbers = torch.complex(make(4), make(4, 2)[:, 1])
    assert "conj" in hint_for(numbers.conj(), numbers)


def test_kinks_are_reported() -> None:
    report = verify(torch.nn.Hardtanh(-1.5, 0.75), make(5, 4) / 10, checks="kinks")
    (row,) = report.rows
    assert "kink at -1.5: 0 | " in row.hint
    assert "kink at 0.75: " in row.hint
    assert "the inputs come no nearer to it than" in row.hint


def test_dropout_that_draws_otherwise_under_a_transform_is_right() -> None:
    report = verify(lambda z: torch.nn.functional.dropout(z.transpose(0, 1), 0.3), make(6, 30))
    assert report.verdict == "correct", report
