"""What libraries leave out where a tracer is at work: checks of their arguments, and branches on the numbers of a mask.

They ask ``torch.compiler.is_compiling()``, directly or through functions such as transformers' ``is_tracing``. A model
that asks, and that then reads numbers, is recorded as a tracer would have it: whoever asks from outside of torch and of
this package, whose code has other reasons to ask, hears yes. Where no numbers are read there is no need: many libraries
have formulas of their own for tracers, too. ``torch.distributions`` are made without looking at their arguments, as
under ``python -O``.

What a recording is compared with, autograd's own run, goes the way that the model goes in training.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch.distributions import Distribution

from torch_manualbp._torch import is_compiling

__all__ = ["Asked", "MayGoAnotherWay"]

_ROOT, _OURS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
_PASS_IT_ON = tuple(f"{_ROOT}/{name}" for name in ("_dynamo/external_utils.py", "_utils.py", "compiler/__init__.py"))
"""Files of torch whose functions ask for others."""

_LAYERS = (f"{_ROOT}/nn/modules/transformer.py",)
"""Files of torch that ask as a library does: whether a padding mask may be looked at."""


class MayGoAnotherWay(BaseException):
    """Forward reads numbers, and would perhaps not if it heard of a tracer."""


_LOCK = threading.Lock()
_ASKED: list[Asked] = []
"""Those whose answers hold: in each thread the last one's."""

_before: tuple[Any, Any]
"""What torch has itself."""


class Asked:
    """A block in which this thread's code hears that a tracer is at work, or none.

    Args:
        says: what is answered.
    """

    def __init__(self, says: bool) -> None:
        self.says = says
        self.was_asked = False
        """Whether somebody wanted to know."""

    def __enter__(self) -> Asked:
        global _before
        self._thread = threading.get_ident()
        with _LOCK:  # of threads that derive at a time the first changes what is torch's, and the last puts it back
            if not _ASKED:
                _before = torch.compiler.is_compiling, Distribution._validate_args
                setattr(torch.compiler, "is_compiling", _answer)  # noqa: B010 # no assignment, for type checkers
                Distribution._validate_args = False
            _ASKED.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        with _LOCK:
            _ASKED.remove(self)
            if not _ASKED:
                is_compiling_before, Distribution._validate_args = _before
                setattr(torch.compiler, "is_compiling", is_compiling_before)  # noqa: B010


def _answer() -> bool:
    """What ``torch.compiler.is_compiling()`` says while steps are derived."""
    asked = next((one for one in reversed(_ASKED) if one._thread == threading.get_ident()), None)
    if is_compiling() or asked is None:
        return is_compiling()
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PASS_IT_ON):
        frame = frame.f_back
    name = "" if frame is None else frame.f_code.co_filename
    if name.startswith((_ROOT, _OURS)) and not name.startswith(_LAYERS):
        return False
    asked.was_asked = True
    return asked.says
