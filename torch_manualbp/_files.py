"""Files that are written whole or not at all: beside the file that is there, and then in its place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_writable", "is_to_be_lost", "whole_file", "write_text"]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which is at ``path`` once the block has ended, and only if it ended without an error.

    Until then the file that is there stays as it is, and an error or an interruption leaves nothing behind. A link is
    followed, and stays one; permissions stay. What is no regular file, such as a pipe or ``/dev/stdout``, is written to
    directly.

    Raises:
        OSError: the folder does not exist, or the file cannot be written; the message names the file.
    """
    path = os.fspath(path)
    check_writable(path)
    if _is_device(path):
        with _naming(path), open(path, "wb") as device:
            yield device
        return
    real = os.path.realpath(path)
    beside = os.path.join(os.path.dirname(real), f".{secrets.token_hex(8)}.tmp")
    there = os.stat(real) if os.path.exists(real) else None
    try:
        with _naming(path, beside):
            # By the umask, as any new file; what takes the place of a private file is private from the start.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(beside, flags, 0o666 if there is None else 0o600)
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)  # some disks say only now that they are full
            if there is not None:
                with contextlib.suppress(OSError, AttributeError):  # only the administrator gives a file away
                    os.chown(beside, there.st_uid, there.st_gid)
                os.chmod(beside, stat.S_IMODE(there.st_mode))
            os.replace(beside, real)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write the whole file in UTF-8, or leave what is there.

    A lone surrogate, which UTF-8 has no bytes for, is written as its escape: JSON and a string of Python read it back.
    """
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def check_writable(path: str | os.PathLike[str], *, make_folder: bool = False) -> None:
    """Say what will keep a file from being written, before hours of work go into it. Nothing is left behind.

    Args:
        make_folder: missing folders will be made.

    Raises:
        OSError: the file cannot be written; the message names what is at fault.
    """
    path = os.fspath(path)
    if not path or "\0" in path:
        raise OSError(errno.EINVAL, "no file can have this name", path)
    mode = _mode(path)
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise _error(errno.EISDIR, path)
        if not os.access(path, os.W_OK):
            raise _error(errno.EACCES, path)
        if _is_device(path):
            return
    folder = Path(os.path.realpath(path)).parent
    while make_folder and _mode(folder) is None and folder != folder.parent:
        folder = folder.parent
    mode = _mode(folder)
    if mode is None:
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", str(folder))
    if not stat.S_ISDIR(mode):
        raise _error(errno.ENOTDIR, str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):  # which has no name where the system can do without
            pass
    except OSError as error:
        reason = f"the folder cannot be written to: {error.strerror}"
        raise OSError(error.errno, reason, str(folder)) from error


def is_to_be_lost(path: str | os.PathLike[str]) -> bool:
    """Whether writing there replaces a file with something in it."""
    return os.path.isfile(path) and not _is_device(os.fspath(path)) and os.path.getsize(path) > 0


def _mode(path: str | Path) -> int | None:
    """What kind of thing is there; None if nothing is."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_device(path: str) -> bool:
    """Whether this is a pipe, a terminal, or what ``/dev/stdout`` stands for: even a file, others write to it, too."""
    mode = _mode(path)
    return mode is not None and (not stat.S_ISREG(mode) or os.path.abspath(path).startswith(("/dev/", "/proc/")))


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)  # of the subclass that the number has


@contextlib.contextmanager
def _naming(path: str, beside: str | None = None) -> Iterator[None]:
    """Errors speak of the file that is asked for, and not of none or of the one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, beside):
            raise _error(error.errno, path) from error
        raise
