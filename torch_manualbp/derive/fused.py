"""Kernels that a compiler makes of the functions of a program, in the background, and how they are come to be trusted.

They are made by a process of its own (``kernel_maker``), so that neither its time nor its mistakes are the training's.
At the first step that calls them each is held against its lines: both are computed, and where they differ by more than
the lines are off themselves, these are taken, and stay.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import pyobject_data_pointer
from torch_manualbp.derive import kernel_maker
from torch_manualbp.derive.kernel_text import KernelText

__all__ = ["Fusing", "Making", "NotMadeError", "bound", "held"]

RUN = (
    "import json, sys; given = json.loads(sys.stdin.readline()); sys.path[:] = given['path']; "
    "exec(compile(given['maker'], 'kernel_maker.py', 'exec'))"
)
AFTER_S = 10.0
"""Seconds that a program runs before kernels are made of it: about as long as that takes."""

PART = 50
"""How many times as long as deriving took it runs before that, too."""

_made: dict[tuple[KernelText, int], dict[str, Any]] = {}
"""What has been made in this process, by kernel and number of threads."""


class NotMadeError(RuntimeError):
    """There is no compiler, or it makes nothing of a kernel."""


class Making:
    """Kernels that are being made."""

    def __init__(self, kernels: Mapping[str, KernelText]) -> None:
        self._kernels = kernels
        self._threads = torch.get_num_threads()
        self._missing = [k for k in dict.fromkeys(kernels.values()) if (k, self._threads) not in _made]
        self._process: subprocess.Popen[bytes] | None = None
        self._results: Any = None
        self.stop: Callable[[], Any] = lambda: None
        """Makes no more of them."""

        if self._missing:
            self._start()
            self.stop = weakref.finalize(self, _stop, self._process, self._results, os.getpid())

    def _start(self) -> None:
        given = {
            "path": [os.path.abspath(entry) for entry in sys.path],
            "maker": inspect.getsource(kernel_maker),
            "threads": self._threads,
            "kernels": [{"text": kernel.text, "arguments": kernel.arguments} for kernel in self._missing],
        }
        try:
            self._results = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN],
                stdin=subprocess.PIPE,
                stdout=self._results,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(given).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, TypeError) as error:
            raise NotMadeError(f"no process to compile in ({error})") from error

    @property
    def is_done(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def result(self) -> dict[str, dict[str, Any]]:
        """What has been made, by the kernels' names, when it is. Some may be none.

        Raises:
            NotMadeError: there is none.
        """
        if self._process is not None:
            try:
                self._process.wait()
                self._results.seek(0)
                lines = self._results.read().decode(errors="replace").splitlines()
            finally:
                self.stop()
            made = [json.loads(line) for line in lines]
            if len(made) < len(self._missing):
                raise NotMadeError(f"the process that compiles ended with {self._process.returncode}")
            _made.update({(kernel, self._threads): item for kernel, item in zip(self._missing, made, strict=True)})
        found = {name: _made[kernel, self._threads] for name, kernel in self._kernels.items()}
        kernels = {name: item for name, item in found.items() if "error" not in item}
        if found and not kernels:
            raise NotMadeError(next(iter(found.values()))["error"])
        return kernels


class Fusing:
    """A program on its way to kernels, while it runs without.

    Args:
        derived_in: the seconds that deriving it took, which deriving it with kernels takes again.
    """

    def __init__(self, derived_in: float) -> None:
        self._left = max(AFTER_S, PART * derived_in)
        self._making: Making | None = None
        self.derived: Any = None
        """The program with kernels, when these are being made."""

    @property
    def state(self) -> str:
        """What is waited for."""
        if self._making is None:
            return f"kernels are made when it has run for {max(self._left, 0):.0f} s more"
        return "kernels are being made"

    def is_time(self, seconds: float) -> bool:
        """Whether there is something to be done after a run of so many seconds."""
        if self._making is not None:
            return self._making.is_done
        self._left -= seconds
        return self._left <= 0 and not _is_busy() and not torch.are_deterministic_algorithms_enabled()

    def begin(self, derived: Any) -> None:
        """Have the kernels of a program made.

        Raises:
            NotMadeError: there is nowhere to make them, or nothing to make.
        """
        global _running
        derived.release()
        self.derived, self._making = derived, Making(derived.kernels)
        _running = weakref.ref(self._making)

    def taken(self) -> Any:
        """The program, with its kernels.

        Raises:
            NotMadeError: there are none.
        """
        assert self._making is not None
        self.derived.take(self._making.result())
        return self.derived


def _running() -> Making | None:
    return None


def _is_busy() -> bool:
    """Whether kernels of some program are being made: one at a time, beside what trains."""
    making = _running()
    return making is not None and not making.is_done


def _stop(process: subprocess.Popen[bytes] | None, results: Any, owner: int) -> None:
    """End the process that makes kernels, with the compilers that it has started."""
    if process is None or os.getpid() != owner:  # of a forked child, which has inherited it
        return
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()  # at which it ends
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    if process.poll() is None:
        process.kill()
        process.wait()
    results.close()


def bound(made: Mapping[str, Any]) -> Callable[..., None]:
    """The kernel as a function of tensors.

    Raises:
        NotMadeError: its library is not to be loaded.
    """
    rooms: list[Tensor] = []
    for shape, stride, dtype, base, offset in made["rooms"]:
        is_own = base is None
        room = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype)) if is_own else rooms[base]
        rooms.append(room if is_own else room.as_strided(shape, stride, offset))
    namespace: dict[str, Any] = {f"room_{i}": room for i, room in enumerate(rooms)}
    lines, count = [], 0
    for n, call in enumerate(made["calls"]):
        namespace[f"call_{n}"] = _loaded(call["library"], call["entry"])
        texts = [repr(i) if kind == "number" else f"{kind}_{i}" for kind, i in call["arguments"]]
        count = max([count, *(i + 1 for kind, i in call["arguments"] if kind == "argument")])
        lines.append(f"    call_{n}({', '.join(texts)})")
    names = ", ".join(f"argument_{i}" for i in range(count))
    exec("\n".join([f"def kernel({names}, *_):", *lines]), namespace)
    kernel: Callable[..., None] = namespace["kernel"]
    return kernel


def _loaded(library: str, entry: str) -> Any:
    """A function of a library that inductor's compiler made."""
    try:
        where = pyobject_data_pointer()
        os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(where)  # where such a library looks for it
        loader = ExtensionFileLoader(f"{os.path.basename(library).split('.')[0]}.{entry}", library)
        spec = spec_from_loader(loader.name, loader)
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
        return getattr(module, entry)
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        raise NotMadeError(f"{library} is not to be loaded ({error})") from error


