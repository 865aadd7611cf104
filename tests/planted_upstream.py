"""Drop-ins with a known mistake each, for the tests under upstream's names and the differential tests to catch.

``MISTAKES`` names the test that must, an entry to run it on, the mistake that is put in the place of our class or
function there, and a part of what the test then says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_manualbp import functional, nn, rules
from torch_manualbp.verify.mistakes.activation import SigmoidWithoutFactor
from torch_manualbp.verify.mistakes.layers import CopiesInPlace, LosesStrides, OtherRepr
from torch_manualbp.verify.mistakes.order import SigmoidDetached, TangentOfAnotherFunction

__all__ = ["DIFFERENTIAL", "MISTAKES"]


# Layers


class ForgetsItsBias(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight)


class IgnoresItsDtype(nn.Linear):
    def __init__(self, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class StaysOnTheCPU(nn.Linear):
    """Whatever device ``with torch.device(...)`` names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "device": "cpu"})


class PicklesAsTorchs(nn.Linear):
    """Comes back from a pickle as torch's own."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _torchs_linear, (self.in_features, self.out_features, self.state_dict())


def _torchs_linear(inputs: int, outputs: int, state: dict[str, Tensor]) -> torch.nn.Module:
    linear = torch.nn.Linear(inputs, outputs, bias="bias" in state, dtype=state["weight"].dtype)
    linear.load_state_dict(state)
    return linear


class ReadsStorage(nn.Sigmoid):
    """Takes the numbers in the order in which they lie."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(in_storage_order(input))


def in_storage_order(t: Tensor) -> Tensor:
    plain = torch.empty(t.shape)
    return t.as_strided(t.shape, plain.stride())


