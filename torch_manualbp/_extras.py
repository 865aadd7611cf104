"""Packages that only some uses need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module_name: str, extra: str) -> ModuleType:
    """Import ``module_name``, which the optional dependencies ``extra`` of this package bring.

    Raises:
        ImportError: the module's package is not installed; the message is one line and gives the command that does it.
    """
    package = module_name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is there, and lacks something itself
        message = f'{package} is not installed; to install it: pip install "torch-manualbp[{extra}]"'
        raise ImportError(message, name=package) from None
