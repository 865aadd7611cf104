"""autograd.Functions that are no rules: their own backward is part of the program, if verification finds it right."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp._torch import pytree, without_torch_function
from torch_manualbp.derive.runner import Context
from torch_manualbp.rules.rule import Rule

__all__ = ["mistakes_of", "rule_of"]


def rule_of(cls: type[Function], learns: tuple[bool, ...]) -> type[Rule]:
    """A rule whose forward and backward are those of a Function, for arguments of which some learn."""
    is_split = cls.setup_context is not Function.setup_context
    noted: list[Context] = []
    """The ``ctx`` of the Function's forward, whose content the rule's own takes over."""

    def forward(*args: Any) -> Any:
        if is_split:
            return cls.forward(*args)
        noted[:] = [Context(learns)]
        return cls.forward(noted[0], *args)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if is_split:
            cls.setup_context(ctx, inputs, output)
            return
        own = dict(vars(noted[0]))
        tensors = own.pop("saved_tensors")
        vars(ctx).update({name: item for name, item in own.items() if name not in ("needs_input_grad", "_kept")})
        ctx.save_for_backward(*tensors)

    members = {"forward": staticmethod(forward), "setup_context": staticmethod(setup_context)}
    return type(
        cls.__name__, (Rule,), {**members, "backward": staticmethod(cls.backward), "__module__": cls.__module__}
    )


_found: weakref.WeakKeyDictionary[type[Function], dict[Any, str]] = weakref.WeakKeyDictionary()


def mistakes_of(cls: type[Function], args: Sequence[Any]) -> str:
    """What verification finds wrong with a Function at such arguments, in a line; "" if nothing."""
    from torch_manualbp.verify import verify  # which takes a second to import, and is needed by few

    leaves = pytree.tree_leaves(tuple(args))
    key = tuple((t.shape, t.dtype) if isinstance(t, Tensor) else repr(t) for t in leaves)
    known = _found.setdefault(cls, {})
    if key not in known:
        with torch.inference_mode(False), torch.enable_grad(), without_torch_function():
            report = verify(cls, *args, checks="values")
        wrong = [row for row in report.rows if not row.ok]
        known[key] = " ".join(str(wrong[0]).split())[:200] if wrong else "" if report.ok else "it could not be verified"
    return known[key]
