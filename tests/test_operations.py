"""Every torch function that the table maps to rules gives torch's values and gradients, out of rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torch_manualbp import functional
from torch_manualbp.catalogue import CATALOGUE, FAMILIES, Make, named
from torch_manualbp.derive.composites import REFUSED as WITHOUT_RULES
from torch_manualbp.derive.operations import IN_PLACE, OPERATIONS, NoRule, is_in_place
from torch_manualbp.derive.runner import is_continuous
from torch_manualbp.rules import ConnectionistTemporalClassification, Hardsigmoid, Rule
from torch_manualbp.verify.contract import EXACT, assert_same, upstream_for
from torch_manualbp.verify.outputs import outputs

make = Make()


def learns(*shape: int) -> Tensor:
    return make(*shape).requires_grad_()


x, y, positive = learns(3, 4), learns(3, 4), make.positive(3, 4).requires_grad_()
matrix, batch, vector, cube = learns(4, 2), learns(2, 4, 3), learns(4), learns(2, 3, 4)
s, target, classes = learns(5, 4), make(5, 4), make.indices(4, 5)
probabilities, signs = make.probabilities(5, 4, dim=1), 2.0 * make.indices(2, 5) - 1
rows = make.indices(3, 5)
images, kernels = learns(2, 2, 5, 4), learns(4, 2, 3, 2)
states = learns(1, 3, 3)
images, kernels, volumes = learns(2, 2, 5, 4), learns(4, 2, 3, 2), learns(1, 2, 3, 4, 3)
square, vectors, places = learns(4, 4), learns(5, 3), torch.tensor([[1, 0], [2, 3], [0, 1]])


NO_BIASES = (None, None, False)


class With(dict[str, Any]):
    """The keyword arguments of a call."""


CALLS: dict[str, Sequence[tuple[Any, ...]]] = {
    # arithmetic
    "add __add__": [(x, y), (x, 2), (x, vector), (x, y, With(alpha=3))],
    "sub subtract __sub__": [(x, y), (x, 1), (x, y, With(alpha=0.5))],
    "rsub __rsub__": [(x, 1), (x, y)],
    "mul multiply __mul__": [(x, y), (x, -2), (x, vector)],
    "div divide true_divide __div__ __truediv__": [(x, positive), (x, 3)],
    "__rdiv__": [(positive, 2)],
    "neg negative square positive abs absolute exp exp2 expm1": [(x,)],
    "log log2 log10 log1p reciprocal rsqrt sqrt": [(positive,)],
    "pow": [(x, 2), (positive, -1.5), (positive, y), (positive, vector)],
    "__rpow__": [(x, 2), (y, positive)],
    "sin cos sinh cosh erf erfc i0 asinh arcsinh atan arctan": [(x,)],
    "tan asin arcsin acos arccos atanh arctanh erfinv": [(probabilities.detach().requires_grad_(),)],
    "lgamma digamma": [(positive,)],
    "acosh arccosh": [((1 + positive).detach().requires_grad_(),)],
    "atan2 arctan2 hypot logaddexp logaddexp2": [(x, y), (x, vector)],
    "xlogy": [(x, positive)],
    "real conj conj_physical resolve_conj resolve_neg": [(x,)],
    # choices
    "where": [(x > 0, x, y), (x > 0, x, 2.0)],
    "Tensor.where": [(x, x > 0, y), (x, x > 0, 2.0)],
    "masked_fill": [(x, x.detach() > 0, -2.0), (x, make(4) > 0, learns())],
    "clamp clip": [(x, -0.5, 0.5), (x, With(min=0)), (x, With(max=vector)), (x, y, positive)],
    "maximum minimum": [(x, y), (x, vector)],
    "addcmul addcdiv": [(x, y, positive), (x, y, positive, With(value=0.5))],
    "lerp": [(x, y, 0.3), (x, y, positive)],
    "clamp_min clamp_max": [(x, 0.1), (x, vector)],
    "fmax fmin": [(x, y)],
    "frac nan_to_num deg2rad rad2deg": [(x,)],
    "float_power": [(positive, 1.5), (positive, y)],
    "ldexp": [(x, torch.tensor(3))],
    "logit": [(probabilities.detach().requires_grad_(),), (probabilities.detach().requires_grad_(), 0.2)],
    # products
    "matmul __matmul__": [
        (x, matrix),
        (cube, matrix),
        (batch, x),
        (x, vector),
        (cube, vector),
        (vector, cube.mT),
        (vector, vector),
    ],
    "__rmatmul__": [(matrix, x)],
    "mm": [(x, matrix)],
    "bmm": [(batch, cube)],
    "mv": [(x, vector)],
    "dot": [(vector, vector)],
    "addmm": [(learns(3, 2), x, matrix), (vector[:2].detach(), x, matrix, With(beta=0.5, alpha=2))],
    "addmv": [(learns(3), x, vector), (make(3), x, vector, With(beta=0, alpha=2))],
    "addr": [(x, learns(3), vector)],
    "baddbmm": [(learns(2, 4, 4), batch, cube, With(alpha=0.5)), (learns(4), batch, cube)],
    "addbmm": [(square, batch, cube, With(alpha=0.5))],
    "outer ger": [(vector, learns(3))],
    "inner": [(x, vector), (x, y)],
    "vdot": [(vector, learns(4))],
    "linalg_vecdot": [(x, y), (x, y, With(dim=0))],
    "tensordot": [(cube, x, 2), (cube, x, With(dims=([2, 1], [1, 0]))), (x, y, 0)],
    "kron": [(x, matrix), (vector, x)],
    "cross linalg_cross": [(vectors, learns(5, 3), With(dim=1)), (learns(3, 4), learns(3, 1), With(dim=0))],
    "linalg_multi_dot": [((x, matrix, matrix.mT),)],
    "chain_matmul": [(x, matrix, matrix.mT)],
    "matrix_power linalg_matrix_power": [(square, 1), (square, 3)],
    "einsum": [
        ("ij,jk->ik", x, matrix),
        ("bij,bjk", batch, cube),
        ("...i,ji->j...", cube, matrix.mT.detach().requires_grad_()),
        ("ii->i", square),
        ("ii", square),
        ("ij,ij,j->i", x, y, vector),
        ("ij->", x),
        ("ij->ji", x),
        ("ij,kj->ik", x, learns(2, 1)),
        ("i,i", vector, vector),
        ("bhqd,bhkd->bhqk", learns(1, 2, 3, 4), learns(2, 2, 5, 4)),
    ],
    # shapes
    "repeat tile": [(x, (2, 1)), (x, (2, 1, 3)), (vector, (0,))],
    "repeat_interleave": [(x, 2), (x, 3, 1), (x, torch.tensor([1, 0, 2]), 0, With(output_size=3))],
    "broadcast_tensors": [(x, vector)],
    "meshgrid": [(vector, learns(3), With(indexing="ij")), (vector, learns(3), With(indexing="xy"))],
    "flip": [(cube, (0, -1))],
    "fliplr flipud": [(x,)],
    "rot90": [(x,), (x, 2), (cube, -1, (1, 2)), (x, 4)],
    "roll": [(x, 2), (x, 1, 0), (cube, (1, -1), (0, 2))],
    "unfold": [(x, 1, 2, 1), (cube, 1, 3, 2)],
    "tril triu": [(x,), (cube, 1)],
    "diag": [(vector,), (square, 1)],
    "diagflat": [(x, 1)],
    "diagonal": [(square,), (cube, 1, -1, 0)],
    "linalg_diagonal": [(cube,), (cube, With(offset=1))],
    "diag_embed": [(x,), (x, 1, 0, -1)],
    "adjoint": [(cube,)],
    "hstack vstack row_stack dstack column_stack": [((x, y),), ((vector, vector),)],
    "block_diag": [(x, matrix, vector)],
    "tensor_split": [(x, 2), (x, [1, 3], 1)],
    "reshape": [(x, (2, -1)), (matrix.mT, (-1,))],
    "view": [(x, (2, -1))],
    "view_as reshape_as": [(x, make(4, 3))],
    "flatten": [(cube,), (cube, 1), (make(),)],
    "ravel": [(x,)],
    "unflatten": [(x, 1, (2, 2))],
    "squeeze": [(learns(1, 4, 1),), (learns(1, 4, 1), 0), (learns(1, 4, 1), (0, 2)), (x, 0)],
    "unsqueeze": [(x, -1), (x, 0)],
    "transpose swapaxes swapdims": [(cube, 0, -1)],
    "t": [(x,), (vector,)],
    "T": [(x,)],
    "mH": [(cube,)],
    "mT": [(cube,)],
    "permute": [(cube, (1, 0, -1))],
    "movedim moveaxis": [(cube, 0, -1), (cube, (0, 1), (1, 2))],
    "expand": [(vector, (3, 4)), (learns(3, 1), (-1, 4))],
    "broadcast_to": [(vector, (3, 4))],
    "expand_as": [(vector, make(3, 4))],
    "contiguous": [(x,), (x.mT,)],
    "clone": [(x,)],
    # several tensors, and parts
    "cat concat concatenate": [((x, y),), ([x, cube[0]], -1), ((x, y), With(axis=1))],
    "stack": [((x, y),), ([x, y], -1)],
    "split": [(x, 2), (x, [1, 3], 1)],
    "split_with_sizes": [(x, [1, 3], 1)],
    "chunk": [(x, 2), (x, 3, -1), (learns(0, 4), 2)],
    "unbind": [(x,), (x, 1)],
    "select": [(x, 1, -2)],
    "narrow": [(x, 1, -3, 2)],
    "index_select": [(x, 0, rows), (x, -1, rows)],
    "__getitem__": [
        (x, 0),
        (x, None),
        (x, (..., 0)),
        (x, (slice(1, None), slice(None, None, 2))),
        (x, rows),
        (x, [2, 0]),
        (x, (slice(None), rows)),
        (x, (..., rows)),
        (x, (rows, make.indices(4, 2, 1))),
        (x, (None, rows, slice(1, 3))),
        (cube, (1, slice(None), rows)),
        (cube, (make.indices(2, 5), slice(None), rows)),
        (cube, (slice(0, 1), rows, None, rows)),
        (cube, torch.tensor(1)),
        (cube, (slice(None), torch.tensor(-1), slice(1, 3))),
        (cube, (torch.tensor(1), slice(None), rows)),
    ],
    "gather": [(x, 1, places)],
    "_pack_padded_sequence": [(cube, torch.tensor([2, 2, 1]), False), (cube, torch.tensor([3, 1]), True)],
    "_pad_packed_sequence": [(matrix, torch.tensor([1] * len(matrix)), True, 0.5, 6)],
    "as_strided": [(matrix, (2, 3), (2, 1)), (cube.transpose(0, 2), [2, 2], [4, 1])],
    "norm_except_dim": [(cube, 2, 0), (cube, 2, 1), (cube, 2, -1), (vector, 2, 0)],
    "_weight_norm": [(matrix, learns(4, 1)), (cube, learns(1, 3, 1), 1), (matrix, learns(), -1)],
    "take": [(x, torch.tensor([[3, 0], [7, 3]]))],
    "take_along_dim": [(x, places, 1), (x, places[:1], 1), (x, places)],
    "scatter": [(x, 1, places, learns(3, 2)), (x, 1, places, 2.0), (x, 1, places, With(value=0.5))],
    "scatter_add": [(x, 1, places, learns(3, 2))],
    "scatter_reduce": [
        (x, 1, places, learns(3, 2), reduce, With(include_self=include))
        for reduce in ("sum", "mean", "amax", "amin")
        for include in (True, False)
    ],
    "index_add": [(x, 0, rows, learns(5, 4)), (x, 1, places[0], learns(3, 2), With(alpha=2))],
    "index_copy": [(x, 1, places[0], learns(3, 2))],
    "index_fill": [(x, 1, places[0], 2.0), (x, 1, places[0], learns())],
    "index_put": [(x, (places[0],), vector), (x, (rows, rows), learns(5), True)],
    "select_scatter": [(x, vector, 0, 1)],
    "slice_scatter": [(x, learns(2, 4), 0, 1)],
    "diagonal_scatter": [(square, vector), (x, learns(3), 1)],
    # order
    "max min": [(x,), (x, 1), (x, 0, True), (x, y)],
    "amax amin": [(x,), (cube, (0, -1), True), (torch.tensor([[1.0, 2, 2]]).double().requires_grad_(), 1)],
    "aminmax": [(x,), (x, With(dim=1))],
    "median nanmedian mode cummax cummin": [(x, 1)],
    "kthvalue topk": [(x, 2), (x, 2, 0)],
    "sort": [(x,), (x, 0, True), (x, With(dim=0, descending=True))],
    "msort": [(x,)],
    "gumbel_softmax": [(x, 1.0), (x, 0.5, True), (cube, 1.0, False, 1e-10, 1)],
    "logsumexp": [(x, 1), (cube, (0, 2), True)],
    # running sums
    "cumsum cumprod": [(x, 1), (x, 0, With(dtype=torch.float32))],
    "logcumsumexp": [(x, 1)],
    "diff": [(x,), (x, 2, 0), (x, With(dim=0, append=y[:1].detach()))],
    "trapezoid trapz": [(x,), (x, With(dx=2, dim=0)), (x, vector)],
    # moments and norms
    "prod": [(x,), (x, 1), (x, -1, True)],
    "nansum nanmean": [(x,), (x, 1)],
    "trace": [(x,)],
    "var std var_mean std_mean": [(x,), (x, 1), (x, False), (x, (0, 1), True, True), (x, 0, With(correction=0))],
    "norm": [(x,), (x, 1), (x, 2, 0), (x, float("inf"), 1, True), (x, "fro", (0, 1))],
    "linalg_vector_norm": [(x,), (x, 3, 1), (cube, 1, (0, 1), True)],
    "linalg_norm": [(x,), (x, 1), (x, 3, 1), (x, With(dim=1))],
    "linalg_matrix_norm": [(x,), (cube, 1), (cube, -float("inf"), (0, 1), True)],
    "dist": [(x, y), (x, y, 1)],
    "cdist": [(x, learns(2, 4)), (x, learns(2, 4), 1.0)],
    # sums
    "sum mean": [
        (x,),
        (x, 0),
        (cube, (0, -1), True),
        (x, ()),
        (learns(), -1),
        (x, With(axis=1, keepdims=True)),
        (x, With(dtype=torch.float32)),
    ],
    # dropout
    "dropout alpha_dropout": [(x, 0.3, True), (x.mT, 0.5, True), (x, 0.5, False), (x, 0.0, True), (x, 1.0, True)],
    "feature_dropout feature_alpha_dropout": [(cube, 0.3, True), (images, 0.5, True), (cube, 0.5, False)],
    "dropout1d": [(x, 0.5), (cube, 0.3), (cube, 0.3, False)],
    "dropout2d": [(cube, 0.3), (images, 0.5), (images, 1.0)],
    "dropout3d": [(images, 0.3), (learns(2, 3, 2, 2, 2), 0.5)],
    # dtypes
    "float double half bfloat16": [(x,)],
    "to": [(x, torch.float32), (x, With(dtype=torch.float16)), (x, rows.float()), (x, "cpu"), (x, With(copy=True))],
    "type": [(x, torch.float32), (x, "torch.FloatTensor")],
    "sum_to_size": [(x, (1, x.shape[-1])), (cube, cube.shape[1:])],
    "type_as": [(x, make(3).float())],
    # layers
    "linear": [(x, learns(2, 4), learns(2))],
    "pad": [
        (x, (1, 2)),
        (x, [1, -1, 0, 1], "constant", 0.5),
        (images, (1, 2, 0, 1), "reflect"),
        (images, (1, -1, 0, 1), "replicate"),
        (cube, (1, 2), With(mode="circular")),
    ],
    "avg_pool1d": [(cube, 2), (x, 3, With(stride=1, padding=1, count_include_pad=False))],
    "avg_pool2d": [(images, 2), (images, (2, 3), 1, With(divisor_override=3)), (images, 3, 2, 1, True, False)],
    "avg_pool3d": [(volumes, 2)],
    "max_pool1d max_pool1d_with_indices": [(cube, 2), (x, 2, 1, With(return_indices=True))],
    "max_pool2d max_pool2d_with_indices": [
        (images, 2),
        (images, (2, 3), [], 1, With(ceil_mode=True)),
        (images, 2, 1, 0, 2),
        (images, 2, With(return_indices=True)),
    ],
    "max_pool3d max_pool3d_with_indices": [(volumes, 2)],
    "adaptive_avg_pool1d adaptive_max_pool1d adaptive_max_pool1d_with_indices": [(cube, 2), (x, 1)],
    "adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool2d_with_indices": [(images, 2), (images, (None, 3))],
    "adaptive_avg_pool3d adaptive_max_pool3d adaptive_max_pool3d_with_indices": [(volumes, (1, 2, None))],
    "fractional_max_pool2d fractional_max_pool2d_with_indices": [
        (images, 2, 3, With(_random_samples=make.positive(2, 2, 2) - 0.5)),
        (
            images,
            (2, 3),
            With(output_ratio=(0.5, 0.6), return_indices=True, _random_samples=make.positive(2, 2, 2) - 0.5),
        ),
    ],
    "fractional_max_pool3d fractional_max_pool3d_with_indices": [
        (volumes, 2, (1, 2, 1), With(_random_samples=make.positive(1, 2, 3) - 0.5))
    ],
    "lp_pool1d": [(cube, 2, 2), (positive[None], 3.5, 3, 1, True)],
    "lp_pool2d": [(images, 2, (2, 3), 1, True), (images, float("inf"), 2), (images, -float("inf"), 2, 1)],
    "lp_pool3d": [(volumes, 4.0, 2)],
    "max_unpool1d": [(vector[None, None], make.indices(1, 1, 1, 4) + torch.arange(0, 8, 2), 2)],
    "max_unpool2d": [(batch[None], torch.arange(12).view(1, 1, 4, 3).expand(1, 2, 4, 3), 2)],
    "max_unpool3d": [(batch[None], torch.arange(24).view(1, 2, 4, 3), 2)],
    "interpolate": [
        (images, With(scale_factor=2)),
        (images, (7, 3), With(mode="nearest-exact")),
        (images, 3, None, "bilinear", True),
        (images, With(scale_factor=(1.5, 2.5), mode="bicubic", recompute_scale_factor=True)),
        (images, With(size=(2, 3), mode="area")),
    ],
    "pixel_shuffle channel_shuffle": [(learns(2, 4, 3, 2), 2)],
    "pixel_unshuffle": [(learns(2, 1, 4, 6), 2)],
    "F.unfold": [(images, (2, 3), 1, 1, 2)],
    "fold": [(learns(1, 8, 4), 4, 2, With(stride=2))],
    "conv1d": [(learns(2, 3, 5), learns(4, 3, 2), learns(4)), (learns(3, 5), learns(4, 3, 2), None, [2], 1)],
    "conv2d": [
        (images, kernels, learns(4)),
        (images, kernels, None, (2, 1), (1, 0), 2),
        (images, learns(4, 1, 3, 3), With(groups=2, padding="same")),
    ],
    "conv3d": [(learns(1, 2, 3, 4, 3), learns(2, 2, 2, 2, 2), With(padding="valid"))],
    "conv_transpose1d": [(learns(2, 3, 5), learns(3, 4, 2), learns(4), 2)],
    "conv_transpose2d": [(images, learns(2, 3, 3, 2), learns(3), 2, 1, (1, 0)), (images[0], learns(2, 3, 2, 2))],
    "conv_transpose3d": [(learns(1, 2, 3, 2, 2), learns(2, 2, 2, 2, 2), With(groups=2, dilation=2))],
    "bilinear": [(x, y, learns(2, 4, 4), learns(2))],
    "log_sigmoid identity": [(x,)],
    "embedding": [
        (rows, x),
        (make.indices(3, 2, 5), x, With(padding_idx=-1)),
        (rows, x, With(scale_grad_by_freq=True)),
    ],
    "multi_head_attention_forward": [
        (
            cube,
            cube,
            cube,
            4,
            2,
            learns(12, 4),
            learns(12),
            *NO_BIASES,
            0.2,
            learns(4, 4),
            learns(4),
            With(average_attn_weights=False),
        ),
        (
            cube,
            batch.mT,
            batch.mT,
            4,
            2,
            learns(12, 4),
            None,
            *NO_BIASES,
            0.0,
            learns(4, 4),
            None,
            With(average_attn_weights=False),
        ),
    ],
    "scaled_dot_product_attention": [
        (cube, learns(2, 5, 4), learns(2, 5, 3)),
        (learns(2, 3, 4), learns(2, 5, 4), learns(2, 5, 4), learns(3, 5), 0.3),
        (cube, cube, cube, None, 0.0, True, With(scale=0.5)),
    ],
    "embedding_bag": [
        (make.indices(3, 2, 5), x),
        (rows, x, torch.tensor([0, 2, 2]), With(mode="sum", per_sample_weights=learns(5))),
        (rows, x, torch.tensor([0, 2, 5]), With(mode="max", include_last_offset=True, padding_idx=0)),
    ],
    "threshold _threshold": [(x, 0.1, 0.2)],
    "prelu": [(x, learns(1))],
    "rrelu": [(x,), (x, 0.1, 0.3, True)],
    "glu": [(x,)],
    "softmax log_softmax softmin": [(x, -1), (x, 0), (x, With(dim=0, dtype=torch.float32))],
    # normalisations
    "batch_norm": [
        (x, None, None, vector, learns(4), True),
        (x, make(4), make.positive(4), None, None, True, 0.3),
        (x, make(4), make.positive(4), vector, None, False, 0.1, 0.1),
    ],
    "cosine_similarity": [(x, y), (x, y, 0), (x, vector)],
    "local_response_norm": [(cube, 2), (learns(2, 4, 2, 2), 3, 0.5)],
    "normalize": [(x,), (x, 3.0, 0), (cube, 2.0, (0, 2))],
    "pairwise_distance": [(x, y), (x, y, 1.0), (x, vector, With(keepdim=True))],
    "pdist": [(x,), (x, 1.0)],
    "group_norm": [(x, 1, vector, learns(4)), (learns(2, 4, 3), 2)],
    "instance_norm": [
        (cube, None, None, learns(3), learns(3)),
        (cube, make(3), make.positive(3), With(momentum=0.3)),
        (cube, make(3), make.positive(3), With(use_input_stats=False)),
    ],
    "layer_norm": [(x, (4,)), (x, (3, 4), y, learns(3, 4), 0.1), (x, (4,), vector)],
    "rms_norm": [(x, (4,)), (x, (3, 4), y, 0.1), (x, [4], vector)],
    # recurrence
    "lstm": [
        (cube, (states, states), [learns(12, 4), learns(12, 3), learns(12), learns(12)], True, 1, 0.0, *[False] * 3),
        (
            x,
            torch.tensor([2, 1]),
            (learns(1, 2, 3), learns(1, 2, 3)),
            [learns(12, 4), learns(12, 3)],
            False,
            1,
            0.0,
            False,
            False,
        ),
    ],
    "gru": [(cube, learns(2, 2, 3), [learns(9, 4), learns(9, 3)] * 2, False, 1, 0.0, False, True, True)],
    "rnn_tanh rnn_relu": [(cube, states, [learns(3, 4), learns(3, 3)], False, 1, 0.0, *[False] * 3)],
    "lstm_cell": [(x, (learns(3, 2), learns(3, 2)), learns(8, 4), learns(8, 2), learns(8), learns(8))],
    "gru_cell": [(x, learns(3, 2), learns(6, 4), learns(6, 2), learns(6), learns(6))],
    "rnn_tanh_cell rnn_relu_cell": [(x, learns(3, 2), learns(2, 4), learns(2, 2), learns(2), learns(2))],
    # losses
    "l1_loss smooth_l1_loss huber_loss mse_loss": [(s, target), (s, target, With(reduction="sum"))],
    "cross_entropy": [(s, classes), (s, probabilities)],
    "grid_sample": [(images, (make.positive(2, 3, 2, 2) - 1).requires_grad_(), "bicubic", "border", False)],
    "affine_grid": [(learns(2, 2, 3), (2, 1, 3, 4), False)],
    "upsample upsample_nearest upsample_bilinear": [(images, With(scale_factor=2))],
    "linear_cross_entropy": [(s, learns(3, 4), rows), (vectors, learns(4, 3), probabilities)],
    "nll_loss multi_margin_loss": [(s, classes)],
    "ctc_loss": [
        (cube, torch.tensor([[1], [2], [1]]), torch.tensor([2, 2, 1]), torch.tensor([1, 1, 1]), 0, "sum", False)
    ],
    "kl_div": [(s, probabilities, With(reduction="batchmean"))],
    "gaussian_nll_loss": [(s, target, make.positive(5, 4).requires_grad_()), (s, target, learns(5).detach().exp())],
    "poisson_nll_loss": [(s, target.exp())],
    "binary_cross_entropy": [(s.detach().sigmoid().requires_grad_(), probabilities)],
    "binary_cross_entropy_with_logits multilabel_soft_margin_loss": [(s, (probabilities > 0.3).double())],
    "hinge_embedding_loss soft_margin_loss": [(learns(5), signs)],
    "margin_ranking_loss": [(learns(5), learns(5), signs)],
    "cosine_embedding_loss": [(s, learns(5, 4), signs)],
    "multilabel_margin_loss": [(s, torch.tensor([[0, 2, -1, 1]] * 5))],
    "triplet_margin_loss triplet_margin_with_distance_loss": [(s, learns(5, 4), learns(5, 4))],
}
"""Arguments for the functions of each name; other activations take one tensor."""

ACTIVATIONS = " ".join(row.functions for row in FAMILIES["activations"]).split()
OF_NAME: dict[str, Sequence[tuple[Any, ...]]] = {name: [(x,)] for name in ACTIVATIONS}
OF_NAME |= {name: calls for names, calls in CALLS.items() for name in names.split()}
NEVER = {name.removeprefix("special.").replace(".", "_") for name in " ".join(WITHOUT_RULES).split()} | {
    "masked_scatter"
}
"""What stands in the table for the sake of what it says."""

AUGMENTED = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__idiv__": "div", "__ipow__": "pow"}


def name_of(function: Any) -> str:
    """``T`` of ``Tensor.T.__get__``, ``add`` of ``Tensor.__radd__``, else its name."""
    if function is Tensor.where:  # whose first argument is another one
        return "Tensor.where"
    if function in (F.unfold, functional.unfold):  # which is none of Tensor.unfold
        return "F.unfold"
    name: str = function.__self__.__name__ if function.__name__ == "__get__" else function.__name__
    return {"__radd__": "add", "__rmul__": "mul"}.get(name, name).removeprefix("special_")


def title(function: Any) -> str:
    return f"{getattr(function, '__module__', None) or 'torch'}.{getattr(function, '__qualname__', function)}"


def fresh(value: Any) -> Any:
    """Leaves with the same numbers and strides."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return type(value)(map(fresh, value)) if isinstance(value, tuple | list) and value else value


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors_in(v)]
    return [value] if isinstance(value, Tensor) else []


