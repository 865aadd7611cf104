"""Layers in their surroundings: what people do with a layer of ``torch.nn``, done with ours and held to torch's.

``LAYERS`` has every class of ``torch_manualbp.nn`` that is ours with its torch twin and the inputs of a call,
``CHECKS`` what runs in one process, in the order of the columns; those of ``distributed`` follow.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torch_manualbp.verify.check import Check
from torch_manualbp.verify.claims import memory, transforms
from torch_manualbp.verify.report import Row
from torch_manualbp.verify.surroundings import objects, tensors, tracing
from torch_manualbp.verify.surroundings.layers import LAYERS, Layer, compare, layers, ours, results

__all__ = ["CHECKS", "LAYERS", "Layer", "compare", "layers", "ours", "results"]


def lets_hooks_move_what_it_keeps(layer: Layer) -> Iterator[Row]:
    """Gradients are the same to the bit when saved-tensor hooks put the kept tensors elsewhere, and the hooks see no
    more bytes than with torch's layer."""
    yield from memory.hooks(layer)
    yield from memory.keeps_no_more_than_torch(layer, every_subset=False)


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
    *Check.each("autocast", transforms.autocast, {"bfloat16": torch.bfloat16, "float16": torch.float16}),
    Check("saved-tensor hooks", lets_hooks_move_what_it_keeps),
    Check("checkpoint", memory.checkpointing),
    Check("torch.compile(fullgraph=True)", tracing.compiles),
    Check("torch.export", tracing.exports),
    Check("torch.export, strict", tracing.exports_strictly),
    Check("torch.jit.trace", tracing.traces),
    Check("torch.fx.symbolic_trace", tracing.traces_symbolically),
    Check("meta device", transforms.runs_on_the_meta_device),
    Check("FakeTensorMode", transforms.runs_on_fake_tensors),
)
