"""Tensors that share memory in torch, of which one is written to in place.

A program has a value for each tensor, and values do not change. So where one of them is written to, the others are out
of date from there on, and are made anew when somebody asks for one: what was written goes to its places in the tensor
that all are views of, and the others look at that again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import without_torch_function
from torch_manualbp.derive.program import leaves_of, mapped, words

__all__ = ["Link", "Views"]

VIEWS = words(
    "view reshape flatten squeeze unsqueeze transpose permute t T mT H mH expand expand_as view_as "
    "reshape_as select narrow split chunk unbind detach unflatten swapaxes swapdims movedim moveaxis "
    "ravel __getitem__ __iter__ tensor_split hsplit vsplit dsplit squeeze_ alias real imag diagonal "
    "unfold data conj adjoint view_as_real view_as_complex as_strided broadcast_to atleast_1d atleast_2d atleast_3d "
    "contiguous split_with_sizes"
)
"""What may return a view."""

SAME_ENTRIES = words("view reshape flatten squeeze unsqueeze view_as reshape_as unflatten ravel contiguous")
"""What has all entries in the order that they stood in."""

NO_WAY_BACK = words("detach data real imag conj adjoint view_as_real view_as_complex H mH alias")
"""What is written to such a view is not put back: no gradient passes it, or it is of another dtype."""


Bind = Callable[[Tensor, Tensor], None]


@dataclass
class Link:
    """How a view was made."""

    base: Tensor
    function: Any
    name: str
    args: Any
    kwargs: Any
    number: int | None
    """Which of several it is."""

    def again(self, base: Any, other: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
        """The same view of another tensor."""
        args, kwargs = mapped((self.args[1:], self.kwargs), Tensor, other)
        output = self.function(base, *args, **kwargs)
        return output if self.number is None else list(output)[self.number]


@dataclass
class _Group:
    root: Tensor
    links: dict[int, Link] = field(default_factory=dict)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    writer: Tensor | None = None
    """What was written to, and is not in the root yet."""

    stale: set[int] = field(default_factory=set)


class Views:
    """Which tensors share memory in torch, where in a program they may be copies."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._cut: dict[int, tuple[Tensor, Any]] = {}
        self.are_written = False
        """Whether anything may be out of date."""

        self._in_doubt: dict[int, Tensor] = {}  # those of which it is a matter of their layout who is a view
        self.minds_layout = False
        """Whether what was written depends on the order of numbers in memory."""

    def made(self, function: Any, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """Note what may be a view of its first argument."""
        base = args[0] if args else None
        outputs = leaves_of(output, Tensor)
        if name not in VIEWS or not isinstance(base, Tensor) or not outputs or any(t is base for t in outputs):
            return
        if name in ("reshape", "flatten", "contiguous", "ravel", "reshape_as", "__getitem__"):
            if name != "__getitem__":
                self._in_doubt.update({id(base): base, id(outputs[0]): outputs[0]})
            if not _is_view(function, args, kwargs):
                return
        group = self._groups.setdefault(id(base), _Group(base, tensors={id(base): base}))
        for i, t in enumerate(outputs):
            number = None if isinstance(output, Tensor) else i
            group.links[id(t)] = Link(base, function, name, args, kwargs, number)
            group.tensors[id(t)] = t  # which keeps it, and its id, alive
            self._groups[id(t)] = group
        if name == "__getitem__":
            self._cut[id(output)] = args

    def written(self, target: Tensor) -> None:
        """Note that a tensor has other numbers by now."""
        group = self._groups.get(id(target))
        self.minds_layout |= not self._in_doubt.keys().isdisjoint({id(target), *(group.tensors if group else ())})
        if group is not None and len(group.tensors) > 1:
            self.are_written = True
            group.writer = target
            group.stale = set(group.tensors) - {id(target)}

    def puts_back(self, base: Tensor, index: Any, value: Any) -> None:
        """Of ``x[index] += y`` Python makes three calls, of which the last puts what was written to x[index] there."""
        cut, group = self._cut.get(id(value)), self._groups.get(id(base))
        if cut is None or group is None or group.root is not base:
            return
        if cut[0] is base and cut[1] is index and group.writer is value:
            group.stale.discard(id(base))
            group.writer = base

    def refreshed(self, tensors: list[Tensor], bind: Bind, may_write: Callable[[Tensor], bool]) -> str:
        """Have these be up to date. Returns what is in the way, if anything is.

        Args:
            bind: has a tensor object mean another's value from here on.
            may_write: whether a tensor is the program's own, which nobody else sees change.
        """
        for t in tensors:
            group = self._groups.get(id(t))
            if group is not None and id(t) in group.stale:
                if reason := self._put_into_root(group, bind, may_write):
                    return reason
                self._refresh(group, t, bind)
        return ""

    def put_back(self, target: Tensor, bind: Bind, may_write: Callable[[Tensor], bool]) -> str:
        """Put what was written to another view in its place before this one is written to. Returns what is in the way,
        if anything is."""
        group = self._groups.get(id(target))
        return "" if group is None or group.writer is target else self._put_into_root(group, bind, may_write)

    def _refresh(self, group: _Group, t: Tensor, bind: Bind) -> None:
        if id(t) not in group.stale:
            return
        group.stale.discard(id(t))
        link = group.links.get(id(t))
        if link is not None:
            self._refresh(group, link.base, bind)
            bind(t, link.again(link.base))

    def _put_into_root(self, group: _Group, bind: Bind, may_write: Callable[[Tensor], bool]) -> str:
        """Put what was written to a view into the tensor that all are views of. Returns what is in the way."""
        writer, group.writer = group.writer, None
        if writer is None or writer is group.root:
            return ""
        chain: list[Link] = []
        t = writer
        while t is not group.root:
            chain.insert(0, group.links[id(t)])
            t = chain[0].base
        root = group.root
        if any(link.name in NO_WAY_BACK for link in chain) or not may_write(root):
            return "changes a tensor in place that is used through another view of it"
        group.stale.discard(id(root))
        if all(link.name in SAME_ENTRIES for link in chain):
            new = writer.reshape(root.shape)
        elif len(chain) == 1 and chain[0].name == "__getitem__":
            new = root.clone()
            new[chain[0].args[1]] = writer
        else:
            with torch.no_grad():  # the number of each entry among all
                places = torch.arange(root.numel(), device=root.device).reshape(root.shape)
                for link in chain:
                    places = link.again(places)
                places = places.reshape(places.numel())
            flat = root.reshape(root.numel())
            new = torch.index_put(flat, (places,), writer.reshape(writer.numel())).reshape(root.shape)
        bind(root, new)
        group.stale.discard(id(writer))
        return ""


def _is_view(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether torch returns a view, of a tensor that lies as this one does."""
    with without_torch_function(), torch.no_grad():
        base = args[0]
        like = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta")
        try:
            given = mapped((args[1:], kwargs), Tensor, lambda t: t.to("meta") if t.is_floating_point() else t)
            output = function(like, *given[0], **given[1])
        except Exception:  # an index of tensors, which is one if they are numbers
            return all(t.dim() == 0 for t in leaves_of(args[1:], Tensor))
        return isinstance(output, Tensor) and (output._base is like or output is like)
