"""The convolutions, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.convolution import Convolution, TransposedConvolution

__all__ = ["CONVOLUTIONS"]

Sizes = tuple[int, ...]


def _convolution(
    a: Tensor, W: Tensor, b: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    return (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1](a, W, b, stride, padding, dilation, groups)


def _convolution_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 4, 5, 4), make(3, 4, 3, 2), make(3), (1, 1), (0, 0), (1, 1), 1))
    yield Sample("stride, padding", (make(2, 2, 6, 5), make(3, 2, 3, 2), make(3), (2, 3), (1, 1), (1, 1), 1))
    yield Sample("dilation, without bias", (make(2, 2, 6, 5), make(3, 2, 2, 2), None, (1, 2), (1, 0), (3, 2), 1))
    yield Sample("groups", (make(2, 4, 4, 3), make(6, 2, 2, 2), make(6), (2, 1), (0, 1), (1, 1), 2))
    yield Sample("each channel alone", (make(2, 3, 4, 4), make(3, 1, 3, 3), None, (1, 1), (1, 1), (1, 1), 3))
    yield Sample("each channel, one place", (make(2, 3, 1, 2), make(6, 1, 2, 2), None, (2, 2), (1, 0), (2, 1), 3))
    yield Sample("one image", (make(4, 5, 4), make(3, 4, 3, 2), make(3), (1, 1), (1, 0), (1, 1), 1))
    yield Sample("sequences", (make(2, 4, 5), make(3, 4, 3), make(3), (2,), (1,), (1,), 1))
    yield Sample("volumes", (make(2, 2, 3, 4, 3), make(3, 2, 2, 3, 1), make(3), (1, 2, 1), (0, 1, 0), (1, 1, 1), 1))
    yield Sample("window of one", (make(2, 4, 3, 3), make(3, 4, 1, 1), make(3), (1, 1), (0, 0), (1, 1), 1))
    yield Sample("empty batch", (make(0, 4, 5, 4), make(3, 4, 3, 2), make(3), (1, 1), (0, 0), (1, 1), 1))


def _transposed_convolution(
    a: Tensor,
    W: Tensor,
    b: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Tensor:
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(stride) - 1]
    return convolve(a, W, b, stride, padding, output_padding, groups, dilation)


def _transposed_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 3, 4), make(3, 4, 3, 2), make(4), (1, 1), (0, 0), (0, 0), 1, (1, 1)))
    yield Sample("stride, padding", (make(2, 3, 3, 2), make(3, 2, 3, 2), make(2), (2, 3), (1, 1), (1, 2), 1, (1, 1)))
    yield Sample(
        "dilation, without bias", (make(2, 2, 3, 3), make(2, 2, 2, 2), None, (1, 2), (1, 0), (2, 1), 1, (3, 2))
    )
    yield Sample("groups", (make(2, 4, 2, 3), make(4, 3, 2, 2), make(6), (2, 1), (0, 1), (0, 0), 2, (1, 1)))
    yield Sample("one image", (make(3, 2, 3), make(3, 4, 3, 2), make(4), (1, 1), (1, 0), (0, 0), 1, (1, 1)))
    yield Sample("sequences", (make(2, 3, 4), make(3, 4, 3), make(4), (2,), (1,), (1,), 1, (1,)))
    yield Sample(
        "volumes", (make(2, 2, 2, 2, 2), make(2, 2, 2, 1, 2), make(2), (1,) * 3, (0,) * 3, (0,) * 3, 1, (1,) * 3)
    )
    yield Sample("empty batch", (make(0, 3, 3, 4), make(3, 4, 3, 2), make(4), (1, 1), (0, 0), (0, 0), 1, (1, 1)))


HALF = "torch's transposed convolution, which ∂C/∂a is, adds up in float16 on a CPU that has no products of these"

CONVOLUTIONS: tuple[Operation, ...] = (
    Operation(
        Convolution,
        _convolution,
        _convolution_samples,
        functions="conv1d conv2d conv3d",
        layers="Conv1d Conv2d Conv3d LazyConv1d LazyConv2d LazyConv3d",
        complex=True,
        cancels=True,
        exempt={
            "one rounding, float16": HALF,
            "tangents, empty batch": "torch's own convolution of no samples has no second derivative",
        },
    ),
    Operation(
        TransposedConvolution,
        _transposed_convolution,
        _transposed_samples,
        functions="conv_transpose1d conv_transpose2d conv_transpose3d",
        layers="ConvTranspose1d ConvTranspose2d ConvTranspose3d "
        "LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d",
        complex=True,
        cancels=True,
        exempt={"tangents, empty batch": "torch's own convolution of no samples has no second derivative"},
    ),
)
