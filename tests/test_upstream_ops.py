"""Upstream's tests of operators over our functionals: op_db's samples, references, tolerances and decorations.

The bodies are ours (upstream's test files do not ship); the names are upstream's, since its decorations hang on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import upstream
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.common_device_type import OpDTypes, instantiate_device_type_tests, ops
from torch.testing._internal.common_dtype import all_types_and_complex_and
from torch.testing._internal.common_utils import TestCase, TestGradients, noncontiguous_like
from torch.testing._internal.opinfo import core
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides",  # torch's, of kl_div's own default
    "ignore:Using a target size",  # torch's, of samples whose target broadcasts
    "ignore:.nn.functional.upsample",  # torch's, of an older name
    "ignore:dropout2d. Received a 3D input",  # torch's, of upstream's samples
    "ignore:Casting complex values to real",  # upstream's samples of softmax with a dtype
)

REFERENCED = [op for op in upstream.OPS if op.ref is not None and op.ref is not core._NOTHING]
UNARY = [op for op in REFERENCED if isinstance(op, core.UnaryUfuncInfo)]
IN_PLACE = [op for op in upstream.OPS if op.inplace_variant is not None]
DOUBLE = (torch.double, torch.cdouble)
NUMERICS = (torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.complex128, torch.int32)


def counted(samples: Iterable[Any]) -> Iterator[Any]:
    for sample in samples:
        yield sample
        upstream.RAN["inputs of functions in upstream's tests"] += 1


def call(function: Callable[..., Any], sample: Any) -> Any:
    return function(sample.input, *sample.args, **sample.kwargs)


def learning(sample: Any) -> list[torch.Tensor]:
    tensors = tree_leaves((sample.input, sample.args, sample.kwargs))
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]


def learns(op: Any, dtype: torch.dtype) -> bool:
    return bool(op.supports_autograd) and dtype in op.supported_backward_dtypes("cpu")


class TestCommon(TestCase):
    exact_dtype = True

    @ops(upstream.OPS, dtypes=OpDTypes.none)
    def test_dtypes(self, device: str, op: Any) -> None:
        """The dtypes that op_db claims are those that work, forward and backward."""
        works, works_backward = set(), set()
        for dtype in all_types_and_complex_and(torch.bool, torch.half, torch.bfloat16):
            requires_grad = dtype.is_floating_point or dtype.is_complex
            try:
                samples = list(islice(op.sample_inputs(device, dtype, requires_grad=requires_grad), 6))
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                continue  # op_db itself cannot make them
            try:
                results = [(sample, call(op, sample)) for sample in counted(samples)]
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                continue
            works.add(dtype)
            try:
                for sample, result in results:
                    torch.autograd.grad(result, learning(sample), torch.ones_like(result), allow_unused=True)
            except RuntimeError:
                continue
            works_backward.add(dtype)
        tried = set(all_types_and_complex_and(torch.bool, torch.half, torch.bfloat16))
        self.assertEqual(works, set(op.supported_dtypes(device)) & tried)
        if op.supports_autograd:
            self.assertEqual(works_backward, set(op.supported_backward_dtypes(device)) & tried)

    @ops(upstream.OPS, allowed_dtypes=(torch.float32, torch.long, torch.complex64))
    def test_noncontiguous_samples(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in counted(op.sample_inputs(device, dtype, requires_grad=learns(op, dtype))):
            spread = sample.noncontiguous()
            expected, actual = call(op, sample), call(op, spread)
            self.assertEqual(actual, expected)
            if not expected.requires_grad:
                continue
            pull = torch.randn(expected.shape, dtype=expected.dtype)
            wrt, spread_wrt = learning(sample), learning(spread)
            gradients = torch.autograd.grad(expected, wrt, pull, allow_unused=True)
            self.assertEqual(
                torch.autograd.grad(actual, spread_wrt, noncontiguous_like(pull), allow_unused=True), gradients
            )

    @ops(IN_PLACE, allowed_dtypes=(torch.float32, torch.complex64))
    def test_variant_consistency_eager(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """The in-place variant: the same numbers and gradients, written over the input and counted as a change."""
        for sample in counted(op.sample_inputs(device, dtype, requires_grad=learns(op, dtype))):
            expected = call(op, sample)
            copied = sample.input.clone()
            version = copied._version
            if copied.dtype != expected.dtype or copied.shape != expected.shape:
                with self.assertRaises(RuntimeError):
                    op.inplace_variant(copied, *sample.args, **sample.kwargs)
                continue
            changed = op.inplace_variant(copied, *sample.args, **sample.kwargs)
            self.assertIs(changed, copied)
            self.assertEqual(changed, expected)
            if "dropout" in op.name and torch.equal(changed, sample.input):
                continue  # nothing is left out
            self.assertGreater(copied._version, version)
            if expected.requires_grad:
                pull = torch.randn_like(expected)
                wrt = learning(sample)
                self.assertEqual(torch.autograd.grad(changed, wrt, pull), torch.autograd.grad(expected, wrt, pull))
                with self.assertRaisesRegex(RuntimeError, "a leaf Variable that requires grad"):
                    op.inplace_variant(sample.input, *sample.args, **sample.kwargs)

    @ops(REFERENCED, allowed_dtypes=(torch.float64, torch.long, torch.complex128))
    def test_numpy_ref(self, device: str, dtype: torch.dtype, op: Any) -> None:
        with np.errstate(all="ignore"):
            for sample in counted(op.reference_inputs(device, dtype)):
                given = sample.numpy()
                expected = op.ref(given.input, *given.args, **given.kwargs)
                self.assertEqual(call(op, sample), expected, exact_dtype=dtype != torch.long, equal_nan=True)

    @ops([op for op in upstream.OPS if op.error_inputs_func], dtypes=OpDTypes.none)
    def test_errors(self, device: str, op: Any) -> None:
        for error in counted(op.error_inputs(device)):
            with self.assertRaisesRegex(error.error_type, error.error_regex):
                call(op, error.sample_input)

    @ops([op for op in upstream.OPS if op.promotes_int_to_float], allowed_dtypes=(torch.int64, torch.uint8, torch.bool))
    def test_promotes_int_to_float(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in counted(op.sample_inputs(device, dtype)):
            self.assertTrue(call(op, sample).dtype.is_floating_point)


class TestMathBits(TestCase):
    """Views that conjugate or negate lazily give what the same numbers give laid down plainly."""

    def _check(self, op: Any, device: str, dtype: torch.dtype, lazy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def as_lazy_view(t: torch.Tensor) -> torch.Tensor:
            return lazy(lazy(t).resolve_conj().resolve_neg())

        for sample in counted(op.sample_inputs(device, dtype, requires_grad=learns(op, dtype))):
            results: list[list[Any]] = []
            for view in (as_lazy_view, torch.clone):

                def moved(t: Any, view: Callable[[torch.Tensor], torch.Tensor] = view) -> Any:
                    return view(t).requires_grad_(t.requires_grad) if is_of(dtype, t) else t

                seen = sample.transform(moved)
                wrt = learning(seen)
                output = call(op, seen)
                results.append([output])
                if output.requires_grad:
                    torch.manual_seed(0)
                    pull = torch.randn(output.shape, dtype=output.dtype)
                    pull = view(pull) if output.dtype == dtype else pull
                    results[-1] += torch.autograd.grad(output, wrt, pull, allow_unused=True)
            self.assertEqual(results[0], results[1])

    @ops(upstream.OPS, allowed_dtypes=(torch.cfloat,))
    def test_conj_view(self, device: str, dtype: torch.dtype, op: Any) -> None:
        if not op.test_conjugated_samples:
            self.skipTest("Operation doesn't support conjugated inputs.")
        self._check(op, device, dtype, torch.conj)

    @ops([op for op in upstream.OPS if op.test_neg_view], allowed_dtypes=(torch.double,))
    def test_neg_view(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check(op, device, dtype, torch._neg_view)

    @ops([op for op in upstream.OPS if op.test_neg_view], allowed_dtypes=(torch.cdouble,))
    def test_neg_conj_view(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check(op, device, dtype, lambda t: torch._neg_view(t.conj()))


def is_of(dtype: torch.dtype, t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.dtype == dtype


class TestUnaryUfuncs(TestCase):
    """The elementwise functions against NumPy or SciPy on small, large and extremal numbers."""

    exact_dtype = True

    def _check(self, op: Any, dtype: torch.dtype, tensors: Iterable[Any]) -> None:
        with np.errstate(all="ignore"):
            for sample in counted(tensors):
                given = sample.input.numpy() if dtype != torch.bfloat16 else sample.input.float().numpy()
                kwargs, np_kwargs = op.sample_kwargs("cpu", dtype, sample.input)
                actual = op(sample.input, **kwargs)
                expected = torch.from_numpy(np.asarray(op.ref(given, **np_kwargs))).to(actual.dtype)
                self.assertEqual(actual, expected.reshape(actual.shape), equal_nan=True)

    @ops(UNARY, allowed_dtypes=NUMERICS)
    def test_reference_numerics_normal(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check(
            op, dtype, core.generate_elementwise_unary_tensors(op, device=device, dtype=dtype, requires_grad=False)
        )

    @ops(UNARY, allowed_dtypes=NUMERICS)
    def test_reference_numerics_small(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check(op, dtype, core.generate_elementwise_unary_small_value_tensors(op, device=device, dtype=dtype))

    @ops([op for op in UNARY if op.handles_large_floats], allowed_dtypes=NUMERICS)
    def test_reference_numerics_large(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check(op, dtype, core.generate_elementwise_unary_large_value_tensors(op, device=device, dtype=dtype))

    @ops(UNARY, allowed_dtypes=(torch.float32, torch.float64, torch.complex64, torch.complex128))
    def test_reference_numerics_extremal(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check(op, dtype, core.generate_elementwise_unary_extremal_value_tensors(op, device=device, dtype=dtype))


class TestBwdGradients(TestGradients):
    """Reverse mode against finite differences, with upstream's own helper."""

    @ops(upstream.OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_fn_grad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._grad_test_helper(device, dtype, op, op.get_op())

    @ops(IN_PLACE, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_inplace_grad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._grad_test_helper(device, dtype, op, self._get_safe_inplace(op.get_inplace()))

    @ops(upstream.OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_fn_gradgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check_helper(device, dtype, op, op.get_op(), "bwgrad_bwgrad")

    @ops(IN_PLACE, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_inplace_gradgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check_helper(device, dtype, op, self._get_safe_inplace(op.get_inplace()), "bwgrad_bwgrad")


class TestFwdGradients(TestGradients):
    """Forward mode, and forward over reverse, against finite differences, with upstream's own helper."""

    @ops(upstream.OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_forward_mode_AD(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._forward_mode(device, dtype, op, op.get_op())

    @ops(IN_PLACE, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_inplace_forward_mode_AD(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._forward_mode(device, dtype, op, self._get_safe_inplace(op.get_inplace()))

    @ops(upstream.OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=DOUBLE)
    def test_fn_fwgrad_bwgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._check_helper(device, dtype, op, op.get_op(), "fwgrad_bwgrad")

    def _forward_mode(self, device: str, dtype: torch.dtype, op: Any, variant: Any) -> None:
        self._grad_test_helper(
            device,
            dtype,
            op,
            variant,
            check_forward_ad=True,
            check_backward_ad=False,
            check_batched_grad=False,
            check_batched_forward_grad=op.check_batched_forward_grad or not upstream.is_random(op),
        )


def layout(t: torch.Tensor) -> tuple[Any, ...]:
    """Shape, dtype and strides, but those of no entries: torch.mul has others on the meta device."""
    return t.shape, t.dtype, t.stride() if t.numel() else None


class TestFakeTensor(TestCase):
    """Fake and meta tensors: shapes, dtypes and strides without numbers."""

    @ops(upstream.OPS, dtypes=OpDTypes.any_one)
    def test_fake(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in counted(op.sample_inputs(device, dtype, requires_grad=learns(op, dtype))):
            real = call(op, sample)
            with FakeTensorMode() as mode:
                faked = sample.transform(lambda t, mode=mode: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t)
                try:
                    fake = call(op, faked)
                except DataDependentOutputException:  # gaussian_nll_loss looks at its variances
                    with self.assertRaises(DataDependentOutputException):
                        call(upstream.torch_function(op), faked)
                    continue
            self.assertEqual(layout(fake), layout(real))


class TestMeta(TestCase):
    @ops(upstream.OPS, dtypes=OpDTypes.any_one)
    def test_dispatch_meta_outplace(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in counted(op.sample_inputs(device, dtype, requires_grad=learns(op, dtype))):
            real = call(op, sample)
            meta = call(op, sample.transform(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t))
            self.assertEqual(layout(meta), layout(real))


for _tests in (
    TestCommon,
    TestMathBits,
    TestUnaryUfuncs,
    TestBwdGradients,
    TestFwdGradients,
    TestFakeTensor,
    TestMeta,
):
    instantiate_device_type_tests(_tests, globals(), only_for="cpu")
    upstream.one_of_each_kind(globals()[f"{_tests.__name__}CPU"])
del _tests
