"""Ours against torch's on every constructor and input of PyTorch's databases: outputs, gradients, dtypes, strides,
what is changed in place, warnings and errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
import upstream
from ordinary import one_of_each
from upstream_differential import (
    EXACT,
    Call,
    Errors,
    assert_no_less_accurate,
    assert_same_observation,
    fresh,
    observe,
    seed,
)

from torch_manualbp import nn

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex128, torch.complex64)
LARGE = 100_000
EVERY_DTYPE = (*FLOATS, *COMPLEX, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def compare(
    ours: Callable[[], Call], torchs: Callable[[], Call], spare: Callable[[], Call] | None, **how: Any
) -> Errors:
    """One comparison; ``spare`` is a further call of torch's, which runs in double precision."""
    errors: Errors = []
    in_place = how.pop("in_place", False)
    reference = None if spare is None else observe(spare, doubled=True, in_place=in_place)
    assert_same_observation(
        observe(ours, in_place=in_place), observe(torchs, in_place=in_place), reference, errors, **how
    )
    return errors


def allowances(entry: Any) -> dict[str, Any]:
    """Where ours need not be torch's, by upstream's lists."""
    name = name_of(entry)
    return {
        "finite_where_torch_is_not": name in upstream.FINITE_WHERE_TORCH_IS_NOT,
        "gradients_in_any_order": name in upstream.GRADIENTS_IN_ANY_ORDER,
        "exact": 2e-8 if name in upstream.SINGLE_IN_TORCH else EXACT,
        "lost": 0.01 if name in upstream.WITHOUT_DIGITS else math.inf,
    }


def name_of(entry: Any) -> str:
    """``nn.functional.relu`` of an operator, ``ReLU`` of a layer."""
    return str(getattr(entry, "full_name", entry.name.removeprefix("nn.")))


def expected_to_differ(entry: Any, where: str) -> list[pytest.MarkDecorator]:
    reason = upstream.KNOWN_DIFFERENCES.get((name_of(entry), where))
    return [pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError)] if reason else []


def is_low(dtype: torch.dtype) -> bool:
    return (dtype.is_floating_point or dtype.is_complex) and torch.finfo(dtype).bits < 64


# Layers


def module_cases() -> Iterator[Any]:
    for info in (*upstream.MODULES, *upstream.OWN_MODULES):
        for dtype in (*FLOATS, *COMPLEX):
            for training in (True, False):
                if training or info.train_and_eval_differ or dtype == torch.float64:
                    mode = "training" if training else "evaluation"
                    marks = expected_to_differ(info, "layer")
                    yield pytest.param(info, dtype, training, id=f"{info.name}-{str(dtype)[6:]}-{mode}", marks=marks)


def module_calls(
    info: Any, cls: type[torch.nn.Module], dtype: torch.dtype, training: bool, **changed: Any
) -> list[Callable[[], Call]]:
    """A call of a new layer for each of the entry's inputs, with tensors of its own."""

    def prepare(module_input: Any) -> Call:
        constructor, forward = module_input.constructor_input, module_input.forward_input
        args, kwargs = fresh((forward.args, forward.kwargs))
        layer = cls(*constructor.args, **{**constructor.kwargs, **changed})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Complex modules are a new feature", UserWarning)
            layer.to(dtype)
        return Call(layer.train(training), tuple(args), kwargs)

    seed(3)
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    return [partial(prepare, i) for i in inputs]


@pytest.mark.parametrize(
    ("info", "dtype", "training"), one_of_each(module_cases(), lambda info, dtype, training: [info.name, dtype])
)
def test_every_layer(info: Any, dtype: torch.dtype, training: bool) -> None:
    ours, theirs = info.module_cls, upstream.torch_class(info)
    in_place = "inplace" in theirs.__init__.__code__.co_varnames
    errors: Errors = []
    for changed in ({}, {"inplace": True}) if in_place else ({},):
        try:
            torchs = module_calls(info, theirs, dtype, training, **changed)
        except (RuntimeError, NotImplementedError) as error:
            assert dtype.is_complex
            pytest.skip(f"module_db makes no complex inputs for it: {error}")
        mine = module_calls(info, ours, dtype, training, **changed)
        is_random = training and (info.name == "nn.RReLU" or "Dropout" in info.name)
        spares = torchs if is_low(dtype) and not is_random else None
        for i, (o, t) in enumerate(zip(mine, torchs, strict=True)):
            errors += compare(o, t, spares[i] if spares else None, in_place=bool(changed), **allowances(info))
            upstream.RAN["constructors and inputs of layers, against torch's class"] += 1
    assert_no_less_accurate(errors, cancels=name_of(info) in upstream.CANCELS)