def held(plain: Callable[..., None], kernel: Callable[..., None], outputs: int, differs: Callable[[], None]) -> Any:
    """The kernel, and its lines beside it: where they differ, what these compute, and ``differs`` is told."""

    def both(*arguments: Tensor) -> None:
        inputs, written = arguments[:-outputs], arguments[-outputs:]
        expected = [torch.empty_like(t) for t in written]
        plain(*inputs, *expected)
        kernel(*arguments)
        allowed: list[float] | None = None
        for i, (found, wanted) in enumerate(zip(written, expected, strict=True)):
            if _is_close(found, wanted, 0.0):
                continue
            if allowed is None:
                allowed = _errors(plain, inputs, expected)
            if not _is_close(found, wanted, allowed[i]):
                for t, right in zip(written, expected, strict=True):
                    t.copy_(right)
                differs()
                return

    return both


def _is_close(found: Tensor, wanted: Tensor, error: float) -> bool:
    """Whether two are equal to four units in the last place of the largest entry, and to eight times an error; what is
    below the smallest normal number may be 0."""
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    kind = torch.finfo(wanted.dtype)
    a, b = found.double(), wanted.double()
    is_same = (a == b) | ((a != a) & (b != b))
    difference = torch.where(is_same, 0.0, (a - b).abs()).max()
    finite = torch.where(b.isfinite(), b, 0.0)
    return bool(difference <= 8 * error + 4 * (kind.eps * finite.abs().max() + kind.tiny))


def _errors(plain: Callable[..., None], inputs: tuple[Tensor, ...], expected: list[Tensor]) -> list[float]:
    """How far the lines are off themselves: from what they compute in float64, or float64's from float32's."""
    is_wide = any(t.dtype == torch.float64 for t in (*inputs, *expected))
    other = torch.float32 if is_wide else torch.float64

    def cast(t: Tensor) -> Tensor:
        return t.to(other) if t.is_floating_point() else t

    results = [torch.empty_like(cast(t)) for t in expected]
    try:
        plain(*map(cast, inputs), *results)
    except RuntimeError:  # lines that name a dtype
        return [0.0] * len(expected)
    scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if is_wide else 1.0
    return [_largest(t, result) * scale for t, result in zip(expected, results, strict=True)]


def _largest(t: Tensor, result: Tensor) -> float:
    if not t.is_floating_point():
        return 0.0
    difference = (t.double() - result.double()).abs()
    return float(torch.where(difference.isfinite(), difference, 0.0).max())