def run(function: Callable[..., Any], call: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], list[Any], list[Tensor]]:
    """The results of a call, the gradients of its arguments, and these; from the same random state every time."""
    kwargs = call[-1] if isinstance(call[-1], With) else {}
    args = fresh(call[: len(call) - bool(kwargs)])
    learning = [t for t in tensors_in(args) if t.requires_grad]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torch's own, of deprecated ways
        torch.manual_seed(0)
        results = outputs(function(*args, **kwargs))
    differentiable = [r for r in results if r.requires_grad]
    if not learning or not differentiable:
        return results, [], learning
    upstream = [upstream_for(r) for r in differentiable]
    return results, list(torch.autograd.grad(differentiable, learning, upstream, allow_unused=True)), learning


def test_every_function_of_the_table_is_called() -> None:
    assert {name_of(f) for f in OPERATIONS} == {*OF_NAME, *NEVER}
    assert {plain_name(f) for f in IN_PLACE} <= {*OF_NAME, *NEVER, "__setitem_", "zero"}


def torchs(function: Any) -> Callable[..., Any]:
    """The function of torch that this one is, or stands for."""
    # The gradient of torch's hardsigmoid has 1/6 in float32 even for float64; that of its ctc_loss is another.
    others = {"hardsigmoid": Hardsigmoid, "ctc_loss": ConnectionistTemporalClassification}
    if function.__name__ in others:
        (entry,) = (e for e in CATALOGUE if e.rule is others[function.__name__])
        return entry.twin
    is_ours = function in [getattr(functional, name) for name in functional.__all__]
    if not is_ours:
        return function
    theirs: Callable[..., Any] = next(iter(named(function.__name__, F, torch)), Tensor.clone)  # that of identity
    return theirs