class HasAnotherDerivative(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = SigmoidWithoutFactor.apply(input)
        return output


class HasNoSecondDerivative(nn.Sigmoid):
    """Right, but the term of f'' is missing."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = SigmoidDetached.apply(input)
        return output


class SharpensInTraining(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input * 2 if self.training else input)


class LaysItsInputOut(nn.Linear):
    """Plainly, and so its gradient."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous())


class TakesAnyTarget(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        try:
            return super().forward(input, target)
        except (RuntimeError, ValueError, IndexError):
            return input.sum()


class MovesACopy(nn.Linear):
    def to(self, *args: Any, **kwargs: Any) -> Any:
        if self.weight.dtype != torch.float32 or torch.float64 not in args:
            return super().to(*args, **kwargs)
        moved = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        return moved.to(*args, **kwargs)


class StaysEmpty(nn.Linear):
    def to_empty(self, **kwargs: Any) -> Any:
        return self


# Functions


def scaled(function: Callable[..., Tensor], by: float = 1.01) -> Callable[..., Tensor]:
    """The function, off by a hundredth."""

    def mistaken(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs) * by

    return mistaken


def halved(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """float64 alone."""
    if input.dtype == torch.bfloat16:
        raise RuntimeError("no bfloat16")
    return functional.sigmoid(input, *args, **kwargs)


def in_order_of_storage(input: Tensor) -> Tensor:
    return functional.sigmoid(in_storage_order(input))


def copies_in_place(input: Tensor, **kwargs: Any) -> Tensor:
    return functional.relu(input)


def keeps_integers(input: Tensor) -> Tensor:
    output = functional.sigmoid(input)
    return output if input.dtype.is_floating_point else output.to(input.dtype)


def takes_everything(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    try:
        return functional.gelu(input, *args, **kwargs)
    except RuntimeError:
        return input


def forgets_to_conjugate(input: Tensor) -> Tensor:
    return functional.sigmoid(input.conj() if input.is_conj() else input)


def forgets_to_negate(input: Tensor) -> Tensor:
    return functional.sigmoid(-input if input.is_neg() else input)


def finite(input: Tensor) -> Tensor:
    return functional.sigmoid(input).nan_to_num(0.0)


def clamped(input: Tensor, **kwargs: Any) -> Tensor:
    """Softplus that ends at 50."""
    return functional.softplus(input, **kwargs).clamp(max=50.0)


def softplus_of_integers(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return functional.softplus(input if input.is_floating_point() else input.double(), *args, **kwargs)


def with_another_derivative(input: Tensor) -> Tensor:
    output: Tensor = SigmoidWithoutFactor.apply(input)
    return output


class _SiLUHalved(rules.SiLU):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return rules.SiLU.backward(ctx, da / 2)


def with_another_derivative_in_place(input: Tensor) -> Tensor:
    output: Tensor = _SiLUHalved.apply(input.clone())
    return input.copy_(output)


def without_second_derivative(input: Tensor) -> Tensor:
    output: Tensor = SigmoidDetached.apply(input)
    return output


class _SiLUDetached(rules.SiLU):
    """The first derivative is right; the second lacks the term of f''."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        with torch.no_grad():
            slope = rules.SiLU.backward(ctx, torch.ones_like(da))
        return da * (slope[0] if isinstance(slope, tuple) else slope)


def without_second_derivative_in_place(input: Tensor) -> Tensor:
    output: Tensor = _SiLUDetached.apply(input.clone())
    return input.copy_(output)


class _SiLUOtherTangent(rules.SiLU):
    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        return dz * 0.5


def with_another_tangent(input: Tensor) -> Tensor:
    output: Tensor = TangentOfAnotherFunction.apply(input)
    return output


def with_another_tangent_in_place(input: Tensor) -> Tensor:
    output: Tensor = _SiLUOtherTangent.apply(input.clone())
    return input.copy_(output)


def transposed_without_numbers(input: Tensor) -> Tensor:
    output = functional.relu(input)
    if output.dim() < 2 or not (output.is_meta or type(output) is not Tensor):
        return output
    return output.transpose(0, 1).contiguous().transpose(0, 1)


MISTAKES: list[tuple[str, str, Any, str]] = [
    ("TestModuleCPU.test_forward", "nn_Linear_cpu_float64", ForgetsItsBias, "not close"),
    ("TestModuleCPU.test_factory_kwargs", "nn_Linear_cpu_float64", IgnoresItsDtype, "float32"),
    ("TestModuleCPU.test_repr", "nn_Linear_cpu_float64", OtherRepr, "explicit=True"),
    ("TestModuleCPU.test_pickle", "nn_Linear_cpu_float64", PicklesAsTorchs, "is not"),
    ("TestModuleCPU.test_check_inplace", "nn_ReLU_cpu_float64", CopiesInPlace, "not greater than"),
    ("TestModuleCPU.test_non_contiguous_tensors", "nn_Sigmoid_cpu_float64", ReadsStorage, "not close"),
    ("TestModuleCPU.test_grad", "nn_Sigmoid_cpu_float64", HasAnotherDerivative, "Jacobian mismatch"),
    ("TestModuleCPU.test_gradgrad", "nn_Sigmoid_cpu_float64", HasNoSecondDerivative, "Jacobian mismatch"),
    ("TestModuleCPU.test_memory_format", "nn_Sigmoid_cpu_float64", LosesStrides, "not equal"),
    ("TestModuleCPU.test_if_train_and_eval_modes_differ", "nn_Sigmoid_cpu_float64", SharpensInTraining, "True"),
    ("TestModuleCPU.test_device_ctx_init", "nn_Linear_cpu_float64", StaysOnTheCPU, "False is not true"),
    ("TestModuleCPU.test_errors", "nn_CrossEntropyLoss_cpu_float64", TakesAnyTarget, "not raised"),
    ("TestModuleCPU.test_to", "nn_Linear_cpu_float32", MovesACopy, "is not"),
    ("TestModuleCPU.test_to_empty", "nn_Linear_cpu_float32", StaysEmpty, "False is not true"),
    ("TestCommonCPU.test_dtypes", "sigmoid_cpu", halved, "bfloat16"),
    ("TestCommonCPU.test_noncontiguous_samples", "sigmoid_cpu_float32", in_order_of_storage, "not close"),
    ("TestCommonCPU.test_variant_consistency_eager", "nn_functional_relu_cpu_float32", copies_in_place, "is not"),
    ("TestCommonCPU.test_numpy_ref", "sigmoid_cpu_float64", scaled(functional.sigmoid), "not close"),
    ("TestCommonCPU.test_errors", "nn_functional_gelu_cpu", takes_everything, "not raised"),
    ("TestCommonCPU.test_promotes_int_to_float", "sigmoid_cpu_int64", keeps_integers, "False is not true"),
    ("TestMathBitsCPU.test_conj_view", "sigmoid_cpu_complex64", forgets_to_conjugate, "not close"),
    ("TestMathBitsCPU.test_neg_view", "sigmoid_cpu_float64", forgets_to_negate, "not close"),
    ("TestMathBitsCPU.test_neg_conj_view", "sigmoid_cpu_complex128", forgets_to_conjugate, "not close"),
    (
        "TestUnaryUfuncsCPU.test_reference_numerics_normal",
        "sigmoid_cpu_float64",
        scaled(functional.sigmoid),
        "not close",
    ),
    (
        "TestUnaryUfuncsCPU.test_reference_numerics_small",
        "sigmoid_cpu_float64",
        scaled(functional.sigmoid),
        "not close",
    ),
    ("TestUnaryUfuncsCPU.test_reference_numerics_large", "nn_functional_softplus_cpu_float64", clamped, "not close"),
    ("TestUnaryUfuncsCPU.test_reference_numerics_extremal", "sigmoid_cpu_float64", finite, "not close"),
    ("TestBwdGradientsCPU.test_fn_grad", "sigmoid_cpu_float64", with_another_derivative, "Jacobian mismatch"),
    (
        "TestBwdGradientsCPU.test_inplace_grad",
        "nn_functional_silu_cpu_float64",
        with_another_derivative_in_place,
        "Jacobian mismatch",
    ),
    ("TestBwdGradientsCPU.test_fn_gradgrad", "sigmoid_cpu_float64", without_second_derivative, "Jacobian mismatch"),
    (
        "TestBwdGradientsCPU.test_inplace_gradgrad",
        "nn_functional_silu_cpu_float64",
        without_second_derivative_in_place,
        "Jacobian mismatch",
    ),
    ("TestFwdGradientsCPU.test_forward_mode_AD", "sigmoid_cpu_float64", with_another_tangent, "Jacobian"),
    (
        "TestFwdGradientsCPU.test_inplace_forward_mode_AD",
        "nn_functional_silu_cpu_float64",
        with_another_tangent_in_place,
        "Jacobian",
    ),
    ("TestFwdGradientsCPU.test_fn_fwgrad_bwgrad", "sigmoid_cpu_float64", without_second_derivative, "Jacobian"),
    ("TestFakeTensorCPU.test_fake", "nn_functional_relu_cpu_float32", transposed_without_numbers, "not equal"),
    (
        "TestMetaCPU.test_dispatch_meta_outplace",
        "nn_functional_relu_cpu_float32",
        transposed_without_numbers,
        "not equal",
    ),
]

DIFFERENTIAL: list[tuple[str, str, Any, tuple[Any, ...], str]] = [
    ("test_every_layer", "nn.Linear", ForgetsItsBias, (torch.float64, True), "off by"),
    ("test_errors_of_layers", "nn.CrossEntropyLoss", TakesAnyTarget, (torch.float64,), "None is not None"),
    ("test_every_function", "sigmoid", scaled(functional.sigmoid), (torch.float32,), "off by"),
    ("test_every_function_in_place", "nn.functional.relu", copies_in_place, (torch.float64,), "returns its argument"),
    ("test_every_function_on_reference_inputs", "sigmoid", in_order_of_storage, (torch.float64,), "off by|NaN"),
    ("test_every_function_on_all_reference_inputs", "sigmoid", scaled(functional.sigmoid), (torch.bfloat16,), "off by"),
    ("test_errors_of_functions", "nn.functional.gelu", takes_everything, (), "error None"),
    ("test_refuses_the_dtypes_that_torch_refuses", "nn.functional.softplus", softplus_of_integers, (), "error None"),
]
"""The differential test, the entry, the mistake, the test's other arguments, and a part of what it then says."""
