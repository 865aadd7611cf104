"""The losses of margins and of distances, their torch twins and sample inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.loss.embedding import CosineEmbedding, TripletMargin, VectorNorm
from torch_manualbp.rules.loss.margin import MarginRanking, MultiLabelMargin, MultiLabelSoftMargin, MultiMargin

__all__ = ["MARGINS"]

REDUCTIONS = ("none", "sum", "mean")


def _reduced(C: Tensor, reduction: str) -> Tensor:
    return C if reduction == "none" else C.sum() if reduction == "sum" else C.mean()


def _vector_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), 2.0))
    yield Sample("p=1", (make(4), 1.0))
    yield Sample("p=3", (make(2, 3, 4), 3.0))
    yield Sample("p=1.5", (make(5, 4), 1.5))
    yield Sample("p=0.5", (make(5, 4), 0.5))
    yield Sample("p=∞", (make(5, 4), math.inf))
    yield Sample("empty batch", (make(0, 4), 2.0))


def _vector_norm(d: Tensor, p: float) -> Tensor:
    return torch.norm(d, p, -1)


def _signs(make: Make, *shape: int) -> Tensor:
    return (2 * make.indices(2, *shape) - 1).to(make.dtype)


def _ranking_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), _signs(make, 5, 4), 0.25, reduction))
    yield Sample("broadcast", (make(5, 1), _signs(make, 1, 4), 0.0, "mean"))
    yield Sample("targets of integers", (make(5), 2 * make.indices(2, 5) - 1, 0.25, "mean"))
    yield Sample("mean, empty batch", (make(0, 4), make(0, 4), 0.25, "mean"))


def _margin_ranking(d: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
    """What F.margin_ranking_loss makes of s₁ − s₂ = d."""
    return _reduced((-y * d + margin).clamp_min(0), reduction)


def _cosine_samples(make: Make) -> Iterator[Sample]:
    y = torch.tensor([1, -1, 1, -1, -1], device=make.device)
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), make(5, 4), y, 0.1, reduction))
    yield Sample("one pair", (make(4), make(4), y[1].clone(), -0.9, "mean"))
    yield Sample("broadcast", (make(5, 4), make(1, 4), y, -0.9, "none"))
    yield Sample("neither near nor far", (make(2, 4), make(2, 4), y[:2] * 2, 0.0, "sum"))
    yield Sample("mean, empty batch", (make(0, 4), make(0, 4), y[:0].clone(), 0.1, "mean"))


def _cosine_embedding(u: Tensor, v: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
    return F.cosine_embedding_loss(u, v, y, margin, reduction=reduction)


def _triplet_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make.positive(6), make.positive(6), None, 0.25, reduction))
        swap = make.positive(6), make.positive(6), make.positive(6), 0.25, reduction
        yield Sample(f"{reduction}, swap", swap)
    yield Sample("empty batch", (make.positive(0), make.positive(0), make.positive(0), 0.5, "sum"))


def _triplet_margin(D_pos: Tensor, D_neg: Tensor, D_swap: Tensor | None, margin: float, reduction: str) -> Tensor:
    """torch's loss of a distance function that hands out the distances which we have."""
    distances = iter((D_pos, D_neg, D_swap))

    def next_distance(_a: Tensor, _b: Tensor) -> Tensor:
        distance = next(distances)
        assert distance is not None
        return distance

    return F.triplet_margin_with_distance_loss(
        D_pos,
        D_pos,
        D_pos,
        distance_function=next_distance,
        margin=margin,
        swap=D_swap is not None,
        reduction=reduction,
    )


def _multi_margin_samples(make: Make) -> Iterator[Sample]:
    y = make.indices(4, 5)
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), y, 1, 1.0, None, reduction))
        yield Sample(f"{reduction}, p=2", (make(5, 4), y, 2, 0.5, make.positive(4), reduction))
    yield Sample("one sample", (make(4), make.indices(4), 1, 0.5, make.positive(4), "mean"))
    yield Sample("one sample, a target of one", (make(4), make.indices(4, 1), 2, 0.5, None, "none"))
    yield Sample("sum, empty batch", (make(0, 4), y[:0].clone(), 1, 1.0, None, "sum"))


def _multi_margin(s: Tensor, y: Tensor, p: int, margin: float, w: Tensor | None, reduction: str) -> Tensor:
    C = F.multi_margin_loss(s, y, p, margin, w, reduction=reduction)
    return C if s.numel() else _reduced(s.sum(-1), reduction)  # torch leaves the sum of nothing unwritten


def _multi_margin_by_pairs(s: Tensor, y: Tensor, p: int, margin: float, w: Tensor | None, reduction: str) -> Tensor:
    """torch's own function has no second derivative."""
    rows, classes = s.reshape(y.numel(), s.shape[-1]), y.reshape(y.numel(), 1)
    r = (margin - rows.gather(1, classes) + rows).clamp_min(0) ** p
    C = (r * (torch.arange(s.shape[-1]) != classes)).sum(1) / s.shape[-1]
    C = (C if w is None else C * w[classes[:, 0]]).reshape(y.shape)
    return _reduced(C, reduction)


