"""How much of other people's models ``convert`` makes ours: layers by kind, and what it leaves with the reason.

    python -m torch_manualbp.bench.conversion FOLDER [NAME …] [--markdown FILE]

FOLDER has a package ``zoo``: ``zoo.load()`` fills ``zoo.CASES`` with functions, by name, that return an object whose
``model`` is a module.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules import activation

from torch_manualbp._tables import as_markdown, print_table, write
from torch_manualbp._torch import AnyConvolution
from torch_manualbp.convert import convert

__all__ = ["counted", "main"]

KINDS = ("convolutions", "recurrence", "embeddings", "norms", "activations", "other weights")
COLUMNS = ("model", "swapped of layers", *KINDS, "weights", "left: class, number, reason")
ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention")


def kind(module: Module) -> str | None:
    """What a layer is, by what it subclasses or is called; None for what only holds others."""
    if isinstance(module, AnyConvolution):
        return "convolutions"
    if isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
        return "recurrence"
    if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
        return "embeddings"
    name, is_leaf = type(module).__name__, not any(module.children())
    if is_leaf and "Norm" in name:
        return "norms"
    if is_leaf and (isinstance(module, ACTIVATIONS) or "Activation" in name):
        return "activations"
    return "other weights" if any(p is not None for p in module._parameters.values()) else None


def counted(name: str, model: Module) -> list[str]:
    """A row of the table."""
    kinds = {path: found for path, module in model.named_modules() if (found := kind(module)) is not None}
    numbers = {path: sum(p.numel() for p in model.get_submodule(path).parameters(recurse=False)) for path in kinds}
    report = convert(model)
    swapped = {swap.path for swap in report.swapped} | set(report.already)
    reasons = {layer.path: layer.reason for layer in report.left}
    left = Counter(
        (type(model.get_submodule(path)).__name__, reasons.get(path, "a class of the model's own"))
        for path in kinds
        if path not in swapped
    )
    cells = []
    for of_kind in KINDS:
        paths = [path for path, found in kinds.items() if found == of_kind]
        cells.append(f"{len(swapped.intersection(paths))} of {len(paths)}" if paths else "")
    share = sum(n for path, n in numbers.items() if path in swapped) / max(sum(numbers.values()), 1)
    why = "; ".join(f"{cls} {n}: {reason}" for (cls, reason), n in left.items())
    return [name, f"{len(swapped.intersection(kinds))} of {len(kinds)}", *cells, f"{share:.1%}", why]


def rows_of(folder: Path, wanted: Sequence[str]) -> Iterator[list[str]]:
    sys.path.insert(0, str(folder))
    zoo: Any = importlib.import_module("zoo")
    zoo.load()
    for name, make in zoo.CASES.items():
        if wanted and not any(part in name for part in wanted):
            continue
        torch.manual_seed(0)
        try:
            yield counted(name, make().model)
        except Exception as error:
            yield [name, f"not built: {type(error).__name__}: {error}"[:120], *[""] * (len(COLUMNS) - 2)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m torch_manualbp.bench.conversion", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the package zoo is")
    parser.add_argument("names", nargs="*", help="parts of the names of the cases (default: all)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(rows_of(options.folder, options.names))
    print_table(f"What convert makes ours, torch {torch.__version__}", COLUMNS, rows)
    if options.markdown is not None:
        write(options.markdown, as_markdown(COLUMNS, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
