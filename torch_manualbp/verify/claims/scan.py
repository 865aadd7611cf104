"""One entry of an input that takes other numbers, and the gradients there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_manualbp.verify.subject import Setting, gradients_of, with_zeros
from torch_manualbp.verify.trial import Trial

__all__ = ["Scan", "scans"]

NO_SUCH_NUMBER = (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError)
"""What a forward raises of a number that it does not take, such as a probability above 1."""


@dataclass(frozen=True)
class Scan:
    """A leaf of which one entry takes a number; or all of them do, where entries do not mix.

    ``packed``: the target is a function of one number, for every entry the same, so that one run takes many.
    """

    at: Setting
    leaf: int
    entry: int | None
    packed: bool
    start: list[Tensor]
    upstream: list[Tensor]

    def slopes(self, points: Sequence[float], plain: bool) -> Tensor:
        """The gradient of what is scanned at each point: (points, entries). NaN where the forward takes none."""
        if self.packed:
            return self.pairs(points, [1.0] * len(points), plain).unsqueeze(1)
        rows = []
        for point in points:
            leaves = self._leaves(point)
            leaves[self.leaf].requires_grad_()
            try:
                gradient = self._gradients(leaves, plain)[self.leaf].reshape(-1)
            except NO_SUCH_NUMBER:
                gradient = torch.full_like(leaves[self.leaf].detach().reshape(-1), float("nan"))
            rows.append(gradient if self.entry is None else gradient[self.entry : self.entry + 1])
        return torch.stack(rows)

    def pairs(self, points: Sequence[float] | Tensor, upstream: Sequence[float] | Tensor, plain: bool) -> Tensor:
        """The gradient of a packed scan at each point with its own upstream gradient: (points)."""
        found = []
        like = self.start[self.leaf]
        n = like.numel()
        for first in range(0, len(points), n):
            some = points[first : first + n]
            z, given = torch.ones_like(like), torch.ones_like(like)
            z.view(-1)[: len(some)] = torch.as_tensor(some, dtype=like.dtype, device=like.device)
            given.view(-1)[: len(some)] = torch.as_tensor(upstream[first : first + n]).to(like)
            leaves = [z.requires_grad_()]
            outputs = (self.at.run_plain if plain else self.at.run)(leaves)
            (gradient,) = with_zeros(gradients_of(outputs, leaves, [given]), leaves)
            found.append(gradient.reshape(-1)[: len(some)])
        return torch.cat(found)

    def gradients(self, point: float, plain: bool) -> list[Tensor]:
        """The gradients of all leaves where the entry is this number."""
        return self._gradients([t.requires_grad_() for t in self._leaves(point)], plain)

    def _leaves(self, point: float) -> list[Tensor]:
        leaves = [t.detach() for t in self.start]
        chosen = leaves[self.leaf] = leaves[self.leaf].clone(memory_format=torch.contiguous_format)
        if self.entry is None:
            chosen.fill_(point)
        else:
            chosen.view(-1)[self.entry] = point
        return leaves

    def _gradients(self, leaves: Sequence[Tensor], plain: bool) -> list[Tensor]:
        outputs = (self.at.run_plain if plain else self.at.run)(leaves)
        return with_zeros(gradients_of(outputs, leaves, self.upstream), leaves)


def scans(trial: Trial, at: Setting, most: int = 3) -> Iterator[Scan]:
    """The leaves that are inputs: as a whole where their entries do not mix, and else two entries of the first and one
    of each other."""
    start = at.leaves([])
    with torch.no_grad():
        outputs = at.run(start)
    upstream = at.upstream(outputs)
    inputs = [i for i, leaf in enumerate(trial.leaves) if leaf.position is not None and start[i].numel()]
    tensors = sum(isinstance(v, Tensor) for v in trial.subject.values) + len(at.state)
    for n, i in enumerate(inputs[:most]):
        if start[i].is_complex():
            continue
        if _is_elementwise(at, i, outputs):
            yield Scan(at, i, None, tensors == 1 and _is_the_same_everywhere(at), start, upstream)
        else:
            for entry in dict.fromkeys((0, start[i].numel() // 2) if n == 0 else (0,)):
                yield Scan(at, i, entry, False, start, upstream)


def _is_elementwise(at: Setting, i: int, outputs: Sequence[Tensor]) -> bool:
    """Whether each entry of the output comes from the same entry of this leaf."""
    leaves = at.leaves([])
    if len(outputs) != 1 or not outputs[0].dim() or outputs[0].shape != leaves[i].shape:
        return False
    middle = leaves[i].numel() // 2
    with torch.no_grad():
        leaves[i].view(-1)[middle] += 0.01
        try:
            changed = (at.run(leaves)[0] - outputs[0]).reshape(-1)
        except NO_SUCH_NUMBER:
            return False
    changed[middle] = 0
    return not bool(changed.any())


def _is_the_same_everywhere(at: Setting) -> bool:
    """Whether all entries of the one tensor go through one function."""
    (leaf,) = at.leaves([])
    with torch.no_grad():
        for number in (0.7, -0.7):
            try:
                (output,) = at.run([torch.full_like(leaf, number)])
            except NO_SUCH_NUMBER:
                return False
            if not torch.allclose(output, output.reshape(-1)[:1].expand_as(output.reshape(-1)).reshape(output.shape)):
                return False
    return True
