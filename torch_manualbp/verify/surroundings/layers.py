"""Every class of ``torch_manualbp.nn`` that is ours: how to build it and its torch twin, and a call of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import nn as our_nn
from torch_manualbp.catalogue import FAMILIES
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.subject import Setting, Subject, is_number
from torch_manualbp.verify.trial import EPS, EXACT, Trial, assert_same

__all__ = ["LAYERS", "Layer", "compare", "layers", "of_torch", "ours", "results"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer(Trial):
    """A layer of ours and its torch twin, with inputs for both."""

    name: str
    build: Callable[[Any], Module]
    """Makes the layer from a namespace: ``torch.nn`` or ours."""
    make_inputs: Callable[[Shape], tuple[Tensor, ...]]
    """The inputs of a call, in float64, the first of the given shape."""
    shape: Shape = (5, 4)
    image: Shape | None = (2, 4, 3, 4)
    """A shape of four dimensions that the layer takes, if any: 4 channels, 4 features."""
    differentiable: int = 1
    """How many of the inputs, from the first on, take a gradient."""
    tolerance: float = 1e-12
    """How far from torch's numbers ours may be in float64, relative to the largest of a tensor or 1."""
    is_random: bool = False
    """Whether the layer draws random numbers: what is traced, or runs in two processes, draws others."""
    namespace: Any = our_nn
    """Where our class is found; planted mistakes have another."""
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Why a check does not hold here, under its name."""

    def __str__(self) -> str:
        return self.name

    @property
    def class_name(self) -> str:
        return self.name.split()[0]

    @property
    def label(self) -> tuple[str, str]:
        return self.class_name, self.name

    owes_strides = True

    def exempt(self, check: str) -> str | None:
        return self.reasons.get(check)

    @property
    def slack(self) -> float:  # type: ignore[override]
        return self.tolerance / EPS / EXACT

    @cached_property
    def subject(self) -> Subject:  # type: ignore[override]
        ours, theirs = self.pair()
        return Subject(ours, self.inputs(), reference=theirs)

    def under_autocast(self, dtype: torch.dtype) -> list[Setting]:
        single = self.subject.setting(torch.float32)
        return [single, single.mapped(lambda t: t.to(dtype) if is_number(t) else t)]

    def with_mistake(self, **classes: type[Module]) -> Layer:
        """This layer with the given classes in place of ours."""
        return replace(self, namespace=_Namespace(classes))

    def pair(self, dtype: torch.dtype = torch.float64) -> tuple[Module, Module]:
        """Our layer and torch's, made from the same random state."""
        built = []
        for namespace in (self.namespace, torch.nn):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                built.append(self.build(namespace).to(dtype))
        return built[0], built[1]

    def inputs(self, dtype: torch.dtype = torch.float64, shape: Shape | None = None) -> tuple[Tensor, ...]:
        """Fresh inputs, of which those that take a gradient are leaves that do."""
        made = self.make_inputs(self.shape if shape is None else shape)
        cast = [t.to(dtype) if t.is_floating_point() else t for t in made]
        return tuple(t.requires_grad_(i < self.differentiable) for i, t in enumerate(cast))


