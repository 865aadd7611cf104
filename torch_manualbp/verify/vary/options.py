"""Other options than the ones given: flags, reductions, dimensions, tensors that may be absent, indices and masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torch_manualbp.verify.subject import Setting, is_number
from torch_manualbp.verify.vary.made import Varied, is_inverse_of_another, is_sorted, redrawn, replaced

__all__ = ["indices", "options"]

WORDS = (("mean", "sum", "none"), ("tanh", "none"), ("zeros", "border", "reflection"), ("nearest", "bilinear"))
"""Options of torch's that are one of a few words."""

IGNORED = -100
"""The index of no class, in torch's losses."""


def options(at: Setting) -> Iterator[Varied]:
    """One option other than given: a flag turned, another word, a number of 0 that is not 0 and one that is halved,
    another dimension or count, a tensor that is absent or, after the others, there."""
    names = at.subject.value_names
    first = next((at.values[i] for i in at.tensors() if at.values[i].dim()), None)
    ranks = max((at.values[i].dim() for i in at.tensors()), default=0)
    for i, value in enumerate(at.values):
        others: list[object] = []
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, str):
            words = next((words for words in WORDS if value in words), ())
            others = [word for word in words if word != value]
        elif isinstance(value, int) and value != IGNORED:
            others = [value + 1, value + 2]
            if value < 0:
                others += [0, 1, -2]
            elif value < ranks:  # it may be a dimension
                others += [value - 1, -1]
            elif value <= 8:
                others += [value - 1]
        elif isinstance(value, float):
            others = [value / 2] if value else [0.3, 2.0]
        elif isinstance(value, torch.Tensor) and i and (is_number(value) or value.dtype == torch.bool):
            others = [None]
        elif value is None and first is not None and i:
            others = [redrawn(first, tuple(first.shape[-1:]), i)]
        for other in dict.fromkeys(map(_Option, others)):
            about = (
                f"a tensor of {tuple(first.shape[-1:])}" if value is None and first is not None else repr(other.value)
            )
            yield replaced(at, {i: other.value}, f"{names[i]} = {about}")


def _is_one_of_each_sample(at: Setting, t: torch.Tensor) -> bool:
    """Whether there is an index for each vector of a tensor, as a target has: only there is one of no class something.
    Elsewhere it is read from memory of others, as by torch's CTC."""
    shapes = [at.values[i].shape for i in at.tensors() if is_number(at.values[i])]
    return any(t.shape == (*shape[:d], *shape[d + 1 :]) for shape in shapes for d in range(len(shape)))


class _Option:
    """A value that is told from others by its type as well: 1 is not True."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Option) and type(other.value) is type(self.value) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def indices(at: Setting) -> Iterator[Varied]:
    """Indices that are all the same, repeated, in another order, and of no class; masks that are all true, all false,
    false in their first row, and turned."""
    names = at.subject.value_names
    ignored = [v for v in at.values if isinstance(v, int) and not isinstance(v, bool) and v < 0] or [IGNORED]
    for i in at.tensors():
        t = at.values[i]
        if is_number(t) or not t.numel() or is_inverse_of_another(at, i):
            continue
        name, flat = names[i], t.flatten()
        if t.dtype == torch.bool:
            row = t.clone()
            row.view(-1, t.shape[-1] if t.dim() else 1)[0] = False
            column = t.clone()
            if t.dim():
                column[..., 0] = False
            kinds = {"all true": torch.ones_like(t), "all false": torch.zeros_like(t), "turned": ~t}
            kinds |= {"false in its first row": row, "false in its first column": column}
        elif t.dtype == torch.uint8:
            continue
        else:
            repeated = flat.clone()
            repeated[1::2] = flat[: len(flat) - 1 : 2]
            none = flat.clone()
            none[::3] = ignored[0]
            kinds = {"all the same": flat[:1].expand(len(flat)), "repeated": repeated}
            if not is_sorted(flat):  # as offsets have to be
                kinds |= {"in another order": flat.flip(0)}
            if ignored[0] < -1 and _is_one_of_each_sample(at, t):
                kinds |= {"of no class in some rows": none, "of no class": torch.full_like(flat, ignored[0])}
        for words, changed in kinds.items():
            yield replaced(at, {i: changed.reshape(t.shape).clone()}, f"{name} {words}")