def _multi_label_margin_samples(make: Make) -> Iterator[Sample]:
    # lists of none, one, two, one class twice, and all classes; what stands behind −1 does not count
    lists = [[-1, 2, 1, 0], [3, -1, 2, 2], [1, 0, -1, -1], [2, 2, -1, 0], [3, 1, 0, 2]]
    y = torch.tensor(lists, device=make.device)
    for reduction in REDUCTIONS:
        yield Sample(reduction, (make(5, 4), y, reduction))
    yield Sample("one sample", (make(4), y[2].clone(), "none"))
    many = torch.rand(3, 80, generator=torch.Generator().manual_seed(0)).argsort(1).to(make.device)
    many[:, 40] = -1
    yield Sample("long lists", (make(3, 80), many, "mean"))
    yield Sample("sum, empty batch", (make(0, 4), y[:0].clone(), "sum"))


def _multi_label_margin(s: Tensor, y: Tensor, reduction: str) -> Tensor:
    C = F.multilabel_margin_loss(s, y, reduction=reduction)
    return C if s.numel() else _reduced(s.sum(-1), reduction)  # torch leaves the sum of nothing unwritten


def _multi_label_margin_by_pairs(s: Tensor, y: Tensor, reduction: str) -> Tensor:
    """torch's own function has no second derivative."""
    costs = [s.sum() * 0]
    for scores, places in zip(s.reshape(-1, s.shape[-1]), y.reshape(-1, s.shape[-1]).tolist(), strict=True):
        labels = places[: places.index(-1)] if -1 in places else places
        others = [k for k in range(len(places)) if k not in labels]
        pairs = [(1 - scores[t] + scores[k]).clamp_min(0) for t in labels for k in others]
        costs.append(sum(pairs, start=scores[0] * 0) / len(places))
    C = torch.stack(costs)[1:].reshape(y.shape[:-1])
    return _reduced(C, reduction)


def _multi_label_soft_margin_samples(make: Make) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(reduction, (3 * make(5, 4), make.indices(2, 5, 4), None, reduction))
    yield Sample("weights", (make(2, 5, 4), make.probabilities(2, 5, 4, dim=-1), make.positive(4), "mean"))
    yield Sample("weight of each entry", (make(5, 4), make.probabilities(5, 4, dim=-1), make.positive(5, 4), "none"))
    yield Sample("one sample, broadcast", (make(4), make.probabilities(1, dim=-1), None, "none"))
    yield Sample("sum, empty batch", (make(0, 4), make(0, 4), None, "sum"))


def _multi_label_soft_margin(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
    return F.multilabel_soft_margin_loss(s, y, w, reduction=reduction)


MARGINS: tuple[Operation, ...] = (
    Operation(
        VectorNorm,
        _vector_norm,
        _vector_norm_samples,
        functions="pairwise_distance",
        layers="PairwiseDistance",
        complex=True,
    ),
    Operation(
        CosineEmbedding,
        _cosine_embedding,
        _cosine_samples,
        functions="cosine_embedding_loss",
        layers="CosineEmbeddingLoss",
        constants=frozenset({2}),
        cancels=True,
    ),
    Operation(
        MarginRanking,
        _margin_ranking,
        _ranking_samples,
        functions="margin_ranking_loss",
        layers="MarginRankingLoss",
    ),
    Operation(
        MultiLabelMargin,
        _multi_label_margin,
        _multi_label_margin_samples,
        functions="multilabel_margin_loss",
        layers="MultiLabelMarginLoss",
        twin_for_second=_multi_label_margin_by_pairs,
    ),
    Operation(
        MultiLabelSoftMargin,
        _multi_label_soft_margin,
        _multi_label_soft_margin_samples,
        functions="multilabel_soft_margin_loss",
        layers="MultiLabelSoftMarginLoss",
        exempt={
            "bytes kept, argument 2 alone": "for the class weights alone torch keeps the losses of the entries, no "
            "input; ours keeps s and y",
        },
    ),
    Operation(
        MultiMargin,
        _multi_margin,
        _multi_margin_samples,
        functions="multi_margin_loss",
        layers="MultiMarginLoss",
        constants=frozenset({4}),
        cancels=True,
        twin_for_second=_multi_margin_by_pairs,
    ),
    Operation(
        TripletMargin,
        _triplet_margin,
        _triplet_samples,
        functions="triplet_margin_loss triplet_margin_with_distance_loss",
        layers="TripletMarginLoss TripletMarginWithDistanceLoss",
        exempt={"channels last": "a distance of each pair is no image"},
    ),
)
