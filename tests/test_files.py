"""Files are written whole or not at all: what is there stays until the new one is, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_manualbp import _files
from torch_manualbp._files import check_writable, whole_file, write_text

WITHOUT_TORCH = f"import runpy; write_text = runpy.run_path({_files.__file__!r})['write_text']"
"""What begins faster than an import of the package."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only the administrator of a Linux system can make a disk that is full")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_file_that_is_there(small_disk: Path) -> None:
    path = small_disk / "step.py"
    write_text(path, "good")
    with pytest.raises(OSError, match=r"No space left on device: '.*step.py'"):
        write_text(path, "x" * 100_000)
    assert path.read_text() == "good"
    assert os.listdir(small_disk) == ["step.py"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_in_the_middle_leaves_what_is_there(error: BaseException, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if there:
        path.write_text("good")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            file.flush()
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["good"] * there


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "good")
    code = f"""if True:
        import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs may ignore it
        {WITHOUT_TORCH}
        while True:
            write_text({str(path)!r}, "good")
    """
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
            before = path.stat().st_mtime_ns  # two files may take turns with two inodes
            while path.stat().st_mtime_ns == before:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
        assert path.read_text() == "good"
        assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_stay(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(mode)
    path.chmod(mode)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these permissions")
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    for _ in range(2):  # a link to nothing, and to a file
        link.unlink(missing_ok=True)
        link.symlink_to(Path("elsewhere") / "file")
        write_text(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
        target.write_text("old")


def test_a_name_of_the_greatest_length(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "whole")
    assert path.read_text() == "whole"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there are no devices on this system")
def test_devices_are_written_to() -> None:
    write_text("/dev/null", "nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    code = f"{WITHOUT_TORCH}; print(1, flush=True); write_text('/dev/stdout', '2')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n2"
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
            write_text("/dev/full", "something")


def test_a_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "file", '"δ\udc80"')
    assert (tmp_path / "file").read_bytes() == b'"\xce\xb4\\udc80"'


UNWRITABLE = {
    "no folder/file": r"the folder does not exist: '.*no folder'",
    "a file/file": r"Not a directory: '.*a file'",
    "a file/folder/file": r"the folder does not exist|Not a directory",
    "a folder": r"Is a directory: '.*a folder'",
    "": "no file can have this name: ''",
    "a\0b": "no file can have this name: ",
    "n" * 256: "File name too long",
    "circle": "Too many levels of symbolic links",
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_cannot_be_written_is_said_beforehand(name: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = sorted(tmp_path.iterdir())
    path = f"{tmp_path}/{name}" if name else ""
    for write in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(OSError, match=UNWRITABLE[name]) as caught:
            write(path)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that even the administrator cannot use")
@pytest.mark.parametrize("make_folder", [True, False])
def test_a_folder_that_nobody_can_write_to_is_said_beforehand(make_folder: bool) -> None:
    with pytest.raises(OSError, match=r"the folder cannot be written to: .*: '/proc'"):
        check_writable("/proc/folder/file" if make_folder else "/proc/file", make_folder=make_folder)


def test_missing_folders_may_be_allowed(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "file", make_folder=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError, match=r"Not a directory: '.*a'"):
        check_writable(tmp_path / "a" / "b" / "file", make_folder=True)