class ByRules(TorchFunctionMode):
    """Has rules compute what learns of the calls that an operation is made of, as a tape does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        learns = any(t.requires_grad for t in tensors_in([*args, *kwargs.values()]))
        by_rules = getattr(func, "__wrapped__", None) if func in OURS else OPERATIONS.get(func)
        if by_rules is None or not learns or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        with self:
            return by_rules(*args, **kwargs)


OURS = [getattr(functional, name) for name in functional.__all__]


@pytest.mark.parametrize("function", [f for f in OPERATIONS if name_of(f) not in NEVER], ids=title)
def test_gives_what_torch_gives(function: Any) -> None:
    for call in OF_NAME[name_of(function)]:
        with ByRules():
            results, gradients, learning = run(OPERATIONS[function], call)
        expected, references, _ = run(torchs(function), call)
        tolerance = max(EXACT, *[8 * torch.finfo(r.dtype).eps for r in expected if is_continuous(r)])
        for result, reference in zip(results, expected, strict=True):
            assert_same(result, reference, f"{call}", tolerance)
        for gradient, reference in zip(gradients, references, strict=True):
            assert (gradient is None) == (reference is None)
            if reference is not None:
                assert_same(gradient, reference, f"gradient of {call}", tolerance)
        if name_of(function) in ("lstm", "gru", "rnn_tanh", "rnn_relu"):  # which join what their rules return
            continue
        of_rules = [r for r in results if r.grad_fn is not None]
        assert len(of_rules) == sum(map(is_continuous, results)) or not learning or results[0] is learning[0]
        assert all(issubclass(getattr(r.grad_fn, "_forward_cls", Tensor), Rule) for r in of_rules)


def plain_name(function: Any) -> str:
    """``relu`` of ``relu_``, ``add`` of ``__iadd__``."""
    return AUGMENTED.get(function.__name__, function.__name__.removesuffix("_"))


@pytest.mark.parametrize(
    "function", [f for f in IN_PLACE if plain_name(f) not in (*NEVER, "__setitem_", "zero")], ids=title
)
def test_in_place_gives_what_torch_writes(function: Any) -> None:
    call = OF_NAME[plain_name(function)][0]
    written = call[0].detach().clone()
    torch.manual_seed(0)
    given = call[-1] if isinstance(call[-1], With) else {}
    function(written, *(t.detach() if isinstance(t, Tensor) else t for t in call[1 : len(call) - bool(given)]), **given)
    before = call[0].detach().clone()
    torch.manual_seed(0)
    with ByRules():
        result = IN_PLACE[function](*call[: len(call) - bool(given)], **given)
    assert_same(result.detach(), written, "what is written")
    assert torch.equal(call[0], before)
    assert is_in_place(function, call, {})


def test_in_place_by_an_argument() -> None:
    for function in (F.relu, F.dropout, F.leaky_relu, F.rrelu, F.threshold, functional.relu):
        before = x.detach().clone()
        args = (x, 0.1, 0.2) if function is F.threshold else (x,)
        assert is_in_place(function, args, {"inplace": True})
        assert not is_in_place(function, args, {})
        OPERATIONS[function](*args, inplace=True)
        assert torch.equal(x, before)
    assert is_in_place(F.relu, (x, True), {})
    assert not is_in_place(torch.add, (x, y), {})
    assert not is_in_place(torch.fft.fft, (x,), {})


EXPRESSIONS: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "x + y": lambda x, y: x + y,
    "2 + x": lambda x, y: 2 + x,
    "x - 1": lambda x, y: x - 1,
    "1 - x": lambda x, y: 1 - x,
    "2 * x": lambda x, y: 2 * x,
    "x / 3": lambda x, y: x / 3,
    "1 / x": lambda x, y: 1 / x,
    "-x": lambda x, y: -x,
    "x ** 2": lambda x, y: x**2,
    "x @ y.T": lambda x, y: x @ y.T,
    "x.mT": lambda x, y: x.mT,
    "x[..., 0]": lambda x, y: x[..., 0],
    "x[:, rows]": lambda x, y: x[:, rows],
    "sum([x, y])": lambda x, y: sum([x, y]),
    "a, b, c = x": lambda x, y: tuple(x),
    "torch.cat((x, y), 1)": lambda x, y: torch.cat((x, y), 1),
    "torch.stack([x, y])": lambda x, y: torch.stack([x, y]),
    "x.view(2, 6)": lambda x, y: x.view(2, 6),
    "x.expand(2, 3, 4)": lambda x, y: x.expand(2, 3, 4),
    "x.permute(1, 0)": lambda x, y: x.permute(1, 0),
    "x.split(2)": lambda x, y: x.split(2),
    "torch.split(x, [1, 2])": lambda x, y: torch.split(x, [1, 2]),
    "x.chunk(2, dim=1)": lambda x, y: x.chunk(2, dim=1),
    "x.mean(dim=(0, 1))": lambda x, y: x.mean(dim=(0, 1)),
    "x.float()": lambda x, y: x.float(),
    "Flatten": lambda x, y: nn.Flatten()(x),
    "Unflatten": lambda x, y: nn.Unflatten(1, (2, 2))(x),
    "Dropout": lambda x, y: nn.Dropout(0.3)(x),
    "Dropout in evaluation": lambda x, y: nn.Dropout(0.3).eval()(x),
    "ReLU": lambda x, y: nn.ReLU()(x),
    "GELU": lambda x, y: nn.GELU()(x),
    "Tanh": lambda x, y: nn.Tanh()(x),
    "Softmax": lambda x, y: nn.Softmax(-1)(x),
    "PReLU": lambda x, y: F.prelu(x, y[0, :1]),
    "LogSigmoid": lambda x, y: nn.LogSigmoid()(x),
    "CrossEntropyLoss": lambda x, y: nn.CrossEntropyLoss()(x, y.detach().softmax(1)),
    "MSELoss": lambda x, y: nn.MSELoss()(x, y),
}

WITHOUT_NUMBERS = ("__len__", "dim", "detach")


class Mapped(TorchFunctionMode):
    """Calls what the table has for each function."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in OPERATIONS:
            assert func.__name__ in WITHOUT_NUMBERS, f"{title(func)} is not in the table"
            return func(*args, **(kwargs or {}))
        return OPERATIONS[func](*args, **(kwargs or {}))


