"""Layers with a known mistake each, for the checks of ``torch_manualbp.verify.surroundings`` to catch.

``BY_CHECK`` names the check that must; ``IN_TWO_PROCESSES`` are those that only two processes show, behind layers
without a mistake.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp import functional, nn
from torch_manualbp._torch import is_jit_tracing, without_subclasses
from torch_manualbp.verify.surroundings import LAYERS, Layer, layers


def row(name: str) -> Layer:
    (layer,) = (layer for layer in LAYERS if layer.name == name)
    return layer


def module_of(layer: Layer) -> str:
    """The module of ours in which the layer's class stands: ``torch_manualbp.nn.loss``."""
    return str(getattr(nn, layer.class_name).__module__)


class OtherRepr(nn.Linear):
    """Prints a name that torch's does not have."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, explicit=True"


class ExtraBuffer(nn.Linear):
    """Stores what torch's layer does not know."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("calls", torch.zeros(()))


class SharesParameters(nn.Linear):
    """A deep copy that is shallow."""

    def __deepcopy__(self, memo: Any) -> SharesParameters:
        return copy.copy(self)


class PicklesAsTorchs(nn.Linear):
    """Comes back from a pickle as torch's own."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _torchs_linear, (self.state_dict(),)


def _torchs_linear(state: dict[str, Tensor]) -> torch.nn.Module:
    linear = torch.nn.Linear(4, 3, dtype=torch.float64)
    linear.load_state_dict(state)
    return linear


class RemembersItsWeight(nn.Linear):
    """Computes with the weight that it first saw, whatever has since been put in its place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "first", self.weight)

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.first  # type: ignore[assignment]
        return functional.linear(input, weight, self.bias)


class MixesSamples(nn.Sigmoid):
    """Sees the other samples of the batch through its own count of them."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1 + 0 * input.sum() + (input.shape[0] == 1))


class CopiesInPlace(nn.ReLU):
    """Takes ``inplace`` and leaves its input as it was."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input)


class PassesSubclassesBy(nn.Sigmoid):
    """Does not ask a tensor subclass."""

    def forward(self, input: Tensor) -> Tensor:
        with without_subclasses():
            return super().forward(input)


class ReadsMemory(nn.Sigmoid):
    """Takes a wrapper's first tensor for all there is."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(getattr(input, "a", input))


class LosesStrides(nn.Sigmoid):
    """Lays its output out plainly."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous())


class IgnoresAutocast(nn.Linear):
    """Computes in the dtype of its weights, whatever autocast says."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(self.weight.dtype))


class _KeptOnTheContext(Function):
    """A sigmoid whose value escapes saved-tensor hooks, and which keeps its input for nothing."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.a = z.sigmoid()
        ctx.save_for_backward(z, ctx.a)
        return ctx.a

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return da * ctx.a * (1 - ctx.a)


class KeepsTooMuch(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        return _KeptOnTheContext.apply(input)  # type: ignore[no-untyped-call]


class DrawsAnew(nn.Sigmoid):
    """Depends on how often it was called, which checkpointing does once more."""

    count: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.count = []

    def forward(self, input: Tensor) -> Tensor:
        self.count.append(0)
        return super().forward(input * len(self.count))


class BranchesOnNumbers(nn.Sigmoid):
    """Reads a number of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if input.sum() < 1000 else input


class OtherUnderTracing(nn.Sigmoid):
    """Computes something else where a tracer watches."""

    def forward(self, input: Tensor) -> Tensor:
        traced = torch.compiler.is_compiling() or is_jit_tracing() is not None
        return torch.tanh(input) if traced else super().forward(input)


class OtherShapeOnMeta(nn.Sigmoid):
    """Has no shape to speak of without numbers."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output if type(input.detach()) is Tensor and not input.is_meta else output.float()


class SumsEachPart(nn.MSELoss):
    """Leaves the other processes' part of a split input out, as torch's backward does."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(input, target)


class OfOneProcess(nn.Sigmoid):
    """The second process computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return super().forward(input * (1 + rank))


class OfOneShard(nn.CrossEntropyLoss):
    """Adds the loss up over the processes that have it already."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) * 2 if hasattr(input, "to_local") else super().forward(input, target)


BY_CHECK: list[tuple[str, Layer]] = [
    ("repr, state_dict, attributes", row("Linear").with_mistake(Linear=OtherRepr)),
    ("repr, state_dict, attributes", row("Linear").with_mistake(Linear=ExtraBuffer)),
    ("deepcopy", row("Linear").with_mistake(Linear=SharesParameters)),
    ("pickle, torch.save", row("Linear").with_mistake(Linear=PicklesAsTorchs)),
    ("weight_norm", row("Linear").with_mistake(Linear=RemembersItsWeight)),
    ("spectral_norm", row("Linear").with_mistake(Linear=RemembersItsWeight)),
    ("functional_call, vmap(grad)", row("Linear").with_mistake(Linear=RemembersItsWeight)),
    ("functional_call, vmap(grad)", row("Sigmoid").with_mistake(Sigmoid=MixesSamples)),
    ("inplace", row("ReLU").with_mistake(ReLU=CopiesInPlace)),
    ("__torch_function__ subclass", row("Sigmoid").with_mistake(Sigmoid=PassesSubclassesBy)),
    ("__torch_dispatch__ subclass", row("Sigmoid").with_mistake(Sigmoid=ReadsMemory)),
    ("strides", row("Sigmoid").with_mistake(Sigmoid=LosesStrides)),
    ("channels_last", row("Sigmoid").with_mistake(Sigmoid=LosesStrides)),
    ("autocast, bfloat16", row("Linear").with_mistake(Linear=IgnoresAutocast)),
    ("autocast, float16", row("Linear").with_mistake(Linear=IgnoresAutocast)),
    ("saved-tensor hooks", row("Sigmoid").with_mistake(Sigmoid=KeepsTooMuch)),
    ("checkpoint", row("Sigmoid").with_mistake(Sigmoid=DrawsAnew)),
    ("torch.compile(fullgraph=True)", row("Sigmoid").with_mistake(Sigmoid=BranchesOnNumbers)),
    ("torch.compile(fullgraph=True)", row("Sigmoid").with_mistake(Sigmoid=OtherUnderTracing)),
    ("torch.export", row("Sigmoid").with_mistake(Sigmoid=OtherUnderTracing)),
    ("torch.export, strict", row("Sigmoid").with_mistake(Sigmoid=OtherUnderTracing)),
    ("torch.jit.trace", row("Sigmoid").with_mistake(Sigmoid=OtherUnderTracing)),
    ("torch.fx.symbolic_trace", row("Sigmoid").with_mistake(Sigmoid=BranchesOnNumbers)),
    ("meta device", row("Sigmoid").with_mistake(Sigmoid=OtherShapeOnMeta)),
    ("FakeTensorMode", row("Sigmoid").with_mistake(Sigmoid=OtherShapeOnMeta)),
]

SOUND = (
    *{module_of(layer): layer for layer in reversed(layers())}.values(),
    *(layer for layer in layers() if layer.name == "CrossEntropyLoss"),
)
"""A layer of each module, and the one that loss_parallel is for."""

IN_TWO_PROCESSES: tuple[Layer, ...] = (
    *SOUND,
    row("MSELoss").with_mistake(MSELoss=SumsEachPart),
    row("Sigmoid").with_mistake(Sigmoid=OfOneProcess),
    row("CrossEntropyLoss").with_mistake(CrossEntropyLoss=OfOneShard),
)
"""The last three are caught by: DTensors; tensor parallelism and FSDP2; loss_parallel."""
