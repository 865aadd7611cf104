"""PyTorch's own databases of modules and operators, with our classes and functions in the place of torch's.

``module_db`` and ``op_db`` ship in torch's wheel, in ``torch.testing._internal``; the test files that run over them do
not. Each entry lists constructors, inputs, dtypes, tolerances, bad inputs, and decorations (skips, expected failures)
that hang on the names of upstream's test classes and methods, so the tests over them carry those names.
"""

from __future__ import annotations

import copy
import inspect
import re
import unittest
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from ordinary import are_first
from torch.utils._pytree import tree_leaves

from torch_manualbp import functional, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # that hypothesis, with which torch shuffles nothing here, is absent
    from torch.testing._internal import common_modules, common_utils
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import FunctionInput, ModuleInfo, ModuleInput, module_db
    from torch.testing._internal.opinfo.core import DecorateInfo


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a padded copy, which torch warns of once in a process
    torch.nn.functional.conv1d(torch.ones(1, 1, 2), torch.ones(1, 1, 2), padding="same")


def _running_test() -> Any:
    """The upstream test that calls, or None, for the sample that upstream names when it fails.

    Upstream finds it with ``inspect.stack``, which reads the source of each frame's module: 20 ms an entry, half of the
    time of these tests.
    """
    frame = inspect.currentframe()
    while frame is not None:
        test = frame.f_locals.get("self")
        if isinstance(test, unittest.TestCase):
            return getattr(type(test), test._testMethodName, None)
        frame = frame.f_back
    return None


common_utils.extract_test_fn = _running_test

CLASSES: dict[str, type[torch.nn.Module]] = {
    name: value for name, value in vars(nn).items() if getattr(value, "__module__", "").startswith("torch_manualbp.nn.")
}
"""Our classes, by name."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(functional, name) for name in functional.__all__ if hasattr(torch.nn.functional, name)
}
"""Our functionals that replace one of torch's, by name."""

OURS_RUNS: dict[tuple[str, str], str] = {
    ("nn.MultiMarginLoss", "test_gradgrad"): "torch has no second derivative",
    ("nn.MultiLabelMarginLoss", "test_gradgrad"): "torch has no second derivative",
    ("nn.Conv3d", "test_memory_format"): "upstream's own test of it fails, pytorch#80247; the one here is another",
    ("nn.LazyConv3d", "test_memory_format"): "upstream's own test of it fails, pytorch#80247; the one here is another",
    ("nn.AdaptiveAvgPool2d", "test_memory_format"): "upstream's own test of it fails; the one here is another",
    ("nn.CircularPad3d", "test_memory_format"): "upstream's own test of it fails; the one here is another",
    ("nn.ConvTranspose3d", "test_memory_format"): "upstream's own test of it fails; the one here is another",
    ("nn.LazyConvTranspose3d", "test_memory_format"): "upstream's own test of it fails; the one here is another",
    ("nn.functional.hardsigmoid", "test_inplace_gradgrad"): "torch has no second derivative",
    ("nn.functional.ctc_loss", "test_fn_gradgrad"): "torch has no second derivative",
    ("nn.CTCLoss", "test_grad"): "torch's gradient is no derivative of the loss alone",
    ("nn.CTCLoss", "test_gradgrad"): "torch has no second derivative",
    ("nn.CTCLoss", "test_non_contiguous_tensors"): "upstream: pytorch#115585",
    ("nn.LinearCrossEntropyLoss", "test_memory_format"): "upstream's own test of it fails; the one here is another",
    **{
        (f"nn.{name}", "test_gradgrad"): "torch's fused attention has no second derivative"
        for name in ("Transformer", "TransformerDecoderLayer", "TransformerEncoder", "TransformerEncoderLayer")
    },
    **{
        ("nn.functional.scaled_dot_product_attention", test): "torch's fused attention has none of these"
        for test in ("test_forward_mode_AD", "test_fn_fwgrad_bwgrad", "test_fn_gradgrad")
    },
    (
        "nn.functional.scaled_dot_product_attention",
        "test_dispatch_meta_outplace",
    ): "torch's kernels of CPU and GPU differ",
    (
        "nn.functional.scaled_dot_product_attention",
        "test_noncontiguous_samples",
    ): "upstream: fails with a version of CUDA",
    ("nn.functional.multi_head_attention_forward", "test_noncontiguous_samples"): "torch's are not close",
    ("nn.functional.rrelu", "test_inplace_forward_mode_AD"): "torch has no forward mode in place",
    (
        "nn.functional.binary_cross_entropy",
        "test_dispatch_meta_outplace",
    ): "torch's kernel for meta broadcasts its output",
}
"""Tests that upstream skips or expects to fail with torch's own layer, and that ours must pass, and why."""

