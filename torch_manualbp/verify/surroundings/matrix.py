"""The matrix of the layers: a row for each class of ours, a column for each check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch_manualbp.verify.contract.check import Outcome
from torch_manualbp.verify.contract.matrix import Matrix
from torch_manualbp.verify.surroundings import distributed, objects, tensors, tracing
from torch_manualbp.verify.surroundings.check import Check, run
from torch_manualbp.verify.surroundings.layers import Layer, layers

__all__ = ["CHECKS", "surroundings_matrix"]

CHECKS: tuple[Check, ...] = (
    Check("repr, state_dict, attributes", objects.is_torchs_twin),
    Check("deepcopy", objects.copies),
    Check("pickle, torch.save", objects.pickles),
    Check("weight_norm", objects.normalizes_weights),
    Check("spectral_norm", objects.normalizes_spectrum),
    Check("functional_call, vmap(grad)", objects.calls_with_other_weights),
    Check("inplace", tensors.works_in_place),
    Check("__torch_function__ subclass", tensors.lets_subclasses_take_over),
    Check("__torch_dispatch__ subclass", tensors.dispatches_to_subclasses),
    Check("strides", tensors.keeps_strides),
    Check("channels_last", tensors.keeps_channels_last),
    Check("autocast, bfloat16", tensors.autocasts_to_bfloat16),
    Check("autocast, float16", tensors.autocasts_to_float16),
    Check("saved-tensor hooks", tensors.lets_hooks_move_what_it_keeps),
    Check("checkpoint", tensors.checkpoints),
    Check("torch.compile(fullgraph=True)", tracing.compiles),
    Check("torch.export", tracing.exports),
    Check("torch.export, strict", tracing.exports_strictly),
    Check("torch.jit.trace", tracing.traces),
    Check("torch.fx.symbolic_trace", tracing.traces_symbolically),
    Check("meta device", tracing.runs_on_the_meta_device),
    Check("FakeTensorMode", tracing.runs_on_fake_tensors),
)
"""What runs in one process, in the order of the columns; :data:`distributed.CHECKS` follow."""


def surroundings_matrix(
    table: Sequence[Layer] | None = None, checks: Iterable[Check] = CHECKS, *, two_processes: bool = True
) -> Matrix:
    """Hold every layer of ours to torch's in all surroundings, those of two processes included if asked.

    Args:
        table: the layers; by default every one of ours. Those of two processes are of the default table always.
    """
    outcomes: list[Outcome] = [run(check, layer) for layer in layers(table) for check in checks]
    if two_processes:
        outcomes += distributed.run_in_two_processes()
    return Matrix(tuple(outcomes))
