"""Python programs in processes of their own that have torch already: a fork of the one that tests, which saves the
2 to 3 s that its import takes. Where it counts what a fresh interpreter has, a test starts one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch  # which the forks have


def run_python(*arguments: str, cwd: Path | str | None = None) -> subprocess.CompletedProcess[str]:
    """What ``python *arguments`` does, which are ``-c`` and a program, or a file and its arguments, after ``-W error``
    if a warning is to be an error."""
    if not hasattr(os, "fork"):
        return subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", cwd=cwd)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12, where there are other threads
            process = os.fork()
        if process == 0:
            status = 1
            try:
                status = _be(arguments, out.fileno(), err.fileno(), cwd)
            finally:
                os._exit(status)
        _, status = os.waitpid(process, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), *texts)


def _be(arguments: tuple[str, ...], out: int, err: int, cwd: Path | str | None) -> int:
    """Run the program in this process, and return its status."""
    for of, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
        os.dup2(descriptor, of)
    sys.stdin, sys.stdout, sys.stderr = (
        open(i, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        for i, mode in enumerate(("r", "w", "w"))
    )
    if cwd is not None:
        os.chdir(cwd)
    warnings.resetwarnings()
    warnings.simplefilter("default")
    if arguments[0] == "-W":
        warnings.simplefilter("error")
        arguments = arguments[2:]
    torch.seed()
    status = 0
    try:
        if arguments[0] == "-c":
            sys.argv, sys.path[0:0] = ["-c", *arguments[2:]], [""]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = list(arguments)
            sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
