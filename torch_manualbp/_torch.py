"""What of torch has no public name, in one file, for whoever upgrades torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped as unwrapped
from torch._C._functorch import is_batchedtensor as is_mapped
from torch._C._functorch import is_functorch_wrapped_tensor as is_functorch_wrapped
from torch._C._functorch import is_legacy_batchedtensor as is_batched
from torch._C._functorch import maybe_get_bdim as mapped_dim
from torch._ops import OpOverload
from torch._ops import OpOverloadPacket as OverloadPacket
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction as PlainFunction
from torch.nn import _reduction
from torch.nn.modules.adaptive import _ASMoutput as AdaptiveOutput
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.conv import _ConvNd as AnyConvolution
from torch.nn.modules.instancenorm import _InstanceNorm as AnyInstanceNorm
from torch.overrides import _get_current_function_mode_stack as _function_modes
from torch.utils import _device as default_device
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as _dispatch_modes

__all__ = [
    "AdaptiveOutput",
    "AnyBatchNorm",
    "AnyConvolution",
    "AnyInstanceNorm",
    "FunctionBase",
    "OpOverload",
    "OverloadPacket",
    "PlainFunction",
    "TorchDispatchMode",
    "are_unchanged",
    "at_the_end_of_backward",
    "backward_task",
    "canonical_mask",
    "default_device",
    "dict_version",
    "dispatch_modes",
    "fake_tensor_mode",
    "flash_attention",
    "foreach_add_",
    "foreach_mul",
    "foreach_mul_",
    "foreach_norm",
    "forward_mode_level",
    "function_modes",
    "functorch_levels_of_forward_mode",
    "fused_adam_",
    "fused_adamw_",
    "graph_is_kept",
    "has_internal_overlap",
    "is_autocast_enabled",
    "is_batched",
    "is_compiling",
    "is_dynamo_compiling",
    "is_functorch_wrapped",
    "is_jit_tracing",
    "is_mapped",
    "is_traced_by_make_fx",
    "is_transformed",
    "legacy_reduction_name",
    "mapped_dim",
    "mark_static",
    "modes_around",
    "multi_head_shapes_fit",
    "nn_functions",
    "number_of_reduction",
    "onednn_linear",
    "parsed_to",
    "pyobject_data_pointer",
    "pytree",
    "reset_compiler",
    "saved_tensors_hooks",
    "unsafe_view",
    "unwrapped",
    "uses_mkldnn",
    "variable_functions",
    "without_subclasses",
    "without_torch_function",
    "without_transforms",
]

is_compiling: Callable[[], bool] = torch.compiler.is_compiling
"""Whether torch.compile or torch.export is tracing."""

is_dynamo_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling
"""Whether torch.compile is tracing: the same but for ``torch.export``'s tracing, in a fourth of the time."""

is_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work."""

FunctionBase: Any = torch._C._FunctionBase
"""What ``autograd.Function`` is derived from."""

is_jit_tracing: Callable[[], Any] = torch._C._get_tracing_state
"""Whether torch.jit.trace is at work: its state, or None."""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many modes see the operations, which make_fx's and linearize's tracing are."""

is_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device."""

_top_saved_tensors_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignores_tracing: None
)

backward_task: Callable[[], int] = torch._C._current_graph_task_id
"""The number of the backward pass of this thread, or −1."""

graph_is_kept: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
"""Whether the backward pass of this thread may come again (``retain_graph``)."""

has_internal_overlap: Callable[[Tensor], int] = torch._debug_has_internal_overlap
"""Whether entries of it share memory: 0 says no."""

legacy_reduction_name: Callable[..., str] = _reduction.legacy_get_string
"""What ``size_average`` and ``reduce`` mean, with torch's warning."""

number_of_reduction: Callable[[str], int] = _reduction.get_enum
"""ATen's number for ``"none"``, ``"mean"`` and ``"sum"``."""

foreach_add_: Any = torch._foreach_add_
foreach_mul: Any = torch._foreach_mul
foreach_mul_: Any = torch._foreach_mul_
foreach_norm: Any = torch._foreach_norm
fused_adam_: Any = torch._fused_adam_
fused_adamw_: Any = torch._fused_adamw_