@pytest.mark.parametrize(
    "info", [i for i in (*upstream.MODULES, *upstream.OWN_MODULES) if i.module_error_inputs_func], ids=lambda i: i.name
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda d: str(d)[6:])
def test_errors_of_layers(info: Any, dtype: torch.dtype) -> None:
    def calls(cls: type[torch.nn.Module]) -> Any:
        seed(3)
        bad = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)

        def build_and_call(module_input: Any) -> Call:
            constructor, forward = module_input.constructor_input, module_input.forward_input

            def run(*args: Any, **kwargs: Any) -> Any:
                return cls(*constructor.args, **constructor.kwargs)(*args, **kwargs)

            return Call(run, forward.args if forward else (), forward.kwargs if forward else {})

        return [(error, partial(build_and_call, error.module_error_input)) for error in bad]

    for (listed, mine), (_, torch_s) in zip(calls(info.module_cls), calls(upstream.torch_class(info)), strict=True):
        seen = observe(mine)
        assert seen.error is not None, listed.error_regex
        assert_same_observation(seen, observe(torch_s))
        upstream.RAN["bad inputs, against torch's error"] += 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)], ids=str)
def test_linear_of_a_transposed_input(shape: tuple[int, ...], bias: bool) -> None:
    """The gradient is laid out as torch's is."""

    def call(cls: type[torch.nn.Module]) -> Call:
        layer = cls(4, 3, bias=bias, dtype=torch.float64)
        return Call(layer, (torch.randn(shape, dtype=torch.float64).mT.requires_grad_(),))

    assert_same_observation(observe(partial(call, nn.Linear)), observe(partial(call, torch.nn.Linear)))


# Functions


def op_cases(in_place: bool = False) -> Iterator[Any]:
    for op in upstream.OPS:
        if in_place and op.inplace_variant is None:
            continue
        for dtype in EVERY_DTYPE:
            if dtype in op.supported_dtypes("cpu"):
                marks = expected_to_differ(op, str(dtype))
                yield pytest.param(op, dtype, id=f"{op.formatted_name}-{str(dtype)[6:]}", marks=marks)


def entry_and_dtype(op: Any, dtype: torch.dtype) -> tuple[str, torch.dtype]:
    return op.full_name, dtype


def op_calls(function: Callable[..., Any], samples: list[Any]) -> list[Callable[[], Call]]:
    """A call of the function on each sample, with tensors of its own."""

    def prepare(sample: Any) -> Call:
        args, kwargs = fresh(((sample.input, *sample.args), sample.kwargs))
        return Call(function, args, kwargs)

    return [partial(prepare, sample) for sample in samples]


def is_torn(op: Any, sample: Any) -> bool:
    return op.full_name in upstream.TORN_AT_NAN and bool(sample.input.isnan().any())


def size_of(sample: Any) -> int:
    return sample.input.numel() if isinstance(sample.input, torch.Tensor) else 0


