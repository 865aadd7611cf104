"""What insight cannot look into."""

from __future__ import annotations

import torch
from torch.nn import Module

from torch_manualbp._text import visible

__all__ = ["ONE_PIECE", "refuse_compiled"]

ONE_PIECE = "and its layers do not run one by one"


def refuse_compiled(model: Module) -> None:
    """Refuse what runs as one piece, so that its layers are never called one by one.

    Raises:
        ValueError: the model or one of its modules is compiled or scripted.
    """
    for name, module in model.named_modules():
        where = f"module {visible(name)}" if name else "the model"
        if hasattr(module, "_orig_mod"):
            raise ValueError(f"{where} is compiled, {ONE_PIECE}: give the model that it is of, its attribute _orig_mod")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{where} is compiled by its method compile, {ONE_PIECE}: leave the call of it away")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} is a {type(module).__name__}, whose forward is no Python: give the module that it is of"
            )
