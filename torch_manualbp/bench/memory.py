"""The memory that a training step takes at its peak, in a process of its own.

What is measured is by how much the resident set of the process (``VmHWM``, Linux) grows at most between the moment
before the model is built and the end of the steps, less the parameters and the batches. All is done twice, and the
second time counts: by then the code is loaded, and the libraries have the scratch memory that they keep. malloc hands
back what is freed at once (``MALLOC_MMAP_THRESHOLD_``), so that nothing which is over hides what comes next.

A system that cannot forget a peak (``/proc/self/clear_refs``) knows that of the whole process alone: there the first
time counts, with what comes once.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from torch_manualbp._torch import reset_compiler
from torch_manualbp.bench.networks import BATCHES, NETWORKS, Case
from torch_manualbp.bench.variants import VARIANTS, Running
from torch_manualbp.kernels.products import use_onednn, uses_onednn

__all__ = ["Peak", "in_a_process", "peak_memory", "prepare", "say"]

PROGRAM = [sys.executable, "-m", "torch_manualbp.bench.memory"]
"""What the new process runs."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes over the parameters and the batches."""

    parameters: int
    """The size of the parameters."""

    first: int
    """At the first step, in which a program is derived or compiled."""

    later: int
    """At the steps after it."""


def peak_memory(case: Case, variant: str, threads: int) -> Peak:
    """Measure it in a new process.

    Raises:
        RuntimeError: the variant does not run; the message is the last line that it said.
    """
    words = [variant, case.network.at, case.activation, case.optimizer, case.precision]
    return in_a_process([*PROGRAM, *words], threads)


def in_a_process(program: list[str], threads: int) -> Peak:
    """What a program says that is told the threads and whose products to take besides.

    Raises:
        RuntimeError: it fails; the message is the last line that it said.
    """
    words = [*program, str(threads), "onednn" if uses_onednn() else "blas"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            ([line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"])[-1]
        )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _measure(start: Callable[[], Running], is_compiled: bool) -> Peak:
    for _ in range(2 if _forget_peak() else 1):
        gc.collect()
        if is_compiled:
            reset_compiler()
        _forget_peak()
        before = _peak()
        running = start()
        running.step()
        first = _peak()
        _forget_peak()
        for _ in range(2 * BATCHES):
            running.step()
        later = _peak()
        parameters, data = _size(running.parameters), _size(running.data)
        del running
    return Peak(parameters, first - before - parameters - data, later - before - parameters - data)


def _size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _peak() -> int:
    """The largest resident set since the peak was forgotten."""
    if STATUS.exists():
        return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> bool:
    """Make what is resident now the largest resident set. Returns whether this system can."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def prepare(threads: str, products: str) -> None:
    """Compute as the process that asks does."""
    use_onednn(products == "onednn")
    torch.set_flush_denormal(True)
    torch.set_num_threads(int(threads))


def say(start: Callable[[], Running], is_compiled: bool) -> None:
    """Print the peak of what this starts, as :func:`in_a_process` reads it."""
    print(json.dumps(asdict(_measure(start, is_compiled))))


def _main(
    variant: str, network: str, activation: str, optimizer: str, precision: str, threads: str, products: str
) -> None:
    prepare(threads, products)
    case = Case(next(n for n in NETWORKS if n.at == network), activation, optimizer, precision)
    say(lambda: VARIANTS[variant][1](case), is_compiled="compile" in variant)


if __name__ == "__main__":
    _main(*sys.argv[1:])
