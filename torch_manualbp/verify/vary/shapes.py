"""Other sizes, more and fewer dimensions."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torch_manualbp.verify.subject import Setting, is_number
from torch_manualbp.verify.vary.made import Varied, has_permutations, of_floats, redrawn, replaced

__all__ = ["dimensions", "sizes", "stretched"]

ROWS, BEYOND = 1500, 1027
"""Sizes of a batch that is large, and of features that are beyond a kernel's block, and no multiple of anything."""

GROUPS = 24
"""Sets of dimensions that are varied together, at most."""

ENTRIES = 400_000
"""Numbers of a varied call, at most."""

Place = tuple[int, int]
"""A tensor, by where it stands in the values, and one of its dimensions."""


def sizes(at: Setting) -> Iterator[Varied]:
    """Each size of the inputs, wherever it stands, wherever it stands at the same place from the end, and of one tensor
    alone, is 3 more, the next odd number, 1, and many."""
    for n, group in enumerate(_groups(at)):
        ((i, dim), *_) = sorted(group)
        size = at.values[i].shape[dim]
        is_batch = all(d == 0 for _, d in group)
        odd = size + 1 + size % 2
        for new in dict.fromkeys([size + 3, odd, 1, ROWS if is_batch else BEYOND, 2 * size]):
            if (new > 500 and n > 6) or (new == 1 and not _is_whole(at, group)):
                continue
            if new < size and _is_indexed_beyond(at, new, size):
                continue
            if varied := _resized(at, group, new):
                yield varied
                if size < new < 100:
                    yield from _with_last_index(varied, size, new)


def _is_indexed_beyond(at: Setting, new: int, size: int) -> bool:
    """Whether there are indices of the size that would be none of a smaller one: torch's CTC writes there unasked."""
    integers = [at.values[i] for i in at.tensors() if not is_number(at.values[i]) and at.values[i].numel()]
    return any(t.dtype != torch.bool and new <= int(t.max()) < size and int(t.min()) >= 0 for t in integers)


def _with_last_index(varied: Varied, size: int, new: int) -> Iterator[Varied]:
    """The same where indices that were below the size go up to the last of the new one, too."""
    at = varied.at
    for i in at.tensors():
        t = at.values[i]
        if is_number(t) or t.dtype == torch.bool or not t.numel() or (t.dim() > 1 and has_permutations(t)):
            continue
        if not 0 <= int(t.min()) <= int(t.max()) < size:
            continue
        last = t.clone().flatten()
        last[::2] = new - 1
        words = f"{varied.words}, {at.subject.value_names[i]} up to {new - 1}"
        yield replaced(at, {i: last.reshape(t.shape)}, words, words)


def stretched(at: Setting, by: int, most: int = 3) -> Iterator[Varied]:
    """The first few of these, so many more along each."""
    for group in _groups(at)[:most]:
        ((i, dim), *_) = sorted(group)
        if varied := _resized(at, group, at.values[i].shape[dim] + by):
            yield varied


def _is_whole(at: Setting, group: frozenset[Place]) -> bool:
    """Whether no other tensor has this size at the same place, to which one of size 1 would be expanded."""
    size = next(at.values[i].shape[d] for i, d in group)
    from_end = {d - at.values[i].dim() for i, d in group}
    others = [
        (i, d) for i in at.tensors() for d, n in enumerate(at.values[i].shape) if n == size and (i, d) not in group
    ]
    return not any(d - at.values[i].dim() in from_end for i, d in others)


def _groups(at: Setting) -> list[frozenset[Place]]:
    places = [(i, d) for i in at.tensors() for d in range(at.values[i].dim())]
    found: dict[frozenset[Place], None] = {}
    for size in dict.fromkeys(at.values[i].shape[d] for i, d in places):
        if size < 2:
            continue
        of_size = [(i, d) for i, d in places if at.values[i].shape[d] == size]
        found[frozenset(of_size)] = None
        for from_end in dict.fromkeys(d - at.values[i].dim() for i, d in of_size):
            found[frozenset((i, d) for i, d in of_size if d - at.values[i].dim() == from_end)] = None
        found[frozenset((i, d) for i, d in of_size if d == 0)] = None
        for place in of_size[:6]:
            found[frozenset([place])] = None
        for of_end in dict.fromkeys(d - at.values[i].dim() for i, d in of_size):
            for left_out in at.tensors()[:1]:
                group = [(i, d) for i, d in of_size if d - at.values[i].dim() == of_end and i != left_out]
                found[frozenset(group)] = None
    return [group for group in found if group][:GROUPS]


def _resized(at: Setting, group: frozenset[Place], new: int) -> Varied | None:
    changes = {}
    for i in {i for i, _ in group}:
        shape = list(at.values[i].shape)
        for j, d in group:
            if j == i:
                shape[d] = new
        if torch.Size(shape).numel() > ENTRIES:
            return None
        changes[i] = redrawn(at.values[i], tuple(shape), i)
    where = ", ".join(f"dimension {d} of {at.subject.value_names[i]}" for i, d in sorted(group))
    return replaced(at, changes, f"{new} along {where}", where)


def dimensions(at: Setting) -> Iterator[Varied]:
    """One dimension more, in front and after the first, and one fewer; of the first tensor alone and of all that have
    as many samples; and a tensor beside it of a size 1 that is expanded."""
    tensors = [i for i in at.tensors() if at.values[i].dim() and at.values[i].numel()]
    if not tensors:
        return
    names = at.subject.value_names
    first = at.values[tensors[0]]
    samples = [i for i in tensors if at.values[i].shape[0] == first.shape[0]]
    alike = [i for i in tensors if at.values[i].dim() == first.dim()]
    for group in dict.fromkeys(map(tuple, (samples, tensors[:1], alike, tensors))):
        about = ", ".join(names[i] for i in group)
        for place in (0, 1):
            shapes = {i: [*at.values[i].shape[:place], 2 + 3 * place, *at.values[i].shape[place:]] for i in group}
            changes = {i: redrawn(at.values[i], tuple(shape), i) for i, shape in shapes.items()}
            where = "in front of" if not place else "after the first of"
            yield replaced(at, changes, f"one more dimension {where} {about}", ranks=1)
        for place in (0, -1):
            fewer = {i: at.values[i].select(place, 0).clone() for i in group}
            yield replaced(at, fewer, f"{about} without dimension {place}", ranks=-1)
    for i in of_floats(at)[1:]:
        t = at.values[i]
        if t.dim() > first.dim() or not t.dim():
            continue
        for dim in range(first.dim()):
            shape = tuple(1 if d == dim else n for d, n in enumerate(first.shape))
            if shape != tuple(t.shape):
                yield replaced(
                    at, {i: redrawn(t, shape, i)}, f"{names[i]} of shape {shape}, to be expanded", ranks=None
                )