NO_CHANNELS_LAST = "upstream: 'no channels_last support' for this layer"
NUMPY_DIVERGES = "upstream: NumPy's reference diverges for these complex numbers"
ROOT_OF_A_NEGATIVE = "upstream: the inputs are negative, too, and their power of 1.5 is NaN"
REASONS: dict[tuple[str, str], str] = {
    **{(f"nn.LPPool{n}d", f"test_{which}"): ROOT_OF_A_NEGATIVE for n in (1, 2, 3) for which in ("grad", "gradgrad")},
    **{(f"nn.{name}", "test_memory_format"): NO_CHANNELS_LAST for name in CLASSES},
    ("nn.KLDivLoss", "test_grad"): "upstream: pytorch#115588; module_db takes logarithms of negative numbers here",
    ("nn.KLDivLoss", "test_gradgrad"): "upstream: pytorch#115588; module_db takes logarithms of negative numbers here",
    **{
        (f"nn.functional.{name}", f"test_reference_numerics_{numbers}"): NUMPY_DIVERGES
        for name in ("silu", "silu.complex", "tanhshrink")
        for numbers in ("normal", "large", "small", "extremal")
    },
    **{
        (
            f"nn.functional.max_unpool{d}d",
            test,
        ): "upstream: places named twice; the entry's variant grad has derivatives"
        for d in (1, 2, 3)
        for test in ("test_fn_grad", "test_fn_gradgrad", "test_forward_mode_AD")
    },
    ("nn.functional.multi_head_attention_forward", "test_forward_mode_AD"): "upstream: randomness",
    ("nn.functional.softsign", "test_reference_numerics_small"): "upstream: NumPy's reference overflows its integers",
}
"""Why upstream skips, by its comments, where its decoration itself says no more than "Skipped!"."""

FINITE_WHERE_TORCH_IS_NOT = {
    "nn.functional.poisson_nll_loss": "torch's gradient for a count of 0 is 0 times the derivative of log 0, NaN",
    "nn.functional.softsign": "torch's gradient at ±∞ is ∞ − ∞, NaN; ours is the limit",
}
"""Gradients that ours has and torch has not."""

