"""What of torch has no public name, in one file, for whoever upgrades torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "dispatch_modes",
    "forward_mode_level",
    "functorch_levels_of_forward_mode",
    "is_batched",
    "is_compiling",
    "is_jit_tracing",
    "is_transformed",
    "uses_mkldnn",
]

is_compiling: Callable[[], bool] = torch.compiler.is_compiling
"""Whether torch.compile or torch.export is tracing."""

is_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work."""

is_jit_tracing: Callable[[], Any] = torch._C._get_tracing_state
"""Whether torch.jit.trace is at work: its state, or None."""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many modes see the operations, which make_fx's and linearize's tracing are."""

is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
"""Whether it is one of is_grads_batched."""

uses_mkldnn: Callable[[], bool] = torch._C._get_mkldnn_enabled


def forward_mode_level() -> int:
    """The level of ``torch.autograd.forward_ad``, or −1."""
    return forward_ad._current_level


def functorch_levels_of_forward_mode() -> int:
    """How many of torch.func's transforms at work are forward mode."""
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return sum(i.key() == torch._C._functorch.TransformType.Jvp for i in interpreters)
