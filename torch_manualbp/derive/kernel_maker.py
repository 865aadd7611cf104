"""Kernels by torch's own compiler, in a process of its own.

This is run as a script, which imports torch alone. It reads one line of JSON, and writes one line a kernel: the shared
library that ``torch._inductor.standalone_compile`` made, and with what its function is called. That is read off the
wrapper that inductor writes: memory that is made, calls of C++ functions, and nothing else; a kernel of another kind is
an error, and its lines stay as they are. It ends, with the compilers that it has started, when its input does.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import sys
import threading
from typing import Any

HEAD = "import torch\nimport torch.nn.functional as F\n"

EXPECTED = re.compile(
    r"def call\(|(arg\w+, )*arg\w+,? = args$|args\.clear\(\)|assert_size_stride\(|buf\d+ = empty_strided_cpu\(|del \w+$"
    r"|cpp_fused\w*\([\w, ]*\)$|buf\d+ = buf\d+\b|buf\d+ = reinterpret_tensor\(buf\d+, |return \(|#|$"
)
"""The lines of a wrapper that calls C++ functions and does nothing else."""


class NotOneError(RuntimeError):
    """Inductor calls more than functions of C++."""


def main(given: dict[str, Any]) -> None:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    import torch

    torch.set_num_threads(given["threads"])
    failed: dict[str, Any] = {}
    for kernel in given["kernels"]:
        try:
            made = failed or _made(kernel["text"], kernel["arguments"])
        except BaseException as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
            made = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
            if not isinstance(error, NotOneError):
                failed = made  # as the others will, of a compiler or a folder that is not there
        results.write(json.dumps(made) + "\n")
        results.flush()


def _end_with_the_input() -> None:
    sys.stdin.read()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _made(text: str, specs: list[tuple[list[int], list[int], str]]) -> dict[str, Any]:
    import torch
    from torch._inductor import codecache, config, standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    namespace: dict[str, Any] = {}
    exec(HEAD + text, namespace)
    arguments: list[Any] = [
        torch.empty_strided(shape, stride, dtype=getattr(torch, dtype)) for shape, stride, dtype in specs
    ]
    known = set(map(id, codecache.PyCodeCache.modules))
    with torch.no_grad(), config.patch(compile_threads=1):
        graph = make_fx(namespace["kernel"], tracing_mode="fake")(*arguments)
        compiled = standalone_compile(graph, arguments, dynamic_shapes="from_example_inputs")
        modules = [module for module in codecache.PyCodeCache.modules if id(module) not in known]
        if len(modules) != 1:
            raise NotOneError(f"inductor made {len(modules)} modules")
        return _recorded(modules[0], compiled, arguments)


def _recorded(module: Any, compiled: Any, arguments: list[Any]) -> dict[str, Any]:
    """What the wrapper calls, noted in place of being done."""
    import torch

    for line in inspect.getsource(module.call).splitlines():
        if not EXPECTED.match(line.strip()):
            raise NotOneError(f"more than kernels: {line.strip()}")
    rooms: list[Any] = []
    bases: dict[int, int] = {}
    """Which of them are parts of which."""

    calls: list[dict[str, Any]] = []

    def room(size: Any, stride: Any, dtype: Any) -> Any:
        rooms.append(torch.empty_strided(size, stride, dtype=dtype))
        return rooms[-1]

    def place(t: Any) -> list[Any]:
        for kind, tensors in (("argument", arguments), ("room", rooms)):
            for i, other in enumerate(tensors):
                if t is other or t.data_ptr() == other.data_ptr():
                    return [kind, i]
        for i, other in enumerate(rooms):
            if t.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() and t.dtype == other.dtype:
                bases[len(rooms)] = i
                rooms.append(t)
                return ["room", len(rooms) - 1]
        raise NotOneError("a kernel takes what is neither an argument nor its own")

    def noted(function: Any) -> Any:
        def call(*given: Any) -> None:
            places = [place(t) if isinstance(t, torch.Tensor) else ["number", t] for t in given]
            calls.append({"library": function.__self__.__file__, "entry": function.__name__, "arguments": places})

        return call

    for name, item in list(vars(module).items()):
        if name.startswith("cpp_fused"):
            setattr(module, name, noted(item))
    module.empty_strided_cpu = room
    compiled(*arguments)
    if not calls:
        raise NotOneError("no kernel was called")
    described = [
        [list(t.shape), list(t.stride()), str(t.dtype).removeprefix("torch."), bases.get(i), t.storage_offset()]
        for i, t in enumerate(rooms)
    ]
    return {"calls": calls, "rooms": described}


if __name__ == "__main__":
    main(given)  # type: ignore[name-defined] # noqa: F821 # which the line that runs this has read
