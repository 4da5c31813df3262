"""Two names change places in one step of the file system, so that at no moment nothing is at a path."""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_NO_REPLACE, _EXCHANGE = 1, 2  # of renameat2
_SWAP, _EXCLUSIVE = 2, 4  # of renamex_np
_HERE = -100  # AT_FDCWD
_UNABLE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
_MANY_FILES = 256
ASIDE = ".aside"
"""Ending of the older result, where it has to step aside for a moment."""


def move(fresh: Path, path: Path) -> None:
    """Give what is at ``fresh`` the name ``path``, where nothing is.

    Raises
    ------
    FileExistsError
        Something is there.
    """
    if _system_rename(fresh, path, exchange=False):
        return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    fresh.rename(path)


def exchange(fresh: Path, path: Path) -> None:
    """What is at ``fresh`` and what is at ``path`` change places; on an error both stay where they were.

    Where the file system cannot do it in one step, a file is still replaced in one, and a folder in two.
    """
    if _system_rename(fresh, path, exchange=True):
        return
    aside = fresh.with_name(f"{fresh.name}{ASIDE}")
    if not path.is_dir() and not fresh.is_dir():
        _keep_copy(path, aside)
        fresh.replace(path)
    else:
        path.rename(aside)
        try:
            fresh.rename(path)
        except BaseException:
            aside.rename(path)
            raise
    aside.rename(fresh)


def _keep_copy(path: Path, aside: Path) -> None:
    """The file under a second name, or copied where the file system has no second names."""
    try:
        os.link(path, aside)
    except OSError:
        aside.write_bytes(path.read_bytes())


def _system_rename(fresh: Path, path: Path, *, exchange: bool) -> bool:
    """Rename by the system's own call for it; False where there is none."""
    call = _system_call()
    if call is None:
        return False
    failed = call(os.fsencode(fresh), os.fsencode(path), exchange)
    if not failed:
        return True
    if failed in _UNABLE:
        return False
    raise OSError(failed, os.strerror(failed), str(path))


@cache
def _system_call() -> Callable[[bytes, bytes, bool], int] | None:
    """A function that renames and returns the number of its error."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            rename = library.renamex_np
            rename.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
        else:
            rename = library.renameat2
            rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    except (AttributeError, OSError, TypeError):  # an older C library, or none of this kind
        return None

    def call(fresh: bytes, path: bytes, exchange: bool) -> int:  # noqa: FBT001
        if sys.platform == "darwin":
            done = rename(fresh, path, _SWAP if exchange else _EXCLUSIVE)
        else:
            done = rename(_HERE, fresh, _HERE, path, _EXCHANGE if exchange else _NO_REPLACE)
        return ctypes.get_errno() if done else 0

    return call


def to_disk(path: Path) -> None:
    """See to it that a file, or all files of a folder, are on the disk and not only in memory."""
    files = [path] if not path.is_dir() else [each for each in path.rglob("*") if each.is_file()]
    if len(files) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()  # once for a store of thousands of files
        return
    for each in files:
        if stat.S_ISREG(each.stat().st_mode):
            _sync(each)
    if path.is_dir():
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.EBADF}:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
