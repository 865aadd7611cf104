"""The normalisations and the distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp import functional as F
from torch_manualbp._torch import AnyBatchNorm, AnyInstanceNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "CosineSimilarity",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LocalResponseNorm",
    "PairwiseDistance",
    "RMSNorm",
    "SyncBatchNorm",
]


def _batch_norm(layer: AnyBatchNorm, input: Tensor) -> Tensor:
    """The batch's statistics in training, and where there are no running ones; these move in training."""
    if _is_traced(input):
        return _as_one_node(layer, input)
    layer._check_input_dim(input)
    momentum: float | Tensor = 0.0 if layer.momentum is None else layer.momentum
    moves = layer.training and layer.track_running_stats
    if moves and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:  # the mean of all batches
            momentum = 1 / layer.num_batches_tracked.to(
                input.dtype if layer.running_mean is None else layer.running_mean.dtype
            )
    mean, var = (layer.running_mean, layer.running_var) if moves or not layer.training else (None, None)
    by_batch = layer.training or (mean is None and var is None)
    return F.batch_norm(input, mean, var, layer.weight, layer.bias, by_batch, momentum, layer.eps)


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` by :class:`torch_manualbp.rules.LayerNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ
    ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and r of each sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` by :class:`torch_manualbp.rules.RMSNorm`.

    a = w ẑ, ẑ = z r, r = 1 / √(mean z² + ε) ⇒ ∂C/∂z = r (g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ ∂C/∂a. Kept: z, w;
    r of each sample.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


def _is_traced(input: Any) -> bool:
    return isinstance(input, torch.fx.Proxy)


def _as_one_node(layer: torch.nn.Module, input: Any) -> Any:
    """A call of the layer in a trace of fx, where it would move its statistics once and for all."""
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(layer), (input,), {})


class BatchNorm1d(torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` by :class:`torch_manualbp.rules.BatchNorm`, and in evaluation by
    :class:`torch_manualbp.rules.RunningBatchNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a, in evaluation r g;
    ∂C/∂w = Σ ẑ ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and v of each channel.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """``torch.nn.LazyBatchNorm1d``: learns the number of its channels from the first input, and becomes our
    ``BatchNorm1d``."""

    cls_to_become = BatchNorm1d


class BatchNorm2d(torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` by :class:`torch_manualbp.rules.BatchNorm`, and in evaluation by
    :class:`torch_manualbp.rules.RunningBatchNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a, in evaluation r g;
    ∂C/∂w = Σ ẑ ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and v of each channel.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """``torch.nn.LazyBatchNorm2d``: learns the number of its channels from the first input, and becomes our
    ``BatchNorm2d``."""

    cls_to_become = BatchNorm2d


class BatchNorm3d(torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` by :class:`torch_manualbp.rules.BatchNorm`, and in evaluation by
    :class:`torch_manualbp.rules.RunningBatchNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a, in evaluation r g;
    ∂C/∂w = Σ ẑ ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and v of each channel.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class LazyBatchNorm3d(torch.nn.LazyBatchNorm3d, BatchNorm3d):
    """``torch.nn.LazyBatchNorm3d``: learns the number of its channels from the first input, and becomes our
    ``BatchNorm3d``."""

    cls_to_become = BatchNorm3d


class SyncBatchNorm(torch.nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` as a batch norm of one process, by :class:`torch_manualbp.rules.BatchNorm`; of several
    processes torch's own.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a, in evaluation r g;
    ∂C/∂w = Σ ẑ ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and v of each channel.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return super().forward(input)
        if not _is_traced(input):
            self._check_input_dim(input)
            self._check_non_zero_input_channels(input)
        return _batch_norm(self, input)


class GroupNorm(torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` by :class:`torch_manualbp.rules.GroupNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ
    ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and r of each group of a sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _instance_norm(layer: AnyInstanceNorm, input: Tensor) -> Tensor:
    by_input = layer.training or not layer.track_running_stats
    momentum = 0.0 if layer.momentum is None else layer.momentum
    return F.instance_norm(
        input, layer.running_mean, layer.running_var, layer.weight, layer.bias, by_input, momentum, layer.eps
    )


class InstanceNorm1d(torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` by :class:`torch_manualbp.rules.InstanceNorm`, and by running statistics in
    evaluation by :class:`torch_manualbp.rules.RunningBatchNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ
    ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and r of each channel of a sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _as_one_node(self, input) if _is_traced(input) else super().forward(input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)


class LazyInstanceNorm1d(torch.nn.LazyInstanceNorm1d, InstanceNorm1d):
    """``torch.nn.LazyInstanceNorm1d``: learns the number of its channels from the first input, and becomes our
    ``InstanceNorm1d``."""

    cls_to_become = InstanceNorm1d


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` by :class:`torch_manualbp.rules.InstanceNorm`, and by running statistics in
    evaluation by :class:`torch_manualbp.rules.RunningBatchNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ
    ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and r of each channel of a sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _as_one_node(self, input) if _is_traced(input) else super().forward(input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)


class LazyInstanceNorm2d(torch.nn.LazyInstanceNorm2d, InstanceNorm2d):
    """``torch.nn.LazyInstanceNorm2d``: learns the number of its channels from the first input, and becomes our
    ``InstanceNorm2d``."""

    cls_to_become = InstanceNorm2d


class InstanceNorm3d(torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` by :class:`torch_manualbp.rules.InstanceNorm`, and by running statistics in
    evaluation by :class:`torch_manualbp.rules.RunningBatchNorm`.

    a = w ẑ + b, ẑ = (z − μ) r, r = 1 / √(v + ε) ⇒ ∂C/∂z = r (g − mean g − ẑ mean(ẑ g)), g = w ∂C/∂a; ∂C/∂w = Σ ẑ
    ∂C/∂a, ∂C/∂b = Σ ∂C/∂a. Kept: z, w; μ and r of each channel of a sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _as_one_node(self, input) if _is_traced(input) else super().forward(input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)


class LazyInstanceNorm3d(torch.nn.LazyInstanceNorm3d, InstanceNorm3d):
    """``torch.nn.LazyInstanceNorm3d``: learns the number of its channels from the first input, and becomes our
    ``InstanceNorm3d``."""

    cls_to_become = InstanceNorm3d


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm`` by :class:`torch_manualbp.rules.LocalResponseNorm`.

    a_c = z_c / s_c^β, s_c = k + α / n Σ_j z_j² over the n channels j around c ⇒ ∂C/∂z_j = ∂C/∂a_j / s_j^β − 2 α β / n
    z_j Σ_c z_c ∂C/∂a_c / s_c^(β + 1). Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class CosineSimilarity(torch.nn.CosineSimilarity):
    """``torch.nn.CosineSimilarity`` by :class:`torch_manualbp.rules.CosineSimilarity`.

    c = u·v / (m n), m = max(‖u‖, ε), n = max(‖v‖, ε) ⇒ ∂C/∂u = ∂C/∂c (v / (m n) − c u / m² [‖u‖ ≥ ε]), and with v for u
    ∂C/∂v. Kept: u, v.
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(torch.nn.PairwiseDistance):
    """``torch.nn.PairwiseDistance`` by :class:`torch_manualbp.rules.VectorNorm` of
    :class:`torch_manualbp.rules.Difference`.

    D = ‖d‖_p, d = x₁ − x₂ + ε ⇒ ∂C/∂x₁ = sgn(d) |d|^(p−1) / D^(p−1) ∂C/∂D, ∂C/∂x₂ = −∂C/∂x₁. Kept: d, D.
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)
