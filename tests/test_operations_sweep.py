"""Every differentiable entry of upstream's database is computed by rules as by autograd, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from swept import ENTRIES, outcome, samples, title

_HALVES_OF_LAYERS = """_softmax_backward_data native_group_norm native_layer_norm native_batch_norm
_native_batch_norm_legit _batch_norm_with_update constant_pad_nd _upsample_bilinear2d_aa native_dropout_backward
max_pool2d_with_indices_backward grid_sampler_2d grid_sampler_3d torch.ops.aten._safe_softmax.default"""
_COPIES_OF_COMPILERS = """expand_copy diagonal_copy alias_copy as_strided_copy view_copy permute_copy slice unbind_copy
split_with_sizes_copy unfold_copy squeeze_copy unsqueeze_copy transpose_copy t_copy _unsafe_masked_index
_unsafe_masked_index_put_accumulate"""
_OTHERS = "_segment_reduce sparse.sampled_addmm sparse.mm.reduce to_sparse normal bernoulli zero_ fill H lu __rmod__ to"
NOT_CALLED = {name for names in (_HALVES_OF_LAYERS, _COPIES_OF_COMPILERS, _OTHERS) for name in names.split()}
"""What a step refuses as it refuses any function without a rule."""

PLAIN = [op for op in ENTRIES if not op.name.startswith(("_refs", "nn.functional")) and op.name not in NOT_CALLED]


def outcomes(op: Any, number: int) -> set[str]:
    return {outcome(op, sample).partition(":")[0] for sample in samples(op, number)}


@pytest.mark.parametrize("op", PLAIN[::8], ids=title)
def test_computed_by_rules_or_refused(op: Any) -> None:
    assert outcomes(op, 2) <= {"equal", "refused", "torch raises"}


@pytest.mark.slow
@pytest.mark.parametrize("op", PLAIN, ids=title)
def test_all_samples_are_computed_by_rules_or_refused(op: Any) -> None:
    assert outcomes(op, 12) <= {"equal", "refused", "torch raises"}


def test_most_are_computed() -> None:
    found = [outcomes(op, 1) for op in PLAIN[1::8]]
    assert sum(kinds == {"equal"} for kinds in found) >= 0.5 * len(found)
