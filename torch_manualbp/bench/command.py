"""What the commands that time have in common: options, figures, and where they were measured."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from torch_manualbp._tables import as_markdown, print_table, write
from torch_manualbp.kernels.products import uses_onednn

__all__ = ["add_files", "add_rounds", "count", "microseconds", "publish", "surroundings"]


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """The option of a command that reports medians."""
    said = f"of which the median is taken (default: {default})"
    parser.add_argument("--rounds", type=count, default=default, metavar="N", help=said)


def add_files(parser: argparse.ArgumentParser) -> None:
    """The options of a command that writes its figures to files."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")


def publish(
    options: argparse.Namespace, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Any]
) -> None:
    """Print the table, and write it and the rows, which are dataclasses, to the files that are asked for."""
    about = surroundings()
    print_table(f"{title}, torch {about['torch']}, {about['threads']} threads", columns, cells)
    if options.json is not None:
        write(options.json, {**about, "rounds": options.rounds, "rows": [asdict(row) for row in rows]})
    if options.markdown is not None:
        write(options.markdown, as_markdown(columns, cells))


def count(text: str) -> int:
    """The type of an option that counts."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1, and of 9 digits at most")
    return int(text)


def microseconds(t: float) -> str:
    """A time in microseconds, with the digits that mean something."""
    return f"{t:,.1f}" if t < 100 else f"{t:,.0f}"


def surroundings() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "products": "oneDNN's" if uses_onednn() else "BLAS's",
    }


def _processor(about: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system says, and the widest vectors that torch gives it."""
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {torch.backends.cpu.get_cpu_capability()}"