class _First(Module):
    """The first output of a layer that has several."""

    def __init__(self, layer: Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        first: Tensor = self.layer(input)[0]
        return first


class _OfLogits(Module):
    """The loss of two label sequences by scores that a log_softmax makes log-probabilities of."""

    def __init__(self, loss: Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, input: Tensor) -> Tensor:
        labels = torch.tensor([[1, 2], [2, 2]])
        C: Tensor = self.loss(input.log_softmax(-1), labels, (4, 3), (2, 1))
        return C


class _LossOf(Module):
    """The loss alone, of a layer that returns more."""

    def __init__(self, layer: Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        C: Tensor = self.layer(input, target).loss
        return C


class _Namespace:
    """``torch_manualbp.nn`` with other classes in it."""

    def __init__(self, classes: dict[str, type[Module]]) -> None:
        self.__dict__.update(classes)

    def __getattr__(self, name: str) -> Any:
        return getattr(our_nn, name)


def ours() -> set[str]:
    """The names of the classes in ``torch_manualbp.nn`` that are ours."""
    values = ((name, getattr(value, "__module__", "")) for name, value in vars(our_nn).items())
    return {name for name, module in values if module.startswith("torch_manualbp.nn.")}


def layers(table: Sequence[Layer] | None = None) -> list[Layer]:
    """The rows of the table whose class is ours."""
    return [layer for layer in (LAYERS if table is None else table) if layer.class_name in ours()]


def results(
    module: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    parameters: Sequence[tuple[str, Tensor]] | None = None,
    upstream: Tensor | None = None,
) -> dict[str, Tensor]:
    """The output of ``module(*inputs)``, and the gradients of inputs and parameters on an upstream gradient of random
    numbers with the output's strides."""
    if parameters is None:
        parameters = list(module.named_parameters()) if isinstance(module, Module) else []
    leaves = [(f"input {i}", t) for i, t in enumerate(inputs) if t.requires_grad] + list(parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)  # for the layers that draw random numbers
        in_place = getattr(module, "inplace", False)  # which no leaf may be changed
        output = module(*(t * 1 if in_place and t.requires_grad else t for t in inputs))
    if upstream is None:
        upstream = _random_like(output)
    gradients = torch.autograd.grad(output, [t for _, t in leaves], upstream)
    named = {f"gradient of {name}": g for (name, _), g in zip(leaves, gradients, strict=True)}
    return {"output": output.detach(), **named}


def _random_like(t: Tensor) -> Tensor:
    if t.is_meta or type(t.detach()) is not Tensor:
        return torch.ones_like(t.detach())
    return torch.empty_like(t.detach()).copy_(_randn(t.shape, seed=7))


def compare(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12, strides: bool = False
) -> None:
    """The same names, dtypes, shapes and, if asked, strides; numbers that differ by no more than the tolerance,
    relative to the largest of each tensor or 1."""
    assert actual.keys() == expected.keys(), f"{sorted(actual)}, torch has {sorted(expected)}"
    for name, theirs in expected.items():
        mine = actual[name]
        assert_same(mine, theirs, name, tolerance)
        if strides:
            assert mine.stride() == theirs.stride(), f"{name}: strides {mine.stride()}, torch's {theirs.stride()}"


def of_torch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args)``, which does with torch's own layer what the check is about.

    Raises:
        DoesNotApply: it cannot be used in them, for the reason that torch gives.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of what is slow or deprecated
            return function(*args, **kwargs)
    except (RuntimeError, ValueError, NotImplementedError) as error:  # and no slip of the check
        text = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise DoesNotApply(f"torch's own layer refuses: {text}") from error


def _randn(shape: Sequence[int], seed: int = 2) -> Tensor:
    return torch.randn(tuple(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _normal(shape: Shape) -> tuple[Tensor, ...]:
    return (_randn(shape),)


def _with_places(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), torch.arange(torch.Size(shape[2:]).numel()).mul(2).view(shape[2:]).expand(shape).contiguous()


def _two(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), _randn(shape, seed=4)


def _three(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), _randn(shape, seed=4), _randn(shape, seed=5)


def _with_variance(shape: Shape) -> tuple[Tensor, ...]:
    return *_two(shape), _randn(shape, seed=5).abs() + 0.1


def _positive(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape).abs() + 0.1, _randn(shape, seed=4).abs()


def _counts(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), _randn(shape, seed=4).abs()


def _distributions(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape).log_softmax(-1), _randn(shape, seed=4).softmax(-1)


def _log_distributions(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape).log_softmax(-1), _randn(shape, seed=4).log_softmax(-1)


def _probabilities(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape).sigmoid(), _randn(shape, seed=4).sigmoid()


def _logits(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), _randn(shape, seed=4).sigmoid()


def _signs(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), _randn(shape, seed=4).sign()


def _classes(shape: Shape) -> tuple[Tensor, ...]:
    samples = (shape[0], *shape[2:])
    return _randn(shape), torch.arange(torch.Size(samples).numel()).view(samples) % shape[1]


def _class_probabilities(shape: Shape) -> tuple[Tensor, ...]:
    return _randn(shape), _randn(shape, seed=4).softmax(1)


def _label_lists(shape: Shape) -> tuple[Tensor, ...]:
    y = torch.tensor([[0, 2, -1, 1], [3, -1, -1, -1], [-1, 0, 1, 2], [1, 1, -1, -1], [3, 2, 1, 0]])
    return _randn(shape), y[: shape[0]]


def _embeddings(shape: Shape) -> tuple[Tensor, ...]:
    return *_two(shape), _randn(shape[:1], seed=5).sign()


def _ranked(shape: Shape) -> tuple[Tensor, ...]:
    return *_two(shape), _randn(shape, seed=5).sign()


def _rows_named(shape: Shape) -> tuple[Tensor, ...]:
    return (torch.arange(torch.Size(shape).numel()).view(shape) * 5 % 6,)


def _bags_named(shape: Shape) -> tuple[Tensor, ...]:
    return _rows_named((shape[0], 4))


def _without_weights(layer: Module) -> Module:
    layer.register_forward_hook(_first_of)
    return layer


def _first_of(layer: Module, inputs: Any, outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[0]


NOT_TRACED = {
    "torch.fx.symbolic_trace": "fx enters layers that are not torch's own, and this one's course follows from shapes"
}

_weights = (1.0, 2.0, 0.5, 1.0)


def _activation(name: str, build: Callable[[Any], Module], **kwargs: Any) -> Layer:
    return Layer(name, build, _normal, **kwargs)


# ATen takes options and their reciprocals in float32: those here have few digits.
_LISTED: tuple[Layer, ...] = (
    Layer("AdaptiveAvgPool1d", lambda nn: nn.AdaptiveAvgPool1d(2), _normal, shape=(2, 4, 5), image=None),
    Layer("AdaptiveAvgPool2d", lambda nn: nn.AdaptiveAvgPool2d((2, 3)), _normal, shape=(2, 4, 5, 6)),
    Layer("AdaptiveAvgPool2d of all", lambda nn: nn.AdaptiveAvgPool2d(1), _normal, shape=(2, 4, 5, 6)),
    Layer("AdaptiveAvgPool3d", lambda nn: nn.AdaptiveAvgPool3d(2), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("AdaptiveMaxPool1d", lambda nn: nn.AdaptiveMaxPool1d(2), _normal, shape=(2, 4, 5), image=None),
    Layer("AdaptiveMaxPool2d", lambda nn: nn.AdaptiveMaxPool2d((2, None)), _normal, shape=(2, 4, 5, 6)),
    Layer("AdaptiveMaxPool3d", lambda nn: nn.AdaptiveMaxPool3d(2), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("AvgPool1d", lambda nn: nn.AvgPool1d(2), _normal, shape=(2, 4, 5), image=None),
    Layer("AvgPool2d", lambda nn: nn.AvgPool2d(3, 2, 1, count_include_pad=False), _normal, shape=(2, 4, 5, 6)),
    Layer("AvgPool3d", lambda nn: nn.AvgPool3d(2, ceil_mode=True), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer(
        "FractionalMaxPool2d",
        lambda nn: nn.FractionalMaxPool2d(2, output_ratio=(0.5, 0.6)),
        _normal,
        shape=(2, 4, 5, 6),
        is_random=True,
    ),
    Layer(
        "FractionalMaxPool3d",
        lambda nn: nn.FractionalMaxPool3d(2, output_size=2),
        _normal,
        shape=(2, 2, 4, 5, 4),
        image=None,
        is_random=True,
    ),
    Layer("LPPool1d", lambda nn: nn.LPPool1d(2, 2), _normal, shape=(2, 4, 5), image=None),
    Layer("LPPool2d", lambda nn: nn.LPPool2d(2, 3, 2, ceil_mode=True), _normal, shape=(2, 4, 5, 6)),
    Layer("LPPool3d", lambda nn: nn.LPPool3d(4, 2, (1, 2, 1)), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("MaxPool1d", lambda nn: nn.MaxPool1d(2), _normal, shape=(2, 4, 5), image=None),
    Layer("MaxPool2d", lambda nn: nn.MaxPool2d(2), _normal, shape=(2, 4, 6, 6)),
    Layer("MaxPool2d overlapping", lambda nn: nn.MaxPool2d(3, 2, 1, ceil_mode=True), _normal, shape=(2, 4, 5, 6)),
    Layer("MaxPool3d", lambda nn: nn.MaxPool3d(2), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("CircularPad1d", lambda nn: nn.CircularPad1d((2, 1)), _normal, shape=(2, 4, 5), image=None),
    Layer("CircularPad2d", lambda nn: nn.CircularPad2d(1), _normal, shape=(2, 4, 3, 4)),
    Layer("CircularPad3d", lambda nn: nn.CircularPad3d(1), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("ConstantPad1d", lambda nn: nn.ConstantPad1d((2, 1), 0.5), _normal, shape=(2, 4, 5), image=None),
    Layer("ConstantPad2d", lambda nn: nn.ConstantPad2d(1, 0.5), _normal, shape=(2, 4, 3, 4)),
    Layer("ConstantPad3d", lambda nn: nn.ConstantPad3d(1, 0.5), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("ReflectionPad1d", lambda nn: nn.ReflectionPad1d((2, 1)), _normal, shape=(2, 4, 5), image=None),
    Layer("ReflectionPad2d", lambda nn: nn.ReflectionPad2d(1), _normal, shape=(2, 4, 3, 4)),
    Layer("ReflectionPad3d", lambda nn: nn.ReflectionPad3d(1), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("ReplicationPad1d", lambda nn: nn.ReplicationPad1d((2, 1)), _normal, shape=(2, 4, 5), image=None),
    Layer("ReplicationPad2d", lambda nn: nn.ReplicationPad2d(1), _normal, shape=(2, 4, 3, 4)),
    Layer("ReplicationPad3d", lambda nn: nn.ReplicationPad3d(1), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("ZeroPad1d", lambda nn: nn.ZeroPad1d((2, 1)), _normal, shape=(2, 4, 5), image=None),
    Layer("ZeroPad2d", lambda nn: nn.ZeroPad2d(1), _normal, shape=(2, 4, 3, 4)),
    Layer("ZeroPad3d", lambda nn: nn.ZeroPad3d(1), _normal, shape=(2, 2, 3, 4, 3), image=None),
    Layer("ChannelShuffle", lambda nn: nn.ChannelShuffle(2), _normal, shape=(2, 4, 3, 2)),
    Layer("Fold", lambda nn: nn.Fold((4, 4), 2, stride=2), _normal, shape=(2, 8, 4), image=None),
    Layer("PixelShuffle", lambda nn: nn.PixelShuffle(2), _normal, shape=(2, 4, 3, 2)),
    Layer("PixelUnshuffle", lambda nn: nn.PixelUnshuffle(2), _normal, shape=(2, 2, 4, 6), image=None),
    Layer("Unfold", lambda nn: nn.Unfold((2, 3), padding=1, stride=2), _normal, shape=(2, 4, 4, 5)),
    Layer("Upsample", lambda nn: nn.Upsample(scale_factor=2), _normal, shape=(2, 4, 3, 2)),
    Layer("Upsample by weights", lambda nn: nn.Upsample((5, 4), mode="bicubic"), _normal, shape=(2, 4, 3, 3)),
    Layer("UpsamplingBilinear2d", lambda nn: nn.UpsamplingBilinear2d(scale_factor=2), _normal, shape=(2, 4, 3, 2)),
    Layer("UpsamplingNearest2d", lambda nn: nn.UpsamplingNearest2d((5, 4)), _normal, shape=(2, 4, 3, 2)),
    Layer("MaxUnpool1d", lambda nn: nn.MaxUnpool1d(2), _with_places, shape=(2, 4, 3), image=None),
    Layer("MaxUnpool2d", lambda nn: nn.MaxUnpool2d(2), _with_places, shape=(2, 4, 2, 3), image=None),
    Layer("MaxUnpool3d", lambda nn: nn.MaxUnpool3d(2), _with_places, shape=(2, 2, 2, 1, 3), image=None),
    Layer("Conv1d", lambda nn: nn.Conv1d(4, 6, 3, stride=2, padding=1), _normal, shape=(2, 4, 7), image=None),
    Layer("Conv2d", lambda nn: nn.Conv2d(4, 6, 3, padding=1), _normal, shape=(2, 4, 5, 5)),
    Layer(
        "Conv2d of groups",
        lambda nn: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), groups=2, bias=False),
        _normal,
        shape=(2, 4, 6, 5),
    ),
    Layer("Conv2d that keeps the size", lambda nn: nn.Conv2d(4, 3, 2, padding="same"), _normal, shape=(2, 4, 5, 5)),
    Layer("Conv3d", lambda nn: nn.Conv3d(2, 3, 2), _normal, shape=(2, 2, 3, 3, 3), image=None),
    Layer("ConvTranspose1d", lambda nn: nn.ConvTranspose1d(4, 3, 3, stride=2), _normal, shape=(2, 4, 4), image=None),
    Layer(
        "ConvTranspose2d",
        lambda nn: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        _normal,
        shape=(2, 4, 3, 3),
    ),
    Layer("ConvTranspose3d", lambda nn: nn.ConvTranspose3d(2, 3, 2), _normal, shape=(2, 2, 2, 2, 2), image=None),
    Layer("LazyConv1d", lambda nn: _initialized(nn.LazyConv1d(3, 2), 1, 4, 5), _normal, shape=(2, 4, 7), image=None),
    Layer("LazyConv2d", lambda nn: _initialized(nn.LazyConv2d(3, 2), 1, 4, 3, 3), _normal, shape=(2, 4, 5, 5)),
    Layer(
        "LazyConv3d",
        lambda nn: _initialized(nn.LazyConv3d(3, 2), 1, 2, 3, 3, 3),
        _normal,
        shape=(2, 2, 3, 3, 3),
        image=None,
    ),
    Layer(
        "LazyConvTranspose1d",
        lambda nn: _initialized(nn.LazyConvTranspose1d(3, 2), 1, 4, 5),
        _normal,
        shape=(2, 4, 4),
        image=None,
    ),
    Layer(
        "LazyConvTranspose2d",
        lambda nn: _initialized(nn.LazyConvTranspose2d(3, 2), 1, 4, 3, 3),
        _normal,
        shape=(2, 4, 3, 3),
    ),
    Layer(
        "LazyConvTranspose3d",
        lambda nn: _initialized(nn.LazyConvTranspose3d(3, 2), 1, 2, 3, 3, 3),
        _normal,
        shape=(2, 2, 2, 2, 2),
        image=None,
    ),
    Layer("Linear", lambda nn: nn.Linear(4, 3), _normal),
    Layer("Linear without bias", lambda nn: nn.Linear(4, 3, bias=False), _normal),
    Layer("Bilinear", lambda nn: nn.Bilinear(4, 4, 3), _two, differentiable=2),
    Layer("Bilinear without bias", lambda nn: nn.Bilinear(4, 4, 3, bias=False), _two, differentiable=2),
    Layer("Identity", lambda nn: nn.Identity(), _normal),
    Layer("Embedding", lambda nn: nn.Embedding(6, 4), _rows_named, differentiable=0),
    Layer("Embedding with padding", lambda nn: nn.Embedding(6, 4, padding_idx=2), _rows_named, differentiable=0),
    Layer(
        "MultiheadAttention",
        lambda nn: _without_weights(nn.MultiheadAttention(4, 2)),
        _three,
        shape=(5, 2, 4),
        image=None,
        reasons=NOT_TRACED,
        differentiable=3,
    ),
    Layer(
        "TransformerEncoderLayer",
        lambda nn: nn.TransformerEncoderLayer(4, 2, 8, 0.0),
        _normal,
        shape=(5, 2, 4),
        image=None,
        reasons=NOT_TRACED,
    ),
    Layer(
        "TransformerDecoderLayer",
        lambda nn: nn.TransformerDecoderLayer(4, 2, 8, 0.0),
        _two,
        shape=(5, 2, 4),
        image=None,
        reasons=NOT_TRACED,
        differentiable=2,
    ),
    Layer(
        "TransformerEncoder",
        lambda nn: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0), 1),
        _normal,
        shape=(5, 2, 4),
        image=None,
        reasons=NOT_TRACED,
    ),
    Layer(
        "TransformerDecoder",
        lambda nn: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, 0.0), 1),
        _two,
        shape=(5, 2, 4),
        image=None,
        reasons=NOT_TRACED,
        differentiable=2,
    ),
    Layer(
        "Transformer",
        lambda nn: nn.Transformer(4, 2, 1, 1, 8, 0.0),
        _two,
        shape=(5, 2, 4),
        image=None,
        reasons=NOT_TRACED,
        differentiable=2,
    ),
    Layer("EmbeddingBag", lambda nn: nn.EmbeddingBag(6, 4), _bags_named, image=None, differentiable=0),
    Layer(
        "EmbeddingBag of sums", lambda nn: nn.EmbeddingBag(6, 4, mode="sum"), _bags_named, image=None, differentiable=0
    ),
    Layer(
        "EmbeddingBag of maxima",
        lambda nn: nn.EmbeddingBag(6, 4, mode="max"),
        _bags_named,
        image=None,
        differentiable=0,
    ),
    Layer("LazyLinear", lambda nn: _initialized(nn.LazyLinear(3)), _normal),
    _activation("CELU", lambda nn: nn.CELU(alpha=0.5)),
    _activation("ELU", lambda nn: nn.ELU(alpha=0.7)),
    _activation("GELU", lambda nn: nn.GELU()),
    _activation("GELU by tanh", lambda nn: nn.GELU(approximate="tanh")),
    _activation("GLU", lambda nn: nn.GLU(dim=1)),
    _activation("Hardshrink", lambda nn: nn.Hardshrink(0.3)),
    # ATen's derivative is 1/6 as a float32, 5e-9 too much, in float64 too.
    _activation("Hardsigmoid", lambda nn: nn.Hardsigmoid(), tolerance=1e-7),
    _activation("Hardtanh", lambda nn: nn.Hardtanh(-0.5, 0.7)),
    _activation("LeakyReLU", lambda nn: nn.LeakyReLU(0.2)),
    _activation("LogSoftmax", lambda nn: nn.LogSoftmax(dim=1)),
    _activation("PReLU", lambda nn: nn.PReLU()),
    _activation("PReLU of channels", lambda nn: nn.PReLU(4, init=0.3)),
    _activation("RReLU in evaluation", lambda nn: nn.RReLU(0.1, 0.4).eval()),
    _activation("RReLU", lambda nn: nn.RReLU(0.1, 0.4), is_random=True),
    _activation("Softmax", lambda nn: nn.Softmax(dim=1)),
    _activation("Softmax2d", lambda nn: nn.Softmax2d(), shape=(2, 4, 3, 4)),
    _activation("Softmin", lambda nn: nn.Softmin(dim=1)),
    _activation("Softplus", lambda nn: nn.Softplus(beta=2.0, threshold=1.0)),
    _activation("Softshrink", lambda nn: nn.Softshrink(0.3)),
    _activation("Threshold", lambda nn: nn.Threshold(0.1, -2.0)),
    Layer("BatchNorm1d", lambda nn: _drawn(nn.BatchNorm1d(4)), _normal, image=None),
    Layer("BatchNorm1d in evaluation", lambda nn: _drawn(nn.BatchNorm1d(4)).eval(), _normal, image=None),
    Layer("BatchNorm2d", lambda nn: _drawn(nn.BatchNorm2d(4)), _normal, shape=(2, 4, 3, 4)),
    Layer(
        "BatchNorm2d of the mean of all batches",
        lambda nn: _drawn(nn.BatchNorm2d(4, momentum=None)),
        _normal,
        shape=(2, 4, 3, 4),
    ),
    Layer(
        "BatchNorm2d without running statistics",
        lambda nn: nn.BatchNorm2d(4, eps=0.1, affine=False, track_running_stats=False).eval(),
        _normal,
        shape=(2, 4, 3, 4),
    ),
    Layer("BatchNorm3d", lambda nn: _drawn(nn.BatchNorm3d(4)), _normal, shape=(2, 4, 2, 3, 2), image=None),
    Layer("GroupNorm", lambda nn: _drawn(nn.GroupNorm(1, 4)), _normal),
    Layer("GroupNorm of two", lambda nn: _drawn(nn.GroupNorm(2, 4)), _normal, shape=(2, 4, 3, 4)),
    Layer("InstanceNorm1d", lambda nn: _drawn(nn.InstanceNorm1d(4, affine=True)), _normal, shape=(3, 4, 5), image=None),
    Layer("InstanceNorm2d", lambda nn: nn.InstanceNorm2d(4, eps=0.1), _normal, shape=(2, 4, 3, 4)),
    Layer(
        "InstanceNorm2d with running statistics",
        lambda nn: _drawn(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        _normal,
        shape=(2, 4, 3, 4),
    ),
    Layer("InstanceNorm3d", lambda nn: nn.InstanceNorm3d(4), _normal, shape=(2, 4, 2, 3, 2), image=None),
    Layer("LazyBatchNorm1d", lambda nn: _initialized(nn.LazyBatchNorm1d(), 2, 4), _normal, image=None),
    Layer("LazyBatchNorm2d", lambda nn: _initialized(nn.LazyBatchNorm2d(), 2, 4, 2, 2), _normal, shape=(2, 4, 3, 4)),
    Layer(
        "LazyBatchNorm3d",
        lambda nn: _initialized(nn.LazyBatchNorm3d(), 2, 4, 1, 2, 2),
        _normal,
        shape=(2, 4, 2, 3, 2),
        image=None,
    ),
    Layer(
        "LazyInstanceNorm1d",
        lambda nn: _initialized(nn.LazyInstanceNorm1d(), 2, 4, 3),
        _normal,
        shape=(3, 4, 5),
        image=None,
    ),
    Layer(
        "LazyInstanceNorm2d", lambda nn: _initialized(nn.LazyInstanceNorm2d(), 2, 4, 2, 2), _normal, shape=(2, 4, 3, 4)
    ),
    Layer(
        "LazyInstanceNorm3d",
        lambda nn: _initialized(nn.LazyInstanceNorm3d(), 2, 4, 1, 2, 2),
        _normal,
        shape=(2, 4, 2, 3, 2),
        image=None,
    ),
    Layer("LocalResponseNorm", lambda nn: nn.LocalResponseNorm(2, 0.5), _normal, shape=(2, 4, 5)),
    Layer("CosineSimilarity", lambda nn: nn.CosineSimilarity(), _two, differentiable=2),
    Layer("PairwiseDistance", lambda nn: nn.PairwiseDistance(), _two, differentiable=2),
    Layer("PairwiseDistance of sums", lambda nn: nn.PairwiseDistance(1.0, keepdim=True), _two, differentiable=2),
    Layer("SyncBatchNorm", lambda nn: _drawn(nn.SyncBatchNorm(4)), _normal),
    Layer("LayerNorm", lambda nn: _drawn(nn.LayerNorm(4)), _normal),
    Layer("LayerNorm without weights", lambda nn: nn.LayerNorm(4, eps=0.1, elementwise_affine=False), _normal),
    Layer("LayerNorm without bias", lambda nn: _drawn(nn.LayerNorm(4, bias=False)), _normal),
    Layer("RMSNorm", lambda nn: _drawn(nn.RMSNorm(4)), _normal),
    Layer("RMSNorm without weights", lambda nn: nn.RMSNorm(4, eps=0.1, elementwise_affine=False), _normal),
    Layer("CTCLoss", lambda nn: _OfLogits(nn.CTCLoss()), _normal, shape=(4, 2, 3), image=None),
    Layer("Dropout", lambda nn: nn.Dropout(0.3), _normal, is_random=True),
    Layer("Dropout in evaluation", lambda nn: nn.Dropout(0.3).eval(), _normal),
    Layer("Dropout1d", lambda nn: nn.Dropout1d(0.3), _normal, shape=(2, 4, 3), image=None, is_random=True),
    Layer("Dropout2d", lambda nn: nn.Dropout2d(0.3), _normal, shape=(2, 4, 3, 4), is_random=True),
    Layer("Dropout3d", lambda nn: nn.Dropout3d(0.3), _normal, shape=(2, 4, 2, 3, 4), image=None, is_random=True),
    Layer("AlphaDropout", lambda nn: nn.AlphaDropout(0.3), _normal, is_random=True),
    Layer("FeatureAlphaDropout", lambda nn: nn.FeatureAlphaDropout(0.3), _normal, is_random=True),
    Layer("RNN", lambda nn: _First(nn.RNN(4, 3, nonlinearity="relu")), _normal, shape=(3, 2, 4), image=None),
    Layer("RNN by tanh, bidirectional", lambda nn: _First(nn.RNN(4, 3, bidirectional=True)), _normal, image=None),
    Layer("LSTM", lambda nn: _First(nn.LSTM(4, 3, 2)), _normal, shape=(3, 2, 4), image=None),
    Layer(
        "LSTM, projected, bidirectional",
        lambda nn: _First(nn.LSTM(4, 3, 2, dropout=0.4, bidirectional=True, proj_size=2)),
        _normal,
        shape=(3, 2, 4),
        image=None,
        is_random=True,
    ),
    Layer("GRU", lambda nn: _First(nn.GRU(4, 3, 2, bidirectional=True)), _normal, shape=(3, 2, 4), image=None),
    Layer("RNNCell", lambda nn: nn.RNNCell(4, 3), _normal, image=None),
    Layer("RNNCell, rectified", lambda nn: nn.RNNCell(4, 3, nonlinearity="relu"), _normal, image=None),
    Layer("LSTMCell", lambda nn: _First(nn.LSTMCell(4, 3)), _normal, image=None),
    Layer("GRUCell", lambda nn: nn.GRUCell(4, 3), _normal, image=None),
    Layer("L1Loss", lambda nn: nn.L1Loss(), _two, differentiable=2),
    Layer("SmoothL1Loss", lambda nn: nn.SmoothL1Loss(beta=0.3), _two, differentiable=2),
    Layer("SmoothL1Loss without a smooth part", lambda nn: nn.SmoothL1Loss(beta=0.0), _two, differentiable=2),
    Layer("HuberLoss", lambda nn: nn.HuberLoss(delta=0.3), _two, differentiable=2),
    Layer("MSELoss", lambda nn: nn.MSELoss(), _two, differentiable=2),
    Layer("MSELoss of sums", lambda nn: nn.MSELoss(reduction="sum"), _two, differentiable=2),
    Layer("NLLLoss", lambda nn: nn.NLLLoss(torch.tensor(_weights), ignore_index=1), _classes),
    Layer("GaussianNLLLoss", lambda nn: nn.GaussianNLLLoss(full=True, eps=0.2), _with_variance, differentiable=3),
    Layer("PoissonNLLLoss", lambda nn: nn.PoissonNLLLoss(full=True), _counts),
    Layer(
        "PoissonNLLLoss of rates",
        lambda nn: nn.PoissonNLLLoss(log_input=False, eps=1e-3, reduction="none"),
        _positive,
        differentiable=2,
    ),
    Layer("KLDivLoss", lambda nn: nn.KLDivLoss(reduction="batchmean"), _distributions, differentiable=2),
    Layer(
        "KLDivLoss of logarithms",
        lambda nn: nn.KLDivLoss(reduction="sum", log_target=True),
        _log_distributions,
        differentiable=2,
    ),
    Layer("BCELoss", lambda nn: nn.BCELoss(torch.tensor(_weights)), _probabilities, differentiable=2),
    Layer(
        "BCEWithLogitsLoss",
        lambda nn: nn.BCEWithLogitsLoss(torch.tensor(_weights), pos_weight=torch.tensor([0.5, 1.0, 2.0, 1.0])),
        _logits,
        differentiable=2,
    ),
    Layer("HingeEmbeddingLoss", lambda nn: nn.HingeEmbeddingLoss(margin=0.5), _signs),
    Layer("SoftMarginLoss", lambda nn: nn.SoftMarginLoss(), _signs),
    Layer("CrossEntropyLoss", lambda nn: nn.CrossEntropyLoss(), _classes),
    Layer(
        "CrossEntropyLoss with weights",
        lambda nn: nn.CrossEntropyLoss(torch.tensor(_weights), ignore_index=1, label_smoothing=0.1),
        _classes,
    ),
    Layer(
        "CrossEntropyLoss of probabilities",
        lambda nn: nn.CrossEntropyLoss(torch.tensor(_weights), label_smoothing=0.1),
        _class_probabilities,
        differentiable=2,
    ),
    Layer(
        "AdaptiveLogSoftmaxWithLoss",
        lambda nn: _LossOf(nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], 1.5)),
        lambda shape: (_randn(shape), (2 * torch.arange(shape[0]) + 1) % 6),
        image=None,
        reasons={"torch.fx.symbolic_trace": "which samples belong to a cluster decides what it runs"},
    ),
    Layer(
        "LinearCrossEntropyLoss",
        lambda nn: _drawn(nn.LinearCrossEntropyLoss(4, 3, bias=True, label_smoothing=0.1)),
        lambda shape: (_randn(shape), torch.arange(shape[0]) % 3),
        image=None,
    ),
    Layer(
        "CosineEmbeddingLoss",
        lambda nn: nn.CosineEmbeddingLoss(margin=0.2),
        _embeddings,
        image=None,
        differentiable=2,
    ),
    Layer(
        "MarginRankingLoss",
        lambda nn: nn.MarginRankingLoss(margin=0.5, reduction="none"),
        _ranked,
        differentiable=2,
    ),
    Layer("MultiLabelMarginLoss", lambda nn: nn.MultiLabelMarginLoss(), _label_lists, image=None),
    Layer(
        "MultiLabelSoftMarginLoss",
        lambda nn: nn.MultiLabelSoftMarginLoss(torch.tensor(_weights)),
        _logits,
        differentiable=2,
    ),
    Layer(
        "MultiMarginLoss",
        lambda nn: nn.MultiMarginLoss(p=2, margin=0.5, weight=torch.tensor(_weights)),
        _classes,
        image=None,
    ),
    Layer(
        "TripletMarginLoss",
        lambda nn: nn.TripletMarginLoss(margin=2.0, p=3, eps=1e-3, swap=True),
        _three,
        differentiable=3,
    ),
    Layer(
        "TripletMarginWithDistanceLoss",
        lambda nn: nn.TripletMarginWithDistanceLoss(margin=2.0, swap=True),
        _three,
        differentiable=3,
    ),
)


def _without_options(name: str) -> Layer:
    return _activation(name, lambda nn: getattr(nn, name)())


_names = dict.fromkeys(name for operation in FAMILIES["activations"] for name in operation.layers.split())
LAYERS: tuple[Layer, ...] = (
    *_LISTED,
    *(_without_options(name) for name in _names if name not in {layer.class_name for layer in _LISTED}),
)
"""Those that need options or inputs of their own, and every other activation of the catalogue."""


def _initialized(layer: Module, *shape: int) -> Module:
    """A lazy layer that has seen an input."""
    layer(torch.ones(*(shape or (1, 4))))
    return layer


def _drawn(layer: Module) -> Module:
    """A layer whose parameters are random numbers, and not ones and zeros."""
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    return layer
