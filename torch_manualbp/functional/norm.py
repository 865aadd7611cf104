"""The normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import overridable, run, run_with_byproducts
from torch_manualbp.rules.rule import widened

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


@overridable
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """a = w (z − μ) / √(v + ε) + b of each channel, with :class:`~torch_manualbp.rules.BatchNorm`, or without
    ``training`` with :class:`~torch_manualbp.rules.RunningBatchNorm`; as :func:`torch.nn.functional.batch_norm`.

    ``momentum`` may be a tensor without dimensions, too.
    """
    of_channels = (running_mean, running_var, weight, bias)
    is_usual = input.dim() >= 2 and eps > 0 and _fit(input, of_channels)
    is_usual &= (running_mean is None) == (running_var is None) and (training or running_mean is not None)
    if not is_usual:
        return torch_functional.batch_norm(input, *of_channels, training, momentum, eps)  # type: ignore[arg-type] # says what is wrong
    if not training:
        return run(rules.RunningBatchNorm, input, running_mean, running_var, weight, bias, eps)
    torch_functional._verify_batch_size(input.shape)  # type: ignore[attr-defined]
    a, mu, v = run_with_byproducts(rules.BatchNorm, input, weight, bias, eps)
    if running_mean is not None and running_var is not None and input.numel():
        n = input.numel() // input.shape[1]
        _move(running_mean, mu, momentum)
        _move(running_var, v * (n / (n - 1)), momentum)
    return a


@overridable
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """a = w (z − μ) / √(v + ε) + b of each group of channels, with :class:`~torch_manualbp.rules.GroupNorm`; as
    :func:`torch.nn.functional.group_norm`."""
    is_usual = input.dim() >= 2 and num_groups > 0 and input.shape[1] % num_groups == 0 and input.shape[1] > 0
    if not is_usual or not _fit(input, (weight, bias)):
        return torch_functional.group_norm(input, num_groups, weight, bias, eps)  # says what is wrong
    samples, channels, *places = input.shape
    torch_functional._verify_batch_size(  # type: ignore[attr-defined]
        [samples * channels // num_groups, num_groups, *places]
    )
    return run(rules.GroupNorm, input, num_groups, weight, bias, eps)


@overridable
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """a = w (z − μ) / √(v + ε) + b of each channel of each sample, with :class:`~torch_manualbp.rules.InstanceNorm`, or
    without ``use_input_stats`` with :class:`~torch_manualbp.rules.RunningBatchNorm`; as
    :func:`torch.nn.functional.instance_norm`."""
    of_channels = (running_mean, running_var, weight, bias)
    is_usual = input.dim() >= 2 and eps > 0 and input.numel() > 0 and _fit(input, of_channels)
    is_usual &= (running_mean is None) == (running_var is None) and (use_input_stats or running_mean is not None)
    if not is_usual:
        return torch_functional.instance_norm(  # says what is wrong
            input,
            *of_channels,
            use_input_stats,
            momentum,  # type: ignore[arg-type]
            eps,
        )
    if not use_input_stats:
        return run(rules.RunningBatchNorm, input, running_mean, running_var, weight, bias, eps)
    torch_functional._verify_spatial_size(input.shape)  # type: ignore[attr-defined]
    a, mu, v = run_with_byproducts(rules.InstanceNorm, input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        n = input[0, 0].numel()
        _move(running_mean, mu.mean(0), momentum)
        _move(running_var, v.mean(0) * (n / (n - 1)), momentum)
    return a


@overridable
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """a = w (z − μ) / √(v + ε) + b over the last dimensions, with :class:`~torch_manualbp.rules.LayerNorm`; as
    :func:`torch.nn.functional.layer_norm`."""
    return run(rules.LayerNorm, input, tuple(normalized_shape), weight, bias, eps)


@overridable
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """a = w z / √(mean z² + ε) over the last dimensions, with :class:`~torch_manualbp.rules.RMSNorm`; as
    :func:`torch.nn.functional.rms_norm`."""
    shape = tuple(normalized_shape)
    is_weight = weight is None or tuple(weight.shape) == shape
    if not shape or tuple(input.shape[-len(shape) :]) != shape or not is_weight or not _has_numbers(input):
        return torch_functional.rms_norm(input, normalized_shape, weight, eps)  # says what is wrong
    eps = torch.finfo(widened(input).dtype).eps if eps is None else eps
    return run(rules.RMSNorm, input, shape, weight, eps)


def _has_numbers(t: Tensor) -> bool:
    """Whether there are derivatives by it; ATen says of what else it does not take."""
    return t.is_floating_point() or t.is_complex()


def _fit(input: Tensor, of_channels: Sequence[Tensor | None]) -> bool:
    """Whether each tensor has a number for each channel, in the dtype of the input or in which formulas compute."""
    dtypes = {input.dtype, widened(input).dtype}
    return input.is_floating_point() and all(
        t is None or (tuple(t.shape) == (input.shape[1],) and t.dtype in dtypes) for t in of_channels
    )


def _move(running: Tensor, statistic: Tensor, momentum: float | Tensor) -> None:
    """Move a running statistic by this part of the way to that of a batch."""
    with torch.no_grad():
        running.lerp_(statistic.reshape(running.shape).to(running.dtype), momentum)
