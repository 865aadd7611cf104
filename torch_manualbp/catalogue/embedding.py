"""The rules of tables whose rows integers name, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.embedding import Embedding, EmbeddingBag, EmbeddingMax

__all__ = ["EMBEDDING"]


def _embedding(W: Tensor, i: Tensor, padding: int, by_frequency: bool) -> Tensor:
    return F.embedding(i, W, padding if 0 <= padding < W.shape[0] else None, scale_grad_by_freq=by_frequency)


def _embedding_by_products(W: Tensor, i: Tensor, padding: int, by_frequency: bool) -> Tensor:
    """torch's second derivative forgets how often a row is named, and its forward mode the padding, too."""
    flat = i.reshape(i.numel()).long()
    share = torch.ones_like(flat, dtype=W.dtype)
    if by_frequency:
        share = share / torch.bincount(flat, minlength=W.shape[0]).to(W.dtype)[flat]
    share = share.masked_fill(flat == padding, 0).unsqueeze(1)
    rows = F.one_hot(flat, W.shape[0]).to(W.dtype) @ W
    return (rows * share + (rows * (1 - share)).detach()).reshape(*i.shape, W.shape[1])


def _embedding_samples(make: Make) -> Iterator[Sample]:
    yield Sample("rows", (make(5, 4), make.indices(5, 6), -1, False))
    yield Sample("sequences", (make(5, 4), make.indices(5, 2, 3), -1, False))
    yield Sample("one", (make(5, 4), make.indices(5), -1, False))
    yield Sample("padding", (make(5, 4), make.indices(3, 2, 6), 1, False))
    yield Sample("by frequency", (make(5, 4), make.indices(3, 2, 6), -1, True))
    yield Sample("by frequency, padding", (make(5, 4), make.indices(3, 12), 2, True))
    yield Sample("of 32 bits", (make(5, 4), make.indices(5, 6).int(), 0, False))
    yield Sample("no rows", (make(5, 4), make.indices(5, 0), 0, True))


def _embedding_bag(
    W: Tensor,
    i: Tensor,
    begins: Tensor,
    r: Tensor | None,
    padding: int,
    by_frequency: bool,
    is_mean: bool,
    has_end: bool,
) -> Tensor:
    if not (begins.numel() and W.shape[0]):
        raise ValueError("torch's own backward crashes without a bag or a row")
    return F.embedding_bag(
        i,
        W,
        begins,
        scale_grad_by_freq=by_frequency,
        mode="mean" if is_mean else "sum",
        per_sample_weights=r,
        include_last_offset=has_end,
        padding_idx=padding if 0 <= padding < W.shape[0] else None,
    )


def _embedding_bag_by_products(
    W: Tensor,
    i: Tensor,
    begins: Tensor,
    r: Tensor | None,
    padding: int,
    by_frequency: bool,
    is_mean: bool,
    has_end: bool,
) -> Tensor:
    """torch has neither second derivatives nor forward mode here."""
    i = i.long()
    ends = torch.cat((begins[1:], torch.tensor([i.shape[0]]))) if not has_end else begins[1:]
    rows = _embedding_by_products(W, i, padding, by_frequency) * (i != padding).unsqueeze(1)
    rows = rows if r is None else rows * r.unsqueeze(1)
    bags = zip(begins.tolist(), ends.tolist(), strict=False)
    sizes = [(b, e, max(int((i[b:e] != padding).sum()), 1) if is_mean else 1) for b, e in bags]
    return torch.stack([rows[b:e].sum(0) / n for b, e, n in sizes])


def _embedding_bag_samples(make: Make) -> Iterator[Sample]:
    begins = torch.tensor([0, 2, 2, 5], device=make.device)
    ended = torch.tensor([0, 2, 2, 6], device=make.device)
    # Each row as often as others: otherwise torch divides by how often another is named.
    twice = torch.tensor([3, 0, 4, 3, 4, 0], device=make.device)
    for mode, is_mean in (("sum", False), ("mean", True)):
        yield Sample(mode, (make(5, 4), make.indices(5, 7), begins, None, -1, False, is_mean, False))
        yield Sample(f"{mode}, padding", (make(5, 4), make.indices(3, 7), begins, None, 1, False, is_mean, False))
        yield Sample(f"{mode}, by frequency", (make(5, 4), twice, begins, None, -1, True, is_mean, False))
        yield Sample(f"{mode}, with an end", (make(5, 4), make.indices(3, 6), ended, None, 0, False, is_mean, True))
    yield Sample("weighted", (make(5, 4), make.indices(5, 7), begins, make(7), -1, False, False, False))
    yield Sample("weighted, padding", (make(5, 4), make.indices(3, 7), begins, make(7), 1, False, False, False))
    yield Sample("weighted, with an end", (make(5, 4), make.indices(3, 6), ended, make(6), -1, False, False, True))


def _embedding_max(W: Tensor, k: Tensor) -> Tensor:
    return torch.where(k < 0, 0, W.gather(0, k.clamp(min=0)))


def _embedding_max_samples(make: Make) -> Iterator[Sample]:
    yield Sample("bags", (make(5, 4), make.indices(5, 3, 4)))
    yield Sample("an empty bag", (make(5, 4), make.indices(5, 3, 4) * torch.tensor([[1], [0], [1]]) - 1))


NOT_THE_JACOBIAN = "by convention the padding takes no gradient, and one by frequency is no derivative of the forward"
HELD_BACK = "padding", "by frequency", "by frequency, padding", "of 32 bits"
BY_FREQUENCY = "sum, by frequency", "mean, by frequency"

EMBEDDING: tuple[Operation, ...] = (
    Operation(
        Embedding,
        _embedding,
        _embedding_samples,
        functions="embedding",
        layers="Embedding",
        exempt={f"gradcheck, {sample}": NOT_THE_JACOBIAN for sample in HELD_BACK},
        twin_for_second=_embedding_by_products,
        cancels=True,
    ),
    Operation(
        EmbeddingBag,
        _embedding_bag,
        _embedding_bag_samples,
        functions="embedding_bag",
        layers="EmbeddingBag",
        exempt={f"gradcheck, {sample}": NOT_THE_JACOBIAN for sample in BY_FREQUENCY},
        twin_for_second=_embedding_bag_by_products,
        cancels=True,
    ),
    Operation(
        EmbeddingMax,
        _embedding_max,
        _embedding_max_samples,
        functions="embedding_bag",
        layers="EmbeddingBag",
        exempt={"changes in place, argument 1": "the twin keeps a copy of k without −1; ours keeps k itself"},
    ),
)