@pytest.mark.parametrize("written", EXPRESSIONS)
def test_what_a_model_writes_is_in_the_table(written: str) -> None:
    def mapped(*args: Tensor) -> Any:
        with Mapped():
            return EXPRESSIONS[written](*args)

    ours, theirs = run(mapped, (x, y)), run(EXPRESSIONS[written], (x, y))
    for result, reference in zip(ours[0], theirs[0], strict=True):
        assert_same(result, reference, written)
    for gradient, reference in zip(ours[1], theirs[1], strict=True):
        assert (gradient is None) == (reference is None)
        if reference is not None:
            assert_same(gradient, reference, f"gradient of {written}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("function", [F.dropout, F.alpha_dropout, F.dropout1d, F.feature_alpha_dropout])
def test_dropout_draws_as_torch_does(function: Any, dtype: torch.dtype, p: float) -> None:
    for input in (make(7, 30).to(dtype), make(30, 7).to(dtype).mT, make(7, 30, 2).to(dtype)[..., 0]):
        results = []
        for dropout in (function, OPERATIONS[function]):
            torch.manual_seed(5)
            leaf = input.detach().requires_grad_()
            output = dropout(leaf, p, True)
            results.append((output, *torch.autograd.grad(output.sum(), leaf), torch.rand(1)))
        for theirs, ours in zip(*results, strict=True):
            assert torch.equal(theirs, ours)


REFUSED: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "rounding_mode='floor'": (torch.div, (x, y, With(rounding_mode="floor"))),
    "exponent 0": (torch.pow, (x, 0)),
    "view as another dtype": (Tensor.view, (x, torch.int64)),
    "an index of booleans": (Tensor.__getitem__, (x, x > 0)),
    "device='meta'": (Tensor.to, (x, "meta")),
    "l1_loss with weight": (F.l1_loss, (s, target, With(weight=target))),
    "mse_loss with weight": (F.mse_loss, (s, target, With(weight=target))),
    "huber_loss with weight": (F.huber_loss, (s, target, With(weight=target))),
    "kl_div with reduce": (F.kl_div, (s, probabilities, With(reduce=True))),
    "with distance_function": (F.triplet_margin_with_distance_loss, (s, s, s, With(distance_function=torch.dist))),
    "not contiguous": (F.rrelu, (x.mT, With(training=True))),
    "'out'": (torch.add, (x, y, With(out=torch.empty(3, 4)))),
    "'generator'": (torch.rrelu, (x, With(generator=torch.Generator()))),
}


@pytest.mark.parametrize("message", REFUSED)
def test_says_where_there_is_no_rule(message: str) -> None:
    function, call = REFUSED[message]
    with pytest.raises(NoRule, match=message):
        run(OPERATIONS[function], call)


def test_refuses_what_torch_refuses() -> None:
    for function, args in ((F.dropout, (x, 1.5)), (Tensor.t, (cube,)), (torch.reshape, (x, (5, -1)))):
        for f in (function, OPERATIONS[function]):
            with pytest.raises((ValueError, RuntimeError)):
                f(*args)