def compare_op(
    op: Any,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    dtype: torch.dtype,
    *,
    reference: bool,
    largest: float = math.inf,
    **how: Any,
) -> None:
    """Both functions on the entry's samples or reference inputs, of at most ``largest`` entries."""
    learns = dtype in op.supported_backward_dtypes("cpu")
    how |= allowances(op)
    errors: Errors = []
    for requires_grad in (True, False) if learns and dtype == torch.float64 else (learns,):
        inputs = op.reference_inputs if reference else op.sample_inputs
        samples = [
            s for s in inputs("cpu", dtype, requires_grad=requires_grad) if not is_torn(op, s) and size_of(s) <= largest
        ]
        mine, torchs = op_calls(ours, samples), op_calls(theirs, samples)
        spares = torchs if is_low(dtype) and not upstream.is_random(op) else None
        for i, (o, t) in enumerate(zip(mine, torchs, strict=True)):
            errors += compare(o, t, spares[i] if spares else None, **how)
            upstream.RAN["inputs of functions, against torch's function"] += 1
    assert_no_less_accurate(errors, cancels=name_of(op) in upstream.CANCELS)


@pytest.mark.parametrize(("op", "dtype"), one_of_each(op_cases(), entry_and_dtype))
def test_every_function(op: Any, dtype: torch.dtype) -> None:
    compare_op(op, op.op, upstream.torch_function(op), dtype, reference=False)


@pytest.mark.parametrize(("op", "dtype"), one_of_each(op_cases(in_place=True), entry_and_dtype))
def test_every_function_in_place(op: Any, dtype: torch.dtype) -> None:
    theirs = partial(upstream.torch_function(op), inplace=True)
    compare_op(op, op.inplace_variant, theirs, dtype, reference=False, in_place=True)


def reference_cases(dtypes: tuple[torch.dtype, ...]) -> list[Any]:
    cases = [case for case in op_cases() if case.values[1] in dtypes]
    return [
        pytest.param(
            *case.values, id=case.id, marks=[*case.marks, *expected_to_differ(case.values[0], "reference inputs")]
        )
        for case in cases
    ]


@pytest.mark.parametrize(
    ("op", "dtype"), one_of_each(reference_cases((torch.float64,)), lambda op, dtype: [upstream.module_of(op)])
)
def test_every_function_on_reference_inputs(op: Any, dtype: torch.dtype) -> None:
    """op_db's longer list: odd shapes and strides, small, large and extremal numbers."""
    compare_op(op, op.op, upstream.torch_function(op), dtype, reference=True, largest=LARGE)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), reference_cases(EVERY_DTYPE))
def test_every_function_on_all_reference_inputs(op: Any, dtype: torch.dtype) -> None:
    """In every dtype, with its tensors of a million entries."""
    compare_op(op, op.op, upstream.torch_function(op), dtype, reference=True)


@pytest.mark.parametrize("op", [o for o in upstream.OPS if o.error_inputs_func], ids=lambda o: o.formatted_name)
def test_errors_of_functions(op: Any) -> None:
    samples = [error.sample_input for error in op.error_inputs("cpu")]
    for mine, torch_s in zip(op_calls(op.op, samples), op_calls(upstream.torch_function(op), samples), strict=True):
        assert_same_observation(observe(mine), observe(torch_s))
        upstream.RAN["bad inputs, against torch's error"] += 1


@pytest.mark.parametrize(
    "op",
    one_of_each(
        (pytest.param(o, id=o.formatted_name, marks=expected_to_differ(o, "refuses")) for o in upstream.OPS),
        lambda op: [type(op), frozenset(op.supported_dtypes("cpu"))],
    ),
)
def test_refuses_the_dtypes_that_torch_refuses(op: Any) -> None:
    """On the numbers of a supported dtype, cast to one that op_db does not list."""
    listed = op.supported_dtypes("cpu")
    for dtype in set(EVERY_DTYPE) - set(listed):

        def cast(t: Any, dtype: torch.dtype = dtype) -> Any:
            if not isinstance(t, torch.Tensor) or not t.is_floating_point():
                return t
            return t.to(dtype).requires_grad_(t.requires_grad and (dtype.is_floating_point or dtype.is_complex))

        samples = [s.transform(cast) for s in islice(op.sample_inputs("cpu", torch.float32, requires_grad=True), 6)]
        for mine, torch_s in zip(op_calls(op.op, samples), op_calls(upstream.torch_function(op), samples), strict=True):
            assert_same_observation(observe(mine), observe(torch_s), **allowances(op))
            upstream.RAN["inputs of dtypes that are not listed, against torch's function"] += 1
