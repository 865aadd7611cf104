"""The Lightning whose classes ours are subclasses of: ``pytorch_lightning``, or ``lightning.pytorch``.

They are the same code under two names, and a Trainer of one takes no module of the other. What a script has imported
before this package is taken; where that is both, or neither, ``pytorch_lightning`` if it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["pl"]


def _name() -> str:
    if "pytorch_lightning" in sys.modules:
        return "pytorch_lightning"
    is_other = "lightning.pytorch" in sys.modules or importlib.util.find_spec("pytorch_lightning") is None
    return "lightning.pytorch" if is_other else "pytorch_lightning"


if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl: Any = importlib.import_module(_name())