TORN_AT_NAN = {
    f"nn.functional.{name}"
    for name in ("celu", "elu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "relu6", "selu", "softshrink")
}
"""Where torch's gradient at NaN is one in its kernel's vectors and another in the numbers left over."""

SINGLE_IN_TORCH = {
    "nn.functional.celu": "torch's gradient takes 1 / α of an α in float32",
    "nn.functional.hardsigmoid": "torch's kernel has 1 / 6 in float32",
    "Hardsigmoid": "torch's kernel has 1 / 6 in float32",
}
"""Where torch's float64 gradient has no more digits than float32's constant in it."""

GRADIENTS_IN_ANY_ORDER = {
    "nn.functional.scaled_dot_product_attention": "off its fused kernel torch's gradient of k is a transposed one",
    "nn.functional.multi_head_attention_forward": "it has attention within",
    "Transformer": "it has attention within",
}
"""Where the gradients' strides are not torch's."""

NORMS = tuple(f"{kind}Norm{d}d" for kind in ("Batch", "Instance") for d in (1, 2, 3))
OF_DIFFERENCES = ("LayerNorm", *NORMS, *(f"nn.functional.{kind}_norm" for kind in ("batch", "group", "instance")))

CANCELS = {
    "GELU": "the derivative crosses 0, and what is left of its digits there is an accident",
    **dict.fromkeys(OF_DIFFERENCES, "∂C/∂z is a difference from means of itself, ∂C/∂w a sum of differences"),
    **dict.fromkeys(
        ("LinearCrossEntropyLoss", "nn.functional.linear_cross_entropy"),
        "the gradient is a sum of p − q, which cancels",
    ),
    "Softmax": "the gradient is a difference from a mean of itself",
}
"""Where the median error of all inputs is compared, and not the worst."""

WITHOUT_DIGITS = dict.fromkeys(
    ("LayerNorm", "nn.functional.group_norm", "nn.functional.layer_norm"),
    "of two entries the gradient is ε r² of its terms, less than float32's last digit",
)
"""Where a call of which torch's own gradient has lost all but two digits is not compared in low precision."""

OF_THE_LOSS = "torch's gradient is that behind a log_softmax; ours is the loss's own"
KNOWN_DIFFERENCES: dict[tuple[str, str], str] = {
    **{
        (f"nn.functional.max_unpool2d{variant}", test): "torch's kernels for meta and the CPU lay the output out apart"
        for variant in ("", ".grad")
        for test in ("test_fake", "test_dispatch_meta_outplace")
    },
    ("CTCLoss", "layer"): OF_THE_LOSS,
    **{
        ("nn.functional.ctc_loss", where): OF_THE_LOSS
        for where in ("torch.float32", "torch.float64", "reference inputs")
    },
}
"""Where ours is not torch's: each is a strict expected failure."""

TRANSFORMERS = [
    "MultiheadAttention",
    "Transformer",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
SLOW = {
    ("nn.functional.ctc_loss", "test_fn_gradgrad"),
    ("nn.functional.gaussian_nll_loss", "test_fn_gradgrad"),
    ("nn.functional.gaussian_nll_loss", "test_fn_fwgrad_bwgrad"),
    *((f"nn.{name}", test) for name in TRANSFORMERS for test in ("test_grad", "test_gradgrad")),
    *((f"nn.{name}", test) for name in ("GRU", "LSTM") for test in ("test_grad", "test_gradgrad")),
    *(
        ("nn.LinearCrossEntropyLoss", test)
        for test in (
            "test_non_contiguous_tensors",
            "test_pickle",
            "test_to_empty",
            "test_if_train_and_eval_modes_differ",
        )
    ),
}
"""Tests of upstream's that stand under the marker ``slow``: seconds each. gaussian_nll_loss has 324 samples, the next
72; LinearCrossEntropyLoss several hundred. Of the recurrent layers RNN's are ordinary, when they train."""

SLOW_IN_EVALUATION = {"nn.RNN": ("test_grad", "test_gradgrad")}

RAN: Counter[str] = Counter()
"""How many inputs of the databases the tests of this run took, by the kind of test."""


def taken_over(name: str, decorations: tuple[Any, ...]) -> tuple[Any, ...]:
    """Upstream's decorations, its skips with their reasons, without those that ours needs not."""
    kept = []
    for decoration in decorations:
        test = str(getattr(decoration, "test_name", None))
        if (name, test) in OURS_RUNS:
            continue
        if (name, test) in REASONS and is_skip(decoration):
            decoration = copy.copy(decoration)
            decoration.decorators = [unittest.skip(REASONS[name, test])]
        kept.append(decoration)
    kept += [
        DecorateInfo(unittest.expectedFailure, test_name=test, active_if=training_if_it_matters)
        for entry, test in KNOWN_DIFFERENCES
        if entry == name
    ]
    kept += [DecorateInfo(pytest.mark.slow, test_name=test) for entry, test in SLOW if entry == name]
    kept += [
        DecorateInfo(
            pytest.mark.slow, test_name=test, active_if=lambda parameters: not parameters.get("training", True)
        )
        for test in SLOW_IN_EVALUATION.get(name, ())
    ]
    return tuple(kept)


COSTLY = ("test_dtypes", "test_fn_grad", "test_fn_gradgrad", "test_forward_mode_AD", "test_fn_fwgrad_bwgrad")
"""The database's samples in every dtype, and under finite differences; the contract has both for each rule."""


def one_of_each_kind(tests: type) -> None:
    """Of the tests that upstream has made of a written one for each entry, mode and dtype, leave ordinary one dtype of
    each entry; of a costly one an entry of each module of our functions."""
    modules = {op.formatted_name: module_of(op) for op in OPS}
    # In one order, as upstream's sets have none; backwards, as binary_cross_entropy has the most samples of all losses.
    made = sorted((name for name in vars(tests) if name.startswith("test_")), reverse=True)
    made.sort(key=lambda name: not name.endswith(("float64", "float32")))  # which most take, and which learn

    def kinds(name: str) -> list[Hashable]:
        name = re.sub(r"_(bfloat|float|complex|uint|int|bool)\d*$", "", name)
        for test in COSTLY:
            entry = name.removeprefix(f"{test}_").removesuffix("_cpu")
            if entry in modules:
                return [(test, modules[entry])]
        return [name]

    for name, is_ordinary in are_first(made, kinds):
        if not is_ordinary:
            setattr(tests, name, pytest.mark.slow(vars(tests)[name]))


def training_if_it_matters(parameters: dict[str, Any]) -> bool:
    return bool(parameters.get("training", True))


def is_skip(decoration: Any) -> bool:
    """Whether a decoration is ``unittest.skip(...)``."""
    return any(
        d.__qualname__ == "skip.<locals>.decorator"
        for d in getattr(decoration, "decorators", ())
        if callable(d) and hasattr(d, "__qualname__")
    )


def _bad_inputs_of(of_torch: Any, ours: Any, **how: Any) -> list[Any]:
    listed: list[Any] = of_torch.module_error_inputs_func(of_torch, **how)
    return listed


def _module_infos() -> Iterator[Any]:
    for info in module_db:
        ours = CLASSES.get(info.module_cls.__name__)
        if ours is not None and issubclass(ours, info.module_cls):
            swapped = copy.copy(info)
            swapped.module_cls = ours
            if info.module_error_inputs_func is not None:  # which asks whether the class is torch's BatchNorm1d
                swapped.module_error_inputs_func = partial(_bad_inputs_of, info)
            swapped.decorators = taken_over(info.name, info.decorators)
            yield swapped


def _function_of(op: Any) -> Callable[..., Any] | None:
    """Our function of an entry: ``nn.functional.relu`` and plain ``relu`` are both ours, ``masked.softmax`` is not, nor
    is ``unfold``, a method of tensors."""
    if op.name == "unfold":
        return None
    return FUNCTIONS.get(op.name.removeprefix("nn.functional."))


def module_of(op: Any) -> str:
    """The module of our function of an entry: ``torch_manualbp.functional.loss``."""
    return str(inspect.unwrap(_function_of(op)).__module__)  # type: ignore[arg-type]


def _op_infos() -> Iterator[Any]:
    op: Any
    for op in op_db:
        ours = _function_of(op)
        if ours is None or not op.supported_dtypes("cpu") or op.variant_test_name.startswith("chunked"):
            continue
        swapped: Any = copy.copy(op)
        swapped.op = as_listed(op, ours)
        in_place = "inplace" in inspect.signature(ours).parameters
        swapped.inplace_variant = seeded_if_random(op, partial(ours, inplace=True)) if in_place else None
        swapped.method_variant = swapped.operator_variant = swapped.inplace_operator_variant = None  # torch's own
        swapped.aliases = ()
        swapped.decorators = taken_over(op.full_name, op.decorators)
        yield swapped


WITH_DROPOUT = ("rrelu", "scaled_dot_product_attention", "multi_head_attention_forward")


def is_random(op: Any) -> bool:
    is_drawn = "dropout" in op.name or "fractional" in op.name
    return is_drawn or op.name.removeprefix("nn.functional.") in WITH_DROPOUT


def seeded_if_random(op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """As op_db itself calls random functions: from the same random state at each call."""

    def seeded(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(42)
            return function(*args, **kwargs)

    return seeded if is_random(op) else function


def as_listed(op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as op_db calls it: a random one from the same state, one of a table with the weight in front; of a
    pooling without the indices, which some samples ask for, and of attention without the weights, since upstream's
    tests take one tensor."""
    if "max_pool" in op.name or "multi_head" in op.name:
        return seeded_if_random(op, lambda *args, **kwargs: tree_leaves(function(*args, **kwargs))[0])
    if op.name in WEIGHT_FIRST:
        return lambda weight, index, *args, **kwargs: function(index, weight, *args, **kwargs)
    return seeded_if_random(op, function)


def continuous(output: Any) -> list[torch.Tensor]:
    """The tensors of an output that are no integers."""
    return [t for t in tree_leaves(output) if t.is_floating_point() or t.is_complex()]


WEIGHT_FIRST = ("nn.functional.embedding", "nn.functional.embedding_bag")


def torch_function(op: Any) -> Callable[..., Any]:
    """What an entry of ours replaces."""
    return as_listed(op, getattr(torch.nn.functional, op.name.removeprefix("nn.functional.")))


def torch_class(info: Any) -> type[torch.nn.Module]:
    """What a class of ours replaces."""
    cls: type[torch.nn.Module] = getattr(torch.nn, info.module_cls.__name__)
    return cls


# Classes that module_db does not have, with inputs of our own in its form.


def _inputs_of_activation(*constructors: dict[str, Any]) -> Callable[..., list[Any]]:
    def inputs(info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool, **_: Any) -> list[Any]:
        make = partial(torch.testing.make_tensor, device=device, dtype=dtype, requires_grad=requires_grad)
        return [
            ModuleInput(FunctionInput(**kwargs), FunctionInput(make(shape, low=-8, high=8)), desc=f"{kwargs} {shape}")
            for kwargs in constructors
            for shape in ((), (4,), (3, 2, 5))
        ]

    return inputs


def _inputs_of_lazy_linear(
    info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool, **_: Any
) -> list[Any]:
    make = partial(torch.testing.make_tensor, device=device, dtype=dtype, requires_grad=requires_grad)
    return [
        ModuleInput(FunctionInput(8), FunctionInput(make((4, 10)))),
        ModuleInput(FunctionInput(8, bias=False), FunctionInput(make((2, 4, 10))), desc="no_bias"),
        ModuleInput(FunctionInput(5), FunctionInput(make(3)), desc="no_batch_dim"),
    ]


def _inputs_of_triplets(*constructors: dict[str, Any]) -> Callable[..., list[Any]]:
    def inputs(info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool, **_: Any) -> list[Any]:
        make = partial(torch.testing.make_tensor, device=device, dtype=dtype, requires_grad=requires_grad)
        return [
            ModuleInput(FunctionInput(**kwargs), FunctionInput(*(make(shape) for _ in range(3))), desc=f"{kwargs}")
            for kwargs in constructors
            for shape in ((5, 10), (10,))
        ]

    return inputs


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1.0 - torch.cosine_similarity(x, y, dim=-1)


def _inputs_of_shapes(*calls: tuple[dict[str, Any], tuple[int, ...], int]) -> Callable[..., list[Any]]:
    """A layer of these options, and how many tensors of one shape it takes."""

    def inputs(info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool, **_: Any) -> list[Any]:
        make = partial(torch.testing.make_tensor, device=device, dtype=dtype, requires_grad=requires_grad)
        return [
            ModuleInput(
                FunctionInput(**options), FunctionInput(*(make(shape) for _ in range(n))), desc=f"{options} {shape}"
            )
            for options, shape, n in calls
        ]

    return inputs


_REDUCTIONS: tuple[dict[str, Any], ...] = ({}, {"reduction": "sum"}, {"reduction": "none"})
_OWN_INPUTS: dict[str, tuple[Callable[..., list[Any]], bool]] = {  # and whether training and evaluation differ
    "Identity": (_inputs_of_activation({}), False),
    "LazyLinear": (_inputs_of_lazy_linear, False),
    "Fold": (_inputs_of_shapes(({"output_size": (4, 5), "kernel_size": (2, 3), "stride": 2}, (2, 12, 4), 1)), False),
    "Unfold": (_inputs_of_shapes(({"kernel_size": (2, 3), "padding": 1}, (2, 2, 4, 5), 1)), False),
    "PixelShuffle": (_inputs_of_shapes(({"upscale_factor": 2}, (2, 8, 2, 3), 1)), False),
    "PixelUnshuffle": (_inputs_of_shapes(({"downscale_factor": 2}, (2, 2, 4, 6), 1)), False),
    "ChannelShuffle": (_inputs_of_shapes(({"groups": 2}, (2, 4, 2, 3), 1)), False),
    "Upsample": (
        _inputs_of_shapes(
            ({"scale_factor": 2}, (2, 2, 3), 1),
            ({"size": (5, 4), "mode": "bicubic", "align_corners": False}, (2, 2, 3, 2), 1),
            ({"scale_factor": 1.5, "mode": "trilinear"}, (1, 2, 2, 3, 2), 1),
        ),
        False,
    ),
    "UpsamplingNearest2d": (_inputs_of_shapes(({"scale_factor": 2}, (2, 2, 3, 2), 1)), False),
    "UpsamplingBilinear2d": (_inputs_of_shapes(({"size": (5, 4)}, (2, 2, 3, 2), 1)), False),
    "PairwiseDistance": (_inputs_of_shapes(({}, (3, 4), 2), ({"p": 1.0, "keepdim": True}, (4,), 2)), False),
    "CosineSimilarity": (_inputs_of_shapes(({}, (3, 4), 2), ({"dim": 0}, (3, 4), 2)), False),
    **{
        name: (_inputs_of_shapes(({}, shape, 1), ({"p": 0.2}, shape, 1)), True)
        for name, shape in {
            "Dropout": (3, 8),
            "Dropout1d": (2, 6, 4),
            "Dropout2d": (2, 6, 2, 2),
            "Dropout3d": (2, 6, 2, 1, 2),
            "AlphaDropout": (3, 8),
            "FeatureAlphaDropout": (2, 6, 4),
        }.items()
    },
    "Hardsigmoid": (_inputs_of_activation({}), False),
    "RReLU": (_inputs_of_activation({}, {"lower": 0.1, "upper": 0.9}, {"lower": 0.2, "upper": 0.2}), True),
    "TripletMarginLoss": (
        _inputs_of_triplets(*_REDUCTIONS, {"margin": 0.5}, {"p": 1.0, "swap": True}, {"eps": 1e-3, "p": 3.0}),
        False,
    ),
    "TripletMarginWithDistanceLoss": (
        _inputs_of_triplets(*_REDUCTIONS, {"margin": 0.5, "swap": True}, {"distance_function": cosine_distance}),
        False,
    ),
    **{
        f"Lazy{kind}Norm{d}d": (_inputs_of_shapes(({"affine": True}, (2, 3, 4, 2, 2)[: d + 2], 1)), True)
        for kind in ("Batch", "Instance")
        for d in (1, 2, 3)
    },
}

MODULES: list[Any] = list(_module_infos())
"""module_db's entries for our classes."""

OPS: list[Any] = list(_op_infos())
"""op_db's entries for our functionals."""

BY_THEIR_FUNCTIONS = {
    "AdaptiveLogSoftmaxWithLoss": "cross_entropy",  # of Linear, for each cluster; against torch's in surroundings
    "EmbeddingBag": "embedding_bag",
    "MaxUnpool1d": "max_unpool1d",
    "MaxUnpool2d": "max_unpool2d",
    "MaxUnpool3d": "max_unpool3d",
    "SyncBatchNorm": "batch_norm",  # torch's own refuses the CPU
    "TransformerDecoder": "multi_head_attention_forward",  # of TransformerDecoderLayer, which module_db has
}
"""Classes without inputs, whose function op_db has: what they hand on is tested with the other layers."""

WITHOUT_ENTRY = {
    "affine_grid": "op_db has no entry; it has a row of the catalogue",
    "upsample": "op_db has upsample_nearest and upsample_bilinear; all three are interpolate",
}
"""Functions that neither database has."""

_LISTED = {info.module_cls.__name__ for info in MODULES}
OWN_MODULES: list[Any] = [
    ModuleInfo(CLASSES[name], module_inputs_func=inputs, train_and_eval_differ=differ, decorators=taken_over(name, ()))
    for name, (inputs, differ) in _OWN_INPUTS.items()
    if name in CLASSES and name not in _LISTED
]
"""Our classes that module_db lacks, in its form."""

for _info in (*MODULES, *OWN_MODULES):  # which module_db takes an entry's name from
    common_modules.MODULE_CLASS_NAMES[_info.module_cls] = f"nn.{_info.module_cls.__name__}"


NOT_RUN = {
    "TestCommon.test_out, test_out_warning": "our functionals take no out=, which cannot be differentiated",
    "TestCommon.test_python_ref*": "compares torch's decompositions, which stand in a database of their own",
    "TestCommon.test_compare_cpu, TestModule.test_cpu_gpu_parity, test_multiple_device_transfer": "no GPU at hand",
    "TestJit.*, TestNNCOpInfo.*, TestCudaFuserOpInfo.*": "torch.jit.script compiles no autograd.Function",
    "TestCompositeCompliance.*": "for operators of the dispatcher, which a Function in Python is not",
    "TestNormalizeOperators.*": "fx's schemas of torch's own functions",
    "linear_cross_entropy.chunked, chunked_none": "torch's options of chunks, which change nothing here",
    "TestInductorOpInfo.*": "tests/test_contract.py compiles each rule, with our backward inside",
    "masked.softmax, masked.log_softmax, masked.softmin": "functions of torch.masked, which we do not replace",
}
"""Tests and entries of upstream's that do not apply, and why."""


def is_ours(entry: str) -> bool:
    """Whether an entry of the databases is of a class or function that we have."""
    return entry in {info.name for info in MODULES} | {op.full_name for op in OPS}


def coverage() -> list[str]:
    """What of ours has an entry in the databases, and what has inputs of our own."""
    without_op = sorted(set(FUNCTIONS) - {op.name.removeprefix("nn.functional.") for op in OPS} - set(WITHOUT_ENTRY))
    own = sorted(info.module_cls.__name__ for info in OWN_MODULES)
    with_op = len(FUNCTIONS) - len(without_op) - len(WITHOUT_ENTRY)
    return [
        f"{len(CLASSES)} classes: {len(MODULES)} by module_db, {len(own)} by inputs of our own ({', '.join(own)}), "
        f"{len(BY_THEIR_FUNCTIONS)} by the tests of their functions alone ({', '.join(BY_THEIR_FUNCTIONS)})",
        f"{len(FUNCTIONS)} functions: {with_op} by {len(OPS)} entries of op_db"
        + (f", {len(without_op)} by the tests of their classes alone ({', '.join(without_op)})" if without_op else ""),
        *(f"not in op_db: {name} ({why})" for name, why in WITHOUT_ENTRY.items()),
    ]


def differences() -> list[str]:
    """Where ours is not torch's, or torch's is no measure."""
    lists = {
        "not torch's": {f"{entry}, {where}": why for (entry, where), why in KNOWN_DIFFERENCES.items()},
        "right where torch is not": FINITE_WHERE_TORCH_IS_NOT,
        "more digits than torch": SINGLE_IN_TORCH,
        "compared in the median": CANCELS,
        "not compared where torch's own has no digits": WITHOUT_DIGITS,
        "strides of their own": GRADIENTS_IN_ANY_ORDER,
    }
    torn = ", ".join(sorted(TORN_AT_NAN))
    return [f"{what}: {entry} ({why})" for what, entries in lists.items() for entry, why in entries.items()] + [
        f"not compared at NaN, where torch's kernels differ between their vectors and the numbers left over: {torn}"
    ]
