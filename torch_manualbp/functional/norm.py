"""The normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp._torch import forward_mode_level, is_autocast_enabled
from torch_manualbp.functional.call import in_full_precision, overridable, run, run_with_byproducts
from torch_manualbp.rules.norm.normalized import is_low
from torch_manualbp.rules.rule import widened

__all__ = [
    "batch_norm",
    "cosine_similarity",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "normalize",
    "pairwise_distance",
    "pdist",
    "rms_norm",
]


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
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """c = u·v / (max(‖u‖, ε) max(‖v‖, ε)), with :class:`~torch_manualbp.rules.CosineSimilarity`; as
    :func:`torch.nn.functional.cosine_similarity`."""
    rank = max(x1.dim(), x2.dim())
    is_usual = x1.is_floating_point() and x2.is_floating_point() and -rank <= dim < rank
    if not is_usual:
        return torch_functional.cosine_similarity(x1, x2, dim, eps)  # says what is wrong
    return run(rules.CosineSimilarity, x1, x2, dim % rank - rank, eps)


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
def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """a_c = z_c / (k + α / n Σ_j z_j²)^β of the n channels around each, with
    :class:`~torch_manualbp.rules.LocalResponseNorm`; as :func:`torch.nn.functional.local_response_norm`."""
    is_pooled = input.dim() > 3  # by torch, on the CPU not in low precision, and under autocast in float32
    is_refused = is_pooled and is_low(input) and input.device.type == "cpu" and not is_autocast_enabled()
    if input.dim() < 3 or not input.is_floating_point() or size < 1 or not input.numel() or is_refused:
        return torch_functional.local_response_norm(input, size, alpha, beta, k)  # says what is wrong
    return (in_full_precision if is_pooled else run)(rules.LocalResponseNorm, input, size, alpha, beta, k)


@overridable
def normalize(
    input: Tensor, p: float = 2.0, dim: int | Sequence[int] = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """a = z / max(‖z‖_p, ε), with :class:`~torch_manualbp.rules.Normalize`; as
    :func:`torch.nn.functional.normalize`, which takes ``out`` itself.

    a = z / m, m = max(D, ε), D = ‖z‖_p ⇒ ∂C/∂z = ∂C/∂a / m + ∂C/∂D ∂D/∂z, ∂C/∂D = −Σ z ∂C/∂a / m² where D ≥ ε, else 0.
    Kept: z.
    """
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if out is not None or not dims or not _has_numbers(input) or not all(-input.dim() <= d < input.dim() for d in dims):
        return torch_functional.normalize(input, p, dim, eps, out)  # type: ignore[arg-type]
    return run(rules.Normalize, input, p, tuple(d % input.dim() - input.dim() for d in dims), eps)


@overridable
def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """D = ‖x₁ − x₂ + ε‖_p, with :class:`~torch_manualbp.rules.VectorNorm` of
    :class:`~torch_manualbp.rules.Difference`; as :func:`torch.nn.functional.pairwise_distance`."""
    if not (_has_numbers(x1) and _has_numbers(x2) and max(x1.dim(), x2.dim())):
        return torch_functional.pairwise_distance(x1, x2, p, eps, keepdim)  # says what is wrong
    D: Tensor = run(rules.VectorNorm, run(rules.Difference, x1, x2, eps), p)
    return run(rules.Reshape, D, (*D.shape, 1)) if keepdim else D


@overridable
def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """D_ij = ‖z_i − z_j‖_p, i < j, with :class:`~torch_manualbp.rules.PairwiseDistances`; as
    :func:`torch.nn.functional.pdist`.

    D_ij = ‖z_i − z_j‖_p ⇒ ∂C/∂z_i = Σ_{j > i} h_ij − Σ_{j < i} h_ji, h_ij = ∂C/∂D_ij ∂D_ij/∂z_i. Kept: z, D.
    """
    if input.dim() != 2 or not input.is_floating_point() or is_low(input):
        return torch_functional.pdist(input, p)  # says what is wrong
    return run(rules.PairwiseDistances, input, p)


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
    if forward_mode_level() >= 0:  # a running statistic has no tangent
        statistic = forward_ad.unpack_dual(statistic).primal
    with torch.no_grad():
        running.lerp_(statistic.reshape(running.shape).to(running.dtype), momentum)
