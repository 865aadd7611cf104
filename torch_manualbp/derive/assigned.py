"""The names that the code of a model has for what a call of torch returns."""

from __future__ import annotations

import dis
import functools
import sys
from pathlib import Path
from types import CodeType

import torch

__all__ = ["assigned_names"]

_ROOT, _OURS = Path(torch.__file__).parent, Path(__file__).parents[1]
_BETWEEN = (
    *(str(_ROOT / name) for name in ("_tensor.py", "functional.py", "overrides.py", "nn/functional.py")),
    *(str(_OURS / name) for name in ("derive", "functional")),
)
"""Where the functions stand that a call goes through; what a layer's forward calls has the layer's name."""


def assigned_names() -> tuple[str, ...]:
    """The local names that the model's code assigns to what the call of torch that is being made returns."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_BETWEEN):
        if frame.f_back is None:
            return ()
        frame = frame.f_back
    if frame.f_code.co_filename.startswith((str(_ROOT), str(_OURS))):
        return ()
    return _names_after(frame.f_code).get(frame.f_lasti, ())


@functools.lru_cache(256)
def _names_after(code: CodeType) -> dict[int, tuple[str, ...]]:
    """By the offset of an instruction the names that the next ones store its result in."""
    instructions = list(dis.get_instructions(code))
    names: dict[int, tuple[str, ...]] = {}
    for i, instruction in enumerate(instructions[:-1]):
        following = instructions[i + 1]
        if following.opname == "STORE_FAST":
            names[instruction.offset] = (following.argval,)
        elif following.opname == "UNPACK_SEQUENCE":
            stores = instructions[i + 2 : i + 2 + following.argval]
            if all(store.opname == "STORE_FAST" for store in stores):
                names[instruction.offset] = tuple(store.argval for store in stores)
    return names