variable_functions: Any = torch._C._VariableFunctions
"""The functions of torch in C++."""

nn_functions: Any = torch._C._nn
"""The functions of torch.nn.functional in C++."""

canonical_mask: Callable[..., Tensor | None] = torch.nn.functional._canonical_mask
"""A mask of numbers, −∞ where one of booleans is True, with torch's warnings and errors."""

multi_head_shapes_fit: Callable[..., bool] = torch.nn.functional._mha_shape_check  # type: ignore[attr-defined]
"""Whether the inputs of multi-head attention have a batch, with torch's errors where they do not fit."""

parsed_to: Callable[..., Any] = torch._C._nn._parse_to
"""What the arguments of ``Tensor.to`` say: device, dtype, non_blocking, memory format."""

uses_mkldnn: Callable[[], bool] = torch._C._get_mkldnn_enabled

flash_attention: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Attention on the CPU that keeps no more than a number a row, and returns it."""

onednn_linear: Any = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None
"""``onednn_linear(a, W, b, "none", [], "")`` = a Wᵀ + b, where there is oneDNN."""

unsafe_view: Any = torch.ops.aten._unsafe_view
"""A tensor in another shape that is no view to autograd: it may be written over as a result may."""

without_subclasses: Any = torch._C.DisableTorchFunctionSubclass
"""A context in which no subclass sees what is called."""

without_torch_function: Any = torch._C.DisableTorchFunction
"""A context in which neither a mode nor a subclass sees what is called."""

without_transforms: Any = torch._C._DisableFuncTorch
"""A context that torch.func's transforms do not see."""


try:
    from torch._C._dynamo.guards import TensorGuards, dict_version

    def are_unchanged(tensors: Sequence[Tensor]) -> Callable[..., bool]:
        """A function that tells whether dtypes, devices, shapes, strides and ``requires_grad`` of these are as now. It
        takes 80 ns a tensor, where asking Python for each of them takes 500; under autocast it may say no to all."""
        check: Callable[..., bool] = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        return check

except ImportError:

    def dict_version(d: dict[Any, Any]) -> int:
        """A number for all items, where torch does not tell when a dict was last changed."""
        return hash((*map(id, d.keys()), *map(id, d.values())))

    def are_unchanged(tensors: Sequence[Tensor]) -> Callable[..., bool]:
        return lambda *now: False


function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes see the functions of torch that are called, the default device's among them."""


def modes_around() -> list[Any]:
    """The modes that see what is computed, but for the default device's."""
    functions = [mode for mode in _function_modes() if not isinstance(mode, default_device.DeviceContext)]
    return [*functions, *_dispatch_modes()]


def saved_tensors_hooks() -> Any:
    """What packs tensors that autograd keeps, and unpacks them; None if that is nobody, or torch itself."""
    hooks = _top_saved_tensors_hooks(True)
    is_torchs = hooks is None or getattr(hooks[0], "__module__", "").partition(".")[0] == "torch"
    return None if is_torchs else hooks


def at_the_end_of_backward(call: Callable[[], None]) -> None:
    """Have the engine make a call when the backward pass at work is through."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def fake_tensor_mode() -> Any:
    """A mode whose tensors have shapes and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def pyobject_data_pointer() -> int:
    """Where a library that inductor made finds the function that reads a tensor's address."""
    return torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]


def is_traced_by_make_fx() -> bool:
    """Whether make_fx is tracing."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def mark_static(t: Tensor, dim: int) -> None:
    """Have torch.compile make code for this size of the dimension alone."""
    torch._dynamo.mark_static(t, dim)


def reset_compiler() -> None:
    """Forget what torch.compile has compiled."""
    torch._dynamo.reset()


def forward_mode_level() -> int:
    """The level of ``torch.autograd.forward_ad``, or −1."""
    return forward_ad._current_level


def functorch_levels_of_forward_mode() -> int:
    """How many of torch.func's transforms at work are forward mode."""
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return sum(i.key() == torch._C._functorch.TransformType.Jvp for i in interpreters)
